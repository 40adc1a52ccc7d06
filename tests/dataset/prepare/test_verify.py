"""Images are decoded once to find broken ones and copies. Images that did not change are not decoded again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dataset.prepare import line_shards, verify
from dataset.prepare.verify import Verified, verify_images
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, prepared, records


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)
    monkeypatch.setattr(verify, "in_order", official.in_this_process)


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """An intact image, its copy, a truncated one, a text, an empty file, and another intact image."""
    paths = [tmp_path / f"images/{name}.jpg" for name in "abcdef"]
    official.image(paths[0], 1)
    shutil.copy(paths[0], paths[1])
    official.image(paths[2], 2)
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    paths[3].write_text("<html>not found</html>")
    paths[4].touch()
    official.image(paths[5], 3)
    return paths


def names(results: dict[Path, Verified]) -> dict[str, str]:
    return {path.stem: result.fault for path, result in results.items() if result.fault}


EXPECTED = dict.fromkeys("cde", "unreadable image")


def test_broken_images_are_found_and_copies_share_a_hash(images, tmp_path):
    results = verify_images(images, tmp_path / "notes", 1)
    assert names(results) == EXPECTED
    hashes = [results[path].content for path in images]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 5


def test_only_images_that_changed_are_decoded_again(images, tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    verify_images(images, notes, 1)
    decoded = []
    fault = verify.image_fault
    monkeypatch.setattr(verify, "image_fault", lambda content, place: (decoded.append(place), fault(content, place))[1])
    official.image(images[3], 9)
    os.utime(images[5], ns=(1, 1))
    assert names(verify_images(images, notes, 1)) == {key: EXPECTED[key] for key in "ce"}
    assert decoded == [str(images[3]), str(images[5])]


def test_truncated_notes_are_rebuilt(images, tmp_path):
    notes = tmp_path / "notes"
    verify_images(images, notes, 1)
    whole = notes.read_bytes()
    for length in range(0, len(whole), 37):
        notes.write_bytes(whole[:length])
        assert names(verify_images(images, notes, 1)) == EXPECTED
        assert names(verify_images(images, notes, 1)) == EXPECTED


def test_notes_in_another_format_are_ignored(images, tmp_path):
    notes = tmp_path / "notes"
    notes.write_text('{"a": 1}\n["x"]\n[]\n3\n[[1], 2, 3, "", ""]\nžluť\n')
    assert names(verify_images(images, notes, 1)) == EXPECTED


def test_images_that_fail_verification_are_excluded_and_counted(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    official.coco(raw)
    official.karpathy(raw)
    official.references(raw)
    (raw / official.coco_name(73)).write_bytes(b"\xff\xd8\xff broken")
    shutil.copy(raw / official.coco_name(25), raw / official.coco_name(42))
    prepared("coco", raw, out, verify=True, without=("refcoco", "refcoco+"))
    assert {record["coco_id"] for record in records(out / "coco")} == {9, 30}
    assert counted(out / "coco")["skipped"]["unreadable image"] == 1
    shutil.copy(raw / official.coco_name(9), raw / official.coco_name(30))
    prepared("coco", raw, out, verify=True, without=("refcoco", "refcoco+"), overwrite=True)
    assert {record["coco_id"] for record in records(out / "coco")} == {9}
    assert counted(out / "coco")["skipped"]["duplicate image"] == 1


def test_a_copy_of_an_image_in_another_folder_does_not_remove_its_record(tmp_path):
    """COCO 2014 and COCO 2017 contain the same files."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    official.coco(raw)
    official.karpathy(raw)
    official.references(raw)
    (raw / "a").mkdir()
    shutil.copy(raw / official.coco_name(9), raw / "a/000000000009.jpg")
    prepared("coco", raw, out, verify=True)
    assert {record["coco_id"] for record in records(out / "coco")} == {9, 73}


def test_a_copy_of_a_held_out_image_under_another_name_is_excluded(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    official.coco(raw)
    official.karpathy(raw)
    official.references(raw)
    shutil.copy(raw / official.coco_name(42), raw / official.coco_name(73))  # 42 is in Karpathy's test split
    prepared("coco", raw, out, verify=True)
    assert {record["coco_id"] for record in records(out / "coco")} == {9}
    assert counted(out / "coco")["skipped"]["held out by COCO (Karpathy) test (a copy)"] == 1
