"""The history in the events of a run: why it stopped, which records were broken, and which steps a resumed run repeats."""

from __future__ import annotations

from tests.tools.report_runs import START, event_lines
from tools.runs.history import read_history
from utils import events
from utils.events import BrokenReason, CountedRecords, Validated, Warned

COUNTED = CountedRecords(
    read=300,
    broken=7,
    reasons=[
        BrokenReason(reason="bad json", count=5, place="a.jsonl:3"),
        BrokenReason(reason="missing image", count=2, place="a.jsonl:9"),
    ],
)


def validated(step: int, value: float, best: bool = False) -> Validated:
    return Validated(step=step, metric="IoU >= 0.5", value=value, best=best, averaged=False)


def read(tmp_path, text: str):
    (tmp_path / "events.jsonl").write_text(text)
    return read_history(tmp_path / "events.jsonl")


def test_the_history_of_a_resumed_run_has_steps_stops_and_broken_records(tmp_path):
    first = event_lines(
        *START,
        events.Planned(records={"phrases": 10}, examples_per_step=4, steps=40, epochs=16.0),
        events.SkippedRecord(place="a.jsonl:3", reason="bad json", detail="Expecting ','"),
        events.SkippedStep(step=5, losses={"loss": None}),
        validated(10, 0.25, best=True),
        validated(20, 0.1),
        COUNTED,
        events.Stopped(by="SIGTERM", message="saved step 20"),
    )
    second = event_lines(
        START[0],
        START[2],
        events.Resumed(step=20, folder="runs/x/checkpoints/step-00000020"),
        Warned(message="something else", logger="a.b"),
        time="2026-01-02T04:00:02",
    )
    history = read(tmp_path, first + second)
    assert (history.started, history.ended) == ("2026-01-02 03:04:05", "2026-01-02 04:00:02")
    assert (history.steps, history.selection_metric, history.best, history.skipped_steps) == (40, "IoU >= 0.5", 10, [5])
    assert (history.parameters, history.weights) == (1_900_000, START[1].sources)
    assert (history.starts, history.resumed, history.stop) == (2, 1, None)
    assert [str(event) for _, event in history.stops_and_resumptions] == [
        "stopped by SIGTERM: saved step 20",
        "resuming from runs/x/checkpoints/step-00000020",
    ]
    assert history.records.share() == "7 of 300 records (2.3%) are broken"
    kinds = {kind.reason: (kind.count, kind.place, kind.detail) for kind in history.reasons}
    assert kinds == {"bad json": (5, "a.jsonl:3", "Expecting ','"), "missing image": (2, "a.jsonl:9", "")}
    assert history.warnings == [("2026-01-02 04:00:02", "something else")]
    assert history.remarks(tmp_path / "events.jsonl") == []


def test_broken_records_are_summed_over_the_processes_of_a_run(tmp_path):
    whole = CountedRecords(read=100, broken=0)
    history = read(tmp_path, event_lines(*START, COUNTED, *START, COUNTED, whole))
    assert (history.records.read, history.records.broken) == (700, 14)
    assert [kind.count for kind in history.reasons] == [10, 4]


def test_events_after_the_resumed_step_do_not_count(tmp_path):
    skipped = [events.SkippedStep(step=step, losses={"loss": None}) for step in (3, 8)]
    killed = event_lines(*START, *skipped, validated(5, 0.2, best=True), validated(8, 0.3, best=True))
    history = read(tmp_path, killed + event_lines(START[0], events.Resumed(step=5, folder="x")))
    assert (history.best, history.skipped_steps) == (5, [3])


def test_a_stop_is_forgotten_when_the_run_restarts(tmp_path):
    failed = events.Failed(message="disk full")
    history = read(tmp_path, event_lines(*START, failed))
    assert history.stop == failed
    assert read(tmp_path, event_lines(*START, failed, START[0])).stop is None


def test_damage_and_events_of_a_newer_version_are_noted(tmp_path):
    newer = '{"time": "2026-01-02T03:04:05+00:00", "event": "danced", "step": 3}\n'
    path = tmp_path / "events.jsonl"
    history = read(tmp_path, event_lines(*START) + "torn\n" + newer + newer)
    damaged, unknown = history.remarks(path)
    assert "1 damaged" in damaged and "danced" in unknown
    path.unlink()
    history = read_history(path)
    (missing,) = history.remarks(path)
    assert not history.complete and "events.jsonl" in missing and "log.txt" in missing


def test_an_annotation_file_is_read_at_every_start_and_counts_once(tmp_path):
    file = CountedRecords(
        key="data.train",
        read=50,
        broken=3,
        reasons=[BrokenReason(reason="bad json", count=3, place="t.json:2", detail="Expecting ','")],
    )
    started, *_ = START
    assert started.trains
    history = read(tmp_path, event_lines(started, file, COUNTED, started, file))
    assert history.shares() == [
        "7 of 300 records (2.3%) are broken",
        "data.train: 3 of 50 records (6.0%) are broken",
    ]
    kinds = [(kind.reason, kind.count, kind.place, kind.detail) for kind in history.reasons]
    assert kinds == [("bad json", 8, "a.jsonl:3", "Expecting ','"), ("missing image", 2, "a.jsonl:9", "")]
    evaluation = started.model_copy(update={"trains": False})
    assert len(read(tmp_path, event_lines(started, file, evaluation)).shares()) == 1
    repaired = read(tmp_path, event_lines(started, file, started))
    assert repaired.shares() == [] and repaired.reasons == []


def test_a_run_that_resumes_before_its_end_is_not_yet_still_improving(tmp_path):
    improving = events.StillImproving(step=40, metric="IoU >= 0.5", value=0.5, before=0.25)
    text = event_lines(*START, improving)
    assert read(tmp_path, text).improvement == improving
    assert read(tmp_path, text + event_lines(events.Resumed(step=20, folder="x"))).improvement is None
