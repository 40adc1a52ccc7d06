"""The folder of a run must be on a disk that all ranks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.run_folder import RunFolder
from tests.messages import OneLine
from tests.ranks import on_two_ranks
from utils import distributed
from utils.config import Config
from utils.errors import UserError


class Empty(Config):
    pass


class Opened:
    """A picklable job that opens a new run folder, and returns the error."""

    def __init__(self, folder: Path, shared: bool):
        self.folder, self.shared = folder, shared

    def __call__(self) -> str:
        path = self.folder / ("shared" if self.shared else f"disk of rank {distributed.rank()}")
        try:
            RunFolder.open(path, Empty(), resume=False)
        except UserError as error:
            return str(error)
        return ""


@pytest.mark.parametrize("shared", [True, False])
def test_a_new_run_whose_folder_is_not_shared_does_not_start(tmp_path, shared):
    expected = "" if shared else OneLine("--output", "rank 1", "does not see the files", "a disk that all nodes share")
    (tmp_path / "out").mkdir()
    assert on_two_ranks(Opened(tmp_path, shared), tmp_path / "out") == [expected, expected]
    assert not list(tmp_path.glob("*/.token-*"))
