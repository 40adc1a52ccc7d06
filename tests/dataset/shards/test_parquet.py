"""Parquet files as shards."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import dataset.shards.finding as finding
import dataset.shards.parquet as parquet_shards
import dataset.tasks.streams.opening as base
from dataset.broken import BrokenRecordError
from dataset.config import RemoteConfig, StreamConfig
from dataset.examples import Account
from dataset.records.schema import ImageKeys, RawRecord, image_source
from dataset.shards.finding import find_shards
from dataset.shards.parquet import runs_of_groups
from dataset.shards.readers import Shards
from dataset.shards.remote import server as remote_server
from dataset.shards.remote import shards as remote_shards
from dataset.shards.remote.shards import RemoteShard
from dataset.tasks.streams.opening import open_stream
from tests.messages import OneLine, naming
from utils.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 40


def image(row: int) -> bytes:
    """Random bytes of different lengths that are not an image."""
    return bytes([row]) * (50 + 7 * row % 90)


def columns(rows: int = ROWS) -> dict[str, list]:
    """Columns of all types that data sets use, with some null values."""
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


def test_a_column_that_occurs_twice_is_an_error(tmp_path, opened):
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["caption", "caption"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=naming("data.images.files", "a.parquet", "caption", "rename")):
        opened(str(tmp_path / "a.parquet"))


@pytest.fixture
def opened(tmp_path):
    def open_shards(*files: str, cache: str = "blocks", in_order: bool = False, **remote) -> Shards:
        config = RemoteConfig(cache=str(tmp_path / cache), **{"retry_minutes": 0.02, "timeout_s": 5, **remote})
        index = tmp_path / "index"
        return Shards(files, key="data.images.files", index_folder=index, remote=config, in_order=in_order)

    return open_shards


@pytest.fixture(params=[None, 300, 1])
def pieces(request, monkeypatch):
    """The size of a piece: a whole row group, a few rows, or a single row."""
    if request.param is not None:
        monkeypatch.setattr(parquet_shards, "PIECE_BYTES", request.param)


@pytest.mark.parametrize("group", [1, 7, 10, 100])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_any_row_can_be_read_by_index(opened, tmp_path, pieces, group, compression):
    first = write(tmp_path / "a.parquet", group=group, compression=compression, use_dictionary=group != 7)
    second = write(tmp_path / "b.parquet", rows=3, group=2, write_page_checksum=True)
    shards = opened(first, second)
    assert shards.sizes == [ROWS, 3]
    for number in np.random.default_rng(group).permutation(ROWS + 3).tolist():
        raw = shards.read(number)
        file, row = (first, number) if number < ROWS else (second, number - ROWS)
        assert raw == RawRecord(expected(row), f"{file}:row {row}", tmp_path)
        assert shards.location(number) == shards.exact_location(number) == raw.location


def test_dictionary_columns_and_large_types_are_read(opened, tmp_path):
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
def test_an_image_may_be_bytes_a_struct_a_path_or_base64(tmp_path, value, content):
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
    monkeypatch.setattr("dataset.media.sources.IMAGE_BYTES", 3)
    with pytest.raises(BrokenRecordError, match="unreadable image: image has 4 bytes"):
        image_source(RawRecord({"image": b"jpeg"}, "f:row 0", tmp_path), ImageKeys())


def test_rows_that_are_read_in_order_are_decoded_once_and_not_cached(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_shards, "PIECE_BYTES", 100)
    decode, decoded = parquet_shards._pieces, []
    monkeypatch.setattr(
        parquet_shards, "_pieces", lambda file, group: decoded.append(group.number) or decode(file, group)
    )
    shards = opened(write(tmp_path / "a.parquet"), in_order=True)
    assert [shards.read(row).values for row in range(ROWS)] == [expected(row) for row in range(ROWS)]
    assert decoded == [0, 1, 2, 3]
    for row in (17, 12, 39, 0):
        assert shards.read(row).values == expected(row)
    assert pickle.loads(pickle.dumps(shards)).read(5).values == expected(5)
    assert not (tmp_path / "blocks").exists()


def test_forked_processes_read_rows_in_order_independently(opened, tmp_path):
    shards = opened(write(tmp_path / "a.parquet"), in_order=True)
    assert shards.read(3).values == expected(3)

    def read_in_child() -> None:
        os._exit(
            0 if [shards.read(row).values for row in range(4, 10)] == [expected(row) for row in range(4, 10)] else 1
        )

    child = multiprocessing.get_context("fork").Process(target=read_in_child)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert [shards.read(row).values for row in range(4, 10)] == [expected(row) for row in range(4, 10)]


@pytest.mark.parametrize("form", ["column", "struct", "dictionary", "list", "pair", "list of structs"])
def test_values_that_a_file_stores_once_are_cached_once(opened, tmp_path, form):
    images = [image(number) * 200 for number in range(8)] + [None]
    values = [images[row // 100] for row in range(900)]
    columns = {
        "column": pa.array(values, pa.binary()),
        "struct": pa.array([None if value is None else {"bytes": value, "path": "a.jpg"} for value in values]),
        "dictionary": pa.array(values, pa.binary()).dictionary_encode(),
        "list": pa.array([None if value is None else [value, None, value] for value in values]),
        "pair": pa.array([None if value is None else [value] * 2 for value in values], pa.list_(pa.binary(), 2)),
        "list of structs": pa.array([None if value is None else [{"bytes": value}] for value in values]),
    }
    table = pa.table({"image": columns[form], "n": list(range(900))})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", dictionary_pagesize_limit=1 << 22)
    shards = opened(str(tmp_path / "a.parquet"))
    for row in np.random.default_rng(0).permutation(900).tolist():
        value = columns[form][row].as_py()
        assert shards.read(row).values == {"n": row, **({} if value is None else {"image": value})}
    cached = sum(path.stat().st_size for path in (tmp_path / "blocks").rglob("*") if path.is_file())
    assert cached < 2 * (tmp_path / "a.parquet").stat().st_size


def wait_until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 5 s")


def test_rows_over_http_are_the_same_and_blocks_are_fetched_once(opened, server, tmp_path, monkeypatch):
    for module in (remote_server, remote_shards):
        monkeypatch.setattr(module, "BLOCK_BYTES", 300)
    write(tmp_path / "served" / "a.parquet", group=7)
    size = (tmp_path / "served" / "a.parquet").stat().st_size
    shards = opened(f"{server.url}/a.parquet", ahead=0)
    server.fault = lambda number: "503" if number % 5 == 1 else ""
    for number in np.random.default_rng(0).permutation(ROWS).tolist():
        raw = shards.read(number)
        assert raw.values == expected(number) and raw.location == f"{server.url}/a.parquet:row {number}"
    assert server.sent["a.parquet"] == size + 1  # the first byte was also read to check the version of the file


def test_a_row_group_is_prefetched(opened, server, tmp_path, monkeypatch):
    for module in (remote_server, remote_shards):
        monkeypatch.setattr(module, "BLOCK_BYTES", 300)
    write(tmp_path / "served" / "a.parquet", group=10)
    shards = opened(f"{server.url}/a.parquet", ahead=2)
    assert shards.prefetches
    shards.prefetch(13)
    group = shards.index.row_group(0, 13)
    blocks = group.end // 300 - group.start // 300 + 1
    wait_until(lambda: server.sent["a.parquet"] >= 300 * (blocks - 1))
    before = server.requests
    assert [shards.read(row).values["n"] for row in range(10, 20)] == list(range(10, 20))
    footer = -(-shards.index.state(0)[0] // 300)
    assert server.requests - before <= footer - group.end // 300
    server.requests = 0
    shards.prefetch(13)  # the row is in the cache
    time.sleep(0.05)
    assert server.requests == 0


def test_a_file_that_changes_on_the_server_is_reported_in_one_line(opened, server, tmp_path):
    write(tmp_path / "served" / "a.parquet")
    shards = opened(f"{server.url}/a.parquet", ahead=0)
    server.marks["a.parquet"] = '"2"'
    with pytest.raises(UserError, match=naming("a.parquet", "has changed since it was indexed")):
        opened(f"{server.url}/a.parquet", cache="other", ahead=0).read(0)
    del shards


def test_a_local_file_that_changes_during_the_run_is_reported_in_one_line(opened, tmp_path):
    file = write(tmp_path / "a.parquet")
    shards = opened(file)
    first = shards.read(0)
    write(tmp_path / "a.parquet", group=3)
    with pytest.raises(UserError, match=naming("a.parquet", "was changed during the run")):
        shards.read(ROWS - 1)
    assert shards.read(0) == first  # from the cache, in the indexed version
    assert opened(file).read(ROWS - 1).values["n"] == ROWS - 1
    os.remove(file)
    with pytest.raises(UserError, match=naming("a.parquet", "can no longer be read")):
        shards.read(ROWS - 1)


@pytest.mark.parametrize("damage", ["cut", "footer", "empty", "text"])
def test_a_file_without_a_readable_footer_is_reported_before_work_starts(opened, tmp_path, damage):
    file = Path(write(tmp_path / "a.parquet"))
    content = file.read_bytes()
    damaged = {
        "cut": content[:-30],
        "footer": content[:-20] + b"\xff" * 12 + content[-8:],
        "empty": b"",
        "text": b"x" * 90,
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=naming("data.images.files", file, "is not a complete Parquet file")):
        opened(str(file))


def damaged_file(folder: Path, row: int, **options) -> str:
    """A file in which the image of one row is damaged. The checksum of its page detects the damage."""
    file = write(
        folder / "a.parquet",
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
        write_statistics=False,
        **options,
    )
    content = bytearray(Path(file).read_bytes())
    at = content.index(image(row))
    content[at : at + 20] = b"\xff" * 20
    Path(file).write_bytes(content)
    return file


@pytest.mark.parametrize("in_order", [False, True])
def test_rows_of_a_damaged_row_group_are_broken_records_and_others_are_read(opened, tmp_path, in_order):
    file = damaged_file(tmp_path, row=13)
    shards = opened(file, in_order=in_order)
    good = [row for row in range(ROWS) if not 10 <= row < 20]
    for row in np.random.default_rng(0).permutation(ROWS).tolist():
        if row in good:
            assert shards.read(row).values == expected(row)
            continue
        with pytest.raises(BrokenRecordError) as raised:
            shards.read(row)
        broken = raised.value
        assert (broken.reason, shards.exact_location(row)) == ("unreadable row group", f"{file}:row {row}")
        assert broken.detail == OneLine("row group 1")


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("first", [10, 19])
def test_rows_before_the_damage_do_not_depend_on_the_order(opened, tmp_path, monkeypatch, first, in_order):
    """If a row group has several pages, the pieces before the damaged page are still decoded."""
    monkeypatch.setattr(parquet_shards, "PIECE_BYTES", 1)
    monkeypatch.setattr(parquet_shards, "_READ_BYTES", 64)
    file = damaged_file(tmp_path, row=17, data_page_size=1, write_batch_size=2)
    shards = opened(file, in_order=in_order)

    def is_read(row: int) -> bool:
        try:
            return shards.read(row).values == expected(row)
        except BrokenRecordError:
            return False

    rows = sorted(range(10, 20), reverse=first == 19)
    found = {row for row in rows if is_read(row)}
    assert found == set(range(10, 16))


def test_broken_rows_do_not_stop_a_batch(opened, tmp_path):
    shards = opened(damaged_file(tmp_path, row=13))
    source = open_stream(stream("random"), shards, name="images", seed=0, ranks=1, step=1)
    account = Account()
    for number in range(ROWS // 4):
        source.examples(number, account, lambda raw, rng: raw.values["n"])
    assert sorted(broken.place for broken in account.broken) == [
        f"{shards.paths[0]}:row {row}" for row in range(10, 20)
    ]
    assert len(account.usable) == ROWS - 10


def stream(order: str, **options) -> StreamConfig:
    blocks = {"lanes": 4, "block_records": 6} if order == "blocks" else {}
    return StreamConfig(files=["x"], batch_size=4, order=order, **blocks, **options)


@pytest.mark.parametrize("order", ["random", "blocks"])
def test_any_number_of_ranks_reads_the_same_batches_with_each_row_once(opened, tmp_path, order):
    files = [write(tmp_path / "a.parquet", group=7), write(tmp_path / "b.parquet", rows=24, group=3)]
    whole = open_stream(stream(order), opened(*files), name="images", seed=0, ranks=1, step=4)
    batches = [[whole.records.read(record).location for record, _ in whole.samples(number)] for number in range(16)]
    assert len({location for batch in batches for location in batch}) == 64
    for ranks in (2, 4):
        for number in (15, 3, 8):  # starts at any batch, with an empty cache
            again = open_stream(
                stream(order), opened(*files, cache=f"{ranks}-{number}"), name="images", seed=0, ranks=ranks, step=4
            )
            assert [again.records.read(record).location for record, _ in again.samples(number)] == batches[number]


def test_blocks_follow_row_groups(opened, tmp_path):
    shards = opened(write(tmp_path / "a.parquet", group=7), write(tmp_path / "b.parquet", rows=30, group=15))
    order = open_stream(stream("blocks"), shards, name="images", seed=0, ranks=1, step=4).order
    borders = {int(first) for lane in order.lanes for first in lane.firsts}
    assert {0, 7, 14, 21, 28, 35, 40, 55} <= borders  # the first rows of all row groups
    assert shards.runs_by_entry(14) == [[14, 14, 12], [15, 15]]
    assert runs_of_groups(np.array([0, 3, 3, 6]), 8, 4) == [3, 3, 2]


def test_large_row_groups_are_rejected_in_a_random_order_with_the_remedy(opened, tmp_path, monkeypatch):
    shards = opened(write(tmp_path / "a.parquet", group=10), write(tmp_path / "b.parquet", group=30))
    limit = int(shards.index.row_groups(0)[:, 1].max())
    monkeypatch.setattr(base, "RANDOM_ROW_GROUP", limit)
    with pytest.raises(UserError, match=naming("b.parquet", "30 rows", "order: blocks", "run.py prepare parquet")):
        open_stream(stream("random"), shards, name="images", seed=0, ranks=1, step=1)
    open_stream(stream("blocks"), shards, name="images", seed=0, ranks=1, step=4)
    open_stream(stream("random"), opened(str(tmp_path / "a.parquet")), name="images", seed=0, ranks=1, step=1)
    monkeypatch.setattr(base, "RANDOM_ROW_GROUP", 10)
    single = opened(write(tmp_path / "c.parquet", group=1))  # they cannot be made smaller
    open_stream(stream("random"), single, name="images", seed=0, ranks=1, step=1)


def _compare(shards: Shards) -> None:
    assert [shards.read(row).values for row in range(ROWS)] == [expected(row) for row in range(ROWS)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same_rows(opened, tmp_path, method):
    shards = opened(write(tmp_path / "a.parquet"))
    shards.read(5)
    process = multiprocessing.get_context(method).Process(target=_compare, args=(shards,))
    process.start()
    _compare(pickle.loads(pickle.dumps(shards)))
    process.join(60)
    assert process.exitcode == 0


def test_a_row_group_is_decoded_once_by_all_processes(opened, tmp_path, monkeypatch):
    file = write(tmp_path / "a.parquet", group=10)
    decoded: list[int] = []
    pieces_of = parquet_shards._pieces
    monkeypatch.setattr(
        parquet_shards, "_pieces", lambda opened, group: decoded.append(group.number) or pieces_of(opened, group)
    )
    for _ in range(2):  # the second object uses the cache of the first, like another process
        shards = opened(file)
        for row in np.random.default_rng(0).permutation(ROWS).tolist():
            shards.read(row)
    assert sorted(decoded) == [0, 1, 2, 3]


def test_an_empty_cache_budget_gives_the_same_rows(opened, tmp_path, monkeypatch, pieces):
    monkeypatch.setattr("utils.block_cache.BlockCache._store", lambda *_: False)
    _compare(opened(write(tmp_path / "a.parquet")))


def test_parquet_files_are_shards_unless_they_are_tables_next_to_tars(tmp_path):
    write(tmp_path / "0.parquet")
    write(tmp_path / "1.parquet")
    (tmp_path / "0.tar").write_bytes(bytes(1024))
    assert [path.name for path in find_shards([str(tmp_path)], "k")] == ["0.tar", "1.parquet"]
    shards = [RemoteShard(f"s3://data/set/{name}", None) for name in ("0.parquet", "0.tar", "1.parquet")]  # type: ignore[arg-type]
    assert [path.name for path in finding._without_companions(shards)] == ["0.tar", "1.parquet"]


def test_without_pyarrow_the_message_names_the_extra(opened, tmp_path, monkeypatch):
    file = write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=naming("data.images.files", "pyarrow", 'pip install -e ".[parquet]"')):
        opened(file)


def test_an_index_of_many_rows_is_built_from_footers(opened, tmp_path):
    table = pa.table({"n": range(200_000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    started = time.perf_counter()
    shards = opened(str(tmp_path / "a.parquet"))
    assert len(shards) / (time.perf_counter() - started) > 60_000
    assert shards.read(123_456).values == {"n": 123_456}
