"""Estimates the memory of a training step with fake tensors, which have shapes but no contents.

The trainer runs its real step on the fake tensors, so the estimate covers all options of the config, and the model does not have
to fit into this machine's memory.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
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

from batches.losses import Work
from engine.config import TrainConfig
from engine.parallel.choice import gathered_dtype
from engine.parallel.fsdp import Groups
from engine.precision import APEX_LEVELS
from engine.steps import chunks_of, trainer_of
from optim.config import OptimConfig
from optim.setup import encoders_in
from tools.steps.other_ranks import simulated_ranks
from utils.errors import UserError
from utils.tensors import tensor_bytes

WEIGHTS, GRADIENTS, OPTIMISER, ACTIVATIONS = "weights", "gradients", "optimiser", "activations"
BLOCK_GRADIENTS = "gradients of blocks"
"""Gradients that FSDP2 scatters during the backward pass."""
AVERAGE = "average"


@dataclass(frozen=True)
class StepMemory:
    """Bytes in use at the peak of a step, by purpose. ``average`` are the averaged weights of ``optim.ema``, ``gathered`` the
    shards of other ranks that FSDP2 holds temporarily, and ``activations`` all bytes without any other purpose."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    average: int = 0
    gathered: int = 0

    @property
    def total(self) -> int:
        return sum(astuple(self))


