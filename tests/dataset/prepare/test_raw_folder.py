"""Official files that occur more than once below a folder."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import pytest

from dataset.prepare.raw_folder import RawFolder
from tests.dataset.prepare.official import write
from utils.errors import UserError


def zipped(path: Path, member: str, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, text)
    return path


def gzipped(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_two_different_copies_of_an_official_file_are_rejected_with_both_paths(tmp_path):
    first, second = write(tmp_path / "a/image_data.json", "[1]"), write(tmp_path / "b/image_data.json", "[1, 2]")
    with pytest.raises(UserError) as error:
        RawFolder([tmp_path]).need("image_data.json")
    for fact in (str(first), str(second), "3 bytes", "6 bytes", "remove"):
        assert fact in str(error.value)
    with pytest.raises(UserError, match="differ"):
        RawFolder([tmp_path / "a", tmp_path / "b"]).find("image_data.json")


@pytest.mark.parametrize(
    "pack", [gzipped, lambda path, text: zipped(path.with_suffix(".zip"), "x/image_data.json", text)]
)
def test_a_compressed_copy_is_compared_with_the_uncompressed_one(pack, tmp_path):
    plain = write(tmp_path / "image_data.json", "[1, 2]")
    pack(tmp_path / "packed/image_data.json.gz", "[1, 2]")
    found = RawFolder([tmp_path]).find("image_data.json")
    assert found is not None and (found.path, found.member) == (plain, None)
    write(plain, "[2, 1]")  # the same length
    with pytest.raises(UserError, match="differ"):
        RawFolder([tmp_path]).find("image_data.json")


def test_equal_copies_and_links_count_as_one_file(tmp_path):
    first = write(tmp_path / "a/image_data.json", "[1]")
    write(tmp_path / "b/image_data.json", "[1]")
    (tmp_path / "c").mkdir()
    os.symlink(first, tmp_path / "c/image_data.json")
    found = RawFolder([tmp_path]).find("image_data.json")
    assert found is not None and found.path == first


def test_the_inner_one_of_two_nested_folders_with_the_same_name_is_used(tmp_path):
    root = tmp_path / "refcoco"
    own, _ = write(root / "refcoco/instances.json", "[1]"), write(root / "refcoco+/instances.json", "[2]")
    found = RawFolder([root]).find("instances.json", below="refcoco")
    assert found is not None and found.path == own


def test_a_text_and_a_different_gzipped_text_are_rejected(tmp_path):
    path = write(tmp_path / "train.en", "a dog\n")
    gzipped(tmp_path / "train.en.gz", "a dog\n")
    file = RawFolder([tmp_path]).find("train.en")
    assert [line for _, line in file.lines()] == ["a dog"]
    gzipped(tmp_path / "train.en.gz", "a cat\n")
    with pytest.raises(UserError) as error:
        RawFolder([tmp_path]).find("train.en")
    assert f"{path}.gz" in str(error.value) and "differ" in str(error.value)
