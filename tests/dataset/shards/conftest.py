"""A local server that can be made to fail."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class FaultyServer(ThreadingHTTPServer):
    """Serves byte ranges of the files in a folder. ``fault(number)`` returns the fault for a request, counted from 0; "" means no
    fault."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.requests, self.sent = folder, 0, Counter[str]()
        self.fault: Callable[[int], str] = lambda number: ""
        self.marks: dict[str, str] = {}
        self.retry_after: str | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Ignores clients that disconnect."""

    def next_fault(self) -> str:
        with self._lock:
            self.requests += 1
            return self.fault(self.requests - 1)


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        fault, name = self.server.next_fault(), self.path.partition("?")[0].lstrip("/")
        file = self.server.folder / name
        if fault.isdigit() or not file.is_file():
            self._answer(int(fault or 404), b"", self._dataset_info(fault))
            return
        content = file.read_bytes()
        mark = {"ETag": self.server.marks.get(name, '"1"')}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if fault == "whole" or not asked:
            self._answer(200, content, mark)
            return
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        if first >= len(content):
            self._answer(416, b"", mark | {"Content-Range": f"bytes */{len(content)}"})
            return
        part = content[first : last + 1]
        if fault == "elsewhere":
            first, last = first + 1, last + 1
        if fault == "short":
            part = part[:-1]
        if fault == "packed":
            mark["Content-Encoding"] = "gzip"
        self._answer(206, part, mark | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, fault)
        self.server.sent[name] += len(part)

    def _dataset_info(self, fault: str) -> dict[str, str]:
        after = self.server.retry_after
        return {"Location": self.path} if fault.startswith("3") else {} if after is None else {"Retry-After": after}

    def _answer(self, status: int, content: bytes, headers: dict[str, str], fault: str = "") -> None:
        if fault in ("silent", "hang"):
            time.sleep(1.5 if fault == "silent" else 30)
        self.send_response(status)
        if fault == "unsized":
            self._answer_without_length(content[:-1], headers)
            return
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        half = len(content) // 2
        if fault in ("cut", "stall"):
            self.wfile.write(content[:half])
            self.wfile.flush()
            time.sleep(1.5 if fault == "stall" else 0)
            self.close_connection = True
            return
        if fault == "slow":
            for start in range(0, len(content), max(1, len(content) // 4)):
                self.wfile.write(content[start : start + max(1, len(content) // 4)])
                time.sleep(0.02)
            return
        self.wfile.write(content)

    def _answer_without_length(self, content: bytes, headers: dict[str, str]) -> None:
        for name, value in (headers | {"Transfer-Encoding": "chunked"}).items():
            self.send_header(name, value)
        self.end_headers()
        if content:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def server(tmp_path) -> Iterator[FaultyServer]:
    """Serves ``tmp_path / "served"`` on the loopback interface."""
    (tmp_path / "served").mkdir()
    with FaultyServer(tmp_path / "served") as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()
