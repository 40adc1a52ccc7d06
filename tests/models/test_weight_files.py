"""Files that are not weight files, or contain more than weights, are reported in one line with their content and a remedy."""

from __future__ import annotations

import os
import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.checkpoints.files import read_weights
from tests.messages import OneLine
from utils.errors import UserError

STATE = {"a.weight": torch.ones(2), "b": torch.zeros(1)}


@pytest.fixture
def released(monkeypatch) -> type:
    """A class of the authors' code that can be imported while a file is written."""
    module = types.ModuleType("released_utils")
    module.AttrDict = type("AttrDict", (dict,), {"__module__": "released_utils"})
    monkeypatch.setitem(sys.modules, "released_utils", module)
    return module.AttrDict


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_a_file_with_classes_is_reported_with_code_that_extracts_the_weights(
    tmp_path, monkeypatch, released, zipped, key
):
    path = tmp_path / "x.th"
    content = {key: STATE, "config": released(lr=1), "best": np.float64(0.5), "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "released_utils")
    message = error_of(path)
    assert "x.th pickles released_utils.AttrDict, " in message
    assert f"save only its `{key}`" in message
    monkeypatch.setitem(sys.modules, "released_utils", types.SimpleNamespace(AttrDict=released))
    (line,) = re.findall(r"installed: (import torch; .*)$", message)
    exec(line)
    assert read_weights(tmp_path / "x_weights.pth").keys() == STATE.keys()


def test_a_pickled_model_and_a_flat_file_have_separate_remedies(tmp_path, released):
    torch.save(nn.Linear(2, 3), tmp_path / "whole.pth")
    message = error_of(tmp_path / "whole.pth")
    assert "pickles torch.nn.modules.linear.Linear" in message
    exec(message.split("installed: ")[1])
    assert read_weights(tmp_path / "whole_weights.pth").keys() == {"weight", "bias"}
    torch.save({**STATE, "config": released()}, tmp_path / "flat.pth")
    exec(error_of(tmp_path / "flat.pth").split("installed: ")[1])
    assert read_weights(tmp_path / "flat_weights.pth").keys() == STATE.keys()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_no_code_of_a_rejected_file_is_executed(tmp_path, zipped):
    torch.save(
        {"model": STATE, "hook": Trap(tmp_path / "trapped")}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped
    )
    assert "pickles posix.mkdir" in error_of(tmp_path / "x.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(tmp_path / "trapped"), protocol=2))
    error_of(tmp_path / "plain.pth")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ("empty", "again")),
        (b"\n <!DOCTYPE html>\n<html><body>Sign in</body></html>", ("HTML page", "download")),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345678\n",
            ("git-lfs", "12,345,678", "git lfs pull"),
        ),
        (b"\x1f\x8b\x08rest", ("archive",)),
        (b"hello world", ("weight file",)),
        (bytes(100), ("weight file",)),
        (b"PK\x03\x04" + bytes(100), ("weight file",)),
    ],
)
def test_a_file_without_weights_is_reported_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert OneLine(*message) in error_of(tmp_path / name).splitlines()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_a_truncated_file_is_reported_in_one_line(tmp_path, share):
    for zipped in (True, False):
        torch.save({"model": STATE}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        whole = (tmp_path / "x.pth").read_bytes()
        (tmp_path / "x.pth").write_bytes(whole[: int(share * len(whole))])
        error_of(tmp_path / "x.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_of_a_wrapped_model_lose_their_prefix(tmp_path, prefix):
    wrapped = {prefix + name: tensor for name, tensor in STATE.items()}
    torch.save({"model": wrapped}, tmp_path / "x.pth")
    save_file(wrapped, tmp_path / "x.safetensors")
    for name in ("x.pth", "x.safetensors"):
        assert read_weights(tmp_path / name).keys() == STATE.keys()
    torch.save({**wrapped, "other": torch.zeros(1)}, tmp_path / "some.pth")
    assert read_weights(tmp_path / "some.pth").keys() == {*wrapped, "other"}


def test_a_file_of_other_content_is_described(tmp_path):
    torch.save({"optimizer": {"state": {}}, "epoch": 3}, tmp_path / "x.pth")
    assert error_of(tmp_path / "x.pth") == OneLine("optimizer, epoch")
