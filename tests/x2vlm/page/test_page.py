"""The page: the content of each tab, its limits, and the complete page in a browser."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from commands.serve import copied_examples, titles_of, upload_folder
from run import main
from tests.browser import browser  # noqa: F401 (fixture)
from tests.messages import OneLine, naming
from tests.tasks.painted import ROOT
from utils.errors import UserError
from x2vlm.page.abilities import MAX_LINES, abilities_of, lines_of
from x2vlm.page.limits import KEPT_S, BodyLimit, RateLimit, SiteCheck, UploadLimit
from x2vlm.search import figures

TABS = {
    "pretrain": ["locate", "score", "match", "explain"],
    "retrieval": ["score", "match", "explain"],
    "captioning": ["caption"],
    "grounding": ["locate"],
    "vqa": ["answer"],
    "nlvr": ["compare"],
}
PICTURES = {"locate": 1, "score": 1, "explain": 5}
"""The number of images in an answer about an example: one, or one for each of the five words."""


@pytest.fixture
def clip(tmp_path) -> Path:
    """A video of two seconds with a moving square."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for number in range(20):
            pixels = np.full((64, 64, 3), 200, np.uint8)
            pixels[20:40, number : number + 20] = (220, 30, 30)
            video.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        video.mux(stream.encode())
    return path


@pytest.mark.parametrize("kind", TABS)
def test_a_model_has_a_tab_for_each_of_its_calls(kind, model, data):
    image = str(data / "images/1.png")
    found = abilities_of(model(kind))
    assert [ability.name for ability in found] == TABS[kind]
    for ability in found:
        if (kind, ability.name) == ("retrieval", "explain"):
            continue  # the tiny model has a single fusion block, which has no maps
        assert all(text.example in ("", "what is this?") for text in ability.texts), (
            "a model of drawn shapes does not know dogs"
        )
        texts = [
            "2, 3, 9, 9" if "boxes" in text.label else text.example or "a star on a lawn" for text in ability.texts
        ]
        answer = ability.ask([image] * ability.files, texts)
        assert answer.lines and all(answer.lines)
        assert len(answer.pictures) == PICTURES.get(ability.name, 0)
        for picture in answer.pictures:
            assert picture.pixels.dtype == np.uint8 and picture.pixels.shape[1] > 300


def test_a_video_model_only_has_the_matching_tab(video_model, clip):
    [match] = abilities_of(video_model)
    assert (match.name, match.files) == ("match", 1)
    score = video_model.match(clip, "a star")[0, 0]
    assert match.ask([str(clip)], ["a star"]).lines == [f"{score:.3f}  a star"]


def test_answers_equal_the_models(model, data):
    image = str(data / "images/1.png")
    tabs = {ability.name: ability for ability in abilities_of(model("pretrain"))}
    [box] = model("pretrain").locate(image, "a star")[0]
    [line] = tabs["locate"].ask([image], ["a star"]).lines
    position = f"{box.width:.0f} x {box.height:.0f} pixels at {box.x:.0f}, {box.y:.0f}"
    assert line == f"a star: {position}, probability {box.score:.2f}"
    scores = model("pretrain").match(image, ["a star", "a dog"])[0]
    lines = tabs["match"].ask([image], ["a star\n\n a dog "]).lines
    assert lines == [f"{scores[n]:.3f}  {('a star', 'a dog')[n]}" for n in np.argsort(-scores)]
    [scored] = model("pretrain").score(image, [(2, 3, 9, 9)], "a star")
    lines = tabs["score"].ask([image], ["a star", "2, 3, 9,9"]).lines
    assert lines[1] == f"2, 3, 9 x 9  {scored.matching[0, 0]:.3f}  {scored.cosine[0, 0]:.3f}  a star"
    assert lines[2] == f"absent  {scored.absent[0]:.3f}  a star"
    with pytest.raises(UserError, match=naming("'2, 3'", "x, y, width and height")):
        tabs["score"].ask([image], ["a star", "2, 3"])


