"""Devices that the tests run on: always the CPU, and CUDA with ``pytest -m gpu``.

Without a GPU, many tests also run on the *pretend device* (``tests/pretend``): an accelerator written in Python whose tensors are
in the host's memory, but which fails and waits in the same cases as a GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

from batches.base import to_device
from tests.pretend.tensor import NAME

WHY_SKIPPED = "no CUDA device"
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=WHY_SKIPPED)]
)
PRETEND = () if torch.cuda.is_available() or Version(torch.__version__) < Version("2.13") else (NAME,)
"""Torch supports one accelerator per process, so the pretend device is only used on machines without a GPU. Older releases do not
support an accelerator written in Python."""
DEVICES = ("cpu", *PRETEND, CUDA)
ON_ACCELERATORS = pytest.mark.parametrize("device", [*PRETEND, CUDA], indirect=True)
ON_REAL_DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA], indirect=True)
"""For tests that compile (pretend tensors cannot be traced), and for tests that take long."""

BOUNDS = {"cpu": 1e-5, NAME: 1e-5, "cuda": 1e-4}
"""Maximum error of a float32 number, relative to the expected number if that is above 1. CUDA kernels add in another order."""

M = TypeVar("M", bound=nn.Module)


@contextmanager
def as_in_a_run_without_tf32() -> Iterator[None]:
    """Computes float32 products in full precision and without cuDNN's attention, like :func:`utils.distributed.process_group`."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    attention = torch.backends.cuda.cudnn_sdp_enabled()
    torch.set_float32_matmul_precision("highest")  # also sets torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.enable_cudnn_sdp(attention)


def bf16(device: torch.device) -> AbstractContextManager[Any]:
    """Returns the autocast context that ``train.precision=bf16`` uses."""
    return torch.autocast(device.type, torch.bfloat16)


def copied_to(device: torch.device, model: M) -> M:
    """A copy of a model on a device, with separate gradients. The original model is not moved."""
    return copy.deepcopy(model).to(device)


def moved(given: Any, device: torch.device) -> Any:
    """A batch, or tensors by name, on ``device``."""
    if isinstance(given, dict):
        return {name: value.to(device) for name, value in given.items()}
    return to_device(given, device)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference divided by the norm of the expected tensor, computed on the CPU."""
    expected = expected.detach().cpu().double()
    return float((actual.detach().cpu().double() - expected).norm() / expected.norm())


def flattened(tensors: dict[str, Any], names: Iterable[str] | None = None) -> Tensor:
    """All numbers of these tensors, or only of the named ones, on the CPU."""
    return torch.cat([tensors[name].detach().flatten().cpu() for name in (tensors if names is None else names)])
