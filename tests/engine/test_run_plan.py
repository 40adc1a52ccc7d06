"""The plan of a run: its numbers, which settings are rejected, and that a global batch gives the same run on any number of
ranks."""

import re

import pytest
import torch
from safetensors.torch import load_file

from batches import BatchSize
from engine.checkpoint import list_checkpoints
from engine.config import TrainConfig
from engine.run_plan import RunPlan
from optim.config import OptimConfig
from scheduler import ScheduleConfig
from tests.engine.toy import ToyTask, trainer
from tests.messages import naming
from utils import distributed
from utils.config import bind
from utils.config_files import ConfigError
from utils.errors import UserError

KEY = "data.batch_size"


class Data:
    def __init__(self, size: int):
        self.micro_batch, self.records_per_batch = BatchSize(KEY, size), size

    def check_ranks(self, ranks: int) -> None:
        pass


def plan(
    train: dict, size: int = 4, ranks: int = 2, chunks: int = 1, epoch_size: int | None = None, **sections
) -> RunPlan:
    """The plan of a run with the section ``train``."""
    optim, schedule = sections.get("optim", {}), sections.get("schedule", {})
    config = bind({"steps": 1} | train, TrainConfig)
    return RunPlan.of(config, Data(size), chunks=chunks, ranks=ranks).with_length(
        config, bind({"lr": 1.0} | optim, OptimConfig), bind(schedule, ScheduleConfig), epoch_size
    )


def accumulation(global_batch: int | None, size: int, ranks: int, **options) -> int:
    return plan({"global_batch": global_batch, **options}, size, ranks).accumulation


@pytest.mark.parametrize(
    ("global_batch", "size", "ranks", "expected"),
    [(1024, 128, 8, 1), (1024, 64, 4, 4), (1024, 1024, 1, 1), (480, 60, 8, 1), (6, 1, 2, 3), (None, 7, 3, 1)],
)
def test_accumulation_follows_from_the_global_batch(global_batch, size, ranks, expected):
    assert accumulation(global_batch, size, ranks) == expected


def test_without_a_global_batch_the_config_sets_the_accumulation():
    assert accumulation(None, 7, 3, accumulate=5) == 5
    assert accumulation(None, 7, 3, accumulate=None) == 1


def test_a_plan_counts_records_steps_and_epochs():
    """Micro-batches of 4 on 2 ranks, and 3 of them per step, make 24 records."""
    assert plan({"accumulate": 3, "steps": 10, "validate_every": 4}) == RunPlan(2, 3, 1, 24, None, 10, 4)
    before = plan({"accumulate": 3, "steps": None, "epochs": 2})
    assert (before.steps, before.validate_every) == (None, None), "planning must not read the data"
    after = plan({"accumulate": 3, "steps": None, "epochs": 2}, epoch_size=100)
    assert after == RunPlan(2, 3, 1, 24, 100, 9, 5)
    assert after.epochs == 9 * 24 / 100


def test_chunks_that_do_not_divide_the_accumulation_are_rejected():
    plan({"accumulate": 6}, chunks=3)
    with pytest.raises(UserError, match=naming("model.contrastive.chunks = 4", "6", "1, 2, 3, 6")):
        plan({"accumulate": 6}, chunks=4)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"schedule": {"warmup_steps": 11}}, ("schedule.warmup_steps", "11", "10 steps")),
        ({"optim": {"freeze": {"vision": 10}}}, ("optim.freeze.vision", "10 steps")),
    ],
)
def test_a_warm_up_or_freeze_may_not_be_longer_than_the_run(sections, message):
    plan({"steps": 11 if "schedule" in sections else 12}, **sections)
    with pytest.raises(UserError, match=naming(*message)):
        plan({"steps": 10}, **sections)
    with pytest.raises(UserError, match=naming(*message)):
        plan({"steps": None, "epochs": 1}, epoch_size=80, **sections)
    plan({"steps": None, "epochs": 1}, **sections)  # the number of steps is not known yet


def test_the_data_check_the_number_of_ranks(monkeypatch):
    def refuse(self: Data, ranks: int) -> None:
        raise UserError(f"no {ranks}")

    monkeypatch.setattr(Data, "check_ranks", refuse)
    with pytest.raises(UserError, match="no 3"):
        plan({}, ranks=3)


@pytest.mark.parametrize("given", [{}, {"global_batch": None}])
def test_a_config_without_a_global_batch_is_saved_in_the_old_format(given):
    """Otherwise runs started with older configs could not be resumed."""
    assert bind({"steps": 1, **given}, TrainConfig).accumulate == 1


