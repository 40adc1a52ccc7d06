"""Draws a tiny batch, and takes a training step of each of its streams."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any

from batches.base import Batch
from batches.pretraining import PretrainBatch
from engine.config import ShardingConfig
from engine.parallel.fsdp import Sharded
from engine.precision import APEX_LEVELS
from models.tasks.self_critical import SelfCriticalModel
from tasks.drawing import Sheet, draw_sheet
from tasks.prepared import NotCheckedError
from tools.doctor.findings import Report
from tools.doctor.panels import LEGEND, panels_of
from tools.doctor.subject import Subject
from tools.steps.real import RealSteps, ran_out_of_memory
from utils.distributed import group_of_one
from utils.findings import Finding

FILE = "first_batch.png"


def check_image(subject: Subject, report: Report) -> None:
    """Draws the first batch."""
    batch = subject.first_batch
    assert subject.tokenizer is not None
    subject.out.mkdir(parents=True, exist_ok=True)
    classes = {label: answer for answer, label in getattr(subject.training, "labels", {}).items()}
    panels = panels_of(batch, subject.tokenizer, classes)
    draw_sheet(Sheet("", LEGEND, panels), subject.out / FILE)
    report.ok("image", f"{subject.out / FILE}: images, boxes and texts as the model receives them")


def check_step(subject: Subject, report: Report) -> None:
    """Takes a training step of each stream, with the weights that the run starts from, or with random weights if these weights
    cannot be loaded."""
    batch, model = subject.first_batch, subject.built_model()
    if any(parameter.is_meta for parameter in model.parameters()):
        parameters = sum(parameter.numel() for parameter in model.parameters())
        raise NotCheckedError(
            f"a step with {parameters / 1e6:,.0f} M parameters takes minutes on a CPU; run this with a GPU"
        )
    if isinstance(model, SelfCriticalModel):
        raise NotCheckedError("the self-critical step needs the whole task; try train.steps=1")
    with ExitStack() as stack:
        try:
            steps = _steps(subject, stack)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise NotCheckedError("one GPU cannot hold the states that are sharded over the GPUs of the run") from None
        _take_steps(steps, batch, report)


def _steps(subject: Subject, stack: ExitStack) -> RealSteps:
    """Returns the steps of the run on one device. If the ranks of the run share the model, they use FSDP2 in a process group that
    lasts as long as ``stack``."""
    config, device, model = subject.config, subject.device, subject.trained_model
    overrides: dict[str, Any] = {"compile": False, "peak_tflops": None}
    if device.type == "cpu" and APEX_LEVELS.get(config.train.precision, config.train.precision) != "fp32":
        overrides["precision"] = "fp32"
    if subject.mesh(model) is not None:
        stack.enter_context(group_of_one(device))
        overrides["parallel"] = ShardingConfig(shard=1, replicate=1)
    return RealSteps(model, config.train.model_copy(update=overrides), config.optim, device)


def _take_steps(steps: RealSteps, batch: Batch, report: Report) -> None:
    """Takes a step of each stream."""
    how = ", with FSDP2" if isinstance(steps.trainer.parallel, Sharded) else ""
    for name, part in streams_of(batch):
        started = time.perf_counter()
        try:
            values = steps.metrics(part)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise NotCheckedError("not even a tiny batch fits on the GPU; is another program using it?") from None
        report.add("step", step_findings(name, values), _step_text(name, values, time.perf_counter() - started) + how)


def streams_of(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name and the batch of each stream. If a batch has only one stream, its name is ""."""
    if not isinstance(batch, PretrainBatch):
        yield "", batch
        return
    streams = batch.by_stream()
    names = [field.name for field in fields(batch) if field.name in streams]
    absent = dict.fromkeys(names)
    for name in names:
        yield name, replace(batch, **{**absent, name: getattr(batch, name)}, unmatched=(), not_started=())


def step_findings(name: str, values: dict[str, float]) -> list[Finding]:
    """Returns findings about losses or a gradient that are not finite."""
    wrong = [key for key, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return []
    fact = f"{', '.join(wrong)} of the first step {'is' if len(wrong) == 1 else 'are'} not finite"
    remedy = "check the weights of init, lower optim.lr, or set train.precision=fp32"
    return [Finding("refused", name or "first step", fact, remedy)]


def _step_text(name: str, values: dict[str, float], seconds: float) -> str:
    text = ", ".join(f"{key.removeprefix(f'{name}/')} {value:.3g}" for key, value in values.items())
    return f"{f'{name}: ' if name else ''}{text} ({seconds:.1f} s)"
