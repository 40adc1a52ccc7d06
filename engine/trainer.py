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
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.checkpoint import Checkpoint, save_best, save_checkpoint
from engine.parallel import data_parallel
from engine.precision import Precision
from engine.prefetch import moved
from engine.report import RESERVED, PendingStep, Reporter, Tally
from engine.run_folder import MetricsLog, RunFolder
from engine.task import Task, TaskModel
from engine.train_config import TrainConfig
from optim import OptimConfig, build_optimizer, parameter_groups
from scheduler import ScheduleConfig, build_schedule
from utils import distributed
from utils.batch import WORK, Losses, Work, to_device
from utils.progress import progress_bar

logger = logging.getLogger(__name__)

PHASES = (
    *("data", "rates", "counts", "work"),
    *("forward", "losses", "backward"),  # of each micro-batch
    *("clip", "optimiser", "numbers", "report"),
)
"""The phases of a step in order. "data" and "report" are parts of :meth:`Trainer.fit`, the others of
:meth:`Trainer.train_step`."""


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
        state = None if checkpoint is None else checkpoint.training_state()
        self.fresh = set(task.fresh if state is None else state["fresh"])
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.groups = parameter_groups(self.model.named_parameters(), optim, self.fresh)
        self.optimizer = build_optimizer(self.groups, optim)
        self.loader = task.train_loader()
        self.steps = train.total_steps(self.loader)
        self.accumulation = train.accumulation(self.loader)
        """Micro-batches per step of this rank."""
        self.schedule = build_schedule(schedule, self.steps)
        self.precision = Precision(train.precision, device)
        self.step, self.consumed, self.tally = 0, 0, Tally()
        self.best: float | None = None
        self.weights: dict[tuple[float, ...], Tensor] = {}
        """Weights of the losses on the device."""
        self.after: Callable[[str], None] = lambda phase: None
        """Called when the host has enqueued a phase of a step (:data:`PHASES`)."""
        if checkpoint is not None and state is not None:
            self._restore(checkpoint, state)
        self.parallel = data_parallel(self.model, device)

    def _set_up_encoders(self) -> None:
        model = cast(TaskModel, self.model)
        if self.config.recompute:
            model.set_recompute(self.config.recompute)
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
        micro_batches = self.loader.batches(self.consumed, remaining * self.accumulation)
        on_device = moved(micro_batches, self.device)
        main = distributed.rank() == 0
        metrics = MetricsLog(self.folder, self.step) if main else None
        progress = progress_bar(total=self.steps, quiet=not main, initial=self.step, unit="step")
        report = Reporter(
            self.config,
            steps=self.steps,
            device=self.device,
            tally=self.tally,
            learning_rates=self._learning_rates,
            folder=self.folder.path,
            metrics=metrics,
            progress=progress,
        )
        pending: PendingStep | None = None
        try:
            while self.step < self.steps:
                asked = time.perf_counter()
                taken = [next(on_device) for _ in range(self.accumulation)]
                waited_s = time.perf_counter() - asked
                self.after("data")
                current = self.train_step([each.on_host for each in taken], [each.on_device for each in taken])
                current.waited_s = waited_s
                if pending is not None:
                    report(pending)
                self.after("report")
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
        # Asking once more lets the loader judge the broken records of the whole run.
        if next(on_device, None) is not None:
            raise RuntimeError("the loader gave more batches than it was asked for")

    def _validates(self) -> bool:
        """Whether this step is followed by a validation."""
        if self.task.selects is None:
            return False
        every = self.config.validate_every
        if every is None:
            every = math.ceil(self.loader.epoch_size / self.config.records_per_step(self.loader))
        return self.step % every == 0 or self.step == self.steps

    def _validate(self, metrics: MetricsLog | None, report: Reporter) -> None:
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

    def train_step(self, micro_batches: list[Any], on_device: list[Any] | None = None) -> PendingStep:
        """One optimiser step on this rank's micro-batches; its numbers are still on the device. ``on_device``: their copies
        there, if they have been made."""
        # Dropout and drawn negatives depend on seed, step and rank alone: a resumed run needs no generator state.
        seed_generators(mix_seed(self.seed, self.step, distributed.rank()), self.device)
        self._set_rates()
        for parameter in self.trained:
            parameter.grad = None  # twice as fast as zero_grad, which looks at each gradient first
        self.after("rates")
        if on_device is None:
            on_device = [to_device(batch, self.device) for batch in micro_batches]
        counts, work = self._counted(micro_batches)
        averages: list[Tensor] = []
        for index, batch in enumerate(on_device):
            if self.config.compile:
                torch.compiler.cudagraph_mark_step_begin()
            with self._synchronised_gradients(last=index == len(on_device) - 1):
                with self.precision.autocast():
                    terms: Losses = self.parallel(batch)
                self.after("forward")
                each, loss = self._divided(terms, counts)
                averages.append(torch.cat([each, loss.view(1)]).detach())
                self.after("losses")
                # DDP averages gradients over ranks; each term is already divided by its count over all of them.
                self.precision.scaler.scale(loss * distributed.world_size()).backward()
            self.after("backward")
        pending = self._update([*terms, "loss"], _sum(averages), work, micro_batches)
        self.after("numbers")
        self.step += 1
        self.consumed += self.accumulation * distributed.world_size()
        return pending

    def _divided(self, terms: Losses, counts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Each term divided by its count, (K,), and their weighted sum, a scalar."""
        each = torch.stack([term.total for term in terms.values()]) / torch.stack([counts[name] for name in terms])
        weights = tuple(term.weight for term in terms.values())
        if weights not in self.weights:
            # They stay on the device: a copy from the host would wait for it in every step.
            self.weights[weights] = torch.tensor(weights, device=self.device)
        return each, (each * self.weights[weights]).sum()

    def _update(self, names: list[str], own: Tensor, work: Tensor, micro_batches: list[Any]) -> PendingStep:
        """Clip and step, unless something is not finite; returns the step's numbers, still on the device. ``own`` (K + 1,): this
        rank's losses, which have ``names``."""
        losses = distributed.sum_over_ranks(own)
        bad = ~losses.isfinite().all()
        scaler, rest = self.precision.scaler, {}
        if scaler.is_enabled():
            self._spoil_gradient_if(bad)
            rest["loss_scale"] = scaler.scale(torch.ones((), device=self.device))  # asking for the number would wait
        scaler.unscale_(self.optimizer)
        norm = self._clip()
        self.after("clip")
        if not scaler.is_enabled():
            # With fp16, gradients that overflow are the scaler's business: it skips the step and lowers the scale.
            bad = bad | ~norm.isfinite()
        self._step_unless(bad)
        self.after("optimiser")
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
        return PendingStep(self.step + 1, shown, values, arrived, micro_batches, time.perf_counter())

    def _clip(self) -> Tensor:
        """Clip the gradient, where there is a limit; returns the norm that it had."""
        if self.config.clip_grad_norm is not None:
            return nn.utils.clip_grad_norm_(self.trained, self.config.clip_grad_norm)
        # A limit of infinity would multiply every gradient by 1.
        return nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])

    def _spoil_gradient_if(self, bad: Tensor) -> None:
        """Make the loss scaler skip the step too: a loss can be infinite while its gradient is not."""
        first = next(p.grad for p in self.trained if p.grad is not None)
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

    def _counted(self, micro_batches: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
        """What is known of a step before it, over ranks and micro-batches: the divisor of each term, its rows or tokens but at
        least 1, and the work, a number for each of :data:`~utils.batch.WORK`.

        The host counts, and sends the numbers together: on a GPU each small operation would take a launch.
        """
        model = cast(TaskModel, self.model)
        each = [model.counts(batch) for batch in micro_batches]
        names = list(each[0])
        if reserved := RESERVED.intersection(names):
            raise ValueError(
                f"a loss is named {sorted(reserved)[0]!r}, which a step's numbers use; give it another name"
            )
        counts = _sum([torch.stack([counts[name] for name in names]) for counts in each])
        self.after("counts")
        work = sum((model.work(batch) for batch in micro_batches), Work())
        numbers = torch.cat([counts.float(), torch.tensor([getattr(work, name) for name in WORK], dtype=torch.float32)])
        if self.device.type == "cuda":
            numbers = numbers.pin_memory().to(self.device, non_blocking=True)
        divisors, done = distributed.sum_over_ranks(numbers).split([len(names), len(WORK)])
        self.after("work")
        return dict(zip(names, divisors.clamp(min=1).unbind(), strict=True)), done

    def _set_rates(self) -> None:
        factor = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def _learning_rates(self, step: int) -> dict[str, float]:
        """By the name of the group, of the step after so many."""
        factor = self.schedule(step)
        return {group["name"]: group["peak_lr"] * factor for group in self.groups}

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
                "skipped": self.tally.skipped,
                "elapsed_s": self.tally.elapsed_s,
                "best": self.best,
                "fresh": sorted(self.fresh),
            }
            save_checkpoint(self.folder.checkpoints, self.step, self.model, state, self.config.keep_checkpoints)
        distributed.barrier()

    def _restore(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.step, self.consumed, self.best = checkpoint.step, state["consumed"], state["best"]
        self.tally = Tally(state["skipped"], state["elapsed_s"])
        logger.info("resuming from %s", checkpoint.folder)


def _sum(parts: list[Tensor]) -> Tensor:
    """Element-wise."""
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


def seed_generators(seed: int, device: torch.device) -> None:
    """As ``torch.manual_seed``, which also notes for devices that are not in use where it was called from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several integers; neighbouring integers give unrelated seeds."""
    mixed = 0
    for part in parts:
        mixed = (mixed ^ (part + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed ^= mixed >> 31
    return mixed % (1 << 63)
