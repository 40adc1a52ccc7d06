"""Properties of the loss functions."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from models.core import losses
from models.core.losses import EmbeddedPairs, SameGroup
from tests.models.test_precision import captioning, grounding, nlvr, retrieval, video_qa, vqa

TEMPERATURE = torch.tensor(0.1)


def pairs(n: int, valid=None, group=None, same_group: SameGroup = "negative", seed: int = 0) -> EmbeddedPairs:
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(n, 8, generator=generator), dim=1) for _ in range(2))
    valid = torch.ones(n, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return EmbeddedPairs(image, text, valid, torch.arange(n) if group is None else torch.tensor(group), same_group)


def part_of(whole: EmbeddedPairs, index: slice | list[int]) -> EmbeddedPairs:
    return EmbeddedPairs(*(part[index] for part in whole[:4]), whole.same_group)


def contrastive(local, all_ranks=None, offset=0) -> torch.Tensor:
    return losses.contrastive(local, all_ranks or local, offset, TEMPERATURE)


def test_contrastive_is_the_mean_of_both_cross_entropies():
    local = pairs(5)
    logits = local.image @ local.text.t() / TEMPERATURE
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
    torch.testing.assert_close(contrastive(local) / 5, expected)


BIAS = torch.tensor(-2.0)


def sigmoid(local, all_ranks=None, offset=0) -> torch.Tensor:
    return losses.sigmoid_contrastive(local, all_ranks or local, offset, TEMPERATURE, BIAS)


def test_the_sigmoid_loss_treats_each_pair_independently():
    local = pairs(5)
    logits = local.image @ local.text.t() / TEMPERATURE + BIAS
    expected = F.binary_cross_entropy_with_logits(logits, torch.eye(5), reduction="sum")
    torch.testing.assert_close(sigmoid(local), expected)
    alone = [sigmoid(part_of(local, slice(i, i + 1)), local, i) for i in range(5)]
    torch.testing.assert_close(sum(alone), expected)


def test_hard_negatives_are_additional_texts_for_their_own_image():
    """A text is compared with the images only. An invalid hard negative has no influence."""
    local = pairs(3)
    hard = F.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(1)), dim=2)
    counts = torch.tensor([[True, True], [True, False], [False, False]])
    logits = local.image @ local.text.t() / TEMPERATURE
    own = torch.einsum("ne,nke->nk", local.image, hard) / TEMPERATURE
    seen = torch.cat([logits, own.masked_fill(~counts, -torch.inf)], dim=1)
    target = torch.arange(3)
    expected = (F.cross_entropy(seen, target) + F.cross_entropy(logits.t(), target)) / 2
    whole = local._replace(hard_negatives=hard, hard_valid=counts)
    torch.testing.assert_close(contrastive(whole) / 3, expected)
    more = -F.logsigmoid(-(own + BIAS))[counts].sum() / 2
    torch.testing.assert_close(sigmoid(whole), sigmoid(local) + more)


def test_an_invalid_pair_has_no_hard_negatives():
    hard = F.normalize(torch.randn(2, 1, 8), dim=2)
    local = pairs(2, valid=[True, False])._replace(hard_negatives=hard, hard_valid=torch.ones(2, 1, dtype=torch.bool))
    without = local._replace(hard_valid=torch.tensor([[True], [False]]))
    for loss in (contrastive, sigmoid):
        torch.testing.assert_close(loss(local), loss(without))


def test_examples_with_equal_ids_are_negatives_or_ignored_or_sigmoid_positives():
    same = pairs(4, group=[7, 7, 1, 2], valid=[True, True, True, False])
    logits = (same.image @ same.text.t() / TEMPERATURE + BIAS)[:3, :3]
    matched, equal = torch.eye(3), torch.zeros(3, 3)
    equal[0, 1] = equal[1, 0] = 1
    for same_group, target, weight in (
        ("negative", matched, None),
        ("ignore", matched, 1 - equal),
        ("positive", matched + equal, None),
    ):
        expected = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
        torch.testing.assert_close(sigmoid(same._replace(same_group=same_group)), expected)


def test_invalid_examples_are_neither_queries_nor_negatives():
    whole, cut = pairs(5, valid=[True, True, False, True, False]), [0, 1, 3]
    kept = part_of(whole, cut)
    torch.testing.assert_close(contrastive(whole), contrastive(kept))


def test_equal_texts_are_negatives_only_on_request():
    same = pairs(4, group=[7, 7, 1, 2])
    ignoring = contrastive(same._replace(same_group="ignore"))
    assert ignoring < contrastive(same)
    torch.testing.assert_close(contrastive(pairs(4, same_group="ignore")), contrastive(pairs(4)))


def test_examples_of_a_rank_add_up_to_the_whole():
    whole = pairs(6)
    halves = [part_of(whole, slice(i, i + 3)) for i in (0, 3)]
    parts = [contrastive(half, whole, offset) for half, offset in zip(halves, (0, 3), strict=True)]
    torch.testing.assert_close(sum(parts), contrastive(whole))


@pytest.mark.parametrize("n", [1, 3])
def test_without_valid_examples_the_loss_is_zero_with_finite_gradients(n):
    local = pairs(n, valid=[False] * n)
    local.image.requires_grad_(True)
    loss = contrastive(local)
    loss.backward()
    assert loss == 0
    assert local.image.grad.isfinite().all()


@pytest.mark.parametrize("same_group", ["negative", "ignore", "positive"])
@pytest.mark.parametrize("columns", [1, 3, 4])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_blocks_of_columns_give_the_same_loss_and_gradients(kind, same_group, columns, monkeypatch):
    """Whole blocks of examples are invalid, and examples with equal ids are in several blocks."""

    def loss_and_gradients() -> list[torch.Tensor]:
        valid = [True, True, False, True, True, True, True, False, False, False]
        everything = pairs(10, valid=valid, group=[5, 1, 2, 5, 3, 4, 5, 6, 7, 5], same_group=same_group)
        leaves = [
            everything.image.requires_grad_(),
            everything.text.requires_grad_(),
            TEMPERATURE.clone().requires_grad_(),
        ]
        local = part_of(everything, slice(2, 6))
        if kind == "softmax":
            loss = losses.contrastive(local, everything, 2, leaves[2])
        else:
            leaves.append(BIAS.clone().requires_grad_())
            loss = losses.sigmoid_contrastive(local, everything, 2, *leaves[2:])
        return [loss, *torch.autograd.grad(loss, leaves)]

    expected = loss_and_gradients()
    monkeypatch.setattr(losses, "COLUMNS", columns)
    for found, value in zip(loss_and_gradients(), expected, strict=True):
        torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-5)


def test_memory_for_the_backward_pass_does_not_grow_quadratically_with_the_ranks(monkeypatch):
    monkeypatch.setattr(losses, "COLUMNS", 64)

    def kept(others: int) -> int:
        """Returns how many numbers are kept for the backward pass, in addition to the embeddings."""
        everything, sizes = pairs(others), {}
        everything.image.requires_grad_()
        own = {part.data_ptr() for part in everything[:4]}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            contrastive(part_of(everything, slice(8)), everything)
        return sum(sizes.values())

    assert kept(1024) < 8 * 1024 * 4 / 4, "a quarter of one of the two similarity matrices"
    assert kept(1024) < 2.5 * kept(512)


def boxes(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 4, generator=generator), torch.rand(n, 4, generator=generator)


def test_giou_equals_torchvision_and_stays_within_bounds():
    from torchvision.ops import generalized_box_iou

    a, b = (losses.corners(box) for box in boxes())
    ours = losses.giou(a, b)
    torch.testing.assert_close(ours, generalized_box_iou(a, b).diagonal(), atol=1e-6, rtol=1e-5)
    assert ours.min() >= -1
    assert ours.max() <= 1
    torch.testing.assert_close(losses.giou(a, a), torch.ones(len(a)))


def test_a_degenerate_box_does_not_affect_other_examples():
    predicted, target = boxes(3)
    counts = torch.ones(3, dtype=torch.bool)
    flat = target.clone()
    flat[1, 2:] = 0
    predicted.requires_grad_(True)
    loss = losses.box_giou(predicted, flat, counts)
    loss.backward()
    alone = [losses.box_giou(predicted[i : i + 1], flat[i : i + 1], counts[:1]) for i in range(3)]
    torch.testing.assert_close(loss, sum(alone))
    assert predicted.grad.isfinite().all()
    assert predicted.grad[[0, 2]].abs().sum() > 0


def test_two_points_have_a_finite_giou_and_gradient():
    point = torch.zeros(1, 4, requires_grad=True)
    value = losses.giou(point, torch.zeros(1, 4))
    value.sum().backward()
    assert math.isfinite(value.item())
    assert point.grad.isfinite().all()


def test_a_batch_of_whole_images_has_a_zero_box_loss():
    predicted, target = boxes(4)
    none = torch.zeros(4, dtype=torch.bool)
    assert losses.box_l1(predicted, target, none) == 0
    assert losses.box_giou(predicted, target, none) == 0


@pytest.mark.parametrize("task", [vqa, captioning, video_qa, retrieval, nlvr, grounding])
@torch.no_grad()
def test_an_invalid_example_adds_nothing_to_the_loss_of_a_task(task):
    model, batch = task()
    terms = model(replace(batch, valid=torch.zeros_like(batch.valid)))
    assert {name: term.total.item() for name, term in terms.items()} == dict.fromkeys(terms, 0)
    assert all(term.total > 0 for term in model(batch).values())


def test_distillation_is_the_mean_of_both_kl_divergences():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (5 * torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    valid = torch.tensor([True, True, False, True, True, False])
    own, target = (each[valid][:, valid] for each in (student, teacher))
    expected = sum(
        F.kl_div(a.log_softmax(1), b.log_softmax(1), reduction="sum", log_target=True)
        for a, b in ((own, target), (own.t(), target.t()))
    )
    torch.testing.assert_close(losses.distillation(student, teacher, valid), expected / 2)
    assert losses.distillation(teacher, teacher.clone(), valid) == 0
    assert losses.distillation(student, teacher, torch.zeros(6, dtype=torch.bool)) == 0


def test_the_gradient_of_the_distillation_is_zero_at_the_teacher():
    student = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses.distillation(student, student.detach(), torch.tensor([True, True, True, False])).backward()
    torch.testing.assert_close(student.grad, torch.zeros(4, 4))