class FakeSteps:
    """Runs the trainer's steps on fake tensors. :class:`tools.steps.real.RealSteps` runs real steps instead.

    Args:
        model: the model, on any device. The steps change a copy, whose tensors are fake.
        train, optim: the sections of the run's config.
        as_on_gpu: whether to assume a GPU's kernels instead of this CPU's.
    """

    def __init__(self, model: nn.Module, train: TrainConfig, optim: OptimConfig, *, as_on_gpu: bool):
        self.fake, self.live, self.as_on_gpu = FakeTensorMode(), LiveMemory(), as_on_gpu
        with self._fake_tensors(), self.live.named(WEIGHTS):
            fake_model = _with_fake_tensors(model)
        # Fake tensors cannot be moved or counted.
        fake_model.to = lambda _: fake_model
        fake_model.work = lambda _: Work()
        # The loss scaler of fp16 reads contents; bf16 has the same width.
        half = "bf16" if APEX_LEVELS.get(train.precision, train.precision) == "fp16" else train.precision
        self.trainer = trainer_of(fake_model, train.model_copy(update={"precision": half}), optim, torch.device("cpu"))
        with self.live.named(AVERAGE):
            self.live.register(self.trainer.trained.average.tensors)
        blocks = [block for encoder in encoders_in(fake_model) for block in encoder.blocks_to_shard]
        block_parameters = {id(parameter) for block in blocks for parameter in block.parameters()}
        for parameter in trainable(fake_model):
            use = BLOCK_GRADIENTS if id(parameter) in block_parameters else GRADIENTS
            parameter.register_post_accumulate_grad_hook(partial(self._is_gradient, use))
        self.trainer.trained.optimizer.register_step_pre_hook(lambda *_: self.live.name_next(OPTIMISER))
        self.trainer.trained.optimizer.register_step_post_hook(lambda *_: self.live.name_next(ACTIVATIONS))
        self.started = False

    def memory(self, make_batch: Callable[[nn.Module], Any], *, gradients_stay: bool, ranks: int = 1) -> StepMemory:
        """Returns the memory of a step on one micro-batch, or on all the micro-batches that a loss spans, after a first step that
        creates the optimiser's states.

        Args:
            make_batch: function that makes the micro-batch for the model.
            gradients_stay: whether gradients exist in addition to the activations of a whole forward pass, as with several
                micro-batches per step or several processes.
            ranks: number of ranks whose examples contrastive losses gather.

        Raises:
            UserError: if the step depends on the contents of its tensors.
        """
        self._step(make_batch, ranks)
        peak = self.live.at_peak
        gradients, activations = peak[GRADIENTS] + peak[BLOCK_GRADIENTS], peak[ACTIVATIONS]
        if gradients_stay:
            gradients, activations = tensor_bytes(trainable(self.trainer.model)), self.live.most_activations
        return StepMemory(peak[WEIGHTS], gradients, peak[OPTIMISER], activations, peak[AVERAGE])

    def sharded_memory(
        self, make_batch: Callable[[nn.Module], Any], *, shard: int, gradients_stay: bool, ranks: int
    ) -> StepMemory:
        """Returns the memory of a step with FSDP2; see :meth:`memory`.

        The peak occurs either while activations are kept, when a rank also holds the weights and gradients of two blocks, or at
        the end, when gradients outside the blocks are copied to be scattered. ``tests/distributed/test_memory_of_ranks.py``
        compares both with what ranks allocate.

        Args:
            make_batch: function that makes the micro-batch for the model.
            shard: number of ranks that share a model.
            gradients_stay: whether the step has several micro-batches.
            ranks: number of ranks whose examples contrastive losses gather.

        Raises:
            UserError: if the step depends on the contents of its tensors.
        """
        with self.live.counting({BLOCK_GRADIENTS: 1 / shard}):
            self._step(make_batch, ranks)
        peak, model = self.live.at_peak, self.trainer.model
        groups = Groups.of(model, gathered_dtype=gathered_dtype(self.trainer.config))
        trained = Groups.of(model, trained=True)
        share = tensor_bytes(trainable(model)) // shard
        gradients = peak[GRADIENTS] + peak[BLOCK_GRADIENTS] // shard
        if gradients_stay and chunks_of(model) == 1:  # otherwise the step above already had several micro-batches
            gradients += share
        gathered = groups.peak + 2 * max(trained.blocks, default=0)
        activations = peak[ACTIVATIONS]
        if gradients + gathered + activations < trained.rest + share + groups.rest + trained.rest:
            gradients, gathered, activations = trained.rest + share, groups.rest + trained.rest, 0
        weights, optimiser, average = (-(-peak[use] // shard) for use in (WEIGHTS, OPTIMISER, AVERAGE))
        return StepMemory(weights, gradients, optimiser, activations, average, gathered)

    def _step(self, make_batch: Callable[[nn.Module], Any], ranks: int) -> None:
        """Runs a step; ``live`` records its peak."""
        try:
            with self._fake_tensors(), simulated_ranks(ranks):
                batches = [make_batch(self.trainer.model)] * chunks_of(self.trainer.model)
                if not self.started:
                    self.trainer.train_step(batches)
                    self.started = True
                self.live.forget_peak()
                self.trainer.train_step(batches)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UserError(
                f"the memory of this model's step depends on the contents of tensors ({error})",
                remedy="plan it on a machine with a GPU",
            ) from None

    @contextlib.contextmanager
    def _fake_tensors(self) -> Iterator[None]:
        with contextlib.ExitStack() as modes:
            modes.enter_context(self.fake)
            modes.enter_context(self.live)
            if self.as_on_gpu:
                modes.enter_context(as_on_gpu())
            yield

    def _is_gradient(self, use: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.live.rename(parameter.grad, use)


def _with_fake_tensors(model: Any) -> Any:
    """Returns a copy of a model whose parameters and buffers are fake; must be called in a fake mode."""
    fakes: dict[int, Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
        fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    return copy.deepcopy(model, fakes)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that have gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of live storages, by purpose.

    Attributes:
        at_peak: the counts when the total was largest.
        most_activations: the largest count of activations, possibly at a different time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.most_activations = 0
        self.kind = ACTIVATIONS
        self.kinds: dict[int, str] = {}
        self.shares: Mapping[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.register(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def register(self, tensors: Iterable[Tensor]) -> None:
        """Counts the storages of the tensors. The outputs of operations are counted automatically."""
        for tensor in tensors:
            self._register(tensor)

    @contextlib.contextmanager
    def counting(self, shares: Mapping[str, float]) -> Iterator[None]:
        """Context manager in which only a fraction of the bytes with each of these purposes counts towards the total."""
        self.shares = shares
        try:
            yield
        finally:
            self.shares = {}

    def _total(self, bytes_of: Mapping[str, int]) -> float:
        return sum(count * self.shares.get(use, 1) for use, count in bytes_of.items())

    def forget_peak(self) -> None:
        self.at_peak, self.most_activations = self.now.copy(), self.now[ACTIVATIONS]

    def name_next(self, kind: str) -> None:
        """Sets the purpose of all storages that are created after this call."""
        self.kind = kind

    @contextlib.contextmanager
    def named(self, kind: str) -> Iterator[None]:
        """Context manager that sets the purpose of all storages that are created inside it."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def rename(self, tensor: Tensor, kind: str) -> None:
        """Corrects the purpose of a tensor's storage."""
        key, size = _identity(tensor), tensor.untyped_storage().nbytes()
        if self.kinds.get(key, kind) != kind:
            self.now[self.kinds[key]] -= size
            self.now[kind] += size
            self.kinds[key] = kind

    def _register(self, tensor: Tensor) -> None:
        key = _identity(tensor)
        if key in self.kinds:
            return
        storage = tensor.untyped_storage()
        self.kinds[key] = self.kind
        self.now[self.kind] += storage.nbytes()
        weakref.finalize(storage, self._release, key, storage.nbytes()).atexit = False
        if self._total(self.now) > self._total(self.at_peak):
            self.at_peak = self.now.copy()
        self.most_activations = max(self.most_activations, self.now[ACTIVATIONS])

    def _release(self, key: int, size: int) -> None:
        self.now[self.kinds.pop(key)] -= size


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Replaces functions of torch with their GPU versions, for fake tensors that are nominally on the CPU.

    Attention is fused and stores no probabilities, with any mask and with dropout; norms are in 32 bits under autocast; dropout
    stores one byte per element. The functions are replaced, because a torch mode would not affect recomputation in the
    backward pass.
    """
    originals = {name: getattr(F, name) for name in _ON_GPU}
    try:
        for name, replacement in _ON_GPU.items():
            setattr(F, name, replacement)
        yield
    finally:
        for name, original in originals.items():
            setattr(F, name, original)


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
        query, key, value = (states.to(torch.get_autocast_dtype("cpu")) for states in (query, key, value))
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
