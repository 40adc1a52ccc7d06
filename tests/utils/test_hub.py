"""Models are given by folder or by name on the Hub. A path is never requested from the Hub, and without network an error is
raised quickly."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.messages import OneLine, naming
from utils.errors import UserError
from utils.hub import local_folder, looks_like_path


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def asked(monkeypatch) -> Iterator[list[str]]:
    """A Hub without any models, and the list of requests that it received."""
    paths: list[str] = []

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD  # noqa: N815 - the name that the server calls

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield paths
    server.shutdown()
    server.server_close()


def test_a_folder_is_returned_unchanged(tmp_path, asked):
    assert local_folder(str(tmp_path), ["vocab.txt"], "k") == tmp_path
    assert not asked


@pytest.mark.parametrize(
    "name",
    ["data/scenes/tokenizer", "data/tokenizer", "runs/x", "./x", "../x/y", "~/x", "/x", "a/b/c", "vocab.txt", "x.json"],
)
def test_a_path_never_becomes_a_request(name, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=naming("model.text.encoder", name)):
        local_folder(name, ["vocab.txt"], "model.text.encoder")
    assert not asked


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased", "FacebookAI/xlm-roberta-base"])
def test_names_on_the_hub_are_not_paths(name):
    assert not looks_like_path(name)


def test_the_first_part_of_a_path_may_be_an_existing_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_like_path("mine/bert")
    Path("mine").mkdir()
    assert looks_like_path("mine/bert")


def test_without_network_the_error_is_one_line_and_quick(monkeypatch):
    """The slowest kind of missing network is a server that accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("utils.hub.REACH_S", 0.3)
        started = time.monotonic()
        with pytest.raises(UserError) as error:
            local_folder("bert-base-uncased", ["vocab.txt"], "model.text.encoder")
        assert time.monotonic() - started < 20, "the default timeout of the libraries is much longer"
    message = str(error.value)
    assert message == OneLine("model.text.encoder", "bert-base-uncased", "http://127.0.0.1")
    assert "\n" not in message


def test_models_that_the_hub_does_not_have_are_reported_in_one_line(asked):
    with pytest.raises(UserError, match=naming("init.text", "no/such-model")) as error:
        local_folder("no/such-model", ["model.safetensors"], "init.text")
    assert asked
    assert "\n" not in str(error.value)
