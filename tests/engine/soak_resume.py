"""Kill a run with SIGKILL at random moments, resume it each time, and compare it with an uninterrupted one.

python -m tests.engine.soak_resume --kills 20
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from dataset import scenes
from tests.conftest import tiny_run
from tests.engine.runs import curve, final_weights, finish, start


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scenes.build(root / "scenes", seed=0, train=40, val=8, test=8, size=32)
        overrides = [*tiny_run(root / "scenes"), "train.steps=150", "train.checkpoint_every=5"]
        began = time.monotonic()
        finish(root / "whole", overrides)
        whole_s = time.monotonic() - began
        for kill in range(arguments.kills):
            process = start(root / "killed", overrides, resume=True)
            time.sleep(chance.uniform(0.5, whole_s))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done = len(curve(root / "killed")) if (root / "killed" / "metrics.jsonl").exists() else 0
            sys.stdout.write(f"kill {kill + 1}: {done} steps in metrics.jsonl\n")
        finish(root / "killed", overrides, resume=True)
        same = curve(root / "whole") == curve(root / "killed")
        same = same and final_weights(root / "whole") == final_weights(root / "killed")
    sys.stdout.write(f"{'equal to the last digit' if same else 'DIFFERENT'} after {arguments.kills} kills\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
