"""The memory of steps on fake tensors. It is compared with real steps in tests/benchmarks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from batches.losses import Losses, Term
from engine.config import TrainConfig
from optim.config import OptimConfig
from tests.engine.toy import Points
from tools.steps.fake import FakeSteps, as_on_gpu
from utils.errors import UserError

WIDTH, ROWS, LAYERS = 256, 4096, 8
ORIGINAL_DROPOUT = F.dropout


class Deep(nn.Module):
    chunks = 1

    def __init__(self, recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        block = lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())  # noqa: E731
        self.blocks = nn.ModuleList(block() for _ in range(LAYERS // 2))

    def forward(self, batch: Points) -> Losses:
        states = batch.x
        for block in self.blocks:
            states = checkpoint(block, states, use_reentrant=False) if self.recompute else block(states)
        return {"error": Term((states.sum(dim=1) - batch.y).square().sum(), 1.0)}

    def counts(self, batch: Points) -> dict[str, Tensor]:
        return {"error": batch.valid.sum()}


class ReadingValues(Deep):
    def forward(self, batch: Points) -> Losses:
        return super().forward(batch) if batch.x.sum() > 0 else {}


def points(_: nn.Module) -> Points:
    return Points(torch.ones(ROWS, WIDTH), torch.ones(ROWS), torch.ones(ROWS, dtype=torch.bool), ())


def rehearsal(model: type[Deep] = Deep, recompute: bool = False, **options) -> FakeSteps:
    train = TrainConfig(steps=1, precision="fp32")
    return FakeSteps(model(recompute), train, OptimConfig(lr=1.0), **{"as_on_gpu": False, **options})


def test_each_part_of_the_memory_has_the_expected_size():
    found = rehearsal().memory(points, gradients_stay=True)
    parameters = 4 * LAYERS * (WIDTH**2 + WIDTH)
    assert found.weights == found.gradients == parameters
    assert found.optimiser == pytest.approx(2 * parameters, rel=1e-3)
    # The input, the output of each Tanh, and the gradients of one or two states that the backward pass holds in addition.
    states = 4 * ROWS * WIDTH
    assert (1 + LAYERS) * states <= found.activations <= (1 + LAYERS + 3) * states
    assert found.total == found.weights + found.gradients + found.optimiser + found.activations


def test_kept_gradients_only_add_their_size():
    run = rehearsal()
    assert run.memory(points, gradients_stay=False).total <= run.memory(points, gradients_stay=True).total


def test_checkpointed_activations_are_not_kept():
    kept, recomputed = (rehearsal(recompute=each).memory(points, gradients_stay=True) for each in (False, True))
    assert recomputed.activations < 0.8 * kept.activations


class Attending(nn.Module):
    chunks = 1

    """A block that uses all functions with special GPU implementations."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(0.1)

    def forward(self, states: Tensor) -> Tensor:
        heads = self.norm(states).view(8, -1, 4, WIDTH // 4).transpose(1, 2)
        found = F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.1)
        return states + self.drop(found.transpose(1, 2).reshape(states.shape))


class DeepAttending(Deep):
    def __init__(self, recompute: bool = False):
        super().__init__(recompute)
        self.blocks = nn.ModuleList([*self.blocks, *(Attending() for _ in range(4))])


def test_gpu_implementations_are_also_used_when_layers_are_recomputed():
    runs = [rehearsal(DeepAttending, recompute, as_on_gpu=True) for recompute in (False, True)]
    kept, recomputed = (run.memory(points, gradients_stay=True) for run in runs)
    assert recomputed.activations < 0.8 * kept.activations
    assert F.dropout is ORIGINAL_DROPOUT, "torch's functions must be restored"


def test_repeating_a_step_takes_the_same_memory():
    run = rehearsal()
    first, second = (run.memory(points, gradients_stay=False) for _ in range(2))
    assert first == second


def test_a_step_that_reads_values_is_rejected_in_one_line():
    with pytest.raises(UserError, match="depends on the contents of tensors"):
        rehearsal(ReadingValues).memory(points, gradients_stay=True)


@pytest.mark.parametrize("mask", ["none", "padding", "bias"])
def test_on_a_gpu_attention_keeps_no_probabilities(mask):
    """With dropout or with a trained bias, the CPU keeps the probabilities. Shapes and gradients stay as on the CPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), as_on_gpu():
        query = torch.empty(2, 4, 16, 8, requires_grad=True)
        given = {"none": None, "padding": torch.ones(2, 1, 1, 16, dtype=torch.bool)}
        bias = torch.empty(1, 4, 16, 16, requires_grad=True) if mask == "bias" else given[mask]
        out = F.scaled_dot_product_attention(query, query, query, attn_mask=bias, dropout_p=0.1)
        assert "Efficient" in type(out.grad_fn).__name__
        assert out.shape == query.shape
        out.sum().backward()
        assert query.grad.shape == query.shape
        if mask == "bias":
            assert bias.grad.shape == bias.shape


def test_on_a_gpu_norms_are_in_32_bits_under_autocast():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), as_on_gpu(), torch.autocast("cpu", torch.bfloat16):
        states = nn.Linear(8, 8)(torch.empty(2, 8))
        assert states.dtype == torch.bfloat16
        assert nn.LayerNorm(8)(states).dtype == torch.float32
        assert F.dropout(states, 0.5).dtype == torch.bfloat16
