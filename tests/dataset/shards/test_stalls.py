"""If a shard stalls, the message names the record that was being read, not the record before it."""

from __future__ import annotations

import io
import tarfile
import time
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from dataset.config import RemoteConfig
from dataset.examples import Account, RecordStream
from dataset.shards import readers
from dataset.shards.readers import Shards
from dataset.shards.samplers import RandomOrder
from dataset.workers import in_workers
from tests.messages import OneLine


def write_tar(path: Path, count: int) -> str:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    return str(path)


def batch(source: RecordStream, number: int) -> list[str | None]:
    return source.examples(number, Account(), lambda raw, rng: raw.location)


def first_warning(source: RecordStream, caplog) -> str:
    """The first warning about a lost worker, where a worker reads the records one by one."""
    batches = in_workers(partial(batch, source), range(len(source)), 1, timeout_s=1)
    for _ in batches:
        if caplog.messages:
            break
    batches.close()
    return caplog.messages[0]


def records(source: RecordStream) -> list[int]:
    """The index of each batch's record, in order."""
    return [index for number in range(len(source)) for _, index in source.order.batch(number)]


class StallOnce:
    """Opens shards. The first process that reads from ``stalled`` waits forever."""

    def __init__(self, stalled: str, mark: Path):
        self.stalled, self.mark, self.open = stalled, mark, readers.open_shard

    def __call__(self, path: Any, *rest: Any) -> BinaryIO:
        file = self.open(path, *rest)
        if str(path) == self.stalled and not self.mark.exists():
            self.mark.touch()
            file.read = lambda *_: time.sleep(60)  # type: ignore[method-assign]
        return file


def test_the_stalled_record_of_a_local_tar_is_named(tmp_path, caplog, monkeypatch):
    tars = [write_tar(tmp_path / name, 3) for name in ("a.tar", "b.tar")]
    shards = Shards(tars, index_folder=tmp_path / "index")
    source = RecordStream(shards, RandomOrder(6, 1, seed=0, stream="texts"), name="texts", seed=0)
    order = records(source)
    first = next(index for index in order if (index < 3) != (order[0] < 3))  # not the first record of the run
    stalled = tars[first // 3]
    monkeypatch.setattr(readers, "open_shard", StallOnce(stalled, tmp_path / "mark"))
    assert first_warning(source, caplog) == OneLine("worker 0", f"{stalled}: record {first % 3}")


def test_the_stalled_record_of_a_remote_tar_is_named(server, tmp_path, caplog):
    pytest.importorskip("aiohttp")
    for name in ("a.tar", "b.tar"):
        write_tar(server.folder / name, 3)
    urls = [f"{server.url}/{name}" for name in ("a.tar", "b.tar")]
    remote = RemoteConfig(cache=str(tmp_path / "blocks"), timeout_s=60, retry_minutes=1, ahead=0)
    shards = Shards(urls, index_folder=tmp_path / "index", remote=remote)
    source = RecordStream(shards, RandomOrder(6, 1, seed=0, stream="texts"), name="texts", seed=0)
    order = records(source)
    first = next(index for index in order if (index < 3) != (order[0] < 3))
    for block in (tmp_path / "blocks").rglob("*"):  # building the index has read them
        if block.is_file():
            block.unlink()
    asked = server.requests
    server.fault = lambda number: "hang" if number == asked + 1 else ""
    assert first_warning(source, caplog) == OneLine("worker 0", f"{urls[first // 3]}: record {first % 3}")
