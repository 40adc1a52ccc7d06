"""Computes the plan of a run on a given number of ranks: the number of micro-batches per step, and the number of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from batches import BatchSize
from engine.config import TrainConfig
from optim.config import OptimConfig
from scheduler import ScheduleConfig, build_schedule
from utils.errors import UserError


class TrainingData(Protocol):
    """The properties of training data that the plan of a run depends on."""

    @property
    def records_per_batch(self) -> int:
        """Number of records of the leading stream (see :class:`Loader`) that a rank reads for a micro-batch."""

    @property
    def micro_batch(self) -> BatchSize:
        """Size of a micro-batch. Used only if the config sets ``train.global_batch``."""

    def check_ranks(self, ranks: int) -> None:
        """Raises :class:`UserError` if the data cannot be distributed over this number of ranks."""


@dataclass(frozen=True)
class RunPlan:
    """The sizes of a run on a given number of ranks. The leading stream is the type of training data whose records define
    the epoch and the batch size.

    Attributes:
        ranks: number of processes.
        accumulation: micro-batches per step and rank.
        chunks: number of micro-batches of a rank over which the contrastive loss is computed.
        records_per_step: records of the leading stream in a step, over all ranks.
        epoch_size: records of the leading stream in an epoch; None before the data are read.
        steps: optimiser steps of the run; None if the config sets epochs and the data have not been read yet.
        validate_every: steps between validation passes; None if the config does not set this number and the data have not been
            read yet.
    """

    ranks: int
    accumulation: int
    chunks: int
    records_per_step: int
    epoch_size: int | None
    steps: int | None
    validate_every: int | None

    @property
    def epochs(self) -> float:
        """Number of passes over the leading stream. The data must have been read."""
        assert self.steps is not None and self.epoch_size is not None
        return self.steps * self.records_per_step / self.epoch_size

    @staticmethod
    def of(
        train: TrainConfig,
        data: TrainingData,
        *,
        chunks: int | Literal["step"],
        ranks: int,
        accumulation: int | None = None,
    ) -> RunPlan:
        """Plans the steps of a run, before its data are read. :meth:`with_length` adds the number of steps.

        Args:
            train: the config section ``train``.
            data: the config section ``data``, or a loader.
            chunks: ``model.contrastive.chunks``.
            ranks: number of processes.
            accumulation: micro-batches per step and rank; if None, they are derived from ``train``.

        Raises:
            UserError: if the global batch, the chunks or ``lanes`` (the number of parts into which the data are split with
                ``order: blocks``) cannot be divided as required.
        """
        data.check_ranks(ranks)
        if accumulation is None:
            if train.global_batch is None:
                accumulation = train.accumulate or 1
            else:
                graphs = train.compile if isinstance(train.compile, str) else None
                accumulation = _accumulation_of(train.global_batch, data.micro_batch, ranks, graphs)
        records = data.records_per_batch * accumulation * ranks
        return RunPlan(
            ranks, accumulation, chunks_in(chunks, accumulation), records, None, train.steps, train.validate_every
        )

    def with_length(
        self, train: TrainConfig, optim: OptimConfig, schedule: ScheduleConfig, epoch_size: int | None
    ) -> RunPlan:
        """Completes the plan with the number of steps, and checks that the warm-up and each freeze end before the run.

        Args:
            train, optim, schedule: sections of the config.
            epoch_size: records of the leading stream in an epoch; if None, the data have not been read yet, and the number of
                steps is known only if the config sets it.

        Raises:
            UserError: if the warm-up or a freeze is longer than the run.
        """
        plan = self
        if epoch_size is not None:
            validate_every = train.validate_every or math.ceil(epoch_size / self.records_per_step)
            steps = steps_of(train, epoch_size, self.records_per_step)
            plan = replace(self, epoch_size=epoch_size, steps=steps, validate_every=validate_every)
        if plan.steps is not None:
            build_schedule(schedule, plan.steps)
            optim.frozen.check_steps(plan.steps)
        return plan


def steps_of(train: TrainConfig, epoch_size: int, records_per_step: int) -> int:
    """Returns the number of optimiser steps of a run, rounded up. ``epoch_size`` and ``records_per_step`` count records of the
    leading stream."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    # Rounded, because 0.07 * 100 is slightly more than 7 in floating point.
    return max(1, math.ceil(round(train.epochs * epoch_size / records_per_step, 6)))


def chunks_in(chunks: int | Literal["step"], accumulation: int) -> int:
    """Returns the number of micro-batches of a rank over which the contrastive loss is computed (``model.contrastive.chunks``).

    Raises:
        UserError: if this number does not divide the number of micro-batches per step and rank.
    """
    if chunks == "step":
        return accumulation
    if accumulation % chunks:
        divisors = [str(number) for number in range(1, accumulation + 1) if accumulation % number == 0]
        valid = f"one of {', '.join(divisors)}" if len(divisors) > 1 else "1"
        batches = "1 micro-batch" if accumulation == 1 else f"{accumulation} micro-batches"
        raise UserError(
            f"model.contrastive.chunks = {chunks}: does not divide the accumulation, {batches} per step and rank",
            remedy=f"set it to {valid} or to step, or change train.global_batch, train.accumulate or the micro-batch",
        )
    return chunks


def _accumulation_of(global_batch: int, micro_batch: BatchSize, ranks: int, graphs: str | None) -> int:
    """Returns the number of micro-batches per step and rank, from ``global_batch = micro-batch x ranks x accumulation``.

    Args:
        global_batch: ``train.global_batch``.
        micro_batch: size of a micro-batch.
        ranks: number of processes.
        graphs: the mode of ``train.compile`` if it captures CUDA graphs, which allow only one micro-batch per step; otherwise
            None.

    Raises:
        UserError: if the global batch is not divisible. The message suggests the nearest sizes that work.
    """
    per_pass = micro_batch.size * ranks
    count, rest = divmod(global_batch, per_pass)
    if not rest and (count == 1 or graphs is None):
        return count
    on_ranks = f"{micro_batch.key} = {micro_batch.size} on {ranks} {'rank' if ranks == 1 else 'ranks'}"
    sizes = _micro_batch_sizes(global_batch, micro_batch.size, ranks, single=graphs is not None)
    remedies = [f"{micro_batch.key} to {_alternatives(sizes)}"] if sizes else []
    if graphs is not None:
        problem = (
            f"must be one micro-batch on each rank, since train.compile = {graphs} captures CUDA graphs, which rule "
            "out accumulation"
        )
        remedies.append(f"train.global_batch to {per_pass}")
        remedies += [] if rest else ["train.compile to true"]
    else:
        problem = f"not a multiple of {per_pass}"
        below = global_batch - rest
        remedies.append(f"train.global_batch to {_alternatives([size for size in (below, below + per_pass) if size])}")
    raise UserError(
        f"train.global_batch = {global_batch}: {problem} ({on_ranks})", remedy=f"set {', or '.join(remedies)}"
    )


def _micro_batch_sizes(global_batch: int, size: int, ranks: int, *, single: bool) -> list[int]:
    """Suggests sizes of a micro-batch: the divisors of the number of examples per rank and step that are closest to ``size``.
    With ``single``, a step has only one micro-batch, so the only possible size is this number."""
    per_rank, rest = divmod(global_batch, ranks)
    if rest or not per_rank:
        return []
    if single:
        return [per_rank]
    divisors = [candidate for candidate in range(1, per_rank + 1) if per_rank % candidate == 0]
    smaller = [divisor for divisor in divisors if divisor < size][-1:]
    return smaller + [divisor for divisor in divisors if divisor > size][:1]


def _alternatives(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
