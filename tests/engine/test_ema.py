"""The averaged weights (``optim.ema``): the formula, how checkpoints store them, how validation and the best weights use them,
and resumed runs."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.checkpoint import (
    MANIFEST,
    TRAINING_FILE,
    Checkpoint,
    digest_of,
    find_weights,
    list_checkpoints,
    newest_intact,
)
from engine.config import TrainConfig
from engine.run_folder import RunFolder
from engine.trainer import Trainer
from optim.config import OptimConfig
from scheduler import ScheduleConfig
from tests.engine.frozen import Encoders
from tests.engine.toy import Empty, Points, ToyLoader, ToyTask, plan_of, points
from tests.messages import naming
from tests.ranks import on_two_ranks
from tools.steps.fake import FakeSteps
from utils.errors import UserError
from utils.weight_file import read_metadata

EMA = {"decay": 0.6}


class RecordingTask(ToyTask):
    """Keeps the weights that each validation pass measures."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.seen: list[dict[str, Tensor]] = []

    def validate(self) -> dict[str, float]:
        self.seen.append(copy.deepcopy(self.model.state_dict()))
        return super().validate()


def run(folder: Path, task: ToyTask | None = None, ema: Any = EMA, freeze: Any = None, **options: Any) -> Trainer:
    """A trainer that resumes from a checkpoint in the folder if there is one. As in a task, it then starts with the weights of
    the checkpoint."""
    task = task or ToyTask()
    opened = RunFolder.open(folder, Empty(), resume=True)
    checkpoint = opened.newest
    if checkpoint is not None:
        task.model.load_state_dict(load_file(checkpoint.model_file))
    settings = {"steps": 6, "precision": "fp32", "log_every": 1, "checkpoint_every": 100} | options
    sections = {
        "train": TrainConfig(**settings),
        "optim": OptimConfig(lr=0.1, ema=ema, freeze=freeze),
        "schedule": ScheduleConfig(kind="linear"),
    }
    return Trainer(
        task,
        plan_of(task, **sections),
        **sections,
        seed=0,
        folder=opened,
        device=torch.device("cpu"),
        checkpoint=checkpoint,
    )


def steps_of(trainer: Trainer) -> list[dict[str, Tensor]]:
    """The weights before each step of a run, and after the last step."""
    seen = [copy.deepcopy(trainer.model.state_dict())]
    trainer.after_phase = lambda phase: (
        seen.append(copy.deepcopy(trainer.model.state_dict())) if phase == "numbers" else None
    )
    trainer.fit()
    return seen


def averaged(weights: list[dict[str, Tensor]], decay: float, warmup: bool = True) -> dict[str, Tensor]:
    """The formula in float64."""
    average = {name: value.double() for name, value in weights[0].items()}
    for step, after in enumerate(weights[1:]):
        now = min(decay, (1 + step) / (10 + step)) if warmup else decay
        average = {name: now * value + (1 - now) * after[name].double() for name, value in average.items()}
    return average


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.allclose(first[name].double(), second[name], rtol=1e-6, atol=1e-7) for name in second)


def last(folder: Path) -> Checkpoint:
    return list_checkpoints(folder / "checkpoints")[-1]


@pytest.mark.parametrize("ema", [{"decay": 0.6}, {"decay": 0.2}, {"decay": 0.6, "warmup": False}, {"decay": 0.0}])
def test_the_average_equals_the_formula(tmp_path, ema):
    weights = steps_of(run(tmp_path, ema=ema, steps=20))
    found = load_file(last(tmp_path).model_file)
    assert close(found, averaged(weights, **ema))
    assert all(value.dtype == torch.float32 for value in found.values())
    assert same(load_file(last(tmp_path).folder / "unaveraged.safetensors"), weights[-1])
    assert same(found, weights[-1]) == (ema["decay"] == 0)


def test_the_average_does_not_affect_training(tmp_path):
    plain, with_average = (steps_of(run(tmp_path / str(ema), ema=ema)) for ema in (None, EMA))
    assert all(same(*pair) for pair in zip(plain, with_average, strict=True))
    assert not (last(tmp_path / "None").folder / "unaveraged.safetensors").exists()


