"""Measures how long the train loop waits for a checkpoint: ``python -m benchmarks.checkpoint_stall``."""

from __future__ import annotations

import sys
import tempfile
from itertools import count
from pathlib import Path

import torch

from benchmarks.harness import Rounds, seconds_of
from benchmarks.pretrain_step import build
from engine.parallel.ddp import DataParallel
from engine.saving import CheckpointWriter
from utils.commands import call


def main(*, flags: Rounds = Rounds(), small: bool = False) -> int:
    """Measures how long the train loop waits for a checkpoint.

    The model is X²-VLM base with AdamW's state, about 3 GB. In a blocking save, the loop waits until the checkpoint is written,
    hashed and synced. In the asynchronous save that runs use, the loop waits only while the states are copied, and a thread does
    the rest. The two kinds of saves alternate without overlapping.

    The last line is the median ratio of the waiting times, asynchronous over blocking.

    Args:
        small: smoke test with a small model.

    Examples:
        python -m benchmarks.checkpoint_stall
    """
    model, _ = build(small)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = optimizer.state_dict()["state"]
    tensors = {f"{number}/{key}": state for number, each in states.items() for key, state in each.items()}
    parallel = DataParallel(model, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        writer, steps = CheckpointWriter(Path(folder), keep=1, parallel=parallel), count()

        def save() -> None:
            writer.save(next(steps), dict(model.state_dict()), None, {}, tensors)

        def save_and_wait() -> None:
            save()
            writer.wait()

        def stall_s() -> float:
            stalled_s = seconds_of(save)
            writer.wait()
            return stalled_s

        compared = flags.compare({"asynchronous": stall_s, "blocking": lambda: seconds_of(save_and_wait)})
        writer.finish()
    return flags.conclude(compared.ratio, compared.rounds)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.checkpoint_stall"))