@pytest.mark.parametrize(
    ("global_batch", "size", "ranks", "sizes", "batches"),
    [
        (1024, 48, 4, [32, 64], [960, 1152]),
        (1024, 300, 4, [256], [1200]),  # this exceeds a rank's share: no larger batch divides it, and no smaller one
        (1024, 48, 6, [], [864, 1152]),  # six ranks cannot share 1,024
        (12, 5, 1, [4, 6], [10, 15]),
        (7, 8, 1, [7], [8]),
    ],
)
def test_a_batch_that_does_not_divide_is_rejected_with_numbers_that_do(global_batch, size, ranks, sizes, batches):
    with pytest.raises(UserError) as error:
        accumulation(global_batch, size, ranks)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"train.global_batch = {global_batch}: ")
    assert f"{KEY} = {size}" in message and f"{ranks} rank" in message
    assert named(message, KEY) == sizes
    assert named(message, "train.global_batch") == batches
    for other in sizes:
        assert accumulation(global_batch, other, ranks) * other * ranks == global_batch
    for other in batches:
        assert accumulation(other, size, ranks) * size * ranks == other


def named(message: str, key: str) -> list[int]:
    """The values that a message proposes for ``key``."""
    found = re.search(rf"{re.escape(key)} to ([\d or]+)", message)
    return [int(number) for number in re.findall(r"\d+", found[1])] if found else []


@pytest.mark.parametrize(("size", "ranks"), [(128, 2), (48, 4)])
def test_recorded_graphs_need_one_micro_batch_per_step(size, ranks):
    """This includes derived accumulation. The proposed numbers result in one micro-batch."""
    assert accumulation(1024, 512, 2, compile="reduce-overhead") == 1
    assert accumulation(1024, 128, 2, compile=True) == 4
    with pytest.raises(UserError, match="reduce-overhead") as error:
        accumulation(1024, size, ranks, compile="reduce-overhead")
    message = str(error.value)
    assert "\n" not in message
    assert named(message, KEY) == [1024 // ranks]
    assert named(message, "train.global_batch") == [size * ranks]
    assert accumulation(1024, 1024 // ranks, ranks, compile="reduce-overhead") == 1
    assert ("train.compile to true" in message) == (1024 % (size * ranks) == 0)
    assert accumulation(size * ranks, size, ranks, compile="reduce-overhead") == 1


def test_setting_both_keys_is_rejected_in_one_line():
    with pytest.raises(ConfigError) as error:
        bind({"steps": 1, "accumulate": 2, "global_batch": 64}, TrainConfig)
    message = str(error.value)
    assert "accumulate = 2" in message and "global_batch = 64" in message
    assert "\n" not in message


def test_derived_accumulation_trains_like_explicit_accumulation(tmp_path):
    derived = trainer(tmp_path / "derived", steps=3, global_batch=12)
    explicit = trainer(tmp_path / "explicit", steps=3, accumulate=3)
    for run in (derived, explicit):
        run.fit()
    assert derived.consumed == explicit.consumed == 9
    for one, other in zip(derived.model.parameters(), explicit.model.parameters(), strict=True):
        assert torch.equal(one, other)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("derived", "explicit")]
    assert len(lines[0]) == len(lines[1]) == 3


def test_a_resumed_run_repeats_an_uninterrupted_run_with_derived_accumulation(tmp_path):
    settings = {"steps": 4, "global_batch": 8, "checkpoint_every": 2}
    whole = trainer(tmp_path / "whole", **settings)
    whole.fit()
    part = trainer(tmp_path / "part", **settings)
    part.steps = 2
    part.fit()
    task, (checkpoint,) = ToyTask(), list_checkpoints(tmp_path / "part" / "checkpoints")
    task.model.load_state_dict(load_file(checkpoint.model_file))
    resumed = trainer(tmp_path / "part", task, checkpoint, **settings)
    assert (resumed.step, resumed.consumed) == (2, 4)
    resumed.fit()
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_epochs_count_the_global_batch(tmp_path):
    """2 epochs of 10 records, with 8 records per step."""
    run = trainer(tmp_path, steps=None, epochs=2, global_batch=8)
    assert run.steps == 3


def test_a_trainer_rejects_a_global_batch_that_does_not_divide(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(UserError, match=r"^train\.global_batch = 8: "):
        trainer(tmp_path, ToyTask(), global_batch=8)
