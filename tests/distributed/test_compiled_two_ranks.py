"""Compiled encoders in DDP: two gloo processes are compared with one that does not compile."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.parallel import DistributedDataParallel

from optim.setup import compile_encoders, set_gradient_checkpointing
from tests.distributed.test_two_ranks import build, gradients, half, single
from tests.models.golden import GOLDEN, arrays, pretrain_batch
from tests.ranks import on_two_ranks
from utils import distributed

pytestmark = pytest.mark.night


def compiled_step() -> dict[str, torch.Tensor]:
    """A step that combines compilation, gradient checkpointing, and graphs that are split at DDP's buckets.

    The graphs are executed without a compiler, because compiling them takes a minute. Each encoder has one layer, which is enough
    for its graph to be split.
    """
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 1000
    graphs = 0

    def backend(graph, inputs, **options):
        nonlocal graphs
        graphs += 1
        return aot_eager(graph, inputs, **options)

    model = build(shallow=True)
    model.box_head.requires_grad_(False)
    set_gradient_checkpointing(model, ("vision", "text", "fusion"))
    compile_encoders(model, backend=backend, fullgraph=True)
    batch = half(pretrain_batch(arrays(GOLDEN / "pretrain" / "inputs.npz")), distributed.rank())
    found = gradients(model, DistributedDataParallel(model, bucket_cap_mb=0.05), batch)
    return {**found, "graphs": torch.tensor(graphs)}


def test_compiled_and_recomputed_encoders_on_two_ranks_give_the_gradients_of_one(tmp_path):
    expected = single(shallow=True)
    for found in on_two_ranks(compiled_step, tmp_path):
        assert found.pop("graphs") > 3, "at least one graph must be split"
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
