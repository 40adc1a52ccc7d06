"""Fine-tuning tasks as runs: their files, the weights that they evaluate, and their metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, DistilBertConfig

from dataset.broken import BrokenRecordError
from dataset.tasks.finetune import in_batches
from dataset.text.loading import load_tokenizer
from engine import precision
from engine.checkpoint import Checkpoint, find_weights, list_checkpoints
from tasks.base import BaseTask
from tasks.evaluation import Evaluation, Metric
from tasks.kinds import TaskKind, TaskSource
from tasks.nlvr import NLVRTask
from tasks.run import run_script
from tests.messages import OneLine, naming
from tests.tasks.painted import FILES, KINDS, ROOT
from utils.config import load_config
from utils.errors import UserError


def start(
    task: str, output: Path, overrides: list[str], *flags: str, kind: type[BaseTask[Any, Any, Any]] | None = None
) -> dict[str, Any]:
    """Runs a task in this process and returns its `evaluation.json`."""
    arguments = ["--config", str(ROOT / f"configs/demo/{task}.yaml"), "--output", str(output), *flags, *overrides]
    chosen = KINDS[task] if kind is None else TaskKind(KINDS[task].config, kind)
    with mock.patch.object(TaskSource, "load", return_value=chosen):
        assert run_script(arguments, task) == 0
    return json.loads((output / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, overrides) -> Callable[[str], Path]:
    """The finished run of a task, which is made once."""
    folder = tmp_path_factory.mktemp("runs")

    def of(task: str) -> Path:
        if not (folder / task).exists():
            start(task, folder / task, overrides(task))
        return folder / task

    return of


@pytest.mark.parametrize("task", KINDS)
def test_a_run_trains_validates_and_reports(runs, task):
    run = runs(task)
    files = {path.name for path in run.iterdir()}
    written = {"config.yaml", "metrics.jsonl", "validation.jsonl", "best.safetensors", "evaluation.json", "checkpoints"}
    assert written <= files
    assert {"predictions.png", "predictions_test.json"} <= files
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] > 0 for line in metrics)
    validations = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in validations] == [2, 4, 6]
    kept = [json.loads(line) for line in (run / "validation_predictions.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [2, 4, 6]
    numbers_of = [[one["number"] for one in line["predictions"]] for line in kept]
    assert (
        numbers_of[0] == numbers_of[1] == numbers_of[2] == sorted(set(numbers_of[0])) and 1 < len(numbers_of[0]) <= 12
    )
    report = json.loads((run / "evaluation.json").read_text())
    assert report.keys() == {"test"}
    assert report["test"].keys() == validations[0].keys() - {"step"}
    for name, metric in report["test"].items():
        assert metric["unit"] == "count" or 0 <= metric["value"] <= (10 if name.startswith("CIDEr") else 1), name


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """A report without its facts, which depend on the path of the weights."""
    return {
        split: {
            name: {key: value for key, value in metric.items() if key not in ("split", "weights", "training")}
            for name, metric in metrics.items()
        }
        for split, metrics in report.items()
    }


EXPECTED = {
    "retrieval": {"images": 7, "captions": 13},
    "nlvr": {"statements": 14, "sentences": 7},
    "grounding": {"phrases": 7, "attribute phrases": 3, "place phrases": 4},
    "vqa": {"questions": 14, "other questions": 7, "yes/no questions": 7},
    "captioning": {"images": 7, "captions": 13},
}


@pytest.mark.parametrize("task", KINDS)
def test_every_held_out_item_is_measured_once(runs, task):
    report = json.loads((runs(task) / "evaluation.json").read_text())["test"]
    sizes = {name: metric["value"] for name, metric in report.items() if metric["unit"] == "count"}
    assert sizes == EXPECTED[task]


def checksum(tensors: dict[str, torch.Tensor]) -> float:
    """A number that distinguishes weights."""
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values())


def watched(kind: type[BaseTask[Any, Any, Any]], scores: list[float]) -> type[BaseTask[Any, Any, Any]]:
    """Returns the task with validation passes that return ``scores`` one after the other, and with metrics that identify the
    weights."""

    class Watched(kind):  # type: ignore[misc,valid-type]
        def evaluate(self, items: Any) -> Evaluation:
            weights = Metric("weights", checksum(dict(self.model.state_dict())))
            evaluation = super().evaluate(items)
            return replace(evaluation, metrics=(*evaluation.metrics, weights))

        def validate(self) -> dict[str, float]:
            return {**super().validate(), self.measure: scores.pop(0)}

    return Watched


def test_the_best_weights_are_evaluated_instead_of_the_last(overrides, tmp_path):
    """The second of three validation passes is the best one."""
    report = start("nlvr", tmp_path, overrides("nlvr"), kind=watched(KINDS["nlvr"].task, [0.2, 0.3, 0.1]))
    validations = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    last = checksum(load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"))
    best = checksum(load_file(tmp_path / "best.safetensors"))
    assert validations[2]["weights"] == pytest.approx(last, rel=1e-12)
    assert report["test"]["weights"]["value"] == pytest.approx(best, rel=1e-12)
    assert best == pytest.approx(validations[1]["weights"], rel=1e-12)
    assert best != pytest.approx(last, rel=1e-9)


def test_without_validation_the_last_weights_are_evaluated(overrides, tmp_path):
    report = start(
        "nlvr", tmp_path, [*overrides("nlvr"), "evaluation.validation=null"], kind=watched(KINDS["nlvr"].task, [])
    )
    last = checksum(load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"))
    assert report["test"]["weights"]["value"] == pytest.approx(last, rel=1e-12)
    assert not (tmp_path / "best.safetensors").exists()
    assert not (tmp_path / "validation.jsonl").exists()


@pytest.mark.parametrize("task", ["nlvr", "vqa"])
def test_evaluating_the_best_weights_again_gives_the_reported_results(runs, overrides, task, tmp_path, capsys):
    """The weights are given by file, by run folder, and by the run itself."""
    expected = json.loads((runs(task) / "evaluation.json").read_text())
    for name, source in (("file", runs(task) / "best.safetensors"), ("folder", runs(task))):
        options = [*overrides(task), f"init.checkpoint={source}"]
        report = start(task, tmp_path / name, options, "--evaluate")
        assert numbers(report) == numbers(expected)
        facts = [metric for metric in report["test"].values() if metric["unit"] != "count"]
        assert {metric["weights"] for metric in facts} == {f"init.checkpoint {source}"}
        assert {metric["training"] for metric in facts} == {"fine-tuned"}
    shutil.copytree(runs(task), tmp_path / "copy")
    (tmp_path / "copy" / "evaluation.json").unlink()
    capsys.readouterr()
    assert start(task, tmp_path / "copy", overrides(task), "--evaluate", "--resume") == expected
    metrics = tuple(Metric(name, **values) for name, values in numbers(expected)["test"].items())
    table = Evaluation(metrics).table("test").splitlines()[: 1 + sum(metric.unit != "count" for metric in metrics)]
    assert capsys.readouterr().out.startswith("\n".join(table) + "\n")


@pytest.mark.parametrize("killed_at", [3, 4])
def test_a_resumed_run_repeats_validations_and_best_weights_byte_for_byte(runs, overrides, killed_at, tmp_path):
    """The run is killed just after a checkpoint, which is written between two validation passes or together with one."""
    whole, killed = runs("nlvr"), tmp_path / "run"
    shutil.copytree(whole, killed)
    for checkpoint in list_checkpoints(killed / "checkpoints"):
        if checkpoint.step > killed_at:
            shutil.rmtree(checkpoint.folder)
    (killed / "evaluation.json").unlink()
    (killed / "best.safetensors").write_bytes(b"half of a fi")
    if best_step(whole) <= killed_at:
        shutil.copy(whole / "best.safetensors", killed / "best.safetensors")
    report = start("nlvr", killed, overrides("nlvr"), "--resume")
    assert report == json.loads((whole / "evaluation.json").read_text())
    for name in ("validation.jsonl", "best.safetensors", "checkpoints/step-00000006/model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_questions_that_share_an_image_train_together_and_resume(overrides, tmp_path):
    """26 questions about 13 images are 13 examples, and a step has 4 of them."""
    options, whole = [*overrides("vqa"), "data.questions_per_example=2", "data.careful_flip=false"], tmp_path / "whole"
    report = start("vqa", whole, options)
    assert report["test"]["questions"]["value"] == 14, "evaluations must count questions"
    *_, checkpoint = list_checkpoints(whole / "checkpoints")
    assert checkpoint.training_state()["run"]["records"] == {"questions": 13}
    shutil.copytree(whole, tmp_path / "killed")
    for each in list_checkpoints(tmp_path / "killed" / "checkpoints"):
        if each.step > 3:
            shutil.rmtree(each.folder)
    (tmp_path / "killed" / "evaluation.json").unlink()
    assert start("vqa", tmp_path / "killed", options, "--resume") == report
    weights = "checkpoints/step-00000006/model.safetensors"
    assert (tmp_path / "killed" / weights).read_bytes() == (whole / weights).read_bytes()


def best_step(run: Path) -> int:
    with safe_open(run / "best.safetensors", "pt") as file:
        return json.loads(file.metadata()["about"])["validation"]["step"]


def test_evaluating_trains_nothing(runs, overrides, tmp_path):
    """Zero-shot: the measured weights are the initial weights of the model."""
    options = [*overrides("nlvr"), f"init.checkpoint={runs('nlvr')}"]
    report = start("nlvr", tmp_path, options, "--evaluate", kind=watched(KINDS["nlvr"].task, []))
    written = {"predictions.png", "predictions_test.json"}
    files = {path.name for path in tmp_path.iterdir()} - written
    assert files == {"config.yaml", "evaluation.json", "events.jsonl", "log.txt"}
    schema, kind, *_ = KINDS["nlvr"]
    fresh = kind.build(load_config(ROOT / "configs/demo/nlvr.yaml", options, schema))
    assert report["test"]["weights"]["value"] == pytest.approx(checksum(dict(fresh.model.state_dict())), rel=1e-12)


@pytest.mark.parametrize("task", KINDS)
def test_evaluating_needs_no_training_data(runs, overrides, task, tmp_path):
    """The most frequent training answer, which is shown next to the model's results, is omitted if it is unknown."""
    expected = json.loads((runs(task) / "evaluation.json").read_text())
    gone = "data.train=[{questions: gone.jsonl}]" if task == "vqa" else "data.train.annotations=gone.jsonl"
    report = start(task, tmp_path, [*overrides(task), f"init.checkpoint={runs(task)}", gone], "--evaluate")
    for split, found in report.items():
        known = {name: value for name, value in numbers(expected)[split].items() if "image-blind" not in name}
        assert numbers({split: found})[split] == known


