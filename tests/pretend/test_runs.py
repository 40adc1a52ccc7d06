"""Runs on the pretend device give the CPU's results and can be resumed, and their steps never wait for the device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.report import PendingStep, StepValues
from engine.trainer import Trainer
from tasks.run import run_script
from tests.conftest import tiny_run
from tests.dataset.media.test_video import encoded
from tests.engine.runs import curve
from tests.engine.toy import trainer
from tests.pretend.differences import differences
from tests.pretend.tensor import Wait, recorded_waits
from tests.tasks.conftest import data, overrides, settings_of_a_process  # noqa: F401 (fixtures)
from tests.tasks.painted import KINDS, ROOT
from tests.tasks.test_video import clips, retrieval_options, video_qa_options  # noqa: F401 (a fixture)
from utils import accelerator

WITHOUT_DROPOUT = [
    "model.text.dropout=0",
    "model.text.attention_dropout=0",
    "model.vision.drop_path=0",
    "train.precision=fp32",
]


@pytest.fixture
def options(scenes_folder, overrides) -> Callable[[str], list[str]]:  # noqa: F811
    """Overrides for a task. The only remaining randomness is in hard negatives."""

    def of(task: str) -> list[str]:
        if task == "pretrain":
            return [*tiny_run(scenes_folder), *WITHOUT_DROPOUT, "train.steps=6"]
        return [*overrides(task), *WITHOUT_DROPOUT, "evaluation.precision=fp32"]

    return of


@pytest.fixture
def waits_of_steps(monkeypatch) -> list[Wait]:
    """The host's waits between the first and the last step of a run, except in validations and checkpoints."""
    found: list[Wait] = []

    def outside(name: str) -> Any:
        method = getattr(Trainer, name)

        def called(self: Trainer, *arguments: Any) -> None:
            with recorded_waits():
                method(self, *arguments)

        return called

    def train(self: Trainer, *arguments: Any) -> None:
        assert all(parameter.device.type == accelerator.best_device().type for parameter in self.model.parameters())
        with recorded_waits() as waits:
            steps(self, *arguments)
        found.extend(waits)

    steps = Trainer._run_steps
    monkeypatch.setattr(Trainer, "_run_steps", train)
    for name in ("_validate", "_save"):
        monkeypatch.setattr(Trainer, name, outside(name))
    return found


def run(task: str, output: Path, options: list[str], *flags: str) -> None:
    config = "vqa/msrvtt_qa_base" if task == "video_qa" else f"demo/{task}"
    arguments = ["--config", str(ROOT / f"configs/{config}.yaml"), "--output", str(output), *flags, *options]
    assert run_script(arguments, task) == 0


def run_on_the_cpu(task: str, output: Path, options: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerator, "best_device", lambda index=None: torch.device("cpu"))
        run(task, output, options)


def forget_after(output: Path, step: int) -> None:
    """Makes a run look as if it had been stopped after a step."""
    for checkpoint in (output / "checkpoints").iterdir():
        if checkpoint.name > f"step-{step:08d}":
            shutil.rmtree(checkpoint)
    (output / "evaluation.json").unlink()


def report_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "evaluation.json").read_text())


FAST = ("pretrain", "retrieval")


@pytest.mark.parametrize(
    "task", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS if name not in FAST)]
)
def test_a_task_trains_validates_evaluates_and_resumes_with_the_numbers_of_the_cpu(
    task, options, pretend, waits_of_steps, tmp_path
):
    run_on_the_cpu(task, tmp_path / "cpu", options(task))
    waits_of_steps.clear()
    run(task, tmp_path / "run", options(task))
    assert not waits_of_steps
    assert not differences(curve(tmp_path / "run"), curve(tmp_path / "cpu"))
    assert not differences(report_of(tmp_path / "run"), report_of(tmp_path / "cpu"))

    whole = curve(tmp_path / "run")
    forget_after(tmp_path / "run", 3)
    run(task, tmp_path / "run", options(task), "--resume")
    assert curve(tmp_path / "run") == whole
    assert not differences(report_of(tmp_path / "run"), report_of(tmp_path / "cpu"))


@pytest.fixture
def all_streams(tmp_path) -> list[str]:
    """Overrides that add texts, translations and videos to pre-training."""
    star, frames = "a small red star", [encoded(number) for number in range(9)]
    records: dict[str, list[dict[str, Any]]] = {
        "texts": [{"text": f"{star} {n}"} for n in range(6)],
        "translations": [{"source_text": f"{star} {n}", "target_text": f"a circle {n}"} for n in range(5)],
        "videos": [{"video": frames[n : n + 2], "caption": f"{star} {n}"} for n in range(8)],
    }
    for name, rows in records.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    streams = [f"data.{name}={{files: [{tmp_path}/{name}.jsonl], batch_size: 3}}" for name in records]
    return [*streams, "model.vision.video.frames=2"]


