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

import torch

from demo.scenes.build import build
from tests.conftest import tiny_run
from tests.engine.runs import curve, final_weights, finish, start

STEPS = 150


def lines(output: Path) -> int:
    """Lines of the run's `metrics.jsonl`, torn ones included."""
    path = output / "metrics.jsonl"
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build(root / "scenes", seed=0, train=40, val=8, test=8, size=32)
        overrides = [*tiny_run(root / "scenes"), f"train.steps={STEPS}", "train.checkpoint_every=5"]
        finish(root / "whole", overrides, device=device)
        killed = root / "killed"
        for goal in sorted(chance.sample(range(1, STEPS - 5), arguments.kills)):
            process = start(killed, overrides, resume=True, device=device)
            while lines(killed) < goal and process.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            newest = max((path.name for path in killed.glob("checkpoints/step-*")), default="no checkpoint")
            sys.stdout.write(f"killed with {lines(killed)} steps in metrics.jsonl and {newest}\n")
        finish(root / "killed", overrides, resume=True, device=device)
        same = curve(root / "whole") == curve(root / "killed")
        same = same and final_weights(root / "whole") == final_weights(root / "killed")
    sys.stdout.write(f"{'equal to the last digit' if same else 'DIFFERENT'} after {arguments.kills} kills\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
