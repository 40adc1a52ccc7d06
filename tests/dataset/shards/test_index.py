"""The index of many shards: several processes scan shards, an interrupted build resumes, and the entries of unchanged shards are
shared by all lists."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from dataset.shards import making, scanning
from dataset.shards.index import name_of
from dataset.shards.making import open_index
from dataset.shards.readers import Shards
from dataset.shards.tars import group_of, next_member
from tests.messages import OneLine, naming
from utils.errors import UserError


@pytest.fixture
def lines(tmp_path) -> list[Path]:
    """Nine shards of up to four records with some blank lines."""
    paths = []
    for shard in range(9):
        rows = [json.dumps({"id": f"{shard}-{row}"}) for row in range(shard % 5)]
        paths.append(tmp_path / f"{shard}.jsonl")
        paths[-1].write_text("\n\n".join(rows) + "\n")
    return paths


def ids(paths: list[Path], folder: Path) -> list[str]:
    shards = Shards(list(map(str, paths)), index_folder=folder)
    return [shards.read(number).values["id"] for number in range(len(shards))]


def test_any_number_of_processes_builds_the_same_index(lines, tmp_path):
    made = [open_index(lines, tmp_path / f"by{workers}", "files", workers) for workers in (1, 3)]
    for name in ("shards.npy", "starts.npy", "irregularities.npy"):
        assert (made[0].folder / name).read_bytes() == (made[1].folder / name).read_bytes()
    assert ids(lines, tmp_path / "by1") == [f"{shard}-{row}" for shard in range(9) for row in range(shard % 5)]
    left = {path.suffix or path.name for path in (tmp_path / "by1").iterdir()}
    assert left == {".index", ".lock", "shards"}, "no unfinished files"
    assert len([path for path in (tmp_path / "by1" / "shards").rglob("*") if path.is_file()]) == 9


def test_an_index_has_eight_bytes_per_record(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n" * 10_000)
    made = open_index([tmp_path / "a.jsonl"], tmp_path / "index", "files")
    assert sum(file.stat().st_size for file in made.folder.iterdir()) < 8 * 10_000 + 1_000


def test_an_interrupted_index_resumes_with_its_entries(lines, tmp_path, monkeypatch):
    scan, scanned = making.scan_shard, []

    def scan_until_killed(path, *rest):
        scanned.append(path.name)
        if len(scanned) == 6:
            raise KeyboardInterrupt
        return scan(path, *rest)

    monkeypatch.setattr(making, "scan_shard", scan_until_killed)
    with pytest.raises(KeyboardInterrupt):
        open_index(lines, tmp_path / "index", "files")
    open_index(lines, tmp_path / "index", "files")
    assert scanned[6:] == [f"{shard}.jsonl" for shard in range(5, 9)], "entries of scanned shards must be kept"
    assert len(ids(lines, tmp_path / "index")) == 16


def test_only_shards_that_changed_are_scanned_again(lines, tmp_path, monkeypatch, caplog):
    open_index(lines, tmp_path / "index", "files")
    scan, scanned = making.scan_shard, []
    monkeypatch.setattr(making, "scan_shard", lambda path, *rest: scanned.append(path.name) or scan(path, *rest))
    lines[3].write_text('{"id": "new"}\n')
    found = ids(lines, tmp_path / "index")
    assert scanned == ["3.jsonl"]
    assert "new" in found and len(found) == 14
    assert OneLine("1 of 9") in caplog.messages
    fresh = open_index(lines, tmp_path / "fresh", "files")
    again = open_index(lines, tmp_path / "index", "files")
    assert np.array_equal(fresh.starts, again.starts) and np.array_equal(fresh.irregularities, again.irregularities)


@pytest.fixture
def scanned(monkeypatch) -> list[str]:
    """The names of the shards that are scanned."""
    scan, names = making.scan_shard, []
    monkeypatch.setattr(making, "scan_shard", lambda path, *rest: names.append(path.name) or scan(path, *rest))
    return names


def test_lists_share_the_entries_of_their_shards(lines, tmp_path, scanned, caplog):
    open_index(lines[:4], tmp_path / "index", "files")
    open_index(lines[8:1:-1], tmp_path / "index", "files")
    assert sorted(scanned) == [f"{shard}.jsonl" for shard in range(9)]
    lines[5].write_text('{"id": "new"}\n')
    scanned.clear(), caplog.clear()
    other = [lines[0], *lines[4:8]]
    found = open_index(other, tmp_path / "index", "files", 1)
    assert scanned == ["5.jsonl"]
    assert OneLine("files", "1 of 5", "5.jsonl") in caplog.messages
    fresh = open_index(other, tmp_path / "fresh", "files")
    for name in ("shards", "starts", "irregularities"):
        assert np.array_equal(getattr(found, name), getattr(fresh, name))


@pytest.mark.parametrize("content", [b"", b"noise", b"\0" * 800])
def test_a_damaged_entry_is_scanned_again(lines, tmp_path, scanned, content):
    whole = open_index(lines, tmp_path / "index", "files")
    for entry in (tmp_path / "index" / "shards").rglob("*"):
        if entry.is_file():
            entry.write_bytes(entry.read_bytes()[:-8] if content == b"" else content)
    scanned.clear()
    other = open_index(lines[1:], tmp_path / "index", "files")
    assert len(scanned) == 8 and np.array_equal(other.starts, whole.starts)


def test_a_list_without_a_shard_is_indexed_without_scanning(lines, tmp_path, scanned):
    open_index(lines, tmp_path / "index", "files", 2)
    scanned.clear()
    assert sum(open_index(lines[:3] + lines[4:], tmp_path / "index", "files").sizes) == 13
    assert scanned == []


def test_a_second_process_waits_for_the_first_to_build_the_index(lines, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(making, "_WAIT_S", 0.05)
    scan, started = making.scan_shard, multiprocessing.get_context("fork").Event()

    def slowly(path, *rest):
        started.set()
        time.sleep(0.1)
        return scan(path, *rest)

    monkeypatch.setattr(making, "scan_shard", slowly)
    first = multiprocessing.get_context("fork").Process(target=open_index, args=(lines, tmp_path / "index", "files"))
    first.start()
    assert started.wait(30)
    monkeypatch.setattr(making, "scan_shard", lambda *_: pytest.fail("scanned twice"))
    assert len(open_index(lines, tmp_path / "index", "files").starts) == 16
    first.join()
    assert OneLine("files", "another process") in caplog.messages


def test_a_killed_process_is_reported_in_one_line_and_its_entries_are_kept(lines, tmp_path, monkeypatch):
    def scan_or_die(path, *rest):
        return os._exit(9) if path.name == "8.jsonl" else scan(path, *rest)

    scan = making.scan_shard
    monkeypatch.setattr(making, "scan_shard", scan_or_die)
    with pytest.raises(UserError, match=naming("files", "killed")):
        open_index(lines, tmp_path / "index", "files", 2)
    monkeypatch.setattr(making, "scan_shard", scan)
    open_index(lines, tmp_path / "index", "files", 2)
    assert len(ids(lines, tmp_path / "index")) == 16


def test_worker_processes_end_with_their_parent(lines, tmp_path, monkeypatch):
    def scan_for_ever(path, *rest):
        (tmp_path / f"{os.getpid()}.pid").touch()
        time.sleep(600)

    monkeypatch.setattr(making, "scan_shard", scan_for_ever)
    first = multiprocessing.get_context("fork").Process(target=open_index, args=(lines, tmp_path / "index", "files", 2))
    first.start()
    waited = time.monotonic() + 30
    while len(started := [int(file.stem) for file in tmp_path.glob("*.pid")]) < 2 and time.monotonic() < waited:
        time.sleep(0.05)
    first.kill()
    first.join()
    while any(is_running(process) for process in started) and time.monotonic() < waited:
        time.sleep(0.05)
    assert len(started) == 2 and not any(is_running(process) for process in started)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_on_disks_without_locks_the_index_of_another_process_is_used(lines, tmp_path, monkeypatch, caplog):
    def lose(*arguments):
        make(*arguments)
        raise FileNotFoundError(2, "another process has replaced the index")

    make = making.build_index
    monkeypatch.setattr(making, "build_index", lose)
    assert open_index(lines, tmp_path / "index", "files").folder is not None
    assert "stay in memory" not in caplog.text


@pytest.mark.parametrize(("bound", "value"), [("_SHARDS_IN_MEMORY", 8), ("_BYTES_IN_MEMORY", 100)])
def test_an_index_of_many_shards_that_cannot_be_written_is_an_error(
    lines, tmp_path, monkeypatch, bound, value, scanned
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(making, bound, value)
    message = (
        rf"^files: the index of 9 shards of 0.0 GB cannot be kept in {tmp_path / 'file'} \(File exists\), and every process .*; "
        "set data.cache_index to a writable folder with enough space$"
    )
    with pytest.raises(UserError, match=message):
        open_index(lines, tmp_path / "file", "files")
    assert scanned == []


def test_entries_next_to_the_shards_are_used_if_no_index_can_be_written(lines, tmp_path, monkeypatch, scanned):
    making.write_entries(tmp_path, 1)
    (tmp_path / "file").touch()
    scanned.clear()
    monkeypatch.setattr(making, "_SHARDS_IN_MEMORY", 0)
    expected = ids(lines, tmp_path / "index")
    assert ids(lines, tmp_path / "file") == expected and scanned == []


def test_processes_write_separate_files_and_remove_files_of_killed_processes(lines, tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    made = tmp_path / "index" / f"{name_of(lines)}.index"
    others, old = made.with_suffix(".host-1.new"), made.with_suffix(".host-2.new")
    for left in (others, old):
        left.mkdir()
        (left / "starts.npy").touch()
    os.utime(old, (0, 0))
    open_index(lines, tmp_path / "index", "files")
    assert (others / "starts.npy").exists() and not old.exists()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_shard_that_changes_while_it_is_indexed_is_reported(lines, tmp_path, monkeypatch, when):
    def change(*_):
        with lines[3].open("a") as file:
            file.write("{}\n")

    if when == "before":
        scan = making.scan_shard
        monkeypatch.setattr(
            making, "scan_shard", lambda path, *rest: (path == lines[3] and change(), scan(path, *rest))[1]
        )
    else:
        scan = scanning._scan_lines
        monkeypatch.setattr(scanning, "_scan_lines", lambda path: (scan(path), path == lines[3] and change())[0])
    with pytest.raises(UserError, match=naming("files", "3.jsonl", "changed")):
        open_index(lines, tmp_path / "index", "files")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_equal_the_ones_found_by_tarfile(form, tmp_path):
    rng, path = random.Random(form), tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for number in range(60):
            kind = rng.choice(["plain", "plain", "long", "deep", "folder", "link", "empty", "ünï"])
            name = {"long": "n" * 99, "deep": f"{'d' * 120}/{number}", "ünï": f"ü{number}"}.get(kind, f"{number}.txt")
            if kind == "long" and form != tarfile.USTAR_FORMAT:
                name *= 2
            info = tarfile.TarInfo(name)
            if kind in ("folder", "link"):
                info.type, info.linkname = (tarfile.DIRTYPE, "") if kind == "folder" else (tarfile.SYMTYPE, "0.txt")
                tar.addfile(info)
                continue
            content = b"" if kind == "empty" else rng.randbytes(rng.randrange(1500))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset, m.offset_data, m.size, m.isfile()) for m in tar.getmembers()]
    found, at = [], 0
    with path.open("rb") as file:
        while (member := next_member(file, at)) is not None:
            found.append((member.name, member.start, member.content, member.size, member.is_file))
            at = member.end
    assert found == expected


def test_members_of_a_record_share_their_name_up_to_the_first_dot(tmp_path):
    def group(name: str, kind: bytes = tarfile.REGTYPE) -> str | None:
        info = tarfile.TarInfo(name)
        info.type = kind
        (tmp_path / "a").write_bytes(info.tobuf(tarfile.GNU_FORMAT))
        with (tmp_path / "a").open("rb") as file:
            return group_of(next_member(file, 0))

    assert group("a/b.c.jpg") == group("a/b.txt") == "a/b" != group("c/b.txt")
    assert group("a/.hidden") is None and group("a/b", tarfile.DIRTYPE) is None