class OverflowingLoader(ToyLoader):
    """One of its micro-batches has a finite loss whose gradient overflows in fp16."""

    def batches(self, consumed: int, count: int) -> Iterator[Points]:
        for number, batch in enumerate(super().batches(consumed, count), consumed):
            yield replace(batch, y=batch.y + 1e4) if number == 5 else batch


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_skipped_step_does_not_change_the_average(tmp_path, precision):
    """Two steps have a loss that is not finite. In fp16, the gradient of a step between them overflows."""
    task = ToyTask()
    task.loader = OverflowingLoader({4, 7})
    trainer = run(tmp_path, task, max_skipped_steps=2, steps=9, precision=precision)
    average = trainer.trained.average
    seen: list[tuple[list[Tensor], list[Tensor]]] = []

    def keep(phase: str) -> None:
        if phase == "numbers":
            seen.append(
                ([t.clone() for t in average.tensors], [p.detach().clone() for p in trainer.trained.parameters])
            )

    trainer.after_phase = keep
    trainer.fit()
    moved = [
        tuple(not all(map(torch.equal, *tensors)) for tensors in zip(before, after, strict=True))
        for before, after in itertools.pairwise(seen)
    ]
    assert all(average == weights for average, weights in moved)
    assert [average for average, _ in moved][3:] == [False, precision != "fp16", True, False, True]


