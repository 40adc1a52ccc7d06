"""Malicious weights and training states are rejected in one line, their code is not executed, and memory stays bounded.

Files of other kinds, truncated files, and files with classes of other programs are tested in
``tests/models/test_weight_files.py``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from engine.checkpoint import TRAINING_FILE, Checkpoint
from models.checkpoints.files import read_weights
from tests.messages import OneLine
from utils.errors import UserError
from utils.weight_file import save_weights

STATE = {"a": torch.ones(2)}
MEMORY = 64 << 20


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def repacked(content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file whose members are changed and optionally compressed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
    return stream.getvalue()


def oversized() -> bytes:
    """An archive directory that claims a size of 4 GB for each member."""
    content = bytearray(saved({"model": STATE}))
    at = 0
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        content[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
        at += 4
    return bytes(content)


def huge_tensor() -> bytes:
    """A tensor that claims 2^40 numbers in a storage of two."""
    return repacked(
        saved({"model": STATE}),
        lambda name, data: (
            data.replace(b"K\x02\x85", b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85")
            if name.endswith("data.pkl")
            else data
        ),
    )


def header(entries: dict[str, object], data: bytes = b"\0" * 16) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], *offsets: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}


def nested_pickle() -> bytes:
    return repacked(
        saved({"model": STATE}),
        lambda name, data: b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b"." if name.endswith("data.pkl") else data,
    )


TRAINING = {
    "a pickle that calls": lambda trap: saved({"model": STATE, "step": Call(os.mkdir, trap)}),
    "a pickle that evaluates": lambda trap: saved(
        {"model": STATE, "step": Call(eval, f"__import__('os').mkdir({trap!r})")}
    ),
    "a plain pickle that calls": lambda trap: pickle.dumps(Call(os.mkdir, trap), protocol=2),
    "a pickle that loads": lambda trap: saved(
        {"model": STATE, "step": Call(pickle.loads, pickle.dumps(Call(os.mkdir, trap)))}
    ),
    "a pickle without end": lambda trap: nested_pickle(),
    "members of 4 GB": lambda trap: oversized(),
    "a tensor of 4 TB": lambda trap: huge_tensor(),
    "a bomb": lambda trap: repacked(
        saved({"model": STATE}),
        lambda name, data: data + bytes(300 << 20) if "data.pkl" in name else data,
        zipfile.ZIP_DEFLATED,
    ),
    "half an archive": lambda trap: saved({"model": STATE})[:-200],
    "an archive of something else": lambda trap: repacked(saved({"model": STATE}), lambda name, data: b""),
    "an HTML page": lambda trap: b"<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "a git-lfs pointer": lambda trap: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345678\n",
    "nothing": lambda trap: b"",
}
SAFETENSORS = {
    "a header of 2^60 bytes": struct.pack("<Q", 1 << 60) + b"{}",
    "a header longer than the file": struct.pack("<Q", 1 << 20) + b"{}",
    "a header of invalid JSON": struct.pack("<Q", 4) + b"\x80\x02K.",
    "overlapping offsets": header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}),
    "offsets beyond the end": header({"a": entry([1 << 40], 0, 1 << 42)}),
    "offsets that go back": header({"a": entry([2], 8, 0)}),
    "a shape that overflows": header({"a": entry([1 << 62, 1 << 62], 0, 8)}),
    "a negative shape": header({"a": entry([-2], 0, 8)}),
    "an unknown type": header({"a": {"dtype": "PICKLE", "shape": [2], "data_offsets": [0, 8]}}),
    "data after the end": save(STATE) + b"more",
    "nested lists": struct.pack("<Q", 200_000) + b"[" * 200_000,
}


def refused(read: Callable[[], object], path: Path) -> str:
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            read()
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert str(path) in message
    assert message.isprintable() and len(message) < 1000, message
    return message


@pytest.mark.parametrize("name", TRAINING)
def test_malicious_torch_weights_are_rejected(tmp_path, name):
    path = tmp_path / "weights.pth"
    path.write_bytes(TRAINING[name](str(tmp_path / "trapped")))
    refused(lambda: read_weights(path), path)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_a_malicious_training_state_is_rejected(tmp_path, name):
    path = tmp_path / TRAINING_FILE
    path.write_bytes(TRAINING[name](str(tmp_path / "trapped")))
    message = refused(Checkpoint(tmp_path, 1).training_state, path)
    assert message == OneLine("folder", "resume", "older checkpoint")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_malicious_safetensors_file_is_rejected(tmp_path, name):
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[name])
    refused(lambda: read_weights(path), path)


def test_a_malicious_claim_in_a_header_is_rejected(tmp_path):
    path = tmp_path / "model.safetensors"
    for about in ("[1]", "{", '{"sha256": [1]}', "[" * 100_000):
        save_weights(path, STATE)
        content = save(STATE, {"about": about})
        path.write_bytes(content)
        refused(lambda: read_weights(path), path)
