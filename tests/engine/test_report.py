"""A run that stops at a non-finite step names the cause: records, the learning rate, or damaged weights."""

from __future__ import annotations

import logging

import pytest
import torch

from engine.report import FIRST_STEPS
from tests.engine.toy import ToyTask, trainer
from tests.messages import OneLine
from utils.errors import UserError


@pytest.fixture
def reported(tmp_path):
    """Trains a task and returns the line that ends the run."""

    def train(task: ToyTask, **options) -> str:
        with pytest.raises(UserError) as error:
            trainer(tmp_path, task, **options).fit()
        assert "\n" not in str(error.value)
        return str(error.value)

    return train


def test_a_first_step_that_is_not_finite_names_learning_rate_and_records(reported):
    message = reported(ToyTask(poison={0}))
    assert message == OneLine("step 1", "points/square nan")
    assert OneLine("not updated", "learning rate 0.1") in message.splitlines()
    assert "records: points:0:0" in message
    assert message == OneLine("optim.lr", "schedule.warmup_steps", "train.max_skipped_steps")


def test_a_late_step_that_is_not_finite_blames_only_its_records(reported):
    message = reported(ToyTask(poison={FIRST_STEPS}), steps=FIRST_STEPS + 2)
    assert message.startswith(f"step {FIRST_STEPS + 1}: ")
    assert "learning rate" not in message
    assert message.endswith("set train.max_skipped_steps to skip such steps")


def test_non_finite_weights_are_named_and_their_steps_are_not_skipped(reported, caplog):
    task = ToyTask()
    with torch.no_grad():
        task.model.fit.bias.fill_(torch.inf)
    with caplog.at_level(logging.WARNING):
        message = reported(task, steps=FIRST_STEPS + 5, max_skipped_steps=3)
    assert message == OneLine("step 1", "not finite")
    assert OneLine("1 of 2", "fit.bias", "learning rate 0.1") in message.splitlines()
    assert "were not updated" not in message and "max_skipped_steps" not in message
    assert "skipped, since" not in caplog.text


def test_weights_damaged_by_an_update_are_named_with_the_learning_rate(reported):
    task = ToyTask()
    run_rates = []

    class Ruin(torch.nn.Linear):
        def forward(self, x):
            run_rates.append(1)
            if len(run_rates) == 2:  # as after an update with a much too high learning rate
                with torch.no_grad():
                    self.weight.fill_(torch.nan)
            return super().forward(x)

    task.model.fit.__class__ = Ruin
    message = reported(task)
    assert message.startswith("step 2: ")
    assert "(1 of 2 tensors, first fit.weight)" in message
    assert "records: points:1:0" in message
