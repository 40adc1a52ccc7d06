"""Which folders are free for a run, and what may differ when one is resumed."""

from __future__ import annotations

import pytest

from engine.run_folder import RunFolder
from utils.config import Config
from utils.errors import UserError


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


def test_what_selected_the_best_weights_may_not_change(tmp_path):
    RunFolder.open(tmp_path, Run(), resume=False)
    (tmp_path / "metrics.jsonl").touch()
    RunFolder.open(tmp_path, Run(evaluation=Evaluation(batch_size=2)), resume=True)
    with pytest.raises(UserError, match=r"evaluation\.validation was 'a', is now 'b'"):
        RunFolder.open(tmp_path, Run(evaluation=Evaluation(validation="b")), resume=True)
