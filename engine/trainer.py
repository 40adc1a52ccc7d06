"""The training loop.

The host never waits for the device during a step. The losses, and a flag that marks non-finite losses, stay on the device, and
the host reads them one step later. If a loss or gradient is not finite, the update is skipped on the device, on all ranks.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from batches.base import to_device
from batches.losses import WORK, Losses, weighted_sum
from engine.checkpoint import Checkpoint, newest_step, temporary_folder
from engine.chunks import seeded_micro_batches
from engine.config import TrainConfig
from engine.identity import RunIdentity
from engine.losses import count_step, sum_tensors
from engine.manifest import STATES
from engine.metrics_log import MetricsLog
from engine.parallel.strategy import Parallel
from engine.precision import Precision
from engine.prefetch import HostAndDevice, prefetch
from engine.rank_times import RankTimes
from engine.report import COMPILE_STEPS, PendingStep, Reporter, Tally
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.saving import CheckpointWriter
from engine.seeds import mix_seed, seed_generators
from engine.stall import StallWatch
from engine.stopping import Stopped, StopRequest
from engine.task import Task, TaskModel
from engine.trained import TrainedParameters
from engine.update import GuardedUpdate
from engine.validation import Validator
from optim.config import OptimConfig
from optim.setup import compile_encoders, set_gradient_checkpointing
from scheduler import ScheduleConfig, build_schedule
from utils import distributed
from utils.accelerator import start_copy_to_host
from utils.errors import UserError
from utils.events import Resumed
from utils.progress import progress_bar

logger = logging.getLogger(__name__)

PHASES = (
    *("data", "rates", "counts", "work"),
    *("forward", "losses", "backward"),  # once per micro-batch
    *("clip", "optimiser", "numbers", "report"),
)
"""The phases of a step, in order.

