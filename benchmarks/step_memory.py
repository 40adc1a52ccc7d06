"""Compares planned and measured memory of training steps: ``python -m benchmarks.step_memory``."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch

from benchmarks.harness import write_results
from benchmarks.step_config import VOCABULARY
from engine.devices import ASSUMED_UTILISATION, peak_of
from engine.steps import trainer_of
from tasks.binding import bind_run
from tools.plan.synthetic import scaled, synthetic_batch
from tools.steps.fake import FakeSteps
from tools.steps.real import RealSteps
from utils import accelerator, distributed
from utils.commands import call
from utils.flags import SEVERAL

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
"""The measured cases: a config, overrides, and the numbers of examples in a micro-batch of the leading stream."""

ON_GPU: list[tuple[str, list[str], Sequence[int]]] = [
    ("configs/pretrain/base_4m.yaml", ["train.global_batch=null"], (16, 48, 96)),
    ("configs/retrieval/coco_base_4m.yaml", ["train.global_batch=null"], (8, 16, 32)),
]

SHALLOW = [*MIDDLE, "model.vision.depth=2", "model.text.arch.layers=2", "model.fusion.layers=1", "train.precision=bf16"]
SMALL = [("configs/demo/pretrain.yaml", TINY, (64,)), (CASES[2][0], SHALLOW, (8,))]


def main(
    *, small: bool = False, measure_: Annotated[tuple[str, ...], SEVERAL] | None = None, json_: Path | None = None
) -> int:
    """Compares planned and measured memory of training steps.

    Each real step runs in a separate process. On a GPU, the measured memory is the peak of torch's allocator; the time is also
    measured, and compared with the estimate of run.py plan from FLOPs and the GPU's peak. On the CPU, the measured memory is the
    process's peak during the step (the kernel's high-water mark) minus its memory before the model is built, after a step of
    another small model.

    Args:
        small: smoke test with two cases.
        measure_: a config, a number of examples and overrides; the benchmark calls itself with this flag in a separate process.
        json_: also write the results to a JSON file.

    Examples:
        python -m benchmarks.step_memory
    """
    if measure_:
        measured, count, *words = measure_
        sys.stdout.write(f"{json.dumps(measure_here(measured, words, int(count)))}\n")
        return 0
    worst, rows = 1.0, []
    on_gpu = accelerator.best_device().type != "cpu"
    for config, overrides, sizes in SMALL if small else ON_GPU if on_gpu else CASES:
        for examples in sizes:
            planned, (actual, seconds) = estimate(config, overrides, examples), measure(config, overrides, examples)
            case = " ".join([config, *(override for override in overrides if override.startswith("train."))])
            line = f"{case}, {examples} examples: {planned.memory / 1e6:.0f} MB planned, "
            if actual is None:
                line += "does not fit into memory"
            else:
                worst = max(worst, planned.memory / actual, key=lambda ratio: abs(ratio - 1))
                line += f"{actual / 1e6:.0f} MB measured"
            if planned.seconds and seconds:
                line += f"; {planned.seconds:.3f} s planned, {seconds:.3f} s measured"
            rows.append({"case": case, "examples": examples, "planned": planned._asdict()})
            rows[-1]["measured"] = {"memory": actual, "seconds": seconds}
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
            write_results(json_, rows)
    sys.stdout.write(f"ratio: {worst:.2f}\n")
    return 0


class Planned(NamedTuple):
    """Estimates for a step.

    Attributes:
        memory: peak memory in bytes.
        seconds: time on a known GPU; None on other devices.
    """

    memory: int
    seconds: float | None


def estimate(path: str, overrides: list[str], examples: int) -> Planned:
    """Estimates memory and time on this device."""
    run = bind_run(path, overrides)
    kind = run.source.load().task
    config, device = scaled(run.config, examples), accelerator.best_device()
    on_gpu = device.type != "cpu"
    steps = FakeSteps(_model(kind, config), config.train, config.optim, as_on_gpu=on_gpu)
    several = config.plan(1).accumulation > 1
    memory = steps.memory(lambda model: synthetic_batch(config, model), gradients_stay=several).total
    peak = peak_of(device, config.train.precision)
    if peak is None:
        return Planned(memory, None)
    with torch.device("meta"):
        model = _model(kind, config)
    return Planned(memory, model.work(synthetic_batch(config, model)).flops / (1e12 * peak * ASSUMED_UTILISATION))


def _model(kind: Any, config: Any) -> Any:
    return kind.build_model(config, None if config.model.text.knows_vocabulary else VOCABULARY)


def measure(path: str, overrides: list[str], examples: int) -> tuple[int | None, float | None]:
    """Measures the peak bytes and the seconds of a real step, in a process that returns freed memory to the system
    immediately."""
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.step_memory", "--measure", path, str(examples), *overrides]
    root = Path(__file__).parent.parent
    process = subprocess.run(
        command, env=os.environ | settings, cwd=root, stdout=subprocess.PIPE, text=True, check=True
    )
    memory, seconds = json.loads(process.stdout)
    return memory, seconds


def measure_here(path: str, overrides: list[str], examples: int) -> tuple[int | None, float | None]:
    """Measures the peak bytes of a step in this process, and its seconds on a GPU. A value is None if the step does not fit into
    memory or the value was not measured."""
    if accelerator.best_device().type != "cpu":
        run = bind_run(path, overrides)
        kind = run.source.load().task
        config = scaled(run.config, examples)
        with distributed.process_group() as device:  # sets up a GPU as a run does
            steps = RealSteps(_model(kind, config), config.train, config.optim, device)
            several = config.plan(1).accumulation > 1
            memory = steps.memory(lambda model: synthetic_batch(config, model), gradients_stay=several)
            seconds = steps.seconds(lambda model: synthetic_batch(config, model))
        return None if memory is None else memory.total, seconds
    _steps("configs/demo/pretrain.yaml", TINY, 2)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = process_memory("VmRSS")
    _steps(path, overrides, examples)
    return process_memory("VmHWM") - before, None


def _steps(path: str, overrides: list[str], examples: int) -> None:
    """Runs two steps: the first creates the optimiser states, the second is measured."""
    run = bind_run(path, overrides)
    kind = run.source.load().task
    config: Any = scaled(run.config, examples)
    torch.manual_seed(0)
    trainer = trainer_of(_model(kind, config), config.train, config.optim, torch.device("cpu"))
    batch = synthetic_batch(config, trainer.model)
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        trainer.train_step([batch] * config.plan(1).accumulation)


def process_memory(field: str) -> int:
    """Returns a memory size of this process in bytes, by its name in /proc/self/status: "VmRSS" now, or "VmHWM" at the peak."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.step_memory"))
