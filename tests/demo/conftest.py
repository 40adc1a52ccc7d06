"""Fixtures for the tests of the demo's data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.folder import FolderFlags
from demo.scenes.build import scenes
from tests.demo.scene_texts import COUNTS


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A built folder of scenes."""
    out = tmp_path_factory.mktemp("scenes")
    scenes(output=FolderFlags(out=out), seed=0, **COUNTS)
    return out
