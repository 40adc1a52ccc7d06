"""The head that predicts a set of boxes, and its losses."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from batches.grounding import GroundingBatch
from batches.texts import Text
from models.config import BoxSetConfig, FusionConfig, GroundingModelConfig, TextArchitecture, TextConfig, VisionConfig
from models.core.set_head import BoxSet, BoxSetHead, box_set_losses
from models.tasks.grounding import GroundingModel

QUERIES = 5
CONFIG = GroundingModelConfig(
    vision=VisionConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, drop_path=0.0),
    text=TextConfig(
        arch=TextArchitecture(vocab_size=40, width=16, layers=1, heads=2, intermediate=32, max_positions=16),
        dropout=0,
        attention_dropout=0,
    ),
    fusion=FusionConfig(layers=1),
)


def with_sets(**sizes: int) -> GroundingModelConfig:
    return CONFIG.model_copy(update={"box_set": BoxSetConfig(**sizes)})


def model_of_sets() -> GroundingModel:
    torch.manual_seed(0)
    return GroundingModel(with_sets(queries=QUERIES, layers=2)).double()


def batch_of(counts: list[int], valid: list[bool] | None = None) -> GroundingBatch:
    generator = torch.Generator().manual_seed(1)
    max_count = max(1, *counts)
    boxes = torch.rand(len(counts), max_count, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2
    mask = torch.ones(len(counts), 6, dtype=torch.bool)
    mask[0, 4:] = False
    return GroundingBatch(
        pixels=torch.randint(0, 256, (len(counts), 3, 32, 32), generator=generator, dtype=torch.uint8),
        text=Text(torch.randint(2, 40, mask.shape, generator=generator), mask),
        boxes_cxcywh=boxes,
        present=torch.arange(max_count) < torch.tensor(counts).unsqueeze(1),
        valid=torch.tensor(valid or [True] * len(counts)),
    )


def by_scipy(
    found: BoxSet, batch: GroundingBatch, class_cost: float = 1, l1_cost: float = 5, giou_cost: float = 2
) -> dict[str, float]:
    """The losses, computed one phrase at a time. The costs are the same as in DETR's ``models/matcher.py``."""
    totals = {"l1": 0.0, "giou": 0.0, "belongs": 0.0}
    for boxes, logits, true, present, valid in zip(*found, batch.boxes_cxcywh, batch.present, batch.valid, strict=True):
        if not valid:
            continue
        true = true[present]
        overlaps = generalized_box_iou(*(box_convert(each, "cxcywh", "xyxy") for each in (true, boxes)))
        distances = torch.cdist(true, boxes, p=1)
        costs = l1_cost * distances - giou_cost * overlaps - class_cost * logits.sigmoid()
        rows, columns = linear_sum_assignment(costs.detach().numpy())
        belongs = torch.zeros(QUERIES, dtype=torch.float64)
        belongs[columns] = 1
        totals["l1"] += float(distances[rows, columns].sum())
        totals["giou"] += float((1 - overlaps[rows, columns]).sum())
        totals["belongs"] += float(F.binary_cross_entropy_with_logits(logits, belongs, reduction="sum"))
    return totals


@pytest.mark.parametrize("valid", [None, [True, False, True, True]])
def test_losses_equal_those_with_scipys_assignment(valid):
    model, batch = model_of_sets(), batch_of([3, 1, 0, 5], valid)
    expected = by_scipy(model.locate_all(batch.pixels, batch.text), batch)
    losses = model(batch)
    assert {name: term.total.item() for name, term in losses.items()} == pytest.approx(expected)
    counted = [True] * 4 if valid is None else valid
    boxes = sum(count for count, counts in zip([3, 1, 0, 5], counted, strict=True) if counts)
    assert {name: int(count) for name, count in model.counts(batch).items()} == {
        "l1": boxes,
        "giou": boxes,
        "belongs": sum(counted),
    }


def test_the_assignment_and_the_losses_weigh_probability_l1_and_giou_as_in_detr():
    """The probabilities of a fresh model are nearly equal, so these boxes and log-odds are drawn. Queries compete for boxes, and
    every part of the cost decides some of the assignments."""
    batch, generator = batch_of([3, 2, 4, 1] * 25), torch.Generator().manual_seed(2)
    boxes = torch.rand(100, QUERIES, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2
    found = BoxSet(boxes, 3 * torch.randn(100, QUERIES, generator=generator, dtype=torch.float64))
    losses = box_set_losses(found, batch.boxes_cxcywh, batch.present, batch.valid)
    assert {name: term.total.item() for name, term in losses.items()} == pytest.approx(by_scipy(found, batch))
    assert {name: term.weight for name, term in losses.items()} == {"l1": 5, "giou": 2, "belongs": 1}
    for others in ({"class_cost": -1}, {"class_cost": 0}, {"l1_cost": 1}, {"giou_cost": 1}, {"giou_cost": 0}):
        assert by_scipy(found, batch, **others)["l1"] != pytest.approx(losses["l1"].total.item()), others


def test_every_parameter_has_a_gradient_and_a_step_reduces_the_loss():
    model, batch = model_of_sets(), batch_of([2, 1, 0])

    def loss() -> torch.Tensor:
        return sum(term.total * term.weight for term in model(batch).values())

    before = loss()
    before.backward()
    without = [name for name, parameter in model.set_head.named_parameters() if parameter.grad is None]
    assert not without
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    assert loss() < before


def test_boxes_of_a_phrase_do_not_depend_on_other_phrases_or_padding():
    model, batch = model_of_sets().eval(), batch_of([2, 1, 0])
    together = model.locate_all(batch.pixels, batch.text)
    alone = model.locate_all(batch.pixels[:1], Text(batch.text.ids[:1, :4], batch.text.mask[:1, :4]))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one[:1], other)


