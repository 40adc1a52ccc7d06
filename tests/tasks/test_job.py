"""Runs a task: what the functions of a run say."""

from types import SimpleNamespace

import pytest

from engine.config import TrainConfig
from engine.run_folder import RunFolder
from engine.stopping import StopRequest
from tasks import job
from tasks.run_flags import RunFlags


@pytest.mark.parametrize("results", ["", "accuracy 0.5"])
def test_an_evaluation_without_results_says_so(results, tmp_path, caplog, capsys):
    task = SimpleNamespace(config=SimpleNamespace(train=TrainConfig(steps=1)), report=lambda folder: results)
    job._report(task, RunFolder(tmp_path), RunFlags(evaluate=True), StopRequest())
    assert ("nothing was evaluated" in caplog.text) == (not results)
    assert capsys.readouterr().out.strip() == results
