"""Which precisions a GPU supports, according to torch's own functions applied to a simulated GPU."""

from types import SimpleNamespace

import pytest
import torch

from engine.precision import Precision
from utils.errors import UserError


@pytest.fixture
def gpu_of(monkeypatch):
    """Simulates a GPU of a compute capability. Tensors of bf16 can be created on it, as on every NVIDIA GPU."""

    def pretend(major: int) -> torch.device:
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(major=major))
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
        return torch.device("cuda", 0)

    return pretend


def test_emulated_bf16_is_rejected(gpu_of):
    device = gpu_of(7)
    assert torch.cuda.is_bf16_supported(), "torch counts emulation as support"
    with pytest.raises(UserError, match="this GPU does not support bf16"):
        Precision("bf16", device)


def test_native_bf16_and_other_precisions_are_accepted(gpu_of):
    assert Precision("bf16", gpu_of(8)).name == "bf16"
    old = gpu_of(7)
    assert [Precision(name, old).name for name in ("fp16", "O1", "fp32")] == ["fp16", "fp16", "fp32"]
