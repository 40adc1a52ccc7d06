"""Measures how long the train loop waits for a checkpoint: ``python -m benchmarks.checkpoint_stall``."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.pretrain_step import build, seconds
from engine.parallel.ddp import DataParallel
from engine.saving import CheckpointWriter
from utils.commands import call
from utils.flags import Positive


def main(*, rounds: Positive = 3, small: bool = False) -> int:
    """Measures how long the train loop waits for a checkpoint.

    The model is X²-VLM base with AdamW's state, about 3 GB. In a blocking save, the loop waits until the checkpoint is written,
    hashed and synced. In the asynchronous save that runs use, the loop waits only while the states are copied, and a thread does
    the rest. The two kinds of saves alternate without overlapping.

    The last line is the median ratio of the waiting times, asynchronous over blocking.

    Args:
        rounds: number of saves of each kind.
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
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), keep=1, parallel=parallel)

        def save(step: int) -> None:
            writer.save(step, dict(model.state_dict()), None, {}, tensors)

        def save_and_wait(step: int) -> None:
            save(step)
            writer.wait()

        for number in range(rounds):
            waited = seconds(lambda step=2 * number: save_and_wait(step))  # type: ignore[misc]
            stalled = seconds(lambda step=2 * number + 1: save(step))  # type: ignore[misc]
            writer.finish()
            ratios.append(stalled / waited)
            sys.stdout.write(f"round {number + 1}: asynchronous {stalled:.2f} s, blocking {waited:.2f} s\n")
    sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.checkpoint_stall"))
