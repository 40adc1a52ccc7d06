"""Data sets on the Hub, served by a local server that imitates the Hub."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

import dataset.shards.remote.hub as hub
from dataset.config import RemoteConfig, StreamConfig
from dataset.shards.readers import Shards
from dataset.shards.remote.hub import HubEntry, pinned
from tasks.pinned import PINS, with_pinned_data
from tests.messages import OneLine, naming
from utils.config import Config
from utils.errors import UserError
from utils.inputs import InputWeightedShards

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 6


def parquet(first: int) -> bytes:
    stream = io.BytesIO()
    images = [{"bytes": b"%d" % (first + row), "path": None} for row in range(ROWS)]
    pq.write_table(pa.table({"n": range(first, first + ROWS), "image": images}), stream, row_group_size=4)
    return stream.getvalue()


class FakeHub(ThreadingHTTPServer):
    """A Hub that hosts the data set ``org/pairs``.

    Attributes:
        commits: the files of each commit.
        head: the commit of the main branch.
        asked: the paths of all requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        card = b"---\nlicense: cc-by-4.0\n---\n# Pairs\n"
        files = {"README.md": card, "data/train-00000-of-00002.parquet": parquet(0)}
        files |= {"data/train-00001-of-00002.parquet": parquet(ROWS), "data/test-00000-of-00001.parquet": parquet(100)}
        self.commits = {"a" * 40: files, "b" * 40: files | {"data/train-00000-of-00002.parquet": parquet(50)}}
        self.head, self.asked = "a" * 40, list[str]()
        self.gated: str | bool = False
        self.licence: str | list[str] | None = "cc-by-4.0"
        self.tokens: set[str | None] = set()

    def handle_error(self, *_: object) -> None:
        """Ignores clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def do_GET(self) -> None:
        self._respond(body=True)

    def _respond(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if path == "/":
            self._answer(200, b"", {}, body)
            return
        about = re.fullmatch(r"/api/datasets/org/pairs(?:/revision/([^/]+))?", path)
        tree = re.fullmatch(r"/api/datasets/org/pairs/tree/([^/]+)", path)
        file = re.fullmatch(r"/datasets/org/pairs/resolve/([^/]+)/(.+)", path)
        found = about or tree or file
        commit = self._commit(found[1]) if found else None
        if found is None or commit is None:
            error = "RevisionNotFound" if found else "RepoNotFound"
            self._answer(404, b"{}", {"X-Error-Code": error}, body)
            return
        files = self.server.commits[commit]
        if about:
            values = {"id": "org/pairs", "sha": commit, "gated": self.server.gated, "private": False}
            values["cardData"] = {} if self.server.licence is None else {"license": self.server.licence}
            values["siblings"] = [{"rfilename": name} for name in files]
            self._answer(200, json.dumps(values).encode(), {"Content-Type": "application/json"}, body)
        elif tree:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{abs(hash(content)):040x}"}
                for name, content in files.items()
            ]
            self._answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, body)
        else:
            assert file is not None
            self._answer_file(files[file[2]], commit, body)

    def _commit(self, revision: str | None) -> str | None:
        commit = self.server.head if revision in (None, "main") else revision
        return commit if commit in self.server.commits else None

    def _answer_file(self, content: bytes, commit: str, body: bool) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        headers = {"ETag": f'"{hash(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not body:
            self._answer(200, content, headers, body)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], headers, body)

    def _answer(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[FakeHub]:
    for variable in ("http_proxy", "HTTP_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    hub._log_once.cache_clear()
    with FakeHub() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield running
        running.shutdown()


@pytest.fixture
def opened(server, tmp_path):
    def open_shards(entry: str, **remote) -> Shards:
        config = RemoteConfig(cache=str(tmp_path / "blocks"), **{"retry_minutes": 0.02, "timeout_s": 5, **remote})
        return Shards([entry], key="data.images.files", index_folder=tmp_path / "index", remote=config)

    return open_shards


def ids(shards: Shards) -> list[int]:
    return [shards.read(number).values["n"] for number in range(len(shards))]


TRAIN = list(range(2 * ROWS))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("hf:org/pairs", TRAIN),
        ("hf:org/pairs/data", [*range(100, 100 + ROWS), *TRAIN]),
        ("hf:org/pairs/data/test-*", list(range(100, 100 + ROWS))),
        ("hf:org/pairs/data/train-00001-of-00002.parquet", TRAIN[ROWS:]),
        (f"hf:org/pairs@{'b' * 40}", [*range(50, 50 + ROWS), *TRAIN[ROWS:]]),
    ],
)
@pytest.mark.parametrize("mode", ["stream", "download"])
def test_an_entry_resolves_to_files_of_a_commit(opened, server, entry, expected, mode):
    shards = opened(entry, hub=mode)
    assert ids(shards) == expected
    commit = "b" * 40 if "@" in entry else "a" * 40
    assert commit in shards.read(0).location  # so that resumed runs and caches know which version was read
    assert isinstance(shards.paths[0], Path) == (mode == "download")


def test_downloaded_files_are_read_without_network(opened, server, monkeypatch, caplog):
    opened("hf:org/pairs", hub="download")
    hub._log_once.cache_clear()  # as in a new process
    server.asked.clear()
    with caplog.at_level(logging.INFO):
        assert ids(opened("hf:org/pairs")) == TRAIN
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert ids(opened("hf:org/pairs/data/train-*")) == TRAIN
    assert not server.asked
    assert "2 files of commit " + "a" * 40 + ", from the Hub cache" in caplog.text
    assert caplog.text.count("licence of org/pairs: cc-by-4.0, according to its card") == 1


def test_files_missing_from_the_cache_are_noticed(opened, server):
    opened("hf:org/pairs/data/train-00001*", hub="download")
    assert ids(opened("hf:org/pairs")) == TRAIN


@pytest.mark.parametrize(
    ("licence", "line"),
    [
        ("mit", "licence of org/pairs: mit, according to its card"),
        (["mit", "cc0-1.0"], "licence of org/pairs: mit, cc0-1.0, according to its card"),
        (None, "licence of org/pairs: not stated on its card"),
    ],
)
def test_the_licence_is_logged_once(opened, server, caplog, licence, line):
    server.licence = licence
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            opened("hf:org/pairs")
    assert caplog.text.count(line) == 1


def test_a_local_copy_has_its_training_split_and_logs_the_licence(tmp_path, server, caplog):
    caplog.set_level(logging.INFO, "dataset.shards.remote.hub")
    for name, content in server.commits["a" * 40].items():
        (tmp_path / "pairs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pairs" / name).write_bytes(content)
    shards = Shards([str(tmp_path / "pairs")], key="data.images.files", index_folder=tmp_path / "index")
    assert [shards.read(number).values["n"] for number in range(len(shards))] == list(range(2 * ROWS))
    assert f"licence of {tmp_path / 'pairs'}: cc-by-4.0, according to its card" in caplog.text


def test_a_missing_data_set_revision_or_file_is_reported_in_one_line(opened, server):
    with pytest.raises(UserError, match=naming("data.images.files", "hf:org/none", "no data set")) as missing:
        opened("hf:org/none")
    with pytest.raises(UserError, match=naming("hf:org/pairs@v9", "no such revision")) as revision:
        opened("hf:org/pairs@v9")
    with pytest.raises(UserError, match=naming("hf:org/pairs/x-*", "3 Parquet files", "refs/convert/parquet")) as file:
        opened("hf:org/pairs/x-*")
    with pytest.raises(UserError, match=naming("hf:pairs", "hf:ORG/NAME")) as form:
        opened("hf:pairs")
    for raised in (missing, revision, file, form):
        assert OneLine(raised)


def test_the_error_for_a_gated_data_set_links_to_its_terms(opened, server, tmp_path):
    server.gated = "auto"
    with pytest.raises(UserError, match=naming("gated", "/datasets/org/pairs", "hf auth login")):
        opened("hf:org/pairs")
    (tmp_path / "token").write_text("hf_secret")
    assert ids(opened("hf:org/pairs")) == TRAIN
    assert server.tokens == {"Bearer hf_secret"}


def test_an_uncached_entry_without_network_is_reported_in_one_line(opened, server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=naming("org/pairs", "HF_HUB_OFFLINE is set", "copy the files")):
        opened("hf:org/pairs")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=naming("org/pairs", "cannot be reached")):
        opened("hf:org/pairs")


@pytest.mark.parametrize("entry", ["hf:org/pairs", "hf:org/pairs@main/data/train-*", "hf:org/pairs@refs/pr/1/data"])
def test_an_entry_is_saved_as_it_was_written(entry):
    assert str(HubEntry.parse(entry, "k")) == entry


class Data(Config):
    images: StreamConfig


class Run(Config):
    data: Data
    others: InputWeightedShards


def test_a_resumed_run_reads_the_commit_that_it_started_with(server, tmp_path):
    config = Run(
        data=Data(images=StreamConfig(files=["hf:org/pairs", "a.tar"], batch_size=1)),
        others=[{"path": "hf:org/pairs/data", "weight": 2}],
    )
    begun = with_pinned_data(config, tmp_path, resumes=False)
    assert begun.data.images.files == [f"hf:org/pairs@{'a' * 40}", "a.tar"]
    assert begun.others[0].path == f"hf:org/pairs@{'a' * 40}/data"
    server.head = "b" * 40
    assert with_pinned_data(config, tmp_path, resumes=True) == begun
    assert with_pinned_data(config, tmp_path, resumes=False).data.images.files[0] == f"hf:org/pairs@{'b' * 40}"
    assert json.loads((tmp_path / PINS).read_text())["hf:org/pairs"] == f"hf:org/pairs@{'b' * 40}"
    assert pinned(f"hf:org/pairs@{'a' * 40}", "k") == f"hf:org/pairs@{'a' * 40}"
