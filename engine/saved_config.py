"""The ``config.yaml`` that a run has saved in its folder, and with which a run may be resumed. This module does not import torch.

The file begins and ends with YAML's document markers, so that a file that was cut off is recognised. Earlier versions wrote files
without markers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.checkpoint import CHECKPOINTS, fault_of, list_checkpoints
from engine.run_files import EVENTS_FILE
from utils.config import Config, WhenResumed, flat, when_resumed, with_previous_defaults
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


def check_same_config(saved: Path, config: Config, *, evaluate: bool) -> None:
    """Compares the config of a run with the config that the run has saved.

    Raises:
        UserError: if it is a run of another task, or a key has changed that must not change when the run is resumed or, with
            ``evaluate``, evaluated.
    """
    values = read_saved_config(saved)
    task, saved_task = getattr(config, "task", None), values.get("task")
    if isinstance(saved_task, str) and task != saved_task:
        raise UserError(
            f"this is a run of the task {saved_task}, not {task}",
            where=saved,
            remedy=f"use another --output, or pass only --output {saved.parent} --resume",
        )
    may_change = [WhenResumed.MAY_CHANGE, *([] if evaluate else [WhenResumed.AFFECTS_METRICS])]
    before, now = flat(_with_defaults(values, type(config), saved)), flat(config.model_dump(mode="json"))
    changed = [
        f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if not _equal(before.get(key), now.get(key)) and when_resumed(type(config), key) not in may_change
    ]
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise UserError(
            f"this run had a different config: {'; '.join(changed[:3])}{more}",
            where=saved,
            remedy=f"use another --output, with init.checkpoint={saved.parent}"
            f"{'' if evaluate else ' to start from its weights'}, or pass only --output {saved.parent} --resume",
        )


def _with_defaults(saved: dict[str, Any], schema: type[Config], file: Path) -> Any:
    """Fills in the defaults of config keys that were added after the config was saved in ``file``.

    Raises:
        UserError: if a key without a default is missing.
    """
    try:
        return schema.model_validate(with_previous_defaults(saved, schema)).model_dump(mode="json")
    except ValidationError as error:
        if missing := [each["loc"] for each in error.errors() if each["type"] == "missing"]:
            raise damaged_config(file, f"lacks {'.'.join(map(str, missing[0]))}") from None
        return saved  # it contains keys or values unknown to this version


def _equal(before: Any, now: Any) -> bool:
    """True if two config values are equal. A boolean never equals a number here, although 1 == True in Python."""
    return bool(before == now) and isinstance(before, bool) == isinstance(now, bool)
