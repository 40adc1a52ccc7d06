"""Invalid paths, lines, texts and boxes that once stopped a run or the whole machine, for tests that put them into records."""

from __future__ import annotations

import base64
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from tests.dataset.conftest import picture_bytes

HUGE = "9" * 400
"""The digits of an integer that is too large for a float."""
BEYOND = "9" * 5000
"""The digits of an integer that is too long for Python to parse."""
DEEP = "[" * 100_000 + "]" * 100_000
ENCODED = base64.b64encode(picture_bytes()).decode()

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 32\n%%EndComments\n0 0 40 32 rectfill\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj << >> endobj\ntrailer << >>\n%%EOF\n"


def bomb() -> bytes:
    """A PNG file of 40 bytes whose header claims 30,000 x 30,000 pixels."""
    plain = picture_bytes(form="PNG")
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + plain[24:29]
    return plain[:12] + header + struct.pack(">I", zlib.crc32(header)) + plain[33:]


def bad_paths(folder: Path) -> dict[str, str]:
    """Paths that do not lead to an image, by what they lead to."""
    (folder / "folder.jpg").mkdir(exist_ok=True)
    if not (folder / "fifo.jpg").exists():
        os.mkfifo(folder / "fifo.jpg")
    contents = {"eps": EPS, "pdf": PDF, "bomb": bomb(), "text": b"<html>", "empty": b"", "cut": picture_bytes()[:200]}
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    with (folder / "sparse.jpg").open("wb") as file:  # a sparse file, which takes no disk space
        file.truncate(200_000_000)
    names = {name: f"{name}.jpg" for name in (*contents, "folder", "fifo", "sparse")}
    return {**names, "device": "/dev/zero", "nul": "a\0b.jpg", "surrogate": "a\ud800.jpg", "long": "x" * 5000 + ".jpg"}


def bad_lines() -> dict[str, str]:
    """Lines that do not hold a record, by what they hold."""
    return {
        "list": "[1, 2]",
        "number": "7",
        "string": '"text"',
        "null": "null",
        "deep": DEEP,
        "deep inside": '{"image": ' + DEEP + "}",
        "beyond": '{"image": ' + BEYOND + "}",
        "not utf-8": '{"image": "\udcff"}',
        "cut": '{"image": "a',
    }


def bad_texts() -> dict[str, Any]:
    """Unusable texts, by the reason."""
    return {
        "lone surrogate": "a red \ud800 star",
        "10 MB": "x" * 10_000_000,
        "number": 7,
        "deep": json.loads("[" * 900 + "]" * 900),
    }


def bad_boxes() -> dict[str, str]:
    """Invalid boxes as JSON, by the reason."""
    return {
        "huge": f"[{HUGE}, 0, 1, 1]",
        "huge size": f"[0, 0, {HUGE}, 1]",
        "nan": "[NaN, 0, 1, 1]",
        "infinity": "[0, 0, Infinity, 1]",
        "beyond": f"[{BEYOND}, 0, 1, 1]",
        "texts": '["0", "0", "9", "9"]',
        "object": "{}",
        "float max": "[1e308, 0, 1e308, 1]",
    }
