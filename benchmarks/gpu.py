"""A step of pre-training on a GPU, split into its phases: ``python -m benchmarks.gpu``, or with ``torchrun``."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch

from batches.losses import Work
from benchmarks.harness import write_results
from benchmarks.plain_path import Padding, plain_losses, why_not_plain
from benchmarks.step_config import (
    CONFIG,
    SMALL,
    batches_for,
    build,
    config_for,
    describe_other_steps,
    describe_step,
)
from engine.config import TrainConfig
from engine.devices import peak_of
from launch.torchrun import use_expandable_segments
from tasks.config import PretrainConfig
from tools.plan.synthetic import text_limits
from tools.steps.clock import PHASES
from tools.steps.real import RealSteps, ran_out_of_memory
from utils import distributed
from utils.commands import call
from utils.errors import UserError
from utils.flags import Override, Positive, WrongValueError, read_by

WAYS = ("plain", "eager", "compiled")
"""The ways of computing a step. :func:`main` describes them."""


def padding_of(config: PretrainConfig) -> Padding:
    """Returns the padding for the way "plain": as in the authors' code, texts are padded to the maximum numbers of tokens in the
    config."""
    return Padding(*(text_limits(config.data, stream).max_tokens for stream in ("images", "translations")))


def supported_ways(config: PretrainConfig, ways: Sequence[str]) -> list[str]:
    """Returns the ways that support the config, and prints a line for each way that does not.

    Raises:
        UserError: if no way supports the config.
    """
    with torch.device("meta"):
        why = why_not_plain(build(config))
    if why is None or "plain" not in ways:
        return list(ways)
    others = [way for way in ways if way != "plain"]
    if not others:
        raise UserError(
            f"--ways plain: plain does not support this config ({why})", remedy="pass --ways eager,compiled"
        )
    _print(f"plain: skipped because it does not support this config ({why})")
    return others


class Timing(NamedTuple):
    """Settings for timing a way of computing a step.

    Attributes:
        rounds: number of timed steps.
        warm_up: number of steps before timing; if None, :func:`_warm_up` computes it.
        small: True for a smoke test.
    """

    rounds: int
    warm_up: int | None
    small: bool


def attempt(way: str, config: PretrainConfig, timing: Timing, device: torch.device) -> dict[str, Any] | None:
    """Calls :func:`measure`. If memory runs out, prints a line and returns None. Since batches have the same size on all ranks,
    either all ranks run out of memory or none does."""
    try:
        return measure(way, config, timing, device)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
    _print(f"{way}: out of memory")
    return None


def measure(way: str, config: PretrainConfig, timing: Timing, device: torch.device) -> dict[str, Any]:
    """Measures one way, prints its line, and returns its results: rates over all ranks, and FLOPs per rank."""
    torch.manual_seed(0)
    model = build(config)
    if way == "plain":
        model.forward = partial(plain_losses, model, padded=padding_of(config))  # type: ignore[method-assign]
    train = train_of(way, config.train)
    accumulation = config.model_copy(update={"train": train}).plan(distributed.world_size()).accumulation
    runner = RealSteps(model, train, config.optim, device)
    batches = batches_for(config, model, static=bool(train.compile))
    if device.type != "cpu":
        batches = [batch.pin_memory() for batch in batches]
    endless = itertools.cycle(batches)

    def milliseconds(count: int, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> list[list[float]]:
        """Takes steps and returns the milliseconds of each phase, indexed by step and phase. The clocks are read after all
        steps, so the host never waits for the device."""
        micro_batches = ([next(endless) for _ in range(accumulation)] for _ in range(count))
        clocks = [runner.clocked(each, context()) for each in micro_batches]
        return [clock.milliseconds() for clock in clocks]

    milliseconds(timing.warm_up or _warm_up(train, timing.small, len(batches)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps = steps_without_sync = milliseconds(timing.rounds)
    if distributed.is_distributed():
        steps_without_sync = milliseconds(timing.rounds, partial(runner.trainer.parallel.synchronised, last=False))
    phases = [statistics.median(column) for column in zip(*steps, strict=True)]
    backward = PHASES.index("backward")
    communication = max(0.0, phases[backward] - statistics.median(step[backward] for step in steps_without_sync))
    step_s = statistics.median(sum(step) for step in steps) / 1000
    work = sum((model.work(batch) for batch in batches), Work())
    factor = accumulation / len(batches)
    work_per_step = Work(samples=work.samples * factor, flops=work.flops * factor)
    return _print_way(way, train, device, work_per_step, (phases, communication, step_s))


def train_of(way: str, train: TrainConfig) -> TrainConfig:
    """Returns the config section ``train`` for a way: only "compiled" compiles, and "plain" uses no gradient checkpointing."""
    changes: dict[str, Any] = {"compile": (train.compile or True) if way == "compiled" else False}
    if way == "plain":
        changes["recompute"] = []
    return train.model_copy(update=changes)


def _warm_up(train: TrainConfig, small: bool, batches: int) -> int:
    """Returns the number of steps before timing: the first round of the batches compiles, a second captures CUDA graphs, and a
    third replays them."""
    if small:
        return batches if train.compile else 1
    return batches * (3 if train.captures_graphs else 2)


def _print_way(
    way: str, train: TrainConfig, device: torch.device, work: Work, times: tuple[list[float], float, float]
) -> dict[str, Any]:
    """Prints the line of a way and returns its results. ``work`` is the mean work in a rank's step."""
    phases, communication, step_s = times
    speed = work.samples * distributed.world_size() / step_s
    tflops = work.flops / step_s / 1e12
    peak = train.peak_tflops or peak_of(device, train.precision)
    split = ", ".join(f"{name} {value:.1f}" for name, value in zip(PHASES, phases, strict=True))
    line = f"{way}: {speed:.1f} samples/s, {1000 * step_s:.1f} ms/step ({split}, communication {communication:.1f})"
    memory_gb = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    if memory_gb is not None:
        line += f", {memory_gb:.1f} GB"
    _print(f"{line}, {_utilisation(tflops, peak)}")
    return {
        "way": way,
        "samples_per_s": speed,
        "milliseconds_per_step": 1000 * step_s,
        "phases": {**dict(zip(PHASES, phases, strict=True)), "communication": communication},
        "memory_gb": memory_gb,
        "tflops_per_s": None if math.isnan(tflops) else tflops,
        "utilisation": tflops / peak if peak and not math.isnan(tflops) else None,
    }


