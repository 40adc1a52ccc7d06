"""Shows the config of a run, with the values that differ from the defaults marked, and the keys in which the configs of several
runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tasks import TASKS
from tasks.kinds import find_task
from tools.runs.reading import Run
from utils.config import bind, flat
from utils.config_files import ConfigError
from utils.errors import UserError

MAX_SHOWN_CHARACTERS = 300
"""Maximum number of characters of a value that are shown."""
MISSING = "—"
"""Text that is shown for a key that a config lacks."""


@dataclass(frozen=True)
class ConfigLine:
    """A line of a config as YAML.

    Attributes:
        marked: whether the value differs from the default of its key.
        default: the default of the key, or empty.
    """

    text: str
    marked: bool = False
    default: str = ""


@dataclass(frozen=True)
class ShownConfig:
    """A config as YAML, and a note that explains the marks."""

    note: str
    lines: list[ConfigLine]


@dataclass(frozen=True)
class Differences:
    """The keys whose values differ, with a value for each column.

    Attributes:
        same: number of keys whose values are the same in all columns.
        without: names of columns without a config.
        missing: whether some configs lack a key.
    """

    columns: list[str]
    rows: list[tuple[str, list[str]]]
    same: int
    without: list[str]
    missing: bool


def differences(columns: Sequence[tuple[str, Sequence[Run]]]) -> Differences:
    """Returns the keys whose values differ between columns, which are runs or groups of runs that differ only in their seed. A
    column shows every value that its runs have."""
    known = [(name, [flat(run.config) for run in runs if run.config is not None]) for name, runs in columns]
    without = [name for name, configs in known if not configs]
    known = [(name, configs) for name, configs in known if configs]
    keys = list(dict.fromkeys(key for _, configs in known for config in configs for key in config))
    rows = []
    for key in keys:
        values = [
            list(dict.fromkeys(_shown(config[key]) if key in config else MISSING for config in configs))
            for _, configs in known
        ]
        if len({frozenset(some) for some in values}) > 1:
            rows.append((key, [", ".join(some) for some in values]))
    missing = any(MISSING in values for _, values in rows)
    return Differences([name for name, _ in known], rows, len(keys) - len(rows), without, missing)


def config_of(run: Run) -> ShownConfig | None:
    """Returns the config of a run, with the values that differ from their key's default marked."""
    if run.config is None:
        return None
    defaults = _defaults(run.config)
    note = (
        "Marked: values that differ from the default of their key, or whose key has no default; # the default."
        if defaults is not None
        else f"The defaults of task {run.task!r} are unknown here, so nothing is marked."
    )
    return ShownConfig(note, list(_lines(run.config, defaults or {}, "", 0)))


def _lines(values: dict[str, Any], defaults: dict[str, Any], prefix: str, depth: int) -> Iterator[ConfigLine]:
    for name, value in values.items():
        key, indent = f"{prefix}{name}", "  " * depth
        if isinstance(value, dict) and value:
            yield ConfigLine(f"{indent}{name}:")
            yield from _lines(value, defaults, f"{key}.", depth + 1)
            continue
        default = defaults.get(key, value)
        marked = _shown(default) != _shown(value)
        default_text = _shown(default) if marked and default is not PydanticUndefined else ""
        yield ConfigLine(f"{indent}{name}: {_shown(value)}", marked, default_text)


def _defaults(config: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the default of each key in a config, which is undefined if the key has none. Returns None if the task or its keys
    belong to a different version."""
    task = config.get("task")
    if task not in TASKS:
        return None
    try:
        return dict(_defaults_in(bind(config, find_task(str(task)).config_class()), ""))
    except (ConfigError, UserError):
        return None


def _defaults_in(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in type(section).model_fields.items():
        if name == "task":  # identifies the config
            continue
        value, key = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _defaults_in(value, f"{key}.")
        elif isinstance(value, dict) and any(isinstance(part, BaseModel) for part in value.values()):
            for part, inner in value.items():
                yield from _defaults_in(inner, f"{key}.{part}.")
        else:
            yield key, field.get_default(call_default_factory=True)


def _shown(value: Any) -> str:
    """Returns a value on one line of YAML."""
    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, str) and value and value.isprintable() and ": " not in value:
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"
