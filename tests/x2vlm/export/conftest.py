"""Exports of tiny models, each made once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from x2vlm import Model, load
from x2vlm.export.writing import export

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="session", autouse=True)
def packages() -> None:
    """Skips tests of exports if packages are missing."""
    for package in PACKAGES:
        pytest.importorskip(package, reason=f"needs {package}: pip install -r requirements-dev.txt")


@pytest.fixture(scope="session")
def exported(model, packages, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a model's export."""

    @functools.cache
    def of(name: str) -> Path:
        folder = tmp_path_factory.mktemp("export") / f"{name}.onnx"
        export(model(name), folder)
        return folder

    return of


@pytest.fixture(scope="session")
def onnx_model(exported) -> Callable[[str], Model]:
    """The loaded export of a model."""
    return functools.cache(lambda name: load(exported(name)))
