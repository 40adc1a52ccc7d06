"""The model as a run trains it: shared by the ranks, with its trainable parameters, their optimiser and their average."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import Checkpoint
from engine.config import TrainConfig
from engine.parallel.choice import parallel_of
from optim.config import OptimConfig
from optim.ema import WeightAverage
from optim.groups import build_optimizer, parameter_groups
from optim.lora import is_adapter
from optim.muon import matrices_in_blocks
from optim.setup import levels_above, set_frozen
from scheduler import Schedule
from utils import distributed
from utils.errors import UserError

logger = logging.getLogger(__name__)


class TrainedModel:
    """A model with its trainable parameters, their optimiser and their average (``optim.ema``), and ``parallel``, which
    distributes the model over the ranks.

    Before each step, :meth:`start_step` adds the encoders that train from this step on. Their optimiser states start empty.

    Args:
        model: the model, in the host memory of rank 0. It is moved to ``device``.
        optim: the config section ``optim``.
        schedule: returns the factor on the learning rate in a step, counted from 0.
        fresh: names of the parameters that train at ``lr * lr_mult``.
        device: device of this rank.
        step: number of completed steps. Encoders that train from the next step on are still frozen, as they were when a
            checkpoint of this step was written.
        steps: total number of steps of the run.
        train: the config section ``train``, which determines how ranks share the model.

    Raises:
        UserError: if ``optim.freeze`` or ``train.parallel`` does not fit the model or the run.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        schedule: Schedule,
        fresh: Collection[str],
        device: torch.device,
        *,
        step: int,
        steps: int,
        train: TrainConfig,
    ):
        self.device = device
        self.parallel = parallel_of(train, optim, model, device)
        self.model, self.optim, self.schedule, self.fresh = model, optim, schedule, fresh
        self.freeze = optim.frozen
        self.freeze.check_steps(steps)
        all_groups = self._parameter_groups()
        self._peaks = {
            group["name"]: (group["peak_lr"], min(map(self.freeze.trains_from, group["names"]))) for group in all_groups
        }
        """Peak learning rate of each group that trains at some point in the run, and the first step in which it trains."""
        ever_trained = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not math.isinf(self.freeze.trains_from(name))
        ]
        trainable_parts = {name.partition(".")[0] for group in all_groups for name in group["names"]}
        for part in self.freeze.steps:
            if part not in trainable_parts:
                raise UserError(
                    "no parameter of this part would train in this run",
                    where=f"optim.freeze.{part}",
                    remedy="remove the key",
                )
        self._rebuild_optimizer(self.freeze.frozen_at(max(0, step - 1)), states={})
        self.parallel.update_trainable()
        self.average = WeightAverage(ever_trained, optim.ema)
        """The average of all parameters that train at some point in the run."""
        if optim.ema:
            logger.info("optim.ema: the averaged weights are validated, evaluated and saved as the model")
        if self.freeze.steps or optim.lora:
            self._log(self.frozen)
        self.adapters_checked = optim.lora is None

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata for the header of a weight file that describes averaged weights and adapters."""
        averaged = {"ema": self.optim.ema.model_dump()} if self.optim.ema else {}
        return {**averaged, **(self.optim.lora.metadata if self.optim.lora else {})}

    def check_adapters(self) -> None:
        """Checks, after the first backward pass, that the model calls every layer that has an adapter.

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
                f"{len(unused)} adapters have no gradient, the first {unused[0]}: the model does not call their layers",
                where="optim.lora",
                remedy=f"remove {unused[0].partition('.')[0]} from optim.lora.targets",
            )

    def start_step(self, step: int) -> bool:
        """Unfreezes the encoders whose training starts at step ``step``, counted from 0, sets the learning rates of the step, and
        drops the gradients of the previous step. Returns True if an encoder was unfrozen."""
        before, frozen = self.frozen, self.freeze.frozen_at(step)
        if before != frozen:
            self.parallel.release()
            self._rebuild_optimizer(frozen, self.optimizer.state)
            self.parallel.update_trainable()
            logger.info("step %d: %s trains from now on", step + 1, ", ".join(p for p in before if p not in frozen))
            self._log(frozen)
        factor = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        for parameter in self.parameters:
            parameter.grad = None  # twice as fast as zero_grad, which checks each gradient first
        return before != frozen

    def load_unaveraged(self, checkpoint: Checkpoint) -> None:
        """Loads the unaveraged weights of a checkpoint into the model. Before this call, both the model and the average hold the
        averaged weights from the checkpoint's model file. Rank 0 reads the unaveraged weights and sends them to the other ranks.

        Raises:
            UserError: if the checkpoint has averaged weights and this run does not, or vice versa.
        """
        unaveraged: dict[str, Tensor] = {}

        def read() -> None:
            found = checkpoint.unaveraged_weights()
            if (found is None) != (self.optim.ema is None):
                raise UserError(
                    f"was written {'without' if found is None else 'with'} optim.ema, which cannot change when a "
                    "run resumes",
                    where=checkpoint.folder,
                    remedy=f"start a new run with init.checkpoint={checkpoint.folder}",
                )
            unaveraged.update(found or {})

        distributed.on_rank_0(read)
        self.parallel.load(distributed.received_from_rank_0(unaveraged, self.device))

    def learning_rates(self, step: int) -> dict[str, float]:
        """Returns the learning rates of step ``step``, counted from 0, by group name."""
        factor = self.schedule(step)
        return {name: peak * factor for name, (peak, first) in self._peaks.items() if first <= step}

    def _rebuild_optimizer(self, frozen: tuple[str, ...], states: Mapping[Tensor, Any]) -> None:
        """Freezes these parts of the model, and builds the optimiser of all other parameters, with their ``states`` so far."""
        self.frozen = frozen
        if self.freeze.steps:
            set_frozen(self.model, frozen)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise UserError(
                "leaves no trainable parameters in this model", where="optim.freeze", remedy="freeze fewer parts"
            )
        self.optimizer = build_optimizer(self._parameter_groups(), self.optim)
        self.optimizer.state.update(states)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of the parameters that train now."""
        model, optim = self.model, self.optim
        matrices = matrices_in_blocks(model)
        return parameter_groups(model.named_parameters(), optim, self.fresh, levels_above(model), matrices)

    def _log(self, frozen: tuple[str, ...]) -> None:
        """Logs how many parameters are frozen, and for how long."""
        parts = []
        for part in frozen:
            steps = self.freeze.steps[part]
            until = "the whole run" if math.isinf(steps) else f"the first {int(steps)} steps"
            parts.append(f"{part} ({_size(self.model.get_submodule(part).parameters())} parameters, {until})")
        if self.optim.lora:
            adapters = [parameter for name, parameter in self.model.named_parameters() if is_adapter(name)]
            parts.append(
                f"the weights of layers with adapters ({len(adapters) // 2} adapters of rank {self.optim.lora.rank}, "
                f"{_size(adapters)} parameters)"
            )
        if self.freeze.vision_blocks is not None and "vision" not in frozen:
            parts.append(f"vision before block {self.freeze.vision_blocks} (the whole run)")
        training, total = _size(self.parameters), _size(self.model.parameters())
        logger.info("frozen: %s; %s of %s parameters train", ", ".join(parts) or "nothing", training, total)


def _size(parameters: Iterable[nn.Parameter]) -> str:
    count = sum(parameter.numel() for parameter in parameters)
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
