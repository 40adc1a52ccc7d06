"""``run.py report``: the facts on the page of a run, including interrupted runs and damaged files."""

from __future__ import annotations

import json
import os
import re
import time

from PIL import Image

from run import main
from tests.messages import OneLine
from tests.tasks.conftest import data, overrides  # noqa: F401 (fixtures)
from tests.tools.report_runs import (
    START,
    VEGA,
    boxes,
    charts_of,
    event_lines,
    make_run,  # noqa: F401 (fixture)
    points_of,
    report,
    rows_with,
)
from tools.runs import reading
from utils.events import (
    BrokenReason,
    CountedRecords,
    Failed,
    LoadedWeights,
    SkippedRecord,
    StillImproving,
    Stopped,
    Warned,
)

SCRIPTS = ('<script type="module">', '<script type="application/json">')


def test_the_page_of_a_run_shows_the_contents_of_its_files(make, tmp_path, capsys):
    folder = make(predictions=boxes(), right_throughout=0.25)
    validations = [{"step": step, "IoU >= 0.5": step / 20, "phrases": 5} for step in (5, 10)]
    (folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in validations))
    command = ["--config", "configs/my.yaml", "--output", "x", "optim.lr=0.1"]
    code = [{"version": "0.1", "sha256": "ab" * 32}, {"version": "0.2", "sha256": "cd" * 32}]
    (folder / "made_by.json").write_text(json.dumps({"command": command, "code": code}))
    text = report(tmp_path, folder)
    assert "finished, 10 steps" in text
    assert "0.1, sources abababababab; 0.2, sources cdcdcdcdcdcd" in text
    assert "configs/my.yaml" in text and "<dd>optim.lr=0.1</dd>" in text
    assert "62 of vision from old.safetensors" in text
    assert rows_with(text, "IoU &gt;= 0.5")[0] == "IoU >= 0.5 50.0% 12.5% 75.0%".replace(">", "&gt;")
    assert rows_with(text, "right throughout") == ["right throughout 25.0%"]
    assert "7 phrases; by rule; f.jsonl" in text
    charts = charts_of(text)
    expected = {"loss (total)", "l1", "learning rate", "IoU >= 0.5", "samples per second", "step time"}
    assert expected <= charts.keys()
    assert points_of(charts["IoU >= 0.5"]) == [(5, 0.25), (10, 0.5)]
    assert charts["IoU >= 0.5"]["datasets"]["hover"]["rows"][-1] == [10, 0.5]  # the values at the pointer
    assert rows_with(text, "samples per second") == ["samples per second 55.5 (51 to 60)"]
    assert rows_with(text, "waiting for data") == ["waiting for data 25% (25 to 25)"]
    assert OneLine("no predictions") in text.splitlines()
    printed = capsys.readouterr().out
    assert printed.startswith("run: finished, 10 steps\n".replace("run", f"{tmp_path.name}/run"))
    assert re.search(r"page\.html: \d\.\d MB\n$", printed)


def test_the_page_says_that_a_run_was_still_improving(make, tmp_path):
    improving = StillImproving(step=10, metric="IoU >= 0.5", value=0.5, before=0.25)
    folder = make(events=event_lines(*START, improving))
    rows = [{"step": step, "IoU >= 0.5": step / 20} for step in (5, 10)]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = report(tmp_path, folder)
    assert "Step 10: IoU &gt;= 0.5 was still improving (0.5000 after the last step, at best 0.2500 before)" in text


def test_a_page_is_in_the_folder_of_its_run_and_a_comparison_in_the_current_one(make, tmp_path, monkeypatch, capsys):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    first, second = make("a"), make("b")
    assert main(["report", str(first), "--examples", "0"]) == 0
    assert (first / "report.html").is_file() and not list(here.iterdir())
    assert f"{first}/report.html: " in capsys.readouterr().out
    assert main(["report", str(first), str(second), "--examples", "0"]) == 0
    assert [path.name for path in here.iterdir()] == ["report.html"]


def test_the_page_loads_nothing_from_elsewhere(make, tmp_path):
    text = report(tmp_path, make("a", predictions=boxes()), make("b", predictions=boxes()))
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'>)\s]+)""", text)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"<link|@import|<iframe|fetch\(|import\(", text)
    assert {address.split("/")[2] for address in re.findall(r"https?://[^\"]+", text)} == {"vega.github.io"}  # $schema
    assert text.count(VEGA) == 1 and "default-src 'none'; img-src data:" in text


