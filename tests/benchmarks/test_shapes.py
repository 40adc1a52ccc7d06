"""Shapes and colours are read from the frozen patch states of runs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from benchmarks import shapes
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