"data" waits for the micro-batches. "rates" sets the learning rates. "counts" and "work" compute the FLOPs and the numbers by
which the losses are divided (:mod:`engine.losses`). "numbers" starts copying the losses and metrics to the host. "report" reads
the values of the previous step. "data" and "report" take place in :meth:`Trainer._train`, the other phases in
:meth:`Trainer.train_step`.
"""


class Trainer:
    """Trains a :class:`~engine.task.Task` for a fixed number of steps, either from the start or by resuming exactly from a
    checkpoint.

    Args:
        task: the task to train.
        plan: the plan of the run on this number of ranks, with its number of steps.
        train, optim, schedule: sections of the config.
        seed: random seed of the run.
        folder: folder of the run.
        device: device of this rank.
        checkpoint: the checkpoint to resume from; if None, the run starts from the beginning.
        data: digests of the training data, by config key (see :class:`~engine.identity.RunIdentity`).
        stop: receives requests to stop; if None, the run does not stop on request.
    """

    def __init__(
        self,
        task: Task,
        plan: RunPlan,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        seed: int,
        folder: RunFolder,
        device: torch.device,
        checkpoint: Checkpoint | None = None,
        data: Mapping[str, str] | None = None,
        stop: StopRequest | None = None,
    ):
        self.task, self.config, self.seed, self.folder, self.device = task, train, seed, folder, device
        if train.deterministic and device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS, before its first use
        torch.use_deterministic_algorithms(train.deterministic)
        self.model: nn.Module = task.model.train()
        self._set_up_encoders()
        state = None if checkpoint is None else checkpoint.training_state()
        self.fresh = set(task.fresh if state is None else state["fresh"])
        self.loader = task.train_loader()
        assert plan.steps is not None
        self.plan = plan
        self.steps, self.accumulation = plan.steps, plan.accumulation
        self.step = 0 if checkpoint is None else checkpoint.step
        self.trained = TrainedParameters(
            self.model, optim, self.fresh, device, step=self.step, steps=self.steps, train=train
        )
        self.identity = self._identity(data or {})
        self.writer = CheckpointWriter(folder.checkpoints, train.keep_checkpoints)
        self._states_saved: Future[Any] | None = None
        """Future that completes once the optimiser states have been written to the current checkpoint."""
        self._saved = self.step
        """Step of the newest checkpoint."""
        self.schedule = build_schedule(schedule, self.steps)
        self.precision = Precision(train.precision, device)
        self.consumed, self.tally = 0, Tally()
        self.stop = stop or StopRequest()
        self.times = RankTimes(device, train.log_every, self.steps)
        self.stall = StallWatch(train.stall_s, folder.log_of(distributed.rank()))
        self.validator = Validator(task, self.plan, self.trained, folder)
        self.after: Callable[[str], None] = lambda phase: None
        """Called with the name of a phase (see :data:`PHASES`) after the host has enqueued the phase."""
        if checkpoint is not None and state is not None:
            self._restore(checkpoint, state)
        self.first_step = self.step
        """The step at which this process started or last unfroze an encoder. Compilation happens in the steps that follow."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the parameters that are currently trainable."""
        return self.trained.optimizer

    @property
    def parallel(self) -> Parallel:
        """Distributes the model over the ranks, with DDP or FSDP2."""
        return self.trained.parallel

    def _identity(self, data: Mapping[str, str]) -> RunIdentity:
        return RunIdentity(
            ranks=self.plan.ranks,
            records_per_step=self.plan.records_per_step,
            steps=self.steps,
            records=dict(self.loader.stream_sizes),
            data=dict(data),
        )

    def _set_up_encoders(self) -> None:
        if self.config.recompute:
            set_gradient_checkpointing(self.model, self.config.recompute)
        if self.config.compile:
            logger.info("train.compile: the encoders are compiled in the first steps, each of which can take minutes")
            compile_encoders(self.model, mode=None if self.config.compile is True else self.config.compile)

    def fit(self) -> None:
        """Trains from the current step to the last, and writes metrics and checkpoints to the run folder. Afterwards, the model
        holds the final weights, or the averaged weights if ``optim.ema`` is set.

        Raises:
            UserError: if more than ``train.max_skipped_steps`` steps have a non-finite loss or gradient.
        """
        remaining = self.steps - self.step
        if remaining > 0 or self.validator.due:
            with self.stop.ending_if_late(self._describe_late_stop):
                self._fit(remaining)
        else:
            logger.info("%s: all %d steps are done", self.folder.path, self.steps)
        self.trained.average.put_in_model()
        self.task.model = self.model = self.parallel.full_copy()

    def _fit(self, remaining: int) -> None:
        self.folder.resumed = None
        batches = prefetch(self.loader.batches(self.consumed, remaining * self.accumulation), self.device)
        main = distributed.rank() == 0
        metrics = MetricsLog(self.folder, self.step, self.config.wandb) if main else None
        progress = progress_bar(total=self.steps, quiet=not main, initial=self.step, unit="step")
        report = self._reporter(metrics, progress)
        try:
            with self.stall.watching(), self.times.recording_waits():
                self._train(batches, metrics, report)
        except BaseException:
            batches.close()  # makes the loader log the records that it has read
            raise
        finally:
            self._wait_for_saving()
            progress.close()
            if metrics:
                metrics.close()
        distributed.set_timeout(self.config.start_timeout_min)  # rank 0 may still be writing the last checkpoint
        self.writer.finish()
        distributed.barrier()  # after this, the other ranks may read the checkpoint
        # The last call makes the loader check the number of broken records over the whole run.
        if next(batches, None) is not None:
            raise RuntimeError("the loader yields more batches than requested")

    def _train(self, batches: Iterator[HostAndDevice], metrics: MetricsLog | None, report: Reporter) -> None:
        """Runs the remaining steps, with the reports, validations and checkpoints that are due."""
        pending: PendingStep | None = None
        stop_requested = False
        if self.validator.due:
            self._validate(metrics, report)
            self._save(metrics)  # otherwise a finished run would repeat this validation pass at each --resume
        while self.step < self.steps:
            with self.times.waiting_for_data():
                pairs = [next(batches) for _ in range(self.accumulation)]
            self._reached("data")
            current = self.train_step([pair.on_host for pair in pairs], [pair.on_device for pair in pairs])
            current.data_wait_s = self.times.data_wait_s
            stop_requested = pending is not None and report(pending)
            self._reached("report")
            pending = current
            self.validator.set_due(self.step)
            if (
                stop_requested
                or self.validator.due
                or self.step % self.config.checkpoint_every == 0
                or self.step == self.steps
            ):
                stop_requested = report(pending) or stop_requested
                pending = None
                if stop_requested and self.step < self.steps:
                    raise self._stopped(metrics)
                if self.validator.due:
                    self._validate(metrics, report)
                self._save(metrics)
            # The first step can be slow, as can the next few steps if encoders are compiled. After these steps, use a shorter
            # timeout.
            if self.step == self.first_step + (COMPILE_STEPS if self.config.compile else 1):
                distributed.set_timeout(self.config.step_timeout_min)

    def _stopped(self, metrics: MetricsLog | None) -> Stopped | UserError:
        """Saves a checkpoint after a request to stop. Returns the exception to raise on all ranks.

        If the checkpoint cannot be written, the exception is a :class:`UserError`, so that schedulers do not restart the run,
        which would lose the same steps over and over.
        """
        message, fault = "", None
        distributed.set_timeout(self.config.start_timeout_min)  # the other ranks wait while rank 0 writes
        try:
            message = self._save_and_describe(metrics)
        except UserError as error:
            fault = str(error)
        if fault := distributed.gather_objects(fault)[0]:
            return UserError(f"stopped by {self.stop.name}: {fault}")
        return Stopped(message, self.stop.status)

    def _save_and_describe(self, metrics: MetricsLog | None) -> str:
        """Saves a checkpoint of the current step, waits until it is on disk, and returns a message with its location."""
        self._save(metrics)
        self.writer.finish()
        return f"saved the checkpoint of step {self.step} in {self.folder.checkpoints}; rerun with --resume to continue"

    def _describe_late_stop(self) -> str:
        """Describes what is saved if the process ends because the ranks could not stop together."""
        saved = newest_step(self.folder.checkpoints)
        kept = f"the newest checkpoint is of step {saved}" if saved else "no checkpoint has been saved"
        return (
            f"the ranks did not stop within train.grace_s, probably because one of them hangs; {kept}, and the last completed "
            f"step is {self.step}; rerun with --resume to continue"
        )

    def _reached(self, phase: str) -> None:
        """Records that the host has finished a phase of the step."""
        self.stall.phase = PHASES[(PHASES.index(phase) + 1) % len(PHASES)]
        self.times.reached(phase)
        self.after(phase)

    def _reporter(self, metrics: MetricsLog | None, progress: Any) -> Reporter:
        return Reporter(
            self.config,
            steps=self.steps,
            device=self.device,
            tally=self.tally,
            learning_rates=lambda step: self.trained.learning_rates(step, self.schedule(step)),
            frozen_at=self.trained.freeze.frozen_at,
            weights=self.model.named_parameters,
            folder=self.folder.path,
            metrics=metrics,
            progress=progress,
        )

    def _validate(self, metrics: MetricsLog | None, report: Reporter) -> None:
        started = time.perf_counter()
        if self.parallel.needs_all_ranks and self._saved != self.step:
            self._save(metrics)  # a rank that is asked to stop during validation cannot save without the others
        with self.trained.average.in_model():
            with self.parallel.full_model(), self.stall.doing("a validation"), self._stopping_immediately(metrics):
                distributed.set_timeout(self.config.start_timeout_min)
                values = self.validator.validate()
            self.validator.record(self.step, values, metrics)
        distributed.set_timeout(self.config.step_timeout_min)
        report.exclude(time.perf_counter() - started)

    def _stopping_immediately(self, metrics: MetricsLog | None) -> AbstractContextManager[None]:
        """Context in which a request to stop saves a checkpoint and ends the process immediately. If saving needs all ranks, the
        context does nothing. Must not be active while averaged weights are swapped into or out of the model."""
        if self.parallel.needs_all_ranks:
            return nullcontext()
        return self.stop.ending_immediately(partial(self._save_and_describe, metrics))

    def train_step(self, micro_batches: list[Any], on_device: list[Any] | None = None) -> PendingStep:
        """Enqueues one optimiser step.

        Args:
            micro_batches: the micro-batches of this rank, on the host.
            on_device: copies of the micro-batches on the device; if None, they are copied now.
        """
        if self.trained.unfreeze(self.step):
            self.first_step = self.step
            distributed.set_timeout(self.config.start_timeout_min)
        self.trained.set_rates(self.schedule(self.step))
        for parameter in self.trained.parameters:
            parameter.grad = None  # twice as fast as zero_grad, which checks each gradient first
        self._reached("rates")
        if on_device is None:
            on_device = [to_device(batch, self.device) for batch in micro_batches]
        divisors, work = count_step(cast(TaskModel, self.model), micro_batches, self.device, self._reached)
        averages: list[Tensor] = []
        for index, batch in seeded_micro_batches(
            cast(TaskModel, self.model), on_device, self.plan.chunks, self.precision.autocast, self._seed
        ):
            if self.config.compile:
                torch.compiler.cudagraph_mark_step_begin()
            with self.parallel.synchronised(last=index == len(on_device) - 1):
                with self.precision.autocast():
                    losses: Losses = self.parallel(batch)
                self._reached("forward")
                divided, loss = weighted_sum(losses, divisors)
                averages.append(torch.cat([divided, loss.view(1)]).detach())
                self._reached("losses")
                self.precision.scaler.scale(loss * self.parallel.loss_factor).backward()
                if index == len(on_device) - 1:
                    self.trained.check_adapters()
            self._reached("backward")
        pending = self._update([*losses, "loss"], sum_tensors(averages), work, micro_batches)
        self._reached("numbers")
        self.step += 1
        self.stall.finished(self.step)
        self.consumed += self.accumulation * distributed.world_size()
        return pending

    def _seed(self, micro_batch: int) -> None:
        """Seeds the random number generators, which dropout and the sampling of hard negatives use, for a micro-batch of this
        rank. The seed depends only on the run's seed and the position of the micro-batch in the run, so a resumed run needs no
        generator state, and the number of ranks does not matter."""
        index = micro_batch * distributed.world_size() + distributed.rank()
        seed_generators(mix_seed(self.seed, self.step, index), self.device)

    def _update(self, names: list[str], local: Tensor, work: Tensor, micro_batches: list[Any]) -> PendingStep:
        """Clips the gradient and updates the parameters, unless a loss or the gradient is not finite.

        Args:
            names: names of the values in ``local``.
            local: this rank's losses and their sum, (K + 1,).
            work: size and FLOPs of the step over all ranks.
            micro_batches: the micro-batches of this rank, on the host.
        """
        # The request to stop is summed like a loss, so all ranks see it after the same step.
        extra_names, extra = self.times.values_to_sum(self.stop.signum is not None, self.step + 1, local)
        losses, extra = distributed.sum_over_ranks(torch.cat([local, extra])).split([len(local), len(extra)])
        not_finite = ~losses.isfinite().all()
        scaler, scalars = self.precision.scaler, {}
        update = GuardedUpdate(
            self.optimizer, self.precision, self.trained.parameters, self.config.clip_grad_norm, self.parallel
        )
        if scaler.is_enabled():
            update.force_skip_if(not_finite)
            # get_scale() would force a device sync
            scalars["loss_scale"] = scaler.scale(torch.ones((), device=self.device))
        scaler.unscale_(self.optimizer)
        norm = update.clip()
        self._reached("clip")
        if not scaler.is_enabled():
            # With fp16, gradients may overflow. In this case, the scaler skips the step and lowers the scale.
            not_finite = not_finite | ~norm.isfinite()
        update.step_unless(not_finite)
        self.trained.average.update(self.step, skipped=not_finite | ~norm.isfinite())
        self._reached("optimiser")
        local_not_finite = ~local.isfinite().all()
        scalars |= {"grad_norm": norm, "not_finite": not_finite, "local_not_finite": local_not_finite}
        values = torch.cat([losses, torch.stack([value.float() for value in scalars.values()]), extra, work]).detach()
        values, copied = start_copy_to_host(values)
        names = [*names, *scalars, *extra_names, *WORK]
        return PendingStep(self.step + 1, names, values, copied, micro_batches, time.perf_counter())

    def _save(self, metrics: MetricsLog | None) -> None:
        """Starts writing a checkpoint of the current step. States that are equal on all ranks are written by rank 0."""
        if self.parallel.needs_all_ranks:
            distributed.set_timeout(self.config.start_timeout_min)  # rank 0 may still be writing a checkpoint
        self._wait_for_saving()  # before the states are copied again
        self._saved = self.step
        weights, unaveraged = self.trained.average.states(self.model)
        optimizer, states = self.trained.optimizer_state()
        training = {
            "optimizer": optimizer,
            "scaler": self.precision.scaler.state_dict(),
            "records": self.consumed * self.loader.records_per_batch,
            "skipped": self.tally.skipped,
            "elapsed_s": self.tally.elapsed_s,
            "best": self.validator.best,
            "validation_due": self.validator.due,
            "fresh": sorted(self.fresh),
            "run": self.identity.state(),
        }
        copies = self.parallel.gathered((weights, unaveraged, training))
        self._states_saved = self._start_saving(states)
        if self.parallel.needs_all_ranks:
            distributed.set_timeout(self.config.step_timeout_min)
        if metrics is None or self._states_saved is None:
            return
        metrics.sync()
        self.folder.restore_config()
        metadata = {**self.task.metadata, **self.trained.metadata}
        weights, unaveraged, training = copies
        self.writer.save(self.step, weights, unaveraged, training, metadata, self._states_saved)

    def _start_saving(self, states: dict[str, Tensor]) -> Future[Any] | None:
        """Starts writing the optimiser states. Returns None if this rank does not write, or if the folder cannot be created."""
        main = distributed.rank() == 0
        if not (main or self.parallel.needs_all_ranks):
            return None
        created = self.writer.create_folder(self.step) if main else True
        if self.parallel.needs_all_ranks:
            created = distributed.gather_objects(created)[0]
        folder = temporary_folder(self.folder.checkpoints, self.step)
        return self.parallel.start_saving(states, folder / STATES) if created else None

    def _wait_for_saving(self) -> None:
        """Waits until the last checkpoint has been written or has failed. Rank 0 reports a failure."""
        self.writer.wait()
        if self._states_saved is not None:
            with suppress(Exception):
                self._states_saved.result()

    def _restore(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        run = self.folder.path
        for change in self.identity.check_resumes(
            RunIdentity.from_state(state["run"]), run, self.loader.records_per_batch
        ):
            if distributed.rank() == 0:
                logger.warning("%s: %s", run, change)
        self.trained.resume_average(checkpoint)
        self.trained.resume_optimizer(state["optimizer"], checkpoint)
        self.precision.scaler.load_state_dict(state["scaler"])
        self.consumed = state["records"] // self.loader.records_per_batch
        self.validator.best, self.validator.due = state["best"], state["validation_due"]
        self.tally = Tally(state["skipped"], state["elapsed_s"])
        logger.info(Resumed(step=checkpoint.step, folder=str(checkpoint.folder)))
