"""A digest of the training files changes with them."""

from __future__ import annotations

import shutil

import pytest

from tasks.data_identity import SAMPLED_BYTES, data_identity
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
        (tmp_path / f"{name}.jsonl").write_text("x" * 3 * SAMPLED_BYTES)
    return Data(train=str(tmp_path / "train.json"), images=str(tmp_path / "images"), files=[str(tmp_path / "*.jsonl")])


def test_the_same_files_have_the_same_digests_wherever_they_lie(data, tmp_path):
    before = data_identity(data)
    assert before.keys() == {"data.train", "data.files"}
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path, moved, ignore=lambda *_: ["moved"])
    there = Data(train=str(moved / "train.json"), images=str(moved), files=[str(moved / "*.jsonl")])
    assert data_identity(there) == before


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("train.json", lambda text: text.replace("2", "3"), "data.train"),
        ("a.jsonl", lambda text: "y" + text[1:], "data.files"),
        ("b.jsonl", lambda text: text[:-1] + "y", "data.files"),
        ("b.jsonl", lambda text: text + "x", "data.files"),
    ],
)
def test_a_change_shows(data, tmp_path, name, change, key):
    before = data_identity(data)
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    after = data_identity(data)
    assert {each for each in before if before[each] != after[each]} == {key}


def test_a_shard_more_shows(data, tmp_path):
    before = data_identity(data)
    (tmp_path / "c.jsonl").touch()
    assert data_identity(data)["data.files"] != before["data.files"]
