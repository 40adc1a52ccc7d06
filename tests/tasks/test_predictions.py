"""``predictions_<split>.json`` and the sheets of each task."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.run_folder import RunFolder
from metrics.retrieval import retrieval_recalls
from tasks.drawing import ImageReader, Panel
from tasks.inference import evaluating
from tasks.run import run_script
from tests.messages import OneLine
from tests.tasks.painted import ROOT, SIZE, measured, task_of


@pytest.fixture(scope="module")
def evaluated(overrides):
    """A task and its evaluation, computed once."""
    made: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in made:
            task = task_of(name, overrides)
            made[name] = (task, measured(task))
        return made[name]

    return of


def panels(task: Any, evaluation: Any) -> list[Panel]:
    items, read = task.held_out.test["test"], ImageReader(task.held_out.view)
    shown = task.shown(evaluation.predictions, 6)
    return [task.panel(items, number, evaluation.predictions[number], read) for number in shown]


def texts(panel: Panel) -> list[str]:
    return [line.text for line in (*panel.above, *panel.lines)]


def test_boxes_are_in_pixels_and_give_the_accuracy_in_the_table(evaluated):
    task, evaluation = evaluated("grounding")
    items = task.held_out.test["test"]
    assert [(each["phrase"], tuple(each["true"])) for each in evaluation.predictions] == [
        (item.text, item.boxes[0]) for item in items
    ]
    assert all(Path(each["image"]).is_file() for each in evaluation.predictions)
    located = np.mean([each["iou"] >= 0.5 for each in evaluation.predictions])
    assert located == pytest.approx(evaluation["IoU >= 0.5"].value)
    x, y, w, h = np.array([each["predicted"] for each in evaluation.predictions]).T
    assert (w > 0).all() and (h > 0).all() and (x + w / 2 <= SIZE).all() and (y + h / 2 <= SIZE).all()


def test_a_grounding_panel_has_the_image_both_boxes_and_the_phrase(evaluated):
    task, evaluation = evaluated("grounding")
    for panel, number in zip(panels(task, evaluation), task.shown(evaluation.predictions, 6), strict=True):
        item, prediction = task.held_out.test["test"][number], evaluation.predictions[number]
        (picture,), (line,) = panel.pictures, panel.lines
        assert np.array_equal(picture.pixels[::10, ::10], np.asarray(Image.open(item.image.path)))
        assert picture.boxes[0].true == pytest.approx(np.array(item.boxes[0]) / SIZE)
        assert picture.boxes[0].predicted == pytest.approx(np.array(prediction["predicted"]) / SIZE)
        assert line.text == f"IoU {prediction['iou']:.2f} · {item.text}"
        assert line.right == (prediction["iou"] >= 0.5)


def test_the_nearest_items_give_the_recalls_in_the_table(evaluated):
    task, evaluation = evaluated("retrieval")
    items = task.held_out.test["test"]
    asked = [each for each in evaluation.predictions if "text" in each]
    images = [each for each in evaluation.predictions if "text" not in each]
    assert [each["caption"] for each in asked] == list(items.captions)
    assert [each["image_id"] for each in images] == list(items.ids)
    assert len(evaluation.predictions) == len(asked) + len(images)
    far = 10**6

    def rank(found: list[bool]) -> int:
        return found.index(True) if True in found else far

    text_ranks = [rank([image["image_id"] == each["image_id"] for image in each["nearest"]]) for each in asked]
    image_ranks = [rank([text["right"] for text in each["nearest"]]) for each in images]
    recalls = retrieval_recalls(np.array(image_ranks), np.array(text_ranks))
    assert recalls["mean recall"] == pytest.approx(evaluation["mean recall"].value)
    for each in evaluation.predictions:
        scores = [candidate["score"] for candidate in each["nearest"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 4


def test_retrieval_shows_texts_with_images_and_images_with_texts(evaluated):
    task, evaluation = evaluated("retrieval")
    shown = panels(task, evaluation)
    assert len(shown) == 6
    for panel in shown[:3]:
        assert len(panel.pictures) == 4 and panel.above
        assert sum(picture.right for picture in panel.pictures) <= 1
        assert [picture.label[0] for picture in panel.pictures] == ["1", "2", "3", "4"]
        assert panel.above[0].right == panel.pictures[0].right
        missing = not any(picture.right for picture in panel.pictures)
        assert any("not among" in text for text in texts(panel)) == missing
    for panel in shown[3:]:
        assert len(panel.pictures) == 1 and len(panel.lines) == 4 and panel.beside


def test_statements_have_the_predicted_and_the_true_label(evaluated):
    task, evaluation = evaluated("nlvr")
    items = task.held_out.test["test"]
    first = evaluation.predictions[0]
    assert first.keys() == {"place", "sentence_id", "sentence", "predicted", "true"}
    assert [each["true"] for each in evaluation.predictions] == [("false", "true")[item.label] for item in items]
    right = np.mean([each["predicted"] == each["true"] for each in evaluation.predictions])
    assert right == pytest.approx(evaluation["accuracy"].value)
    for panel in panels(task, evaluation):
        assert len(panel.pictures) == 2
        assert panel.lines[1].right == (texts(panel)[1].split(": ")[1] == texts(panel)[2].split(": ")[1])


def test_questions_keep_the_format_of_the_server(evaluated):
    task, evaluation = evaluated("vqa")
    assert all(each.keys() == {"question_id", "answer"} for each in evaluation.predictions)
    panel = panels(task, evaluation)[0]
    assert texts(panel)[0].startswith("what colour is the")
    assert texts(panel)[2].startswith("answers: ") and texts(panel)[2].endswith("×10")
    assert panel.lines[1].right in (True, False)


def test_captions_keep_the_format_of_the_server(evaluated):
    task, evaluation = evaluated("captioning")
    assert all(each.keys() == {"image_id", "caption"} for each in evaluation.predictions)
    items = task.held_out.test["test"]
    panel = panels(task, evaluation)[-1]
    assert texts(panel)[1] == f"reference: {items.references()[-1][0]}"
    assert len(panel.pictures) == 1


@pytest.fixture
def run(overrides, tmp_path):
    """Runs grounding and returns its folder."""

    def start(*more: str) -> Path:
        options = [*overrides("grounding"), "train.steps=2", *more]
        config = str(ROOT / "configs/demo/grounding.yaml")
        assert run_script(["--config", config, "--output", str(tmp_path / "run"), *options], "grounding") == 0
        return tmp_path / "run"

    return start


def shown(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_a_run_shows_its_sheet_in_tensorboard(run):
    folder = run("evaluation.panels=3")
    (event,) = shown(folder).Images("predictions/test")
    assert (event.width, event.height) == Image.open(folder / "predictions.png").size
    assert event.step == 2
    assert json.loads((folder / "predictions_test.json").read_text())[0].keys() == {
        *("image", "phrase", "predicted", "true", "iou")
    }


def test_each_of_several_splits_has_a_sheet(run, data):
    folder = run(f"evaluation.test.other.annotations={data}/grounding_val.jsonl")
    names = {path.name for path in folder.glob("predictions*")}
    assert names == {f"predictions_{split}.{end}" for split in ("test", "other") for end in ("png", "json")}
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["other"]["IoU >= 0.5"]["split"] == f"{data}/grounding_val.jsonl"
    assert set(report["mean of splits"]["IoU >= 0.5"]["split"].split(", ")) == {"test", "other"}


def test_without_panels_there_is_no_sheet(run):
    folder = run("evaluation.panels=0")
    assert not (folder / "predictions.png").exists()
    assert shown(folder).Tags()["images"] == []


def test_the_published_results_of_a_cell_are_shown_and_unmeasured_splits_reported(run, data):
    """An unmeasured split is not an error, because a config may replace the test splits of its base."""
    more = f"evaluation.test.testA.annotations={data}/grounding_val.jsonl"
    folder = run("evaluation.panels=0", more, "evaluation.published=4/base_4m/refcoco_plus")
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["testA"]["IoU >= 0.5 (published script)"]["published"] == 0.892
    assert "published" not in report["test"]["IoU >= 0.5 (published script)"]
    log = (folder / "log.txt").read_text()
    assert OneLine("4/base_4m/refcoco_plus", "testB") in log.splitlines()
    assert "published: 4/base_4m/refcoco_plus" in (folder / "config.yaml").read_text()


def test_an_image_that_breaks_after_the_evaluation_is_skipped(overrides, tmp_path, caplog, monkeypatch):
    task = task_of("grounding", overrides)
    with evaluating(task.model, "fp32"):
        evaluation = task.evaluate(task.held_out.test["test"])
    folder = RunFolder(tmp_path)
    first = task.held_out.test["test"][0]
    read = ImageReader.__call__

    def broken(self: ImageReader, source: Any, **options: Any) -> np.ndarray:
        return read(
            self, type(source)(source.location, path=tmp_path / "gone") if source == first.image else source, **options
        )

    monkeypatch.setattr(ImageReader, "__call__", broken)
    with caplog.at_level(logging.WARNING):
        notes = task._draw(folder, {"test": evaluation})
    assert notes == {"test": f"1 of them are drawn in {tmp_path / 'predictions.png'}"}
    assert "missing image" in caplog.text


def test_a_task_that_draws_nothing_writes_no_sheet(overrides, tmp_path, monkeypatch):
    task = task_of("nlvr", overrides)
    monkeypatch.setattr(type(task), "panel", lambda *_: None)
    evaluation = measured(task)
    folder = RunFolder(tmp_path)
    assert task._draw(folder, {"test": evaluation}) == {}
    assert not list(tmp_path.iterdir())
