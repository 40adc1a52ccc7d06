"""Compares steps with FSDP2 and DDP on two ranks: ``python -m benchmarks.rank_steps``."""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.harness import Rounds, seconds_of
from benchmarks.ranks import on_two_ranks
from benchmarks.step_config import CONFIG, SMALL, build, config_for
from benchmarks.synthetic import pretrain_batch
from engine.steps import trainer_of
from utils.commands import call
from utils.errors import one_line_errors
from utils.flags import Override, Positive

UNTIMED = 3
"""Number of steps that are not timed, since DDP rebuilds its buckets after the first step."""


def step_s(path: Path, overrides: list[str], steps: int) -> float:
    """Returns the median seconds of a step on this rank."""
    config = config_for(path, overrides)
    torch.manual_seed(0)
    model = build(config)
    trainer = trainer_of(model, config.train, config.optim, torch.device("cpu"))
    batch = pretrain_batch(config.data, model.vision, len(model.text.word_embeddings), seed=dist.get_rank())
    seconds = []
    for _ in range(UNTIMED + steps):
        dist.barrier()
        seconds.append(seconds_of(partial(trainer.train_step, [batch])))
    return statistics.median(seconds[UNTIMED:])


def main(*overrides_: Override, flags: Rounds = Rounds(), steps: Positive = 8, small_: bool = False) -> int:
    """Compares pre-training steps with FSDP2 and with DDP, on two ranks with one thread each.

    The two alternate, each in new processes. The last line is the median ratio of the times: FSDP2 over DDP.

    Args:
        steps: number of steps per measurement, of which the median is used.
        small_: smoke test with a small model and batch.
        overrides_: config values to override.

    Examples:
        python -m benchmarks.rank_steps
    """

    @one_line_errors
    def run() -> int:
        path, smaller = SMALL if small_ else (CONFIG, [])
        shared = [*smaller, "train.global_batch=null", "train.precision=fp32", *overrides_]
        measures = {
            title: partial(on_two_ranks, step_s, path, [*shared, f"train.parallel={parallel}"], steps)
            for title, parallel in {"FSDP2": "fsdp", "DDP": "ddp"}.items()
        }
        compared = flags.compare(measures, warm_up=False)
        return flags.conclude(compared.ratio, compared.rounds)

    return run()


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.rank_steps"))
