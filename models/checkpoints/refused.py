"""Errors for weight files that cannot be loaded safely. Messages say what the file contains and what to do. Nothing in a pickle
is imported or run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from utils.errors import UserError

STATE_KEYS = ("model", "module", "state_dict")
"""Keys under which checkpoints store their weights if they also contain other entries."""
_PLAIN = ("torch.", "collections.OrderedDict", "argparse.Namespace", "_codecs.encode", "builtins.set")
"""Classes and functions that weight files may refer to."""
_LEGACY_HEADERS = 3
"""Number of pickles that precede the content of a file in torch's old format: magic number, version and machine properties."""
_MAX_NAMES = 3
"""Maximum number of classes that an error message names."""


def check_start(path: Path) -> None:
    """Raises :class:`UserError` if the first bytes of a file show that it does not contain weights."""
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise UserError(f"{path} is empty, not a weight file", remedy="fetch or copy it again")
    if start.startswith(b"version https://git-lfs"):
        size = re.search(rb"^size (\d+)$", start, re.MULTILINE)
        target = f"a file of {int(size[1]):,} bytes" if size else "a file"
        raise UserError(
            f"{path} is a git-lfs pointer to {target}, not the weights", remedy="run `git lfs pull` in its repository"
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise UserError(
            f"{path} is an HTML page, not weights: the server sent a web page (login, quota, preview)",
            remedy="download the file itself",
        )
    if start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
        raise UserError(f"{path} is an archive, not a weight file", remedy="unpack it and name the file inside")


def refusal(path: Path, error: Exception) -> UserError:
    """The error for a file that PyTorch refuses to load as weights. Its message names the classes and functions that the file
    pickles in addition to weights, and explains how to save only the weights."""
    names, content = _inspect(path)
    if not names:
        named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        names = [named[1]] if named else []
    if not names:
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        return UserError(f"{path} is not a weight file of torch or safetensors ({reason})")
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    listed = ", ".join(names[:_MAX_NAMES]) + more
    key = next((key for key in STATE_KEYS if isinstance(content, dict) and key in content), None)
    if key is not None:
        what, part = f"its `{key}`", f"[{key!r}]"
    elif isinstance(content, dict):
        what, part = "its tensors", ""
    else:
        what, part = "its state_dict()", ".state_dict()"
    out = path.with_name(f"{path.stem}_weights.pth")
    load = f"torch.load({str(path)!r}, map_location='cpu', weights_only=False)"
    kept = f"{load}{part}" if part else f"{{k: v for k, v in {load}.items() if torch.is_tensor(v)}}"
    return UserError(
        f"{path} pickles {listed}, and code from weight files is never run",
        remedy=f"save only {what}; if you trust the file, run this where its code is installed: "
        f"import torch; torch.save({kept}, {str(out)!r})",
    )


class _Inert:
    """A placeholder for any object that a pickle would build with a class or function."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass


class _PickleInspector(pickle.Unpickler):
    """Builds plain containers, and inert placeholders for everything else. ``names`` collects the classes and functions that
    weights do not need."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="latin1")
        self.names: dict[str, None] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"  # protocol 2 writes Python 2's name
        if not full.startswith(_PLAIN) or full.startswith("torch.nn.modules."):
            self.names[full] = None
        return type("Inert", (_Inert,), {})

    def persistent_load(self, _: Any) -> Any:
        return _Inert()


def _inspect(path: Path) -> tuple[list[str], Any]:
    """The classes and functions that a file pickles in addition to weights, and the content of the file, with inert placeholders
    for objects.

    Returns an empty list and None if the file cannot be inspected.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    inspector = _PickleInspector(file)
                    return _names_and_content(inspector, inspector.load())
        with path.open("rb") as file:
            for _ in range(_LEGACY_HEADERS):
                _PickleInspector(file).load()
            inspector = _PickleInspector(file)
            return _names_and_content(inspector, inspector.load())
    except Exception:  # a damaged pickle can raise almost any exception
        return [], None


def _names_and_content(inspector: _PickleInspector, content: Any) -> tuple[list[str], Any]:
    return list(inspector.names), content
