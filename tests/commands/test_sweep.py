"""``run.py sweep`` runs every combination once, shows seeds as mean and spread, and reports failures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import sweep
from run import main
from tests.messages import OneLine
from tools.reproduce import runs
from utils.errors import UserError

CONFIG = "configs/demo/pretrain.yaml"


def test_every_combination_of_the_values_is_a_variant():
    grid = [("optim.lr", ["1e-4", "3e-4"]), ("loss.l1", ["5", "0"])]
    named = dict(sweep.combinations(grid))
    assert list(named.values()) == [
        ("optim.lr=1e-4", "loss.l1=5"),
        ("optim.lr=1e-4", "loss.l1=0"),
        ("optim.lr=3e-4", "loss.l1=5"),
        ("optim.lr=3e-4", "loss.l1=0"),
    ]
    assert list(named)[1] == "optim.lr=1e-4 loss.l1=0"


def test_a_named_variant_may_have_any_overrides():
    assert sweep._named("all:") == ("all", ())
    assert sweep._named("no boxes: loss.l1=0 'data.regions.files=[a, b]'") == (
        "no boxes",
        ("loss.l1=0", "data.regions.files=[a, b]"),
    )


@pytest.mark.parametrize("text", ["all", ": a=1", "all: a"])
def test_a_variant_without_name_or_value_is_rejected(text, capsys):
    assert main(["sweep", "--config", CONFIG, "--variant", text]) == 2
    assert OneLine(f"{text!r}", "NAME: key=value key=value") in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("text", "values"),
    [("a=1,2", ["1", "2"]), ("a=[1,2],[3]", ["[1,2]", "[3]"]), ("a={b: [1, 2]},null", ["{b: [1, 2]}", "null"])],
)
def test_a_comma_in_brackets_belongs_to_its_value(text, values):
    assert sweep._axis(text) == ("a", values)


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=1,,2"])
def test_an_axis_without_key_or_value_is_rejected(text, capsys):
    assert main(["sweep", "--config", "configs/demo/pretrain.yaml", "--grid", text]) == 2
    assert OneLine(f"{text!r}", "key=value,value") in capsys.readouterr().err.splitlines()


def test_the_table_has_means_and_spreads_and_marks_missing_values():
    measured = {"a=1": [{"R@1": 80.0, "box": 50.0}, {"R@1": 82.0}], "plain": [{"R@1": 70.0}]}
    assert sweep.table_of(measured, 2).splitlines() == [
        "| | R@1 | box |",
        "|---|---|---|",
        "| a=1 | 81.0 ± 1.4 | 50.0 (1 of 2 seeds) |",
        "| plain | 70.0 (1 of 2 seeds) | not measured |",
    ]


def test_a_sweep_runs_each_variant_and_seed_once_and_continues_after_a_failure(tmp_path, monkeypatch, capsys):
    commands: list[list[str]] = []

    def run(command):
        commands.append(command)
        if "optim.lr=3" in command:
            return 2
        folder = Path(command[command.index("--output") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        value = 0.5 + 0.1 * command.count("optim.lr=2") + 0.01 * command.count("seed=1")
        (folder / "evaluation.json").write_text(json.dumps({"test": {"accuracy": {"value": value, "unit": "share"}}}))
        return 0

    monkeypatch.setattr(runs, "run_command", run)
    argv = ["sweep", "--config", CONFIG, "--grid", "optim.lr=1,2,3", "--seeds", "0,1", "--output", str(tmp_path)]
    assert main([*argv, "train.steps=300"]) == 1
    printed = capsys.readouterr().out
    assert "| optim.lr=1 | 50.5 ± 0.7 |" in printed and "| optim.lr=2 | 60.5 ± 0.7 |" in printed
    assert printed.splitlines().count(OneLine("not run", "status 2")) == 2
    assert len(commands) == 6 and all("train.steps=300" in command for command in commands)
    assert json.loads((tmp_path / "sweep.json").read_text())["optim.lr=2"] == [{"accuracy": 60.0}, {"accuracy": 61.0}]
    commands.clear()
    assert main([*argv, "train.steps=300"]) == 1
    assert len(commands) == 2, "finished runs are not repeated"


def test_a_sweep_without_any_measured_value_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "run_command", lambda command: 2)
    argv = ["sweep", "--config", CONFIG, "--grid", "loss.l1=1", "--output", str(tmp_path)]
    assert main(argv) == 2
    assert OneLine(f"error: --config {CONFIG}") in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("axis", "reported"),
    [
        ("loss.l1=5,abc", ["loss.l1 = 'abc'"]),
        ("loss.l1=abc,5,def", ["loss.l1 = 'abc'", "loss.l1 = 'def'"]),
        ("loss.l11=5,0", ["loss.l11 is not"]),
        ("train.steps=5,900", ["schedule.warmup_steps is 150, but the run has 5 steps"]),
    ],
)
def test_mistakes_of_all_variants_are_reported_before_the_first_run(axis, reported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "run_command", lambda command: pytest.fail("a run was started"))
    assert main(["sweep", "--config", CONFIG, "--grid", axis, "--output", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert not (tmp_path / "out").exists()
    assert len(lines) == len(reported)
    assert all(text in line for text, line in zip(reported, lines, strict=True))


def test_the_time_of_a_run_includes_its_interrupted_attempts(tmp_path, monkeypatch):
    statuses = [130, 0]

    def run(command):
        (tmp_path / "evaluation.json").write_text("{}")
        return statuses.pop(0)

    clock = iter([0.0, 30.0, 100.0, 105.0])
    monkeypatch.setattr(runs, "run_command", run)
    monkeypatch.setattr(runs, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    asked = runs.RunToMake(CONFIG, tmp_path)
    with pytest.raises(UserError, match="status 130"):
        runs.make(asked)
    assert runs.finished(asked) is None
    assert runs.make(asked)["seconds"] == 35.0
    assert runs.make(asked) == runs.finished(asked)


@pytest.mark.parametrize("names", [("a", "a"), ("a b", "a-b")])
def test_two_variants_with_the_same_name_are_rejected(names, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "run_command", lambda command: pytest.fail("a run was started"))
    words = [word for name in names for word in ("--variant", f"{name}: loss.l1=1")]
    assert main(["sweep", "--config", CONFIG, *words, "--output", str(tmp_path)]) == 2
    assert OneLine("error", f"{names[0]!r}") in capsys.readouterr().err.splitlines()


def test_the_folder_of_a_variant_is_named_after_it():
    assert sweep.folder_of("without box losses") == "without-box-losses"
    assert sweep.folder_of("optim.lr=1e-4 loss.l1=5") == "optim.lr=1e-4-loss.l1=5"
    assert sweep.folder_of("../x") == "x" and sweep.folder_of("…") == "variant"
