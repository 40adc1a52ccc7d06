"""Reads the losses and metrics of each step while the next step runs, logs them with the throughput, and stops a run if too many
steps have a non-finite loss or gradient."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batches.losses import WORK, Work
from engine.config import TrainConfig
from engine.devices import peak_of
from engine.metrics_log import MetricsLog
from engine.trained import TrainedModel
from engine.watch import TIMES, Watch
from utils import distributed
from utils.accelerator import start_copy_to_host
from utils.distributed import full_tensor
from utils.errors import UserError
from utils.events import SkippedStep, finite_or_none
from utils.files import replacing

MIN_SHOWN_DATA_WAIT = 0.05
"""The progress bar shows the time spent waiting for data if it is at least this fraction of the total time."""

FIRST_STEPS = 10
"""Up to this step, a non-finite loss may be caused by the learning rate as well as by the records."""

logger = logging.getLogger(__name__)


RESERVED_NAMES = frozenset(
    {
        "step",
        "loss",
        "grad_norm",
        "loss_scale",
        "not_finite",
        "local_not_finite",
        "stop_requested",
        "elapsed_s",
        "utilisation",
        "data_wait",
        "tflops_per_s",
    }
    | {*WORK, *(f"{name}_per_s" for name in WORK)}
)
"""Names of the values other than losses that a step computes or logs. A loss must not have any of these names."""


@dataclass
class PendingStep:
    """A step whose values are still being computed or copied to the host.

    Attributes:
        step: number of the step, counted from 1.
        names: the names of ``values``.
        values: losses and metrics, (K,) float32.
        copied: event after which ``values`` can be read; if None, they can be read immediately.
        micro_batches: the micro-batches of the step, on the host.
        enqueued_s: time (``time.perf_counter``) at which the step was enqueued on the device.
        data_wait_s: seconds spent waiting for the micro-batches.
    """

    step: int
    names: list[str]
    values: Tensor
    copied: Any
    micro_batches: list[Any]
    enqueued_s: float
    data_wait_s: float = 0.0

    @staticmethod
    def start(
        step: int, parts: Sequence[tuple[Sequence[str], Tensor]], micro_batches: list[Any], data_wait_s: float
    ) -> PendingStep:
        """Starts copying the values of a step to the host.

        Args:
            step, micro_batches, data_wait_s: see the attributes.
            parts: the values, as K names and a tensor (K,) on the device. Together, the parts have the names of the losses,
                ``loss``, and the names that :meth:`read` looks up.
        """
        values, copied = start_copy_to_host(torch.cat([tensor for _, tensor in parts]).detach())
        names = [name for part, _ in parts for name in part]
        return PendingStep(step, names, values, copied, micro_batches, time.perf_counter(), data_wait_s)

    def read(self) -> StepValues:
        """Waits for the device, and returns the values."""
        if self.copied is not None:
            self.copied.synchronize()
        values = dict(zip(self.names, self.values.tolist(), strict=True))
        return StepValues(
            work=Work(*(values.pop(name) for name in WORK)),
            not_finite=bool(values.pop("not_finite")),
            local_not_finite=bool(values.pop("local_not_finite")),
            stop_requested=bool(values.pop("stop_requested")),
            loss_scale=values.pop("loss_scale", None),
            times={name: values.pop(name) for name in list(values) if TIMES.fullmatch(name)},
            metrics=values,
        )


@dataclass(frozen=True)
class StepValues:
    """The values of a step, over all ranks unless they say otherwise.

    Attributes:
        work: size of the step.
        not_finite: whether the step was skipped because a loss or gradient was not finite.
        local_not_finite: whether a loss of this rank was not finite.
        stop_requested: whether a rank was asked to stop.
        loss_scale: the loss scale; None without fp16.
        times: times that the ranks spent on their own work, with the names from :meth:`~engine.watch.RankTimes.values_to_sum`;
            empty in most steps.
        metrics: the averaged losses, their weighted sum ``loss``, and ``grad_norm``.
    """

    work: Work
    not_finite: bool
    local_not_finite: bool
    stop_requested: bool
    loss_scale: float | None
    times: dict[str, float]
    metrics: dict[str, float]

    @property
    def logged(self) -> dict[str, float]:
        """The metrics and, with fp16, ``loss_scale``."""
        return self.metrics if self.loss_scale is None else {**self.metrics, "loss_scale": self.loss_scale}


@dataclass
class Tally:
    """Counters of a run.

    Attributes:
        skipped: number of steps skipped because a loss or gradient was not finite.
        elapsed_s: total time of the steps in seconds.
        last_step: the last step that the device is known to have finished.
    """

    skipped: int = 0
    elapsed_s: float = 0.0
    last_step: int = 0


class Throughput:
    """Computes rates over all ranks since the last call to :meth:`rates`.

    Args:
        devices: number of devices.
        peak_tflops: peak TFLOP/s of a device; if None, utilisation is omitted.
        excluded_steps: number of steps to exclude at the start, while memory is allocated and kernels are selected or compiled.
    """

    def __init__(self, devices: int, peak_tflops: float | None, excluded_steps: int = 1):
        self.devices, self.peak_tflops, self.excluded_steps = devices, peak_tflops, excluded_steps
        self.since: float | None = None
        self.until = 0.0
        self.work, self.data_wait_s = Work(), 0.0

    def add(self, work: Work, at: float, data_wait_s: float = 0.0) -> None:
        """Adds a step.

        Args:
            work: size of the step over all ranks.
            at: time at which the step was enqueued, in seconds.
            data_wait_s: seconds that this rank spent waiting for the data of the step.
        """
        self.excluded_steps -= 1
        if self.excluded_steps >= 0:
            self.since = at
        else:
            self.work += work
            self.data_wait_s += data_wait_s
        self.until = at

    def exclude(self, seconds: float) -> None:
        """Excludes time that was not spent training."""
        if self.since is not None:
            self.since += seconds

    def rates(self) -> dict[str, float]:
        """Returns the rates by name, or an empty dictionary if no step has followed the excluded steps.

        ``samples_per_s``, ``images_per_s``, ``tokens_per_s`` and ``tflops_per_s`` are totals over all ranks. ``utilisation`` is a
        fraction of the devices' peak. ``data_wait`` is the fraction of time that this rank spent waiting for data. Unknown rates
        are omitted.
        """
        if self.since is None or self.until <= self.since:
            return {}
        seconds = self.until - self.since
        per_s = {name: getattr(self.work, name) / seconds for name in WORK}
        tflops = per_s.pop("flops") / 1e12
        rates = {f"{name}_per_s": rate for name, rate in per_s.items()} | {"tflops_per_s": tflops}
        if self.peak_tflops is not None:
            rates["utilisation"] = tflops / self.devices / self.peak_tflops
        rates["data_wait"] = self.data_wait_s / seconds
        self.since, self.work, self.data_wait_s = self.until, Work(), 0.0
        return {name: rate for name, rate in rates.items() if not math.isnan(rate)}


class Reporter:
    """Reads the values of a step, updates the metrics and the progress bar, and stops a run if too many steps are not finite.

    Args:
        config: the config section ``train``.
        steps: number of steps of the run.
        device: device that the run uses.
        tally: counters of the run, which are updated.
        trained: the model, whose learning rates and frozen parts are reported. Its weights are read only after a non-finite step.
        folder: folder of the run.
        metrics: log of the metrics; None on ranks that write nothing.
        progress: progress bar.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        steps: int,
        device: torch.device,
        tally: Tally,
        trained: TrainedModel,
        folder: Path,
        metrics: MetricsLog | None,
        progress: Any,
    ):
        self.config, self.steps, self.tally, self.trained = config, steps, tally, trained
        self.folder, self.metrics, self.progress = folder, metrics, progress
        peak = config.peak_tflops or peak_of(device, config.precision)
        self.throughput = Throughput(distributed.world_size(), peak, config.slow_steps)
        self.watch = Watch(tally.elapsed_s)
        self.clock = time.perf_counter()
        self.has_finite_step = self.has_checked_weights = False
        self.stop_requested = False
        """True once any rank was asked to stop. All ranks see this after the same step."""

    def __call__(self, pending: PendingStep) -> None:
        """Reports a step."""
        values, now = pending.read(), pending.enqueued_s
        self.tally.elapsed_s += now - self.clock
        self.clock = now
        self.throughput.add(values.work, now, pending.data_wait_s)
        self.progress.update(1)
        self.tally.last_step = pending.step
        self.stop_requested = self.stop_requested or values.stop_requested
        if values.not_finite:
            self._not_finite(pending, values)
            return
        self.has_finite_step = True
        self.watch.losses.append(values.metrics["loss"])
        if pending.step % self.config.log_every == 0 or pending.step == self.steps:
            self._log(pending.step, values)

    def _log(self, step: int, values: StepValues) -> None:
        """Writes a line of metrics, and updates the progress bar.

        Raises:
            UserError: if no loss scale of fp16 is small enough.
        """
        if values.loss_scale is not None and values.loss_scale < 1:
            raise UserError(
                f"step {step}: fp16 gradients overflow at every loss scale", remedy="use train.precision=bf16"
            )
        rates = {f"lr/{name}": rate for name, rate in self.trained.learning_rates(step - 1).items()}
        speed = self.throughput.rates()
        elapsed_s = self.tally.elapsed_s
        ranks = self.watch.line(step, values.times, speed, self.trained.freeze.frozen_at(step - 1), elapsed_s)
        if self.metrics:
            self.metrics.write({"step": step, **values.logged, **rates, **speed, **ranks, "elapsed_s": elapsed_s})
        self.progress.set_postfix_str(_short(values.logged, speed))

    def exclude(self, seconds: float) -> None:
        """Excludes time that was not spent training."""
        self.clock += seconds
        self.throughput.exclude(seconds)

    def _not_finite(self, pending: PendingStep, values: StepValues) -> None:
        """Counts a skipped step. If too many steps were skipped, or the weights are not finite, saves the batch and raises an
        error.

        All ranks read the same flag, so all ranks call this method, and no rank raises before every rank has saved its batch.

        Raises:
            UserError: if more than ``train.max_skipped_steps`` steps were skipped, or if the weights themselves are not finite,
                so that no later step could be finite.
        """
        self.tally.skipped += 1
        losses = ", ".join(f"{name} {value:.4g}" for name, value in values.metrics.items())
        too_many = self.tally.skipped > self.config.max_skipped_steps
        bad_weights = self._describe_bad_weights() if too_many or not self.has_checked_weights else None
        if not too_many and not bad_weights:
            logger.warning(
                SkippedStep(
                    step=pending.step, losses={name: finite_or_none(value) for name, value in values.metrics.items()}
                )
            )
            return
        file = save_bad_batch(self.folder, pending.step, pending.micro_batches)
        records = [record for batch in pending.micro_batches for record in getattr(batch, "records", ())]
        ranks = distributed.gather_objects((values.local_not_finite, str(file), records))
        # A gradient can overflow although all losses are finite. In this case, any rank may have caused the overflow.
        suspects = [rank for rank in ranks if rank[0]] or ranks
        _, path, names = suspects[0]
        shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
        cause, remedy = "the weights were not updated", "set train.max_skipped_steps to skip such steps"
        if bad_weights:
            cause = f"the weights contain non-finite values ({bad_weights}); {self._describe_rate(pending.step)}"
            remedy = (
                "lower optim.lr or increase schedule.warmup_steps, and start from finite weights: an earlier step or "
                "another init"
            )
        elif pending.step <= FIRST_STEPS or not self.has_finite_step:
            cause += f"; this early in a run, the learning rate may be too high: {self._describe_rate(pending.step)}"
            remedy = (
                "lower optim.lr or increase schedule.warmup_steps, or inspect the records; train.max_skipped_steps "
                "skips such steps"
            )
        raise UserError(
            f"step {pending.step}: a loss or gradient is not finite ({losses}); {cause}; records: {shown}; batch "
            f"saved to {path}",
            remedy=remedy,
        )

    def _describe_bad_weights(self) -> str | None:
        """Describes the weights that are not finite; returns None if all weights are finite. Waits for the device."""
        self.has_checked_weights = True
        named = [(name, weight.detach()) for name, weight in self.trained.model.named_parameters()]
        bad_weights = [name for name, weight in named if not bool(full_tensor(weight.isfinite().all()))]
        return f"{len(bad_weights)} of {len(named)} tensors, first {bad_weights[0]}" if bad_weights else None

    def _describe_rate(self, step: int) -> str:
        """Describes the maximum learning rate of a step and of the run."""
        now = max(self.trained.learning_rates(step - 1).values())
        peak = max(max(self.trained.learning_rates(index).values()) for index in range(self.steps))
        return f"learning rate {now:.3g}, peak {peak:.3g}"


def save_bad_batch(folder: Path, step: int, micro_batches: list[Any]) -> Path:
    """Saves the micro-batches of a step as plain dictionaries of tensors, which ``torch.load(..., weights_only=True)`` can
    read."""
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


def _short(values: dict[str, float], speed: dict[str, float]) -> str:
    """Formats losses and rates for the progress bar, with abbreviated names."""
    shown = []
    for name, value in values.items():
        stream, _, term = name.partition("/")
        short = f"{''.join(part[:3] for part in stream.split('_'))}.{term[:5]}" if term else name
        shown += [] if name == "grad_norm" else [f"{short} {value:.2f}"]
    forms = {"samples_per_s": "{:.3g} samples/s", "tflops_per_s": "{:.3g} TFLOP/s", "utilisation": "{:.0%} of peak"}
    if speed.get("data_wait", 0) >= MIN_SHOWN_DATA_WAIT:
        forms["data_wait"] = "{:.0%} waiting for data"
    return " ".join([*shown, *(form.format(speed[name]) for name, form in forms.items() if name in speed)])
