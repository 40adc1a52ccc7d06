"""Shards in an S3-compatible store on the local machine."""

from __future__ import annotations

import http.client
import io
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dataset.config import RemoteConfig
from dataset.shards.readers import Shards
from dataset.shards.remote import server as remote_server
from dataset.shards.remote import shards as remote_shards
from tests.messages import OneLine, naming
from utils.errors import UserError


@pytest.fixture
def bucket(monkeypatch):
    """Two shards and other files. The credentials and the server's URL are in the environment."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    for module in (remote_server, remote_shards):
        monkeypatch.setattr(module, "BLOCK_BYTES", 300)
    monkeypatch.setattr(remote_server, "_FIRST_WAIT_S", 0.001)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    for shard in range(2):
        lines = [json.dumps({"n": f"{shard}-{row}", "x": "x" * 50}) for row in range(12)]
        client.put_object(Bucket="data", Key=f"set/{shard}.jsonl", Body="\n".join(lines).encode())
    client.put_object(Bucket="data", Key="set/0.csv", Body=b"table")
    yield client
    server.stop()


@pytest.fixture
def open_remote(tmp_path):
    def opened(*files: str, ask_servers: bool = False, **options) -> Shards:
        remote = RemoteConfig(**{"cache": str(tmp_path / "blocks"), "retry_minutes": 0.02, "timeout_s": 5, **options})
        return Shards(
            files, key="data.texts.files", index_folder=tmp_path / "index", remote=remote, ask_servers=ask_servers
        )

    return opened


EXPECTED = [f"{shard}-{row}" for shard in range(2) for row in range(12)]


def ids(shards: Shards) -> list[str]:
    return [shards.read(number).values["n"] for number in range(len(shards))]


@pytest.mark.parametrize("entry", ["s3://data/set/*.jsonl", "s3://data/set/", "s3://data/set/{0..1}.jsonl"])
def test_patterns_prefixes_and_ranges_of_s3_are_read(bucket, open_remote, entry):
    shards = open_remote(entry)
    assert ids(shards) == EXPECTED
    assert shards.read(13).location == "s3://data/set/1.jsonl:2"


def _compare(shards: Shards) -> None:
    assert ids(shards) == EXPECTED


def test_a_forked_process_reads_from_s3(bucket, open_remote, tmp_path):
    open_remote("s3://data/set/")
    shards = open_remote("s3://data/set/", protocols=["s3"])
    assert shards.read(0).values["n"] == "0-0"
    process = multiprocessing.get_context("fork").Process(target=_compare, args=(shards,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_missing_objects_are_reported_in_one_line(bucket, open_remote):
    for entry, message in [
        ("s3://data/gone.jsonl", r"^data.texts.files: s3://data/gone.jsonl: FileNotFoundError: .*; check the URL"),
        ("s3://data/gone/*.tar", r"^data.texts.files: no file matches s3://data/gone/\*.tar; check the pattern"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            open_remote(entry)
        assert "\n" not in str(caught.value)


def test_a_changed_object_is_reported(bucket, open_remote):
    shards = open_remote("s3://data/set/")
    bucket.put_object(Bucket="data", Key="set/0.jsonl", Body=b'{"n": "new"}\n')
    [block.unlink() for block in shards.index.folder.parent.parent.glob("blocks/[0-9]*/*")]
    with pytest.raises(UserError, match=naming("s3://data/set/0.jsonl", "changed")):
        ids(open_remote("s3://data/set/"))
    assert ids(open_remote("s3://data/set/", ask_servers=True)) == ["new", *EXPECTED[12:]]


class Forwarder(ThreadingHTTPServer):
    """Forwards requests to a store. ``fault(number)`` returns the fault for an answer with content, counted from 0."""

    daemon_threads = True

    def __init__(self, to: str):
        super().__init__(("127.0.0.1", 0), _Forwarding)
        self.to, self.answers = to.removeprefix("http://"), 0
        self.fault = lambda number: ""

    def handle_error(self, *_: object) -> None:
        """Ignores clients that disconnect."""


class _Forwarding(BaseHTTPRequestHandler):
    server: Forwarder
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        store = http.client.HTTPConnection(self.server.to)
        store.request(self.command, self.path, headers=dict(self.headers))
        answer = store.getresponse()
        content, fault = answer.read(), ""
        if self.command == "GET" and "Range" in self.headers:
            fault = self.server.fault(self.server.answers)
            self.server.answers += 1
        self.send_response(int(fault) if fault.isdigit() else answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "stall":
            time.sleep(1)
        self.wfile.write(content[: len(content) // 2] if fault in ("cut", "stall") else content)
        self.close_connection = fault in ("cut", "stall")

    do_HEAD = do_GET  # noqa: N815 (name required by the base class)


@pytest.fixture
def forwarder(bucket, monkeypatch) -> Iterator[Forwarder]:
    with Forwarder(bucket.meta.endpoint_url) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.server_address[1]}")
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.mark.parametrize("fault", ["500", "503", "cut", "stall"])
def test_requests_with_a_failed_answer_are_repeated(forwarder, open_remote, fault, caplog):
    forwarder.fault = lambda number: fault if number in (1, 4) else ""
    # A busy machine may need seconds for an answer, so requests are repeated for up to a minute.
    assert ids(open_remote("s3://data/set/", timeout_s=0.5, retry_minutes=1)) == EXPECTED
    assert OneLine("retrying", "1") in caplog.messages


def test_a_store_that_keeps_failing_is_reported_in_one_line(forwarder, open_remote):
    forwarder.fault = lambda number: "503"
    with pytest.raises(
        UserError, match=r"^data.texts.files: s3://data/set/0.jsonl: .*; gave up after 6 requests"
    ) as caught:
        open_remote("s3://data/set/0.jsonl", retry_minutes=1)  # a busy machine may need seconds for six requests
    assert "\n" not in str(caught.value)
    assert forwarder.answers == 6, "the filesystem itself must not repeat requests"


def test_rows_of_parquet_files_are_read_from_s3(bucket, open_remote):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(pa.table({"n": range(30), "x": ["x" * row for row in range(30)]}), file, row_group_size=10)
    bucket.put_object(Bucket="data", Key="tables/0.parquet", Body=file.getvalue())
    shards = open_remote("s3://data/tables/")
    assert [shards.read(row).values["n"] for row in reversed(range(30))] == list(reversed(range(30)))
    assert shards.read(7).location == "s3://data/tables/0.parquet:row 7"
