"""The GPU that a run is planned for: its memory, its peak FLOP rate, and whether steps are measured on it."""

from __future__ import annotations

import torch

from engine.config import TrainConfig
from engine.devices import PEAKS, peak, peak_key
from tools.plan.flags import PlanFlags
from utils.errors import UserError

CONTEXT, FRAGMENTATION = 700_000_000, 0.05
"""Assumptions of an estimate: bytes that CUDA and its libraries take, and memory lost to fragmentation, as a fraction of the
memory for tensors."""

NCCL = 1_000_000_000
"""Assumed size in bytes of NCCL's communication buffers on several GPUs, both for measurements and for estimates."""

ASSUMED_GPU = "h100"
"""The GPU that an estimate assumes without ``--gpu`` on a machine without a known GPU."""


class Target:
    """The GPU that a run is planned for.

    Raises:
        UserError: if the memory is unknown or more than this GPU has, or the GPU does not support the config's precision.
    """

    def __init__(self, flags: PlanFlags, train: TrainConfig):
        has_gpu = torch.cuda.is_available()
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if has_gpu else None
        )  # torch limits memory by index
        self.product = torch.cuda.get_device_name(self.device) if has_gpu else ""
        self.measures = has_gpu and not flags.estimate
        self.local_gpu = peak_key(self.product)
        self.gpu_flag = flags.gpu
        self.gpu = self.gpu_flag or self.local_gpu or ASSUMED_GPU
        self.config_peak = None if self.gpu_flag else train.peak_tflops
        self.utilisation = flags.utilisation
        self.several = flags.nodes is not None or flags.gpus_per_node > 1
        self._check_precision(train)
        flags.require_memory()
        self.memory = self._memory(flags.memory)
        self.peak = peak(self.gpu, train.precision) if self.config_peak is None else self.config_peak
        """Peak rate in TFLOP/s."""

    def _memory(self, flag_gb: float | None) -> int:
        """Returns the memory of a GPU in bytes, from ``--memory`` or from this GPU."""
        if self.device is None:
            assert flag_gb is not None, "PlanFlags.require_memory"
            return int(flag_gb * 1e9)
        total = torch.cuda.get_device_properties(self.device).total_memory
        if flag_gb is not None and flag_gb * 1e9 > total and self.measures:
            raise UserError(
                f"this GPU has {total / 1000000000.0:.1f} GB",
                where=f"--memory {flag_gb:g}",
                remedy="add --estimate to plan for another GPU",
            )
        return total if flag_gb is None else int(flag_gb * 1e9)

    def _check_precision(self, train: TrainConfig) -> None:
        gpu_matters = self.gpu_flag or (not self.measures and self.config_peak is None)
        if train.precision == "bf16" and gpu_matters and PEAKS[self.gpu].tf32 is None:
            other = "" if self.gpu_flag else ", or use another --gpu"
            raise UserError(
                f"train.precision = bf16: the {self.gpu} does not support bf16",
                remedy=f"set train.precision=fp16{other}",
            )

    def communication(self, ranks: int) -> int:
        """Returns the number of bytes of GPU memory that communication between ``ranks`` ranks takes."""
        return NCCL if ranks > 1 else 0

    def seconds(self, flops: float) -> float:
        """Estimates the time for ``flops`` FLOPs, in seconds."""
        return flops / (self.peak * 1e12 * self.utilisation)

    def assumptions(self) -> list[str]:
        """Returns the assumptions about this GPU as texts. If steps are measured, the only assumption is about communication
        between several GPUs."""
        buffers = [f"{NCCL / 1e9:.0f} GB for NCCL's buffers"] if self.several else []
        if self.measures:
            return buffers
        memory = [
            f"{CONTEXT / 1e9:.1f} GB for CUDA's context",
            *buffers,
            f"{FRAGMENTATION:.0%} for fragmentation",
            "fused attention",
        ]
        return [", ".join(memory), f"{self.utilisation:.0%} of {self._source_of_peak()}"]

    def _source_of_peak(self) -> str:
        if self.config_peak is not None:
            return f"{self.peak:g} TFLOP/s (train.peak_tflops, --utilisation)"
        this = "this " if self.local_gpu and not self.gpu_flag else ""
        return f"{this}{self.gpu}'s {self.peak:g} TFLOP/s (--gpu, --utilisation)"
