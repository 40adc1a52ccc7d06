"""Numbers of a benchmark in a file, for programs; people read what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.files import write_text


def keep(path: Path | None, found: Any) -> None:
    """Write JSON values to the file of ``--json``, if it was given."""
    if path is not None:
        write_text(path, json.dumps(found, indent=2) + "\n")
