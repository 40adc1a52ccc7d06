"""Writes the results of a benchmark to a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.files import write_text


def keep(path: Path | None, found: Any) -> None:
    """Writes JSON values to the file given by ``--json``, if any."""
    if path is not None:
        write_text(path, json.dumps(found, indent=2) + "\n")
