"""Finds the largest micro-batch of a config that fits, and splits the global batch into ranks and micro-batches."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from dataset.text.loading import load_tokenizer
from engine.chunks import check_chunks
from engine.memory import AVERAGE, FakeSteps, StepMemory
from engine.real_steps import RealSteps, ran_out_of_memory
from tasks.kinds import choose
from tools.plan.search import largest_that_fits, share_out
from tools.plan.synthetic import batch_sizes, scaled, synthetic_batch
from tools.plan.table import Plan, Setting
from tools.plan.target import CONTEXT, FRAGMENTS, Target
from utils.config import load_config
from utils.errors import UserError

OUTSIDE = "outside torch's allocator"


class Planner:
    """Plans a run of a config: measures its steps on a GPU, or estimates them.

    Args:
        arguments: the flags of :func:`tools.plan.command.arguments_of`.

    Raises:
        UserError: if the config or its task cannot be planned, or the GPU lacks memory or the precision.
    """

    def __init__(self, arguments: argparse.Namespace):
        choice = choose(arguments.config, arguments.overrides, arguments.task)
        self.arguments, self.path = arguments, choice.config
        schema, self.task = choice.load()
        self.config: Any = load_config(self.path, arguments.overrides, schema)
        self.leading = next(iter(batch_sizes(self.config).values()))
        """Examples of the leading stream in a micro-batch of the config."""
        self.target = Target(arguments, self.config.train)
        self.global_batch = self._global_batch()
        self.vocabulary = self._vocabulary()
        with torch.device("meta"):
            self.meta_model = self._build()
        if frozen := self.config.optim.frozen.frozen_for_good:
            self.meta_model.set_frozen(frozen)
        self.steps = self._make_steps()
        self.memories: dict[int, dict[str, int] | None] = {}
        """Memory of a step by the examples of its micro-batch; None: it does not fit."""

    def plan(self) -> Plan:
        """The plan.

        Raises:
            UserError: if not even one example fits, the GPUs do not divide the data's lanes, or ``train.compile`` or
                ``model.contrastive.chunks`` do not allow the necessary accumulation.
        """
        gpus, train = self.arguments.gpus, self.config.train
        self.config.data.check_ranks(gpus)
        largest = largest_that_fits(self._cost, self.target.memory, self.leading)
        if largest == 0:
            self._refuse_memory()
        size, accumulation = share_out(self.global_batch, gpus, largest)
        if accumulation > 1 and train.records_graphs:
            raise UserError(
                f"train.compile = {train.compile}: takes one micro-batch per step, and of the "
                f"{math.ceil(self.global_batch / gpus):,} examples of a GPU {largest:,} fit; plan train.compile=true, "
                f"more --gpus, or --global-batch {largest * gpus}"
            )
        check_chunks(self.config.model.chunks, accumulation)
        total = size * gpus * accumulation
        chosen = self._setting(size, accumulation)
        derived = {"train.accumulate": accumulation} if train.global_batch is None else {"train.global_batch": total}
        return Plan(
            config=str(self.path),
            gpus=gpus,
            memory_gb=self.target.memory / 1e9,
            precision=train.precision,
            measured_on=self.target.product if self.target.measures else None,
            global_batch=total,
            asked_batch=self.global_batch,
            largest=self._setting(largest, 1),
            chosen=chosen,
            overrides={**chosen.sizes, **derived},
            steps=self._steps_of_run(total),
            assumptions=self._assumptions(),
        )

    def _cost(self, examples: int) -> float:
        """Bytes of a step on a micro-batch; infinite if it does not fit."""
        memory = self._memory(examples)
        return math.inf if memory is None else sum(memory.values())

    def _memory(self, examples: int) -> dict[str, int] | None:
        if examples not in self.memories:
            accumulates = self.global_batch > examples and not self.config.train.records_graphs
            gradients_stay = self.arguments.gpus > 1 or accumulates
            memory = self.steps.memory(self._batch(examples), gradients_stay=gradients_stay)
            self.memories[examples] = None if memory is None else self._with_overhead(memory)
        return self.memories[examples]

    def _with_overhead(self, memory: StepMemory) -> dict[str, int]:
        uses = asdict(memory)
        if self.config.optim.ema is None:
            del uses[AVERAGE]
        if isinstance(self.steps, RealSteps):
            return {**uses, OUTSIDE: self.steps.outside() + self.target.communication}
        outside = CONTEXT + self.target.communication
        return {**uses, "fragments": int(FRAGMENTS * memory.total), OUTSIDE: outside}

    def _refuse_memory(self) -> None:
        needed = self._cost(1)
        fact = f"needs {needed / 1e9:.1f} GB" if math.isfinite(needed) else "does not fit"
        raise UserError(
            f"--memory {self.target.memory / 1e9:g}: a micro-batch of one example {fact}; take smaller images "
            "(model.vision.image_size), a smaller model or a larger GPU"
        )

    def _setting(self, examples: int, accumulation: int) -> Setting:
        memory = self._memory(examples)
        assert memory is not None
        work = self.meta_model.work(self._batch(examples)(self.meta_model))
        seconds, has_flops = self._seconds(examples, work.flops), not math.isnan(work.flops)
        return Setting(
            sizes=batch_sizes(scaled(self.config, examples)),
            accumulation=accumulation,
            memory=memory,
            step_s=None if seconds is None else seconds * accumulation,
            samples_per_s=None if seconds is None else work.samples * self.arguments.gpus / seconds,
            tflop_per_gpu=work.flops * accumulation / 1e12 if has_flops else None,
        )

    def _seconds(self, examples: int, flops: float) -> float | None:
        """Time of a step on a micro-batch in seconds; None: unknown."""
        if isinstance(self.steps, RealSteps):
            return self.steps.seconds(self._batch(examples))
        return None if math.isnan(flops) else self.target.seconds(flops)

    def _make_steps(self) -> RealSteps | FakeSteps:
        """The source of memory and time: real steps on this GPU, or fake ones."""
        train, optim, target = self.config.train, self.config.optim, self.target
        if not target.measures:
            return FakeSteps(self._build, train, optim, as_on_gpu=True)
        assert target.device is not None
        try:
            return RealSteps(self._build, train, optim, target.device, target.memory - target.communication)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise UserError(
                f"--memory {target.memory / 1e9:g}: not even the weights fit; take a smaller model or a larger GPU"
            ) from None

    def _build(self) -> Any:
        return self.task.build_model(self.config, self.vocabulary)

    def _batch(self, examples: int) -> Callable[[Any], Any]:
        config = scaled(self.config, examples)
        return lambda model: synthetic_batch(config, model)

    def _global_batch(self) -> int:
        """Examples of the leading stream per step, from the command line, ``train.global_batch``, or the config's sizes."""
        train, flag = self.config.train, self.arguments.global_batch
        return flag or train.global_batch or self.leading * (train.accumulate or 1) * self.arguments.gpus

    def _vocabulary(self) -> int | None:
        """Size of the tokenizer's vocabulary; None if the config sets the size."""
        text = self.config.model.text
        return None if text.knows_vocabulary else len(load_tokenizer(text.encoder))

    def _steps_of_run(self, total: int) -> int | None:
        train, records = self.config.train, self.arguments.records
        return train.steps if train.steps is not None or records is None else train.steps_of(records, total)

    def _assumptions(self) -> list[str]:
        train = self.config.train
        lines = [
            "texts of maximum length; no time for data or for the network between GPUs",
            *self.target.assumptions(),
        ]
        if thawed := self.config.optim.frozen.thawed:
            names, last = ", ".join(thawed), max(thawed.values())
            lines.append(
                f"steps as after step {last:,}, when optim.freeze has ended for {names}; earlier ones take less"
            )
        if train.recompute and not self.target.measures:
            lines.append(f"no time for recomputation (train.recompute: {', '.join(train.recompute)})")
        if train.compile and not self.target.measures:
            lines.append("memory and time as without train.compile")
        return lines
