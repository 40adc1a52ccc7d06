"""The flags of ``run.py plan``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from engine.devices import ASSUMED_UTILISATION, PEAKS
from tasks.flag import TaskName
from utils.commands import FLAGS
from utils.errors import UserError
from utils.flags import File, Fraction, Positive, PositiveReal, named


@FLAGS
@dataclass(frozen=True, kw_only=True)
class PlanFlags:
    """The planned run and its GPUs.

    Attributes:
        config: YAML file; see configs/ (default: the task's default config).
        task: a task's name, a folder with task.py, or a module (default: the config's task).
        gpus: number of GPUs; with --nodes, number of GPUs of each node (default: 1).
        nodes: number of nodes; also shows what changes on 8, 64, 512 GPUs.
        network: bus bandwidth between nodes in 1e9 bytes/s, as reported by all_reduce_perf of nccl-tests (default: unknown).
        memory: total memory per GPU, in 1e9 bytes (default: this GPU's).
        gpu: v100, v100-pcie, v100s, t4, a10, a30, a40, a100, a6000, 3090, 4090, l4, l40, l40s, h100, h100-pcie, h100-nvl, h200 or
            h200-nvl (default: this GPU; without one, h100); for others, set train.peak_tflops=X.
        utilisation: fraction of the GPU's peak FLOP rate that an estimate assumes.
        global_batch: examples of the leading stream per step (default: the config's train.global_batch).
        records: records of the leading stream (for fine-tuning: captions, phrases, questions, statements), for the time of a run
            in epochs.
        estimate: estimate without measuring, even with a GPU.
    """

    config: File | None = None
    task: TaskName | None = None
    gpus: Positive | None = None
    nodes: Positive | None = None
    network: Annotated[PositiveReal | None, named("GB/S")] = None
    memory: Annotated[PositiveReal | None, named("GB")] = None
    gpu: Annotated[str | None, Parameter(choices=PEAKS, show_choices=False)] = None
    utilisation: Fraction = ASSUMED_UTILISATION
    global_batch: Positive | None = None
    records: Positive | None = None
    estimate: bool = False

    @property
    def gpus_per_node(self) -> int:
        """The value of ``--gpus``, or its default."""
        return self.gpus or 1

    def require_memory(self) -> None:
        """Raises :class:`UserError` if the memory of a GPU is unknown: this machine has no GPU, and ``--memory`` is missing."""
        if self.memory is not None:
            return
        from utils.accelerator import best_device  # imports torch

        if best_device().type == "cpu":
            raise UserError(
                "this machine has no GPU", where="--memory", remedy="pass --memory GB, the memory of one GPU"
            )

    def check(self) -> None:
        """Raises :class:`UserError` if the flags contradict each other."""
        if self.nodes is not None and self.gpus is None:
            raise UserError(f"--nodes {self.nodes} needs --gpus N, the GPUs of each node")
        if self.network is not None and self.nodes is None:
            raise UserError(
                f"--network {self.network:g} needs --nodes N: without it, the plan does not include network time"
            )
