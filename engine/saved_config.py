"""Reads the ``config.yaml`` that a run has saved in its folder. This module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.manifest import CHECKPOINTS, checkpoint_folders, fault_of
from engine.run_files import EVENTS_FILE
from utils.config_files import ConfigError, read_yaml
from utils.errors import UserError
from utils.files import read_text


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
        fault = error.findings[0].removeprefix(str(file)).rpartition("; ")[0]
        raise damaged_config(file, fault.removeprefix(": ")) from None
    text = read_text(file, "utf-8-sig")
    if not text.strip():
        raise damaged_config(file, "is empty")
    if not text.endswith("\n"):
        raise damaged_config(file, "is cut off")
    return values


def damaged_config(file: Path, fault: str) -> UserError:
    """Returns the error for the damaged ``config.yaml`` of a run or of a saved model."""
    checkpoints = checkpoint_folders(file.parent / CHECKPOINTS)
    intact = next((step for step, folder in reversed(checkpoints) if fault_of(folder) is None), None)
    separator = "" if fault.startswith(":") else " "  # the fault may begin with the number of a line
    if intact is None:
        return UserError(f"{file}{separator}{fault}; restore it from a backup")
    return UserError(
        f"{file}{separator}{fault}, but the checkpoint of step {intact} is intact; to continue, restore {file.name} from a "
        f"backup, or remove it and run the first command of this run (see {EVENTS_FILE}) with --resume"
    )
