"""Runs one real training step for each stream on a tiny batch, and draws the batch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from batches.base import Batch
from batches.pretraining import PretrainBatch
from engine.config import ShardingConfig
from engine.parallel.fsdp import Sharded
from engine.precision import APEX_LEVELS
from engine.steps import trainer_of
from models.tasks.self_critical import SelfCriticalModel
from tasks.base import load_initial, set_up_training
from tasks.drawing import Sheet, draw_sheet
from tools.doctor.findings import NotCheckedError, Report
from tools.doctor.panels import LEGEND, panels_of
from tools.doctor.subject import Subject
from tools.steps.real import ran_out_of_memory
from utils.distributed import group_of_one
from utils.findings import Finding

MAX_PARAMETERS_ON_CPU = 60_000_000
"""Maximum number of parameters for a step on a CPU. With more parameters, the step would take longer than all other checks
together."""

FILE = "first_batch.png"


def check_first_step(subject: Subject, report: Report, out: Path) -> None:
    """Runs the checks in the section ``first step``: runs a training step and draws its batch."""
    report.section("first step")
    with report.check("image"):
        batch = first_batch(subject)
        assert subject.tokenizer is not None
        out.mkdir(parents=True, exist_ok=True)
        classes = {label: answer for answer, label in getattr(subject.training, "labels", {}).items()}
        panels = panels_of(batch, subject.tokenizer, classes)
        draw_sheet(Sheet("", LEGEND, panels), out / FILE)
        report.ok("image", f"{out / FILE}: images, boxes and texts as the model receives them")
    with report.check("step"):
        _check_step(subject, report)


def first_batch(subject: Subject) -> Batch:
    """Returns the first micro-batch of training, with as few examples as the micro-batches of the sample.

    Raises:
        NotCheckedError: if the micro-batch cannot be built.
    """
    if subject.training is None:
        raise NotCheckedError("no batch, since the training data cannot be read")
    return subject.training.make(0)


def _check_step(subject: Subject, report: Report) -> None:
    batch = first_batch(subject)
    if subject.model is None:
        raise NotCheckedError("needs the model, which could not be built")
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    if subject.device.type == "cpu" and parameters > MAX_PARAMETERS_ON_CPU:
        raise NotCheckedError(
            f"a step with {parameters / 1e6:,.0f} M parameters takes minutes on a CPU; run this with a GPU"
        )
    if isinstance(subject.model, SelfCriticalModel):
        raise NotCheckedError("the self-critical step needs the whole task; try train.steps=1")
    with ExitStack() as stack:
        try:
            trainer = _trainer(subject, stack)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise NotCheckedError("one GPU cannot hold the states that are sharded over the GPUs of the run") from None
        _take_steps(trainer, batch, report)


def _take_steps(trainer: Any, batch: Batch, report: Report) -> None:
    """Runs a step of each stream."""
    how = ", with FSDP2" if isinstance(trainer.parallel, Sharded) else ""
    for name, part in streams_of(batch):
        started = time.perf_counter()
        try:
            pending = trainer.train_step([part])
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise NotCheckedError("not even a tiny batch fits on the GPU; is another program using it?") from None
        values = pending.read().metrics
        report.add("step", step_findings(name, values), _step_text(name, values, time.perf_counter() - started) + how)


def _trainer(subject: Subject, stack: ExitStack) -> Any:
    """Returns a trainer with the weights that the run starts from, or with random weights if these weights cannot be
    loaded.

    If the ranks of the run share the model, the trainer uses FSDP2 in a process group that lasts as long as ``stack``.
    """
    config, device = subject.config, subject.device
    assert subject.tokenizer is not None
    torch.manual_seed(config.seed)
    model = subject.task.build_model(config, len(subject.tokenizer))
    if subject.weights_fit:
        load_initial(subject.task, config, model)
    set_up_training(config, model)
    overrides: dict[str, Any] = {"compile": False, "peak_tflops": None}
    if device.type == "cpu" and APEX_LEVELS.get(config.train.precision, config.train.precision) != "fp32":
        overrides["precision"] = "fp32"
    if subject.mesh(model) is not None:
        stack.enter_context(group_of_one(device))
        overrides["parallel"] = ShardingConfig(shard=1, replicate=1)
    return trainer_of(model, config.train.model_copy(update=overrides), config.optim, device)


def streams_of(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name and the batch of each stream. If a batch has only one stream, its name is ""."""
    if not isinstance(batch, PretrainBatch):
        yield "", batch
        return
    streams = batch.streams()
    names = [field.name for field in fields(batch) if field.name in streams]
    absent = dict.fromkeys(names)
    for name in names:
        yield name, replace(batch, **{**absent, name: getattr(batch, name)}, unmatched=())


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
