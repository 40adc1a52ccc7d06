"""A resumed run continues as it started, or reports why it cannot."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from engine.checkpoint import list_checkpoints
from engine.identity import RunIdentity
from tests.engine.toy import ToyTask, trainer
from tests.messages import OneLine, naming
from utils.errors import UserError

RUN = Path("runs/x")
BEGAN = RunIdentity(ranks=4, records_per_step=256, steps=100, records={"images": 6000, "regions": 50}, data={"k": "a"})


def test_an_unchanged_run_resumes_without_a_message():
    assert BEGAN.check_resumes(BEGAN, RUN, 64) == []


def test_another_number_of_ranks_resumes_if_the_global_batch_is_unchanged():
    now = replace(BEGAN, ranks=2)
    assert now.check_resumes(BEGAN, RUN, 64) == [OneLine("2 ranks", "4")]


@pytest.mark.parametrize(
    ("ranks", "per_step", "remedy"),
    [
        (2, 128, "resume it on 4 ranks, or with train.global_batch=null train.accumulate=2"),
        (1, 64, "resume it on 4 ranks, or with train.global_batch=null train.accumulate=4"),
        (3, 192, "resume it on 4 ranks"),
        (8, 512, "resume it on 4 ranks"),
    ],
)
def test_another_global_batch_is_rejected_with_the_remedy(ranks, per_step, remedy):
    now = replace(BEGAN, ranks=ranks, records_per_step=per_step)
    with pytest.raises(UserError, match=naming("runs/x", "256 records", "4 ranks", per_step, remedy)):
        now.check_resumes(BEGAN, RUN, 64)


def test_checkpoints_of_versions_with_other_fields_are_read():
    assert RunIdentity.from_state({**asdict(BEGAN), "order_needs_ranks": False}) == BEGAN


def test_changed_data_are_reported():
    assert replace(BEGAN, records={"images": 6001, "regions": 50}).check_resumes(BEGAN, RUN, 64) == [
        OneLine("images", "6,001 records", "6,000")
    ]
    assert replace(BEGAN, data={"k": "b"}).check_resumes(BEGAN, RUN, 64) == [OneLine("k", "files")]


def test_data_that_change_the_length_of_the_run_are_rejected():
    now = replace(BEGAN, steps=50, records={"images": 3000, "regions": 50})
    with pytest.raises(UserError, match=naming("100 steps", "50", "images", "3,000 records", "6,000")):
        now.check_resumes(BEGAN, RUN, 64)


def test_a_run_whose_data_shrank_is_not_reported_as_finished(tmp_path):
    trainer(tmp_path, steps=None, epochs=4, checkpoint_every=6).fit()
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[0]
    assert checkpoint.step == 6
    task = ToyTask()
    task.loader.epoch_size = 5
    task.loader.stream_sizes = {"points": 5}
    with pytest.raises(UserError, match=naming("10 steps", "5", "points")):
        trainer(tmp_path, task, checkpoint, steps=None, epochs=4)


def test_the_position_of_a_checkpoint_counts_records(tmp_path):
    trainer(tmp_path, steps=6, checkpoint_every=3, accumulate=2).fit()
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[0]
    assert (checkpoint.step, checkpoint.training_state()["records"]) == (3, 24)
    assert trainer(tmp_path, checkpoint=checkpoint, steps=6, accumulate=2).consumed == 6
