"""A step's numbers on their way from the device: read one step late, logged, and the end of a run that is not finite."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.devices import peak_of
from engine.run_folder import MetricsLog
from engine.throughput import Throughput
from engine.train_config import TrainConfig
from utils import distributed
from utils.batch import WORK, Work
from utils.errors import UserError
from utils.files import replacing

TOLD_WAIT = 0.05
"""Share of the time that is waited for data from which on the progress bar says so."""

COMPILING = 8
"""Steps of a run with compiled encoders in which a form of them may still be compiled; they are left out of the rates."""

logger = logging.getLogger(__name__)


RESERVED = frozenset(
    {
        "step",
        "loss",
        "grad_norm",
        "loss_scale",
        "bad",
        "culprit",
        "elapsed_s",
        "utilisation",
        "data_wait",
        "tflops_per_s",
    }
    | {*WORK, *(f"{name}_per_s" for name in WORK)}
)
"""Names of a step's numbers that no loss may have."""


@dataclass
class PendingStep:
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


@dataclass
class Tally:
    """What a run counts over all its parts, and its checkpoints hold."""

    skipped: int = 0
    """Steps left out because a loss or a gradient was not finite."""
    elapsed_s: float = 0.0
    """Time of its steps."""


class Reporter:
    """Reads a step's numbers when they have arrived: metrics, progress bar, and the end of a run whose loss is not finite."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        steps: int,
        device: torch.device,
        tally: Tally,
        learning_rates: Callable[[int], dict[str, float]],
        folder: Path,
        metrics: MetricsLog | None,
        progress: Any,
    ):
        self.config, self.steps, self.tally, self.learning_rates = config, steps, tally, learning_rates
        self.folder, self.metrics, self.progress = folder, metrics, progress
        peak = config.peak_tflops or peak_of(device, config.precision)
        self.throughput = Throughput(distributed.world_size(), peak, COMPILING if config.compile else 1)
        self.clock = time.perf_counter()

    def __call__(self, pending: PendingStep) -> None:
        values, now = pending.read(), pending.at
        self.tally.elapsed_s += now - self.clock
        self.clock = now
        self.throughput.add(Work(*(values.pop(name) for name in WORK)), now, pending.waited_s)
        self.progress.update(1)
        culprit, scale = bool(values.pop("culprit")), values.pop("loss_scale", None)
        if values.pop("bad"):
            self._not_finite(pending, values, culprit)
            return
        if pending.step % self.config.log_every and pending.step != self.steps:
            return
        if scale is not None:
            values["loss_scale"] = scale
            if scale < 1:
                raise UserError(
                    f"step {pending.step}: fp16 gradients overflow at every loss scale; use train.precision=bf16"
                )
        rates = {f"lr/{name}": rate for name, rate in self.learning_rates(pending.step - 1).items()}
        speed = self.throughput.rates()
        if self.metrics:
            self.metrics.write({"step": pending.step, **values, **rates, **speed, "elapsed_s": self.tally.elapsed_s})
        self.progress.set_postfix_str(_short(values, speed))

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self.clock += seconds
        self.throughput.leave_out(seconds)

    def _not_finite(self, pending: PendingStep, values: dict[str, float], culprit: bool) -> None:
        """Count the step, which never reached the weights; stop with everything needed to look into it if it is one too many.

        All ranks read the same flag, so all come here, and none leaves before every batch is saved.
        """
        self.tally.skipped += 1
        losses = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.tally.skipped <= self.config.max_skipped_steps:
            logger.warning("step %d left out: not finite (%s)", pending.step, losses)
            return
        saved = save_bad_batch(self.folder, pending.step, pending.micro_batches)
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
