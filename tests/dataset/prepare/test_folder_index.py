"""Prepared records come with an index, so that a run does not have to scan them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dataset.prepare import line_shards
from dataset.shards import making
from dataset.shards.readers import Shards
from tests.dataset.prepare import official
from tests.dataset.prepare.official import prepared, records


@pytest.fixture
def folders(tmp_path, monkeypatch) -> list[Path]:
    """Two folders of three shards with blank lines, each with its index."""
    made = []
    for name in ("b", "a"):
        made.append(tmp_path / name)
        made[-1].mkdir()
        for shard in range(3):
            rows = [json.dumps({"id": f"{name}{shard}{row}"}) for row in range(shard + 1)]
            (made[-1] / f"part-{shard}.jsonl").write_text("\n\n".join(rows) + "\n")
        making.write_entries(made[-1], 1)
    return made


def ids(files: list[Path], index: Path) -> list[str]:
    shards = Shards(list(map(str, files)), index_folder=index)
    return [shards.read(number).values["id"] for number in range(len(shards))]


EXPECTED = [f"{name}{shard}{row}" for name in "ba" for shard in range(3) for row in range(shard + 1)]


def test_a_list_of_folders_with_indexes_is_not_scanned(folders, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(making, "scan_shard", lambda *_: pytest.fail("scanned"))
        assert ids(folders, tmp_path / "index") == EXPECTED
        assert ids([folders[1] / "part-2.jsonl", folders[0] / "part-0.jsonl"], tmp_path / "index") == [
            "a20",
            "a21",
            "a22",
            "b00",
        ]
    copied = Path(shutil.copytree(folders[0], tmp_path / "copied"))  # including the modification times
    with monkeypatch.context() as patched:
        patched.setattr(making, "scan_shard", lambda *_: pytest.fail("scanned"))
        assert ids([copied], tmp_path / "index") == EXPECTED[:6]


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_shards_are_scanned_if_they_changed_or_the_index_is_damaged(folders, tmp_path, damage, monkeypatch):
    scanned, scan = [], making.scan_shard
    monkeypatch.setattr(making, "scan_shard", lambda path, *rest: scanned.append(path.name) or scan(path, *rest))
    entry, shard = folders[0] / "_prepare/index/part-1.jsonl", folders[0] / "part-1.jsonl"
    expected = EXPECTED[:6]
    if damage == "changed":
        shard.write_text('{"id": "new"}\n')
        expected = ["b00", "new", "b20", "b21", "b22"]
    elif damage == "cut":
        entry.write_bytes(entry.read_bytes()[:-8])
    else:
        entry.unlink()
    assert ids(folders[:1], tmp_path / "index") == expected
    assert scanned == ["part-1.jsonl"]


def test_prepare_writes_the_index_and_restores_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)
    raw, out = official.everything(tmp_path / "raw"), tmp_path / "out"
    prepared("coco", raw, out)
    expected = records(out / "coco")
    for again in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(making, "scan_shard", lambda *_: pytest.fail("scanned"))
            shards = Shards([str(out / "coco"), str(out / "coco_regions")], index_folder=tmp_path / f"index{again}")
            assert [shards.read(number).values for number in range(len(expected))] == expected
        shutil.rmtree(out / "coco/_prepare/index")
        prepared("coco", raw, out)
