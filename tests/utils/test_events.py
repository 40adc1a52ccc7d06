"""The events of a run: each event can be read back from ``events.jsonl``, its sentence is logged, and damaged lines are
reported."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from utils import events, log
from utils.errors import PeerLostError, UserError

ONE_OF_EACH = [
    events.Started(command=["run.py", "--task", "vqa"], ranks=2, trains=True),
    events.SkippedCheckpoint(fault="step-00000004 is cut off"),
    events.Resumed(step=3, folder="runs/x/checkpoints/step-00000003"),
    events.LoadedWeights(sources="9 of vision from a.safetensors", details=["  random text.*"]),
    events.BuiltModel(parameters=1_900_000),
    events.Planned(records={"images": 9, "regions": 4}, examples_per_step=8, steps=20, epochs=17.8),
    events.SkippedStep(step=5, losses={"loss": None, "box/l1": 0.25}),
    events.SkippedRecord(place="a.jsonl:7", reason="bad box", detail="outside the image"),
    events.CountedRecords(
        read=300, broken=7, reasons=[events.BrokenReason(reason="bad box", count=9, place="a.jsonl:7")]
    ),
    events.Validated(step=10, metric="IoU >= 0.5", value=0.625, best=True, averaged=False),
    events.StillImproving(step=20, metric="IoU >= 0.5", value=0.75, before=0.625),
    events.SavedCheckpoint(step=10),
    events.Stalled(rank=0, waited_s=31.0, step=6, phase="data", silent_ranks={1: "step 5"}, stacks="runs/x/log.txt"),
    events.LostRank(message="rank 1 is gone"),
    events.Stopped(by="SIGTERM", message="step 10 is saved"),
    events.Failed(message="data.train: a.json does not exist"),
    events.Finished(),
    events.Warned(message="odd\nmore", logger="a.b"),
]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder whose log and events receive what a test logs."""
    log.set_up(tmp_path / "log.txt", tmp_path / "events.jsonl")
    yield tmp_path
    log.set_up()


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_there_is_an_example_of_each_event():
    assert [type(event) for event in ONE_OF_EACH] == list(events.EVENTS.values()) == events.Event.__subclasses__()


def test_each_event_is_read_as_it_was_logged_and_its_sentence_is_in_the_log(folder):
    for event in ONE_OF_EACH:
        logging.getLogger("x").info(event)
    noted = list(events.read_events(folder / "events.jsonl"))
    assert [each.event for each in noted] == ONE_OF_EACH
    assert all(each.time.tzinfo is not None for each in noted)
    text = (folder / "log.txt").read_text()
    assert all(f"INFO x: {event}" in text for event in ONE_OF_EACH)


def test_broken_records_of_earlier_runs_are_read(tmp_path):
    reason = {"kind": "bad json", "count": 2, "first": "a.jsonl:3", "message": "torn"}
    lines = [
        {"event": "skipped_record", "location": "a.jsonl:3", "kind": "bad json", "message": "torn"},
        {"event": "counted_records", "read": 9, "broken": 2, "kinds": [reason], "key": None},
    ]
    stamp = {"time": "2026-11-01T00:00:00+00:00", "schema": events.SCHEMA, "version": "0"}
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(stamp | line) + "\n" for line in lines))
    skipped, counted = (each.event for each in events.read_events(tmp_path / "events.jsonl"))
    assert skipped == events.SkippedRecord(place="a.jsonl:3", reason="bad json", detail="torn")
    assert counted.reasons == [events.BrokenReason(reason="bad json", count=2, place="a.jsonl:3", detail="torn")]


def test_other_messages_are_recorded_only_if_they_are_warnings(folder):
    logger = logging.getLogger("a.b")
    logger.info("the weather is fine")
    logger.warning("%d of %d are odd", 2, 3)
    (line,) = lines_of(folder)
    assert (line["event"], line["message"], line["logger"]) == ("warned", "2 of 3 are odd", "a.b")


def test_the_error_that_ends_a_process_is_recorded(folder):
    for error in (UserError("data.train: gone"), PeerLostError("rank 1 is gone"), ValueError("wrong")):
        with pytest.raises(type(error)), log.errors_logged():
            raise error
    lines = lines_of(folder)
    assert [line["event"] for line in lines] == ["failed", "lost_rank", "failed"]
    assert lines[0]["message"] == "data.train: gone" and lines[2]["message"] == "ValueError: wrong"
    assert "Traceback" in lines[2]["traceback"] and lines[0]["traceback"] is None


def test_non_finite_values_are_written_as_null(folder):
    logging.getLogger("x").warning(events.SkippedStep(step=1, losses={"loss": events.finite_or_none(float("nan"))}))
    assert lines_of(folder)[0]["losses"] == {"loss": None}


def test_a_line_that_a_killed_process_left_unfinished_does_not_damage_the_next(folder):
    file = folder / "events.jsonl"
    log.set_up()
    file.write_text('{"time": "2026-01-02T03:0')
    log.set_up(folder / "log.txt", file)
    logging.getLogger("x").info(events.Finished())
    assert [type(each) for each in events.read_events(file)] == [events.Unreadable, events.TimedEvent]


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("[]", None),
        ('"x"', None),
        ("null", None),
        ('{"time": "yesterday", "event": "finished"}', None),
        ('{"time": 5, "event": "finished"}', None),
        ('{"time": "2026-01-02T03:04:05+00:00", "event": "resumed", "step": "many"}', None),
        ('{"time": "2026-01-02T03:04:05+00:00", "event": ["finished"]}', None),
        ('{"time": "2026-01-02T03:04:05+00:00", "event": "danced", "step": 4}', "danced"),
        ("[" * 100_000, None),
    ],
)
def test_a_line_that_is_not_an_event_is_reported_with_its_line_number(tmp_path, line, unknown):
    file = tmp_path / "events.jsonl"
    after = json.dumps({"time": "2026-01-02T03:04:05+00:00", "event": "finished", "mood": "of a newer version"})
    file.write_text(f"\n{line}\n{after}\n")
    first, second = events.read_events(file)
    assert first == events.Unreadable(2, unknown)
    assert second.event == events.Finished()


def row_of(name: str, kind: type[events.Event]) -> str:
    """The row of an event in the table in docs/runs.md: its name, fields and docstring."""
    fields = " ".join(f"`{field}`" for field in kind.model_fields)
    meaning = " ".join((kind.__doc__ or "").split()).replace("``", "`")
    return f"| `{name}` | {fields} | {meaning} |"


def test_the_documentation_describes_each_event_like_the_code():
    table = (Path(__file__).parents[2] / "docs/runs.md").read_text(encoding="utf-8")
    assert all(row_of(name, kind) in table for name, kind in events.EVENTS.items())
    assert f"schema_version` is {events.SCHEMA}" in table
