"""``run.py report``: the predictions of runs, and the differences between several runs."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
from PIL import Image

from tests.conftest import tiny_run
from tests.messages import OneLine
from tests.tasks.conftest import data, overrides  # noqa: F401 (fixtures)
from tests.tasks.painted import KINDS, rows_of
from tests.tools.report_runs import (
    ROOT,
    boxes,
    charts_of,
    config_text,
    make_run,  # noqa: F401 (fixture)
    report,
    rows_with,
    section,
)
from tools.report import pictures
from tools.report.judging import chosen, judged, lines_of
from tools.report.page import page_of
from tools.report.pictures import Room
from tools.runs.reading import read_runs
from utils.config import load_config


def test_failures_are_drawn_first_with_their_boxes(make, tmp_path):
    text = report(tmp_path, make(predictions=boxes(right=(2, 3))), flags=("--examples", "6"))
    assert "2 of 7 right. 6 are shown" in text
    cards = re.findall(r'<div class="card( \w+)?"><span class="number">(\d+)<', text, re.S)
    assert [(kind.strip(), number) for kind, number in cards[:4]] == [("wrong", n) for n in ("0", "1", "4", "5")]
    assert {(kind.strip(), number) for kind, number in cards[4:]} == {("right", "2"), ("right", "3")}
    assert "solid: predicted" in text and "cannot be read" not in text
    data_of = re.search(r"data:image/\w+;base64,([^\"]+)", text)
    image = Image.open(io.BytesIO(base64.b64decode(data_of[1]))).convert("RGB")
    assert max(image.size) <= pictures.SIDE
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert any(abs(r - 0xE6) + abs(g - 0x19) + abs(b - 0x4B) < 60 for r, g, b in colours)  # the predicted box


def test_a_run_without_its_data_shows_predictions_as_text(make, tmp_path):
    gone = "evaluation.test.test.annotations=/nowhere/x.jsonl"
    folder = make("run", gone, predictions=boxes())
    Image.new("RGB", (60, 40)).save(folder / "predictions.png")
    text = report(tmp_path, folder)
    assert OneLine("as text", "held-out data") in text.splitlines() and "/nowhere/x.jsonl" in text
    assert f"IoU 0.02 · {boxes()[2]['phrase']}" in text
    assert "The run's own sheets" in text
    assert text.count("<img") == 1  # the sheet


def test_data_that_changed_after_the_run_are_not_drawn(make, tmp_path):
    fewer = report(tmp_path, make("fewer", predictions=boxes(5)))
    assert OneLine("7 predictions", "5") in fewer.splitlines()
    renamed = [{**box, "phrase": "another"} for box in boxes()]
    text = report(tmp_path, make("renamed", predictions=renamed))
    assert OneLine("example 0") in text.splitlines()
    assert "<img" not in fewer + text


def test_an_unreadable_image_does_not_affect_the_others(tmp_path, data, overrides):  # noqa: F811
    rows = [{**row, "image": str(data / row["image"])} for row in rows_of("captioning", range(9, 16))]
    (tmp_path / "no.png").write_bytes(b"no image")
    rows[4]["image"] = str(tmp_path / "no.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run"
    folder.mkdir()
    settings = [*overrides("captioning"), f"evaluation.test.test.annotations={tmp_path}/rows.jsonl"]
    (folder / "config.yaml").write_text(config_text("captioning", settings))
    predictions = [{"image_id": row["image_id"], "caption": f"caption {row['image_id']}"} for row in rows]
    (folder / "predictions_test.json").write_text(json.dumps(predictions))
    text = report(tmp_path, folder)
    assert OneLine("1 cannot be drawn", f"{tmp_path}/rows.jsonl:5", "unreadable image") in text.splitlines()
    assert text.count("<img") == 6
    assert "caption: caption 13" in text  # as text


@pytest.mark.parametrize("task", ["retrieval", "nlvr", "vqa", "captioning"])
def test_every_task_draws_its_panels(task, tmp_path, overrides):  # noqa: F811
    folder = tmp_path / "run"
    folder.mkdir()
    settings = overrides(task)
    (folder / "config.yaml").write_text(config_text(task, settings))
    kind, config = KINDS[task], load_config(ROOT / f"configs/demo/{task}.yaml", settings, KINDS[task].config)
    items = kind.task.read_split(config, config.evaluation.test["test"], "evaluation.test.test")
    if task == "retrieval":
        near = [{"image_id": items.ids[0], "score": 2.0}, {"image_id": items.ids[1], "score": 1.0}]
        predictions = [
            {"text": n, "caption": c, "image_id": items.ids[items.image_of_caption[n]], "nearest": near}
            for n, c in enumerate(items.captions)
        ]
        texts = [{"text": 0, "caption": items.captions[0], "score": 1.0, "right": False}]
        predictions += [{"image_id": identity, "nearest": texts} for identity in items.ids]
    elif task == "nlvr":
        predictions = [{"sentence": item.sentence, "predicted": "true", "true": "false"} for item in items]
    elif task == "vqa":
        predictions = [{"question_id": item.question_id, "answer": "yes"} for item in items]
    else:
        predictions = [{"image_id": identity, "caption": "a small red star"} for identity in items.ids]
    (folder / "predictions_test.json").write_text(json.dumps(predictions))
    text = report(tmp_path, folder)
    assert "cannot be" not in text
    assert text.count("<img") >= 7
    assert ("CIDEr" in text) == (task == "captioning")
    wrong = {"retrieval": 'class="card wrong"', "nlvr": "0 of ", "vqa": "of 14 right", "captioning": "the lowest CIDEr"}
    assert wrong[task] in text


def test_pretraining_draws_the_worst_boxes_of_records(tmp_path, scenes_folder):
    folder, file = tmp_path / "run", scenes_folder / "test.jsonl"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        config_text("pretrain", [*tiny_run(scenes_folder), f"evaluation.files=[{file}]"])
    )
    ranks = {"reranked": {"image to text": 1, "text to image": 2}}
    box = {"phrase": "a thing", "predicted": [1, 1, 9, 9], "true": [2, 2, 8, 8], "iou": 0.9}
    places = [f"{file}:{number}" for number in range(1, 9)]
    predictions = [{"place": place, "caption": "c", "ranks": ranks, "boxes": [box] * 12} for place in places]
    (folder / "predictions_held-out.json").write_text(
        json.dumps([*predictions, {"place": "clips.jsonl:1", "ranks": ranks}])
    )
    text = report(tmp_path, folder)
    assert text.count("<img") == 8 and "cannot be" not in text
    assert "text to image: rank 2" in text and "and 2 more phrases" in text
    assert "clips.jsonl:1" in text


def test_runs_are_compared_with_the_best_of_each_row_marked(make, tmp_path):
    one = make("sweep/one/seed-0", "optim.lr=0.1", recall=0.25, median_rank=3.0, losses=range(20, 10, -1))
    two = make("sweep/two/seed-0", "optim.lr=0.2", recall=0.75, median_rank=9.0)
    text = report(tmp_path, one, two)
    assert '<th>recall</th><td>25.0%</td><td class="best">75.0%</td>' in text
    assert '<th>median rank</th><td class="best">300.0%</td><td>900.0%</td>' in text
    assert re.search(r"<th>IoU &gt;= 0.5</th><td>50.0%</td><td>50.0%</td>", text)  # a tie has no best value
    assert '<th>loss, mean of the last 5%</th><td>11</td><td class="best">1</td>' in text
    assert "best" not in re.search(r"<th>phrases</th>(.*?)</tr>", text)[1]
    differences = section(text, "Config differences")
    assert rows_with(differences, "<th>optim.lr</th>") == ["optim.lr 0.1 0.2"]
    assert len(re.findall("<tr", differences)) == 2  # the header and the single key
    loss = charts_of(text)["loss (total)"]
    assert loss["datasets"]["hover"]["rows"][-1] == [10, 11, 1]
    assert [tooltip["title"] for tooltip in loss["layer"][-1]["encoding"]["tooltip"]] == ["step", "one", "two"]
    assert text.count('<details class="run">') == 2
    assert re.search(r'<summary><span class="named"><i class="swatch c1"></i><span>two</span></span></summary>', text)


def test_the_same_examples_are_compared_over_runs(make, tmp_path):
    text = report(tmp_path, make("a", predictions=boxes(right=(0, 1))), make("b", predictions=boxes(right=(1, 2))))
    assert OneLine("1 of 7", "4 in none", "2 in some") in text.splitlines()
    common = section(text, "Examples in common")
    assert [row.split(" · ")[0] for row in rows_with(common, " · ")] == ["0", "2"]
    assert [row.rsplit("· ")[1].split(" ", 4)[-1] for row in rows_with(common, " · ")] == [
        "✓ IoU 1.00 ✗ IoU 0.00",
        "✗ IoU 0.02 ✓ IoU 1.00",
    ]
    assert common.count("<img") == 4  # the boxes of each run next to its answer
    other = report(tmp_path, make("c", predictions=boxes(6)), make("d", predictions=boxes(7)))
    assert "Examples in common" not in other


@pytest.mark.parametrize(
    "content", ["[1, 2]", '{"a": 1}', '[{"iou": "x", "phrase": 1}]', "[{}]", '[{"nearest": [1], "image_id": 1}]']
)
def test_invalid_predictions_do_not_break_the_page(make, tmp_path, content):
    folder = make()
    (folder / "predictions_test.json").write_text(content)
    assert "<h2" in report(tmp_path, folder)


def test_the_images_of_a_page_are_bounded(make, tmp_path):
    folders = [make(name, predictions=boxes()) for name in ("a", "b")]
    found = read_runs([str(folder) for folder in folders])
    room = 4000
    text = page_of(found, 24, Room(room))
    images = re.findall(r"data:image/\w+;base64,([^\"]+)", text)
    assert 0 < sum(map(len, images)) <= room
    assert OneLine("images", "limited") in text.splitlines()
    halves = [sum(map(len, re.findall(r"base64,([^\"]+)", part))) for part in text.split('<details class="run">')[1:]]
    assert len(halves) == 2 and all(0 < half <= room / 2 for half in halves)


def test_without_examples_no_data_are_read(make, tmp_path, monkeypatch):
    folder = make(predictions=boxes())
    monkeypatch.setattr("tools.report.examples.read_split", lambda *_: pytest.fail("the data were read"))
    assert "Hidden by --examples 0" in report(tmp_path, folder, flags=("--examples", "0"))


def test_runs_measured_on_different_files_have_separate_chance_levels_and_no_best_value(make, tmp_path):
    one = make("a", recall={"value": 0.5, "unit": "share", "chance": 0.1})
    two = make("b", recall={"value": 0.7, "unit": "share", "chance": 0.4})
    for folder in (one, two):
        file = folder / "evaluation.json"
        file.write_text(file.read_text().replace("f.jsonl", f"{folder.name}.jsonl"))
    text = report(tmp_path, one, two)
    assert "<th>recall</th><td>50.0%</td><td>70.0%</td><td>10.0%, 40.0%</td>" in text


def test_the_report_warns_of_an_accuracy_that_does_not_beat_the_image_blind_baseline(make, tmp_path):
    questions = {"value": 400, "unit": "count"}
    run = make("blind", accuracy=0.51, questions=questions, **{"image-blind baseline": 0.5})
    assert OneLine("51.0%", "50.0%") in report(tmp_path, run).splitlines()


def test_sets_of_boxes_are_judged_as_a_whole():
    right = {
        "image": "a.png",
        "phrase": "all stars",
        "predicted": [[1, 1, 2, 2]],
        "true": [[1, 1, 2, 2]],
        "f1": 1.0,
    }
    wrong = {**right, "phrase": "all hearts", "true": [], "f1": 0.0}
    first, second = judged([right, wrong], None, "grounding")
    assert (first.subject, first.right, second.subject, second.right) == ("all stars", True, "all hearts", False)
    assert chosen([first, second], 1) == [second]
    assert [line.text for line in lines_of(wrong)] == ["predicted 1, true 0 · all hearts", "a.png"]
