"""A contrastive loss over several micro-batches has the same gradients as one large micro-batch, on one rank and on two."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from batches.pretraining import HardNegatives, ImageTextBatch, PretrainBatch
from batches.texts import Text
from engine.micro_batches import seed_generators, seeded_micro_batches
from models.core import gradient_cache, losses
from models.pretraining.model import PretrainModel
from tests.distributed.test_two_ranks import WEIGHTS, build, gradients, tensors, with_an_invalid_row
from tests.models.golden import GOLDEN, arrays, pretrain_batch
from tests.ranks import on_two_ranks
from utils import distributed


def whole() -> PretrainBatch:
    return with_an_invalid_row(pretrain_batch(arrays(GOLDEN / "pretrain" / "inputs.npz")))


def with_hard_negatives(images: ImageTextBatch) -> ImageTextBatch:
    """Adds two wrong texts to each image, of which one in four does not count. They are the texts in other orders."""
    ids, mask = (
        torch.stack([part.flip(0), part.roll(1, dims=0)], dim=1) for part in (images.text.ids, images.text.mask)
    )
    valid = torch.arange(2 * len(ids)).view(-1, 2) % 4 > 0
    return replace(images, hard_negatives=HardNegatives(Text(ids.flatten(0, 1), mask.flatten(0, 1)), valid))


def rows_of(batch: PretrainBatch, rows: slice) -> PretrainBatch:
    images = batch.images
    text = replace(images.text, **{name: part[rows] for name, part in tensors(images.text).items()})
    hard = images.hard_negatives
    if hard is not None:
        parts = [part.unflatten(0, hard.valid.shape)[rows].flatten(0, 1) for part in (hard.text.ids, hard.text.mask)]
        hard = HardNegatives(Text(*parts), hard.valid[rows])
    return PretrainBatch(ImageTextBatch(images.pixels[rows], text, images.valid[rows], None, hard), None, None)


def in_chunks(chunks: int, gradient: str = "exact", double: bool = False, loss: str = "softmax") -> PretrainModel:
    model = build(gradient)
    contrastive = model.config.contrastive.model_copy(update={"chunks": chunks, "loss": loss})
    model = PretrainModel(model.config.model_copy(update={"contrastive": contrastive}), weights=WEIGHTS).eval()
    model.load_state_dict({**model.state_dict(), **build(gradient).state_dict()})
    model.box_head.requires_grad_(False)
    return model.double() if double else model


def step(model: PretrainModel, micro_batches: Sequence[PretrainBatch], seed=lambda number: None) -> dict:
    """The gradients as the trainer computes them: sums divided by global counts, multiplied by the number of ranks, averaged by
    DDP."""
    parallel = DistributedDataParallel(model) if distributed.world_size() > 1 else model
    counts = [model.counts(batch) for batch in micro_batches]
    divisors = {name: distributed.sum_over_ranks(sum(each[name] for each in counts)).clamp(min=1) for name in counts[0]}
    total = 0.0
    for number, batch in seeded_micro_batches(model, micro_batches, model.chunks, nullcontext, seed):
        last = number == len(micro_batches) - 1
        with nullcontext() if last or parallel is model else parallel.no_sync():
            terms = parallel(batch)
            loss = sum(term.weight * term.total / divisors[name] for name, term in terms.items())
            (loss * distributed.world_size()).backward()
        total += loss.detach()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": distributed.sum_over_ranks(total)}


def assert_equal(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() <= expected.keys() and len(found) > 50
    for name, gradient in found.items():
        scale = expected[name].abs().max().clamp(min=1e-3)
        assert (gradient - expected[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("hard", [False, True], ids=["", "hard negatives"])
@pytest.mark.parametrize("columns", [4096, 3])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_chunks_give_loss_and_gradients_of_one_micro_batch(loss, columns, hard, monkeypatch):
    """Tested in float64, with examples that are compared in one block and in several blocks."""
    batch = whole()
    images = with_hard_negatives(batch.images) if hard else batch.images
    batch = replace(batch, images=replace(images, pixels=images.pixels.double()))
    large = in_chunks(1, double=True, loss=loss)
    expected = gradients(large, large, batch)
    monkeypatch.setattr(losses, "COLUMNS", columns)
    for size in (1, 2):
        parts = [rows_of(batch, slice(start, start + size)) for start in range(0, 4, size)]
        found = step(in_chunks(4 // size, double=True, loss=loss), parts)
        assert ("contrastive.bias" in found) == (loss == "sigmoid")
        assert_equal(found, expected, 1e-9)


def test_without_chunks_each_micro_batch_is_compared_separately():
    batch = whole()
    parts = [rows_of(batch, slice(start, start + 2)) for start in (0, 2)]
    assert step(in_chunks(1), parts)["loss"] < step(in_chunks(2), parts)["loss"]


def rank_gradients(gradient: str = "exact") -> dict:
    first, batch = 2 * distributed.rank(), whole()
    parts = [rows_of(batch, slice(first + row, first + row + 1)) for row in range(2)]
    return step(in_chunks(2, gradient), parts)


def gradients_with_hard_negatives() -> dict:
    """Like :func:`rank_gradients`, with hard negatives, which other ranks do not have."""
    batch = whole()
    batch = replace(batch, images=with_hard_negatives(batch.images))
    first = 2 * distributed.rank()
    return step(in_chunks(2), [rows_of(batch, slice(first + row, first + row + 1)) for row in range(2)])


def gradients_of_large_batches() -> dict:
    first, model = 2 * distributed.rank(), in_chunks(1, "released")
    return step(model, [rows_of(whole(), slice(first, first + 2))])


def released_gradients() -> dict:
    return rank_gradients("released")


@pytest.mark.slow
def test_chunks_on_two_ranks_give_loss_and_gradients_of_one(tmp_path):
    model = in_chunks(1)
    expected = gradients(model, model, whole())
    for found in on_two_ranks(rank_gradients, tmp_path):
        assert_equal(found, expected, 1e-4)


@pytest.mark.slow
def test_chunks_on_two_ranks_equal_one_micro_batch_with_hard_negatives(tmp_path):
    model, batch = in_chunks(1), whole()
    expected = gradients(model, model, replace(batch, images=with_hard_negatives(batch.images)))
    for found in on_two_ranks(gradients_with_hard_negatives, tmp_path):
        assert_equal(found, expected, 1e-4)


@pytest.mark.slow
def test_chunks_on_two_ranks_equal_one_micro_batch_with_the_released_gradient(tmp_path):
    for found, expected in zip(
        on_two_ranks(released_gradients, tmp_path), on_two_ranks(gradients_of_large_batches, tmp_path), strict=True
    ):
        assert_equal(found, expected, 1e-4)


def test_dropout_draws_the_same_numbers_in_both_passes(monkeypatch):
    """Gradients are computed from the first pass's embeddings, so they are only correct if the second pass has the same
    embeddings."""
    model, first, second = in_chunks(2).train(), [], []
    cached = gradient_cache.cached_losses
    monkeypatch.setattr(
        "models.core.gradient_cache.cached_losses",
        lambda head, embedded: first.extend(one for [one] in embedded) or cached(head, embedded),
    )
    loss = gradient_cache.CachedLoss.loss
    monkeypatch.setattr(
        gradient_cache.CachedLoss, "loss", lambda own, embedded, t: second.append(embedded) or loss(own, embedded, t)
    )
    batch = whole()
    parts = [rows_of(batch, slice(start, start + 2)) for start in (0, 2)]

    def seed(number: int) -> None:
        seed_generators(torch.device("cpu"), 5, number)

    step(model, parts, seed)
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one.image, other.image, rtol=0, atol=0)
        torch.testing.assert_close(one.text, other.text, rtol=0, atol=0)
    apart = []
    for number in (0, 1):
        seed(number)
        with torch.no_grad():
            apart.append(model.embed(parts[0])[0].image)
    assert not torch.equal(*apart), "dropout must be enabled"


def test_after_a_step_the_loss_covers_single_micro_batches_again():
    model, batch = in_chunks(2), whole()
    step(model, [rows_of(batch, slice(start, start + 2)) for start in (0, 2)])
    assert model.contrastive.cached is None
