"""Helpers for tests of data sets: the error of a set that cannot be prepared, and packed files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.dataset.prepare.official import prepared
from utils.errors import UserError


def one_line(name: str, raw: Path, out: Path, **changes) -> str:
    """Returns the error of a set that cannot be prepared, and checks that ``out`` is left empty."""
    with pytest.raises(UserError) as error:
        prepared(name, raw, out, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def files_left_in(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir()) if out.exists() else []


def pack(root: Path, archive: str, *names: str) -> None:
    with zipfile.ZipFile(root / archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.write(root / name, name)
            (root / name).unlink()


def pack_entities(root: Path) -> None:
    pack(root, "annotations.zip", *(str(path.relative_to(root)) for path in sorted(root.glob("[SA]*/*"))))
    for name in ("Sentences", "Annotations"):
        (root / name).rmdir()
