"""Selects how the ranks of a run share its model (``train.parallel``)."""

from __future__ import annotations

import logging

import torch
from torch import nn

from engine.config import ShardingConfig, TrainConfig
from engine.parallel.ddp import DataParallel
from engine.parallel.fsdp import Sharded
from engine.parallel.strategy import Parallel
from optim.config import OptimConfig
from utils import distributed
from utils.accelerator import device_bytes
from utils.errors import UserError
from utils.tensors import tensor_bytes

logger = logging.getLogger(__name__)

MAX_STATE_FRACTION = 0.5
"""With DDP, weights, gradients and optimiser states may take at most this fraction of a GPU's memory. The rest is needed for
activations."""


def parallel_of(train: TrainConfig, optim: OptimConfig, model: nn.Module, device: torch.device) -> Parallel:
    """Returns the strategy for ``model``, which is still in the host memory of rank 0.

    Raises:
        UserError: as :func:`mesh_of`.
    """
    needed = state_bytes(model, average=optim.ema is not None)
    sizes = distributed.gather_objects(device_bytes(device))  # ranks must agree
    memory = min((size for size in sizes if size is not None), default=None)
    mesh, reason = mesh_of(train, optim, distributed.world_size(), needed, memory)
    if reason:
        logger.info("train.parallel: %s", reason)
    if mesh is None or not distributed.is_distributed():
        return DataParallel(model, device)
    return Sharded(model, device, mesh, gathered_dtype(train))


def gathered_dtype(train: TrainConfig) -> torch.dtype | None:
    """Returns the precision in which FSDP2 gathers the matrices in blocks; None for their own precision."""
    return torch.bfloat16 if train.precision == "bf16" else None


def setting_without_fsdp(train: TrainConfig, optim: OptimConfig) -> str | None:
    """Returns a setting of the config that does not work with FSDP2, or None if there is none."""
    if train.setting_without_fsdp:
        return f"train.{train.setting_without_fsdp}"
    if optim.frozen.cache is not None:
        # If all images of a rank's micro-batch are in the cache, the rank does not run the frozen blocks, and would not take part
        # in gathering the blocks that other ranks have to run.
        return "optim.freeze.cache"
    if optim.muon is not None:
        return "optim.muon"  # which needs whole matrices
    return "optim.fused = apex" if optim.fused == "apex" else None


def mesh_of(
    train: TrainConfig, optim: OptimConfig, ranks: int, needed: int, memory: int | None
) -> tuple[ShardingConfig | None, str]:
    """Selects the device mesh over which a model is sharded.

    Args:
        train, optim: sections of the config.
        ranks: number of ranks.
        needed: size of the model's states in bytes (:func:`state_bytes`).
        memory: memory of the smallest GPU in bytes; None on CPUs.

    Returns:
        The mesh for FSDP2, or None for DDP; and the reason, or "" if the config sets the strategy explicitly.

    Raises:
        UserError: if the config requires a different number of ranks, or FSDP2 with a setting that does not work with it.
    """
    config, unsupported = train.parallel, setting_without_fsdp(train, optim)
    if unsupported and ranks > 1 and config not in ("auto", "ddp"):
        raise UserError("does not work with FSDP2", where=unsupported, remedy="change it, or set train.parallel to ddp")
    if isinstance(config, ShardingConfig):
        if config.shard * config.replicate != ranks:
            raise UserError(
                f"shard {config.shard} x replicate {config.replicate} is {config.shard * config.replicate}, but the "
                f"run has {ranks} ranks",
                where="train.parallel",
                remedy="change one of them",
            )
        return config, ""
    if config == "ddp" or ranks == 1 or (config == "auto" and memory is None):
        return None, ""
    if config == "fsdp":
        return ShardingConfig(shard=ranks, replicate=1), ""
    assert memory is not None
    states = (
        f"weights, gradients and optimiser states take {needed / 1e9:.1f} of {memory / 1e9:.1f} GB of a GPU's memory"
    )
    if needed <= MAX_STATE_FRACTION * memory:
        return None, f"ddp, since {states}"
    if unsupported:
        return None, f"ddp, although {states}, because {unsupported} does not work with FSDP2"
    return ShardingConfig(shard=ranks, replicate=1), f"fsdp, since {states}"


def state_bytes(model: nn.Module, *, average: bool) -> int:
    """Returns the size in bytes of a model's weights, gradients, AdamW states and averaged weights, without sharding."""
    trained = [each for each in model.parameters() if each.requires_grad]
    return tensor_bytes(model.parameters()) + (3 + average) * tensor_bytes(trained)
