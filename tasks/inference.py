"""Running a model without training it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from engine.precision import Precision, PrecisionName
from metrics.finite import check_finite
from utils import distributed
from utils.progress import progress_bar

T = TypeVar("T")


@contextmanager
def evaluating(model: torch.nn.Module, precision: PrecisionName) -> Iterator[None]:
    """The model in evaluation mode, without gradients, in ``precision``, and not compiled."""
    training = model.training
    model.eval()
    try:
        # Functions compiled for evaluation count against the limit after which torch compiles no more for training either.
        with (
            torch.compiler.set_stance("force_eager"),
            torch.no_grad(),
            Precision(precision, device_of(model)).autocast(),
        ):
            yield
    finally:
        model.train(training)


def device_of(model: torch.nn.Module) -> torch.device:
    """Device of the model's parameters."""
    return next(model.parameters()).device


def finite(scores: Tensor, what: str) -> Tensor:
    """Returns the scores that a prediction is chosen by, (N, ...), unchanged; ``what`` names them in messages.

    Raises:
        UserError: one is NaN or infinite. ``argmax`` and ``topk`` would take NaN for the highest score.
    """
    check_finite(scores.float().cpu().numpy(), what)
    return scores


def progress(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """``items`` with a progress bar that shows the time left, on rank 0."""
    return progress_bar(items, total=total, quiet=distributed.rank() != 0, desc=description, leave=False)
