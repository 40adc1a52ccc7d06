"""Helpers for running a model without training it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from engine.config import PrecisionName
from engine.precision import Precision
from metrics.finite import check_finite
from utils import distributed
from utils.progress import progress_bar

T = TypeVar("T")


@contextmanager
def evaluating(model: torch.nn.Module, precision: PrecisionName) -> Iterator[None]:
    """Context manager that puts the model into evaluation mode without gradients, in ``precision`` and uncompiled."""
    training = model.training
    model.eval()
    try:
        # Functions compiled for evaluation would count towards the limit after which torch also stops compiling for training.
        with (
            torch.compiler.set_stance("force_eager"),
            torch.no_grad(),
            Precision(precision, device_of(model)).autocast(),
        ):
            yield
    finally:
        model.train(training)


def device_of(model: torch.nn.Module) -> torch.device:
    """Returns the device of the model's parameters."""
    return next(model.parameters()).device


def require_finite(scores: Tensor, what: str) -> Tensor:
    """Checks that the scores that select a prediction are finite, and returns them unchanged.

    Args:
        scores: the scores, (N, ...).
        what: name of the scores in the error message.

    Raises:
        UserError: if a score is NaN or infinite. ``argmax`` and ``topk`` would treat NaN as the highest score.
    """
    check_finite(scores.float().cpu().numpy(), what)
    return scores


def progress(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Iterates over ``items`` with a progress bar on rank 0 that shows the remaining time."""
    return progress_bar(items, total=total, quiet=distributed.rank() != 0, desc=description, leave=False)
