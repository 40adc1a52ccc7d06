"""Checks the memory of a step, and the disk space for the run's checkpoints."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tasks.prepared import NotCheckedError
from tools.doctor.findings import Report
from tools.doctor.subject import Subject
from tools.plan.synthetic import batch_sizes, synthetic_batch
from tools.plan.target import CONTEXT, FRAGMENTATION, NCCL
from tools.steps.fake import StepMemory, trainable
from utils.errors import UserError
from utils.files import expanded
from utils.findings import Finding
from utils.printing import bytes_of
from utils.tensors import tensor_bytes


def check_memory(subject: Subject, report: Report) -> None:
    """Reports ``run.py plan``'s estimate of the memory of a step for the unchanged config."""
    try:
        sizes = batch_sizes(subject.config)
        memory = estimate(subject)
    except UserError as error:  # tasks that cannot be planned can still be run
        raise NotCheckedError(str(error)) from None
    on_gpu = subject.device.type == "cuda" or subject.ranks > 1
    total = memory.total + (outside(subject.ranks, memory.total) if on_gpu else 0)
    per = ", ".join(f"{key}={size}" for key, size in sizes.items())
    parts = f"weights {memory.weights / 1e9:.2f}, gradients {memory.gradients / 1e9:.2f}, optimiser "
    parts += f"{memory.optimiser / 1e9:.2f}, activations {memory.activations / 1e9:.2f}"
    parts += f", average {memory.average / 1e9:.2f}" if memory.average else ""
    parts += f", gathered temporarily {memory.gathered / 1e9:.2f}" if memory.gathered else ""
    on_one = (memory.total + outside(subject.ranks, memory.total)) / 1e9
    of = "GB of each GPU" if on_gpu else f"GB on a CPU, {on_one:.2f} GB on a GPU,"
    text = f"about {total / 1e9:.2f} {of} with {per} ({parts}; an estimate)"
    report.add("a step", memory_findings(subject, total, text, next(iter(sizes))), text)


def estimate(subject: Subject) -> StepMemory:
    """Estimates the memory of a step on a full micro-batch with fake tensors.

    Raises:
        UserError: if the task cannot be planned.
    """
    config, steps = subject.config, subject.fake_steps
    batch, accumulates = partial(synthetic_batch, config), config.plan(subject.ranks).accumulation > 1
    mesh = subject.mesh(steps.trainer.model)
    if mesh is not None:
        return steps.sharded_memory(batch, shard=mesh.shard, gradients_stay=accumulates, ranks=subject.ranks)
    return steps.memory(batch, gradients_stay=subject.ranks > 1 or accumulates, ranks=subject.ranks)


def outside(gpus: int, tensors: int) -> int:
    """Returns the number of bytes of GPU memory that are used in addition to tensors, under the same assumptions as ``run.py
    plan``."""
    return CONTEXT + int(FRAGMENTATION * tensors) + (NCCL if gpus > 1 else 0)


def memory_findings(subject: Subject, total: float, text: str, key: str) -> list[Finding]:
    """Returns a warning if the available device has less memory than the step needs."""
    if subject.device.type == "cuda":
        available, what = float(torch.cuda.get_device_properties(subject.device).total_memory), "this GPU has"
    elif subject.ranks > 1:
        return []
    else:
        available, what = free_memory(), "this machine has no GPU, and its free memory is"
    if total <= available:
        return []
    remedy = f"lower {key}, use a larger device, or let `python run.py plan` find the largest micro-batch"
    return [Finding("warning", key, f"{text}, and {what} {available / 1e9:.1f} GB", remedy)]


def free_memory() -> float:
    """Returns the free memory of this machine in bytes; infinity if it cannot be read."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        values = {name: text for name, _, text in (line.partition(":") for line in lines)}
        return int(values["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")


def check_disk(subject: Subject, report: Report) -> None:
    """Compares the free space where the run writes with the size of its checkpoints."""
    has_best = bool(subject.splits()) and subject.config.evaluation.validation is not None
    one, best, total = needed_bytes(
        subject.fake_steps.trainer.model,
        subject.config.train.keep_checkpoints,
        has_best=has_best,
        has_average=subject.config.optim.ema is not None,
    )
    folder = existing(subject.output)
    free = shutil.disk_usage(folder).free
    kept = subject.config.train.keep_checkpoints
    text = f"{bytes_of(total)}: checkpoints of {bytes_of(one)}, {kept} of which are kept, one more while it is written"
    text += f", best weights of {bytes_of(best)}" if has_best else ""
    text += f"; {bytes_of(free)} are free at {folder}"
    remedy = "free some space in this folder, lower train.keep_checkpoints, or use another --output"
    short = Finding("warning", str(subject.output), f"the run needs {text}", remedy)
    report.add("checkpoints", [short] if total > free else [], text)


def needed_bytes(model: Any, keep: int, *, has_best: bool, has_average: bool = False) -> tuple[int, int, int]:
    """Returns the size in bytes of a checkpoint, of the best weights, and of the run's peak disk usage."""
    weights = tensor_bytes([*model.parameters(), *model.buffers()])
    one = weights * (2 if has_average else 1) + 2 * tensor_bytes(trainable(model))
    best = weights if has_best else 0
    return one, best, (keep + 1) * one + best


def existing(path: Path) -> Path:
    """Returns the nearest existing folder: ``path`` or one of its parents."""
    path = Path(os.path.abspath(expanded(path)))
    return next(folder for folder in (path, *path.parents) if folder.exists())
