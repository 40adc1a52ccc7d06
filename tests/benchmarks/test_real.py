"""Benchmarks of the emoji and clip art model: ridge baselines, and tables for held-out sources."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import real_ridge, real_sources
from benchmarks.real_ridge import Encoded, Ridge, baseline
from metrics.retrieval import retrieval_recalls
from run import main as run_command
from tests.messages import OneLine
from tests.x2vlm.conftest import data, overrides, run, task  # noqa: F401 (fixtures)
from utils.commands import call


def test_ridge_solves_the_normal_equations():
    torch.manual_seed(0)
    x, y, penalty = torch.randn(20, 5).double(), torch.randn(20, 3).double(), 0.1
    z = (x - x.mean(dim=0)) / (x.std(dim=0) + 1e-6)
    expected = torch.linalg.solve(z.T @ z + penalty * 5 * torch.eye(5), z.T @ (y - y.mean(dim=0)))
    torch.testing.assert_close(Ridge(x, y, penalty).weight, expected)


def test_the_penalty_is_chosen_on_validation_and_used_on_test():
    torch.manual_seed(0)
    lead = torch.randn(8, 6)
    splits = {}
    for split, count in (("train", 40), ("val", 30), ("test", 20)):
        layers = torch.randn(count, 4, 2)
        splits[split] = Encoded(layers, layers.flatten(1) @ lead + torch.randn(count, 6))
    penalty, ranks = baseline(splits, 4)
    x = {split: encoded.layers.flatten(1).double() for split, encoded in splits.items()}
    y = {split: encoded.texts.double() for split, encoded in splits.items()}
    fits = {each: Ridge(x["train"], y["train"], each) for each in real_ridge.PENALTIES}

    def mean_recall(ranks):
        return retrieval_recalls(*ranks)["mean recall"]

    on_validation = {each: mean_recall(fit.ranks(x["val"], y["val"])) for each, fit in fits.items()}
    assert on_validation[penalty] == max(on_validation.values()) > min(on_validation.values())
    for split in ("val", "test"):
        np.testing.assert_array_equal(ranks[split], fits[penalty].ranks(x[split], y[split]))
    assert mean_recall(baseline(splits, 1)[1]["test"]) < mean_recall(ranks["test"])


@pytest.fixture
def sources(scenes_folder, tmp_path, monkeypatch) -> Path:
    """The test scenes, in place of the pictures of each source and of the composites and maps."""
    records = tmp_path / "records"
    records.mkdir()
    regions = (scenes_folder / "test.jsonl").read_text()
    scenes = regions.splitlines()
    for start, source in enumerate(real_sources.CUTOUT_SOURCES):
        (records / f"val_{source}.jsonl").write_text("\n".join(scenes[start : start + 5]) + "\n")
    (records / "regions_val_composites.jsonl").write_text(regions)
    (records / "regions_val_maps.jsonl").write_text(regions.replace('"object"', '"region"'))
    for folder in scenes_folder.iterdir():
        if folder.is_dir():
            (records / folder.name).symlink_to(folder)
    monkeypatch.setattr(real_sources, "RECORDS", records)
    return records


def test_a_run_is_measured_as_its_own_evaluation_measures_it(sources, run, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "run"
    shutil.copytree(run("pretrain"), folder)
    (folder / "evaluation.json").write_text("{}")
    results = real_sources.measure(folder, "val")
    files = [f"{sources}/val_clipart.jsonl"]
    arguments = ["--evaluate", "--config", str(folder / "config.yaml"), "--output", str(tmp_path / "evaluated")]
    start = [f"init.checkpoint={folder}", "evaluation.score=sum", f"evaluation.files={files}"]
    regions = f"evaluation.region_files=[{sources}/regions_val_composites.jsonl]"
    assert run_command([*arguments, *start, regions]) == 0
    (metrics,) = json.loads((tmp_path / "evaluated/evaluation.json").read_text()).values()
    ranks = results["ranks"]["clipart"]
    for way, direction in enumerate(("image to text", "text to image")):
        for score, stage in (("cosine", "cosine"), ("sum", "reranked")):
            expected = metrics[f"{direction} R@1 ({stage})"]["value"]
            assert np.mean(np.array(ranks[score][way]) < 1) == pytest.approx(expected)
    assert results["boxes"]["composites"][0] == pytest.approx(metrics["object box, IoU >= 0.5"]["value"])
    assert results["words"]["clipart"][0] == pytest.approx(metrics["masked word"]["value"])

    # Results are read again unless the run or the records have changed since.
    def load_again(_):
        raise InterruptedError

    monkeypatch.setattr(real_sources, "load", load_again)
    assert real_sources.measure(folder, "val") == results
    later = (folder / "val.json").stat().st_mtime + 9
    for changed in (folder / "evaluation.json", sources / "real.json"):
        changed.write_text("{}")
        os.utime(changed, (later, later))
        with pytest.raises(InterruptedError):
            real_sources.measure(folder, "val")
        os.utime(changed, (0, 0))


def results_with(cosine: int, matching: int) -> dict:
    """Results for sources of four pictures. Each score ranks the given number of names first, and half as many pictures."""

    def ranks(count: int) -> list[list[int]]:
        return [[0] * first + [3] * (4 - first) for first in (count, count // 2)]

    by_score = {"cosine": ranks(cosine), "matching": ranks(matching), "sum": ranks(4)}
    return {
        "ranks": dict.fromkeys(real_sources.CUTOUT_SOURCES, by_score),
        "boxes": {kind: [cosine / 10, 0.02] for kind in real_sources.BOXES},
        "words": {source: [0.25, 0.1] for source in real_sources.CUTOUT_SOURCES},
    }


def test_tables_show_means_over_runs_and_differences_with_intervals():
    runs = [results_with(2, 2), results_with(4, 2)]
    baselines = {"baseline B": {source: [[0, 3, 3, 3], [3] * 4] for source in real_sources.CUTOUT_SOURCES}}
    printed = real_sources.table(runs, baselines)
    assert "| stamps | 4 | 75.0 / 37.5 | 50.0 / 25.0 | 100.0 / 50.0 | 25.0 / 0.0 | 85.4 ± 8.8 |" in printed
    assert "| all, mean of both directions | 16 | 56.2 ± 26.5 | 37.5 ± 0.0 | 75.0 ± 0.0 | 12.5 | |" in printed
    assert "| composites | 30.0 ± 14.1 | 2.0 |" in printed
    assert printed.endswith("| clipart | 25.0 ± 0.0 | 10.0 |\n")
    lines = real_sources.differences(runs, baselines).splitlines()
    assert lines[0].startswith("matching minus cosine: -18.8 points [") and "by seed +0.0, -37.5" in lines[0]
    assert lines[0].endswith("in pictures: stamps -0.8, emoji_google -0.8, emoji_fluent -0.8, clipart -0.8")
    assert lines[2].startswith("cosine minus baseline B: +43.8 points [")


def test_an_unfinished_run_is_rejected_in_one_line(tmp_path, capsys):
    assert call(real_sources.main, [str(tmp_path)], "real_sources") == 2
    assert capsys.readouterr().err == OneLine(f"error: {tmp_path}", "evaluation.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "words"), [(real_ridge.main, [])])
def test_missing_data_are_reported_in_one_line(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(command, words, "a benchmark") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []
