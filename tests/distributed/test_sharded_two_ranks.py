"""Parameters sharded by FSDP2, which gathers the parameters of a module when it is called. Two gloo processes are compared with
one."""

from __future__ import annotations

import warnings

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.distributed.test_two_ranks import build, gradients, half, single
from tests.models.golden import GOLDEN, arrays, pretrain_batch
from tests.ranks import on_two_ranks
from utils import distributed


def sharded_step() -> dict[str, torch.Tensor]:
    """Each block is a unit, and so is each projection of keys and values, because keys and values are computed before the blocks
    run."""
    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    model = build()
    for stack in (model.text.encoder, model.fusion):
        for block in stack.blocks:
            if block.crossattention is not None:
                fully_shard(block.crossattention.self.key, mesh=mesh)
                fully_shard(block.crossattention.self.value, mesh=mesh)
            fully_shard(block, mesh=mesh)
    temperature = model.contrastive.temperature  # a scalar cannot be sharded, so its gradient is averaged by hand
    fully_shard(model, mesh=mesh, ignored_params={temperature})
    batch = half(pretrain_batch(arrays(GOLDEN / "pretrain" / "inputs.npz")), distributed.rank())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a warning about views, which are not written to here
        found = gradients(model, model, batch)
    found["contrastive.temperature"] = distributed.sum_over_ranks(found["contrastive.temperature"]) / 2
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in found.items()}


def test_a_sharded_model_has_the_loss_and_gradients_of_one_process(tmp_path):
    expected = single()
    for found in on_two_ranks(sharded_step, tmp_path):
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
