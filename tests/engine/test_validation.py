"""The length of a run, the steps at which a run validates, and the weights that it keeps."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.checkpoint import Checkpoint, find_weights, list_checkpoints
from engine.config import TrainConfig
from engine.metrics_log import keep_until
from engine.run_plan import steps_of
from engine.saving import save_best
from tests.engine.toy import Line, ToyTask, trainer
from tests.messages import naming
from utils.config import bind
from utils.config_files import ConfigError
from utils.errors import UserError
from utils.events import StillImproving

NAN = math.nan


def validations(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


class RecordingTask(ToyTask):
    """Keeps the weights that each validation pass measured, and whether training still had these weights one step later."""

    def __init__(self, scores: list[float]):
        super().__init__(scores=scores)
        self.seen: list[dict[str, torch.Tensor]] = []

    def validate(self) -> dict[str, float]:
        self.seen.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return super().validate()


@pytest.mark.parametrize("values", [{}, {"steps": 3, "epochs": 1.0}])
def test_a_run_needs_either_steps_or_epochs(values):
    with pytest.raises(ConfigError, match=naming("steps", "epochs")):
        bind(values, TrainConfig)


@pytest.mark.parametrize(
    ("size", "records", "accumulate", "epochs", "steps"),
    [
        (10, 5, 1, 1, 2),
        (10, 4, 1, 1, 3),  # a partial step counts as one
        (10, 4, 2, 1, 2),
        (10, 4, 3, 1, 1),
        (10, 4, 1, 0.5, 2),
        (10, 4, 1, 2, 5),
        (10, 4, 2, 10, 13),
        (10, 1, 1, 1.1, 11),  # 1.1 * 10 is 11.000000000000002 in floating point
        (100, 1, 1, 0.07, 7),
        (1, 64, 1, 0.5, 1),
    ],
)
def test_epochs_are_converted_to_steps_by_the_records_per_step(size, records, accumulate, epochs, steps):
    assert steps_of(TrainConfig(epochs=epochs), size, records * accumulate) == steps
    assert steps_of(TrainConfig(steps=7), size, records * accumulate) == 7


def test_a_run_in_epochs_makes_the_computed_number_of_steps(tmp_path):
    """2 epochs of 10 records, with 2 x 4 records per step."""
    run = trainer(tmp_path, steps=None, epochs=2, accumulate=2)
    run.fit()
    assert (run.step, run.consumed) == (3, 6)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 6, "validate_every": 2}, [2, 4, 6]),
        ({"steps": 7, "validate_every": 3}, [3, 6, 7]),
        ({"steps": 3, "validate_every": 50}, [3]),
        ({"steps": 3, "validate_every": 1}, [1, 2, 3]),
        ({"steps": 7}, [3, 6, 7]),  # 10 records with 4 per step: the third step ends the epoch
        ({"steps": 5, "accumulate": 2}, [2, 4, 5]),
        ({"steps": None, "epochs": 2}, [3, 5]),
    ],
)
def test_validation_runs_every_epoch_or_as_configured_and_after_the_last_step(tmp_path, options, expected):
    task = ToyTask(scores=[0.1] * 20)
    trainer(tmp_path, task, **options).fit()
    assert [line["step"] for line in validations(tmp_path)] == expected
    assert len(task.scores) == 20 - len(expected)


def test_a_validation_is_followed_by_a_checkpoint(tmp_path):
    """Otherwise the best weights could belong to a step from which the run cannot resume."""
    trainer(tmp_path, ToyTask(scores=[0.1] * 5), validate_every=2, steps=5).fit()
    steps = [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")]
    assert steps == [2, 4, 5]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.3, 0.2], 1),
        ([0.1, 0.2, 0.3], 2),
        ([0.3, 0.2, 0.1], 0),
        ([0.2, 0.2, 0.2], 0),  # on a tie, the earlier validation is kept
        ([0.1, 0.2, 0.2], 1),
        ([NAN, 0.1, NAN], 1),  # NaN never wins
        ([0.1, NAN, 0.2], 2),
        ([-3.0, -2.0, -4.0], 1),
        ([0.0, -1.0, 0.0], 0),
    ],
)
def test_the_first_best_validation_determines_the_best_weights(tmp_path, scores, best):
    task = RecordingTask(list(scores))
    trainer(tmp_path, task, steps=6, validate_every=2).fit()
    kept = load_file(tmp_path / "best.safetensors")
    assert kept.keys() == task.seen[best].keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, task.seen[best][name])
        assert not any(torch.equal(tensor, seen[name]) for index, seen in enumerate(task.seen) if index != best)
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["about"])["validation"] == {"step": 2 * best + 2, "score": scores[best]}


@pytest.mark.parametrize(
    ("scores", "before"),
    [([0.1, 0.2, 0.4], 0.2), ([0.3, 0.1, 0.4], 0.3), ([0.1, 0.4, 0.3], None), ([NAN, NAN, 0.4], None)],
)
def test_a_run_whose_last_validation_is_the_best_says_that_it_was_still_improving(tmp_path, caplog, scores, before):
    caplog.set_level("INFO")
    trainer(tmp_path, ToyTask(scores=list(scores)), steps=6, validate_every=2).fit()
    found = [record.msg for record in caplog.records if isinstance(record.msg, StillImproving)]
    assert [(event.step, event.value, event.before) for event in found] == (
        [] if before is None else [(6, 0.4, before)]
    )
    if found:
        assert str(found[0]) == (
            f"step 6: score was still improving (0.4000 after the last step, at best {before:.4f} before); "
            "a longer run may be better"
        )


def test_if_every_validation_is_nan_there_are_no_best_weights(tmp_path):
    trainer(tmp_path, ToyTask(scores=[NAN, NAN]), steps=4, validate_every=2).fit()
    assert not (tmp_path / "best.safetensors").exists()
    assert validations(tmp_path) == [{"step": 2, "score": None}, {"step": 4, "score": None}]


def test_a_task_without_a_selection_metric_is_never_validated(tmp_path):
    """The toy's `validate` raises an error without scores."""
    trainer(tmp_path, ToyTask(), steps=4, validate_every=1).fit()
    assert not (tmp_path / "validation.jsonl").exists()
    assert not (tmp_path / "best.safetensors").exists()