@pytest.mark.slow
def test_all_streams_train_and_resume_with_the_numbers_of_the_cpu(
    all_streams, options, pretend, waits_of_steps, tmp_path
):
    given = [*options("pretrain"), *all_streams]
    run_on_the_cpu("pretrain", tmp_path / "cpu", given)
    waits_of_steps.clear()
    run("pretrain", tmp_path / "run", given)
    assert not waits_of_steps
    whole = curve(tmp_path / "run")
    streams = {name.split("/")[0] for name in whole[0] if name.endswith("/mlm")}
    assert streams == {"images", "regions", "texts", "translations", "videos"}
    assert not differences(whole, curve(tmp_path / "cpu"))
    forget_after(tmp_path / "run", 3)
    run("pretrain", tmp_path / "run", given, "--resume")
    assert curve(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("task", ["retrieval", "video_qa"])
def test_tasks_on_videos_give_the_numbers_of_the_cpu(task, clips, scenes_folder, pretend, waits_of_steps, tmp_path):  # noqa: F811
    given = (retrieval_options if task == "retrieval" else video_qa_options)(clips, scenes_folder)
    run_on_the_cpu(task, tmp_path / "cpu", [*given, *WITHOUT_DROPOUT])
    waits_of_steps.clear()
    run(task, tmp_path / "run", [*given, *WITHOUT_DROPOUT])
    assert not waits_of_steps
    assert not differences(curve(tmp_path / "run"), curve(tmp_path / "cpu"))
    assert not differences(report_of(tmp_path / "run"), report_of(tmp_path / "cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ["model.contrastive.chunks=2", "train.accumulate=2"],
        ["optim.lora={rank: 2, lr: 0.01}"],
        ["optim.freeze={vision: 2, vision_blocks: 1, cache: {folder: FEATURES}}", "model.vision.depth=2"],
        ["optim.ema={decay: 0.6}"],
    ],
    ids=["gradient caching", "adapters", "frozen blocks and their cache", "averaged weights"],
)
def test_training_options_give_the_numbers_of_the_cpu(extra, options, pretend, tmp_path):
    for device, start in (("cpu", run_on_the_cpu), ("pretend", run)):
        given = [each.replace("FEATURES", str(tmp_path / f"features of {device}")) for each in extra]
        start("pretrain", tmp_path / device, [*options("pretrain"), *given])
    assert not differences(curve(tmp_path / "pretend"), curve(tmp_path / "cpu"))
    assert not differences(report_of(tmp_path / "pretend"), report_of(tmp_path / "cpu"))


def test_the_metrics_of_a_step_are_read_one_step_late(pretend, tmp_path, monkeypatch):
    read = PendingStep.read
    reading: list[tuple[int, int]] = []
    run = trainer(tmp_path, device=pretend, steps=4)

    def watched(pending: PendingStep) -> StepValues:
        assert pending.values.isnan().all(), "the copy must still be in progress"
        reading.append((pending.step, run.step))
        return read(pending)

    monkeypatch.setattr(PendingStep, "read", watched)
    run.fit()
    assert reading == [(1, 2), (2, 3), (3, 4), (4, 4)]


INPUTS = "inputs of a batch"
RESULTS = "results of a batch"
SPOOL = "states of images: a split's may not fit into the device's memory"
EVALUATION_WAITS = {
    "copies from the host: utils/distributed.py move_from_rank_0": "the model, once",
    "copies from the host: batches/base.py to_device": INPUTS,
    "copies from the host: tasks/captioning.py CaptioningTask.captions": INPUTS,
    "copies from the host: tasks/finetune.py FineTuneTask.stacked": INPUTS,
    "copies from the host: tasks/vqa.py VQATask._predict": INPUTS,
    "copies from the host: tasks/pretrain_evaluation.py PretrainEvaluator._encode_images": INPUTS,
    "copies from the host: tasks/pretrain_evaluation.py PretrainEvaluator._predict_boxes": INPUTS,
    "copies from the host: tasks/two_stage.py TwoStageRetrieval._encode_images": INPUTS,
    "copies from the host: tasks/two_stage.py TwoStageRetrieval._logits": SPOOL,
    "copies from the host: tasks/two_stage.py TwoStageRetrieval._nearest": "embeddings of a split, a block at a time",
    "copies to the host: tasks/two_stage.py _append": SPOOL,
    "copies to the host: tasks/two_stage.py TwoStageRetrieval._encode_images": RESULTS,
    "copies to the host: tasks/two_stage.py TwoStageRetrieval._encode_texts": RESULTS,
    "copies to the host: tasks/two_stage.py TwoStageRetrieval._nearest": RESULTS,
    "copies to the host: tasks/two_stage.py TwoStageRetrieval._logits": RESULTS,
    "reads a number: tasks/two_stage.py TwoStageRetrieval.rank": "the temperature, once per split",
    "copies to the host: tasks/pretrain_evaluation.py PretrainEvaluator._predict_boxes": RESULTS,
    "copies to the host: tasks/pretrain_evaluation.py PretrainEvaluator._masked_words": RESULTS,
    "copies to the host: tasks/finetune.py FineTuneTask.outputs": RESULTS,
    "copies to the host: tasks/inference.py require_finite": "scores, of which none may be NaN before a prediction is chosen",
    "copies to the host: models/inference/reranking.py TextBank.of": "lengths of all texts, once, to sort them by length",
    "copies to the host: models/inference/answer_ranking.py rank_answers": "the best first words, to score their answers",
    "reads a number: models/core/generation.py beam_search": "whether all captions of a batch are finished, after each word",
}
"""The host's waits in an evaluation: kind, file and function, and the reason."""


def test_evaluations_only_have_the_listed_waits(options, pretend, tmp_path):
    found = set()
    for task in ("pretrain", *KINDS):
        run(task, tmp_path / task, [*options(task), "train.steps=1", "schedule.warmup_steps=0.5"])
        again = [*options(task), f"init.checkpoint={tmp_path / task}"]
        with recorded_waits() as waits:
            run(task, tmp_path / f"{task} again", again, "--evaluate")
        found |= {f"{what}: {location.file} {location.function}" for what, location, _ in waits}
    assert found == set(EVALUATION_WAITS)
