"""The facts that a report states about the measured weights and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dataset.config import CaptionedSplitConfig, GroundingSplitConfig, QuestionsConfig
from engine.checkpoint import list_checkpoints
from engine.run_folder import RunFolder
from tasks.facts import Facts, MeasuredWeights, files_of, measured_weights, training_of
from tests.messages import OneLine
from utils.weight_file import save_weights


def run(folder: Path, task: str, start: Path | None = None, *, step: int = 4) -> Path:
    """A run folder with a checkpoint."""
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, checkpoint / "model.safetensors")
    text = f"task: {task}\ninit: {{checkpoint: {'null' if start is None else start}}}\n"
    (folder / "config.yaml").write_text(text)
    return folder


def opened(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.newest = next(iter(list_checkpoints(folder.checkpoints)), None)
    return folder


def test_best_weights_are_named_before_the_last_ones(tmp_path):
    folder = run(tmp_path / "run", "vqa")
    assert measured_weights(opened(folder), "other", "vqa") == MeasuredWeights(
        "last weights of this run, step 4", "fine-tuned"
    )
    weights = {"a": torch.zeros(1)}
    save_weights(folder / "best.safetensors", weights, {"validation": {"step": 2, "accuracy": 0.5}})
    assert measured_weights(opened(folder), None, "vqa").name == "best weights of this run, step 2"
    save_file(weights, folder / "best.safetensors")  # of an earlier version
    assert measured_weights(opened(folder), None, "vqa").name == "best weights of this run"


def test_averaged_weights_are_named(tmp_path):
    folder, weights = run(tmp_path / "run", "vqa"), {"a": torch.zeros(1)}
    save_weights(folder / "checkpoints/step-00000004/model.safetensors", weights, {"ema": {"decay": 0.9}})
    assert measured_weights(opened(folder), None, "vqa").name == OneLine("last weights", "step 4", "averaged")
    save_weights(folder / "best.safetensors", weights, {"validation": {"step": 2}, "ema": {"decay": 0.9}})
    assert measured_weights(opened(folder), None, "vqa").name == OneLine("best weights", "step 2", "averaged")


def test_pre_training_is_named(tmp_path):
    folder = run(tmp_path / "run", "pretrain")
    assert measured_weights(opened(folder), None, "pretrain").training == "pre-trained"
    assert training_of(str(folder), "pretrain") == "pre-trained"


def test_weights_that_no_run_trained_on_the_task_are_named_zero_shot(tmp_path):
    pretrained = run(tmp_path / "pretrained", "pretrain")
    retrieval = run(tmp_path / "retrieval", "retrieval", pretrained)
    again = run(tmp_path / "again", "captioning", retrieval)
    for start, task, training in (
        (pretrained, "retrieval", "zero-shot"),
        (retrieval, "retrieval", "fine-tuned"),
        (retrieval, "vqa", "zero-shot"),
        (again, "retrieval", "fine-tuned"),
        (again, "nlvr", "zero-shot"),
        (pretrained / "checkpoints" / "step-00000004" / "model.safetensors", "vqa", "zero-shot"),
    ):
        measured = measured_weights(opened(tmp_path / "new"), str(start), task)
        assert measured == MeasuredWeights(f"init.checkpoint {start}", training)


def test_nothing_is_known_about_a_file_outside_run_folders(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "published.safetensors")
    assert training_of(str(tmp_path / "published.safetensors"), "vqa") == "unknown"
    assert training_of(str(tmp_path / "gone"), "vqa") == "unknown"
    captioning = run(tmp_path / "run", "captioning", tmp_path / "published.safetensors")
    assert training_of(str(captioning), "vqa") == "unknown"
    assert training_of(str(captioning), "captioning") == "fine-tuned"


def test_runs_that_start_from_each_other_cause_no_endless_loop(tmp_path):
    first = run(tmp_path / "first", "vqa", tmp_path / "second")
    run(tmp_path / "second", "nlvr", first)
    assert training_of(str(first), "retrieval") == "unknown"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CaptionedSplitConfig(annotations="a.jsonl"), "a.jsonl"),
        (CaptionedSplitConfig(annotations="a.jsonl", images="images", language="de"), "a.jsonl [de]"),
        (CaptionedSplitConfig(format="karpathy", annotations="a.json", splits=["train", "val"]), "a.json [train, val]"),
        (
            GroundingSplitConfig(format="refcoco", refs="r.p", instances="i.json", splits=["testA"], images="i"),
            "r.p, i.json [testA]",
        ),
        (QuestionsConfig(questions="q.json", image_share=(0.0, 0.05)), "q.json [image_share 0 to 0.05]"),
    ],
)
def test_the_files_of_a_split_and_its_selection_are_named(config, expected):
    assert files_of(config) == expected


def test_facts_are_written_as_json_and_as_text():
    facts = Facts("a.jsonl", MeasuredWeights("best weights of this run, step 4", "fine-tuned"))
    assert facts.texts() == ["a.jsonl", "best weights of this run, step 4, fine-tuned"]
    assert facts.as_json() == {
        "split": "a.jsonl",
        "weights": "best weights of this run, step 4",
        "training": "fine-tuned",
    }
    assert Facts(None, facts.weights).texts() == facts.texts()[1:]
