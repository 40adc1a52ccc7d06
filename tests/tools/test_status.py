"""``run.py status``: its output for runs in every state, and how much of their files it reads."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from engine.checkpoint import MANIFEST, MODEL_FILE, TRAINING_FILE, digest_of
from run import main
from tests.messages import OneLine
from tests.tasks.conftest import data, overrides  # noqa: F401 (fixtures)
from tests.tools.report_runs import START, event_lines, make_run  # noqa: F401 (fixture)
from tools.runs import reading, series
from tools.status import text
from tools.status.facts import Loss, loss_of
from utils import events
from utils.events import Event
from utils.printing import duration

NO_PROCESS = 2**22 + 1
"""Larger than any process id on Linux."""


@pytest.fixture(autouse=True)
def columns(monkeypatch) -> None:
    """Sets the width of the terminal, independently of where the tests run."""
    monkeypatch.setenv("COLUMNS", str(text.WIDEST))


@pytest.fixture
def wide(monkeypatch) -> None:
    """A terminal so wide that no line is wrapped, even if the path of the run is long."""
    monkeypatch.setattr(text, "WIDEST", 600)
    monkeypatch.setenv("COLUMNS", "600")


def page_of(capsys, *folders: Path, status: int = 0, flags: tuple[str, ...] = ()) -> str:
    assert main(["status", *map(str, folders), *flags]) == status
    return capsys.readouterr().out


def object_of(capsys, folder: Path, status: int = 0, flags: tuple[str, ...] = ()) -> dict:
    (found,) = json.loads(page_of(capsys, folder, status=status, flags=("--json", *flags)))
    return found


def row_of(page: str, label: str) -> str:
    return next(line.removeprefix(label).strip() for line in page.splitlines() if line.startswith(f"{label} "))


def line(second: str, *found: Event) -> str:
    """Events at 03:05 and some seconds."""
    return event_lines(*found, time=f"2026-01-02T03:05:{second}")


LOG = event_lines(*START)
STARTED = line("00", START[0], START[2])
"""The first lines of each process, including one that resumes."""
STOPPED = events.Stopped(by="SIGTERM", message="saved step 4")
RESUMED = events.Resumed(step=4, folder="runs/x/checkpoints/step-00000004")


def warned(message: str) -> Event:
    return events.Warned(message=message, logger="a.b")


def cut(folder: Path) -> Path:
    (folder / "evaluation.json").unlink()
    return folder


def lock(folder: Path, process: int, quiet_s: float = 0.0) -> Path:
    owner = {"host": socket.gethostname(), "process": process, "since": "2026-01-02 03:04:05"}
    (folder / ".lock").write_text(json.dumps(owner))
    for path in folder.iterdir():
        os.utime(path, (time.time() - quiet_s,) * 2)
    return folder


def save_checkpoint(folder: Path, step: int) -> Path:
    saved = folder / "checkpoints" / f"step-{step:08d}"
    saved.mkdir(parents=True)
    files = {}
    for name, size in ((MODEL_FILE, 1_000_000), (TRAINING_FILE, 2_000_000)):
        (saved / name).write_bytes(bytes(size))
        files[name] = {"bytes": size, "sha256": digest_of(saved / name)}
    (saved / MANIFEST).write_text(json.dumps({"format": 1, "step": step, "files": files}))
    return saved


def test_the_page_of_a_running_run_shows_progress_rates_and_remaining_time(make, capsys, wide):
    page = page_of(capsys, lock(make(losses=range(10, 5, -1)), os.getpid()))
    assert page.splitlines()[0] == OneLine("run", "step 5 of 10")
    assert row_of(page, "progress") == "█" * 12 + "░" * 12 + " 50%, step 5 of 10"
    assert row_of(page, "rate") == "recently 0.5 steps/s and 53 samples/s; overall 0.5 steps/s and 53 samples/s"
    assert row_of(page, "time").startswith("10 s left, until 20")
    assert OneLine("10 s trained", "2026-01-02 03:04:05", "0 s") in row_of(page, "time").splitlines()
    assert row_of(page, "losses").split() == ["loss", "6", "█▇▅▃▁", "l1", "3"]
    assert row_of(page, "checkpoints") == "none"
    assert row_of(page, "ranks") == OneLine("rank 0", "25%")


def test_a_page_has_at_most_28_lines_whatever_happened_to_the_run(make, capsys):
    kinds = [
        events.BrokenReason(reason=f"kind {chr(97 + n)} of a fault that is long", count=n, place=f"a.jsonl:{n}")
        for n in range(1, 20)
    ]
    stop = events.Stopped(by="SIGTERM", message="x" * 200)
    log = LOG + "".join(line("01", stop) + LOG for _ in range(40))
    log += "".join(line("02", warned(f"warning {n} {'y' * 300}")) for n in range(60))
    log += line("03", events.CountedRecords(read=300, broken=9, reasons=kinds))
    folder = make(losses=range(10, 5, -1), events=log)
    values = {f"images/loss-number-{n}": 1.5 for n in range(60)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n, **values}) + "\n" for n in range(1, 9)))
    (folder / "validation.jsonl").write_text("torn\n" + json.dumps({"step": 5, **values}) + "\n")
    for step in range(1, 30):
        save_checkpoint(folder, step)
    page = page_of(capsys, cut(folder), status=1, flags=())
    assert len(page.splitlines()) <= 28
    assert max(map(len, page.splitlines())) <= text.WIDEST
    narrow = text.page(text_status(folder), 60)
    assert len(narrow.splitlines()) <= 28 and max(map(len, narrow.splitlines())) <= 60


def text_status(folder: Path):
    from tools.status.facts import status_of

    return status_of(reading.read_run(folder, "run"))


@pytest.mark.parametrize(
    ("state", "status"),
    [("finished", 0), ("running", 0), ("hanging", 1), ("killed", 1), ("stopped", 1), ("failed", 1), ("cut", 1)],
)
def test_the_exit_status_shows_whether_all_is_well(make, capsys, state, status):
    last = {"stopped": STOPPED, "failed": events.Failed(message="disk full")}.get(state)
    log = LOG + (line("00", last) if last else "")
    folder = make(losses=range(10, 0 if state == "finished" else 6, -1), events=log)
    if state != "finished":
        cut(folder)
    if state in ("running", "hanging", "killed"):
        lock(folder, NO_PROCESS if state == "killed" else os.getpid(), 2000.0 if state == "hanging" else 0.0)
    found = object_of(capsys, folder, status)
    assert (found["state"], found["healthy"]) == (state, status == 0)


def test_a_run_stopped_during_a_validation_is_shown_as_stopped_despite_its_lock(make, capsys):
    """The process ends immediately in that case, without unlocking the folder."""
    folder = lock(cut(make(losses=range(10, 5, -1), events=LOG + line("01", STOPPED))), NO_PROCESS)
    assert object_of(capsys, folder, 1)["text"] == OneLine("stopped at step 5 of 10", "SIGTERM")


def test_a_run_with_lines_far_apart_is_not_mistaken_for_hanging(make, capsys):
    folder = make(losses=(2.0, 1.0))
    lines = [{"step": step, "loss": 1.0, "elapsed_s": 30.0 * step} for step in (50, 100)]  # 25 minutes apart
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert object_of(capsys, lock(folder, os.getpid(), 2000.0))["state"] == "running"
    assert object_of(capsys, lock(folder, os.getpid(), 5000.0), 1)["state"] == "hanging"


def test_a_run_on_another_machine_is_judged_only_by_its_files(make, capsys):
    folder = lock(make(losses=(2.0, 1.0)), NO_PROCESS)
    (folder / ".lock").write_text(json.dumps({"host": "elsewhere", "process": NO_PROCESS}))
    assert object_of(capsys, folder)["state"] == "running"


def test_trends_are_shown_if_they_exceed_the_noise():
    def trend(*values: float) -> str | None:
        one = series.Series()
        for step, value in enumerate(values):
            one.add(step, value)
        found = loss_of(one)
        assert found is not None
        return found.trend

    noise = [0.1, -0.1, 0.05, -0.05] * 10
    assert trend(*(5 + n for n in noise)) == "level"
    assert trend(*(5 - 0.05 * step + n for step, n in enumerate(noise))) == "falling"
    assert trend(*(5 + 0.05 * step + n for step, n in enumerate(noise))) == "rising"
    assert trend(5, 4, 3, 2, 1) is None
    assert loss_of(series.Series()) is None
    one = series.Series()
    one.add(1, 4.0)
    assert loss_of(one) == Loss(4.0, 4.0, None, None)


def test_the_last_validation_is_shown_with_the_best(make, capsys):
    log = LOG + line("01", events.Validated(step=10, metric="IoU >= 0.5", value=0.6, best=False, averaged=False))
    folder = make(events=log)
    rows = [{"step": step, "IoU >= 0.5": value, "phrases": 5} for step, value in ((5, 0.7), (8, 0.7), (10, 0.6))]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert row_of(page_of(capsys, folder), "validation") == "step 10: IoU >= 0.5 0.6, best 0.7 at 5"
    found = object_of(capsys, folder)["validation"]
    assert found == {
        "step": 10,
        "values": {"IoU >= 0.5": 0.6, "phrases": 5},
        "metric": "IoU >= 0.5",
        "value": 0.6,
        "best": 0.7,
        "best_step": 5,
        "before": None,
    }
    (folder / "events.jsonl").write_text(LOG)
    assert row_of(page_of(capsys, folder), "validation") == "step 10: IoU >= 0.5 0.6, phrases 5"


def test_a_run_that_was_still_improving_says_so(make, capsys):
    last = events.Validated(step=10, metric="IoU >= 0.5", value=0.6, best=True, averaged=False)
    improving = events.StillImproving(step=10, metric="IoU >= 0.5", value=0.6, before=0.5)
    folder = make(events=LOG + line("01", last) + line("02", improving))
    rows = [{"step": step, "IoU >= 0.5": value} for step, value in ((5, 0.5), (10, 0.6))]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = row_of(page_of(capsys, folder), "validation")
    assert shown == "step 10: IoU >= 0.5 0.6, the best so far, still improving (0.5 before)"


def test_what_a_fine_tuned_model_kept_is_shown(make, capsys, wide):
    """The metric that selects weights, or the first one that was measured before."""
    log = LOG + line("01", events.Validated(step=10, metric="IoU >= 0.5", value=0.6, best=True, averaged=False))
    folder = make(events=log)
    own = {"phrases": {"value": 9, "unit": "count"}, "AP": {"value": 0.5, "before": 0.1}}
    splits = {
        "test": own | {"IoU >= 0.5": {"value": 0.61, "before": 0.25}},
        "keep: old": {"AP": {"value": 0.4, "before": 0.8}},
        "other": {"AP": {"value": 0.4}},
    }
    (folder / "evaluation.json").write_text(json.dumps(splits))
    shown = row_of(page_of(capsys, folder), "kept")
    assert shown == "test: IoU >= 0.5 0.25 before, 0.61 now; keep: old: AP 0.8 before, 0.4 now"
    assert object_of(capsys, folder)["kept"][1] == {"split": "keep: old", "metric": "AP", "before": 0.8, "value": 0.4}


def test_checkpoints_are_shown_with_age_size_and_damage(make, capsys, wide):
    folder = make()
    older, cut_off = save_checkpoint(folder, 5), save_checkpoint(folder, 10)
    (cut_off / MODEL_FILE).write_bytes(bytes(10))
    os.utime(older, (time.time() - 7200,) * 2)
    row = " ".join(page_of(capsys, folder).split("checkpoints  ")[1].split("ranks  ")[0].split())
    assert row.startswith("step 10 (2 MB, 0 s ago, ") and "has 10 of 1,000,000 bytes" in row
    assert "step 5 (3 MB, 2 h ago, complete)" in row
    (older / MODEL_FILE).write_bytes(b"x" * 1_000_000)  # the size is as expected
    assert object_of(capsys, folder)["checkpoints"][0]["fault"] is None
    assert "is damaged" in object_of(capsys, folder, flags=("--hashes",))["checkpoints"][0]["fault"]


def test_broken_records_restarts_stops_and_warnings_are_shown(make, capsys, wide):
    counted = events.CountedRecords(
        read=300,
        broken=7,
        reasons=[
            events.BrokenReason(reason="bad json", count=5, place="a.jsonl:3"),
            events.BrokenReason(reason="missing image", count=2, place="a.jsonl:9"),
        ],
    )
    log = (
        LOG
        + line("01", counted)
        + line("02", STOPPED)
        + STARTED
        + line("03", RESUMED)
        + line("04", events.SkippedRecord(place="a.jsonl:7", reason="bad box", detail="outside"))
        + line("05", events.SkippedStep(step=6, losses={"loss": None}))
        + line("06", warned("odd\nmore"))
    )
    page = page_of(capsys, make(events=log))
    assert row_of(page, "records") == OneLine("7 of 300", "2.3%", "5 bad json", "2 missing image", "bad box")
    starts = " ".join(page.split("starts  ")[1].split("warnings")[0].split())
    assert starts == OneLine("2 starts", "1 step")
    assert starts == OneLine("1 stop", "2026-01-02 03:05:02", "SIGTERM", "step 4")
    assert row_of(page, "warnings") == "1, the last 2026-01-02 03:05:06: odd"


def test_a_stop_before_the_newest_start_is_not_a_reason_for_the_state(make, capsys):
    stopped = LOG + line("02", STOPPED)
    folder = cut(make(losses=range(10, 5, -1), events=stopped))
    assert object_of(capsys, folder, 1)["text"] == OneLine("step 5 of 10", "SIGTERM", "step 4")
    (folder / "checkpoints/step-00000006").mkdir(parents=True)
    after = object_of(capsys, folder, 1)  # the last steps are saved but not logged
    assert (after["text"], after["step"]) == (OneLine("step 6 of 10", "SIGTERM", "step 4"), 6)
    (folder / "events.jsonl").write_text(stopped + STARTED + line("03", RESUMED))
    assert object_of(capsys, folder, 1)["text"] == "cut at step 6 of 10"


def test_the_slowest_rank_is_named(make, capsys):
    folder = make()
    ranks = {"ranks/slowest_s": 0.3, "ranks/slowest_data_s": 0.05, "ranks/median_s": 0.2}
    rows = [{"step": n, "loss": 1.0, "ranks/slowest": 3 if n > 2 else 1, **ranks} for n in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = " ".join(page_of(capsys, folder, status=1).split())
    assert OneLine("rank 3", "0.3 s", "0.05 s", "1.50") in page.splitlines()
    assert OneLine("75%") in page.splitlines()
    assert set(object_of(capsys, folder, 1)["losses"]) == {"loss"}


def test_a_run_that_continues_on_one_rank_has_no_slowest_rank(make, capsys):
    folder = make()
    ranks = {"ranks/slowest": 1, "ranks/slowest_s": 0.3, "ranks/slowest_data_s": 0.05, "ranks/median_s": 0.2}
    rows = [{"step": n, "loss": 1.0, "elapsed_s": n, **(ranks if n < 5 else {})} for n in range(1, 7)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert object_of(capsys, folder, 1)["ranks"] is None
    assert "slowest" not in page_of(capsys, folder, status=1)


def test_a_folder_of_runs_has_a_line_for_each(make, tmp_path, capsys):
    make("sweep/variant-1/seed-0")
    cut(make("sweep/variant-2/seed-0", losses=range(10, 5, -1)))
    lock(cut(make("sweep/deep/er/variant-3", losses=(3.0,))), os.getpid())
    (tmp_path / "sweep" / "configs").mkdir()
    (tmp_path / "sweep" / "configs" / "config.yaml").write_text("task: vqa\n")
    (tmp_path / "sweep" / "again").symlink_to("variant-1/seed-0")
    (tmp_path / "sweep" / "circle").symlink_to(tmp_path)
    lines = page_of(capsys, tmp_path / "sweep", status=1).splitlines()
    assert [row.split()[:3] for row in lines] == [
        ["run", "state", "step"],
        ["deep/er/variant-3", "running", "1/10"],
        ["variant-1/seed-0", "finished", "10/10"],
        ["variant-2/seed-0", "cut", "5/10"],
    ]
    both = json.loads(
        page_of(capsys, tmp_path / "sweep", tmp_path / "sweep/variant-1/seed-0", status=1, flags=("--json",))
    )
    assert [Path(one["folder"]).name for one in both] == ["variant-3", "seed-0", "seed-0"]


def test_mistakes_are_reported_in_one_line_with_status_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, reported in ((tmp_path / "nowhere", "no such folder"), (tmp_path / "empty", "contains no run")):
        assert main(["status", str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and reported in error and error.count("\n") == 1
    for arguments in ([], ["x", "--jsn"]):
        assert main(["status", *arguments]) == 2


def test_of_long_metrics_the_newest_lines_count_as_recent_and_the_loss_curve_is_averaged(tmp_path, capsys):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 20_001):
            values = {"step": step, "loss": 100_000.0 / (step + 100), "elapsed_s": 0.5 * step, "samples_per_s": 64.0}
            file.write(json.dumps(values) + "\n")
    (tmp_path / "events.jsonl").write_text(LOG)
    found = object_of(capsys, tmp_path)
    assert (found["step"], found["state"]) == (20_000, "finished")
    assert found["recent"] == pytest.approx({"steps_per_s": 2.0, "samples_per_s": 64.0})
    assert found["overall"]["steps_per_s"] == pytest.approx(2.0)
    steps = [step for step, _ in found["loss_curve"]]
    assert steps[0] < 50 and steps[-1] == 20_000 and 35 <= len(steps) <= 41
    assert page_of(capsys, tmp_path).count("▁") > 20


def test_incomplete_lines_are_reported_and_the_rest_is_read(make, capsys):
    folder = make()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    found = object_of(capsys, folder)
    assert found["step"] == 10
    assert found["remarks"] == [OneLine("metrics.jsonl", "1 line")]


def test_nothing_in_a_file_controls_the_terminal(make, capsys):
    page = page_of(capsys, make(events=LOG + line("01", warned("\x1b[2J\x07 boo"))))
    assert row_of(page, "warnings").endswith("?[2J? boo")
    assert "\x1b" not in page


def test_times_are_shown_in_two_units():
    seconds = (0.4, 59, 60, 61, 3600, 5400, 86400, 100_000, 1_000_000)
    assert [duration(s) for s in seconds] == [
        *("0 s", "59 s", "1 min", "1 min 1 s", "1 h", "1 h 30 min", "1 d", "1 d 3 h", "11 d"),
    ]


def test_a_failed_start_does_not_count_in_a_folder_of_runs(make, tmp_path, capsys):
    runs = tmp_path / "runs"
    failed = runs / "failed"
    failed.mkdir(parents=True)
    (failed / "config.yaml").write_text("task: vqa\n")
    (failed / "events.jsonl").write_text(line("05", events.Failed(message="data.train: a.json does not exist")))
    make("runs/done")
    assert main(["status", str(runs)]) == 0
    assert "never started" in capsys.readouterr().out
    assert main(["status", str(failed)]) == 1
    (failed / "tensorboard").mkdir()  # from a run that has started to train
    assert main(["status", str(runs)]) == 1


def test_a_file_that_is_too_large_has_one_remark(make, monkeypatch):
    folder = make()
    monkeypatch.setattr(reading, "MAX_LINES_BYTES", 10)
    run = reading.read_run(folder, "run")
    assert len(run.remarks) == 2 and all("larger than" in remark for remark in run.remarks)
    assert run.metrics.lines == 0 and not run.history.complete


def test_metrics_with_a_hole_of_gigabytes_are_not_read_through(make, capsys):
    folder = make("run")
    with (folder / "metrics.jsonl").open("r+b") as file:
        file.truncate(200_000_000_000)  # a sparse file, which takes no disk space
    started = time.monotonic()
    assert "larger than 1 GB" in " ".join(page_of(capsys, folder).split())
    assert time.monotonic() - started < 10
