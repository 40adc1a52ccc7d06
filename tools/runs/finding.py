"""Finds runs in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from engine.run_files import EVALUATION_FILE, EVENTS_FILE, LOG_FILE, METRICS_FILE

RUN_FILES = (METRICS_FILE, EVENTS_FILE, LOG_FILE, EVALUATION_FILE)
"""Every run folder has at least one of these files. A config alone does not identify a run folder."""
MAX_DEPTH = 6
MAX_FOLDERS = 20_000
"""Maximum number of folders that are searched."""


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RUN_FILES)


def runs_below(folder: Path) -> list[Path]:
    """Returns the run folders in ``folder``, sorted by path, or ``folder`` itself if it is a run folder.

    A run with two paths, for example because of a link, is returned once.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = [(folder, 0)]
    while waiting and len(seen) < MAX_FOLDERS:
        current, depth = waiting.pop()
        real_path = os.path.realpath(current)
        if is_run(current):
            known = found.get(real_path)
            # A link never hides the folder that it points to.
            found[real_path] = current if known is None or known.is_symlink() else known
        elif real_path not in seen and depth < MAX_DEPTH:
            waiting += [(path, depth + 1) for path in _folders_in(current)]
        seen.add(real_path)
    return sorted(found.values())


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except OSError:
        return []  # no permission to read the folder
