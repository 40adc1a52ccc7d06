"""The parameters that train, which ``optim.freeze`` may make more in the middle of a run."""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from engine.checkpoint import REMEDY, Checkpoint
from engine.parallel.choice import parallel_of
from engine.train_config import TrainConfig
from optim import OptimConfig, build_optimizer, parameter_groups
from optim.ema import WeightAverage
from optim.lora import is_adapter
from optim.setup import levels_above, set_frozen
from utils.errors import UserError

logger = logging.getLogger(__name__)


class Trained:
    """The parameters of ``model`` that train, their optimiser, and ``parallel``, the model on all ranks.

    Before a step, :meth:`thaw` adds the encoders that train from this step on. They join with fresh states of the optimiser.

    Args:
        model: in the host memory of rank 0; it moves to ``device``.
        optim: the config section.
        fresh: names of the parameters that train at ``lr * lr_mult``.
        step: number of steps that are done. Encoders that train from the next one on are still frozen, as when a checkpoint of
            this step is written.
        steps: of the whole run.
        train: says how ranks share the model.

    Raises:
        UserError: if ``optim.freeze`` or ``train.parallel`` does not fit the model or the run.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        fresh: Collection[str],
        device: torch.device,
        *,
        step: int,
        steps: int,
        train: TrainConfig,
    ):
        self.parallel = parallel_of(train, optim, model, device)
        self.model, self.optim, self.fresh, self.device = model, optim, fresh, device
        self.freeze = optim.frozen
        self.freeze.check_steps(steps)
        all_groups = parameter_groups(model.named_parameters(), optim, fresh, levels_above(model))
        self._peaks = {
            group["name"]: (group["peak_lr"], min(map(self.freeze.trains_from, group["names"]))) for group in all_groups
        }
        """Peak learning rate of each group that ever trains, and the first step in which it does."""
        ever_trained = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not math.isinf(self.freeze.trains_from(name))
        ]
        self._check_parts(name for group in all_groups for name in group["names"])
        self._set_frozen(self.freeze.frozen_at(max(0, step - 1)))
        self.parallel.follow()
        self.average = WeightAverage(ever_trained, optim.ema)
        """Of all parameters that train in any step of the run."""
        if optim.ema:
            logger.info("optim.ema: the averaged weights are validated, evaluated and saved as the model")
        if self.freeze.steps or optim.lora:
            self._log(self.frozen)
        self.adapters_checked = optim.lora is None

    @property
    def about(self) -> dict[str, Any]:
        """Entries of a weight file's header about an average and adapters in it."""
        return {**self.average.about, **(self.optim.lora.about if self.optim.lora else {})}

    def check_adapters(self) -> None:
        """Check, after the first backward pass, that the model calls every layer that has an adapter.

        Raises:
            UserError: if an adapter has no gradient.
        """
        if self.adapters_checked:
            return
        self.adapters_checked = True
        unused = [
            name
            for name, parameter in self.model.named_parameters()
            if is_adapter(name) and parameter.requires_grad and parameter.grad is None
        ]
        if unused:
            raise UserError(
                f"optim.lora: {len(unused)} adapters have no gradient, the first {unused[0]}: the model does not call their "
                f"layers; leave {unused[0].partition('.')[0]} out of optim.lora.targets"
            )

    def thaw(self, step: int) -> bool:
        """Have the encoders train that do so from step ``step`` on, counted from 0; returns whether there are any."""
        before = self.frozen
        if before == self.freeze.frozen_at(step):
            return False
        states = self.optimizer.state
        self.parallel.release()
        self._set_frozen(self.freeze.frozen_at(step))
        self.optimizer.state.update(states)
        self.parallel.follow()
        logger.info("step %d: %s trains from now on", step + 1, ", ".join(p for p in before if p not in self.frozen))
        self._log(self.frozen)
        return True

    def resume_average(self, checkpoint: Checkpoint) -> None:
        """Give the model the weights that train. So far it has their average, which is in the checkpoint's model file, and at
        which the average of this run has begun.

        Raises:
            UserError: if the checkpoint has an average and this run has none, or the other way round.
        """
        unaveraged = checkpoint.unaveraged_weights()
        if (unaveraged is None) != (self.optim.ema is None):
            raise UserError(
                f"{checkpoint.folder}: was written {'without' if unaveraged is None else 'with'} optim.ema, which cannot change "
                f"when a run resumes; start another one with init.checkpoint={checkpoint.folder}"
            )
        if unaveraged is not None:
            self.parallel.load(unaveraged)

    def optimizer_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The optimiser's state without the tensors of parameters, and these tensors by the names of the parameter and the state,
        such as ``fusion.layer.0.output.dense.bias/exp_avg``."""
        state = self.optimizer.state_dict()
        of_parameters = state.pop("state")
        tensors: dict[str, Tensor] = {}
        for index, (name, _) in enumerate(self._optimised()):
            tensors |= {f"{name}/{key}": value for key, value in of_parameters.get(index, {}).items()}
        return state, tensors

    def resume_optimizer(self, state: dict[str, Any], checkpoint: Checkpoint) -> None:
        """Load the state of the optimiser from a checkpoint, whatever ranks wrote it.

        Raises:
            UserError: if it cannot be read.
        """
        of_parameters = state.setdefault("state", {})  # by number, as earlier versions wrote it
        read = {} if checkpoint.states is None else self._read_states(checkpoint.states)
        for index, (name, parameter) in enumerate(self._optimised()):
            of_parameter = of_parameters.setdefault(index, {})
            for key, value in of_parameter.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    of_parameter[key] = self.parallel.like(value, parameter)
            of_parameter |= read.get(name, {})
        without = [name for index, (name, _) in enumerate(self._optimised()) if not of_parameters[index]]
        if 0 < len(without) < len(of_parameters):
            raise UserError(f"{checkpoint.folder}: has no state of the optimiser for {without[0]}; {REMEDY}")
        self.optimizer.load_state_dict(state)

    def _read_states(self, folder: Path) -> dict[str, dict[str, Tensor]]:
        """The tensors of the optimiser's states, by parameter: of each, the part that this rank holds now."""
        reader = dcp.HuggingFaceStorageReader(str(folder))
        parameters, read = dict(self._optimised()), {}
        try:
            for full_name, stored in reader.read_metadata().state_dict_metadata.items():
                assert isinstance(stored, TensorStorageMetadata)
                parameter = parameters.get(full_name.rpartition("/")[0])
                if parameter is not None and stored.size == parameter.shape:
                    read[full_name] = torch.zeros_like(parameter, dtype=stored.properties.dtype, requires_grad=False)
                elif parameter is not None and not stored.size:
                    read[full_name] = torch.zeros((), dtype=stored.properties.dtype)
                elif parameter is not None:
                    raise ValueError(
                        f"{full_name} has shape {tuple(stored.size)}, its parameter {tuple(parameter.shape)}"
                    )
                if sum(chunk.sizes.numel() for chunk in stored.chunks) != stored.size.numel():
                    raise ValueError(f"a part of {full_name} is missing")
            with warnings.catch_warnings():  # DCP warns that it reads without other ranks, which no_dist asks for
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                dcp.load(read, storage_reader=reader, no_dist=True)
        except Exception as error:  # a damaged file raises an error of safetensors, of the system or of DCP
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder}: cannot be read ({reason}); {REMEDY}") from None
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in read.items():
            name, _, key = full_name.rpartition("/")
            by_parameter.setdefault(name, {})[key] = tensor
        return by_parameter

    def _optimised(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters in the order in which the optimiser counts them."""
        return [
            pair for group in self.optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)
        ]

    def set_rates(self, factor: float) -> None:
        """Set the learning rate of each group to this factor of its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def learning_rates(self, step: int, factor: float) -> dict[str, float]:
        """Learning rates in step ``step``, from 0, by the name of the group, at this factor of the peaks."""
        return {name: peak * factor for name, (peak, first) in self._peaks.items() if first <= step}

    def _set_frozen(self, frozen: tuple[str, ...]) -> None:
        self.frozen = frozen
        if self.freeze.steps:
            set_frozen(self.model, frozen)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise UserError("optim.freeze: no parameter of this model is left to train; freeze fewer parts")
        self.groups = parameter_groups(self.model.named_parameters(), self.optim, self.fresh, levels_above(self.model))
        self.optimizer = build_optimizer(self.groups, self.optim)

    def _check_parts(self, trainable: Iterable[str]) -> None:
        """Refuse parts of which nothing would train anyway."""
        counts = Counter(name.partition(".")[0] for name in trainable)
        for part in self.freeze.steps:
            if not counts[part]:
                raise UserError(f"optim.freeze.{part}: no parameter of it would train in this run; leave it out")

    def _log(self, frozen: tuple[str, ...]) -> None:
        """Log how many parameters are frozen and until when."""
        parts = []
        for part in frozen:
            steps = self.freeze.steps[part]
            until = "the whole run" if math.isinf(steps) else f"the first {int(steps)} steps"
            parts.append(f"{part} ({_size(self.model.get_submodule(part).parameters())} parameters, {until})")
        if self.optim.lora:
            adapters = [parameter for name, parameter in self.model.named_parameters() if is_adapter(name)]
            parts.append(
                f"the weights beside {len(adapters) // 2} adapters of rank {self.optim.lora.rank} ({_size(adapters)})"
            )
        if self.freeze.vision_blocks is not None and "vision" not in frozen:
            parts.append(f"vision before its block {self.freeze.vision_blocks} (the whole run)")
        training, total = _size(self.parameters), _size(self.model.parameters())
        logger.info("frozen: %s; %s of %s parameters train", ", ".join(parts) or "nothing", training, total)


def _size(parameters: Iterable[nn.Parameter]) -> str:
    count = sum(parameter.numel() for parameter in parameters)
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
