"""One file of predicted boxes, measured by several annotations, against counts by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from commands.rescore import rescore
from tests.messages import OneLine
from utils.commands import call

A, B, FAR = [10, 10, 40, 40], [120, 20, 50, 30], [150, 60, 30, 30]
NEAR_A = [14, 10, 40, 40]
"""IoU 0.82 with A."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (200, 100)).save(tmp_path / f"images/{number}.png")
    return tmp_path


def write_records(folder: Path, name: str, *elems: tuple[int, str, list]) -> str:
    lines = [
        {"image": f"images/{image}.png", "elems": [{"bb": boxes, "caption": text}]} for image, text, boxes in elems
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"evaluation.test.{name}.annotations={folder}/{name}.jsonl"


def run(folder: Path, predictions: list, *splits: str, flags: tuple[str, ...] = ()) -> int:
    shutil.copy("configs/demo/grounding.yaml", folder / "config.yaml")
    text = Path("configs/demo/grounding.yaml").read_text()
    text = text.replace("../presets", str(Path("configs/presets").absolute())).partition("evaluation:")[0]
    (folder / "config.yaml").write_text(text + "evaluation: {test: {}}\n")
    (folder / "predictions.json").write_text(json.dumps(predictions))
    files = ["--config", str(folder / "config.yaml"), "--predictions", str(folder / "predictions.json")]
    return call(rescore, [*files, "--out", str(folder / "numbers.json"), *flags, *splits], "run.py rescore")


SETS = [
    {"image": "x/0.png", "phrase": "a", "boxes": [NEAR_A, FAR], "scores": [0.9, 0.1]},
    {"image": "x/1.png", "phrase": "both", "boxes": [A, B], "scores": [0.8, 0.6]},
    {"image": "x/2.png", "phrase": "none", "boxes": [A], "scores": [0.2]},
    {"image": "x/2.png", "phrase": "b", "boxes": [B, FAR], "scores": [0.7, 0.6]},
]


def test_original_and_reviewed_annotations_give_their_own_numbers(folder, capsys):
    original = write_records(folder, "original", (0, "a", [A]), (1, "both", [A, B]), (2, "none", []), (2, "b", [B]))
    reviewed = write_records(folder, "reviewed", (0, "a", [B]), (1, "both", [A, B]), (2, "b", [B, FAR]))
    assert run(folder, SETS, original, reviewed) == 0
    numbers = json.loads((folder / "numbers.json").read_text())
    exact = "Pr@(F1=1, IoU >= 0.5)"
    assert numbers["original"][exact]["value"] == 3 / 4  # b has a second box
    assert numbers["original"]["N-acc"]["value"] == 1.0
    assert numbers["reviewed"][exact]["value"] == pytest.approx(2 / 3)
    low, high = numbers["original"][exact]["interval"]
    assert low < 3 / 4 < high
    printed = capsys.readouterr().out
    assert "original" in printed and "reviewed" in printed and "95 % interval" in printed


def test_single_boxes_are_measured_as_in_refcoco(folder):
    predictions = [
        {"image": "0.png", "phrase": "a", "predicted": NEAR_A, "true": A, "iou": 0.8},
        {"image": "1.png", "phrase": "b", "predicted": FAR},
    ]
    split = write_records(folder, "one", (0, "a", A), (1, "b", B))
    assert run(folder, predictions, split, flags=("--bootstrap", "0")) == 0
    numbers = json.loads((folder / "numbers.json").read_text())["one"]
    assert numbers["IoU >= 0.5"]["value"] == numbers["IoU >= 0.5 (published script)"]["value"] == 0.5


def test_phrases_without_a_prediction_are_counted(folder, capsys):
    split = write_records(folder, "some", (0, "a", [A]), (1, "other", [A]))
    assert run(folder, SETS, split) == 1
    assert "1 of 2 phrases have no prediction" in capsys.readouterr().out
    numbers = json.loads((folder / "numbers.json").read_text())["some"]
    assert numbers["phrases without a prediction"] == 1 and numbers["phrases"]["value"] == 1


@pytest.mark.parametrize(
    ("predictions", "told"),
    [
        ([{"image": "0.png"}], ("entry 0", "image, phrase, boxes and scores")),
        ([{"image": "0.png", "phrase": "a", "boxes": [A], "scores": [1, 2]}], ("entry 0", "2 scores")),
        ([{"image": "0.png", "phrase": "a", "boxes": ["A"], "scores": [1]}], ("entry 0",)),
        ({"a": 1}, ("not a prediction",)),
        (
            [{"image": "9.png", "phrase": "a", "boxes": [A], "scores": [1]}],
            ("no prediction for any", "evaluation.test.some"),
        ),
    ],
)
def test_files_that_do_not_fit_are_one_line(folder, capsys, predictions, told):
    split = write_records(folder, "some", (0, "a", [A]))
    assert run(folder, predictions, split) == 2
    assert OneLine("error:", *told) in capsys.readouterr().err.splitlines()
