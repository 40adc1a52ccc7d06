"""Iterates over the micro-batches of a step, also if a loss is computed over several micro-batches
(``model.contrastive.chunks``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from engine.task import TaskModel


def seeded_micro_batches(
    model: TaskModel,
    micro_batches: Sequence[Any],
    chunks: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    seed: Callable[[int], None],
) -> Iterator[tuple[int, Any]]:
    """Yields the index and content of each micro-batch of a step. The caller must run the forward pass of each micro-batch before
    taking the next one.

    Args:
        model: model of the task.
        micro_batches: the micro-batches of this rank, on the device.
        chunks: number of micro-batches over which a loss is computed.
        autocast: returns the context for a forward pass.
        seed: seeds torch's generators for the micro-batch with the given index.
    """
    if chunks == 1:
        for index, batch in enumerate(micro_batches):
            seed(index)
            yield index, batch
        return
    for start in range(0, len(micro_batches), chunks):
        group = micro_batches[start : start + chunks]
        with ExitStack() as stack:
            with autocast():
                stack.enter_context(model.spanning(group, lambda index, start=start: seed(start + index)))  # type: ignore[misc]
            for index, batch in enumerate(group, start):
                seed(index)
                yield index, batch
