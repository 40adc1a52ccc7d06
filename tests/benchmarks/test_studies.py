"""Studies are sweeps of named alternatives; their last tables show the main metrics."""

from __future__ import annotations

import json

import pytest

from benchmarks import studies
from benchmarks.studies import STUDIES
from tasks import ROOT
from tasks.binding import bind_run
from utils.commands import call
from utils.config import load_config


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """Replaces the demo's scenes by two records."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    box = {"bb": [0, 0, 1, 1], "caption": ["a star", "the star left of the circle"]}
    records = [{"image": "a.png", "elems": [box]}, {"image": "b.png", "elems": [{**box, "caption": ["a circle"]}]}]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(studies, "SCENES", folder)
    return folder


def test_each_variant_omits_one_component(scenes, tmp_path):
    (part,) = studies.method(tmp_path)
    kept = {
        name: [
            [each["caption"] for each in json.loads(line)["elems"]]
            for line in (tmp_path / f"{name}_descriptions.jsonl").read_text().splitlines()
        ]
        for name in ("object", "region")
    }
    assert kept == {"object": [[["a star"]], [["a circle"]]], "region": [[["the star left of the circle"]]]}
    variants = part.variants
    assert variants["without region descriptions"][0] == f"data.regions.files=[{tmp_path}/object_descriptions.jsonl]"
    assert variants["without object descriptions"][0] == f"data.regions.files=[{tmp_path}/region_descriptions.jsonl]"
    assert variants["images and captions alone"] == ["data.regions=null"]


@pytest.mark.parametrize("seeds", ["0", "0,1"])
def test_the_ablation_is_a_sweep_of_named_variants(seeds, scenes, tmp_path, monkeypatch, capsys):
    asked = []

    def sweep(*overrides, **flags):
        asked.append((overrides, flags))
        flags["output"].mkdir(parents=True)
        (flags["output"] / "sweep.json").write_text(json.dumps({"all": [{"R@1": 50.0}]}))
        return 0

    monkeypatch.setattr(studies, "sweep", sweep)
    assert call(studies.main, ["method", "--seeds", seeds, "--output", str(tmp_path)], "studies") == 0
    ((overrides, flags),) = asked
    assert flags["variant"][0] == "all: " and "without box losses: loss.l1=0 loss.giou=0" in flags["variant"]
    assert ",".join(map(str, flags["seeds"])) == seeds and overrides[0] == "train.steps=300"
    assert "| all | 50.0 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", STUDIES)
def test_the_configs_of_every_alternative_can_be_read(name, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for part in STUDIES[name](tmp_path):
        for overrides in part.variants.values():
            bind_run(part.config, [*part.overrides, *overrides])


def test_an_override_with_spaces_reaches_the_sweep_as_one_word(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = []
    monkeypatch.setattr(studies, "sweep", lambda *overrides, **flags: asked.append(flags["variant"]) or 2)
    words = ["adapters", "--task", "vqa", "--output", str(tmp_path)]
    assert call(studies.main, words, "studies") == 2, "nothing was measured"
    assert asked == [
        (
            "all weights: ",
            "adapters of rank 8: 'optim.lora={rank: 8, lr: 3e-3}'",
            "frozen vision and text: 'optim.freeze={vision: true, text: true}'",
        )
    ]


@pytest.mark.parametrize("task", ["retrieval", "grounding", "captioning"])
def test_every_starting_point_is_trained_for_the_same_number_of_steps(task, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    (part,) = (part for part in studies.real(tmp_path) if part.config.stem == task)
    configs = {
        name: load_config(part.config, overrides, bind_run(part.config, overrides, None).source.load().config)
        for name, overrides in part.variants.items()
    }
    assert len({config.train.steps for config in configs.values()}) == 1
    started = {
        name: (config.init.checkpoint is not None, config.init.vision is not None) for name, config in configs.items()
    }
    assert started == {"pre-trained": (True, False), "encoders alone": (False, True), "from scratch": (False, False)}
    assert configs["from scratch"].optim.freeze is None
    scratch, pretrained = configs["from scratch"].optim, configs["pre-trained"].optim
    assert scratch.lr == scratch.lr * scratch.lr_mult == pretrained.lr * pretrained.lr_mult


def test_the_main_metrics_of_each_task_are_in_one_table(tmp_path):
    measured = {
        "pre-trained": [{"CIDEr": 30.0, "ROUGE-L": 5.0, "BLEU-1": 9.0}, {"CIDEr": 34.0, "ROUGE-L": 7.0, "BLEU-1": 9.0}],
        "from scratch": [{"CIDEr": 1.0, "ROUGE-L": 0.0, "BLEU-1": 9.0}],
    }
    (tmp_path / "sweep.json").write_text(json.dumps(measured))
    (part,) = (part for part in studies.real(tmp_path) if part.config.stem == "captioning")
    assert studies.table(tmp_path, part).splitlines() == [
        "| captioning | CIDEr | ROUGE-L |",
        "|---|---|---|",
        "| pre-trained | 32.0 ± 2.8 | 6.0 ± 1.4 |",
        "| from scratch | 1.0 (1 of 2 seeds) | 0.0 (1 of 2 seeds) |",
    ]


def test_adapters_are_compared_by_the_metric_that_selects_the_weights():
    metrics = {part.config.stem: part.metrics for part in studies.adapters(ROOT)}
    assert metrics["grounding"] == ("IoU >= 0.5",) and metrics["captioning"] == ("CIDEr",)
