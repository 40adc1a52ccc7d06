"""The memory of a training step, found without running it: by tensors that have sizes and no contents.

The real trainer takes a real step; only what the tensors hold is missing. So whatever a config switches on is in the number,
and a model that fits no memory here can be planned for.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.precision import APEX_LEVELS
from engine.run_folder import RunFolder
from engine.train_config import TrainConfig
from engine.trainer import Trainer
from optim import OptimConfig
from scheduler import ScheduleConfig
from utils.batch import MicroBatch, Work
from utils.errors import UserError

WEIGHTS, GRADIENTS, OPTIMISER, ACTIVATIONS = "weights", "gradients", "optimiser", "activations"


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the moment of the step when most are used; ``activations`` is all that is none of the others."""

    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.activations


class Rehearsal:
    """A model and its optimiser that take steps without contents, as the trainer does.

    Args:
        build: the model, on torch's default device.
        train, optim: the run's sections.
        as_on_gpu: the kernels of a GPU are assumed, else those of this CPU.
    """

    def __init__(self, build: Callable[[], nn.Module], train: TrainConfig, optim: OptimConfig, *, as_on_gpu: bool):
        self.fake, self.live, self.as_on_gpu = FakeTensorMode(), LiveMemory(), as_on_gpu
        with torch.device("meta"):
            model = build()
        with self._without_contents(), self.live.named(WEIGHTS):
            model = model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        # What has no contents can be neither moved nor counted.
        model.to = lambda _: model
        model.work = lambda _: Work()
        # The scaler of fp16 looks at its numbers; bf16 is as wide.
        half = "bf16" if APEX_LEVELS.get(train.precision, train.precision) == "fp16" else train.precision
        self.trainer = trainer_of(model, train.model_copy(update={"precision": half}), optim, torch.device("cpu"))
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._is_gradient)
        self.trainer.optimizer.register_step_pre_hook(lambda *_: self.live.name_next(OPTIMISER))
        self.trainer.optimizer.register_step_post_hook(lambda *_: self.live.name_next(ACTIVATIONS))
        self.started = False

    def memory(self, make_batch: Callable[[nn.Module], Any], *, gradients_stay: bool) -> StepMemory:
        """Of a step on one micro-batch, which is not the first step.

        Args:
            make_batch: the micro-batch for the model.
            gradients_stay: they are there beside the activations of a whole forward pass, as with several micro-batches in a
                step or several processes.

        Raises:
            UserError: if what the step does depends on the contents of its tensors.
        """
        try:
            with self._without_contents():
                batch = make_batch(self.trainer.model)
                if not self.started:
                    self.trainer.train_step([batch])
                    self.started = True
                self.live.forget_peak()
                self.trainer.train_step([batch])
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UserError(
                f"the memory of this model's step depends on what its tensors hold ({error}); plan it on a machine with a GPU"
            ) from None
        found = StepMemory(**{name: self.live.at_peak[name] for name in StepMemory.__dataclass_fields__})
        if not gradients_stay:
            return found
        learned = sum(
            each.numel() * each.element_size() for each in self.trainer.model.parameters() if each.requires_grad
        )
        return replace(found, gradients=learned, activations=self.live.most_activations)

    @contextlib.contextmanager
    def _without_contents(self) -> Iterator[None]:
        with contextlib.ExitStack() as modes:
            modes.enter_context(self.fake)
            modes.enter_context(self.live)
            if self.as_on_gpu:
                modes.enter_context(as_on_gpu())
            yield

    def _is_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.live.rename(parameter.grad, GRADIENTS)


def trainer_of(model: nn.Module, train: TrainConfig, optim: OptimConfig, device: torch.device) -> Trainer:
    """A trainer that is only asked for single steps, on batches that the caller has."""
    alone = {"steps": 1, "epochs": None, "deterministic": False, "global_batch": None, "accumulate": None}
    train = train.model_copy(update=alone)
    if device.type == "cpu":
        optim = optim.model_copy(update={"fused": "auto"})
    return Trainer(
        _Nothing(model),
        train=train,
        optim=optim,
        schedule=ScheduleConfig(kind="constant"),
        seed=0,
        folder=RunFolder(Path()),
        device=device,
    )


class _Nothing:
    """A task and its loader without data."""

    selects: str | None = None
    examples_per_batch = records_per_batch = epoch_size = 1
    micro_batch = MicroBatch("the micro-batch", 1)

    def __init__(self, model: nn.Module):
        self.model = model
        self.fresh: set[str] = set()

    def train_loader(self) -> _Nothing:
        return self

    def batches(self, consumed: int, count: int) -> Iterator[Any]:
        return iter(())

    def validate(self) -> dict[str, float]:
        return {}


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, by what they are, and remembers the counts at the peak of them all, and
    the most activations, which may be at another moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.most_activations = 0
        self.kind = ACTIVATIONS
        self.kinds: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for part in tree_leaves(made):
            if isinstance(part, Tensor):
                self._see(part)
        return made

    def forget_peak(self) -> None:
        self.at_peak, self.most_activations = self.now.copy(), self.now[ACTIVATIONS]

    def name_next(self, kind: str) -> None:
        """What new storages are from now on."""
        self.kind = kind

    @contextlib.contextmanager
    def named(self, kind: str) -> Iterator[None]:
        """What new storages within the context are."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def rename(self, tensor: Tensor, kind: str) -> None:
        """Say what a tensor's storage is after all."""
        key, size = _identity(tensor), tensor.untyped_storage().nbytes()
        if self.kinds.get(key, kind) != kind:
            self.now[self.kinds[key]] -= size
            self.now[kind] += size
            self.kinds[key] = kind

    def _see(self, tensor: Tensor) -> None:
        key = _identity(tensor)
        if key in self.kinds:
            return
        storage = tensor.untyped_storage()
        self.kinds[key] = self.kind
        self.now[self.kind] += storage.nbytes()
        weakref.finalize(storage, self._gone, key, storage.nbytes()).atexit = False
        if self.now.total() > self.at_peak.total():
            self.at_peak = self.now.copy()
        self.most_activations = max(self.most_activations, self.now[ACTIVATIONS])

    def _gone(self, key: int, size: int) -> None:
        self.now[self.kinds.pop(key)] -= size


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Where tensors are on the CPU by name, choose what a GPU would run.

    Fused attention, which keeps no table of probabilities, with any mask and with dropout; norms in 32 bits under autocast;
    dropout that keeps a byte an element. The functions themselves are exchanged: a mode of torch would not reach into the
    backward pass, where layers may be computed anew.
    """
    before = {name: getattr(F, name) for name in _ON_GPU}
    try:
        for name, chosen in _ON_GPU.items():
            setattr(F, name, chosen)
        yield
    finally:
        for name, own in before.items():
            setattr(F, name, own)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    if attn_mask is not None:
        shape = (*query.shape[:3], key.shape[2])
        attn_mask = attn_mask.to(query.dtype).expand(shape)
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def _norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _layer_norm(input.float() if torch.is_autocast_enabled("cpu") else input, *args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


_layer_norm = F.layer_norm
_ON_GPU = {"scaled_dot_product_attention": _fused_attention, "layer_norm": _norm, "dropout": _dropout}
