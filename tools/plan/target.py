"""The GPU that is planned for: its memory, its peak, and whether steps are measured on it."""

from __future__ import annotations

import argparse

import torch

from engine.devices import PEAKS, peak, peak_key
from engine.train_config import TrainConfig
from utils.errors import UserError

CONTEXT, FRAGMENTS = 700_000_000, 0.05
"""Assumed in an estimate: bytes of CUDA and its libraries, and the allocator's fragments as a fraction of the tensors."""

NCCL = 1_000_000_000
"""Assumed with several GPUs, measured or not: bytes of the buffers for their communication."""

ASSUMED_GPU = "h100"
"""Whose peak is assumed, where none is named or at hand."""


class Target:
    """The GPU of a plan.

    Raises:
        UserError: if its memory is unknown, more than this GPU has, or it lacks the config's precision.
    """

    def __init__(self, arguments: argparse.Namespace, train: TrainConfig):
        here = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if here else None  # torch caps memory by index
        self.product = torch.cuda.get_device_name(self.device) if here else ""
        self.measures = here and not arguments.estimate
        self.at_hand = peak_key(self.product)
        self.named: str | None = arguments.gpu
        self.gpu = self.named or self.at_hand or ASSUMED_GPU
        self.own_peak = None if self.named else train.peak_tflops
        self.utilisation: float = arguments.utilisation
        self.communication = NCCL if arguments.gpus > 1 else 0
        self._check_precision(train)
        self.memory = self._memory(arguments.memory)
        self.peak = peak(self.gpu, train.precision) if self.own_peak is None else self.own_peak
        """TFLOP/s."""

    def _memory(self, given_gb: float | None) -> int:
        if self.device is None:
            if given_gb is None:
                raise UserError("--memory: there is no GPU here to ask; give --memory GB, what one GPU has")
            return int(given_gb * 1e9)
        there = torch.cuda.get_device_properties(self.device).total_memory
        if given_gb is not None and given_gb * 1e9 > there and self.measures:
            raise UserError(
                f"--memory {given_gb:g}: this GPU has {there / 1e9:.1f} GB; add --estimate to plan for another"
            )
        return there if given_gb is None else int(given_gb * 1e9)

    def _check_precision(self, train: TrainConfig) -> None:
        is_known = self.named or (not self.measures and self.own_peak is None)
        if train.precision == "bf16" and is_known and PEAKS[self.gpu].tf32 is None:
            other = "" if self.named else ", or name another --gpu"
            raise UserError(f"train.precision = bf16: the {self.gpu} has no bf16; set train.precision=fp16{other}")

    def seconds(self, flops: float) -> float:
        """Estimated time of so many FLOPs."""
        return flops / (self.peak * 1e12 * self.utilisation)

    def assumptions(self) -> list[str]:
        """What an estimate assumes of this GPU; nothing where steps are measured, but for several GPUs."""
        buffers = [f"{NCCL / 1e9:.0f} GB for NCCL's buffers"] if self.communication else []
        if self.measures:
            return buffers
        memory = [
            f"{CONTEXT / 1e9:.1f} GB for CUDA's context",
            *buffers,
            f"{FRAGMENTS:.0%} for fragments",
            "fused attention",
        ]
        return [", ".join(memory), f"{self.utilisation:.0%} of {self._source_of_peak()}"]

    def _source_of_peak(self) -> str:
        if self.own_peak is not None:
            return f"{self.peak:g} TFLOP/s (train.peak_tflops, --utilisation)"
        this = "this " if self.at_hand and not self.named else ""
        return f"{this}{self.gpu}'s {self.peak:g} TFLOP/s (--gpu, --utilisation)"
