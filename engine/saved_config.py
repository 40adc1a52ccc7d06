"""The ``config.yaml`` that a run has saved in its folder. This module does not import torch.

The file begins and ends with YAML's document markers, so that a file that was cut off is recognised. Earlier versions wrote files
without markers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.checkpoint import CHECKPOINTS, fault_of, list_checkpoints
from engine.run_files import EVENTS_FILE
from utils.config_files import ConfigError, read_yaml
from utils.errors import UserError
from utils.files import read_text

START, END = "---", "..."
"""YAML's document markers."""


def marked(text: str) -> str:
    """Adds the document markers to the text of a config."""
    return f"{START}\n{text}{END}\n"


def read_saved_config(file: Path) -> dict[str, Any]:
    """Returns the values in the ``config.yaml`` of a run or of a saved model.

    Raises:
        UserError: if the file is missing or damaged. If it is damaged, the message says which checkpoint of the run is intact,
            and how to continue.
    """
    try:
        values = read_yaml(file)
    except ConfigError as error:
        if not file.exists():
            raise
        first = error.findings[0]
        line = first.where.removeprefix(f"{file}:")
        fault = f"line {line}: {first.what}" if line.isdecimal() else first.what
        raise damaged_config(file, f"is damaged ({fault})") from None
    text = read_text(file, "utf-8-sig").strip()
    if text.startswith(START) and not text.endswith(f"\n{END}"):
        raise damaged_config(file, "is cut off")
    if not values and "{}" not in text:
        raise damaged_config(file, "is empty")
    return values


def damaged_config(file: Path, fault: str) -> UserError:
    """Returns the error for the damaged ``config.yaml`` of a run or of a saved model."""
    checkpoints = list_checkpoints(file.parent / CHECKPOINTS)
    intact = next((each.step for each in reversed(checkpoints) if fault_of(each.folder) is None), None)
    if intact is None:
        return UserError(f"{file} {fault}", remedy="restore it from a backup")
    return UserError(
        f"{file} {fault}, but the checkpoint of step {intact} is intact",
        remedy=f"to continue, restore {file.name} from a backup, or remove it and run the first command of this run "
        f"(see {EVENTS_FILE}) with --resume",
    )
