"""How long the train loop waits for a checkpoint: ``python -m benchmarks.checkpoint_stall``."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.pretrain_step import build, seconds
from engine.checkpoint import write_checkpoint
from engine.parallel.ddp import DataParallel
from engine.saving import CheckpointWriter
from utils.commands import call
from utils.flags import Positive


def main(*, rounds: Positive = 3, small: bool = False) -> int:
    """How long the train loop waits for a checkpoint.

    The model is X²-VLM base with AdamW's state, some 3 GB. A save that the loop waits for writes, hashes and syncs the
    checkpoint. The run's own save copies the states, and a thread does the rest. Both alternate, and none begins before the
    other ends.

    The last line is the median of the seconds that the loop waits over those of a save that it waits for.

    Args:
        rounds: saves of each kind.
        small: a small model, to see that the benchmark runs.

    Examples:
        python -m benchmarks.checkpoint_stall
    """
    model, _ = build(small)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    parallel = DataParallel(model, torch.device("cpu"))
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), keep=1)

        def copied_states() -> Any:
            return parallel.gathered((dict(model.state_dict()), {"optimizer": optimizer.state_dict()}))

        def save_and_wait(step: int) -> None:
            weights, training = copied_states()
            write_checkpoint(Path(folder), step, weights, training)

        def save(step: int) -> None:
            weights, training = copied_states()
            writer.save(step, weights, None, training)

        for number in range(rounds):
            waited = seconds(lambda step=2 * number: save_and_wait(step))  # type: ignore[misc]
            stalled = seconds(lambda step=2 * number + 1: save(step))  # type: ignore[misc]
            writer.finish()
            ratios.append(stalled / waited)
            sys.stdout.write(f"round {number + 1}: waits {stalled:.2f} s instead of {waited:.2f} s\n")
    sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.checkpoint_stall"))
