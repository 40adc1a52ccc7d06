"""Files of detections, whose boxes are scored again."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from metrics.calibration import Calibration, ModelCalibration
from run import main
from tests.messages import OneLine, naming
from tests.tasks.painted import SIZE
from utils.errors import UserError
from x2vlm.calibration import write_calibration
from x2vlm.detections import read_detections, score_again
from x2vlm.scoring import evidence

BOXES = [(2, 3, 20, 30), (10, 10, 40, 12), (0, 0, SIZE, SIZE), (5, 5, 9, 9)]
LABELS = ["red_star", "circle", "red_star", "square"]
IMAGES = ["0.png", "0.png", "1.png", "0.png"]
SCORES = [0.5, 0.25, 1.0, 0.75]


def write_coco(folder, *, lvis=False):
    names = sorted(set(LABELS))
    images = [
        {"id": n, **({"coco_url": f"http://x/photos/{n}.png"} if lvis else {"file_name": f"{n}.png"})} for n in range(2)
    ]
    frequency = {"frequency": "c"} if lvis else {}
    categories = [{"id": n, "name": name, **frequency} for n, name in enumerate(names)]
    listed = {"images": images, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(listed))
    rows = [
        {
            "image_id": int(image[0]),
            "category_id": names.index(label),
            "bbox": list(box),
            "score": score,
            "extra": {"a": 1},
        }
        for image, label, box, score in zip(IMAGES, LABELS, BOXES, SCORES, strict=True)
    ]
    (folder / "results.json").write_text(json.dumps(rows))
    return folder / "results.json", folder / "annotations.json"


def supervision_rows():
    return [
        {"x_min": x, "y_min": y, "x_max": x + w, "y_max": y + h, "class_id": 7, "confidence": score, "tracker_id": "",
         "image": image, "class_name": label}
        for image, label, (x, y, w, h), score in zip(IMAGES, LABELS, BOXES, SCORES, strict=True)
    ]  # fmt: skip


def write_forms(folder):
    """Writes the same detections in each form; returns each file with a function that reads its scores."""
    coco, annotations = write_coco(folder)
    (folder / "supervision.json").write_text(json.dumps(supervision_rows()))
    with (folder / "supervision.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(supervision_rows()[0]))
        writer.writeheader()
        writer.writerows(supervision_rows())
    order = [0, 1, 3, 2]  # FiftyOne lists the boxes by image
    labels = {"0": [], "1": [], "empty": []}
    for number in order:
        entry = {
            "label": LABELS[number],
            "bounding_box": [each / SIZE for each in BOXES[number]],
            "confidence": SCORES[number],
        }
        labels[IMAGES[number][0]].append(entry | {"attributes": {"occluded": False}})
    (folder / "labels.json").write_text(json.dumps({"classes": LABELS, "labels": labels}))
    return {
        "coco": (coco, annotations, lambda rows: [row.pop("score") for row in rows], range(4)),
        "supervision.json": (folder / "supervision.json", None, lambda rows: [row.pop("confidence") for row in rows], range(4)),
        "supervision.csv": (
            folder / "supervision.csv", None,
            lambda rows: [float(row.pop("confidence")) for row in rows], range(4),
        ),
        "fiftyone": (
            folder / "labels.json", None,
            lambda content: [entry.pop("confidence") for entries in content["labels"].values() for entry in entries], order,
        ),
    }  # fmt: skip


def content_of(file):
    return list(csv.DictReader(file.open())) if file.suffix == ".csv" else json.loads(file.read_text())


@pytest.mark.parametrize("form", ["coco", "supervision.json", "supervision.csv", "fiftyone"])
def test_every_form_is_written_as_it_was_read_except_for_the_scores(form, model, photos, tmp_path):
    file, annotations, pop_scores, order = write_forms(tmp_path)[form]
    loaded, found = model("pretrain"), read_detections(file, annotations)
    assert [detection.score for detection in found.boxes] == [SCORES[number] for number in order]
    rescored = score_again(loaded, found, photos, tmp_path / "partial")
    scores = rescored.scores(found)
    expected = np.zeros(4)
    for image in ("0.png", "1.png"):
        own = [number for number in range(4) if IMAGES[number] == image]
        phrases = [LABELS[number].replace("_", " ") for number in own]
        (by_hand,) = loaded.score(photos / image, [BOXES[number] for number in own], phrases)
        expected[own] = np.diag(by_hand.matching)
    assert not rescored.broken and scores == pytest.approx(expected[list(order)], abs=1e-5)
    out = tmp_path / f"out{file.suffix}"
    found.write(out, scores)
    before, after = content_of(file), content_of(out)
    pop_scores(before)
    assert pop_scores(after) == pytest.approx(scores) and after == before


def test_lvis_names_images_by_url(photos, tmp_path):
    file, annotations = write_coco(tmp_path, lvis=True)
    assert [each.image for each in read_detections(file, annotations).boxes] == [f"photos/{name}" for name in IMAGES]


def test_scores_are_multiplied_and_absent_phrases_count_if_asked(run, photos, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run("pretrain"), folder)
    from x2vlm import load

    match, present = Calibration((0.0, 0.0), 0.0), Calibration((0.0, 0.0), -1.0)  # always 0.5, and always 0.27
    write_calibration(folder, ModelCalibration(match, present), load(folder).network)
    file, annotations = write_coco(tmp_path)
    argv = [
        "score-boxes",
        str(file),
        "--model",
        str(folder),
        "--images",
        str(photos),
        "--annotations",
        str(annotations),
    ]
    for more, factor in (
        ([], None),
        (["--combine", "multiply"], 0.5),
        (["--combine", "multiply", "--none"], 0.5 * 0.2689),
    ):
        assert main([*argv, "--out", str(tmp_path / "out.json"), *more]) == 0
        written = [row["score"] for row in json.loads((tmp_path / "out.json").read_text())]
        assert written == pytest.approx([0.5] * 4 if factor is None else np.array(SCORES) * factor, abs=1e-4)
    captured = capsys.readouterr()
    assert "4 boxes in 2 images" in captured.out and "not calibrated" not in captured.err
    assert "average precision" not in captured.out


def test_the_average_precision_is_printed_if_the_true_boxes_are_known(run, photos, tmp_path, capsys):
    file, annotations = write_coco(tmp_path)
    listed, rows = json.loads(annotations.read_text()), json.loads(file.read_text())
    listed["images"] = [image | {"width": SIZE, "height": SIZE} for image in listed["images"]]
    listed["annotations"] = [row | {"id": n, "area": 600, "iscrowd": 0} for n, row in enumerate(rows, 1) if n != 2]
    annotations.write_text(json.dumps(listed))
    argv = ["score-boxes", str(file), "--model", str(run("pretrain")), "--images", str(photos)]
    assert main([*argv, "--annotations", str(annotations), "--out", str(tmp_path / "out.json")]) == 0
    assert ["AP50", "100.0", "100.0"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_unreadable_images_and_boxes_outside_keep_their_scores(run, photos, tmp_path, capsys):
    file, annotations = write_coco(tmp_path)
    rows = json.loads(file.read_text())
    rows[0]["bbox"] = [500, 2, 3, 4]
    file.write_text(json.dumps(rows))
    (photos / "1.png").write_bytes(b"no image")
    argv = ["score-boxes", str(file), "--model", str(run("pretrain")), "--images", str(photos)]
    argv += ["--annotations", str(annotations), "--out", str(tmp_path / "out.json")]
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert "1.png" in captured.err and "not calibrated" in captured.err
    written = [row["score"] for row in json.loads((tmp_path / "out.json").read_text())]
    assert (written[0], written[2]) == (SCORES[0], SCORES[2]) and written[1] != SCORES[1]


def test_an_interrupted_run_continues_with_the_remaining_images(model, photos, tmp_path, monkeypatch):
    file, annotations = write_coco(tmp_path)
    loaded, found = model("pretrain"), read_detections(file, annotations)
    monkeypatch.setattr(loaded, "batch_size", 1)
    whole = score_again(loaded, found, photos, tmp_path / "partial").scores(found)

    def stop(count):
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_again(loaded, found, photos, tmp_path / "partial", progress=stop)
    with (tmp_path / "partial").open("a") as log:
        log.write('{"image": "1.p')  # a line that was cut off
    encoded = []
    monkeypatch.setattr(
        "x2vlm.detections.evidence", lambda model, views, *rest: encoded.extend(views) or evidence(model, views, *rest)
    )
    again = score_again(loaded, found, photos, tmp_path / "partial")
    assert again.scores(found) == pytest.approx(whole, abs=1e-6)
    assert [view.name for view in encoded] == [str(photos / "1.png")] and not (tmp_path / "partial").exists()


def test_wrong_files_are_rejected_in_one_line(tmp_path):
    file, annotations = write_coco(tmp_path)
    with pytest.raises(UserError, match=naming("results.json", "--annotations")):
        read_detections(file)
    with pytest.raises(UserError, match=naming("results.json", "lists no images")):
        read_detections(file, file)
    rows = json.loads(file.read_text())
    for change in ({"image_id": 99}, {"bbox": [1, 2, 3]}, {"score": float("nan")}):
        file.write_text(json.dumps([rows[0], rows[1] | change]))
        with pytest.raises(UserError, match=naming("entry 1", "is incomplete")):
            read_detections(file, annotations)
    with pytest.raises(UserError, match=naming("missing.json", "No such file")):
        read_detections(tmp_path / "missing.json")
    with pytest.raises(UserError, match=naming("missing.csv", "No such file")):
        read_detections(tmp_path / "missing.csv")
    with pytest.raises(UserError, match=naming("missing.json", "No such file")):
        read_detections(file, tmp_path / "missing.json")
    for content in ("[]", '{"a": 1}', "[1]", "{"):
        file.write_text(content)
        with pytest.raises(UserError, match=naming("results.json")):
            read_detections(file, annotations)
    file.write_text(json.dumps([{"x_min": 1, "y_min": 1, "x_max": 3, "y_max": 4, "class_name": "a"}]))
    with pytest.raises(UserError, match=naming("the image", "custom_data")):
        read_detections(file)


def test_models_without_a_matching_head_and_wrong_flags_are_rejected_first(run, photos, tmp_path, capsys):
    file, annotations = write_coco(tmp_path)
    argv = ["score-boxes", str(file), "--images", str(photos), "--annotations", str(annotations)]
    for more, facts in (
        (["--model", str(run("captioning")), "--out", str(tmp_path / "o.json")], ["score", "pretrain or retrieval"]),
        (["--model", str(run("pretrain")), "--out", str(file)], ["--out", "file of the detections"]),
        (["--model", str(run("pretrain")), "--out", str(tmp_path / "o.json"), "--template", "a photo"], ["--template"]),
    ):
        assert main([*argv, *more]) == 2
        assert capsys.readouterr().err == OneLine(*facts)


def test_nothing_is_written_if_no_image_can_be_read_or_a_label_or_a_true_box_cannot_be_used(
    run, photos, tmp_path, capsys
):
    file, annotations = write_coco(tmp_path)
    intact, empty, out = json.loads(annotations.read_text()), tmp_path / "empty", tmp_path / "out.json"
    empty.mkdir()
    wordless = [{"id": each["id"], "name": "?"} for each in intact["categories"]]
    for images, changes, fact in (
        (tmp_path / "none", {}, "--images"),
        (empty, {}, "no image can be read"),
        (photos, {"categories": wordless}, "contains no words"),
        (photos, {"annotations": [{"id": 1}]}, "its true boxes cannot be used"),
    ):
        annotations.write_text(json.dumps(intact | changes))
        argv = ["score-boxes", str(file), "--model", str(run("pretrain")), "--images", str(images), "--out", str(out)]
        assert main([*argv, "--annotations", str(annotations)]) == 2
        captured = capsys.readouterr()
        assert fact in captured.err and "Traceback" not in captured.err and not out.exists()