def _utilisation(tflops: float, peak: float | None) -> str:
    if math.isnan(tflops):
        return "utilisation unknown, since the FLOPs of this text encoder are unknown"
    return f"{tflops:.2f} TFLOP/s, " + (
        f"utilisation {100 * tflops / peak:.1f}%"
        if peak
        else "utilisation unknown, since the peak of this device is unknown; set train.peak_tflops"
    )


def _print(line: str) -> None:
    """Prints a line on rank 0, unbuffered."""
    if distributed.rank() == 0:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _clean_up() -> None:
    """Frees the memory that a way used."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def way_names(text: str) -> tuple[str, ...]:
    """Parses the names of ways, which must be distinct and separated by commas."""
    names = text.split(",")
    for name in names:
        if name not in WAYS:
            raise WrongValueError(f"{name!r} is not one of {','.join(WAYS)}")
        if names.count(name) > 1:
            raise WrongValueError(f"{name!r} is repeated")
    return tuple(names)


def main(
    *overrides: Override,
    rounds: Positive = 20,
    warm_up: Positive | None = None,
    config: Path | None = None,
    ways: Annotated[tuple[str, ...], read_by(way_names, n_tokens=1, accepts_keys=False)] = tuple(WAYS),
    small: bool = False,
    json_: Path | None = None,
) -> int:
    """A step of pre-training on a GPU, split into its phases.

    The benchmark runs steps of the trainer (engine.trainer.Trainer.train_step) with the config's streams, precision, optimiser,
    accumulation and train.recompute, in three ways that compute the same losses:

    - plain: the computation of the authors' code (benchmarks.plain_path), without gradient checkpointing, with texts padded to
      the config's maximum;
    - eager: our code, not compiled;
    - compiled: our code, compiled as in train.compile (true if that is false), with texts padded as in the trainer.

    All ways cycle through the same small set of batches. The first line lists the examples of a step. Each way then has a line
    with samples per second; milliseconds of data, forward, backward, optimiser and communication; memory; and utilisation. Data
    is the copy to the device, which overlaps with the previous step in a run. Communication is the time that the all-reduce of
    gradients adds to the backward pass; contrastive embeddings are gathered in parallel with the fusion encoder. Utilisation is
    FLOPs from models.flops over the device's dense peak (train.peak_tflops for unknown devices).

    If a way does not fit into memory, its line says "out of memory". The last line is the ratio of the fastest way to the first;
    the line before it names both ways. Without a GPU, the benchmark runs on the CPU.

    Args:
        overrides: config values, such as data.images.batch_size=64 train.recompute=[vision] train.compile=reduce-overhead.
        rounds: number of timed steps.
        warm_up: number of steps before timing, 4 of which compile (default: 8, with CUDA graphs 12; with --small 1, compiled 4).
        config: YAML file of a pre-training config (default: configs/pretrain/base_4m.yaml).
        ways: ways to measure, in order, separated by commas.
        small: smoke test with a small model and batch; on a CPU, compiling takes minutes (skip it with --ways plain,eager).
        json_: also write the results to a JSON file.

    Examples:
        python -m benchmarks.gpu
    """
    if small and config:
        raise UserError("--small sets the config", remedy="remove --small or --config")
    path, start = SMALL if small else (config or CONFIG, [])
    timing = Timing(rounds, warm_up, small)
    use_expandable_segments()
    values = config_for(path, [*start, *overrides])
    with distributed.process_group() as device:
        if device.type == "cuda":
            _print(f"{torch.cuda.get_device_name(device)}, {values.train.precision}, {path}")
        rows: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        measured = supported_ways(values, ways)
        for line in filter(None, (describe_step(values), describe_other_steps(values))):
            _print(line)
        for way in measured:
            row = attempt(way, values, timing, device)
            if row is None:
                failed.append({"way": way, "failure": "out of memory"})
            else:
                rows.append(row)
            if distributed.rank() == 0:
                write_results(json_, [*rows, *failed])
            _clean_up()
        if not rows:
            key, size = values.data.micro_batch
            raise UserError(
                "all ways ran out of memory", remedy=f"use smaller batches, such as {key}={max(1, size // 2)}"
            )
        first, fastest = rows[0], max(rows, key=lambda row: row["samples_per_s"])
        _print(f"fastest: {fastest['way']}; the ratio is relative to {first['way']}")
        _print(f"ratio: {fastest['samples_per_s'] / first['samples_per_s']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.gpu"))
