"""Losses and gradients on two gloo processes are compared with one process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from batches.pretraining import ImageTextBatch, PretrainBatch, TranslationBatch
from batches.texts import MaskedText, Text
from models.config import LossWeights, PretrainContrastiveConfig, StreamWeights
from models.core.losses import EmbeddedPairs
from models.pretraining.model import PretrainModel
from tests.models.golden import GOLDEN, arrays, manifest, model_config, pretrain_batch
from tests.ranks import on_two_ranks
from utils import distributed

# Negatives are drawn within the local batch, so the matching loss of two halves differs from the loss of the whole batch.
WEIGHTS = LossWeights(matching=0.0)


def build(gradient: str = "exact", streams: StreamWeights | None = None, shallow: bool = False) -> PretrainModel:
    """A model with the sizes of the golden one; if ``shallow``, with one layer in each encoder."""
    config = model_config(manifest("pretrain"))
    parts: dict[str, object] = {"contrastive": PretrainContrastiveConfig(gradient=gradient, identical_texts="negative")}
    if shallow:
        arch = config.text.arch.model_copy(update={"layers": 1})
        parts |= {
            "vision": config.vision.model_copy(update={"depth": 1}),
            "text": config.text.model_copy(update={"arch": arch}),
            "fusion": config.fusion.model_copy(update={"layers": 1}),
        }
    torch.manual_seed(0)
    return PretrainModel(config.model_copy(update=parts), weights=WEIGHTS, streams=streams).eval()


def tensors(text: MaskedText) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(text).items() if isinstance(value, torch.Tensor)}


def half(batch: PretrainBatch, rank: int) -> PretrainBatch:
    """Rows 2 * rank and 2 * rank + 1 of the image stream. Row 3 is invalid, so the halves have 2 valid rows and 1."""
    images = with_an_invalid_row(batch).images
    rows = slice(2 * rank, 2 * rank + 2)
    text = replace(images.text, **{name: part[rows] for name, part in tensors(images.text).items()})
    return PretrainBatch(ImageTextBatch(images.pixels[rows], text, images.valid[rows]), None, None)


def with_an_invalid_row(batch: PretrainBatch) -> PretrainBatch:
    images = batch.images
    valid = images.valid.clone()
    valid[3] = False
    labels = images.text.labels.clone()
    labels[3] = -100
    return PretrainBatch(replace(images, valid=valid, text=replace(images.text, labels=labels)), None, None)


def gradients(model: PretrainModel, wrapped, batch: PretrainBatch) -> dict[str, torch.Tensor]:
    """The gradients as the trainer computes them: sums divided by global counts, multiplied by the number of ranks, averaged by
    DDP."""
    counts = {name: distributed.sum_over_ranks(count).clamp(min=1) for name, count in model.counts(batch).items()}
    terms = wrapped(batch)
    loss = sum(term.weight * term.total / counts[name] for name, term in terms.items())
    (loss * distributed.world_size()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": distributed.sum_over_ranks(loss)}


def step(gradient: str) -> dict[str, torch.Tensor]:
    model = build(gradient)
    model.box_head.requires_grad_(False)
    batch = half(pretrain_batch(arrays(GOLDEN / "pretrain" / "inputs.npz")), distributed.rank())
    return gradients(model, DistributedDataParallel(model), batch)


def exact_step() -> dict[str, torch.Tensor]:
    return step("exact")


def released_step() -> dict[str, torch.Tensor]:
    return step("released")


def single(shallow: bool = False) -> dict[str, torch.Tensor]:
    model = build(shallow=shallow)
    batch = with_an_invalid_row(pretrain_batch(arrays(GOLDEN / "pretrain" / "inputs.npz")))
    return gradients(model, model, batch)


def test_two_ranks_give_loss_and_gradients_of_one(tmp_path):
    expected = single()
    for found in on_two_ranks(exact_step, tmp_path):
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def text_pairs(rows: slice) -> PretrainBatch:
    """Texts paired with other texts instead of translations. Row 3 is invalid, so the halves have 2 valid rows and 1."""
    images = with_an_invalid_row(pretrain_batch(arrays(GOLDEN / "pretrain" / "inputs.npz"))).images
    text = replace(images.text, **{name: part[rows] for name, part in tensors(images.text).items()})
    other = Text(images.text.ids.flip(0)[rows], images.text.mask.flip(0)[rows])
    return PretrainBatch(None, None, None, translations=TranslationBatch(text, other, images.valid[rows]))


def text_pair_step() -> dict[str, torch.Tensor]:
    model = build(streams=StreamWeights(translations=1.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for matrix in (parameter for parameter in model.parameters() if parameter.dim() == 2):
            matrix += 0.1 * torch.randn_like(matrix)  # so that the states of texts are not all similar
    for unused in (model.vision, model.contrastive.vision_proj, model.box_head):
        unused.requires_grad_(False)
    if distributed.world_size() == 1:
        return gradients(model, model, text_pairs(slice(0, 4)))
    rank = distributed.rank()
    return gradients(model, DistributedDataParallel(model), text_pairs(slice(2 * rank, 2 * rank + 2)))


def test_two_ranks_give_the_text_pair_losses_and_gradients_of_one(tmp_path):
    expected = text_pair_step()
    assert expected["contrastive.text_proj.weight"].abs().max() > 0
    assert expected["fusion.layer.0.crossattention.self.key.weight"].abs().max() > 0
    for found in on_two_ranks(text_pair_step, tmp_path):
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


class ReleasedGather(torch.autograd.Function):
    """The gather of the authors' code: only the local slice has a gradient, and the gradient is not summed over ranks."""

    @staticmethod
    def forward(ctx, tensor):
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        return grad[dist.get_rank() * ctx.rows :][: ctx.rows]


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3 + distributed.rank())
    return tuple(F.normalize(torch.randn(3, 16), dim=1).requires_grad_(True) for _ in range(2))


