"""``run.py calibrate``."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from dataset.tasks.held_out import HeldOutElement, HeldOutRecord
from engine.run_files import EVENTS_FILE
from run import main
from tests.messages import OneLine
from tests.x2vlm.conftest import data, overrides, run, task  # noqa: F401 (fixtures)
from x2vlm import load
from x2vlm.calibration import examples
from x2vlm.scoring import evidence


@pytest.fixture
def folder(run, tmp_path):  # noqa: F811
    """A copy of a finished run, which was trained on train.jsonl."""
    shutil.copytree(run("pretrain"), tmp_path / "run")
    (tmp_path / "run" / EVENTS_FILE).touch()
    return tmp_path / "run"


def test_a_run_is_calibrated_and_uses_its_calibration(folder, scenes_folder, capsys):
    before = load(folder)
    assert main(["calibrate", str(folder), "--records", str(scenes_folder / "val.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "box and phrase" in printed and "phrase in image" in printed and "not compared" not in printed
    assert (folder / "calibration.png").read_bytes().startswith(b"\x89PNG")
    after, image = load(folder), scenes_folder / "images/val/000000.png"
    assert before.calibration is None and after.calibration is not None
    (scores,) = after.score(image, [(1, 2, 9, 9)], ["a star"])
    (found,) = evidence(after, image, [(1, 2, 9, 9)], ["a star"])
    assert scores.probability == pytest.approx(after.calibration.match(found.boxes), abs=1e-6)


def test_training_images_are_refused_even_if_the_records_have_another_name(folder, scenes_folder, tmp_path, capsys):
    lines = [json.loads(line) for line in (scenes_folder / "train.jsonl").read_text().splitlines()]
    for line in lines:
        line["image"] = str(scenes_folder / line["image"])
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, lines[:5])))
    assert main(["calibrate", str(folder), "--records", str(tmp_path / "other.jsonl")]) == 2
    assert capsys.readouterr().err == OneLine("5 images were used in training", "other.jsonl")
    assert not (folder / "calibration.json").exists()


def test_a_saved_model_does_not_know_its_training_data(folder, scenes_folder, tmp_path, capsys):
    load(folder).save(tmp_path / "saved")
    assert main(["calibrate", str(tmp_path / "saved"), "--records", str(scenes_folder / "val.jsonl")]) == 0
    assert "its training data are not known" in capsys.readouterr().out


def test_too_few_records_and_models_without_scores_are_rejected_in_one_line(
    folder,
    run,  # noqa: F811
    scenes_folder,
    tmp_path,
    capsys,
):
    few = tmp_path / "few.jsonl"
    line = json.loads((scenes_folder / "val.jsonl").read_text().splitlines()[0])
    few.write_text(json.dumps(line | {"image": str(scenes_folder / line["image"])}))
    for source, records, facts in (
        (folder, few, ["few.jsonl", "too few"]),
        (run("captioning"), few, ["pretrain or retrieval"]),
        (tmp_path / "none", few, ["is not a folder"]),
    ):
        assert main(["calibrate", str(source), "--records", str(records)]) == 2
        assert capsys.readouterr().err == OneLine(*facts)


def test_half_of_the_pairs_are_true_and_absent_phrases_are_those_without_boxes(run):  # noqa: F811
    model = load(run("pretrain"))
    side = model.settings.model.vision.image_size
    image = np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)
    boxes = {"a red star": (0.2, 0.2, 0.2, 0.2), "a blue circle": (0.7, 0.7, 0.3, 0.3)}
    elements = [HeldOutElement(text, box, "object") for text, box in boxes.items()]
    elements.append(
        HeldOutElement("the star", boxes["a red star"], "relation")
    )  # the same box, so never a wrong phrase for it
    record = HeldOutRecord("here", torch.from_numpy(image), [], elements, (side, side), [], ["a green cross"] * 2)
    pairs, phrases = examples(model, [record] * 6, np.random.default_rng(0))
    assert pairs.labels.tolist() == [1, 0] * 18 and phrases.labels.tolist() == [1, 1, 1, 0] * 6
    assert pairs.images.tolist() == np.repeat(range(6), 6).tolist()