def test_an_index_is_searched_and_each_hit_has_its_box(model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = model("pretrain").index(data / "images", tmp_path / "index")
    search = abilities_of(model("pretrain"), index)[0]
    assert (search.name, search.files, len(search.texts)) == ("search", 0, 2)
    for phrase, locate in (("", True), ("a star", "a star")):
        answer = search.ask([], ["a red star", phrase])
        hits = index.search("a red star", top=12, locate=locate)
        assert answer.lines[0] == "probability, cosine"
        assert [line.split("  ")[2] for line in answer.lines[1:]] == [hit.path.name for hit in hits]
        assert [picture.caption for picture in answer.pictures] == [
            f"{hit.score:.2f} · {hit.path.name}" for hit in hits
        ]
        for picture, hit in zip(answer.pictures, hits, strict=True):
            plain = model("pretrain").read.picture(hit.path)
            side = plain.shape[1] / model("pretrain").read(hit.path).size[0]
            rows, columns = np.nonzero((picture.pixels != plain).any(axis=2))
            assert abs(columns.min() - hit.box.x * side) <= 1.5 and abs(rows.min() - hit.box.y * side) <= 1.5
    other = model("retrieval").index(data / "images", tmp_path / "other")
    assert len(abilities_of(model("retrieval"), other)[0].texts) == 1  # it locates nothing


def test_a_search_draws_no_improbable_box_and_says_so(model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = model("pretrain").index(data / "images", tmp_path / "index")
    search = abilities_of(model("pretrain"), index)[0]
    scores = sorted(hit.box.score for hit in index.search("a red star", top=12, locate="a star"))
    below = len(scores) // 2
    monkeypatch.setattr(figures, "MIN_BOX_PROBABILITY", scores[below])
    answer = search.ask([], ["a red star", "a star"])
    hits = index.search("a red star", top=12, locate="a star")
    assert answer.lines[-1] == f"{below} of {len(hits)} boxes not drawn: probability below {scores[below]:.2f}"
    for line, picture, hit in zip(answer.lines[1:-1], answer.pictures, hits, strict=True):
        is_drawn = bool((picture.pixels != model("pretrain").read.picture(hit.path)).any())
        assert is_drawn == ("pixels at" in line) == (hit.box.score >= scores[below])


def test_an_index_whose_images_are_gone_is_reported(model, data, tmp_path):
    shutil.copytree(data / "images", tmp_path / "images")
    index = model("pretrain").index(tmp_path / "images", tmp_path / "index")
    shutil.rmtree(tmp_path / "images")
    answer = abilities_of(model("pretrain"), index)[0].ask([], ["a star", ""])
    assert answer == ([OneLine("all images have been removed or changed")], ())


def test_tabs_have_different_titles():
    one, two = ("locate", "one"), ("locate", "two")
    assert titles_of([one, ("match", "one")]) == ["locate", "match"]
    assert titles_of([one, ("match", "one"), two]) == ["locate · one", "match", "locate · two"]
    assert titles_of([one, two, one]) == ["locate · one (1)", "locate · two", "locate · one (2)"]


def test_the_number_and_length_of_text_lines_are_bounded():
    assert lines_of(" a \n\nb\n") == ["a", "b"]
    for text, fragments in [
        (" \n", "enter a text"),
        ("a\n" * (MAX_LINES + 1), "9 lines were given"),
        ("a" * 3000, "has 3,000 characters"),
    ]:
        with pytest.raises(UserError, match=fragments):
            lines_of(text)


def test_a_visitor_has_a_limit_per_minute():
    limit = RateLimit(2)
    limit.count("a", 0.0)
    limit.count("a", 30.0)
    limit.count("b", 30.0)
    with pytest.raises(UserError, match=naming("2 questions", "20 s")):
        limit.count("a", 40.0)
    limit.count("a", 60.0)
    with pytest.raises(UserError):
        limit.count("a", 61.0)


def test_uploads_are_limited_in_number_and_total_size():
    limit = UploadLimit(None, per_minute=3, total_bytes=2 * 10**6)
    limit.count("a", b"1000000", 0.0)
    limit.count("a", b"0", 1.0)
    with pytest.raises(UserError, match="no Content-Length"):
        limit.count("a", b"", 1.0)
    with pytest.raises(UserError, match=naming("3 uploads", "58 s")):
        limit.count("a", b"1", 2.0)
    limit.count("b", b"1000000", 3.0)
    with pytest.raises(UserError, match="cannot store more uploads"):
        limit.count("c", b"1", 4.0)
    limit.count("c", b"1", float(KEPT_S))  # the first one has been deleted by then


async def answers(scope, receive, send) -> None:
    """An app that reads the whole body and returns its length."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def asked(app, *chunks: bytes, path: str = "/gradio_api/queue/join", **headers: str) -> tuple[int, str, int]:
    """Sends a request in chunks. Returns status and body of the answer, and how many chunks were read."""
    given, sent = iter(chunks), []

    async def receive() -> dict[str, Any]:
        receive.calls += 1
        return {"type": "http.request", "body": next(given), "more_body": receive.calls < len(chunks)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    receive.calls = 0
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(app({"type": "http", "method": "POST", "path": path, "headers": named}, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], sent[1]["body"].decode(), receive.calls


@pytest.mark.parametrize(
    ("path", "max_bytes"), [("/gradio_api/queue/join", 1024**2), ("/upload", 2 * 1024**2 + 64 * 1024)]
)
def test_the_body_of_every_request_is_bounded(path, max_bytes):
    app, fragments = BodyLimit(answers, 2 * 1024**2), "exceed the maximum of"
    half = b"x" * (max_bytes // 2)
    assert asked(app, half, half, path=path) == (200, str(max_bytes), 2)
    assert asked(app, b"", path=path, content_length=str(max_bytes))[0] == 200
    for length in (str(max_bytes + 1), "9" * 5000):
        status, text, read = asked(app, half, path=path, content_length=length)
        assert (status, read) == (413, 0) and fragments in text
    status, text, read = asked(app, half, half, b"x", half, half, path=path)
    assert (status, read) == (413, 3) and fragments in text


@pytest.mark.parametrize(
    ("own_machine", "accepted", "refused"),
    [
        (
            True,
            ["localhost:7860", "127.0.0.1", "127.0.0.1:80", "[::1]:7860", "Proxy.Example"],
            ["192.168.1.5", "a.example"],
        ),
        (
            False,
            ["localhost", "192.168.1.5:7860", "[fe80::1]", "proxy.example:443"],
            ["a.example", "", "a:b:c", "localhost.a.example"],
        ),
    ],
)
def test_a_foreign_host_is_rejected(own_machine, accepted, refused):
    app = SiteCheck(answers, ["proxy.example"], [], own_machine)
    assert [asked(app, b"", host=host)[0] for host in accepted] == [200] * len(accepted)
    for host in refused:
        status, text, _ = asked(app, b"", host=host)
        assert status == 400 and repr(host) in text and "--name" in text
    assert asked(app, b"")[0] == 400


@pytest.mark.parametrize(
    ("host", "own", "foreign"),
    [
        (
            "localhost:7860",
            ["http://localhost:7860", "HTTP://LocalHost:7860", "https://proxy.example", "https://Proxy.example:8443"],
            ["http://localhost:3000", "http://localhost", "http://127.0.0.1:7860", "https://a.example", "null", ""],
        ),
        ("127.0.0.1", ["http://127.0.0.1", "http://127.0.0.1:80"], ["https://127.0.0.1:80", "127.0.0.1"]),
        ("[::1]:7860", ["http://[::1]:7860"], ["http://[::1]", "http://[::2]:7860"]),
        (
            "proxy.example",
            ["https://proxy.example", "https://proxy.example:443"],
            ["https://proxy.example.a.example", "https://a.example/proxy.example", "chrome-extension://proxy.example"],
        ),
        ("this.machine:7860", ["http://this.machine:7860"], ["http://this.machine:80", "http://this.machine"]),
    ],
)
def test_the_request_of_another_website_is_rejected_before_its_body_is_read(host, own, foreign):
    app = SiteCheck(answers, ["this.machine"], ["proxy.example"], loopback_only=False)
    for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/run/predict"):
        assert asked(app, b"x", path=path, host=host) == (200, "1", 1), "programs send no Origin"
        for origin in own:
            assert asked(app, b"x", path=path, host=host, origin=origin) == (200, "1", 1), origin
        for origin in foreign:
            status, text, read = asked(app, b"x", path=path, host=host, origin=origin)
            assert (status, read) == (403, 0) and repr(origin) in text and "\n" not in text, origin


def test_a_websocket_of_another_website_is_closed():
    sent = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost:7860"), (b"origin", b"https://a.example")]
    app = SiteCheck(answers, [], [], loopback_only=True)
    asyncio.run(app({"type": "websocket", "path": "/", "headers": headers}, None, send))
    assert sent == [{"type": "websocket.close"}]


def test_only_uploads_left_by_a_killed_server_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    serve = "from commands.serve import upload_folder\nwith upload_folder() as f: print(f, flush=True); input()"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    started = partial(
        subprocess.Popen, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment
    )
    with started([sys.executable, "-c", serve]) as killed, started([sys.executable, "-c", serve]) as living:
        left, used = (Path(each.stdout.readline().strip()) for each in (killed, living))
        (left / "picture.png").write_bytes(b"x")
        killed.kill()
        killed.wait()
        (tmp_path / "x2vlm-page-unknown").mkdir()
        (tmp_path / "x2vlm-page-link").symlink_to(used.parent)
        with upload_folder() as own:
            assert own.is_dir() and used.is_dir() and not left.parent.exists()
            assert (tmp_path / "x2vlm-page-unknown").is_dir() and (tmp_path / "x2vlm-page-link").is_symlink()
        assert not own.parent.exists()
        living.communicate("\n")
    assert not used.parent.exists()


def test_an_unreadable_example_is_skipped_and_reported_with_its_path(model, data, tmp_path, capsys):
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "0.jpg").write_bytes(b"no image")
    shutil.copy(data / "images/4.png", shown)
    (copy,) = copied_examples(shown, tmp_path / "copied", model("pretrain").read)
    assert copy.name == "4.png" and copy.is_file()
    assert capsys.readouterr().err == OneLine(f"{shown}/0.jpg", "unreadable image")


def test_without_gradio_the_error_names_the_remedy(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", "--model", str(run("pretrain"))]) == 2
    assert capsys.readouterr().err == OneLine("error: serve", "gradio", 'pip install -e ".[page]"')


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--examples", "nowhere"], ("--examples", "nowhere")),
        (["--examples", "empty"], ("no image or video",)),
        (["--index", "nowhere"], ("nowhere", "no index")),
        (["--port", "70000"], ("--port",)),
    ],
)
def test_mistakes_are_reported_in_one_line(flags, fragments, run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("gradio", reason=NEEDS_GRADIO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # so that it is restored afterwards
    Path("empty").mkdir()
    assert main(["serve", "--model", str(run("pretrain")), *flags]) == 2
    assert OneLine(*fragments) in capsys.readouterr().err.splitlines()[-1].splitlines()


PER_MINUTE = 6
NEEDS_GRADIO = 'the page needs gradio: pip install -e ".[page]"'


@pytest.fixture(scope="module")
def served(run, data, tmp_path_factory) -> Iterator[str]:
    """The URL of a page with two models, served by a separate process."""
    pytest.importorskip("gradio", reason=NEEDS_GRADIO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "run.py"), "serve", "--port", str(port), "--max-mb", "1"]
    models = ["--model", str(run("pretrain")), "--model", str(run("vqa"))]
    more = ["--per-minute", str(PER_MINUTE), "--examples", str(data / "images")]
    folder = tmp_path_factory.mktemp("page")
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [*command, *models, *more], stdout=subprocess.PIPE, text=True, cwd=folder, env=environment
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)  # Ctrl-C has the same effect
        assert process.wait(30) in (0, 130)
    assert not list(folder.glob("x2vlm-page-*"))  # uploads are deleted with the page


class Visitor:
    """A client of a page without a browser, with its own address."""

    def __init__(self, page: str, address: str):
        self.page, self.address = page.removeprefix("http://"), address

    def request(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json", origin: str | None = None
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.page, source_address=(self.address, 0), timeout=20)
        headers = {"Content-Type": kind} if body else {}
        connection.request(method, path, body or None, headers if origin is None else {**headers, "Origin": origin})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def ask(self, index: int, *values: object) -> dict[str, Any]:
        """Sends the event with an index to the page, and returns whether it succeeded and the error."""
        body = {"data": values, "fn_index": index, "session_hash": f"visitor{self.address}{uuid.uuid4().hex}"}
        assert self.request("POST", "/gradio_api/queue/join", json.dumps(body).encode())[0] == 200
        _, events = self.request("GET", f"/gradio_api/queue/data?session_hash={body['session_hash']}")
        reported = [
            json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")
        ]
        return next(event for event in reported if event["msg"] == "process_completed")

    def upload(self, content: bytes, origin: str | None = None) -> tuple[int, str]:
        head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        body = head + content + b"\r\n--X--\r\n"
        return self.request("POST", "/gradio_api/upload", body, "multipart/form-data; boundary=X", origin)

    def events(self, kind: str) -> list[int]:
        config = json.loads(self.request("GET", "/config")[1])
        return [each["id"] for each in config["dependencies"] if each["targets"] and each["targets"][0][1] == kind]


@pytest.mark.slow
def test_each_visitor_has_a_separate_limit(served):
    first, second = Visitor(served, "127.0.0.3"), Visitor(served, "127.0.0.4")
    ask = first.events("click")[0]
    reported = [first.ask(ask, None, "a star")["output"]["error"] for _ in range(PER_MINUTE + 1)]
    assert reported[:PER_MINUTE] == ["upload an image first"] * PER_MINUTE
    assert re.match(rf"{PER_MINUTE} questions.* \d+ s", reported[PER_MINUTE])
    assert second.ask(ask, None, "a star")["output"]["error"] == "upload an image first"
    assert [first.upload(b"x")[0] for _ in range(2 * PER_MINUTE + 1)] == [200] * 2 * PER_MINUTE + [429]
    assert second.upload(b"x")[0] == 200


@pytest.mark.slow
def test_a_file_that_was_not_uploaded_is_not_read(served, data):
    visitor = Visitor(served, "127.0.0.5")
    for path in (str(data / "images/1.png"), "/etc/passwd", f"{served}/config"):
        for name, url in ((path, None), ("a.png", path)):
            file = {"path": name, "url": url, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
            assert not visitor.ask(visitor.events("change")[0], file)["success"]
    assert visitor.request("GET", f"/gradio_api/file={data / 'images/1.png'}")[0] == 403


@pytest.mark.slow
def test_the_server_rejects_a_large_body_and_a_foreign_host(served):
    for path, chunked in [("/gradio_api/queue/join", False), ("/gradio_api/queue/join", True), ("/config", True)]:
        connection = http.client.HTTPConnection(served.removeprefix("http://"), timeout=20)
        body = (b"x" * 65536 for _ in range(32))
        try:
            connection.request("POST", path, body if chunked else b"".join(body), encode_chunked=chunked)
            status = connection.getresponse().status
        except (BrokenPipeError, ConnectionResetError):  # it was rejected before everything was sent
            status = 413
        assert status in ((413, 405) if path == "/config" else (413,)), (path, chunked)
    connection = http.client.HTTPConnection(served.removeprefix("http://"), timeout=20)
    connection.request("GET", "/config", headers={"Host": "stranger.example"})
    answer = connection.getresponse()
    assert (answer.status, "stranger.example" in answer.read().decode()) == (400, True)
    assert Visitor(served, "127.0.0.6").request("GET", "/config")[0] == 200


@pytest.mark.slow
def test_another_website_cannot_use_the_page_or_its_limits(served):
    visitor, website = Visitor(served, "127.0.0.7"), "https://a.example"
    for path in (
        "upload",
        "queue/join",
        "queue/data",
        "run/predict",
        "call/predict",
        "cancel",
        "reset",
        "file=x",
        "info",
    ):
        for method in ("GET", "POST", "OPTIONS"):
            status, text = visitor.request(method, f"/gradio_api/{path}", origin=website)
            assert (status, website in text) == (403, True), (method, path)
    assert [visitor.upload(b"x", website)[0] for _ in range(3 * PER_MINUTE)] == [403] * 3 * PER_MINUTE
    assert visitor.upload(b"x", served)[0] == 200, "the rejected uploads do not count"


@pytest.mark.slow
def test_the_page_works_in_a_browser(served, browser, data, tmp_path):  # noqa: F811
    """Uploads an image, asks a question and reads the drawn result. A malicious upload and a large one are rejected."""
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served)
    page.get_by_role("tab", name="locate").click()
    page.set_input_files("#locate-1 input[type=file]", str(data / "images/1.png"))
    page.get_by_text("preview").locator("visible=true").first.wait_for()
    page.locator("textarea:visible").first.fill("a red star")
    page.get_by_role("button", name="locate", exact=True).click()
    answer = page.locator(".lines textarea:visible").first
    wait_until(
        lambda: re.fullmatch(r"a red star: \d+ x \d+ pixels at \d+, \d+, probability \d\.\d\d", answer.input_value())
    )
    page.get_by_text("picture", exact=True).locator("visible=true").wait_for()
    page.locator(".examples:visible .thumbnail-lg").nth(1).click()
    example = sorted((data / "images").iterdir())[1]
    wait_until(lambda: re.search(rf"\b{example.stem}\s*\.png", page.locator("#locate-1").inner_text()))
    page.get_by_role("tab", name="match").click()
    hostile = tmp_path / "hostile.png"
    hostile.write_bytes(b"\x89PNG\r\n\x1a\n" + b"<script>alert(1)</script>")
    page.set_input_files("#match-1 input[type=file]", str(hostile))
    page.get_by_text("hostile.png: unreadable image").wait_for()
    large = tmp_path / "large.png"
    Image.effect_noise((1500, 1500), 200).save(large)
    assert large.stat().st_size > 1024**2
    page.get_by_role("tab", name="answer").click()
    page.set_input_files("#answer-1 input[type=file]", str(large))
    page.get_by_text("exceed the maximum allowed size").wait_for()
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {served.removeprefix("http://")}
    assert str(Path(os.sep, "tmp")) not in page.inner_text("body")


def wait_until(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for 20 s")
