"""Peak throughput of known GPUs, from which utilisation is computed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from engine.config import PrecisionName


class Peak(NamedTuple):
    """Dense TFLOP/s of a GPU according to the vendor's data sheet.

    Attributes:
        name: regular expression that matches the device name reported by torch, without the brand.
        half: throughput with 16-bit inputs and 32-bit accumulation.
        tf32: throughput in TF32; None if the GPU lacks TF32.
        single: throughput in fp32.
    """

    name: str
    half: float
    tf32: float | None
    single: float


PEAKS = {
    "v100": Peak(r"V100-SXM2-\d+GB(-LS)?", 125, None, 15.7),
    "v100-pcie": Peak(r"V100-PCIE-\d+GB", 112, None, 14),
    "v100s": Peak(r"V100S-PCIE-\d+GB", 130, None, 16.4),
    "t4": Peak("T4", 65, None, 8.1),
    "a10": Peak("A10", 125, 62.5, 31.2),
    "a30": Peak("A30", 165, 82, 10.3),
    "a40": Peak("A40", 149.7, 74.8, 37.4),
    "a100": Peak(r"A100[- ](SXM4|PCIE|PCIe|80GB).*", 312, 156, 19.5),
    "a6000": Peak("RTX A6000", 154.8, 77.4, 38.7),
    "3090": Peak("RTX 3090", 71, 35.6, 35.6),
    "4090": Peak("RTX 4090", 165.2, 82.6, 82.6),
    "l4": Peak("L4", 121, 60, 30.3),
    "l40": Peak("L40", 181, 90.5, 90.5),
    "l40s": Peak("L40S", 362, 183, 91.6),
    "h100": Peak(r"H100 (80GB HBM3|SXM.*)", 989.4, 494.7, 66.9),
    "h100-pcie": Peak("H100 PCIe", 756, 378, 51),
    "h100-nvl": Peak("H100 NVL", 835.5, 417.5, 60),
    "h200": Peak("H200", 989.4, 494.7, 66.9),
    "h200-nvl": Peak("H200 NVL", 835.5, 417.5, 60),
}
"""Peaks by the short name that is used on the command line. Data-sheet values "with sparsity" are halved."""

ASSUMED_UTILISATION = 0.35
"""Utilisation assumed when the time of a training step is estimated."""

_BRAND = re.compile(r"^(NVIDIA |Tesla |GeForce )*")


def peak_of(device: torch.device, precision: PrecisionName) -> float | None:
    """Returns the peak TFLOP/s of ``device``, or None for a CPU, an unknown GPU or a slice of a GPU (MIG)."""
    if device.type != "cuda":
        return None
    import torch  # imported here because the command line needs only the keys of PEAKS

    key = peak_key(torch.cuda.get_device_name(device))
    return None if key is None else peak(key, precision)


def peak_key(name: str) -> str | None:
    """Returns the key in :data:`PEAKS` for a device name reported by torch, or None for an unknown name."""
    bare = _BRAND.sub("", name)
    if "MIG" in bare:
        return None
    return next((key for key, entry in PEAKS.items() if re.fullmatch(entry.name, bare)), None)


def peak(key: str, precision: PrecisionName) -> float:
    """Returns the peak TFLOP/s of a device in :data:`PEAKS` in a precision. For fp32, this is the TF32 peak if torch may use
    TF32."""
    import torch

    from engine.precision import APEX_LEVELS

    entry = PEAKS[key]
    if APEX_LEVELS.get(precision, precision) != "fp32":
        return entry.half
    may_use_tf32 = torch.get_float32_matmul_precision() != "highest"
    return entry.tf32 if may_use_tf32 and entry.tf32 is not None else entry.single
