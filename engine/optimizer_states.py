"""The states of an optimiser in a checkpoint, which any number of ranks can resume."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from engine.checkpoint import REMEDY, Checkpoint
from engine.parallel.fsdp import cause_of
from engine.parallel.strategy import Parallel
from utils import distributed
from utils.errors import UserError, reason_of


def split_state(optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the optimiser's state without its tensors, and the tensors, named by parameter and state, such as
    ``fusion.layer.0.output.dense.bias/exp_avg``."""
    state = optimizer.state_dict()
    states = state.pop("state")
    tensors: dict[str, Tensor] = {}
    for index, name in enumerate(named_parameters(optimizer)):
        tensors |= {f"{name}/{key}": value for key, value in states.get(index, {}).items()}
    return state, tensors


def resume(optimizer: Optimizer, state: dict[str, Any], checkpoint: Checkpoint, parallel: Parallel) -> None:
    """Loads the optimiser's state from a checkpoint, which may have been written by a different number of ranks.

    Args:
        optimizer: the optimiser, whose parameters have names.
        state: its state without tensors, as :func:`split_state` returned it.
        checkpoint: the checkpoint, which contains the tensors.
        parallel: how the ranks share the model.

    Raises:
        UserError: if the tensors cannot be read.
    """
    parameters = named_parameters(optimizer)
    states = state.setdefault("state", {})  # by parameter index, as in checkpoints written by earlier versions
    read = {} if checkpoint.states_folder is None else read_states(checkpoint.states_folder, parameters)
    for index, (name, parameter) in enumerate(parameters.items()):
        parameter_state = states.setdefault(index, {})
        for key, value in parameter_state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                parameter_state[key] = parallel.shard_like(value, parameter)
        parameter_state |= read.get(name, {})
    missing = [name for index, name in enumerate(parameters) if not states[index]]
    if 0 < len(missing) < len(states):
        raise UserError(f"has no optimiser state for {missing[0]}", where=checkpoint.folder, remedy=REMEDY)
    optimizer.load_state_dict(state)


def named_parameters(optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Returns the parameters by name, in the optimiser's order."""
    groups = optimizer.param_groups
    return {
        name: parameter for group in groups for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def read_states(folder: Path, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """Reads the tensors of the optimiser's state, by parameter. Every rank reads its shards of the sharded tensors. Rank 0 reads
    the other tensors and sends them to the other ranks.

    Raises:
        UserError: on all ranks, if a rank cannot read its tensors.
    """
    states, reason = {}, ""
    try:
        reader = dcp.HuggingFaceStorageReader(str(folder))
        states = _empty_states(reader.read_metadata(), parameters)
        mine = {name: state for name, state in states.items() if isinstance(state, DTensor) or distributed.rank() == 0}
        with warnings.catch_warnings():  # DCP warns that it does not use other ranks, as no_dist requests
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            if mine:
                dcp.load(mine, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:  # from safetensors, the operating system or DCP
        reason = reason_of(cause_of(error))
    if reason := next(filter(None, distributed.gather_objects(reason)), ""):
        raise UserError(f"cannot be read ({reason})", where=folder, remedy=REMEDY)
    distributed.send_from(0, (state for state in states.values() if not isinstance(state, DTensor)))
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in states.items():
        name, _, key = full_name.rpartition("/")
        by_parameter.setdefault(name, {})[key] = tensor
    return by_parameter


def _empty_states(metadata: Metadata, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Returns a tensor for each stored state of a current parameter, sharded like the parameter.

    Raises:
        ValueError: if a stored state is incomplete, or does not fit its parameter.
    """
    states: dict[str, Tensor] = {}
    for full_name, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        parameter = parameters.get(full_name.rpartition("/")[0])
        if parameter is not None and stored.size == parameter.shape:
            states[full_name] = torch.zeros_like(parameter, dtype=stored.properties.dtype, requires_grad=False)
        elif parameter is not None and not stored.size:
            states[full_name] = torch.zeros((), dtype=stored.properties.dtype, device=parameter.device)
        elif parameter is not None:
            raise ValueError(f"{full_name} has shape {tuple(stored.size)}, its parameter {tuple(parameter.shape)}")
        if sum(chunk.sizes.numel() for chunk in stored.chunks) != stored.size.numel():
            raise ValueError(f"{full_name} is incomplete")
    return states
