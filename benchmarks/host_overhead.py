"""The host's share of a pre-training step: ``python -m benchmarks.host_overhead``.

A GPU idles where the host takes longer to prepare its work than the GPU to do it. Measured is what the train loop
(:meth:`engine.trainer.Trainer.fit`) does on the host beside forward, backward, clipping, the optimiser and the copies to the
device: seeding, learning rates, counts, the sum of the losses, FLOPs, and the report (every ``log_every`` steps with a line of
metrics).

The steps are the trainer's, with the config's settings and batches of its real sizes on the CPU. A stub stands in for the model:
it returns zeros for all losses, and has as many parameters, of one element each, so that the trainer walks over as many
gradients. Counts and FLOPs are those of the real model, which has sizes and no contents. Where tensors are on the CPU already,
copying them moves nothing; what is left of "data" is the bookkeeping, which counts.

The last line is the median of the steps; of the parts, the table has the medians, and the means, in which a line of metrics is
spread over the steps from one to the next.
"""

from __future__ import annotations

import argparse
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

from benchmarks.gpu import CONFIG, SMALL, batches_for, build, config_for
from engine.run_folder import RunFolder
from engine.trainer import PHASES, Trainer
from models.pretrain import PretrainModel
from scheduler import ScheduleConfig
from tasks.pretrain import PretrainConfig
from utils.batch import Losses, MicroBatch, PretrainBatch, Term
from utils.errors import one_line_errors
from utils.flags import positive

EXCLUDED = ("forward", "backward", "clip", "optimiser")
"""Phases of a step that are not the trainer's own."""

OWN = tuple(phase for phase in PHASES if phase not in EXCLUDED)

WARM_UP = 5
"""Steps before the clock runs: the optimiser makes its states, and modules are imported."""


class Stub(nn.Module):
    """All losses of a model as zeros. Every parameter has a gradient; counts and work are those of ``real``."""

    def __init__(self, real: PretrainModel):
        super().__init__()
        self.counts, self.work = real.counts, real.work
        for name, parameter in real.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.zeros(1)))

    def forward(self, batch: PretrainBatch) -> Losses:
        zero = 0 * torch.cat(list(self.parameters())).sum()
        return {name: Term(zero, 1.0) for name in self.counts(batch)}


class StubTask:
    """A task of the stub, and its loader, which has the batches at hand."""

    selects: str | None = None
    examples_per_batch = records_per_batch = epoch_size = 1
    micro_batch = MicroBatch("the micro-batch", 1)

    def __init__(self, config: PretrainConfig):
        with torch.device("meta"):
            real = build(config)
        self.model: nn.Module = Stub(real)
        self.ready = batches_for(config, real, static=False)
        self.fresh: set[str] = set()

    def train_loader(self) -> StubTask:
        return self

    def batches(self, consumed: int, count: int) -> Iterator[PretrainBatch]:
        return itertools.islice(itertools.cycle(self.ready), count)

    def validate(self) -> dict[str, float]:
        return {}


class Stopwatch:
    """Milliseconds of each phase of each step, by :attr:`engine.trainer.Trainer.after`."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.last_s = time.perf_counter()

    def mark(self, phase: str) -> None:
        if phase == PHASES[0]:
            self.steps.append(defaultdict(float))
        self.steps[-1][phase] += 1000 * (time.perf_counter() - self.last_s)
        self.last_s = time.perf_counter()


def measure(config: PretrainConfig, steps: int) -> list[dict[str, float]]:
    """Milliseconds of each phase, for each of ``steps`` steps after those of the warm-up."""
    task = StubTask(config)
    train = config.train.model_copy(
        update={"steps": WARM_UP + steps, "epochs": None, "compile": False, "recompute": []}
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            task,
            train=train,
            optim=config.optim,
            schedule=ScheduleConfig(),
            seed=config.seed,
            folder=RunFolder(Path(folder)),
            device=torch.device("cpu"),
        )
        watch = Stopwatch()
        trainer.after = watch.mark
        trainer.fit()
    return watch.steps[WARM_UP:]


def table(steps: Sequence[dict[str, float]]) -> list[str]:
    """Median and mean of each part."""
    columns: dict[str, Any] = {phase: [step[phase] for step in steps] for phase in OWN}
    return [
        f"{'ms a step':10} {'median':>7} {'mean':>7}",
        *(f"{phase:10} {statistics.median(ms):7.3f} {statistics.mean(ms):7.3f}" for phase, ms in columns.items()),
    ]


def run(flags: argparse.Namespace) -> int:
    """Measure, and print the parts and the whole."""
    config, overrides = SMALL if flags.small else (CONFIG, [])
    steps = measure(config_for(config, overrides), flags.steps)
    whole = statistics.median(sum(step[phase] for phase in OWN) for step in steps)
    lines = [*table(steps), f"{torch.get_num_threads()} threads, {config}", f"ms: {whole:.2f}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=positive, default=50, help="steps that are timed")
    parser.add_argument("--small", action="store_true", help="a small model and batch: a check that it runs")
    flags = parser.parse_args(argv)
    return one_line_errors(lambda: run(flags))()


if __name__ == "__main__":
    sys.exit(main())
