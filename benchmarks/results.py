"""Numbers of a benchmark in a file, for programs; people read what it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from utils.files import write_text


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the flag ``--json``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers in a file, too")


def keep(flags: argparse.Namespace, found: Any) -> None:
    """Write JSON values to the file of ``--json``, if it was given."""
    if flags.json is not None:
        write_text(flags.json, json.dumps(found, indent=2) + "\n")
