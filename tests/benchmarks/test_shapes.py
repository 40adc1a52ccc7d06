"""Shapes and colours are read from the frozen patch states of runs."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from benchmarks import shape_targets, shapes
from models.config import VisionConfig
from models.core.vision import VisionEncoder
from tests.messages import OneLine
from utils.commands import call
from utils.config_files import read_config


def network_of(monkeypatch, **sizes):
    """Makes ``load`` return a network with the tiny preset's vision encoder, and returns this network."""
    values = read_config("configs/presets/tiny.yaml").values["model"]["vision"]
    config = VisionConfig(**{**values, **sizes})
    network = SimpleNamespace(vision=VisionEncoder(config), config=SimpleNamespace(vision=config))
    monkeypatch.setattr(shapes, "load", lambda run: SimpleNamespace(network=network))
    return network


def test_the_weights_of_an_object_s_patches_sum_to_one():
    held_out = shapes.scenes_of("val", 3, 8)
    objects = held_out.shapes != shapes.NOTHING
    torch.testing.assert_close(held_out.patches.sum(dim=2), objects.float())


def test_the_benchmark_of_shapes_probes_the_vision_encoders_of_runs(tmp_path, monkeypatch, capsys):
    network_of(monkeypatch, image_size=96, patch_size=12)
    results = tmp_path / "results.json"
    words = ["runs/a", "runs/b", "--scenes", "20", "--held-out", "4", "--json", str(results)]
    assert call(shapes.main, words, "shapes") == 0
    header, first, second, chance = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "shape", "colour"]
    assert [line.split()[0] for line in (first, second)] == ["runs/a", "runs/b"]
    assert first.split()[1:] == second.split()[1:]
    assert chance.split() == ["chance", "14.3%", "12.5%"]
    assert [row["run"] for row in json.loads(results.read_text())] == ["runs/a", "runs/b"]


def test_states_are_read_after_each_block(tmp_path, monkeypatch, capsys):
    vision = network_of(monkeypatch).vision
    assert call(shapes.main, ["runs/a", "--depths", "--scenes", "20", "--held-out", "4"], "shapes") == 0
    _, *rows, _ = capsys.readouterr().out.splitlines()
    assert [row.split()[1:3] for row in rows] == [*(["block", f"{n}"] for n in (1, 2, 3, 4)), ["last", "norm"]]
    pixels = shapes.scenes_of("val", 4, 8).pixels
    encoders = shapes.by_depth(vision)
    with torch.no_grad():
        first = encoders["block 1"](pixels)
        later = encoders["block 4"](pixels)
        assert first.shape == later.shape == vision.patches(pixels).shape and not torch.equal(first, later)
        normed = vision.backbone.fc_norm(later)
    torch.testing.assert_close(normed + vision.patch_positions, encoders["last norm"](pixels))


def test_a_run_is_required(capsys):
    assert call(shapes.main, [], "shapes") == 2
    assert capsys.readouterr().err == OneLine("RUNS")


def test_a_linear_classifier_finds_what_states_contain_and_nothing_else():
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    states = torch.cat([F.one_hot(labels, 3).float(), noise], dim=1)
    assert shapes.linear_accuracy(states[:30], labels[:30], states[30:], labels[30:]) == 1.0
    assert shapes.linear_accuracy(noise[:30], labels[:30], noise[30:], labels[30:]) < 0.7


def test_the_vision_encoder_learns_what_it_is_asked(monkeypatch, capsys):
    for name, count in (("TRAINING_SCENES", 4), ("PROBED_SCENES", 20), ("HELD_OUT_SCENES", 4)):
        monkeypatch.setattr(shape_targets, name, count)
    assert (
        call(shape_targets.main, ["shape", "pairs", "--steps", "2", "--every", "1", "--objects", "5"], "targets") == 0
    )
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["objective", "steps", "shape", "colour"]
    assert [row.split()[:2] for row in rows] == [["shape", "1"], ["shape", "2"], ["pairs", "1"], ["pairs", "2"]]


def test_the_encoder_can_have_other_patches_and_images(monkeypatch, tmp_path):
    for name, count in (("TRAINING_SCENES", 3), ("PROBED_SCENES", 20), ("HELD_OUT_SCENES", 4)):
        monkeypatch.setattr(shape_targets, name, count)
    words = ["words", "--steps", "1", "--every", "1", "--json", str(tmp_path / "a.json")]
    overrides = "model.vision.patch_size=16;model.vision.image_size=128"
    assert call(shape_targets.main, [*words, "--overrides", overrides], "targets") == 0
    (row,) = json.loads((tmp_path / "a.json").read_text())
    assert row["overrides"][2:] == overrides.split(";")


@pytest.mark.parametrize(
    ("objective", "right", "loss"),
    [("shape", [2], 0.0), ("both", [2, 7 + 3], 0.0), ("words", [2, 7 + 3], math.log(2)), ("pairs", [2 * 8 + 3], 0.0)],
)
def test_an_objective_is_lowest_for_the_classes_of_the_object(objective, right, loss):
    """Words share a softmax, so each of the two right words has a probability of one half at best."""
    classes, loss_of = shape_targets.OBJECTIVES[objective]
    predicted = torch.full((1, classes), -50.0)
    predicted[0, right] = 50.0
    shape, colour = torch.tensor([2]), torch.tensor([3])
    assert loss_of(predicted, shape, colour).item() == pytest.approx(loss, abs=1e-4)
    assert loss_of(predicted, shape + 1, colour) > 10
    if objective != "shape":
        assert loss_of(predicted, shape, colour + 1) > 10
