"""Time that the host spends in a pre-training step: ``python -m benchmarks.host_overhead``."""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batches.losses import Losses, Term
from batches.pretraining import PretrainBatch
from benchmarks.step_config import CONFIG, SMALL, batches_for, build, config_for
from engine.run_folder import RunFolder
from engine.steps import NoData
from engine.trainer import PHASES, Trainer
from models.pretraining.model import PretrainModel
from scheduler import ScheduleConfig
from tasks.config import PretrainConfig
from utils.commands import call
from utils.flags import Positive

DEVICE_PHASES = ("forward", "backward", "clip", "optimiser")
"""Phases in which the device computes, which are not measured."""

HOST_PHASES = tuple(phase for phase in PHASES if phase not in DEVICE_PHASES)

WARM_UP = 5
"""Number of steps before timing, during which the optimiser creates its states and modules are imported."""


class Stub(nn.Module):
    """Replaces a model: all losses are zero, every parameter has a gradient, and counts and FLOPs are taken from ``real``."""

    chunks = 1

    def __init__(self, real: PretrainModel):
        super().__init__()
        self.counts, self.work = real.counts, real.work
        for name, parameter in real.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.zeros(1)))

    def forward(self, batch: PretrainBatch) -> Losses:
        zero = 0 * torch.cat(list(self.parameters())).sum()
        return {name: Term(zero, 1.0) for name in self.counts(batch)}


class StubTask(NoData):
    """A task whose model is the stub, and which is its own loader."""

    def __init__(self, config: PretrainConfig):
        with torch.device("meta"):
            real = build(config)
        super().__init__(Stub(real))
        self.micro_batches = batches_for(config, real, static=False)

    def batches(self, consumed: int, count: int) -> Iterator[PretrainBatch]:
        return itertools.islice(itertools.cycle(self.micro_batches), count)


class Stopwatch:
    """Records the milliseconds of each phase of each step, as a callback for :attr:`engine.trainer.Trainer.after_phase`."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.last_s = time.perf_counter()

    def mark(self, phase: str) -> None:
        if phase == PHASES[0]:
            self.steps.append(defaultdict(float))
        self.steps[-1][phase] += 1000 * (time.perf_counter() - self.last_s)
        self.last_s = time.perf_counter()


def measure(config: PretrainConfig, steps: int) -> list[dict[str, float]]:
    """Measures the milliseconds of each phase in ``steps`` steps after warm-up."""
    task = StubTask(config)
    train = config.train.model_copy(
        update={
            "steps": WARM_UP + steps,
            "epochs": None,
            "global_batch": None,
            "accumulate": 1,
            "compile": False,
            "recompute": [],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        sections = {"train": train, "optim": config.optim, "schedule": ScheduleConfig()}
        plan = config.model_copy(update=sections).plan(1, task.epoch_size)
        trainer = Trainer(
            task,
            plan,
            train=train,
            optim=config.optim,
            schedule=ScheduleConfig(),
            seed=config.seed,
            folder=RunFolder(Path(folder)),
            device=torch.device("cpu"),
        )
        watch = Stopwatch()
        trainer.after_phase = watch.mark
        trainer.fit()
    return watch.steps[WARM_UP:]


def table(steps: Sequence[dict[str, float]]) -> list[str]:
    """Returns the lines of a table with the median and the mean of each host phase."""
    columns: dict[str, Any] = {phase: [step[phase] for step in steps] for phase in HOST_PHASES}
    return [
        f"{'ms/step':10} {'median':>7} {'mean':>7}",
        *(f"{phase:10} {statistics.median(ms):7.3f} {statistics.mean(ms):7.3f}" for phase, ms in columns.items()),
    ]


def _run(steps: int, small: bool) -> int:
    """Measures the phases and prints them with their sum."""
    config, overrides = SMALL if small else (CONFIG, [])
    measured = measure(config_for(config, overrides), steps)
    total = statistics.median(sum(step[phase] for phase in HOST_PHASES) for step in measured)
    lines = [*table(measured), f"{torch.get_num_threads()} threads, {config}", f"ms: {total:.2f}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def main(*, steps: Positive = 50, small: bool = False) -> int:
    """Time that the host spends in a pre-training step.

    A GPU idles if the host needs longer to enqueue a step than the GPU needs to compute it. The benchmark measures the train loop
    (engine.trainer.Trainer.fit) on the host, without forward and backward passes, clipping, optimiser and copies to the device.
    What remains is seeding, learning rates, counts, the sum of the losses, FLOPs, and the report, which writes a line of metrics
    every log_every steps.

    The trainer runs on the CPU with the config's settings and realistic batch sizes. A stub replaces the model: it returns zero
    for all losses, and has as many parameter tensors as the model, each with a single element. Counts and FLOPs are computed with
    the real model on the meta device. Since nothing is copied on the CPU, "data" is only the bookkeeping of the loader.

    The table shows the median and the mean of each phase. The means include the steps that write a line of metrics; the medians
    do not. The last line is the median, over steps, of the sum of the phases.

    Args:
        steps: number of timed steps.
        small: smoke test with a small model and batch.

    Examples:
        python -m benchmarks.host_overhead
    """
    return _run(steps, small)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.host_overhead"))
