"""The training loop.

The host never waits for the device during a step. The losses, and a flag that marks non-finite losses, stay on the device, and
the host reads them one step later. If a loss or gradient is not finite, the update is skipped on the device, on all ranks.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import reduce
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor.experimental import implicit_replication

from batches.base import to_device
from batches.losses import WORK, Losses, Work, weighted_sum
from engine import optimizer_states
from engine.checkpoint import Checkpoint, newest_step
from engine.config import TrainConfig
from engine.identity import RunIdentity
from engine.metrics_log import MetricsLog
from engine.micro_batches import prefetch, seed_generators, seeded_micro_batches
from engine.precision import Precision
from engine.report import RESERVED_NAMES, PendingStep, Reporter, Tally
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.saving import CheckpointWriter
from engine.stall import StallWatch
from engine.stopping import Stopped, StopRequest
from engine.task import Task, TaskModel
from engine.timeouts import StepTimeout
from engine.trained import TrainedModel
from engine.validation import Validator
from engine.watch import RankTimes
from optim.config import OptimConfig
from optim.setup import compile_encoders, set_gradient_checkpointing
from scheduler import ScheduleConfig, build_schedule
from utils import distributed
from utils.accelerator import send
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

"data" waits for the micro-batches. "rates" sets the learning rates. "counts" and "work" compute the numbers by which the losses
are divided and the FLOPs (:meth:`Trainer._count`). "numbers" starts copying the losses and metrics to the host. "report" reads
the values of the previous step. "data" and "report" take place in :meth:`Trainer._run_steps`, the other phases in
:meth:`Trainer.train_step`. Reports about stalls also name "checkpoint".
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
        if train.recompute:
            set_gradient_checkpointing(self.model, train.recompute)
        if train.compile:
            logger.info("train.compile: the encoders are compiled in the first steps, each of which can take minutes")
            compile_encoders(self.model, mode=None if train.compile is True else train.compile)
        state = None if checkpoint is None else checkpoint.training_state()
        self.fresh = set(task.fresh if state is None else state["fresh"])
        self.loader = task.train_loader()
        assert plan.steps is not None
        self.plan = plan
        self.steps, self.accumulation = plan.steps, plan.accumulation
        self.step = 0 if checkpoint is None else checkpoint.step
        self.trained = TrainedModel(
            self.model,
            optim,
            build_schedule(schedule, self.steps),
            self.fresh,
            device,
            step=self.step,
            steps=self.steps,
            train=train,
        )
        self.parallel = self.trained.parallel
        self.identity = RunIdentity(
            ranks=self.plan.ranks,
            records_per_step=self.plan.records_per_step,
            steps=self.steps,
            records=dict(self.loader.stream_sizes),
            data=dict(data or {}),
        )
        self.metrics: MetricsLog | None = None
        """Log of the metrics. None before training and on ranks that write nothing."""
        self.writer = CheckpointWriter(folder.checkpoints, train.keep_checkpoints, self.parallel)
        self._saved = self.step
        """Step of the last checkpoint that was started, or of the start of this process."""
        self.precision = Precision(train.precision, device)
        self.consumed, self.tally = 0, Tally()
        self.stop = stop or StopRequest()
        self.times = RankTimes(device, train.log_every, self.steps)
        self.stall = StallWatch(train.stall_s, folder.log)
        self.validator = Validator(task, self.plan, self.trained, folder)
        self.after_phase: Callable[[str], None] = lambda phase: None
        """Called with the name of a phase (see :data:`PHASES`) after the host has enqueued the phase."""
        if checkpoint is not None and state is not None:
            self._restore(checkpoint, state)
        self.timeout = StepTimeout(train, self.step)

    def _state(self) -> dict[str, Any]:
        """Returns what the remaining steps depend on, apart from the states of the model and the optimiser."""
        return {
            "scaler": self.precision.scaler.state_dict(),
            "records": self.consumed * self.loader.records_per_batch,
            "skipped": self.tally.skipped,
            "elapsed_s": self.tally.elapsed_s,
            "best": self.validator.best,
            "validation_due": self.validator.due,
            "fresh": sorted(self.fresh),
            "run": asdict(self.identity),
        }

    def _restore(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Restores everything that the remaining steps depend on from a checkpoint, whose training state is ``state``.

        Raises:
            UserError: if the run cannot be resumed because its config or its data have changed.
        """
        run = self.folder.path
        for change in self.identity.check_resumes(
            RunIdentity.from_state(state["run"]), run, self.loader.records_per_batch
        ):
            if distributed.rank() == 0:
                logger.warning("%s: %s", run, change)
        self.trained.load_unaveraged(checkpoint)
        optimizer_states.resume(self.trained.optimizer, state["optimizer"], checkpoint, self.parallel)
        self.precision.scaler.load_state_dict(state["scaler"])
        self.consumed = state["records"] // self.loader.records_per_batch
        self.validator.best, self.validator.due = state["best"], state["validation_due"]
        self.tally = Tally(state["skipped"], state["elapsed_s"], checkpoint.step)
        logger.info(Resumed(step=checkpoint.step, folder=str(checkpoint.folder)))

    def fit(self) -> None:
        """Trains from the current step to the last, and writes metrics and checkpoints to the run folder. Afterwards, the model
        holds the final weights, or the averaged weights if ``optim.ema`` is set.

        Raises:
            Stopped: if the run was asked to stop.
            UserError: if more than ``train.max_skipped_steps`` steps have a non-finite loss or gradient, or if the last
                checkpoint cannot be written.
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
        """Opens the logs and the loader, runs the remaining steps, and waits for the last checkpoint."""
        batches = prefetch(self.loader.batches(self.consumed, remaining * self.accumulation), self.device)
        main = distributed.rank() == 0
        self.metrics = MetricsLog(self.folder, self.step, self.config.wandb) if main else None
        progress = progress_bar(total=self.steps, quiet=not main, initial=self.step, unit="step")
        report = Reporter(
            self.config,
            steps=self.steps,
            device=self.device,
            tally=self.tally,
            trained=self.trained,
            folder=self.folder.path,
            metrics=self.metrics,
            progress=progress,
        )
        try:
            with self.stall.watching(), distributed.recording_waits(self.times.waiting_for_ranks):
                self._run_steps(batches, report)
        except BaseException:
            batches.close()  # makes the loader log the records that it has read
            raise
        finally:
            self.writer.wait()
            progress.close()
            if self.metrics:
                self.metrics.close()
        with self.timeout.longer():  # rank 0 may still be writing the last checkpoint
            distributed.on_rank_0(self.writer.finish)  # after this, the other ranks may read the checkpoint
        self.folder.newest = Checkpoint.of(self.folder.checkpoints, self.step)
        # The last call makes the loader check the number of broken records over the whole run.
        if next(batches, None) is not None:
            raise RuntimeError("the loader yields more batches than requested")

    def _run_steps(self, batches: Iterator[tuple[Any, Any]], report: Reporter) -> None:
        """Runs the remaining steps, with the reports, validations and checkpoints that are due."""
        previous: PendingStep | None = None  # until its values have been reported
        if self.validator.due:
            self._validate(report)
            self._save()  # otherwise a finished run would repeat this validation pass at each --resume
        while self.step < self.steps:
            with self._phase("data"):
                started = time.perf_counter()
                on_host, on_device = zip(*(next(batches) for _ in range(self.accumulation)), strict=True)
                data_wait_s = time.perf_counter() - started
                self.times.data_waits_s.append(data_wait_s)
            current = self.train_step(list(on_host), list(on_device), data_wait_s)
            with self._phase("report"):
                if previous is not None:
                    report(previous)
            previous = current
            self.validator.set_due(self.step)
            checkpoint_due = self.step % self.config.checkpoint_every == 0 or self.step == self.steps
            if report.stop_requested or self.validator.due or checkpoint_due:
                # A checkpoint counts this step if it was skipped, and is not written after a fault. This may set stop_requested.
                report(current)
                previous = None
                if report.stop_requested and self.step < self.steps:
                    self._save_and_stop()
                if self.validator.due:
                    self._validate(report)
                self._save()
            self.timeout.finished(self.step)

    def train_step(
        self, micro_batches: list[Any], on_device: list[Any] | None = None, data_wait_s: float = 0.0
    ) -> PendingStep:
        """Enqueues one optimiser step.

        Args:
            micro_batches: the micro-batches of this rank, on the host.
            on_device: copies of the micro-batches on the device; if None, they are copied now.
            data_wait_s: seconds spent waiting for the micro-batches.
        """
        with self._phase("rates"):
            if self.trained.start_step(self.step):
                self.timeout.slow_steps_follow(self.step)
        if on_device is None:
            on_device = [to_device(batch, self.device) for batch in micro_batches]
        divisors, work = self._count(micro_batches)
        averages: list[Tensor] = []
        for index, batch in seeded_micro_batches(
            cast(TaskModel, self.model), on_device, self.plan.chunks, self.precision.autocast, self._seed
        ):
            last = index == len(on_device) - 1
            if self.config.compile:
                torch.compiler.cudagraph_mark_step_begin()
            with self.parallel.synchronised(last):
                self.times.begin_forward()
                with self._phase("forward"), self.precision.autocast():
                    losses: Losses = self.parallel(batch)
                with self._phase("losses"):
                    divided, loss = weighted_sum(losses, divisors)
                    averages.append(torch.cat([divided, loss.view(1)]).detach())
                self.times.end_forward()
                with self._phase("backward"):
                    self.precision.scaler.scale(loss * self.parallel.loss_factor).backward()
                    if last:
                        self.trained.check_adapters()
        local = averages[0] if len(averages) == 1 else torch.stack(averages).sum(dim=0)
        # The request to stop is summed like a loss, so all ranks see it after the same step.
        extra = {"stop_requested": float(self.stop.signum is not None), **self.times.values_to_sum(self.step + 1)}
        to_sum = torch.cat([local, send(torch.tensor([*extra.values()], dtype=local.dtype), self.device)])
        summed = distributed.sum_over_ranks(to_sum)
        scalars = self._update(not_finite=~summed.isfinite().all())
        scalars["local_not_finite"] = ~local.isfinite().all()
        with self._phase("numbers"):
            parts = (
                ([*divisors, "loss", *extra], summed),
                ([*scalars], torch.stack([value.float() for value in scalars.values()])),
                (WORK, work),
            )
            pending = PendingStep.start(self.step + 1, parts, micro_batches, data_wait_s)
        self.step += 1
        self.stall.progressed(self.step)
        self.consumed += self.accumulation * distributed.world_size()
        return pending

    def _count(self, micro_batches: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Counts the examples and the work of a step over all ranks and micro-batches, before the step's forward pass.

        Counting happens on the host, and all counts are sent to the device in a single copy, because every small operation on a
        GPU would need a kernel launch.

        Returns:
            For each loss, the number to divide it by, such as the number of valid pairs, as a scalar of at least 1; and the size
            and FLOPs of the step, (4,) float32, in the order of :data:`~batches.losses.WORK`. Both are on the device.

        Raises:
            ValueError: if a loss has a reserved name.
        """
        model = cast(TaskModel, self.model)
        with self._phase("counts"):
            counts_of_batches = [model.counts(batch) for batch in micro_batches]
            names = list(counts_of_batches[0])
            if reserved := RESERVED_NAMES.intersection(names):
                raise ValueError(
                    f"a loss is named {sorted(reserved)[0]!r}, which is the name of another metric; rename the loss"
                )
            counts = reduce(torch.add, [torch.stack([each[name] for name in names]) for each in counts_of_batches])
        with self._phase("work"):
            work = sum((model.work(batch) for batch in micro_batches), Work())
            work_values = torch.tensor([getattr(work, name) for name in WORK], dtype=torch.float32)
            values = send(torch.cat([counts.float(), work_values]), self.device)
            divisors, total_work = distributed.sum_over_ranks(values).split([len(names), len(WORK)])
        return dict(zip(names, divisors.clamp(min=1).unbind(), strict=True)), total_work

    def _seed(self, micro_batch: int) -> None:
        """Seeds the random number generators, which dropout and the sampling of hard negatives use, for a micro-batch of this
        rank. The seed depends only on the run's seed and the position of the micro-batch in the run, so a resumed run needs no
        generator state, and the number of ranks does not matter."""
        index = micro_batch * distributed.world_size() + distributed.rank()
        seed_generators(self.device, self.seed, self.step, index)

    def _update(self, not_finite: Tensor) -> dict[str, Tensor]:
        """Clips the gradient and updates the parameters, without making the host wait for the device. The update is skipped if a
        loss (``not_finite``) or the gradient is not finite.

        Returns:
            The norm of the gradient before clipping, whether the step was skipped, and with fp16 the loss scale.
        """
        optimizer, scaler = self.trained.optimizer, self.precision.scaler
        scalars: dict[str, Tensor] = {}
        with self._phase("clip"):
            gradients = [each.grad for each in self.trained.parameters if each.grad is not None]
            if scaler.is_enabled():
                # Makes the scaler skip the step, because a loss can be infinite while its gradient is finite.
                gradients[0].add_(torch.where(not_finite, torch.nan, 0.0))
                # get_scale() would force a device sync
                scalars["loss_scale"] = scaler.scale(torch.ones((), device=self.device))
            scaler.unscale_(optimizer)
            norm = self.parallel.gradient_norm(gradients)
            if self.config.clip_grad_norm is not None:
                factor = (self.config.clip_grad_norm / (norm + 1e-6)).clamp(max=1)  # as torch.nn.utils.clip_grad_norm_
                torch._foreach_mul_([distributed.local_shard(each) for each in gradients], factor)
        with self._phase("optimiser"):
            skipped = not_finite | ~norm.isfinite()
            if scaler.is_enabled():
                scaler.step(optimizer)
                scaler.update()
            elif optimizer.defaults.get("fused"):
                # Torch's fused kernels read this flag on the device; the loss scaler uses the same mechanism.
                optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
                with implicit_replication():  # a group may contain both sharded and replicated parameters
                    optimizer.step()
            elif not skipped:  # apex has no such flag, so the host waits for the device
                optimizer.step()
            self.trained.average.update(self.step, skipped)
        # With fp16, gradients may overflow. In this case, the scaler lowers the scale, and the step is not an error.
        return scalars | {"grad_norm": norm, "not_finite": not_finite if scaler.is_enabled() else skipped}

    @contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        """Context for a phase of the step, until the host has enqueued it."""
        self.stall.phase = phase
        yield
        self.after_phase(phase)

    def _validate(self, report: Reporter) -> None:
        started = time.perf_counter()
        if self._saved != self.step:
            self._save()  # so that a request to stop can end the process during validation
        with self.timeout.longer(), self.stall.doing("a validation"):
            self.validator.validate(self.step, self.metrics, self.stop.ending_at_once(self._finish_saving))
        report.exclude(time.perf_counter() - started)

    def _save(self) -> None:
        """Starts writing a checkpoint of the current step. States that are equal on all ranks are written by rank 0."""
        self._saved, self.stall.phase = self.step, "checkpoint"
        weights, unaveraged = self.trained.average.states(self.model)
        optimizer, states = optimizer_states.split_state(self.trained.optimizer)
        training = {"optimizer": optimizer, **self._state()}
        if self.metrics:
            self.metrics.sync()
            self.folder.restore_config()
        metadata = {**self.task.metadata, **self.trained.metadata}
        with self.timeout.longer():  # rank 0 may still be writing the previous checkpoint
            self.writer.save(self.step, weights, unaveraged, training, states, metadata)

    def _finish_saving(self) -> str:
        """Waits until the checkpoint of the current step is on disk, and returns a message with its location."""
        self.writer.finish()
        return f"saved the checkpoint of step {self.step} in {self.folder.checkpoints}; rerun with --resume to continue"

    def _save_and_stop(self) -> NoReturn:
        """Saves a checkpoint after a request to stop, on all ranks.

        Raises:
            Stopped: once the checkpoint is on disk.
            UserError: if the checkpoint cannot be written. Schedulers then do not restart the run, which would lose the same
                steps over and over.
        """
        self._save()
        try:
            with self.timeout.longer():  # the other ranks wait while rank 0 writes
                message = distributed.on_rank_0(self._finish_saving)
        except UserError as error:
            raise UserError(f"stopped by {self.stop.name}: {error}") from None
        raise Stopped(message, self.stop.status)

    def _describe_late_stop(self) -> str:
        """Describes what is saved if the process ends because the ranks could not stop together."""
        saved = newest_step(self.folder.checkpoints)
        kept = f"the newest checkpoint is of step {saved}" if saved else "no checkpoint has been saved"
        cause = "probably because one of them hangs"
        if self.writer.writing is not None:
            cause = (
                f"because the checkpoint of step {self.writer.writing} is still being written: increase train.grace_s"
            )
        return (
            f"the ranks did not stop within train.grace_s, {cause}; {kept}, and the last completed step is "
            f"{self.tally.last_step}; rerun with --resume to continue"
        )
