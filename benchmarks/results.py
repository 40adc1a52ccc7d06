"""Writes the results of a benchmark to a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.files import write_text


def write_results(path: Path | None, results: Any) -> None:
    """Writes ``results``, which are JSON values, to the file passed with ``--json``, if any."""
    if path is not None:
        write_text(path, json.dumps(results, indent=2) + "\n")
