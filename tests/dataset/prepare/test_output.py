"""The output folder of a command: one run at a time writes to it, an interrupted run is resumed, and other files are left
alone."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset.prepare.output_folder import JOURNAL, Entry, OutputFolder
from tests.messages import OneLine, naming
from utils.errors import UserError

NAMES = ["a.jsonl", "b.jsonl"]
MANIFEST = "_command/manifest.json"


def folder(out: Path, size: int = 1, manifest: str = MANIFEST, *, overwrite: bool = False) -> OutputFolder:
    return OutputFolder(out, manifest, {"size": size}, NAMES, overwrite=overwrite)


def make(output: OutputFolder, name: str, source: Path) -> None:
    path = output.out / name
    path.write_text(name)
    output.add(Entry(name, str(source.resolve()), source.stat().st_size, path.stat().st_size, {"records": 1}))


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source"
    path.write_text("source")
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def test_another_process_cannot_write_to_a_locked_folder(out):
    program = (
        "import sys; from pathlib import Path; from dataset.prepare.output_folder import OutputFolder\n"
        "with OutputFolder(Path(sys.argv[1]), 'other.json', {}, ['c']): pass"
    )
    command = [sys.executable, "-c", program, str(out)]
    with folder(out):
        other = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert OneLine("out", "another run") in other.stderr.splitlines()
    with folder(out) as output:
        output.close()
    assert not (out / JOURNAL).exists()


def test_a_worker_that_outlives_its_run_does_not_keep_the_lock(out):
    with folder(out):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        worker.start()
    try:
        with folder(out) as output:
            output.close()
    finally:
        worker.kill()
        worker.join()


def test_a_disk_without_locks_is_used_with_a_warning(out, source, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder(out) as filled:
        make(filled, "a.jsonl", source)
        filled.close()
    assert (out / MANIFEST).is_file() and not (out / JOURNAL).exists()
    assert OneLine(out, "locks", "Function not implemented") in caplog.messages


def test_locking_the_journal_of_a_folder_that_was_just_closed_does_not_claim_it(out, monkeypatch):
    """Between opening the journal and locking it, another run finishes the folder, and a third run claims it again."""
    first = folder(out).__enter__()
    third = folder(out, overwrite=True)
    lock = fcntl.flock

    def late(file, how):
        monkeypatch.undo()
        first.close()
        third.__enter__()
        return lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UserError, match=naming("another run")), folder(out):
        pass
    third.release()


def test_finished_files_of_an_interrupted_run_are_kept_and_others_removed(out, source):
    with folder(out) as output:
        make(output, "a.jsonl", source)
        (out / "b.jsonl").write_text("half")
    with (out / JOURNAL).open("a") as journal:
        journal.write('\n{"file": "b.jso')  # as if the run had been killed during a write
    with folder(out) as output:
        assert not output.complete
        assert output.finished("a.jsonl", source, source.stat().st_size).counts == {"records": 1}
        assert output.finished("b.jsonl", source, source.stat().st_size) is None and not (out / "b.jsonl").exists()
        make(output, "b.jsonl", source)
        output.close({"vocabulary": 3})
    manifest = json.loads((out / MANIFEST).read_text())
    assert (manifest["arguments"], manifest["vocabulary"]) == ({"size": 1}, 3)
    assert [entry["file"] for entry in manifest["files"]] == NAMES
    with folder(out) as output:
        assert output.complete and all(output.finished(name, source, source.stat().st_size) for name in NAMES)


def test_a_complete_folder_stays_complete_while_a_lost_file_is_rebuilt(out, source):
    with folder(out) as output:
        for name in NAMES:
            make(output, name, source)
        output.close()
    (out / "a.jsonl").unlink()
    with folder(out) as output:
        assert output.finished("a.jsonl", source, source.stat().st_size) is None
        make(output, "a.jsonl", source)
    with folder(out) as output:
        assert output.complete and all(output.finished(name, source, source.stat().st_size) for name in NAMES)


def test_an_interrupted_run_remembers_files_that_were_not_written_because_all_records_were_skipped(out, source):
    entry = Entry("empty.jsonl", str(source.resolve()), source.stat().st_size, 0, {"skipped": 1})
    with OutputFolder(out, MANIFEST, {"size": 1}, ()) as output:
        make(output, "a.jsonl", source)
        output.add(entry)
    with OutputFolder(out, MANIFEST, {"size": 1}, ()) as output:
        assert output.entries.keys() == {"a.jsonl", "empty.jsonl"}


def test_a_file_is_unfinished_if_its_size_or_its_sources_size_changed(out, source):
    with folder(out) as output:
        make(output, "a.jsonl", source)
        (out / "a.jsonl").write_text("cut")
        assert output.finished("a.jsonl", source, source.stat().st_size) is None
        make(output, "a.jsonl", source)
        source.write_text("longer source")
        assert output.finished("a.jsonl", source, source.stat().st_size) is None
        with pytest.raises(UserError, match=naming("a.jsonl", "source", "other")):
            output.finished("a.jsonl", source.with_name("other"), 1)


@pytest.mark.parametrize("closed", [True, False])
def test_files_made_with_other_arguments_are_replaced_only_on_request(out, source, closed):
    with folder(out) as output:
        make(output, "a.jsonl", source)
        (out / "notes.txt").write_text("mine")
        if closed:
            output.close()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=naming("out", "size=1", "2")):
        folder(out, 2).__enter__()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    with folder(out, 2, overwrite=True) as output:
        assert not output.entries
        assert not (out / "a.jsonl").exists() and (out / "notes.txt").exists() and not (out / MANIFEST).exists()


def test_an_unfinished_folder_without_finished_files_accepts_any_arguments(out):
    with folder(out):
        (out / "a.jsonl").write_text("half")
    with folder(out, 2) as output:
        assert not (out / "a.jsonl").exists()
        output.close()
    assert json.loads((out / MANIFEST).read_text()) == {"arguments": {"size": 2}}


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_another_origin_are_never_claimed(out, overwrite):
    out.mkdir()
    (out / "b.jsonl").write_text("mine")
    for _ in range(2):
        with pytest.raises(UserError, match=naming("out", "b.jsonl")):
            folder(out, overwrite=overwrite).__enter__()
        assert [path.name for path in out.iterdir()] == ["b.jsonl"]
    (out / "b.jsonl").unlink()
    with folder(out, manifest="other.json"):
        pass
    with pytest.raises(UserError, match=naming("out", "other.json")):
        folder(out, overwrite=overwrite).__enter__()


def test_a_full_disk_is_reported_in_one_line_and_releases_the_lock(out, source):
    def fill() -> None:
        with folder(out) as output:
            make(output, "b.jsonl", source)
            raise OSError(28, os.strerror(28), str(out / "a.jsonl"))

    with pytest.raises(UserError, match=naming("a.jsonl", "No space left on device")):
        fill()
    source.with_name("file").touch()
    with pytest.raises(UserError, match=naming("Not a directory")):
        folder(source.with_name("file") / "out").__enter__()
    with folder(out) as output:
        output.close()


def test_a_damaged_manifest_is_reported_or_overwritten(out):
    with folder(out) as output:
        output.close()
    (out / MANIFEST).write_text("[")
    with pytest.raises(UserError, match=naming("manifest.json", "JSON", "--overwrite")):
        folder(out).__enter__()
    with folder(out, overwrite=True) as output:
        assert not output.complete
