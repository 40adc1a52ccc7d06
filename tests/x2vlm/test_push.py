"""Uploads to the Hub: a local server receives what ``push_to_hub`` sends, like the Hub."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors import SafetensorError

from tests.messages import naming
from utils.errors import UserError
from x2vlm import load

REPO = "somebody/model"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder in which the server stores the files that it receives."""
    folder = tmp_path / "hub"

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if self.headers.get("Authorization") != "Bearer hf_of_somebody":
                return self.answer({"error": "Invalid credentials"}, 401)
            if self.path == "/api/repos/create":
                return self.answer({"url": f"{address}/{REPO}", "private": json.loads(sent).get("private")})
            if self.path == f"/api/models/{REPO}/preupload/main":
                return self.answer(
                    {
                        "files": [
                            {**file, "uploadMode": "regular", "shouldIgnore": False}
                            for file in json.loads(sent)["files"]
                        ]
                    }
                )
            if self.path == f"/api/models/{REPO}/commit/main":
                for line in sent.splitlines():
                    if (entry := json.loads(line))["key"] == "file":
                        path = folder / entry["value"]["path"]
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(base64.b64decode(entry["value"]["content"]))
                commit = {"commitUrl": f"{address}/{REPO}/commit/0", "commitOid": "0" * 40}
                return self.answer({"success": True, **commit})
            return self.answer({"errors": [], "warnings": []})

        def answer(self, value: object, status: int = 200) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    yield folder
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["x2vlm", "transformers"])
def test_the_model_and_its_card_are_uploaded(hub, model, kind, scenes_folder):
    address = model("retrieval").push_to_hub(REPO, kind)
    assert address.endswith(f"/{REPO}")
    card = (hub / "README.md").read_text(encoding="utf-8")
    assert f"# {REPO}" in card and f"library_name: {kind}" in card
    assert {"x2vlm": f'load("hub:{REPO}")', "transformers": f'from_pretrained("{REPO}", trust'}[kind] in card
    if kind == "x2vlm":
        image = next((scenes_folder / "images/test").iterdir())
        np.testing.assert_array_equal(load(hub).embed_images(image), model("retrieval").embed_images(image))
    else:
        assert {"modeling_x2vlm.py", "model.safetensors", "config.json"} <= {path.name for path in hub.iterdir()}


def test_rejected_uploads_are_reported_in_one_line(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(UserError, match="cannot be uploaded to the Hub: ") as raised:
        model("retrieval").push_to_hub(REPO)
    assert "\n" not in str(raised.value) and "log in with hf auth login" in str(raised.value)
    for name in ("too/many/parts", "nobody", "me/.."):
        with pytest.raises(UserError, match="is not the name of a repository"):
            model("retrieval").push_to_hub(name)
    with pytest.raises(UserError, match="format is 'onnx'"):
        model("retrieval").push_to_hub(REPO, "onnx")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be uploaded, and http://127.0.0.1:9 cannot be reached"):
        model("retrieval").push_to_hub(REPO)
    assert not hub.exists()


def test_a_failed_upload_without_a_message_is_reported(hub, model, monkeypatch):
    def fail(*args: Any, **options: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(UserError, match=naming(REPO, "cannot be uploaded to the Hub: TimeoutError")):
        model("retrieval").push_to_hub(REPO)


@pytest.mark.parametrize("format", ["x2vlm", "transformers"])
def test_a_folder_that_is_not_writable_is_reported(model, format):
    with pytest.raises(UserError, match=r"/proc/model: cannot be written"):
        model("retrieval").save("/proc/model", format=format)


@pytest.mark.parametrize(
    "error", [SafetensorError("Error while serializing: I/O error\nat byte 3"), OSError(28, "full")]
)
@pytest.mark.parametrize(
    ("format", "writer"),
    [
        ("x2vlm", "x2vlm.saving.save_weights"),
        ("transformers", "x2vlm.integrations.transformers.writing.X2VLMModel.save_pretrained"),
    ],
)
def test_a_failed_save_is_reported_in_one_line_and_can_be_repeated(model, tmp_path, monkeypatch, format, writer, error):
    def fail(*args: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(writer, fail)
        with pytest.raises(UserError, match=naming(str(tmp_path / "saved"), "cannot be written", "space")):
            model("retrieval").save(tmp_path / "saved", format=format)
    assert list(tmp_path.iterdir()) == []
    model("retrieval").save(tmp_path / "saved", format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
