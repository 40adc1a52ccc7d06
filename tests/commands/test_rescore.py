"""``run.py rescore`` scores one file of predicted boxes against several annotation files. The expected values were counted by
hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.rescore import rescore
from tests.messages import OneLine
from utils.commands import call

A, B, FAR = [10, 10, 40, 40], [120, 20, 50, 30], [150, 60, 30, 30]
NEAR_A = [14, 10, 40, 40]
"""A box with IoU 0.82 with A."""


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
    given = {"--config": "config.yaml", "--predictions": "predictions.json", "--out": "numbers.json"}
    files = [
        word
        for flag, name in given.items()
        if flag == "--predictions" or flag not in flags
        for word in (flag, str(folder / name))
    ]
    return call(rescore, [*files, *flags, *splits], "run.py rescore")


SETS = [
    {"image": "x/0.png", "phrase": "a", "boxes": [NEAR_A, FAR], "scores": [0.9, 0.1]},
    {"image": "x/1.png", "phrase": "both", "boxes": [A, B], "scores": [0.8, 0.6]},
    {"image": "x/2.png", "phrase": "none", "boxes": [A], "scores": [0.2]},
    {"image": "x/2.png", "phrase": "b", "boxes": [B, FAR], "scores": [0.7, 0.6]},
]


def test_original_and_reviewed_annotations_give_their_own_numbers(folder, capsys):
    original = write_records(folder, "original", (0, "a", [A]), (1, "both", [A, B]), (2, "none", []), (2, "b", [B]))
    reviewed = write_records(folder, "reviewed", (0, "a", [B]), (1, "both", [A, B]), (2, "b", [B, FAR]))
    assert run(folder, SETS, original, reviewed, flags=("--bootstrap", "1000")) == 0
    numbers = json.loads((folder / "numbers.json").read_text())
    exact = "Pr@(F1=1, IoU >= 0.5)"
    assert numbers["original"][exact]["value"] == 3 / 4  # b has a second box
    assert numbers["original"]["N-acc"]["value"] == 1.0
    assert numbers["reviewed"][exact]["value"] == pytest.approx(2 / 3)
    low, high = numbers["original"][exact]["interval"]
    assert low < 3 / 4 < high
    printed = capsys.readouterr().out
    assert "original" in printed and "reviewed" in printed and "95% interval" in printed


def test_single_boxes_are_scored_as_in_refcoco(folder):
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
    assert "1 of 2 phrases have no prediction, such as 'other' in 1.png" in capsys.readouterr().out
    numbers = json.loads((folder / "numbers.json").read_text())["some"]
    assert numbers["phrases without a prediction"] == 1 and numbers["phrases"]["value"] == 1


def test_threshold_and_bootstrap_come_from_the_config_unless_a_flag_is_given(folder, capsys):
    split = write_records(folder, "one", (0, "a", [A]), (1, "both", [A, B]))
    exact = "Pr@(F1=1, IoU >= 0.5)"
    for flags, value in (((), 1.0), (("--threshold", "0.85"), 0.5), (("evaluation.threshold=0.95",), 0.0)):
        assert run(folder, SETS, split, flags=flags) == 0
        numbers = json.loads((folder / "numbers.json").read_text())["one"]
        assert numbers[exact]["value"] == value and "interval" not in numbers[exact]
    assert run(folder, SETS, split, flags=("evaluation.bootstrap=50",)) == 0


def test_images_with_the_same_name_in_two_folders_are_distinguished(folder):
    (folder / "images/val").mkdir()
    shutil.copy(folder / "images/0.png", folder / "images/val/0.png")
    here = write_records(folder, "here", (0, "a", [A]))
    there = folder / "there.jsonl"
    there.write_text(json.dumps({"image": "images/val/0.png", "elems": [{"bb": [B], "caption": "a"}]}) + "\n")
    listed = [
        {"image": f"/any/images/{name}", "phrase": "a", "boxes": [box], "scores": [1]}
        for name, box in (("0.png", A), ("val/0.png", B))
    ]
    assert run(folder, listed, here, f"evaluation.test.there.annotations={there}") == 0
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["here"]["IoU >= 0.5"]["value"] == numbers["there"]["IoU >= 0.5"]["value"] == 1.0
    assert run(folder, listed[:1], here, f"evaluation.test.there.annotations={there}") == 1
    assert json.loads((folder / "numbers.json").read_text())["there"] == {"phrases without a prediction": 1}


def test_predictions_may_span_files_and_answers_may_be_empty(folder):
    split = write_records(folder, "all", (0, "a", [A]), (2, "none", []))
    (folder / "more.json").write_text(json.dumps([{"image": "2.png", "phrase": "none", "boxes": [], "scores": []}]))
    first = [{"image": "0.png", "phrase": "a", "boxes": [], "scores": []}]
    assert run(folder, first, split, flags=("--predictions", str(folder / "more.json"))) == 0
    numbers = json.loads((folder / "numbers.json").read_text())["all"]
    assert numbers["N-acc"]["value"] == 1.0 and numbers["T-acc"]["value"] == 0.0
    assert numbers["with one box: IoU >= 0.5 of the most probable box"]["value"] == 0.0


def test_a_head_with_one_box_per_phrase_has_n_acc_zero(folder):
    split = write_records(folder, "all", (0, "a", [A]), (2, "none", []))
    listed = [{"image": "0.png", "phrase": "a", "predicted": A}, {"image": "2.png", "phrase": "none", "predicted": A}]
    assert run(folder, listed, split) == 0
    numbers = json.loads((folder / "numbers.json").read_text())["all"]
    assert numbers["N-acc"]["value"] == 0.0 and numbers["Pr@(F1=1, IoU >= 0.5)"]["value"] == 0.5


def test_predictions_of_a_run_get_the_metrics_of_the_run(folder):
    """A float32 score just below the threshold must still be below the threshold after the score has been written and read."""
    score = float(np.float32(0.7))
    listed = [{"image": "0.png", "phrase": "a", "boxes": [A], "scores": [score]}]
    split = write_records(folder, "one", (0, "a", [A]), (1, "both", [A, B]))
    listed.append({"image": "1.png", "phrase": "both", "boxes": [A, B], "scores": [0.9, score]})
    assert score < 0.7
    assert run(folder, listed, split, flags=("--threshold", "0.7")) == 0
    assert json.loads((folder / "numbers.json").read_text())["one"]["Pr@(F1=1, IoU >= 0.5)"]["value"] == 0.0


def box(*values: object) -> list[dict]:
    return [{"image": "0.png", "phrase": "a", "boxes": [list(values)], "scores": [1]}]


@pytest.mark.parametrize(
    ("predictions", "reported"),
    [
        ([{"image": "0.png"}], ("entry 0", "phrase is missing")),
        ([3], ("entry 0", "image")),
        ([{"image": "0.png", "phrase": "a", "boxes": [A], "scores": [1, 1]}], ("entry 0", "1 boxes", "scores")),
        ([{"image": "0.png", "phrase": "a", "boxes": [A], "scores": [float("nan")]}], ("entry 0", "0..1")),
        ([{"image": "0.png", "phrase": "a", "boxes": [A], "scores": [[1]]}], ("entry 0", "0..1")),
        ([{"image": "0.png", "phrase": "a", "boxes": [A], "scores": [7]}], ("entry 0", "0..1")),
        (box("A"), ("entry 0", "four numbers")),
        (box(1, 2, -3, 4), ("entry 0", "negative side")),
        (box(1, 2, 3, 10**400), ("entry 0", "number of pixels")),
        (box(*A, *A), ("entry 0", "four numbers")),
        ({"a": 1}, ("not a JSON list",)),
        ([*box(*A), *box(*B)], ("entry 1", "a different prediction")),
    ],
)
def test_files_that_do_not_match_are_reported_in_one_line(folder, capsys, predictions, reported):
    split = write_records(folder, "some", (0, "a", [A]))
    assert run(folder, predictions, split) == 2
    assert OneLine("error:", *reported) in capsys.readouterr().err.splitlines()


def test_mistakes_on_the_command_line_are_reported_in_one_line(folder, capsys):
    split = write_records(folder, "some", (0, "a", [A]))
    for flags, reported in (
        (("--threshold", "7"), ("--threshold",)),
        (("--bootstrap", "-5"), ("--bootstrap",)),
        (("--out", str(folder / "none/x.json")), ("--out", "does not exist")),
        (("--config", "configs/demo/vqa.yaml"), ("grounding",)),
    ):
        assert run(folder, SETS, split, flags=flags) == 2, flags
        assert capsys.readouterr().err.splitlines()[-1] == OneLine("error:", *reported)
