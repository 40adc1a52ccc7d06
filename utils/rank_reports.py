"""Files through which the ranks of a node tell their launcher about things that torch's agent does not report: exit statuses
after a signal, and the place where NCCL records collectives that time out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FOLDER = "X2VLM_RANK_REPORTS"
"""Environment variable with the folder of the files. Ranks of other launchers do not have it."""


def report_status(status: int) -> None:
    """Tells the launcher the exit status with which this rank is about to end."""
    if FOLDER in os.environ:
        # The status is in the name, since even a full disk has room for an empty file.
        with contextlib.suppress(OSError):
            _file("status", os.environ.get("RANK", "0"), status).touch()


def report_records(prefix: str) -> None:
    """Tells the launcher where NCCL records the collectives of this rank: in a file whose name is ``prefix`` and the rank."""
    if FOLDER in os.environ:
        _file("records", os.environ["RANK"]).write_text(prefix)


def some_rank_reported(status: int) -> bool:
    """True if a rank of this launcher has reported this exit status."""
    return any(Path(os.environ[FOLDER]).glob(_file("status", "*", status).name))


def recorded_by_nccl(rank: int) -> bool:
    """True if NCCL has recorded the collectives of this rank since the rank has started, as NCCL does when a collective times out
    or the connection to another rank breaks."""
    report = _file("records", rank)
    if not report.is_file():
        return False
    records = Path(f"{report.read_text()}{rank}")
    return records.is_file() and records.stat().st_mtime_ns >= report.stat().st_mtime_ns


def _file(kind: str, *values: object) -> Path:
    return Path(os.environ[FOLDER]) / "-".join([kind, *map(str, values)])
