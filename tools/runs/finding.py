"""Finds runs in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from engine.run_files import EVALUATION_FILE, EVENTS_FILE, LOG_FILE, METRICS_FILE

SIGNS = (METRICS_FILE, EVENTS_FILE, LOG_FILE, EVALUATION_FILE)
"""Every run folder has at least one of these files. A config alone does not identify a run folder."""
DEEPEST = 6
MAX_FOLDERS = 20_000
"""Maximum number of folders that are searched."""


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SIGNS)


def runs_below(folder: Path) -> list[Path]:
    """Returns the run folders in ``folder``, sorted by path, or ``folder`` itself if it is a run folder.

    A run that has two names, for example through a link, counts once.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = [(folder, 0)]
    while waiting and len(seen) < MAX_FOLDERS:
        here, depth = waiting.pop()
        place = os.path.realpath(here)
        if is_run(here):
            known = found.get(place)
            # A link never hides the folder that it points to.
            found[place] = here if known is None or known.is_symlink() else known
        elif place not in seen and depth < DEEPEST:
            waiting += [(path, depth + 1) for path in _folders_in(here)]
        seen.add(place)
    return sorted(found.values())


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except OSError:
        return []  # no permission to read it
