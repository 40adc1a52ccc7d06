"""Fixtures for the tests of tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_run
from tests.tasks.painted import COLOURS, FILES, KINDS, rows_of, write_pictures


@pytest.fixture(autouse=True)
def settings_of_a_process():
    """Restores the torch settings that a run makes for its process, because all tests share one process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Images, and for each task a training split (13 images), a validation split (5) and a test split (7)."""
    folder = tmp_path_factory.mktemp("finetune")
    write_pictures(folder / "images")
    for task in KINDS:
        for split, numbers in (("train", range(13)), ("val", range(3, 8)), ("test", range(9, 16))):
            text = "".join(json.dumps(row) + "\n" for row in rows_of(task, numbers))
            (folder / f"{task}_{split}.jsonl").write_text(text)
    (folder / "answers.json").write_text(json.dumps(["yes", "no", *COLOURS]))
    return folder


@pytest.fixture(scope="session")
def overrides(scenes_folder, data) -> Callable[[str], list[str]]:
    """Returns a function that returns the overrides of a task's demo config for a run of six steps and three validations on this
    data."""
    tiny = [each for each in tiny_run(scenes_folder) if each.startswith(("model.", "train.", "schedule."))]

    def of(task: str) -> list[str]:
        extra = {
            "retrieval": ["evaluation.candidates=4"],
            "nlvr": [],
            "grounding": ["evaluation.panels=2"],
            "captioning": ["evaluation.decoding.max_length=8", "data.careful_flip=false"],
            "vqa": [f"evaluation.answers={data}/answers.json", "evaluation.candidates=4"],
        }
        file, train = FILES.get(task, "annotations"), f"{data}/{task}_train.jsonl"
        return [
            *tiny,
            "init.checkpoint=null",
            "data.workers=0",
            "data.batch_size=4",
            f"data.train=[{{questions: {train}}}]" if task == "vqa" else f"data.train.{file}={train}",
            f"evaluation.validation.{file}={data}/{task}_val.jsonl",
            f"evaluation.test.test.{file}={data}/{task}_test.jsonl",
            "evaluation.batch_size=3",
            "train.steps=6",
            "train.validate_every=2",
            *extra.get(task, []),
        ]

    return of