def gradients_of_both_implementations() -> dict[str, torch.Tensor]:
    """Returns the gradients of embeddings and temperature, averaged as by DDP, from our head (with `released` gradients) and from
    the formula in the authors' code."""
    head = build("released").contrastive
    results = {}
    for implementation in ("ours", "theirs"):
        image, text = embeddings()
        head.temperature.grad = None
        if implementation == "ours":
            valid, group = torch.ones(3, dtype=torch.bool), torch.arange(3) + 3 * distributed.rank()
            loss = head.start_loss(EmbeddedPairs(image, text, valid, group, "negative"))() / 6 * 2
        else:
            logits = ReleasedGather.apply(image) @ ReleasedGather.apply(text).t() / head.temperature
            target = torch.arange(6)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
        loss.backward()
        for name, tensor in (("image", image), ("text", text)):
            results[f"{implementation}.{name}"] = tensor.grad / 2
        results[f"{implementation}.temperature"] = distributed.sum_over_ranks(head.temperature.grad) / 2
    return results


def test_the_released_gradient_equals_the_released_formula(tmp_path):
    for found in on_two_ranks(gradients_of_both_implementations, tmp_path):
        for name in ("image", "text", "temperature"):
            torch.testing.assert_close(found[f"ours.{name}"], found[f"theirs.{name}"], atol=1e-6, rtol=1e-4)


def helpers() -> dict[str, torch.Tensor]:
    rank = distributed.rank()
    return {
        "rows": distributed.start_gather(torch.tensor([rank, rank + 10]))(),
        "masks": distributed.start_gather(torch.tensor([[rank == 0, True]]))(),
        "sum": distributed.sum_over_ranks(torch.tensor(rank + 1)),
    }


def test_distributed_helpers_gather_and_sum(tmp_path):
    for found in on_two_ranks(helpers, tmp_path):
        assert found["rows"].tolist() == [0, 10, 1, 11]
        assert found["masks"].tolist() == [[True, True], [False, True]]
        assert found["sum"] == 3


def test_distributed_helpers_are_the_identity_without_a_process_group():
    rows = torch.arange(3.0)
    assert distributed.rank() == 0
    assert distributed.world_size() == 1
    assert distributed.start_gather(rows)() is rows
    assert distributed.sum_over_ranks(rows) is rows
    distributed.barrier()


@pytest.mark.parametrize("factor", [0.5, 0.0])
def test_scale_gradient_does_not_change_values(factor):
    tensor = torch.randn(4, requires_grad=True)
    scaled = distributed.scale_gradient(tensor, factor)
    assert torch.equal(scaled, tensor)
    scaled.sum().backward()
    assert torch.equal(tensor.grad, torch.full((4,), factor))