@pytest.mark.parametrize(
    ("flags", "message"), [(["--evaluate"], "needs weights"), (["--evaluate", "--resume"], "no weights")]
)
def test_evaluating_random_weights_is_rejected_without_reading_data(overrides, tmp_path, flags, message):
    gone = [f"{key}.annotations=gone.jsonl" for key in ("data.train", "evaluation.test.test")]
    with pytest.raises(UserError, match=message):
        start("nlvr", tmp_path, [*overrides("nlvr"), *gone], *flags)


@pytest.mark.parametrize("fragments", ["captioning", "video_qa"])
def test_a_config_of_another_task_is_rejected_by_name(overrides, tmp_path, fragments):
    script = {"captioning": "Captioning.py", "video_qa": "VQA.py"}[fragments]
    with pytest.raises(UserError, match=naming("nlvr.yaml", fragments, script)):
        start("nlvr", tmp_path, [*overrides("nlvr"), f"task={fragments}"])


def test_texts_longer_than_the_positions_of_the_model_are_rejected(overrides, tmp_path):
    with pytest.raises(UserError, match=naming("data.text.max_tokens", "200", "model.text")):
        start("nlvr", tmp_path, [*overrides("nlvr"), "data.text.max_tokens=200"])


def test_texts_longer_than_the_positions_of_a_hugging_face_encoder_are_rejected(overrides, scenes_folder, tmp_path):
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 24}
    shutil.copytree(scenes_folder / "tokenizer", tmp_path / "encoder")
    tokens = len(load_tokenizer(tmp_path / "encoder"))
    AutoModel.from_config(DistilBertConfig(vocab_size=tokens, **sizes)).save_pretrained(tmp_path / "encoder")
    other = [*overrides("nlvr"), f"model.text.encoder={tmp_path}/encoder", "model.text.arch=null"]
    with pytest.raises(UserError, match=naming("data.text.max_tokens", "25", "model.text", "24")):
        start("nlvr", tmp_path / "long", [*other, "data.text.max_tokens=25"])
    assert start("nlvr", tmp_path / "run", [*other, "data.text.max_tokens=24", "train.steps=2"])


