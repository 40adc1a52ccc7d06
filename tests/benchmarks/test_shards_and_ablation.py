"""Benchmarks of many shards, of word maps, and of the ablation's variants."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import ablation, parquet, remote_shards, shards, word_maps
from tests.messages import OneLine
from utils.commands import call


def test_many_shards_are_indexed_and_opened(monkeypatch, capsys):
    monkeypatch.setattr(shards, "in_a_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(shards, "POSITIONS", 2048)
    words = ["--tars", "2", "--per-tar", "5", "--shards", "30", "--records", "3000", "--rounds", "1"]
    assert call(shards.main, words, "shards") == 0
    printed = capsys.readouterr().out
    assert "indexed by 1: " in printed and "indexed by 2: " in printed
    for what in ("seconds to open", "MiB anonymous", "1.0 descriptors", "positions/s"):
        assert what in printed


@pytest.mark.slow
def test_shards_on_a_server_are_compared_with_the_disk(capsys):
    pytest.importorskip("aiohttp")
    assert call(remote_shards.main, ["--tars", "1", "--per-tar", "300", "--rounds", "1"], "remote_shards") == 0
    printed = capsys.readouterr().out
    assert OneLine("1% of the requests") in printed.splitlines() and "times its share" in printed


@pytest.mark.slow
def test_parquet_is_compared_with_tars(capsys):
    pytest.importorskip("pyarrow")
    assert call(parquet.main, ["--shards", "1", "--rows", "130", "--rounds", "1"], "parquet") == 0
    printed = capsys.readouterr().out.splitlines()
    assert OneLine("parquet-1000", "of tar") in printed and printed[-1].startswith("ratio: ")


def test_each_variant_omits_one_component(tmp_path, monkeypatch):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    box = {"bb": [0, 0, 1, 1], "caption": ["a star", "the star left of the circle"]}
    records = [{"image": "a.png", "elems": [box]}, {"image": "b.png", "elems": [{**box, "caption": ["a circle"]}]}]
    (scenes / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(ablation, "SCENES", scenes)
    variants = ablation.variants(tmp_path)
    kept = {
        name: [
            [each["caption"] for each in json.loads(line)["elems"]]
            for line in (tmp_path / f"{name}_descriptions.jsonl").read_text().splitlines()
        ]
        for name in ("object", "region")
    }
    assert kept == {"object": [[["a star"]], [["a circle"]]], "region": [[["the star left of the circle"]]]}
    assert variants["without region descriptions"][0] == f"data.regions.files=[{tmp_path}/object_descriptions.jsonl]"
    assert variants["without object descriptions"][0] == f"data.regions.files=[{tmp_path}/region_descriptions.jsonl]"
    assert variants["images and captions alone"] == ["data.regions=null"]


@pytest.mark.parametrize("seeds", ["0", "0,1"])
def test_the_ablation_is_a_sweep_of_named_variants(seeds, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ablation, "variants", lambda folder: {"all": [], "without box losses": ["loss.l1=0"]})
    monkeypatch.setattr(ablation, "sweep", lambda *overrides, **flags: asked.append((overrides, flags)) or 0)
    assert call(ablation.main, ["--seeds", seeds, "--output", str(tmp_path)], "ablation") == 0
    ((overrides, flags),) = asked
    assert flags["variant"] == ("all: ", "without box losses: loss.l1=0")
    assert ",".join(map(str, flags["seeds"])) == seeds and overrides[0] == "train.steps=300"


def test_a_map_points_at_a_box_within_half_a_patch():
    weights = np.zeros((4, 8))
    weights[1, 6] = 1  # the patch in columns 60 to 70 and rows 20 to 40 of an 80 x 80 image; its centre is (65, 30)
    assert word_maps.pointed_at(weights, (60, 20, 10, 20), (80, 80)) == (True, 20 / 80 * 40 / 80)
    assert word_maps.pointed_at(weights, (40, 20, 20, 20), (80, 80))[0]  # the box ends at 60, half a patch is 10
    assert not word_maps.pointed_at(weights, (40, 20, 19, 20), (80, 80))[0]
    assert word_maps.pointed_at(weights, (0, 0, 80, 80), (80, 80))[1] == 1
