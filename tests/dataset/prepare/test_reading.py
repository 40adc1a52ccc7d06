"""Each official file is read by a separate process. Results and errors keep their order with any number of processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from dataset.prepare import rows
from dataset.prepare.manifest import read_manifest
from dataset.prepare.processes import WorkerDiedError
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.rows import read_files
from tests.dataset.prepare import official
from tests.dataset.prepare.official import contents, prepared
from tests.messages import naming
from utils.errors import UserError

FORKS = multiprocessing.get_start_method() == "fork"
pytestmark = pytest.mark.skipif(not FORKS, reason="only forked processes know the functions of a test")

FILES = {name: RawFile(Path(f"{name}.json")) for name in ("objects", "attributes", "regions")}


def the_first_is_slow(name: str, file: RawFile) -> str:
    time.sleep(0.2 if name == "objects" else 0)
    return f"{name} of {file}"


def all_but_the_first_are_wrong(name: str, file: RawFile) -> str:
    if name == "objects":
        return the_first_is_slow(name, file)
    raise UserError(f"{file}: wrong")


def killed_at_attributes(name: str, file: RawFile) -> str:
    if name == "attributes":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


@pytest.mark.parametrize("workers", [1, 3])
def test_results_and_errors_are_in_the_order_of_the_files(workers):
    expected = [f"{name} of {name}.json" for name in FILES]
    assert list(read_files(the_first_is_slow, FILES, workers)) == expected
    results = read_files(all_but_the_first_are_wrong, FILES, workers)
    assert next(results) == expected[0]
    with pytest.raises(UserError, match=r"attributes\.json: wrong"):
        next(results)


def test_a_file_whose_process_is_killed_is_named():
    with pytest.raises(WorkerDiedError, match=naming("attributes.json", "killed")):
        list(read_files(killed_at_attributes, FILES, 2))


def fill_after_a_killed_process(read, folder: Path, name: str, file: RawFile):
    """Simulates a process that was killed while it stored the rows of this file."""
    (folder / name).write_bytes(b"SQLite format 3\0 and half of the rest")
    return fill(read, folder, name, file)


fill = rows.fill


def test_visual_genome_is_the_same_with_two_processes_and_after_one_was_killed(tmp_path, monkeypatch):
    raw = official.everything(tmp_path / "raw")
    prepared("visual_genome", raw, tmp_path / "one", workers=1)
    monkeypatch.setattr(rows, "fill", fill_after_a_killed_process)
    prepared("visual_genome", raw, tmp_path / "two", workers=2)
    for name in ("vg", "vg_regions"):
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert contents(one) == contents(two)
        assert read_manifest(one).values["counts"] == read_manifest(two).values["counts"]
        assert sorted(path.name for path in two.iterdir()) == ["_prepare", "part-00000.jsonl"]
