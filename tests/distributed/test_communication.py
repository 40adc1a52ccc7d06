"""The formulas for a step's communication are compared with the collectives of real steps, on two and four gloo ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.config import ShardingConfig
from engine.parallel.choice import gathered_dtype
from engine.parallel.fsdp import Groups
from engine.steps import trainer_of
from optim.setup import set_frozen
from tasks.binding import bind_run
from tests.ranks import on_ranks
from tests.tools.test_plan import BASE, SMALL
from tools.plan.synthetic import synthetic_batch
from tools.steps.communication import StepSizes
from tools.steps.fake import trainable
from utils.tensors import tensor_bytes

SIZES = [
    "model.embed_dim=16",  # all gradients fit into DDP's first bucket of 1 MiB
    "data.images.batch_size=3",
    "data.regions.batch_size=4",
    "data.regions.max_images=2",
    "train.precision=fp32",
]
KINDS = {
    "allreduce_": ("all-reduce", 0),
    "_allgather_base_": ("all-gather", 1),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
}
"""Our names for torch's operations, and the position of the tensor argument. Operations missing here keep their names, which no
formula contains."""


class Collectives(TorchDispatchMode):
    """Counts every collective of torch's process groups, whether our code or DDP in C++ calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.handed: Counter[str] = Counter()
        """Number of bytes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            kind, argument = KINDS.get(name, (name, 0))
            self.calls[kind] += 1
            self.handed[kind] += tensor_bytes(each for each in tree_leaves(args[argument]) if isinstance(each, Tensor))
        return func(*args, **(kwargs or {}))


class Steps:
    """A picklable job that makes three pre-training steps, and returns counts of collectives and the sizes that determine
    them."""

    def __init__(self, accumulation: int, *overrides: str):
        self.accumulation, self.overrides = accumulation, overrides

    def __call__(self) -> dict[str, Any]:
        bound = bind_run(BASE, [*SMALL, *SIZES, *self.overrides])
        kind = bound.source.load().task
        config = bound.config
        model = kind.build_model(config, None)
        trainer = trainer_of(model, config.train, config.optim, torch.device("cpu"))
        batches = [synthetic_batch(config, model) for _ in range(self.accumulation)]
        counted = []
        for _ in range(3):
            with Collectives() as collectives:
                trainer.train_step(batches)
            counted.append({"calls": dict(collectives.calls), "handed": dict(collectives.handed)})
        sizes = {
            "gradients": tensor_bytes(trainable(model)),
            "losses": len(model.counts(batches[0])),
            "examples": model.compared(batches[0]),
            "embed_dim": config.model.embed_dim,
            "chunks": config.model.chunks,
        }
        return {"counted": counted, "sizes": sizes}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "accumulation", "overrides"),
    [
        (2, 1, []),
        (4, 2, ["optim.freeze.vision=true"]),
        (2, 2, ["model.contrastive.chunks=2"]),
        (2, 2, ["train.precision=bf16"]),
        (2, 1, ["train.precision=bf16", "optim.freeze.vision=true"]),
    ],
)
def test_ranks_with_sharded_weights_send_the_bytes_of_the_formula(tmp_path, ranks, accumulation, overrides):
    """The padding of shards is excluded."""
    bound = bind_run(BASE, [*SMALL, *SIZES, *overrides])
    kind = bound.source.load().task
    config = bound.config
    model = kind.build_model(config, None)
    if "optim.freeze.vision=true" in overrides:
        set_frozen(model, ["vision"])
    groups = Groups.of(model, gathered_dtype=gathered_dtype(config.train))
    for found in on_ranks(ranks, Steps(accumulation, "train.parallel=fsdp", *overrides), tmp_path):
        sizes = StepSizes(accumulation=accumulation, **found["sizes"])
        sizes = replace(
            sizes,
            groups=groups,
            mesh=ShardingConfig(shard=ranks, replicate=1),
        )
        _, second, third = found["counted"]
        expected = by_formula(sizes, ranks, logs=False)
        assert second == third
        assert second["handed"] == pytest.approx(expected["handed"], rel=5e-3)
        assert second["calls"]["all-reduce"] == expected["calls"]["all-reduce"]


def by_formula(sizes: StepSizes, ranks: int, logs: bool) -> dict[str, dict[str, int]]:
    """Calls and bytes of a step by kind, with the gradients in one bucket."""
    calls: Counter[str] = Counter()
    handed: Counter[str] = Counter()
    for exchange in sizes.exchanges(ranks, logs=logs):
        calls[exchange.kind] += 1 if exchange.calls is None else exchange.calls
        handed[exchange.kind] += exchange.whole // (ranks if exchange.kind == "all-gather" else 1)
    return {"calls": dict(calls), "handed": dict(handed)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "accumulation", "overrides"),
    [
        (2, 1, []),
        (2, 4, ["model.contrastive.chunks=2", "optim.freeze.vision=true"]),
        (4, 2, []),
        (4, 2, ["data.regions=null", "model.contrastive.gradient=released"]),
    ],
)
def test_ranks_call_only_the_collectives_of_the_formula(tmp_path, ranks, accumulation, overrides):
    for found in on_ranks(ranks, Steps(accumulation, *overrides), tmp_path):
        sizes = StepSizes(accumulation=accumulation, **found["sizes"])
        first, second, third = found["counted"]
        assert first == by_formula(sizes, ranks, logs=True), "only this step has a line of metrics"
        assert second["calls"].pop("broadcast_") == 2, "DDP broadcasts the order of gradients once"
        assert second["handed"].pop("broadcast_")
        assert second == third == by_formula(sizes, ranks, logs=False)
