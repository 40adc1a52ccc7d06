"""A saved model on the Hub is downloaded from a local server that imitates it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.messages import naming
from x2vlm import UserError, load

COMMIT = "0" * 40
REPO = "somebody/model"


@pytest.fixture
def hub(model, tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder that the Hub serves as ``somebody/model``."""
    folder = model("grounding").save(tmp_path / "served")

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            files = [file for file in folder.rglob("*") if file.is_file()]
            names = [str(file.relative_to(folder)) for file in files]
            if path == "/":
                return self.send(b"", body)
            if path.startswith(f"/api/models/{REPO}/revision/"):
                entry = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                return self.send(json.dumps(entry).encode(), body)
            if path.startswith(f"/api/models/{REPO}/tree/"):
                sizes = [
                    {"type": "file", "oid": "0", "path": n, "size": f.stat().st_size}
                    for n, f in zip(names, files, strict=True)
                ]
                return self.send(json.dumps(sizes).encode(), body)
            name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
            if name in names:
                return self.send((folder / name).read_bytes(), body)
            return self.send_error(404)

        def send(self, content: bytes, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    of_hub = {"ENDPOINT": address, "HUGGINGFACE_CO_URL_TEMPLATE": files, "HF_HUB_CACHE": str(tmp_path / "cache")}
    for name, value in (of_hub | {"HF_HUB_OFFLINE": False}).items():
        monkeypatch.setattr(constants, name, value)
    yield folder
    server.shutdown()
    server.server_close()


def test_a_downloaded_model_gives_the_same_results(hub, model, data):
    fetched = load(f"hub:{REPO}")
    assert (fetched.origin, fetched.settings.task) == (f"hub:{REPO}", "grounding")
    image = data / "images/3.png"
    assert fetched.locate(image, "a star") == model("grounding").locate(image, "a star")


def test_a_model_that_the_hub_does_not_have_is_reported(hub):
    with pytest.raises(UserError, match=naming("hub:somebody/other", "somebody/other")):
        load("hub:somebody/other")