def test_validation_does_not_affect_training(tmp_path):
    trainer(tmp_path / "without", ToyTask(), steps=6).fit()
    trainer(tmp_path / "with", ToyTask(scores=[0.1] * 6), steps=6, validate_every=1).fit()
    last = [tmp_path / name / "checkpoints" / "step-00000006" / "model.safetensors" for name in ("without", "with")]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_best_weights_are_written_identically_each_time(tmp_path):
    """The files are equal byte for byte, including the header, because runs are compared by their files."""
    torch.manual_seed(0)
    model, metrics = Line(), {"score": 0.5, "other": 1.0}
    found = set()
    for number in range(24):
        save_best(tmp_path / f"{number}.safetensors", 7, model.state_dict(), metrics)
        found.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(found) == 1


def resumed(checkpoint: Checkpoint, scores: list[float]) -> ToyTask:
    """The task with the weights of a checkpoint, loaded as every task does."""
    task = ToyTask(scores=list(scores))
    task.model.load_state_dict(load_file(checkpoint.model_file))
    return task


SCORES = [0.2, 0.1, 0.5, NAN, 0.5, 0.4]
"""Validation scores after steps 2, 4, …, 12. The best is after step 6."""


@pytest.mark.parametrize("killed_at", [2, 4, 6, 8, 10])
@pytest.mark.parametrize("next_one_is_written", [False, True])
def test_a_killed_run_repeats_validations_and_best_weights_byte_for_byte(tmp_path, killed_at, next_one_is_written):
    """The run is killed after the checkpoint of a step, or between the next validation pass and the checkpoint that follows that
    pass."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"steps": 12, "validate_every": 2, "keep_checkpoints": 9}
    trainer(whole, ToyTask(scores=list(SCORES)), **options).fit()
    shutil.copytree(whole, killed)
    for checkpoint in list_checkpoints(killed / "checkpoints"):
        if checkpoint.step > killed_at:
            shutil.rmtree(checkpoint.folder)
    done = killed_at // 2
    lines = (killed / "validation.jsonl").read_text().splitlines(keepends=True)
    (killed / "validation.jsonl").write_text("".join(lines[: done + next_one_is_written]) + '{"step": 1')
    if killed_at + 2 * next_one_is_written < 6:
        # The best weights so far are from step 2. The file for step 6 is not written yet.
        trainer(tmp_path / "short", ToyTask(scores=list(SCORES[:1])), steps=2, validate_every=2).fit()
        shutil.copy(tmp_path / "short" / "best.safetensors", killed / "best.safetensors")
    newest = list_checkpoints(killed / "checkpoints")[-1]
    assert newest.step == killed_at
    trainer(killed, resumed(newest, SCORES[done:]), newest, **options).fit()
    for name in ("validation.jsonl", "best.safetensors", "checkpoints/step-00000012/model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    with safe_open(killed / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["about"])["validation"]["step"] == 6


def test_a_resumed_run_that_does_not_improve_keeps_its_best_weights(tmp_path):
    every = {"steps": 8, "validate_every": 2, "checkpoint_every": 2}
    trainer(tmp_path, ToyTask(scores=[0.5, 0.1, 0.2, 0.3]), **every).fit()
    before = (tmp_path / "best.safetensors").read_bytes()
    half = list_checkpoints(tmp_path / "checkpoints")[0]
    assert half.step == 4
    trainer(tmp_path, resumed(half, [0.5, 0.4]), half, **every).fit()
    assert (tmp_path / "best.safetensors").read_bytes() == before
    assert [line["step"] for line in validations(tmp_path)] == [2, 4, 6, 8]


def test_a_finished_run_is_not_validated_again(tmp_path):
    trainer(tmp_path, ToyTask(scores=[0.5]), steps=2).fit()
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    trainer(tmp_path, resumed(newest, []), newest, steps=2).fit()
    assert [line["step"] for line in validations(tmp_path)] == [2]


def test_the_time_of_a_validation_does_not_count_as_training(tmp_path, monkeypatch):
    """In this test, the clock only advances during validations."""
    now = [0.0]
    monkeypatch.setattr("engine.trainer.time.perf_counter", lambda: now[0])

    class Slow(ToyTask):
        def validate(self) -> dict[str, float]:
            now[0] += 1000.0
            return super().validate()

    run = trainer(tmp_path, Slow(scores=[0.1] * 3), steps=6, validate_every=2)
    run.fit()
    assert run.tally.elapsed_s == 0


def test_a_run_folder_means_its_best_weights_or_else_its_newest_checkpoint(tmp_path):
    trainer(tmp_path, ToyTask(scores=[0.5, 0.1]), steps=4, validate_every=2).fit()
    assert find_weights(tmp_path) == tmp_path / "best.safetensors"
    (tmp_path / "best.safetensors").unlink()
    newest = tmp_path / "checkpoints" / "step-00000004"
    assert find_weights(tmp_path) == find_weights(newest) == newest / "model.safetensors"
    assert find_weights(newest / "model.safetensors") == newest / "model.safetensors"


def test_a_damaged_checkpoint_is_skipped_for_weights_as_for_resuming(tmp_path, caplog):
    trainer(tmp_path, ToyTask(), steps=4, checkpoint_every=2, keep_checkpoints=2).fit()
    older, newer = (checkpoint.model_file for checkpoint in list_checkpoints(tmp_path / "checkpoints"))
    assert find_weights(tmp_path) == newer
    newer.write_bytes(newer.read_bytes()[:-5])
    assert find_weights(tmp_path) == find_weights(tmp_path) == older
    reported = [record.getMessage() for record in caplog.records if "skipped a checkpoint" in record.getMessage()]
    assert len(reported) == 1 and str(newer) in reported[0]
    changed = bytearray(older.read_bytes())
    changed[-1] ^= 1
    older.write_bytes(changed)
    with pytest.raises(UserError, match=naming("bytes", "damaged", "backup")):
        find_weights(tmp_path)


def test_weights_without_a_manifest_are_accepted(tmp_path):
    trainer(tmp_path, ToyTask(), steps=2).fit()
    (newest,) = list_checkpoints(tmp_path / "checkpoints")
    (newest.folder / "manifest.json").unlink()
    assert find_weights(tmp_path) == newest.model_file


def test_a_path_without_weights_is_reported_in_one_line(tmp_path):
    (tmp_path / "checkpoints" / ".step-00000004.tmp").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        find_weights(tmp_path)
    expected = (
        f"{tmp_path}: contains neither best.safetensors, model.safetensors nor checkpoints/step-*; use a weight file"
    )
    assert str(error.value) == expected
    with pytest.raises(UserError, match=naming("init.checkpoint", f"{tmp_path}/gone")):
        find_weights(tmp_path / "gone")


class InterruptedTask(ToyTask):
    """A task that is asked to stop in the middle of its second validation pass."""

    def validate(self) -> dict[str, float]:
        if len(self.scores or ()) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return super().validate()


def fit_until_interrupted(folder: Path) -> None:
    run = trainer(folder, InterruptedTask(scores=[0.5, 0.25]), steps=4, validate_every=2, checkpoint_every=3)
    with run.stop:
        run.fit()


@pytest.mark.slow
def test_a_signal_during_a_validation_saves_the_step_and_resuming_validates_first(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=fit_until_interrupted, args=(tmp_path / "run",))
    process.start()
    process.join(60)
    assert process.exitcode == 75
    [checkpoint] = [each for each in list_checkpoints(tmp_path / "run/checkpoints") if each.step == 4]
    assert [line["step"] for line in validations(tmp_path / "run")] == [2]
    options = {"steps": 4, "validate_every": 2, "checkpoint_every": 3}
    trainer(tmp_path / "run", resumed(checkpoint, [0.25]), checkpoint, **options).fit()
    trainer(tmp_path / "whole", ToyTask(scores=[0.5, 0.25]), **options).fit()
    assert validations(tmp_path / "run") == validations(tmp_path / "whole")
    for name in ("best.safetensors", "checkpoints/step-00000004/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = list_checkpoints(tmp_path / "run/checkpoints")[-1]
    trainer(tmp_path / "run", resumed(again, []), again, **options).fit()  # nothing is left to do


def test_predictions_of_validations_are_kept_up_to_the_resumed_checkpoint(tmp_path, caplog):
    class Predicting(ToyTask):
        def validate(self):
            values = super().validate()
            self.validation_predictions = [{"number": 0, "answer": f"ü\u2028{values['score']}", "none": float("nan")}]
            return values

    trainer(tmp_path, Predicting(scores=[0.1, 0.2, 0.3]), validate_every=2, steps=6).fit()
    path = tmp_path / "validation_predictions.jsonl"
    kept = [json.loads(line) for line in path.open(encoding="utf-8")]
    assert [line["step"] for line in kept] == [2, 4, 6]
    assert [line["predictions"][0]["answer"] for line in kept] == ["ü\u20280.1", "ü\u20280.2", "ü\u20280.3"]
    with path.open("a") as file:
        file.write('{"step": 7, "pre')
    keep_until(path, 4, numbers=False)
    assert f"{path}: 1 lines are damaged and are removed; the first is line 4" in caplog.messages
    assert [json.loads(line)["step"] for line in path.open(encoding="utf-8")] == [2, 4]
