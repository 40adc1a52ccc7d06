"""The micro-batches of a step in turn, with losses that span several of them (``model.contrastive.chunks``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from engine.task import TaskModel


def in_turn(
    model: TaskModel,
    micro_batches: Sequence[Any],
    chunks: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    seed: Callable[[int], None],
) -> Iterator[tuple[int, Any]]:
    """Number and content of each micro-batch of a step; its forward pass has to come before the next one is taken.

    Args:
        model: the model of the task.
        micro_batches: those of this rank, on the device.
        chunks: number of micro-batches that a loss spans.
        autocast: the context of forward passes.
        seed: seeds torch's generators for a micro-batch, by its number.
    """
    if chunks == 1:
        for number, batch in enumerate(micro_batches):
            seed(number)
            yield number, batch
        return
    for start in range(0, len(micro_batches), chunks):
        group = micro_batches[start : start + chunks]
        with ExitStack() as stack:
            with autocast():
                stack.enter_context(model.spanning(group, lambda number, start=start: seed(start + number)))  # type: ignore[misc]
            for number, batch in enumerate(group, start):
                seed(number)
                yield number, batch