def test_everything_from_files_is_escaped(make, tmp_path):
    evil = "<script>alert('x')</script>"
    name = evil[:8]  # without a slash
    predictions = [{**box, "phrase": evil, "image": evil} for box in boxes(5)]
    log = event_lines(
        START[0],
        LoadedWeights(sources=evil),
        Warned(message=evil, logger=evil),
        SkippedRecord(place=f"{evil}:1", reason="bad json", detail=evil),
        Stopped(by=evil, message=evil),
    )
    first, second, third = (make(f"{name}{number}", predictions=predictions, events=log) for number in range(3))
    values = {evil: 1.0, f"{evil} memory": 2.0, f"lr/{evil}": 0.1, f"lr/{evil}2": 0.2, "samples_per_s": 9.0}
    lines = [json.dumps({"step": step, **{key: value * step for key, value in values.items()}}) for step in (1, 2, 3)]
    metric = {"value": 0.5, "unit": "share", "rule": evil, "split": evil, "weights": evil}
    for number, folder in enumerate((first, second)):
        for file in ("metrics.jsonl", "validation.jsonl"):
            (folder / file).write_text("\n".join(lines))
        text = (folder / "config.yaml").read_text().replace("kind: linear", f'kind: "{evil}{number}"')
        (folder / "config.yaml").write_text(f'{text}"{evil}{number}": {{"{evil}": {number}}}\n')
        (folder / "evaluation.json").write_text(
            json.dumps({evil: {evil: metric, evil[1:]: {"value": 1, "unit": "count"}}})
        )
        (folder / "made_by.json").write_text(json.dumps({"command": ["--config", evil, f"a={evil}"]}))
        split = [{"sentence": evil, "predicted": evil * number, "true": evil}]
        (folder / f"predictions_{name}.json").write_text(json.dumps(split))
        Image.new("RGB", (4, 4)).save(folder / f"predictions_{name}.png")
    (third / "config.yaml").unlink()
    (third / f"predictions_{name}.json").write_text("[")
    task = make("task")
    (task / "config.yaml").write_text(f'task: "{evil}"\n')
    for folders in ([first], [task], [first, second], [first, second, third]):
        text = report(tmp_path, *folders)
        assert [kind for kind in re.findall(r"<script[^>]*>", text) if kind not in SCRIPTS] == []
        assert "&lt;script&gt;" in text
        evils = sum(json.dumps(spec).count(evil) for spec in charts_of(text).values())
        assert evils or folders == [task]  # titles and labels of charts, as JSON
    assert text.count("&lt;script&gt;") > 100


def test_differences_from_the_defaults_are_marked_in_the_config(make, tmp_path):
    text = report(tmp_path, make("run", "optim.weight_decay=0.5"))
    config = text.split('<pre class="config">')[1].split("</pre>")[0]
    assert '<mark>  weight_decay: 0.5</mark>  <span class="faint"># 0.01</span>' in config
    assert "<mark>  lr_mult: 1.0</mark>" in config
    assert "<mark>  lr: " in config  # has no default
    assert "\n  min_rate: 0.0\n" in config and "<mark>seed" not in config


def test_damaged_files_are_reported_and_the_rest_is_shown(make, tmp_path, capsys):
    folder = make(predictions=boxes())
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('not json\n{"step": 11, "lo')
    (folder / "evaluation.json").write_text('{"test": {')
    (folder / "predictions_test.json").write_text('[{"phr')
    text = report(tmp_path, folder)
    assert OneLine("metrics.jsonl", "2 lines", "11, 12") in text.splitlines()
    assert "evaluation.json: not valid JSON" in text and "predictions_test.json: not valid JSON" in text
    assert "loss (total)" in charts_of(text)
    assert "3 remarks, see the page" in capsys.readouterr().out


def test_an_interrupted_run_is_shown_with_step_and_reason(make, tmp_path):
    folder = make(losses=range(10, 6, -1), events=event_lines(*START, Failed(message="disk full")))
    (folder / "evaluation.json").unlink()
    text = report(tmp_path, folder)
    assert '<b class="no">failed at step 4 of 10 (disk full)</b>' in text
    assert "No evaluation" in text and "The run has no predictions" in text