def test_the_best_box_of_a_set_is_the_most_probable():
    model, batch = model_of_sets().eval(), batch_of([2, 1, 0])
    found = model.locate_all(batch.pixels, batch.text)
    best, logits = found.best()
    for row, number in enumerate(found.logits.argmax(dim=1).tolist()):
        assert torch.equal(best[row], found.boxes[row, number])
        assert logits[row] == found.logits[row, number]


@pytest.mark.parametrize("queries", [1, 5, 7, 16, 24])
def test_queries_start_at_different_cells_all_over_the_image(queries):
    cells = GroundingModel(with_sets(queries=queries)).set_head.cells.sigmoid()
    assert cells.shape == (queries, 4) and len({tuple(cell) for cell in cells.tolist()}) == queries
    if queries > 1:
        assert cells[0, :2].max() < 0.5 < cells[-1, :2].min()


@pytest.mark.parametrize("queries", [2, 6, 12, 16, 20])
def test_cells_tile_the_image(queries):
    """These numbers of queries fill their grids, of which all but one have more columns than rows."""
    cells = GroundingModel(with_sets(queries=queries)).set_head.cells.sigmoid()
    low, high = box_convert(cells, "cxcywh", "xyxy").unsqueeze(1).chunk(2, dim=2)
    points = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 0.99 + 0.005
    inside = ((low < points) & (points < high)).all(dim=2)
    assert inside.sum(dim=0).tolist() == [1] * 500
    assert inside.any(dim=1).all()


@torch.no_grad()
def test_a_query_initially_attends_to_the_patches_at_its_cell():
    torch.manual_seed(0)
    head = BoxSetHead(BoxSetConfig(queries=24, layers=2), 64, 2, 8, (12, 12))
    y, x = torch.meshgrid(*[(torch.arange(12) + 0.5) / 12] * 2, indexing="ij")
    centres = torch.stack([x, y], dim=-1).flatten(0, 1)
    for block in head.decoder.layers:
        memory = head.positions.unsqueeze(0)
        _, weights = block.multihead_attn(head.queries.unsqueeze(0), memory, memory)
        away = centres[weights[0].argmax(dim=1)] - head.cells.sigmoid()[:, :2]
        assert away.abs().max() < 0.15


@torch.no_grad()
def test_a_box_initially_belongs_to_a_phrase_with_a_low_probability():
    """Most queries have no box, as in focal loss (Lin et al., 2017, section 4.1)."""
    model, batch = model_of_sets(), batch_of([1] * 8)
    assert 0.05 < model.locate_all(batch.pixels, batch.text).logits.sigmoid().mean() < 0.2


def test_a_batch_without_any_box_has_losses():
    model = model_of_sets()
    losses = model(batch_of([0, 0]))
    assert float(losses["l1"].total) == float(losses["giou"].total) == 0
    assert float(losses["belongs"].total) > 0


def test_invalid_phrases_have_no_gradient():
    batch = batch_of([2, 1], [True, False])
    boxes = torch.rand(2, QUERIES, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(2, QUERIES, dtype=torch.float64, requires_grad=True)
    losses = box_set_losses(BoxSet(boxes, logits), batch.boxes_cxcywh, batch.present, batch.valid)
    sum(term.total for term in losses.values()).backward()
    assert boxes.grad[0].abs().sum() > 0 and logits.grad[0].abs().sum() > 0
    assert not boxes.grad[1].any() and not logits.grad[1].any()


def test_the_published_head_is_the_default_and_still_loads():
    torch.manual_seed(0)
    model = GroundingModel(CONFIG)
    assert model.set_head is None and not [name for name in model.state_dict() if name.startswith("set_head")]
    missing, unexpected = model_of_sets().load_state_dict(model.state_dict(), strict=False)
    assert {name.partition(".")[0] for name in missing} == {"set_head"}
    assert {name.partition(".")[0] for name in unexpected} == {"box_head"}
