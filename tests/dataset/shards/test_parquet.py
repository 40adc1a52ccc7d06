"""Parquet files as shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dataset.shards.parquet as parquet_shards
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import ImageKeys, RawRecord, image_source
from dataset.shards.readers import Shards
from dataset.shards.remote.server import RemoteConfig

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 40


def image(row: int) -> bytes:
    """Bytes of different lengths, which are no image."""
    return bytes([row]) * (50 + 7 * row % 90)


def columns(rows: int = ROWS) -> dict[str, list]:
    """Columns of the kinds that data sets have; some values are null."""
    return {
        "n": list(range(rows)),
        "caption": [None if row % 7 == 3 else f"größer {row % 5}" for row in range(rows)],
        "captions": [[f"a {row}", "b"] for row in range(rows)],
        "image": [{"bytes": image(row), "path": f"{row}.jpg" if row % 2 else None} for row in range(rows)],
        "raw": [image(row) for row in range(rows)],
        "elems": [
            [{"caption": {"en": "x", "de": None}, "bb": [1.0, 2.0, 3.0, float(row)], "grain": None}] * (row % 3)
            for row in range(rows)
        ],
    }


def expected(row: int) -> dict:
    values = {
        "n": row,
        "captions": [f"a {row}", "b"],
        "image": {"bytes": image(row)} | ({"path": f"{row}.jpg"} if row % 2 else {}),
        "raw": image(row),
        "elems": [{"caption": {"en": "x"}, "bb": [1.0, 2.0, 3.0, float(row)]}] * (row % 3),
    }
    return values | ({} if row % 7 == 3 else {"caption": f"größer {row % 5}"})


def write(path: Path, rows: int = ROWS, group: int = 10, **options) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns(rows)), path, row_group_size=group, **options)
    return str(path)


@pytest.fixture
def opened(tmp_path):
    def open_shards(*files: str, cache: str = "blocks", **remote) -> Shards:
        config = RemoteConfig(cache=str(tmp_path / cache), **{"retry_minutes": 0.02, "timeout_s": 5, **remote})
        return Shards(files, key="data.images.files", index_folder=tmp_path / "index", remote=config)

    return open_shards


@pytest.fixture(params=[None, 300, 1])
def pieces(request, monkeypatch):
    """The size of a piece: one of a whole row group, of a few rows, of a single row."""
    if request.param is not None:
        monkeypatch.setattr(parquet_shards, "PIECE_BYTES", request.param)


@pytest.mark.parametrize("group", [1, 7, 10, 100])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_any_row_by_number_is_what_was_written(opened, tmp_path, pieces, group, compression):
    first = write(tmp_path / "a.parquet", group=group, compression=compression, use_dictionary=group != 7)
    second = write(tmp_path / "b.parquet", rows=3, group=2, write_page_checksum=True)
    shards = opened(first, second)
    assert shards.sizes == [ROWS, 3]
    for number in np.random.default_rng(group).permutation(ROWS + 3).tolist():
        raw = shards.read(number)
        file, row = (first, number) if number < ROWS else (second, number - ROWS)
        assert raw == RawRecord(expected(row), f"{file}:row {row}", tmp_path)
        assert shards.location(number) == shards.exact_location(number) == raw.location


def test_columns_stored_as_dictionaries_and_large_types(opened, tmp_path):
    table = pa.table(
        {
            "caption": pa.array(["a", "b", None, "a"]).dictionary_encode(),
            "image": pa.array([b"x", None, b"yy", b""], pa.large_binary()),
            "long": pa.array(["l", "m", None, "n"], pa.large_string()),
            "no": pa.nulls(4),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    shards = opened(str(tmp_path))
    assert [shards.read(row).values for row in range(4)] == [
        {"caption": "a", "image": b"x", "long": "l"},
        {"caption": "b", "long": "m"},
        {"image": b"yy"},
        {"caption": "a", "image": b"", "long": "n"},
    ]


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (b"jpeg", b"jpeg"),
        ({"bytes": b"jpeg", "path": "a.jpg"}, b"jpeg"),
        ({"bytes": b"jpeg"}, b"jpeg"),
        ({"path": "a.jpg"}, b"a file"),
        ("a.jpg", b"a file"),
        ("/9j/AAAA", b"\xff\xd8\xff\x00\x00\x00"),
    ],
)
def test_an_image_is_bytes_a_struct_a_path_or_base64(tmp_path, value, content):
    (tmp_path / "a.jpg").write_bytes(b"a file")
    assert image_source(RawRecord({"image": value}, "f:row 0", tmp_path), ImageKeys()).load() == content


@pytest.mark.parametrize(
    ("value", "kind"),
    [(b"", "missing image"), ({}, "missing image"), ({"bytes": b""}, "missing image"), ({"url": "x"}, "wrong type")],
)
def test_an_image_without_content_is_a_broken_record(tmp_path, value, kind):
    with pytest.raises(BrokenRecordError, match=kind):
        image_source(RawRecord({"image": value}, "f:row 0", tmp_path), ImageKeys())


def test_an_image_larger_than_the_limit_is_a_broken_record(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.records.schema.IMAGE_BYTES", 3)
    with pytest.raises(BrokenRecordError, match="unreadable image: image has 4 bytes"):
        image_source(RawRecord({"image": b"jpeg"}, "f:row 0", tmp_path), ImageKeys())
