"""Shards on a server: the records are the same as on disk, whatever the server does."""

from __future__ import annotations

import importlib
import io
import json
import multiprocessing
import pickle
import random
import shutil
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from dataset.config import DataConfig, RemoteConfig, TextStreamConfig
from dataset.loaders import BatchLoader
from dataset.prepare.frame_files import outputs_of_shards
from dataset.shards.readers import Shards
from dataset.shards.remote import server as remote_server
from dataset.shards.remote import shards as remote_shards
from dataset.shards.remote.requests import Files, RequestError
from dataset.shards.remote.shards import find_remote
from dataset.tasks.pretrain import PretrainBatches
from tasks.data_identity import data_identity
from tests.messages import OneLine, naming
from utils.addresses import is_url
from utils.errors import UserError
from utils.inputs import check_inputs

BLOCK = 3000


@pytest.fixture
def small_blocks(monkeypatch):
    for module in (remote_server, remote_shards):
        monkeypatch.setattr(module, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(remote_server, "_FIRST_WAIT_S", 0.001)


@pytest.fixture
def served(server, small_blocks) -> Path:
    """Two tars and a file of JSON lines, each larger than a block."""
    pytest.importorskip("aiohttp")
    rng = random.Random(0)
    for shard in range(2):
        with tarfile.open(server.folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(20):
                for suffix, content in [
                    ("jpg", rng.randbytes(rng.randrange(4000))),
                    ("txt", f"{shard} {number}".encode()),
                ]:
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    lines = [
        "",
        *(json.dumps({"n": n, "x": "ö" * rng.randrange(900)}, ensure_ascii=False) for n in range(30)),
        "  ",
        '{"n": 30}',
    ]
    (server.folder / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return server.folder


@pytest.fixture
def open_remote(server, tmp_path):
    def opened(*names: str, ask_servers: bool = False, **options) -> Shards:
        options = {"cache": str(tmp_path / "blocks"), "timeout_s": 5, "retry_minutes": 1, **options}
        files = [name if is_url(name) else f"{server.url}/{name}" for name in names]
        return Shards(
            files,
            key="data.images.files",
            index_folder=tmp_path / "index",
            remote=RemoteConfig(**options),
            ask_servers=ask_servers,
        )

    return opened


ALL = ("{000..001}.tar", "lines.jsonl")


def contents(shards: Shards, order=None) -> list:
    read = [shards.read(number) for number in (range(len(shards)) if order is None else order)]
    return [(record.values, record.image, record.text, record.location.rpartition("/")[2]) for record in read]


@pytest.fixture
def local(served, tmp_path) -> list:
    files = [str(served / name) for name in ("000.tar", "001.tar", "lines.jsonl")]
    return contents(Shards(files, index_folder=tmp_path / "local"))


def test_members_of_a_record_that_are_apart_are_read_from_a_server(served, open_remote):
    members = [("a.jpg", b"A" * BLOCK), ("b.jpg", b"B" * BLOCK), ("a.txt", b"of a"), ("a.json", b'{"id": 1}')]
    with tarfile.open(served / "apart.tar", "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    record = open_remote("apart.tar").read(0)
    assert (record.image, record.text, record.values) == (b"A" * BLOCK, "of a", {"id": 1})


def test_a_server_returns_the_same_records_as_the_disk(local, open_remote, server, served):
    shards = open_remote(*ALL)
    assert shards.sizes == [20, 20, 31]
    assert contents(shards) == local
    assert shards.exact_location(3) == f"{server.url}/000.tar:3.jpg"
    for name in ("000.tar", "lines.jsonl"):
        assert server.sent[name] <= (served / name).stat().st_size + 2, (
            "each block is requested once, and one byte for each file's version"
        )


def test_a_second_run_sends_no_requests(local, open_remote, server):
    contents(open_remote(*ALL))
    asked = server.requests
    assert contents(open_remote(*ALL)) == local
    assert server.requests == asked


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "short", "unsized", "elsewhere", "packed", "slow"])
def test_failed_requests_are_repeated(local, open_remote, server, fault, caplog):
    server.fault = lambda number: fault if number % 3 == 1 else ""
    assert contents(open_remote(*ALL)) == local
    assert fault == "slow" or OneLine("retrying", "1") in caplog.messages


@pytest.mark.parametrize("fault", ["stall", "silent"])
def test_a_request_without_an_answer_times_out(local, open_remote, server, fault):
    server.fault = lambda number: fault if number in (1, 7) else ""
    assert contents(open_remote(*ALL, timeout_s=0.3)) == local


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", ("/000.tar", "status 500", "6 requests")),
        ("elsewhere", ("/000.tar", "bytes 1-1", "bytes 0-0")),
        ("403", ("/000.tar", "403 Forbidden")),
        ("whole", ("/000.tar", "200", "ranges")),
    ],
)
def test_a_server_that_keeps_failing_is_reported_in_one_line(served, open_remote, server, fault, message):
    server.fault = lambda number: fault
    with pytest.raises(UserError, match=naming("data.images.files", *message)) as caught:
        open_remote("000.tar")
    assert "\n" not in str(caught.value)
    assert server.requests == (6 if fault in ("500", "elsewhere") else 1)


