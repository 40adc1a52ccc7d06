"""The fixture ``device`` restores torch's settings."""

from __future__ import annotations

import torch

from tests.devices import as_in_a_run_without_tf32


def settings() -> tuple[str, bool, bool, bool]:
    backends = torch.backends
    precision = torch.get_float32_matmul_precision()
    return precision, backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cuda.cudnn_sdp_enabled()


def set_to(precision: str, convolutions: bool, attention: bool) -> None:
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.enable_cudnn_sdp(attention)


def test_tf32_is_off_on_a_device_and_restored_afterwards():
    precision, _, *others = settings()
    try:
        set_to("high", True, True)
        with as_in_a_run_without_tf32():
            assert settings() == ("highest", False, False, False)
        assert settings() == ("high", True, True, True)
    finally:
        set_to(precision, *others)
