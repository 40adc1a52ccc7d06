"""Determines the status of a run from the run's folder. The status is shown in a terminal or read by scripts."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint import CHECKPOINTS, fault_of, list_checkpoints
from tools.runs.names import is_loss
from tools.runs.reading import Run
from tools.runs.series import Point, Series
from utils.events import Resumed

RECENT = 20
"""Number of newest lines of metrics that count as recent."""
MIN_LINES = 3
"""Minimum number of recent lines, and of lines before them, from which a trend is computed."""
LOSS_CURVE_POINTS = 40
"""Number of positions at which the loss is sampled over the run."""


@dataclass(frozen=True)
class Rate:
    """A rate of training. Unknown values are None."""

    steps_per_s: float | None = None
    samples_per_s: float | None = None


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes:
        last: last logged value.
        mean: mean of the recent lines.
        before: mean of the same number of lines before the recent lines.
        trend: falling, rising or level; None if too few lines were logged.
    """

    last: float
    mean: float
    before: float | None
    trend: str | None


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint.

    Attributes:
        fault: what is wrong with the checkpoint, or None if no fault was found.
        hashed: whether the checkpoint's hashes were checked.
    """

    step: int
    age_s: float
    bytes: int
    fault: str | None
    hashed: bool


@dataclass(frozen=True)
class Validation:
    """The last validation pass.

    Attributes:
        metric: the metric that selects weights; None if no event names it.
        best: the best value of this metric.
        before: if the last pass of a finished run was the best, the best value before it.
    """

    step: int
    values: dict[str, float]
    metric: str | None
    value: float | None
    best: float | None
    best_step: int | None
    before: float | None


@dataclass(frozen=True)
class Kept:
    """A split that was measured with the starting and with the final weights (``evaluation.keep``).

    Attributes:
        metric: the metric that selects weights, or the first metric if the split does not have that metric.
        before: the value with the weights from which the run started.
    """

    split: str
    metric: str
    before: float
    value: float


@dataclass(frozen=True)
class Ranks:
    """The times that the ranks take for their own work in a step, according to the last line of metrics.

    Attributes:
        slowest: the slowest rank.
        slowest_s: time that the slowest rank takes.
        data_s: the part of ``slowest_s`` that the slowest rank spends waiting for data.
        median_s: median time of the other ranks.
        share: fraction of the recent lines in which the same rank was the slowest.
    """

    slowest: int
    slowest_s: float
    data_s: float
    median_s: float
    share: float


@dataclass(frozen=True)
class Status:
    """The status of a run. Values that are None or empty are unknown.

    Attributes:
        left_s: time for the remaining steps.
        elapsed_s: time spent on the finished steps.
        quiet_s: time since the last write.
        healthy: whether nothing is wrong with the run.
        loss_curve: the loss over the whole run.
        broken: number of broken records by kind; a number is None if the records have not been counted yet.
        stops: the stops, with their times.
        warnings: the newest warnings, with their times.
        remarks: files that could not be read.
    """

    name: str
    folder: str
    task: str | None
    state: str
    healthy: bool
    text: str
    step: int
    steps: int | None
    recent: Rate
    overall: Rate
    elapsed_s: float | None
    left_s: float | None
    started: str | None
    quiet_s: float
    losses: dict[str, Loss]
    loss_curve: list[Point]
    validation: Validation | None
    kept: list[Kept]
    checkpoints: list[SavedStep]
    data_wait: float | None
    ranks: Ranks | None
    records: str | None
    broken: dict[str, int | None]
    starts: int
    resumed: int
    skipped_steps: int
    stops: list[tuple[str, str]]
    warning_count: int
    warnings: list[tuple[str, str]]
    remarks: list[str]


def status_of(run: Run, hashes: bool = False) -> Status:
    """Returns the status of a run.

    Args:
        hashes: whether to verify the hashes of the run's checkpoints, which reads all their bytes.
    """
    series, history, step = run.metrics.series, run.history, run.step or 0
    recent, overall = _rates(series)
    elapsed = series.get("elapsed_s")
    left = max(0, run.steps - step) if run.steps else None
    speed = recent.steps_per_s or overall.steps_per_s
    return Status(
        name=run.name,
        folder=str(run.folder),
        task=run.task,
        state=run.state.name,
        healthy=run.state.healthy,
        text=run.state.text,
        step=step,
        steps=run.steps,
        recent=recent,
        overall=overall,
        elapsed_s=_last(elapsed),
        left_s=left / speed if left is not None and speed else None,
        started=history.started,
        quiet_s=run.quiet_s,
        losses=_losses(series),
        loss_curve=_loss_curve(series.get("loss")),
        validation=_validation(run),
        kept=_kept(run),
        checkpoints=_checkpoints(run.folder / CHECKPOINTS, hashes),
        data_wait=_mean_of_recent(series.get("data_wait")),
        ranks=_ranks(series),
        records="; ".join(history.shares()) or None,
        broken={each.reason: each.count for each in history.reasons},
        starts=history.starts,
        resumed=history.resumed,
        skipped_steps=len(history.skipped_steps),
        stops=[
            (time, str(event).partition("\n")[0])
            for time, event in history.stops_and_resumptions
            if not isinstance(event, Resumed)
        ],
        warning_count=history.warning_count,
        warnings=list(history.newest_warnings),
        remarks=run.remarks,
    )


def _rates(series: dict[str, Series]) -> tuple[Rate, Rate]:
    """Returns the rates over the recent lines and over the whole run, excluding validation passes."""
    elapsed = series.get("elapsed_s")
    if elapsed is None or elapsed.last is None:
        return Rate(), Rate()
    samples = _mean_of_recent(series.get("samples_per_s"))
    overall = _ratio(elapsed.last[0], elapsed.last[1])
    points = list(elapsed.newest)[-RECENT - 1 :]
    recent = _ratio(points[-1][0] - points[0][0], points[-1][1] - points[0][1])
    per_step = samples / recent if samples is not None and recent else None
    return Rate(recent, samples), Rate(overall, per_step * overall if per_step is not None and overall else None)


def _ratio(steps: float, seconds: float) -> float | None:
    return steps / seconds if seconds > 0 and steps > 0 else None


def _losses(series: dict[str, Series]) -> dict[str, Loss]:
    """Returns the losses, with the total loss first."""
    names = sorted((name for name in series if is_loss(name)), key=lambda name: name != "loss")
    return {name: loss for name in names if (loss := loss_of(series[name])) is not None}


def loss_of(series: Series) -> Loss | None:
    """Returns a loss and its trend. A loss is falling or rising if the mean of the recent lines and the mean of the same number
    of lines before them differ by more than two standard errors."""
    if series.last is None:
        return None
    values = [value for _, value in series.newest]
    count = min(RECENT, len(values) // 2)
    now = values[-count:] if count else values[-1:]
    mean = statistics.fmean(now)
    if count < MIN_LINES:
        return Loss(series.last[1], mean, None, None)
    earlier = values[-2 * count : -count]
    before = statistics.fmean(earlier)
    error = math.sqrt((statistics.variance(now) + statistics.variance(earlier)) / count)
    trend = "level" if abs(mean - before) <= 2 * error else "falling" if mean < before else "rising"
    return Loss(series.last[1], mean, before, trend)


def _loss_curve(loss: Series | None) -> list[Point]:
    """Returns the loss at up to :data:`LOSS_CURVE_POINTS` positions over the whole run, and its last value."""
    if loss is None or loss.last is None:
        return []
    every = math.ceil(len(loss.buckets) / LOSS_CURVE_POINTS)
    means = [bucket.mean for bucket in loss.buckets[::every]]
    return [*((round(step), value) for step, value in means if step < loss.last[0]), loss.last]


def _validation(run: Run) -> Validation | None:
    series, step = run.validation.series, run.validation.last_step
    if step is None or not series:
        return None
    values = {name: one.last[1] for name, one in series.items() if one.last is not None and one.last[0] == step}
    metric = run.history.selection_metric if run.history.selection_metric in series else None
    best = max((bucket.high for bucket in series[metric].buckets), key=lambda point: point[1]) if metric else None
    return Validation(
        step,
        values,
        metric,
        values.get(metric) if metric else None,
        best[1] if best else None,
        int(best[0]) if best else None,
        run.history.improvement.before if run.history.improvement else None,
    )


def _kept(run: Run) -> list[Kept]:
    found = []
    for split, evaluation in run.evaluation.items():
        selecting = evaluation.get(run.history.selection_metric or "")
        metrics = [metric for metric in (selecting, *evaluation.metrics) if metric is not None]
        metric = next((metric for metric in metrics if metric.before is not None), None)
        if metric is not None and metric.before is not None:
            found.append(Kept(split, metric.name, metric.before, metric.value))
    return found


def _checkpoints(folder: Path, hashes: bool) -> list[SavedStep]:
    """Returns the existing checkpoints, oldest first. A checkpoint may be removed while it is being checked."""
    saved = []
    for checkpoint in list_checkpoints(folder):
        try:
            files = [entry.stat() for entry in checkpoint.folder.rglob("*") if entry.is_file()]
            age_s = time.time() - checkpoint.folder.stat().st_mtime
        except OSError:
            continue
        size = sum(file.st_size for file in files)
        saved.append(SavedStep(checkpoint.step, age_s, size, fault_of(checkpoint.folder, hashes=hashes), hashes))
    return saved


def _ranks(series: dict[str, Series]) -> Ranks | None:
    """Returns the times of the ranks in the last line, or None if the line has no times, for example because the run was resumed
    with one rank."""
    ranks, newest = series.get("ranks/slowest"), series.get("elapsed_s")
    if ranks is None or ranks.last is None or (newest and newest.last and newest.last[0] > ranks.last[0]):
        return None
    names = ("slowest", "slowest_s", "slowest_data_s", "median_s")
    slowest, slowest_s, data_s, median_s = (_last(series.get(f"ranks/{name}")) for name in names)
    if slowest is None or slowest_s is None or median_s is None:
        return None
    numbers = _recent(ranks)
    return Ranks(int(slowest), slowest_s, data_s or 0.0, median_s, numbers.count(slowest) / len(numbers))


def _recent(series: Series | None) -> Sequence[float]:
    return [value for _, value in list(series.newest)[-RECENT:]] if series is not None else []


def _mean_of_recent(series: Series | None) -> float | None:
    values = _recent(series)
    return statistics.fmean(values) if values else None


def _last(series: Series | None) -> float | None:
    return series.last[1] if series is not None and series.last is not None else None
