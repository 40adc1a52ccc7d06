"""Chooses how the ranks of a run share its model (``train.parallel``)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from engine.parallel.config import ParallelConfig, ShardingConfig
from engine.parallel.ddp import DataParallel
from engine.parallel.fsdp import MeshShape, Sharded
from engine.parallel.strategy import Parallel
from optim import OptimConfig
from utils import distributed
from utils.accelerator import device_bytes
from utils.errors import UserError

if TYPE_CHECKING:
    from engine.train_config import TrainConfig

logger = logging.getLogger(__name__)

SHARE = 0.5
"""Share of a GPU's memory that weights, gradients and optimiser states may take with DDP; activations need the rest."""


def parallel_of(train: TrainConfig, optim: OptimConfig, model: nn.Module, device: torch.device) -> Parallel:
    """The strategy of a run for ``model``, which is still in host memory.

    Raises:
        UserError: if the numbers of ranks do not fit, or ``optim.fused`` does not.
    """
    config: ParallelConfig = train.parallel
    ranks = distributed.world_size()
    if isinstance(config, ShardingConfig):
        if config.shard * config.replicate != ranks:
            raise UserError(
                f"train.parallel: shard {config.shard} x replicate {config.replicate} is "
                f"{config.shard * config.replicate}, but the run has {ranks} ranks; change one of them"
            )
        shape = MeshShape(config.replicate, config.shard)
    else:
        shape = MeshShape(1, ranks)
        if config == "auto":
            config = _automatic(train, optim, model, device)
    if config == "ddp" or ranks == 1:
        return DataParallel(model, device)
    if optim.fused == "apex":
        raise UserError("optim.fused: apex cannot update sharded weights; set it to auto, or train.parallel to ddp")
    return Sharded(model, device, shape)


def state_bytes(model: nn.Module, *, average: bool) -> int:
    """Bytes of the weights, gradients, AdamW's states and the average of a model, on a rank that holds all of it."""
    all_parameters = sum(each.numel() * each.element_size() for each in model.parameters())
    trained = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    return all_parameters + (3 + average) * trained


def _automatic(
    train: TrainConfig, optim: OptimConfig, model: nn.Module, device: torch.device
) -> Literal["ddp", "fsdp"]:
    """FSDP2 if a GPU would be too small for all states; the reason is logged."""
    memory = device_bytes(device)
    if distributed.world_size() == 1 or memory is None:
        return "ddp"
    needed = state_bytes(model, average=optim.ema is not None)
    fits = needed <= SHARE * memory
    told = f"weights, gradients and optimiser states take {needed / 1e9:.1f} of {memory / 1e9:.1f} GB of a GPU's memory"
    if not fits and train.not_sharded:
        logger.warning(
            "train.parallel: ddp, although %s, because train.%s does not work with FSDP2", told, train.not_sharded
        )
        return "ddp"
    logger.info("train.parallel: %s, since %s", "ddp" if fits else "fsdp", told)
    return "ddp" if fits else "fsdp"
