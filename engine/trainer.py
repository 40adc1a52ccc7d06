"""The one train loop.

A step never waits for the device: losses and the flag that says whether they are finite stay there and are read one step
late. A step whose loss or gradient is not finite is left out on the device itself, on all ranks alike.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.checkpoint import Checkpoint, save_best, save_checkpoint
from engine.devices import peak_of
from engine.parallel import data_parallel
from engine.precision import Precision, PrecisionName
from engine.prefetch import moved
from engine.run_folder import MetricsLog, RunFolder
from engine.task import Encoder, Loader, Task, TaskModel
from engine.throughput import Throughput
from optim import OptimConfig, build_optimizer, parameter_groups
from scheduler import ScheduleConfig, build_schedule
from utils import distributed
from utils.batch import WORK, Losses, Work, to_device
from utils.config import Config
from utils.errors import UserError
from utils.files import replacing
from utils.progress import progress_bar

TOLD_WAIT = 0.05
"""Share of the time that is waited for data from which on the progress bar says so."""

logger = logging.getLogger(__name__)


class TrainConfig(Config):
    """How long and how exactly to train."""

    steps: int | None = Field(None, ge=1, description="optimiser steps; or give epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the leading stream; or give steps")
    accumulate: int = Field(1, ge=1, description="micro-batches per step and rank")
    precision: PrecisionName = "bf16"
    clip_grad_norm: float | None = Field(1.0, gt=0)
    log_every: int = Field(50, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(1000, ge=1)
    validate_every: int | None = Field(
        None, ge=1, description="steps between validations, and always after the last; null: once an epoch"
    )
    keep_checkpoints: int = Field(3, ge=1)
    max_skipped_steps: int = Field(
        0, ge=0, description="steps with a non-finite loss that may be left out before the run stops"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="a device's dense peak in this precision, for the utilisation; null: that of known GPUs"
    )
    recompute: list[Encoder] = Field(
        [],
        description="encoders whose activations are not kept but computed anew in the backward pass: less memory, more time",
    )
    compile: bool | Literal["reduce-overhead", "max-autotune"] = Field(
        False, description="torch.compile of the encoders, in this mode; pre-training then makes batches of few shapes"
    )
    deterministic: bool = Field(
        False, description="torch's deterministic algorithms: a resumed run repeats to the last digit"
    )

    @model_validator(mode="after")
    def _says_how_long(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self

    @model_validator(mode="after")
    def _keeps_gradients(self) -> TrainConfig:
        if self.records_graphs and self.accumulate > 1:
            raise ValueError(
                f"compile: {self.compile} records graphs, whose next run may write over gradients that are still added to; with "
                f"accumulate = {self.accumulate}, give compile: true"
            )
        return self

    @property
    def records_graphs(self) -> bool:
        """Whether the compiler records CUDA graphs."""
        return isinstance(self.compile, str)

    def total_steps(self, loader: Loader) -> int:
        """Optimiser steps of the run; a part of a step counts as one."""
        if self.steps is not None:
            return self.steps
        return self.steps_of(loader.epoch_size, self.records_per_step(loader))

    def steps_of(self, epoch_size: int, per_step: int) -> int:
        """Those of the epochs, from the records of the leading stream in an epoch and in a step."""
        assert self.epochs is not None
        steps = self.epochs * epoch_size / per_step
        return max(1, math.ceil(round(steps, 6)))  # in binary, 7 hundredths of 100 are a little more than 7

    def records_per_step(self, loader: Loader) -> int:
        """Records of the leading stream that a step takes, over all ranks."""
        return loader.records_per_batch * self.accumulate * distributed.world_size()


@dataclass
class _Pending:
    """A step whose numbers are still on their way from the device."""

    step: int
    names: list[str]
    values: Tensor
    arrived: torch.cuda.Event | None
    micro_batches: list[Any]
    at: float  # when it was handed to the device, by time.perf_counter
    waited_s: float = 0.0  # for the micro-batches

    def read(self) -> dict[str, float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


class Trainer:
    """Trains a :class:`~engine.task.Task` for a fixed number of steps, and goes on exactly where a checkpoint ended."""

    def __init__(
        self,
        task: Task,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        seed: int,
        folder: RunFolder,
        device: torch.device,
        checkpoint: Checkpoint | None = None,
    ):
        self.task, self.config, self.seed, self.folder, self.device = task, train, seed, folder, device
        if train.deterministic and device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, before its first product
        torch.use_deterministic_algorithms(train.deterministic)
        self.model: nn.Module = task.model.to(device).train()
        self._set_up_encoders()
        self.groups = parameter_groups(self.model.named_parameters(), optim, task.fresh)
        self.optimizer = build_optimizer(self.groups, optim)
        self.loader = task.train_loader()
        self.steps = train.total_steps(self.loader)
        self.schedule = build_schedule(schedule, self.steps)
        self.precision = Precision(train.precision, device)
        self.step, self.consumed, self.skipped, self.elapsed_s = 0, 0, 0, 0.0
        self.best: float | None = None
        if checkpoint is not None:
            self._restore(checkpoint)
        self.parallel = data_parallel(self.model, device)

    def _set_up_encoders(self) -> None:
        model = cast(TaskModel, self.model)
        if self.config.recompute:
            model.recompute(self.config.recompute)
        if self.config.compile:
            logger.info("train.compile: the encoders are compiled in the first steps, each of which can take minutes")
            model.compile_encoders(mode=None if self.config.compile is True else self.config.compile)

    def fit(self) -> None:
        """Train from the current step to the last one; writes metrics and checkpoints into the run folder.

        Raises:
            UserError: if a loss is not finite more often than ``max_skipped_steps`` allows.
        """
        remaining = self.steps - self.step
        if remaining <= 0:
            logger.info("all %d steps are done", self.steps)
            return
        micro_batches = self.loader.batches(self.consumed, remaining * self.config.accumulate)
        on_device = moved(micro_batches, self.device)
        main = distributed.rank() == 0
        metrics = MetricsLog(self.folder, self.step) if main else None
        progress = progress_bar(total=self.steps, quiet=not main, initial=self.step, unit="step")
        report = _Reporter(self, metrics, progress)
        pending: _Pending | None = None
        try:
            while self.step < self.steps:
                asked = time.perf_counter()
                taken = [next(on_device) for _ in range(self.config.accumulate)]
                waited_s = time.perf_counter() - asked
                current = self.train_step([each.on_host for each in taken], [each.on_device for each in taken])
                current.waited_s = waited_s
                if pending is not None:
                    report(pending)
                pending = current
                validates = self._validates()
                if validates or self.step % self.config.checkpoint_every == 0 or self.step == self.steps:
                    report(pending)
                    pending = None
                    if validates:
                        self._validate(metrics, report)
                    self._save(metrics)
        finally:
            progress.close()
            if metrics:
                metrics.close()
        # Asking once more lets the loader tell of the broken records of the whole run.
        assert next(on_device, None) is None, "the loader gave more batches than were asked for"

    def _validates(self) -> bool:
        """Whether this step is followed by a validation."""
        if self.task.selects is None:
            return False
        every = self.config.validate_every
        if every is None:
            every = math.ceil(self.loader.epoch_size / self.config.records_per_step(self.loader))
        return self.step % every == 0 or self.step == self.steps

    def _validate(self, metrics: MetricsLog | None, report: _Reporter) -> None:
        """Measure, and keep the weights if they are the best so far (the earlier ones in a tie)."""
        assert self.task.selects is not None
        started = time.perf_counter()
        found = self.task.validate()
        value = found[self.task.selects]
        better = not math.isnan(value) and (self.best is None or value > self.best)
        logger.info(
            "step %d: validation %s %.4f%s", self.step, self.task.selects, value, ", the best" if better else ""
        )
        if better:
            self.best = value
        if metrics is not None:
            metrics.write_validation(self.step, found)
            if better:
                save_best(self.folder.best, self.step, self.model, found)
        report.leave_out(time.perf_counter() - started)

    def train_step(self, micro_batches: list[Any], on_device: list[Any] | None = None) -> _Pending:
        """One optimiser step on this rank's micro-batches; its numbers are still on the device. ``on_device``: their copies
        there, if they have been made."""
        # Dropout and drawn negatives depend on seed, step and rank alone: a resumed run needs no generator state.
        torch.manual_seed(mix_seed(self.seed, self.step, distributed.rank()))
        self._set_rates()
        self.optimizer.zero_grad()
        if on_device is None:
            on_device = [to_device(batch, self.device) for batch in micro_batches]
        counts = self._counts(on_device)
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(on_device):
            if self.config.compile:
                torch.compiler.cudagraph_mark_step_begin()
            with self._synchronised_gradients(last=index == len(on_device) - 1):
                with self.precision.autocast():
                    terms: Losses = self.parallel(batch)
                loss = torch.stack([term.weight * term.total / counts[name] for name, term in terms.items()]).sum()
                # DDP averages gradients over ranks; each term is already divided by its count over all of them.
                self.precision.scaler.scale(loss * distributed.world_size()).backward()
            for name, term in [*terms.items(), ("loss", (loss, 1.0))]:
                part = term[0].detach() / (counts[name] if name != "loss" else 1)
                sums[name] = sums[name] + part if name in sums else part
        pending = self._update(sums, micro_batches)
        self.step += 1
        self.consumed += self.config.accumulate * distributed.world_size()
        return pending

    def _update(self, sums: dict[str, Tensor], micro_batches: list[Any]) -> _Pending:
        """Clip and step, unless something is not finite; returns the step's numbers, still on the device."""
        names = list(sums)
        own = torch.stack([sums[name].float() for name in names])
        losses, work = distributed.sum_over_ranks(torch.cat([own, self._work(micro_batches)])).split(
            [len(names), len(WORK)]
        )
        bad = ~losses.isfinite().all()
        scaler, rest = self.precision.scaler, {}
        if scaler.is_enabled():
            self._spoil_gradient_if(bad)
            rest["loss_scale"] = scaler.scale(torch.ones((), device=self.device))  # asking for the number would wait
        scaler.unscale_(self.optimizer)
        norm = self._clip()
        if not scaler.is_enabled():
            # With fp16, gradients that overflow are the scaler's business: it skips the step and lowers the scale.
            bad = bad | ~norm.isfinite()
        self._step_unless(bad)
        culprit = ~own.isfinite().all()
        rest |= {"grad_norm": norm, "bad": bad, "culprit": culprit}
        values = torch.cat([losses, torch.stack([value.float() for value in rest.values()]), work]).detach()
        arrived = None
        if self.device.type == "cuda":
            host = torch.empty(values.shape, pin_memory=True)
            host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            values = host
        shown = [*names, *rest, *WORK]
        return _Pending(self.step + 1, shown, values, arrived, micro_batches, time.perf_counter())

    def _clip(self) -> Tensor:
        """Clip the gradient, where there is a limit; returns the norm that it had."""
        if self.config.clip_grad_norm is not None:
            return nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        # A limit of infinity would multiply every gradient by 1.
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _work(self, micro_batches: list[Any]) -> Tensor:
        """This rank's work of a step, a number for each of :data:`~utils.batch.WORK`; the host counts, and does not wait."""
        model = cast(TaskModel, self.model)
        done = sum((model.work(batch) for batch in micro_batches), Work())
        counted = torch.tensor([getattr(done, name) for name in WORK], dtype=torch.float32)
        return counted.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else counted

    def _spoil_gradient_if(self, bad: Tensor) -> None:
        """Make the loss scaler skip the step too: a loss can be infinite while its gradient is not."""
        first = next(p.grad for p in self.model.parameters() if p.grad is not None)
        first.add_(torch.where(bad, torch.nan, 0.0))

    def _step_unless(self, bad: Tensor) -> None:
        """Apply the step where ``bad`` is not set; waits for the device only with an optimiser that has no such flag (apex)."""
        if self.precision.scaler.is_enabled():
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
        elif self.optimizer.defaults.get("fused"):
            # Torch's fused kernels look at this flag on the device, as they do for the loss scaler.
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bad:
            self.optimizer.step()

    def _counts(self, micro_batches: list[Any]) -> dict[str, Tensor]:
        """What each term is divided by: its rows or tokens over ranks and micro-batches, at least 1."""
        model = cast(TaskModel, self.model)
        each = [model.counts(batch) for batch in micro_batches]
        names = list(each[0])
        local = torch.stack([torch.stack([counts[name].float() for name in names]) for counts in each]).sum(dim=0)
        total = distributed.sum_over_ranks(local).clamp(min=1)
        return dict(zip(names, total.unbind(), strict=True))

    def _set_rates(self) -> None:
        factor = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def _synchronised_gradients(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.parallel, DistributedDataParallel) and not last:
            return self.parallel.no_sync()
        return contextlib.nullcontext()

    def _save(self, metrics: MetricsLog | None) -> None:
        if metrics is not None:
            metrics.sync()
            state = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.precision.scaler.state_dict(),
                "consumed": self.consumed,
                "skipped": self.skipped,
                "elapsed_s": self.elapsed_s,
                "best": self.best,
                "fresh": sorted(self.task.fresh),
            }
            save_checkpoint(self.folder.checkpoints, self.step, self.model, state, self.config.keep_checkpoints)
        distributed.barrier()

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.training_state()
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.step, self.consumed = checkpoint.step, state["consumed"]
        self.skipped, self.elapsed_s, self.best = state["skipped"], state["elapsed_s"], state["best"]
        logger.info("goes on from %s", checkpoint.folder)