@pytest.mark.parametrize("task", KINDS)
def test_evaluation_works_with_half_precision_and_worker_processes(runs, overrides, task, tmp_path):
    options = [*overrides(task), f"init.checkpoint={runs(task)}"]
    expected = json.loads((runs(task) / "evaluation.json").read_text())
    report = start(task, tmp_path / "workers", [*options, "data.workers=2"], "--evaluate")
    assert numbers(report) == numbers(expected)
    half = start(task, tmp_path / "half", [*options, "evaluation.precision=bf16"], "--evaluate")
    assert half["test"].keys() == expected["test"].keys()


def test_a_run_folder_without_best_weights_means_its_newest_checkpoint(runs, overrides, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("nlvr"), run)
    (run / "best.safetensors").unlink()
    options = [*overrides("nlvr"), f"init.checkpoint={run}"]
    report = start("nlvr", tmp_path / "out", options, "--evaluate", kind=watched(NLVRTask, []))
    last = checksum(load_file(run / "checkpoints" / "step-00000006" / "model.safetensors"))
    assert report["test"]["weights"]["value"] == pytest.approx(last, rel=1e-12)


def test_a_folder_without_weights_is_reported_in_one_line(overrides, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        start("nlvr", tmp_path / "out", [*overrides("nlvr"), f"init.checkpoint={tmp_path}/empty"])
    assert str(error.value).startswith(f"{tmp_path}/empty: contains neither best.safetensors, model.safetensors nor")
    assert "\n" not in str(error.value)


def test_a_folder_of_runs_names_the_runs(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "model.safetensors").write_bytes(b"")
    (tmp_path / "own/c/checkpoints/step-00000001").mkdir(parents=True)
    (tmp_path / "own/notes").mkdir()
    folder = tmp_path / "own"
    with pytest.raises(UserError) as error:
        find_weights(folder)
    assert str(error.value) == f"{folder}: is a folder of runs; use one of them: {folder}/a, {folder}/b, {folder}/c"


BROKEN = {
    "retrieval": {"image": "images/gone.png", "caption": "a star"},
    "nlvr": {"sentence": "a star", "label": "maybe", "images": ["images/0.png", "images/1.png"]},
    "grounding": {"image": "images/0.png", "elems": [{"bb": [0, 0, 40, 40], "caption": "a star"}]},
    "vqa": {"image": "images/gone.png", "question": "what?", "answer": ["red"]},
    "captioning": {"image": "images/0.png", "caption": []},
}


@pytest.mark.parametrize("split", ["validation", "test.test"])
@pytest.mark.parametrize("task", KINDS)
def test_a_broken_held_out_record_stops_a_run_before_training_with_one_line(overrides, data, task, split, tmp_path):
    part = "val" if split == "validation" else "test"
    text = (data / f"{task}_{part}.jsonl").read_text()
    broken = tmp_path / "broken.jsonl"
    broken.write_text(text + json.dumps(BROKEN[task]) + "\n")
    options = [f"evaluation.{split}.{FILES.get(task, 'annotations')}={broken}", f"evaluation.{split}.images={data}"]
    with pytest.raises(UserError) as error:
        start(task, tmp_path / "out", [*overrides(task), *options])
    total = text.count("\n") + 1
    assert str(error.value) == OneLine(f"evaluation.{split}", f"1 of {total}")
    assert f"{broken}:{total}: " in str(error.value)
    assert "held-out set" in str(error.value)
    assert "\n" not in str(error.value)
    assert not {"metrics.jsonl", "checkpoints"} & {path.name for path in (tmp_path / "out").iterdir()}


def read_tens(item: int) -> int:
    if item == 7:
        raise BrokenRecordError("unreadable image", "is torn")
    return 10 * item


@pytest.mark.parametrize("workers", [0, 2])
def test_each_item_is_read_once_in_order_and_a_broken_one_is_reported(workers):
    assert list(in_batches(read_tens, range(1, 6), 2, workers, "row {}".format)) == [[10, 20], [30, 40], [50]]
    assert list(in_batches(read_tens, range(3, 3), 2, workers, "row {}".format)) == []
    with pytest.raises(UserError, match=naming("row 7", "unreadable image", "is torn", "held-out")):
        list(in_batches(read_tens, range(5, 9), 2, workers, "row {}".format))


def test_an_evaluation_does_not_read_the_training_state(runs, overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "training_state", lambda self: pytest.fail("the optimiser states were read"))
    shutil.copytree(runs("nlvr"), tmp_path / "copy")
    (tmp_path / "copy" / "best.safetensors").unlink()
    assert start("nlvr", tmp_path / "copy", overrides("nlvr"), "--evaluate", "--resume")


def test_weights_next_to_a_config_without_a_task_are_rejected(runs, overrides, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("nlvr"), run)
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    (run / "config.yaml").write_text("".join(line for line in lines if not line.startswith("task:")))
    with pytest.raises(UserError, match=naming("init.checkpoint", "config.yaml", "task")):
        start("nlvr", tmp_path / "out", [*overrides("nlvr"), f"init.checkpoint={run}"])


def test_a_precision_that_the_gpu_lacks_is_reported_before_training(overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    schema, kind, *_ = KINDS["nlvr"]
    config = load_config(ROOT / "configs/demo/nlvr.yaml", [*overrides("nlvr"), "evaluation.precision=bf16"], schema)
    with pytest.raises(
        UserError, match=r"^evaluation.precision: this GPU does not support bf16; use evaluation.precision=fp16$"
    ):
        kind.build(config)


def test_an_unknown_metric_is_reported_with_the_known_ones(overrides, tmp_path):
    kind = type("Misspelt", (NLVRTask,), {"measure": "acuracy"})
    with pytest.raises(ValueError, match=naming("Misspelt.measure", "'acuracy'", "accuracy")):
        start("nlvr", tmp_path, overrides("nlvr"), kind=kind)


def test_a_warm_up_longer_than_the_run_is_reported_before_anything_is_loaded(overrides, tmp_path):
    options = [*overrides("nlvr"), "schedule.warmup_steps=50", "data.train.annotations=gone.jsonl"]
    with pytest.raises(UserError, match=r"schedule.warmup_steps"):
        start("nlvr", tmp_path, options)


@pytest.mark.parametrize("task", ["vqa", "grounding"])
def test_a_damaged_held_out_image_stops_a_run_before_training_with_one_line(overrides, data, task, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    record = json.loads((folder / f"{task}_test.jsonl").read_text().splitlines()[-1])
    image = folder / record["image"]
    image.write_bytes(image.read_bytes()[:100])
    split = [
        f"evaluation.test.test.{FILES.get(task, 'annotations')}={folder}/{task}_test.jsonl",
        f"evaluation.test.test.images={folder}",
    ]
    with pytest.raises(UserError, match=naming("unreadable image", "held-out")):
        start(task, tmp_path / "out", [*overrides(task), *split])
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