def test_a_locked_folder_means_a_running_run_unless_it_is_silent(make, tmp_path):
    folder = make(losses=range(10, 6, -1))
    (folder / ".lock").write_text("{}")
    assert "running, at step 4 of 10" in report(tmp_path, folder)
    old = time.time() - 2 * reading.QUIET_S
    for path in folder.iterdir():
        os.utime(path, (old, old))
    assert OneLine("step 4 of 10", "30 minutes") in report(tmp_path, folder).splitlines()


def test_a_run_without_events_is_not_reported_as_free_of_errors(make, tmp_path, capsys):
    folder, other = make("old"), make("new")
    (folder / "events.jsonl").unlink()
    text = report(tmp_path, folder)
    assert "events.jsonl is missing" in text and "Broken records, stops and warnings are unknown" in text
    assert "never stopped" not in text
    assert "never stopped" in report(tmp_path, other)
    assert "old: events.jsonl is missing" in report(tmp_path, folder, other)


def test_broken_records_are_shown_by_kind(make, tmp_path):
    kinds = [
        BrokenReason(reason="bad json", count=5, place="a.jsonl:3"),
        BrokenReason(reason="missing image", count=2, place="a.jsonl:9"),
    ]
    text = report(tmp_path, make(events=event_lines(*START, CountedRecords(read=300, broken=7, reasons=kinds))))
    assert "7 of 300 records (2.3%) are broken" in text
    assert rows_with(text, "<td>bad json</td>") == ["bad json 5 a.jsonl:3"]
    assert rows_with(text, "<td>missing image</td>") == ["missing image 2 a.jsonl:9"]


def test_mistakes_are_reported_in_one_line(make, tmp_path, capsys):
    folder = make("sweep/variant-1")
    (tmp_path / "empty").mkdir()

    def error(*argv: str) -> str:
        assert main(["report", *argv]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") == 1
        return text

    assert "no such folder" in error(str(tmp_path / "nowhere"))
    assert "contains no run" in error(str(tmp_path / "empty"))
    assert f"did you mean {folder}?" in error(str(tmp_path / "sweep"))
    assert "is given twice" in error(str(folder), f"{folder}/")
    assert OneLine("a folder", "a file") in error(str(folder), "--output", str(tmp_path)).splitlines()
    assert "does not exist" in error(str(folder), "--output", str(tmp_path / "no" / "x.html"))
    assert "more than a page can show" in error(*["x"] * 41)
    before = (folder / "config.yaml").read_text()
    assert (
        OneLine(".html", folder / "config.yaml")
        in error(str(folder), "--output", str(folder / "config.yaml")).splitlines()
    )
    assert (folder / "config.yaml").read_text() == before
    assert OneLine("--wandb", "train.wandb") in error(str(folder), "--wandb").splitlines()
    assert OneLine("--wandb", "2 runs") in error(str(folder), str(tmp_path), "--wandb").splitlines()
    assert main(["report", str(folder), "--examples", "many"]) == 2
    assert OneLine("'many'", "0 to 200") in capsys.readouterr().err.splitlines()


def test_a_page_of_a_hundred_thousand_lines_is_small(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 100_001):
            file.write(f'{{"step": {step}, "loss": {50.0 if step == 61_234 else 1 + step % 7 / 10}}}\n')
    text = report(tmp_path, folder)
    assert len(text) < 100_000
    assert (tmp_path / "page.html").stat().st_size < 1_500_000
    assert "trained 100,000 steps" in text
    values = sorted(value for _, value in points_of(charts_of(text)["loss (total)"], "raw"))
    assert values[-1] == 50.0 and values[-2] < 2  # the single spike is kept


def test_predictions_of_the_same_examples_are_shown_over_the_validations(make, tmp_path):
    folder = make("a")

    def line(step: int, overlap: float) -> str:
        kept = [{"number": 3, "phrase": "a <star>", "iou": overlap, "predicted": [0, 0, 1, 1], "true": [0, 0, 1, 1]}]
        return json.dumps({"step": step, "predictions": kept})

    lines = [line(step, step / 100) for step in range(10, 110, 10)]
    (folder / "validation_predictions.jsonl").write_text("\n".join([*lines, "torn"]) + "\n")
    text = report(tmp_path, folder)
    (row,) = rows_with(text, "3 · a &lt;star&gt;")
    assert row.startswith("3 · a &lt;star&gt; ✗ IoU 0.10 ✗ IoU 0.20") and row.endswith("✓ IoU 1.00")
    assert OneLine("1 examples", "8 of 10") in text.splitlines()
    assert "validation_predictions.jsonl: 1 lines cannot be read" in text
