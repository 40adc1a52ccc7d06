"""The digest of the training files changes with their content."""

from __future__ import annotations

import os
import shutil

import pytest

from dataset.config import BLOCK_BYTES
from tasks.data_identity import SAMPLED_BLOCKS, data_identity
from utils.config import Config
from utils.inputs import InputFile, InputFolder, InputShards


class Data(Config):
    train: InputFile
    images: InputFolder
    files: InputShards


@pytest.fixture
def data(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "train.json").write_text("[1, 2]")
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("x" * 3 * BLOCK_BYTES)
    return Data(train=str(tmp_path / "train.json"), images=str(tmp_path / "images"), files=[str(tmp_path / "*.jsonl")])


def test_the_same_files_have_the_same_digests_in_any_folder(data, tmp_path):
    before = data_identity(data)
    assert before.keys() == {"data.train", "data.files", "data.images"}
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path, moved, ignore=lambda *_: ["moved"])
    there = Data(train=str(moved / "train.json"), images=str(moved / "images"), files=[str(moved / "*.jsonl")])
    assert data_identity(there) == before


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("train.json", lambda text: text.replace("2", "3"), "data.train"),
        ("a.jsonl", lambda text: "y" + text[1:], "data.files"),
        ("b.jsonl", lambda text: text[:-1] + "y", "data.files"),
        ("b.jsonl", lambda text: text + "x", "data.files"),
        ("b.jsonl", lambda text: text[:100_000] + "y" + text[100_001:], "data.files"),
    ],
)
def test_a_change_is_detected(data, tmp_path, name, change, key):
    before = data_identity(data)
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    after = data_identity(data)
    assert {each for each in before if before[each] != after[each]} == {key}


def test_an_additional_shard_is_detected(data, tmp_path):
    before = data_identity(data)
    (tmp_path / "c.jsonl").touch()
    assert data_identity(data)["data.files"] != before["data.files"]


def test_a_change_in_a_large_file_is_detected_if_it_exceeds_the_gaps_between_blocks(data, tmp_path):
    size = 3 * SAMPLED_BLOCKS * BLOCK_BYTES
    (tmp_path / "a.jsonl").write_bytes(bytes(size))
    before = data_identity(data)["data.files"]
    for start in (size // 3, size - 3 * BLOCK_BYTES):
        content = bytearray(size)
        content[start : start + 3 * BLOCK_BYTES] = b"y" * 3 * BLOCK_BYTES
        (tmp_path / "a.jsonl").write_bytes(content)
        assert data_identity(data)["data.files"] != before


def test_a_replaced_image_is_detected_and_a_changed_time_is_ignored(data, tmp_path):
    (tmp_path / "images" / "below").mkdir()
    image = tmp_path / "images" / "below" / "1.jpg"
    image.write_bytes(b"one")
    before = data_identity(data)
    os.utime(image, (1, 1))
    assert data_identity(data) == before
    image.write_bytes(b"two")
    after = data_identity(data)
    assert {key for key in after if after[key] != before[key]} == {"data.images"}


def test_a_replaced_image_of_a_record_is_detected(data, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"image": "images/1.jpg", "caption": "a dog"}\n')
    (tmp_path / "images" / "1.jpg").write_bytes(b"one")
    before = data_identity(data)
    (tmp_path / "images" / "1.jpg").write_bytes(b"two")
    assert data_identity(data)["data.files"] != before["data.files"]