class _Reporter:
    """Reads a step's numbers when they have arrived: metrics, progress bar, and the end of a run whose loss is not finite."""

    def __init__(self, trainer: Trainer, metrics: MetricsLog | None, progress: Any):
        self.trainer, self.metrics, self.progress = trainer, metrics, progress
        known = peak_of(trainer.device, trainer.config.precision)
        self.throughput = Throughput(distributed.world_size(), trainer.config.peak_tflops or known)
        self.clock = time.perf_counter()

    def __call__(self, pending: _Pending) -> None:
        trainer, values, now = self.trainer, pending.read(), pending.at
        trainer.elapsed_s += now - self.clock
        self.clock = now
        self.throughput.add(Work(*(values.pop(name) for name in WORK)), now, pending.waited_s)
        self.progress.update(1)
        culprit, scale = bool(values.pop("culprit")), values.pop("loss_scale", None)
        if values.pop("bad"):
            self._not_finite(pending, values, culprit)
            return
        if pending.step % trainer.config.log_every and pending.step != trainer.steps:
            return
        if scale is not None:
            values["loss_scale"] = scale
            if scale < 1:
                raise UserError(
                    f"step {pending.step}: fp16 gradients overflow at every loss scale; use train.precision=bf16"
                )
        rates = {f"lr/{group['name']}": group["lr"] for group in self._rates_at(pending.step)}
        speed = self.throughput.rates()
        if self.metrics:
            self.metrics.write({"step": pending.step, **values, **rates, **speed, "elapsed_s": trainer.elapsed_s})
        self.progress.set_postfix_str(_short(values, speed))

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self.clock += seconds
        self.throughput.leave_out(seconds)

    def _rates_at(self, step: int) -> Iterator[dict[str, Any]]:
        factor = self.trainer.schedule(step - 1)
        for group in self.trainer.groups:
            yield {"name": group["name"], "lr": group["peak_lr"] * factor}

    def _not_finite(self, pending: _Pending, values: dict[str, float], culprit: bool) -> None:
        """Count the step, which never reached the weights; stop with everything needed to look into it if it is one too many.

        All ranks read the same flag, so all come here, and none leaves before every batch is saved.
        """
        trainer = self.trainer
        trainer.skipped += 1
        losses = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if trainer.skipped <= trainer.config.max_skipped_steps:
            logger.warning("step %d left out: not finite (%s)", pending.step, losses)
            return
        saved = save_bad_batch(trainer.folder.path, pending.step, pending.micro_batches)
        records = [record for batch in pending.micro_batches for record in getattr(batch, "records", ())]
        found = distributed.gather_objects((culprit, str(saved), records))
        # A gradient can overflow where every loss is finite: then no rank is to blame more than another.
        suspects = [each for each in found if each[0]] or found
        _, where, suspected = suspects[0]
        shown = ", ".join(suspected[:8]) + (f", … ({len(suspected)} in all)" if len(suspected) > 8 else "")
        raise UserError(
            f"step {pending.step}: loss or gradient is not finite ({losses}); it did not reach the weights. Records: {shown}. "
            f"Batch saved to {where}; train.max_skipped_steps lets a run leave out such steps"
        )


