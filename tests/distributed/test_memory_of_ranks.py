"""Memory on several ranks, as planned and as measured in real steps: for contrastive losses (compared with a formula, too), and
for steps with FSDP2."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import nn

from engine.steps import chunks_of, trainer_of
from models.core import losses
from tasks.binding import bind_run
from tests.ranks import on_ranks
from tests.tools.test_plan import ALONE, BASE, SMALL
from tools.plan.synthetic import synthetic_batch
from tools.steps.fake import GRADIENTS, OPTIMISER, WEIGHTS, FakeSteps, LiveMemory, trainable
from utils.distributed import local_shard

pytestmark = pytest.mark.night

EXAMPLES, WIDTH = 16, 1024
"""Examples per rank, and the width of their embeddings, which take most of the memory."""

SIZES = [
    *SMALL,
    ALONE,
    f"data.images.batch_size={EXAMPLES}",
    f"model.embed_dim={WIDTH}",
    "model.vision.image_size=32",
    "train.precision=fp32",
]
EXAMPLE = 2 * 4 * WIDTH + 2 * 8
"""Bytes gathered per example: both embeddings in float32, and the text_id and validity in int64."""

PAIR = 20
"""Bytes that the loss keeps for two compared examples: similarities in float32, and masks."""


def setting(overrides: tuple[str, ...], sizes: Sequence[str] = SIZES) -> tuple[Any, Any]:
    bound = bind_run(BASE, [*sizes, *overrides])
    kind = bound.source.load().task
    config = bound.config
    return config, partial(kind.build_model, config, None)


class Counted:
    """A picklable job that returns the peak bytes of activations in a real step."""

    def __init__(self, *overrides: str):
        self.overrides = overrides

    def __call__(self) -> int:
        config, build = setting(self.overrides)
        model = build()
        trainer = trainer_of(model, config.train, config.optim, torch.device("cpu"))
        batches = [synthetic_batch(config, model)] * chunks_of(model)
        for _ in range(2):  # in the second step, DDP rebuilds its buckets
            trainer.train_step(batches)
        live = LiveMemory()
        states = [tensor for state in trainer.trained.optimizer.state.values() for tensor in state.values()]
        gradients = [parameter.grad for parameter in trainable(model)]
        for use, tensors in ((WEIGHTS, model.parameters()), (GRADIENTS, gradients), (OPTIMISER, states)):
            with live.named(use):
                live.register(tensors)
        for parameter in trainable(model):
            parameter.register_post_accumulate_grad_hook(lambda p: live.rename(p.grad, GRADIENTS))
        with live:
            trainer.train_step(batches)
        return live.most_activations


@cache
def planner(*overrides: str) -> tuple[FakeSteps, Any]:
    config, build = setting(overrides)
    return FakeSteps(build(), config.train, config.optim, as_on_gpu=False), config


def planned(ranks: int, *overrides: str) -> int:
    """The extra bytes of activations in a planned step on ``ranks`` ranks, compared with one rank."""
    steps, config = planner(*overrides)

    def of(ranks: int) -> int:
        def batch(model: nn.Module) -> Any:
            return synthetic_batch(config, model)

        return steps.memory(batch, gradients_stay=True, ranks=ranks).activations

    return of(ranks) - of(1)


def by_formula(ranks: int) -> int:
    """The formula for up to 4,096 examples. A single rank has no second copy of its own examples."""
    total = ranks * EXAMPLES
    return total * EXAMPLE + EXAMPLES * (total - EXAMPLES) * PAIR


@pytest.mark.parametrize("ranks", [2, 4])
def test_real_steps_grow_with_the_ranks_as_planned_and_by_formula(tmp_path, ranks):
    alone = Counted()()
    grown = {found - alone for found in on_ranks(ranks, Counted(), tmp_path)}
    assert grown == {planned(ranks)} == {by_formula(ranks)}


def test_beyond_one_block_memory_grows_linearly_with_the_examples(monkeypatch):
    """With few examples, the peak of the step is elsewhere. With many, it is in the backward pass of the loss, where gradients of
    the embeddings exist as two copies."""
    monkeypatch.setattr(losses, "COLUMNS", EXAMPLES)
    two, three, sixteen, thirty_two = (planned(ranks) for ranks in (2, 3, 16, 32))
    assert three - two == pytest.approx(EXAMPLES * EXAMPLE, rel=0.01)
    assert thirty_two - sixteen == pytest.approx(16 * EXAMPLES * 3 * EXAMPLE, rel=0.01)


def test_with_gradient_caching_the_loss_over_all_ranks_is_freed_before_activations_are_kept():
    chunks = "model.contrastive.chunks=2"
    assert planned(4, chunks) == 0 < planned(4)


def test_a_cached_loss_larger_than_the_activations_grows_as_in_real_steps(tmp_path):
    wide = ("model.contrastive.chunks=4", "model.embed_dim=8192")
    (two, _), (four, *_) = (on_ranks(ranks, Counted(*wide), tmp_path) for ranks in (2, 4))
    assert planned(4, *wide) - planned(2, *wide) == pytest.approx(four - two, rel=0.01)
    gathered = 4 * EXAMPLES * 2 * 4 * 8192  # on each rank
    assert four - two == pytest.approx(2 * 2 * gathered, rel=0.01), (
        "the embeddings of two more ranks and their gradients"
    )


LARGE = [
    "model.vision.width=256",
    "model.vision.depth=6",
    "model.vision.heads=4",
    "model.vision.image_size=32",
    "model.text.arch={family: bert, vocab_size: 3000, width: 256, layers: 4, heads: 4, intermediate: 1024, max_positions: 64}",
    "model.fusion={layers: 2, width: 256, heads: 4, intermediate: 1024}",
    "model.embed_dim=64",
    "train.precision=fp32",
    ALONE,
]
"""A model whose weights take more memory than the activations of two images."""


STEPS = 5


class Allocated:
    """A picklable job that returns, for each of several steps, the maximum number of bytes that a rank has allocated. The number
    varies, because gloo releases the memory of a collective in a thread, sometimes late."""

    def __init__(self, *overrides: str):
        self.overrides = overrides

    def __call__(self) -> list[int]:
        config, build = setting(self.overrides, LARGE)
        model = build()
        trainer = trainer_of(model, config.train, config.optim, torch.device("cpu"))
        batches = [synthetic_batch(config, model)] * max(chunks_of(model), config.train.accumulate or 1)
        for _ in range(2):
            trainer.train_step(batches)
        states = [tensor for state in trainer.trained.optimizer.state.values() for tensor in state.values()]
        kept = [*trainer.model.parameters(), *trainer.model.buffers(), *states, *trainer.trained.average.tensors]
        before = sum(local_shard(tensor).untyped_storage().nbytes() for tensor in kept)
        peaks = []
        for _ in range(STEPS):
            for parameter in trainable(trainer.model):
                parameter.grad = None
            gc.collect()
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profiled:
                trainer.train_step(batches)
            peaks.append(before + peak_of(profiled.profiler.kineto_results.experimental_event_tree()))
        return peaks


def peak_of(events: Iterable[Any]) -> int:
    """The maximum number of bytes allocated since profiling began. (torch's own total also contains what was allocated while
    earlier steps were profiled.)"""
    in_order = sorted(changes(events))
    return max(accumulate(size for _, size in in_order))


def changes(events: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """The time and size in bytes of each allocation; the size is negative if memory is freed."""
    for event in events:
        if event.tag.name == "Allocation":
            yield event.start_time_ns, event.extra_fields.alloc_size
        yield from changes(event.children)


FEW = "data.images.batch_size=2"
MORE = "data.images.batch_size=8"


@pytest.mark.parametrize(
    ("ranks", "shard", "overrides"),
    [
        (3, 3, [MORE]),
        (4, 2, [FEW, "train.parallel={shard: 2, replicate: 2}"]),
        (2, 2, [MORE, "model.contrastive.chunks=2", "optim.ema={decay: 0.9}"]),
        (2, 2, [FEW, "train.accumulate=2", "train.global_batch=null"]),
        (2, 2, [MORE, "train.recompute=[vision,text,fusion]", "optim.freeze={vision: true}"]),
    ],
)
def test_the_memory_of_a_sharded_step_is_planned_within_a_tenth(tmp_path, ranks, shard, overrides):
    overrides = ["train.parallel=fsdp", *overrides]
    config, build = setting(tuple(overrides), LARGE)
    steps = FakeSteps(build(), config.train, config.optim, as_on_gpu=False)
    several = chunks_of(steps.trainer.model) > 1 or (config.train.accumulate or 1) > 1
    batch = partial(synthetic_batch, config)
    memory = steps.sharded_memory(batch, shard=shard, gradients_stay=several, ranks=ranks)
    found = [peak for peaks in on_ranks(ranks, Allocated(*overrides), tmp_path) for peak in peaks]
    assert memory.total == pytest.approx(statistics.median(found), rel=0.1)
