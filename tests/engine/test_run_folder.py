"""Which folders are free for a run, and what may differ when one is resumed."""

from __future__ import annotations

import os

import pytest

from engine.run_folder import RunFolder
from utils.config import Config
from utils.errors import NotRegularError, UserError


class Evaluation(Config):
    batch_size: int = 1
    validation: str = "a"


class Run(Config):
    evaluation: Evaluation = Evaluation()


def test_a_folder_in_which_nothing_was_trained_is_free(tmp_path):
    RunFolder.open(tmp_path, Run(), resume=False)
    RunFolder.open(tmp_path, Run(evaluation=Evaluation(validation="b")), resume=False)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder.open(tmp_path, Run(), resume=False)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "validation.jsonl"])
def test_a_fifo_in_place_of_a_file_of_the_run_is_refused(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(NotRegularError, match=f"is a FIFO, not a regular file.*{name}"):
        RunFolder.open(tmp_path, Run(), resume=True)


def test_what_selected_the_best_weights_may_not_change(tmp_path):
    RunFolder.open(tmp_path, Run(), resume=False)
    (tmp_path / "metrics.jsonl").touch()
    RunFolder.open(tmp_path, Run(evaluation=Evaluation(batch_size=2)), resume=True)
    with pytest.raises(UserError, match=r"evaluation\.validation was 'a', is now 'b'"):
        RunFolder.open(tmp_path, Run(evaluation=Evaluation(validation="b")), resume=True)