def save_bad_batch(folder: Path, step: int, micro_batches: list[Any]) -> Path:
    """Save a step's micro-batches as plain dictionaries of tensors, readable with ``torch.load(..., weights_only=True)``."""
    path = folder / f"bad-batch-step-{step:08d}-rank-{distributed.rank()}.pt"
    with replacing(path) as temporary:
        torch.save([_as_plain(batch) for batch in micro_batches], temporary)
    return path


def _as_plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _as_plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, tuple | list):
        return [_as_plain(item) for item in value]
    return value


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several integers; neighbouring integers give unrelated seeds."""
    mixed = 0
    for part in parts:
        mixed = (mixed ^ (part + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed ^= mixed >> 31
    return mixed % (1 << 63)


def _short(values: dict[str, float], speed: dict[str, float]) -> str:
    """Losses and rates as a progress bar has room for them."""

    def short(name: str) -> str:
        stream, _, term = name.partition("/")
        return f"{stream[:3]}.{term[:5]}" if term else name

    shown = [f"{short(name)} {value:.2f}" for name, value in values.items() if name != "grad_norm"]
    forms = {"samples_per_s": "{:.3g} samples/s", "tflops_per_s": "{:.3g} TFLOP/s", "utilisation": "{:.0%} of peak"}
    if speed.get("data_wait", 0) >= TOLD_WAIT:
        forms["data_wait"] = "{:.0%} waiting for data"
    return " ".join([*shown, *(form.format(speed[name]) for name, form in forms.items() if name in speed)])
