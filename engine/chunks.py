"""The micro-batches of a step in turn, with losses that span several of them (``model.contrastive.chunks``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from engine.task import TaskModel


def in_turn(
    model: TaskModel,
    micro_batches: Sequence[Any],
    autocast: Callable[[], AbstractContextManager[Any]],
    seed: Callable[[int], None],
) -> Iterator[tuple[int, Any]]:
    """Number and content of each micro-batch of a step; its forward pass has to come before the next one is taken.

    Args:
        model: without DDP.
        micro_batches: those of this rank, on the device.
        autocast: the context of forward passes.
        seed: seeds torch's generators for a micro-batch, by its number.
    """
    if model.chunks == 1:
        yield from enumerate(micro_batches)
        return
    for start in range(0, len(micro_batches), model.chunks):
        group = micro_batches[start : start + model.chunks]
        with ExitStack() as stack:
            with autocast():
                stack.enter_context(model.spanning(group, lambda number, start=start: seed(start + number)))  # type: ignore[misc]
            for number, batch in enumerate(group, start):
                seed(number)
                yield number, batch
