"""Benchmarks of the emoji and clip art model: ridge baselines, and tables for held-out sources."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import real_ridge, real_sources
from benchmarks.real_ridge import Encoded, Ridge, baseline
from tests.messages import OneLine
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
    penalty, recalls = baseline(splits, 4)
    x = {split: encoded.layers.flatten(1).double() for split, encoded in splits.items()}
    y = {split: encoded.texts.double() for split, encoded in splits.items()}
    fits = {each: Ridge(x["train"], y["train"], each) for each in real_ridge.PENALTIES}
    on_validation = {each: fit.recalls(x["val"], y["val"])["mean recall"] for each, fit in fits.items()}
    assert on_validation[penalty] == max(on_validation.values()) > min(on_validation.values())
    assert recalls == fits[penalty].recalls(x["test"], y["test"])
    assert baseline(splits, 1)[1]["mean recall"] < recalls["mean recall"]


def evaluation(value: float) -> dict:
    """Metrics with a different value for each retrieval direction and each box metric."""
    metrics = {
        recall: {"value": value + index / 100, "chance": 0.01} for index, recall in enumerate(real_sources.RECALLS)
    }
    others = (*real_sources.BOXES.values(), real_sources.WORDS)
    return metrics | {metric: {"value": value / 2 + place / 100, "chance": 0.02} for place, metric in enumerate(others)}


def test_runs_are_measured_once_and_shown_with_mean_and_spread(tmp_path, monkeypatch, capsys):
    commands = []

    def measured(command, **_):
        commands.append(command)
        folder = Path(command[command.index("--output") + 1])
        folder.mkdir(parents=True)
        value = 0.2 if folder.parent.name == "one" else 0.4
        (folder / "evaluation.json").write_text(json.dumps({"held-out": evaluation(value)}))
        ranks = {"image to text": 1, "text to image": 7 if value == 0.2 else None}
        (folder / "predictions_held-out.json").write_text(json.dumps([{"ranks": {"cosine": ranks}}, {"boxes": []}]))

    monkeypatch.setattr(real_sources.subprocess, "run", measured)
    runs = [str(tmp_path / name) for name in ("one", "other")]
    for run in runs:
        Path(run).mkdir()
        (Path(run) / "evaluation.json").write_text("{}")
    assert call(real_sources.main, [*runs, "--split", "val"], "real_sources") == 0
    printed = capsys.readouterr().out
    assert "| stamps | 30.0 ± 14.1 | 31.0 ± 14.1 | 32.0 ± 14.1 | 33.0 ± 14.1 | 1.0 | 58.3 ± 11.8 |" in printed
    assert (
        "(cosine) | text to image (cosine) | image to text (reranked) | text to image (reranked) | chance | mean recall"
        in printed
    )
    assert "| composites | 15.0 ± 7.1 | 2.0 |" in printed and "| maps | 16.0 ± 7.1 | 2.0 |" in printed
    assert printed.endswith("| clipart | 17.0 ± 7.1 | 2.0 |\n")
    assert {f"init.checkpoint={run}" for run in runs} == {
        word for command in commands for word in command if word.startswith("init.checkpoint=")
    }
    files = [word for command in commands for word in command if word.startswith("evaluation.")]
    assert "evaluation.files=[data/real/records/val_clipart.jsonl]" in files
    assert not any("test" in word for word in files)
    count = len(commands)
    assert call(real_sources.main, [*runs, "--split", "val"], "real_sources") == 0
    assert len(commands) == count == 2 * 6
    later = (tmp_path / "one/val_stamps/evaluation.json").stat().st_mtime + 9
    os.utime(tmp_path / "one/evaluation.json", (later, later))  # trained further since
    monkeypatch.setattr(real_sources.subprocess, "run", lambda command, **_: commands.append(command))
    assert call(real_sources.main, [*runs, "--split", "val"], "real_sources") == 0
    assert len(commands) == count + 6
    monkeypatch.setattr(real_sources, "COUNTS", tmp_path / "real.json")
    (tmp_path / "real.json").touch()
    os.utime(tmp_path / "real.json", (later, later))  # records were rebuilt
    assert call(real_sources.main, [*runs, "--split", "val"], "real_sources") == 0
    assert len(commands) == count + 6 + 12


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