def test_a_missing_file_or_server_is_reported_in_one_line(served, open_remote):
    with pytest.raises(UserError, match=naming("gone.tar", "status 404 Not Found")):
        open_remote("gone.tar")
    with pytest.raises(UserError, match=naming("http://127.0.0.1:9/a.tar", "6 requests")):
        open_remote("http://127.0.0.1:9/a.tar", retry_minutes=600)


def test_a_run_waits_out_a_long_outage(local, open_remote, server, monkeypatch):
    """The server has answered before, and then 40 requests in a row fail."""
    monkeypatch.setattr(remote_server, "_LONGEST_WAIT_S", 0.01)
    server.fault = lambda number: "503" if 3 <= number < 43 else ""
    assert contents(open_remote(*ALL)) == local


def test_an_outage_longer_than_configured_is_reported_in_one_line(served, open_remote, server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_server, "_LONGEST_WAIT_S", 0.05)
    shards = open_remote("000.tar", retry_minutes=0.02)
    shutil.rmtree(tmp_path / "blocks")
    server.fault = lambda number: "503"
    with pytest.raises(UserError, match=naming("000.tar", "status 503", "1 s", "data.remote.retry_minutes")):
        contents(shards)


@pytest.mark.parametrize(("status", "after", "waits"), [("503", "1", True), ("429", "1", True), ("500", "1", False)])
def test_a_request_to_a_busy_server_is_repeated_after_the_requested_time(
    served, open_remote, server, monkeypatch, status, after, waits
):
    slept = []
    monkeypatch.setattr(remote_server.time, "sleep", slept.append)
    server.retry_after, server.fault = after, lambda number: status if number == 0 else ""
    open_remote("000.tar")
    assert (slept == [1.0]) == waits and len(slept) == 1


def test_time_spent_waiting_for_another_process_counts_towards_the_limit(served, open_remote, server):
    """Otherwise a worker would wait twice as long and be killed."""
    remote = open_remote("000.tar").paths[0]._server
    server.fault = lambda number: "503"
    address = f"{server.url}/000.tar"
    with pytest.raises(UserError, match=r"gave up after 1 request over 6\d s"):
        remote.request(address, lambda files: files.read(address, 0, 1), wait_started=time.monotonic() - 60)


def test_workers_are_not_killed_while_they_repeat_a_request():
    texts = {"files": ["https://host/a.jsonl"], "batch_size": 2}
    with pytest.raises(ValueError, match=r"remote.retry_minutes = 10 is 600 s, and worker_timeout_s = 600: .*; lower"):
        DataConfig(texts=texts, remote=RemoteConfig(retry_minutes=10))
    DataConfig(texts={**texts, "files": ["a.jsonl"]}, worker_timeout_s=3)
    DataConfig(texts=texts, remote=RemoteConfig(retry_minutes=10), worker_timeout_s=601)


