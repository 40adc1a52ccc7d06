"""Blocks are prefetched before they are read."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dataset.config import RemoteConfig, StreamConfig
from dataset.examples import Account
from dataset.shards.blocks import BlockOrder
from dataset.shards.readers import Shards
from dataset.shards.remote import ahead as remote_ahead
from dataset.shards.remote import server as remote_server
from dataset.shards.remote import shards as remote_shards
from dataset.shards.remote.ahead import Prefetcher
from dataset.tasks.streams.opening import open_stream
from tests.messages import OneLine, naming
from utils.block_cache import BlockCache
from utils.errors import UserError

RECORDS = 120


@pytest.fixture
def stream(server, monkeypatch, tmp_path):
    """Returns a function that opens 100-byte records, served in blocks of 300 bytes, with blocks of 20 records as the order."""
    pytest.importorskip("aiohttp")
    for module in (remote_server, remote_shards):
        monkeypatch.setattr(module, "BLOCK_BYTES", 300)
    monkeypatch.setattr(remote_server, "_FIRST_WAIT_S", 0.001)
    lines = [json.dumps({"n": number, "x": ""}).ljust(99) for number in range(RECORDS)]
    (server.folder / "a.jsonl").write_text("\n".join(lines) + "\n")

    def opened(ahead: int, order: str = "blocks", cache: str = "blocks", **remote):
        config = RemoteConfig(cache=str(tmp_path / cache), ahead=ahead, **remote)
        shards = Shards([f"{server.url}/a.jsonl"], index_folder=tmp_path / "index", remote=config)
        options = {"lanes": 2, "block_records": 20} if order == "blocks" else {}
        return open_stream(
            StreamConfig(files=["a"], batch_size=5, order=order, **options),
            shards,
            name="images",
            seed=0,
            ranks=1,
            step=2,
        )

    opened(0, cache="of-index")
    server.requests = 0
    return opened


def read(source, numbers) -> list[int]:
    account = Account()
    return [n for number in numbers for n in source.examples(number, account, lambda raw, _: raw.values["n"])]


def wait_until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 5 s")


def blocks_of(folder: Path) -> int:
    return sum(file.is_file() and len(file.name) == 40 for file in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["random", "blocks"])
@pytest.mark.parametrize("fault", ["", "503", "cut"])
def test_prefetching_returns_the_same_records_and_fetches_each_block_once(stream, server, order, fault, tmp_path):
    expected = read(stream(0, order, "none"), range(30))
    server.fault = lambda number: fault if number % 4 == 1 else ""
    server.requests, server.sent = 0, type(server.sent)()
    assert read(stream(3, order), range(30)) == expected
    wait_until(lambda: blocks_of(tmp_path / "blocks") == RECORDS // 3)
    assert fault or server.requests == RECORDS // 3


def test_records_that_are_read_half_a_window_later_are_prefetched(stream, server, tmp_path):
    """Here a lane is a single window of 60 records, so half a window is 6 micro-batches."""
    source = stream(2)
    read(source, [0])
    expected = {record // 3 for number in range(0, 14, 2) for _, record in source.order.batch(number)}
    wait_until(lambda: blocks_of(tmp_path / "blocks") >= len(expected))
    asked = server.requests
    read(stream(0), range(0, 14, 2))
    assert server.requests == asked == len(expected)


def test_without_threads_nothing_is_prefetched(stream, tmp_path):
    source = stream(0)
    source.examples(0, Account(), lambda raw, _: raw.values["n"])
    time.sleep(0.05)
    assert blocks_of(tmp_path / "blocks") == len({record // 3 for _, record in source.order.batch(0)})


@pytest.mark.slow
def test_prefetching_hides_the_delay_of_a_slow_server(stream, server):
    server.fault = lambda number: "slow"

    def seconds(ahead: int) -> float:
        source, started = stream(ahead, cache=f"cache-{ahead}"), time.perf_counter()
        read(source, range(24))
        return time.perf_counter() - started

    assert seconds(8) < 0.5 * seconds(0)


def test_an_error_of_prefetching_is_raised_by_the_reader(stream, server):
    source = stream(4, retry_minutes=0)
    server.fault = lambda number: "403"
    with pytest.raises(UserError, match=naming("a.jsonl", "status 403 Forbidden")):
        read(source, [0])


def test_upcoming_batches_are_half_a_window_ahead_in_the_same_lane():
    order = BlockOrder([400], 5, lanes=2, block_records=4, step=2, seed=0, stream="images")
    assert order.window_records == 64
    assert list(order.to_prefetch(7, first=False)) == [7 + 6 * 2]
    assert list(order.to_prefetch(7, first=True)) == list(range(7, 20, 2))
    assert {order.lane(number) for number in order.to_prefetch(7, first=True)} == {1}


def test_prefetching_does_not_change_the_order():
    plain, ahead = (
        BlockOrder([400, 31], 5, lanes=2, block_records=4, step=2, seed=0, stream="images") for _ in range(2)
    )
    for number in range(400):
        for later in ahead.to_prefetch(number, first=number < 2):
            ahead.batch(later)
        assert ahead.batch(number) == plain.batch(number)


def test_threads_that_need_the_same_block_fetch_it_once(tmp_path):
    cache, fetched = BlockCache(tmp_path, 1 << 20), []

    def fetch() -> bytes:
        fetched.append(1)
        time.sleep(0.05)
        return b"block"

    threads = [threading.Thread(target=cache.ensure, args=(f"{1:040x}", 5, fetch)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert cache.get(f"{1:040x}", 5, fetch) == b"block"
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_a_process_forked_during_a_fetch_holds_no_lock(tmp_path):
    cache, go = BlockCache(tmp_path, 1 << 20), multiprocessing.get_context("fork").Event()
    processes = []

    def fetch() -> bytes:
        processes.append(multiprocessing.get_context("fork").Process(target=go.wait, args=(20,)))
        processes[0].start()
        return b"block"

    cache.get(f"{1:040x}", 5, fetch)
    next(tmp_path.rglob(f"{1:040x}")).unlink()
    done = threading.Thread(target=BlockCache(tmp_path, 1 << 20).ensure, args=(f"{1:040x}", 5, lambda: b"block"))
    done.start()
    done.join(5)
    assert not done.is_alive()
    go.set()
    processes[0].join()


@pytest.mark.parametrize("fault", ["full", "outage"])
def test_prefetching_pauses_while_it_fails_and_then_continues(fault, monkeypatch, caplog):
    monkeypatch.setattr(remote_ahead, "_PAUSE_S", 0.3)
    ahead, brought, faulty = Prefetcher(1), [], [True]

    def bring(number: int) -> bool:
        brought.append((number, time.monotonic()))
        if faulty[0] and fault == "outage":
            raise UserError("gave up")
        return not faulty[0]

    for number in range(3):
        ahead.submit(number, lambda number=number: bring(number))
        wait_until(lambda: brought)
        time.sleep(0.02)
    assert [number for number, _ in brought] == [0]
    faulty[0] = False
    wait_until(lambda: time.monotonic() > brought[0][1] + 0.35)
    ahead.submit(3, lambda: bring(3))
    expected = [0, 3] if fault == "full" else [0, 1, 2, 3]
    wait_until(lambda: [number for number, _ in brought] == expected)
    assert brought[1][1] - brought[0][1] >= 0.3
    assert len(caplog.messages) == 1 and caplog.messages[0] == OneLine("0.3 s")


def test_a_block_is_requested_once():
    ahead, brought = Prefetcher(2), []
    for number in [1, 2, 1, 2, 1]:
        ahead.submit(number, lambda number=number: brought.append(number) or True)
    wait_until(lambda: len(brought) == 2)
    time.sleep(0.02)
    assert sorted(brought) == [1, 2]


@pytest.mark.slow
def test_a_process_ends_quietly_while_blocks_are_fetched(stream, server, tmp_path):
    stream(0)  # builds the index
    server.fault = lambda number: "slow"
    lines = [
        "from dataset.shards.readers import Shards",
        "from dataset.shards.remote import server, shards",
        "from dataset.shards.remote.server import RemoteConfig",
        "server.BLOCK_BYTES = shards.BLOCK_BYTES = 300",
        f"remote = RemoteConfig(cache={str(tmp_path / 'other')!r}, ahead=4)",
        f"made = Shards(['{server.url}/a.jsonl'], index_folder={str(tmp_path / 'index')!r}, remote=remote)",
        "for number in range(len(made)):",
        "    made.prefetch(number)",
        "made.read(0)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("blocks", ("files", "2.00 GB", "1.99 GB", "lanes")),
        ("random", ("files", "order: random", "2.00 GB", "order: blocks")),
    ],
)
def test_a_cache_that_is_too_small_is_reported_at_the_start(stream, order, message, caplog):
    """A lane is a single window of 60 records, so all blocks are in use."""
    shards = stream(0, order).records
    assert shards.cached_bytes == 100 * RECORDS and not caplog.text
    shards.cached_bytes = 2_000_000_000
    options = {"lanes": 2, "block_records": 20} if order == "blocks" else {}
    config = StreamConfig(files=["a"], batch_size=5, order=order, **options)
    for cache_gb, reported in ((2.01, False), (1.99, True)):
        shards.remote = RemoteConfig(cache_gb=cache_gb)
        open_stream(config, shards, name="images", seed=0, ranks=1, step=2)
        assert bool(OneLine(*message) in caplog.messages) == reported


def test_records_in_use_are_one_and_a_half_windows_per_lane():
    order = BlockOrder([4000], 5, lanes=2, block_records=10, step=2, seed=0, stream="images")
    assert {len(order.window(0, position).records) for position in range(0, 2000, 100)} <= set(range(170, 191))
    assert order.records_in_use == 2 * (181 + 90)
