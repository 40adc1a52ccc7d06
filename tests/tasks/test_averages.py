"""Means of weights: between the starting and the final weights of a run, and of several runs."""

from __future__ import annotations

import re

import pytest
import torch

import x2vlm
from models.checkpoints.files import read_weights
from tests.messages import OneLine, naming
from tests.tasks.test_finetune import start
from tools.checkpoint import averages
from tools.checkpoint.averages import average, interpolate, mean_of
from utils.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory, overrides, data):
    """A run, and two runs that start from it."""
    folder = tmp_path_factory.mktemp("runs")
    start("retrieval", folder / "first", overrides("retrieval"))
    earlier = f"{{annotations: {data}/retrieval_val.jsonl}}"
    keep = f"evaluation.keep={{test: {{old: {earlier}}}, validation: {earlier}}}"
    sets = [*overrides("retrieval"), f"init.checkpoint={folder}/first", keep, "optim.lr=0.003"]
    start("retrieval", folder / "second", sets)
    start("retrieval", folder / "lora", [*sets, "optim.lora.rank=2"])
    return folder


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("run", ["second", "lora"])
def test_the_ends_are_the_starting_and_the_final_weights(runs, tmp_path, run):
    for coefficient, end in ((0.0, runs / "first"), (1.0, runs / run)):
        said = interpolate(str(runs / run), tmp_path / str(coefficient), 10, coefficient)
        assert f"{coefficient:g} of the way" in said
        assert equal(
            read_weights(tmp_path / str(coefficient) / "model.safetensors"), read_weights(end / "best.safetensors")
        )
    assert x2vlm.load(str(tmp_path / "1.0")).settings.task == "retrieval"


def test_the_curve_ends_at_what_the_run_measured_and_its_best_point_is_written(runs, tmp_path, overrides):
    said = interpolate(str(runs / "second"), tmp_path / "out", 4, None)
    rows = [line.split() for line in said.splitlines()[1:6]]
    assert [float(row[0]) for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    best = max(rows, key=lambda row: float(row[3]))
    assert best[-1] == "best" or float(best[3]) == max(float(row[3]) for row in rows if row[-1] == "best")
    (chosen,) = [float(row[0]) for row in rows if row[-1] == "best"]
    first, last = (read_weights(runs / name / "best.safetensors") for name in ("first", "second"))
    assert equal(read_weights(tmp_path / "out/model.safetensors"), mean_of([first, last], [1 - chosen, chosen]))
    # The new and the earlier validation split are the same file here.
    assert all(row[1] == row[2] for row in rows)
    best_of_run = re.findall(r"mean recall (\d\.\d+)", (runs / "second/log.txt").read_text())
    assert f"{100 * max(map(float, best_of_run)):.1f}" == rows[-1][1]


def test_the_average_of_one_run_is_that_run(runs, tmp_path):
    average([str(runs / "second")], tmp_path / "one", greedy=False)
    assert equal(read_weights(tmp_path / "one/model.safetensors"), read_weights(runs / "second/best.safetensors"))


def test_an_average_is_the_mean_of_every_weight(runs, tmp_path):
    said = average([str(runs / "first"), str(runs / "lora")], tmp_path / "two", greedy=False)
    assert said == f"{runs}/first, {runs}/lora -> {tmp_path}/two: mean of 2 of 2 models\n"
    first, second = (read_weights(runs / name / "best.safetensors") for name in ("first", "lora"))
    for name, tensor in read_weights(tmp_path / "two/model.safetensors").items():
        expected = (first[name].double() + second[name].double()) / 2
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("target", "chosen"), [((1, 0, 0), ["first"]), ((0.5, 0, 0.5), ["first", "lora"])])
def test_a_greedy_average_adds_only_runs_that_make_it_better(runs, tmp_path, monkeypatch, target, chosen):
    """Here, weights are better if they are closer to a target."""
    names = ("first", "second", "lora")
    weights = [read_weights(runs / name / "best.safetensors") for name in names]
    best = mean_of(weights, target)

    def closeness(judge, found) -> averages.Measured:
        return averages.Measured((-sum(float((found[name] - best[name]).abs().sum()) for name in best),))

    monkeypatch.setattr(averages.Judge, "__call__", closeness)
    said = average([str(runs / "second"), str(runs / "lora"), str(runs / "first")], tmp_path / "out", greedy=True)
    assert f"mean of {len(chosen)} of 3 models" in said and said.count("left out") == 3 - len(chosen)
    expected = mean_of([weights[names.index(name)] for name in chosen], [1 / len(chosen)] * len(chosen))
    for name, tensor in read_weights(tmp_path / "out/model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-7)


def test_runs_without_a_start_or_with_other_models_are_refused_in_one_line(runs, tmp_path, overrides):
    with pytest.raises(UserError) as caught:
        interpolate(str(runs / "first"), tmp_path / "out", 4, None)
    assert str(caught.value) == OneLine(f"{runs}/first", "did not start from other weights", "init.checkpoint")
    start("nlvr", tmp_path / "nlvr", overrides("nlvr"))
    with pytest.raises(UserError, match=naming("differ in name", "pass runs with the same model")):
        average([str(runs / "first"), str(tmp_path / "nlvr")], tmp_path / "out", greedy=False)
    start("retrieval", tmp_path / "wide", [*overrides("retrieval"), "model.embed_dim=24"])
    with pytest.raises(UserError, match=naming("contrastive.text_proj.bias", "pass runs with the same model")):
        average([str(runs / "first"), str(tmp_path / "wide")], tmp_path / "out", greedy=False)
    start("retrieval", tmp_path / "blind", [*overrides("retrieval"), "evaluation.validation=null"])
    with pytest.raises(UserError, match=naming("evaluation.validation")):
        average([str(tmp_path / "blind")], tmp_path / "out", greedy=True)
    assert not (tmp_path / "out").exists()
