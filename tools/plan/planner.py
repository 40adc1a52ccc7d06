"""Finds the largest micro-batch of a config that fits, and splits the global batch into ranks and micro-batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch

from dataset.text.loading import load_tokenizer
from engine.config import ShardingConfig
from engine.parallel.choice import gathered_dtype, mesh_of, setting_without_fsdp, state_bytes
from engine.parallel.fsdp import Groups
from engine.run_plan import chunks_in, steps_of
from models.inference.reranking import AligningModel
from optim.setup import set_frozen
from tasks.base import set_up_training
from tasks.binding import BoundRun
from tools.plan.flags import PlanFlags
from tools.plan.scaling import RANKS, Scale, scale_of
from tools.plan.search import divide_batch, largest_that_fits
from tools.plan.synthetic import batch_sizes, scaled, synthetic_batch
from tools.plan.table import Plan, Setting
from tools.plan.target import CONTEXT, FRAGMENTATION, Target
from tools.steps.communication import StepSizes
from tools.steps.fake import AVERAGE, FakeSteps, StepMemory, trainable
from tools.steps.real import RealSteps, ran_out_of_memory
from utils.errors import UserError
from utils.tensors import tensor_bytes

OUTSIDE = "outside torch's allocator"


class Planner:
    """Plans a run of a config: measures its steps on a GPU, or estimates them.

    Args:
        run: the config and its task.
        flags: flags of the command line.

    Raises:
        UserError: if the config or its task cannot be planned, or the GPU lacks memory or the precision.
    """

    def __init__(self, run: BoundRun, flags: PlanFlags):
        self.flags, self.path = flags, run.file
        self.ranks = flags.gpus_per_node * (flags.nodes or 1)
        self.config, self.task = run.config, run.source.load().task
        self.leading = next(iter(batch_sizes(self.config).values()))
        """Number of examples of the leading stream (the first stream of the config) in a micro-batch."""
        self.target = Target(flags, self.config.train)
        self.global_batch = self._global_batch(self.ranks)
        self.vocabulary = self._vocabulary()
        with torch.device("meta"):
            self.unfrozen_model = self._build()
        self.meta_model = copy.deepcopy(self.unfrozen_model)
        if frozen := self.config.optim.frozen.always_frozen:
            set_frozen(self.meta_model, frozen)
        self.needed = state_bytes(self.meta_model, average=self.config.optim.ema is not None)
        self.groups = Groups.of(self.meta_model, gathered_dtype=gathered_dtype(self.config.train))
        self.steps = self._make_steps()
        self.memories: dict[tuple[int, int], dict[str, int] | None] = {}
        """Memory of a step for each micro-batch size and number of ranks; None if the step does not fit."""

    def plan(self) -> Plan:
        """Returns the plan.

        Raises:
            UserError: if not even one example fits, the GPUs do not divide the data's lanes, or ``train.compile`` or
                ``model.contrastive.chunks`` do not allow the necessary accumulation.
        """
        train = self.config.train
        self.config.data.check_ranks(self.ranks)  # raises before the search for the largest micro-batch
        largest = self._largest(self.ranks, self.leading)
        size, accumulation = self._split(self.ranks, largest)
        total = size * self.ranks * accumulation
        chosen = self._setting(size, accumulation, self.ranks)
        derived = {"train.accumulate": accumulation} if train.global_batch is None else {"train.global_batch": total}
        scaling, refused = self._scaling(largest)
        return Plan(
            config=str(self.path),
            gpus=self.ranks,
            nodes=self.flags.nodes,
            memory_gb=self.target.memory / 1e9,
            precision=train.precision,
            measured_on=self.target.product if self.target.measures else None,
            global_batch=total,
            requested_batch=self.global_batch,
            largest=self._setting(largest, 1, self.ranks),
            chosen=chosen,
            overrides={**chosen.sizes, **derived},
            steps=self._steps_of_run(total),
            assumptions=self._assumptions(),
            scaling=scaling,
            refused=refused,
        )

    def _largest(self, ranks: int, start: int) -> int:
        """Returns the largest micro-batch that fits on each of ``ranks`` GPUs; the search begins at ``start`` examples."""
        largest = largest_that_fits(lambda examples: self._cost(examples, ranks), self.target.memory, start)
        if largest == 0:
            self._raise_too_little_memory(ranks)
        return largest

    def _split(self, ranks: int, largest: int) -> tuple[int, int]:
        """Returns the examples in a micro-batch and the accumulation for the global batch on ``ranks`` GPUs."""
        train, total = self.config.train, self._global_batch(ranks)
        size, accumulation = divide_batch(total, ranks, largest)
        if accumulation > 1 and train.captures_graphs:
            raise UserError(
                f"train.compile = {train.compile} allows only one micro-batch per step, but only {largest:,} of the "
                f"{math.ceil(total / ranks):,} examples per GPU fit",
                remedy=f"use train.compile=true, more --gpus, or --global-batch {largest * ranks}",
            )
        self.config.plan(ranks, accumulation=accumulation)
        return size, accumulation

    def _scaling(self, largest: int) -> tuple[list[Scale], dict[int, str]]:
        """With ``--nodes``, returns the step on the requested number of GPUs and on each number in :data:`RANKS`. Unsupported
        numbers of GPUs are returned with the reason.

        Args:
            largest: the largest micro-batch on the requested number of GPUs.
        """
        scales, refused = [], {}
        for ranks in sorted({*RANKS, self.ranks}) if self.flags.nodes else []:
            try:
                scales.append(self._scale(ranks, largest))
            except UserError as error:
                refused[ranks] = str(error)
        return scales, refused

    def _scale(self, ranks: int, known: int) -> Scale:
        """Returns the step on ``ranks`` GPUs.

        Args:
            known: the largest micro-batch on the requested number of GPUs, which is similar for other numbers of GPUs.
        """
        self.config.data.check_ranks(ranks)
        largest, share = known, math.ceil(self._global_batch(ranks) / ranks)
        if ranks != self.ranks:  # no search is needed if all examples of a GPU fit
            fits = share <= known and self._cost(share, ranks) <= self.target.memory
            largest = share if fits else self._largest(ranks, known)
        size, accumulation = self._split(ranks, largest)
        setting = self._setting(size, accumulation, ranks)
        return scale_of(
            self._step_sizes(size, accumulation, ranks),
            ranks,
            size,
            memory=sum(setting.memory.values()),
            step_s=setting.step_s,
            nodes=math.ceil(ranks / self.flags.gpus_per_node),
            network=self.flags.network,
        )

    def _step_sizes(self, examples: int, accumulation: int, ranks: int) -> StepSizes:
        """Returns the sizes that determine the communication of a step."""
        model, config = self.meta_model, self.config.model
        batch = self._batch(examples)(model)
        has_contrastive = isinstance(model, AligningModel)
        return StepSizes(
            gradients=tensor_bytes(trainable(model)),
            losses=len(model.counts(batch)),
            examples=model.compared(batch) if has_contrastive else [],
            embed_dim=config.embed_dim if has_contrastive else 0,
            accumulation=accumulation,
            chunks=chunks_in(config.chunks, accumulation),
            groups=self.groups,
            mesh=self._mesh(ranks),
        )

    def _cost(self, examples: int, ranks: int) -> float:
        """Returns the memory of a step on a micro-batch in bytes, or infinity if the step does not fit."""
        memory = self._memory(examples, ranks)
        return math.inf if memory is None else sum(memory.values())

    def _memory(self, examples: int, ranks: int) -> dict[str, int] | None:
        """Returns the memory in bytes, by purpose, that a step on a micro-batch takes on each of ``ranks`` GPUs, or None if the
        step does not fit."""
        if (examples, ranks) not in self.memories:
            accumulates = self._global_batch(ranks) > examples and not self.config.train.captures_graphs
            gradients_stay = ranks > 1 or accumulates
            mesh = self._mesh(ranks)
            if mesh is None:
                memory = self.steps.memory(self._batch(examples), gradients_stay=gradients_stay, ranks=ranks)
            else:
                memory = self.fake_steps.sharded_memory(
                    self._batch(examples), shard=mesh.shard, gradients_stay=accumulates, ranks=ranks
                )
            self.memories[examples, ranks] = None if memory is None else self._with_overhead(memory, ranks)
        return self.memories[examples, ranks]

    def _mesh(self, ranks: int) -> ShardingConfig | None:
        """Returns the device mesh for FSDP2 on a number of ranks, or None for DDP."""
        return mesh_of(self.config.train, self.config.optim, ranks, self.needed, self.target.memory)[0]

    def _with_overhead(self, memory: StepMemory, ranks: int) -> dict[str, int]:
        uses = asdict(memory)
        if self.config.optim.ema is None:
            del uses[AVERAGE]
        gathered = uses.pop("gathered")
        if self._mesh(ranks) is not None:
            uses["gathered temporarily"] = gathered
        elif isinstance(self.steps, RealSteps):
            return {**uses, OUTSIDE: self.steps.outside() + self.target.communication(ranks)}
        outside = CONTEXT + self.target.communication(ranks)
        return {**uses, "fragmentation": int(FRAGMENTATION * sum(uses.values())), OUTSIDE: outside}

    def _raise_too_little_memory(self, ranks: int) -> None:
        needed = self._cost(1, ranks)
        fact = f"needs {needed / 1e9:.1f} GB" if math.isfinite(needed) else "does not fit"
        unsupported = setting_without_fsdp(self.config.train, self.config.optim)
        can_share = ranks > 1 and self._mesh(ranks) is None and unsupported is None
        shares = "train.parallel=fsdp, " if can_share else ""
        raise UserError(
            f"a micro-batch of one example {fact}",
            where=f"--memory {self.target.memory / 1000000000.0:g}",
            remedy=f"use {shares}smaller images (model.vision.image_size), a smaller model or a larger GPU",
        )

    def _setting(self, examples: int, accumulation: int, ranks: int) -> Setting:
        memory = self._memory(examples, ranks)
        assert memory is not None
        work = self.meta_model.work(self._batch(examples)(self.meta_model))
        seconds, has_flops = self._seconds(examples, work.flops), not math.isnan(work.flops)
        return Setting(
            sizes=batch_sizes(scaled(self.config, examples)),
            accumulation=accumulation,
            memory=memory,
            step_s=None if seconds is None else seconds * accumulation,
            samples_per_s=None if seconds is None else work.samples * ranks / seconds,
            tflop_per_gpu=work.flops * accumulation / 1e12 if has_flops else None,
        )

    def _seconds(self, examples: int, flops: float) -> float | None:
        """Returns the time of a step on a micro-batch in seconds, or None if it is unknown."""
        if isinstance(self.steps, RealSteps):
            return self.steps.seconds(self._batch(examples))
        return None if math.isnan(flops) else self.target.seconds(flops)

    @cached_property
    def fake_steps(self) -> FakeSteps:
        """Estimates steps with fake tensors."""
        return FakeSteps(self.unfrozen_model, self.config.train, self.config.optim, as_on_gpu=True)

    def _make_steps(self) -> RealSteps | FakeSteps:
        """Returns the steps that memory and time are determined with: real steps on this GPU, or steps with fake tensors."""
        train, optim, target = self.config.train, self.config.optim, self.target
        if not target.measures or self._mesh(self.ranks) is not None:  # one GPU cannot measure a sharded model
            return self.fake_steps
        assert target.device is not None
        try:
            torch.manual_seed(0)
            limit = target.memory - target.communication(self.ranks)
            return RealSteps(self._build(), train, optim, target.device, limit)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise UserError(
                "not even the weights fit",
                where=f"--memory {target.memory / 1000000000.0:g}",
                remedy="use a smaller model or a larger GPU",
            ) from None

    def _build(self) -> Any:
        model = self.task.build_model(self.config, self.vocabulary)
        set_up_training(self.config, model)
        return model

    def _batch(self, examples: int) -> Callable[[Any], Any]:
        config = scaled(self.config, examples)
        return lambda model: synthetic_batch(config, model)

    def _global_batch(self, ranks: int) -> int:
        """Returns the number of examples of the leading stream per step, from the command line, ``train.global_batch``, or the
        config's sizes."""
        train, flag = self.config.train, self.flags.global_batch
        return flag or train.global_batch or self.leading * (train.accumulate or 1) * ranks

    def _vocabulary(self) -> int | None:
        """Returns the size of the tokenizer's vocabulary, or None if the config sets the size."""
        text = self.config.model.text
        return None if text.knows_vocabulary else len(load_tokenizer(text.encoder))

    def _steps_of_run(self, total: int) -> int | None:
        train, records = self.config.train, self.flags.records
        return train.steps if train.steps is not None or records is None else steps_of(train, records, total)

    def _assumptions(self) -> list[str]:
        train = self.config.train
        lines = [
            *self._assumptions_of_sharding(),
            "texts of maximum length; excluding the time to load data and to communicate between GPUs",
            *self.target.assumptions(),
        ]
        if unfrozen := self.config.optim.frozen.unfrozen_after:
            names, last = ", ".join(unfrozen), max(unfrozen.values())
            lines.append(
                f"all steps are planned like the steps after step {last:,}, when {names} are no longer frozen "
                "(optim.freeze); earlier steps take less"
            )
        lines += self._assumptions_of_scaling()
        if train.recompute and not self.target.measures:
            lines.append(f"excluding the time for recomputation (train.recompute: {', '.join(train.recompute)})")
        if (chunks := self.config.model.chunks) != 1 and not self.target.measures:
            lines.append(f"excluding the time to run the encoders a second time (model.contrastive.chunks: {chunks})")
        if train.compile and not self.target.measures:
            lines.append("memory and time are for training without train.compile")
        return lines

    def _assumptions_of_sharding(self) -> list[str]:
        train, optim = self.config.train, self.config.optim
        mesh, reason = mesh_of(train, optim, self.ranks, self.needed, self.target.memory)
        if mesh is None:
            return []
        shared = f"train.parallel={'fsdp' if train.parallel == 'auto' else train.parallel}"
        return [
            f"{reason or shared}; {mesh.shard} GPUs share the states of a model",
            "during computation, FSDP2 holds the full weights and gradients of two blocks, and of all parameters outside the "
            "blocks of the image and text encoders",
        ]

    def _assumptions_of_scaling(self) -> list[str]:
        network = self.flags.network
        if self.flags.nodes is None:
            return []
        if network is None:
            return ["a ring all-reduce over all ranks; to include the communication time, pass --network GB/S"]
        bandwidth = f"a ring all-reduce over all ranks at {network:g} GB/s (--network)"
        return [f"{bandwidth}; no latency, and no overlap of communication and computation"]
