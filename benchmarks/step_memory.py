"""Memory of a training step, planned over measured, on the CPU: ``python -m benchmarks.step_memory``.

Each real step runs in a separate process. The measured memory is the process's peak in the step (the kernel's high-water mark)
less its memory before the model is built, after a step of another small model.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.memory import FakeSteps, trainer_of
from tasks.kinds import kind_of
from tools.plan.synthetic import scaled, synthetic_batch
from utils.config import load_config

TINY = ["model.text.arch.vocab_size=500"]
MIDDLE = [
    *("model.vision.width=384", "model.vision.depth=6", "model.vision.heads=6"),
    "model.text.arch={family: bert, vocab_size: 8000, width: 384, layers: 4, heads: 6, intermediate: 1536, max_positions: 64}",
    "model.fusion={layers: 3, width: 384, heads: 6, intermediate: 1536}",
    "train.global_batch=null",
]
CASES: list[tuple[str, list[str], Sequence[int]]] = [
    ("configs/demo/pretrain.yaml", TINY, (64, 128, 256)),
    ("configs/pretrain/base_4m.yaml", [*MIDDLE, "train.precision=fp32"], (4, 8, 16)),
    ("configs/pretrain/base_4m.yaml", [*MIDDLE, "train.precision=bf16"], (4, 8, 16)),
    ("configs/retrieval/coco_base_4m.yaml", [*MIDDLE, "train.precision=fp32", "train.accumulate=1"], (4, 8)),
    ("configs/retrieval/coco_base_4m.yaml", [*MIDDLE, "train.precision=fp32", "train.accumulate=2"], (2, 8)),
]
"""Config, overrides, and examples of the leading stream in a micro-batch."""

SMALL = [("configs/demo/pretrain.yaml", TINY, (64,)), (CASES[2][0], CASES[2][1], (8,))]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark and print the ratio furthest from 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="check that it runs, with two cases")
    parser.add_argument("--measure", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        config, examples, *overrides = arguments.measure
        sys.stdout.write(f"{measure_here(config, overrides, int(examples))}\n")
        return
    worst = 1.0
    for config, overrides, sizes in SMALL if arguments.small else CASES:
        for examples in sizes:
            planned, actual = estimate(config, overrides, examples), measure(config, overrides, examples)
            worst = max(worst, planned / actual, key=lambda ratio: abs(ratio - 1))
            case = " ".join([config, *(override for override in overrides if override.startswith("train."))])
            sys.stdout.write(
                f"{case}, {examples} examples: {planned / 1e6:.0f} MB planned, {actual / 1e6:.0f} MB measured\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"ratio: {worst:.2f}\n")


def estimate(path: str, overrides: list[str], examples: int) -> int:
    """Peak bytes of a step, planned for this CPU."""
    schema, kind = kind_of(Path(path), overrides)
    config = scaled(load_config(path, overrides, schema), examples)
    steps = FakeSteps(lambda: kind.build_model(config, None), config.train, config.optim, as_on_gpu=False)
    several = config.train.accumulation(config.data, 1) > 1
    return steps.memory(lambda model: synthetic_batch(config, model), gradients_stay=several).total


def measure(path: str, overrides: list[str], examples: int) -> int:
    """Peak bytes of a real step, in a process that returns freed memory to the system at once."""
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.step_memory", "--measure", path, str(examples), *overrides]
    root = Path(__file__).parent.parent
    process = subprocess.run(command, env=os.environ | settings, cwd=root, capture_output=True, text=True, check=True)
    return int(process.stdout)


def measure_here(path: str, overrides: list[str], examples: int) -> int:
    """Peak bytes of a step in this process."""
    _steps("configs/demo/pretrain.yaml", TINY, 2)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _memory("VmRSS")
    _steps(path, overrides, examples)
    return _memory("VmHWM") - before


def _steps(path: str, overrides: list[str], examples: int) -> None:
    """Run two steps: the first makes the optimiser's states, the second is measured."""
    schema, kind = kind_of(Path(path), overrides)
    config: Any = scaled(load_config(path, overrides, schema), examples)
    torch.manual_seed(0)
    trainer = trainer_of(kind.build_model(config, None), config.train, config.optim, torch.device("cpu"))
    batch = synthetic_batch(config, trainer.model)
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        trainer.train_step([batch] * config.train.accumulation(config.data, 1))


def _memory(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


if __name__ == "__main__":
    main()