def as_format_1(checkpoint: Checkpoint) -> None:
    """Rewrites a checkpoint in the format of earlier versions: the optimiser states are stored by index in the file of the
    remaining state."""
    training = checkpoint.training_state()
    tensors = load_file(checkpoint.states_folder / "tensors.safetensors")
    shutil.rmtree(checkpoint.states_folder)
    names = [name for group in training["optimizer"]["param_groups"] for name in group["names"]]
    training["optimizer"]["state"] = {
        index: {key.rpartition("/")[2]: value for key, value in tensors.items() if key.rpartition("/")[0] == name}
        for index, name in enumerate(names)
    }
    torch.save(training, checkpoint.folder / TRAINING_FILE)
    kept = [path for path in checkpoint.folder.iterdir() if path.name != MANIFEST]
    files = {path.name: {"bytes": path.stat().st_size, "sha256": digest_of(path)} for path in kept}
    (checkpoint.folder / MANIFEST).write_text(json.dumps({"format": 1, "step": checkpoint.step, "files": files}))


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("freeze", [None, {"text": 3, "vision": True}])
@pytest.mark.parametrize("stopped_after", [2, 4])
def test_a_resumed_run_is_bitwise_equal_to_an_uninterrupted_one(tmp_path, stopped_after, freeze, earlier):
    """This also holds for checkpoints written by an earlier version."""
    options: dict[str, Any] = {"checkpoint_every": 2, "keep_checkpoints": 9, "validate_every": 2, "deterministic": True}
    options["freeze"] = freeze
    task = RecordingTask(scores=[0.1, 0.3, 0.2])
    task.model = Encoders()
    run(tmp_path / "whole", task, **options).fit()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for checkpoint in list_checkpoints(tmp_path / "cut/checkpoints"):
        if checkpoint.step > stopped_after:
            shutil.rmtree(checkpoint.folder)
        elif earlier:
            as_format_1(checkpoint)
    task = RecordingTask(scores=[0.1, 0.3, 0.2][stopped_after // 2 :])
    task.model = Encoders()
    run(tmp_path / "cut", task, **options).fit()
    torch.use_deterministic_algorithms(False)
    names = ["best.safetensors", "validation.jsonl"]
    names += [f"checkpoints/step-00000006/{name}" for name in ("model.safetensors", "unaveraged.safetensors")]
    names.append("checkpoints/step-00000006/optimizer/tensors.safetensors")
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_validations_measure_the_average_and_it_becomes_the_best_weights(tmp_path, caplog):
    task = RecordingTask(scores=[0.1, 0.3, 0.2])
    with caplog.at_level("INFO"):
        weights = steps_of(run(tmp_path, task, validate_every=2))
    for number, seen in enumerate(task.seen):
        assert close(seen, averaged(weights[: 2 * number + 3], 0.6))
        assert not same(seen, weights[2 * number + 2])
    assert same(load_file(tmp_path / "best.safetensors"), task.seen[1])
    assert read_metadata(tmp_path / "best.safetensors")["ema"] == {"decay": 0.6, "warmup": True}
    line = "step 4: validation score 0.3000 of the averaged weights, the best so far"
    assert line in caplog.messages


def test_a_failed_validation_restores_the_weights(tmp_path):
    trainer = run(tmp_path, ToyTask(scores=[]), steps=2)
    trained: list[dict[str, Tensor]] = []
    trainer.after_phase = lambda phase: trained.append(copy.deepcopy(trainer.model.state_dict()))
    with pytest.raises(IndexError):
        trainer.fit()
    assert same(dict(trainer.model.state_dict()), trained[-1])


class StoppingDuringValidation(ToyTask):
    """Waits for the checkpoint in the middle of a validation pass, like a run that is asked to stop at this moment."""

    trainer: Trainer
    files: list[dict[str, Tensor]]

    def validate(self) -> dict[str, float]:
        self.trainer._finish_saving()
        folder = last(self.trainer.folder.path).folder
        self.files = [load_file(folder / f"{name}.safetensors") for name in ("model", "unaveraged")]
        return super().validate()


def test_a_checkpoint_saved_during_a_validation_has_the_weights_of_the_step(tmp_path):
    task = StoppingDuringValidation(scores=[0.5])
    task.trainer = run(tmp_path, task, steps=3)
    weights = steps_of(task.trainer)
    assert close(task.files[0], averaged(weights, 0.6))
    assert same(task.files[1], weights[-1])


def test_after_a_run_the_model_has_the_average_even_if_no_step_was_left(tmp_path):
    first = run(tmp_path)
    first.fit()
    written = load_file(last(tmp_path).model_file)
    assert same(dict(first.model.state_dict()), written)
    again = run(tmp_path)
    assert same(dict(again.model.state_dict()), load_file(last(tmp_path).folder / "unaveraged.safetensors"))
    again.fit()
    assert same(dict(again.model.state_dict()), written)


def test_a_run_starts_from_the_average_or_from_the_trained_weights(tmp_path):
    run(tmp_path).fit()
    folder = last(tmp_path).folder
    assert find_weights(tmp_path) == find_weights(folder) == folder / "model.safetensors"
    assert find_weights(folder / "unaveraged.safetensors") == folder / "unaveraged.safetensors"


@pytest.mark.parametrize(("before", "now", "reported"), [(None, EMA, "without"), (EMA, None, "with")])
def test_a_run_does_not_resume_if_the_average_was_switched_on_or_off(tmp_path, before, now, reported):
    run(tmp_path, ema=before, checkpoint_every=3).fit()
    with pytest.raises(UserError, match=naming("step-00000006", reported, "optim.ema")):
        run(tmp_path, ema=now)


@pytest.mark.parametrize("name", ["model.safetensors", "unaveraged.safetensors"])
def test_a_checkpoint_with_damaged_weights_is_skipped(tmp_path, name):
    run(tmp_path, checkpoint_every=3).fit()
    file = last(tmp_path).folder / name
    file.write_bytes(file.read_bytes()[:-1])
    found, faults = newest_intact(tmp_path / "checkpoints")
    assert found is not None and found.step == 3
    assert len(faults) == 1 and name in faults[0]


def test_only_parts_that_train_at_some_step_have_an_average(tmp_path):
    task = ToyTask()
    task.model = Encoders()
    trainer = run(tmp_path, task, freeze={"vision": True, "text": 3}, steps=6)
    averages = sum(tensor.numel() for tensor in trainer.trained.average.tensors)
    assert averages == sum(p.numel() for p in task.model.parameters()) - 12  # a 3 x 3 matrix and a bias of 3 in vision
    weights = steps_of(trainer)
    expected = averaged(weights, 0.6)
    found = load_file(last(tmp_path).model_file)
    assert close(found, expected)
    assert torch.equal(found["vision.weight"], weights[0]["vision.weight"])


def memory(ema: Any) -> Any:
    optim = OptimConfig(lr=0.1, ema=ema)
    steps = FakeSteps(Encoders(), TrainConfig(steps=1, precision="fp32"), optim, as_on_gpu=False)
    return steps.memory(lambda _: points(3), gradients_stay=True)


def test_the_planned_memory_of_a_step_includes_the_average():
    plain, averaging = memory(None), memory(EMA)
    assert plain.average == 0
    assert averaging.average == averaging.weights == plain.weights
    assert averaging.total == plain.total + averaging.average
    assert averaging.optimiser == plain.optimiser


class OnRanks:
    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self) -> dict[str, Tensor]:
        trainer = run(self.folder)
        trainer.fit()
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.night
def test_two_ranks_have_the_same_average(tmp_path):
    (tmp_path / "out").mkdir()
    first, second = on_two_ranks(OnRanks(tmp_path / "run"), tmp_path / "out")
    assert same(first, second)
    assert same(first, load_file(last(tmp_path / "run").model_file))
