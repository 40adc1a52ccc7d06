"""Measures how long the train loop waits for a checkpoint: ``python -m benchmarks.checkpoint_stall``."""

from __future__ import annotations

import statistics
import sys
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pretrain_step import build, seconds
from engine.checkpoint import temporary_folder, write_checkpoint
from engine.manifest import STATES
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
    parallel = DataParallel(model, torch.device("cpu"))
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), keep=1)

        def started(step: int) -> tuple[dict[str, Tensor], Future[Any]]:
            writer.create_folder(step)
            tensors = {f"{number}/{key}": state for number, each in states.items() for key, state in each.items()}
            saving = parallel.start_saving(tensors, temporary_folder(Path(folder), step) / STATES)
            return parallel.gathered(dict(model.state_dict())), saving

        def save_and_wait(step: int) -> None:
            weights, saving = started(step)
            write_checkpoint(Path(folder), step, weights, {}, states_written=saving)

        def save(step: int) -> None:
            weights, saving = started(step)
            writer.save(step, weights, None, {}, states_written=saving)

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
