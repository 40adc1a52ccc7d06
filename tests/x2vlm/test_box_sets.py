"""All boxes of a phrase, from a box-set head, or from regions that match the phrase."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from commands.predict import predict
from models.config import BoxSetConfig, GroundingModelConfig
from models.tasks.grounding import GroundingModel
from tests.messages import naming
from tests.tasks.painted import SIZE
from utils.commands import call
from utils.errors import UserError
from x2vlm import Model, load
from x2vlm.boxes import in_pixels, refined_regions, region_masks
from x2vlm.regions import MAX_IOU, candidate_regions
from x2vlm.runtime import TorchRuntime

PHRASES = ["a red star", "a blue circle"]


@pytest.fixture(scope="module")
def set_model(model) -> Model:
    """A model with a head for sets, whose boxes have different probabilities."""
    ours = model("grounding")
    config = GroundingModelConfig(**{**dict(ours.settings.model), "box_set": BoxSetConfig(queries=6, layers=1)})
    settings = ours.settings.model_copy(update={"model": config})
    torch.manual_seed(0)
    network = GroundingModel(config, len(ours.tokenizer))
    network.load_state_dict(ours.network.state_dict(), strict=False)
    torch.nn.init.normal_(network.set_head.belongs.weight, std=2.0)
    return Model(TorchRuntime(network.eval()), ours.tokenizer, settings, origin="of sets")


@torch.no_grad()
def test_all_boxes_of_the_head_above_the_threshold_are_returned(set_model, data):
    images = [data / f"images/{number}.png" for number in range(4)]
    scores = {}
    for number, image in enumerate(images):
        for phrase in PHRASES:
            sets = set_model.network.locate_all(set_model.pixels(set_model.views([image])), set_model.tokens([phrase]))
            scores[number, phrase] = sets.logits[0].sigmoid()
    threshold = torch.cat([*scores.values()]).median().item()
    found = set_model.locate(images, [PHRASES] * 4, boxes="all", threshold=threshold)
    for (number, phrase), probabilities in scores.items():
        clear = probabilities[(probabilities - threshold).abs() > 1e-5]  # batches round differently
        expected = sorted(clear[clear > threshold].tolist(), reverse=True)
        listed = [box for box in found[number] if box.phrase == phrase and abs(box.score - threshold) > 1e-5]
        assert [box.score for box in listed] == pytest.approx(expected, abs=1e-5)
        assert all(box.x >= 0 and box.x + box.width <= SIZE + 1e-3 for box in listed)
    returned = sum(len(boxes) for boxes in found)
    assert 0 < returned < sum(len(each) for each in scores.values())
    assert [box.phrase for box in found[0]] == sorted((box.phrase for box in found[0]), key=PHRASES.index)


def test_a_single_box_is_the_most_probable_of_the_set(set_model, data):
    image = data / "images/3.png"
    [[one]] = set_model.locate(image, PHRASES[0])
    every = set_model.locate(image, PHRASES[0], boxes="all", threshold=0.001)[0]
    assert one == every[0]


def test_the_threshold_is_taken_from_the_config(set_model, data):
    image = data / "images/3.png"
    default = set_model.locate(image, PHRASES, boxes="all")
    assert default == set_model.locate(image, PHRASES, boxes="all", threshold=set_model.settings.evaluation.threshold)


def test_a_model_with_a_head_for_sets_is_saved_and_loaded(set_model, data, tmp_path):
    again = load(set_model.save(tmp_path / "saved"))
    image = data / "images/2.png"
    assert again.locate(image, PHRASES, boxes="all") == set_model.locate(image, PHRASES, boxes="all")


@torch.no_grad()
def test_a_pre_trained_model_returns_regions_whose_content_matches(model, data):
    ours, image = model("pretrain"), data / "images/5.png"
    [boxes] = ours.locate(image, PHRASES[0], boxes="all", threshold=0.2)
    regions, network = candidate_regions(*ours.network.vision.grid), ours.network
    keys = network.vision(ours.pixels(ours.views([image])))
    masks = region_masks(regions, [network.vision.grid] * len(regions), keys.patches.shape[1])
    parts = network.vision.regions(keys, masks, torch.zeros(len(regions), dtype=torch.int64))
    texts = ours.encoded([PHRASES[0]]).select(torch.zeros(len(regions), dtype=torch.int64))
    cls = network.fusion.cls(texts, network.fusion.project_regions(parts, keys)[0])
    scores = network.matching_head(cls).softmax(dim=1)[:, 1]
    assert boxes, "otherwise this test proves nothing"
    assert boxes[0].score == pytest.approx(float(scores.max()), abs=1e-5)
    assert [box.score for box in boxes] == sorted((box.score for box in boxes), reverse=True)
    assert all(box.score >= 0.2 for box in boxes)
    corners = torch.tensor([[b.x, b.y, b.x + b.width, b.y + b.height] for b in boxes])
    overlaps = box_iou(corners, corners).fill_diagonal_(0)
    assert overlaps.max() <= MAX_IOU + 1e-6


@torch.no_grad()
def test_the_whole_image_is_refined_to_the_box_that_locate_returns(model, data):
    ours, image = model("pretrain"), data / "images/5.png"
    [boxes] = ours.locate(image, PHRASES)
    width, height = ours.read(image).size
    concepts = ours.network.vision(ours.pixels(ours.views([image])))
    whole, index = torch.tensor([[0.5, 0.5, 1.0, 1.0]] * 2), torch.zeros(2, dtype=torch.int64)
    _, refined = refined_regions(ours.network, ours.encoded(PHRASES), concepts, whole, index)
    for box, expected, phrase in zip(refined.tolist(), boxes, PHRASES, strict=True):
        found = in_pixels(phrase, box, None, (width, height))
        assert (found.x, found.y, found.width, found.height) == pytest.approx(
            (expected.x, expected.y, expected.width, expected.height), abs=1e-3
        )


@pytest.mark.parametrize("phrase", PHRASES)
def test_the_box_that_locate_returns_is_one_of_all_boxes_if_its_probability_suffices(model, data, phrase):
    for number in range(4):
        image = data / f"images/{number}.png"
        [[best]] = model("pretrain").locate(image, phrase)
        [boxes] = model("pretrain").locate(image, phrase, boxes="all", threshold=best.score - 1e-4)
        sides = ("x", "y", "width", "height")
        distances = [sum(abs(getattr(box, side) - getattr(best, side)) for side in sides) for box in boxes]
        assert min(distances) < 1e-3


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4), (8, 8), (14, 14), (24, 24)])
def test_regions_are_on_the_grid_distinct_and_cover_the_image(grid):
    regions = candidate_regions(*grid)
    rows, columns = grid
    sides = torch.tensor([columns, rows])
    corners = torch.cat([regions[:, :2] - regions[:, 2:] / 2, regions[:, :2] + regions[:, 2:] / 2], dim=1)
    on_grid = corners * sides.repeat(2)
    torch.testing.assert_close(on_grid, on_grid.round(), atol=1e-4, rtol=0)
    assert corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6
    assert len({tuple(row) for row in on_grid.round().int().tolist()}) == len(regions) <= 700
    assert [0, 0, columns, rows] in on_grid.round().int().tolist()


def test_a_model_that_cannot_return_all_boxes_raises_an_error(model, data):
    image = data / "images/0.png"
    with pytest.raises(UserError, match=naming("one box", "model.box_set", "pretrain")):
        model("grounding").locate(image, PHRASES, boxes="all")
    with pytest.raises(UserError, match=naming("threshold", "boxes='all'")):
        model("pretrain").locate(image, PHRASES, threshold=0.5)
    with pytest.raises(UserError, match=naming("'ALL'", "'one'")):
        model("pretrain").locate(image, PHRASES, boxes="ALL")
    for wrong in (0, 50, float("nan"), "0.3"):
        with pytest.raises(UserError, match=naming("threshold", "probability")):
            model("pretrain").locate(image, PHRASES, boxes="all", threshold=wrong)


def test_the_command_prints_and_draws_sets_and_reports_absent_objects(set_model, data, tmp_path, capsys):
    folder = set_model.save(tmp_path / "saved")
    words = [
        "locate",
        "--model",
        str(folder),
        "--image",
        str(data / "images/0.png"),
        "--image",
        str(data / "images/1.png"),
    ]
    words += ["--text", PHRASES[0], "--text", PHRASES[1], "--all", "--save", str(tmp_path / "boxes.png")]
    assert call(predict, words, "run.py predict") == 0
    printed = capsys.readouterr().out
    found = set_model.locate([data / "images/0.png", data / "images/1.png"], [PHRASES] * 2, boxes="all")
    for boxes in found:
        for box in boxes:
            assert (
                f"{box.x:.0f}, {box.y:.0f}, {box.width:.0f} x {box.height:.0f}  {box.score:.3f}  {box.phrase}"
                in printed
            )
    absent = sum(phrase not in {box.phrase for box in boxes} for boxes in found for phrase in PHRASES)
    assert printed.count("no box") == absent
    assert np.asarray(Image.open(tmp_path / "boxes.png")).size
    assert call(predict, ["match", *words[1:-2]], "run.py predict") == 2
    assert "--all" in capsys.readouterr().err


def test_a_head_for_sets_cannot_be_exported(set_model, tmp_path):
    pytest.importorskip("onnxscript", reason="exports need onnxscript")
    from x2vlm.export.graphs import FusionGraph

    with pytest.raises(UserError, match=naming("model.box_set", "cannot be exported")):
        FusionGraph(set_model.network)