def test_a_changed_shard_is_reported_and_indexed_again_on_request(served, open_remote, server, tmp_path):
    open_remote("000.tar")
    (served / "000.tar").write_bytes((served / "001.tar").read_bytes())
    server.marks["000.tar"] = '"2"'
    stale = open_remote("000.tar", cache=str(tmp_path / "other"))
    with pytest.raises(UserError, match=naming("000.tar", "python run.py")):
        stale.read(0)
    fresh = open_remote("000.tar", ask_servers=True)
    assert fresh.read(3).text == "1 3"


def test_a_run_resumes_in_the_middle_of_a_block(local, open_remote, server):
    """The order is random and some requests fail."""
    server.fault = lambda number: "503" if number % 5 == 0 else ""
    order = np.random.default_rng(1).permutation(71).tolist()
    first = open_remote(*ALL)
    assert contents(first, order[:37]) == [local[n] for n in order[:37]]
    again = pickle.loads(pickle.dumps(open_remote(*ALL)))
    assert contents(again, order[37:]) == [local[n] for n in order[37:]]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["random", "blocks"])
def test_a_loader_resumes_in_the_middle_of_a_block(served, server, tokenizer, tmp_path, order):
    """With more ranks, with workers, with an empty cache, and with failing requests."""
    lines = [json.dumps({"text": f"a red star number {n}"}) for n in range(400)]
    (served / "texts.jsonl").write_text("\n".join(lines))

    def locations(url: str, cache: str, first: int, ranks: int, workers: int) -> list[list[str]]:
        lanes = {"lanes": 4, "block_records": 50} if order == "blocks" else {}
        texts = TextStreamConfig(files=[f"{url}/texts.jsonl"], batch_size=2, order=order, **lanes)
        folders = {"cache_index": str(tmp_path / "index"), "remote": RemoteConfig(cache=str(tmp_path / cache))}
        data = DataConfig(texts=texts, workers=workers, **folders)
        read: dict[int, list[str]] = {}
        for rank in range(ranks):
            maker = PretrainBatches(
                data, tokenizer=tokenizer, image_size=16, patch_size=8, seed=3, world_size=ranks, accumulate=4 // ranks
            )
            loader = BatchLoader(maker, data, rank=rank, world_size=ranks)
            for number, batch in enumerate(loader.batches(first, (240 - first) // ranks)):
                read[first + number * ranks + rank] = [place.rpartition("/")[2] for place in batch.records]
        return [read[number] for number in sorted(read)]

    straight = locations(str(served), "none", 0, 1, 0)
    server.fault = lambda number: "cut" if number % 3 == 0 else ""
    assert locations(server.url, "first", 0, 1, 0) == straight
    assert locations(server.url, "second", 52, 2, 2) == straight[52:]


def test_a_run_notices_that_remote_data_changed(served, server, tmp_path):
    texts = TextStreamConfig(files=[f"{server.url}/{{000..001}}.tar"], batch_size=2)
    data = DataConfig(texts=texts)
    check_inputs(data)
    before = data_identity(data)
    assert data_identity(data) == before
    server.marks["001.tar"] = '"2"'
    assert data_identity(data) != before


def _compare(shards: Shards, local: list) -> None:
    assert contents(shards) == local


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_other_processes_use_separate_connections(local, open_remote, server, start_method, tmp_path):
    shards = open_remote(*ALL)
    assert contents(shards, range(5)) == local[:5]
    if start_method == "spawn":  # a spawned process does not have this test's size of blocks
        shards = pickle.loads(pickle.dumps(shards))
    context = multiprocessing.get_context(start_method)
    processes = [context.Process(target=_compare, args=(shards, local)) for _ in range(3)]
    for process in processes:
        process.start()
    assert contents(shards) == local
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3


def test_a_line_longer_than_a_scanned_piece_is_one_record(served, open_remote, server, monkeypatch, local):
    import dataset.shards.scanning

    monkeypatch.setattr(dataset.shards.scanning, "_SCAN_BYTES", 7)
    assert contents(open_remote(*ALL)) == local


def test_an_empty_file_has_no_records(served, open_remote, server):
    (served / "empty.jsonl").touch()
    assert open_remote("empty.jsonl", "lines.jsonl").sizes == [0, 31]


@pytest.mark.slow
def test_query_strings_are_sent_but_not_shown(served, open_remote, server, caplog):
    shards = open_remote("000.tar?signature=secret")
    assert shards.read(0).location == f"{server.url}/000.tar:0.jpg"
    server.fault = lambda number: "403"
    with pytest.raises(UserError) as caught:
        open_remote("001.tar?signature=secret")
    server.fault = lambda number: "302"  # always to the same URL
    with pytest.raises(UserError, match="TooManyRedirects") as sent_on:
        open_remote("001.tar?signature=secret")
    assert "secret" not in str(caught.value) + str(sent_on.value) + caplog.text
    with pytest.raises(UserError, match="has more than") as too_many:
        open_remote("{0..1000000}.tar?signature=secret")
    assert "secret" not in str(too_many.value)
    with pytest.raises(UserError, match="fsspec: Protocol not known") as unknown:
        open_remote("nothing://host/000.tar?signature=secret", protocols=["nothing"])
    assert "secret" not in str(unknown.value)


def test_brackets_in_the_host_of_a_url_are_not_a_pattern():
    shards = find_remote("http://[::1]:9/{0..1}.tar", remote_server.Server(RemoteConfig(), "files"))
    assert [str(shard) for shard in shards] == ["http://[::1]:9/0.tar", "http://[::1]:9/1.tar"]


def test_several_threads_may_detect_a_shorter_object_at_once(monkeypatch):
    pytest.importorskip("fsspec")
    store = Files("memory", 5)
    store._files.pipe_file("/a.tar", b"content")
    assert store.read("memory://a.tar", 0, 4).content == b"cont"
    monkeypatch.setattr(store._files, "cat_file", lambda *_, **__: store._states.clear() or b"")
    with pytest.raises(RequestError, match=naming("0 bytes", "0-3")):
        store.read("memory://a.tar", 0, 4)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("ftp://host/a.tar", ("ftp://host/a.tar", "http, https, s3", "data.remote.protocols")),
        ("file:///etc/a.tar", ("file:///etc/a.tar", "http, https, s3")),
        ("https://me:secret@host/a.tar", ("https", "password")),
        ("https://host/{0..9999999}.tar", ("1,000,000 files",)),
        ("https://host/a.tar.gz", ("https://host/a.tar.gz", "compressed")),
        ("https://host/a.csv", ("https://host/a.csv",)),
        ("https://host/{0..1}/{5..1}.tar", ("{5..1}", "smaller number first")),
        ("http://host:99999/a.tar", ("data.images.files", "http://host:99999/a.tar", "0-65535")),
        ("http://host:port/a.tar", ("http://host:port/a.tar", "Port")),
        ("http://me:secret@[::1/a.tar", ("IPv6",)),
    ],
)
def test_invalid_urls_are_reported_in_one_line(open_remote, entry, message):
    with pytest.raises(UserError, match=naming(*message)) as caught:
        open_remote(entry)
    assert "secret" not in str(caught.value)


def test_a_repeated_url_is_reported_in_one_line(open_remote):
    with pytest.raises(UserError, match=naming("https://host/1.tar", "twice")):
        open_remote(*["https://host/{1..1}.tar"] * 2)


def test_http_does_not_support_patterns(served, open_remote):
    with pytest.raises(UserError, match=naming("/*.tar", "HTTP", "{00000..00127}")):
        open_remote("*.tar")


@pytest.mark.parametrize(("address", "package"), [("https://host/a.tar", "aiohttp"), ("s3://bucket/a.tar", "s3fs")])
def test_a_missing_package_is_reported_with_the_remedy(open_remote, monkeypatch, address, package):
    monkeypatch.setitem(sys.modules, package, None)  # importing the package fails
    imported = importlib.import_module("fsspec.registry")._registry  # fsspec keeps the classes that it has imported
    monkeypatch.delitem(imported, "s3", raising=False)
    with pytest.raises(UserError, match=naming(package, 'pip install -e ".[remote]"')):
        open_remote(address)


def test_frames_are_extracted_only_from_local_shards():
    with pytest.raises(UserError, match=naming("--records", "https://host/a.jsonl")):
        outputs_of_shards(["https://host/a.jsonl"], making=None)
