"""Shows the config of a run with the values that differ from the defaults, and the keys in which configs of several runs
differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tasks import TASKS
from tasks.kinds import find_task
from tools.runs.reading import Run
from utils.config import bind
from utils.config_files import ConfigError
from utils.errors import UserError

LONGEST = 300
"""Maximum number of characters of a value that are shown."""

Flat = dict[str, Any]


def flat(values: Any, prefix: str = "") -> Flat:
    """Returns the values by full key; a list is one value."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    result: Flat = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return result


def differences(runs: Sequence[Run]) -> str:
    """A table of the keys whose values differ, a column for each run."""
    configs = [flat(run.config) for run in runs if run.config is not None]
    without = [run.name for run in runs if run.config is None]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = []
    for key in keys:
        values = [_shown(config[key]) if key in config else "—" for config in configs]
        if len(set(values)) > 1:
            rows.append(f"<tr><th>{escape(key)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>")
    note = f'<p class="faint">Without a config: {escape(", ".join(without))}.</p>' if without else ""
    if not rows:
        return f'<p class="faint">The {len(configs)} configs are the same.</p>{note}'
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs if run.config is not None)
    missing = " —: the config has no such key." if any("<td>—</td>" in row for row in rows) else ""
    same = f'<p class="faint">{len(keys) - len(rows)} other keys are the same.{missing}</p>'
    table = f'<table class="left"><tr class="head"><th></th>{head}</tr>{"".join(rows)}</table>'
    return f'<div class="scroll">{table}</div>{same}{note}'


def config_of(run: Run) -> str:
    """Returns the config as YAML; values that differ from their key's default are marked, and followed by the default."""
    if run.config is None:
        return '<p class="faint">The run has no config that can be read.</p>'
    defaults = _defaults(run.config)
    lines = list(_lines(run.config, defaults or {}, "", 0))
    note = (
        "Marked: values that differ from the default of their key, or that have none; # the default"
        if defaults is not None
        else f"The defaults of task {run.task!r} are unknown here, so nothing is marked"
    )
    return f'<p class="faint">{escape(note)}.</p><pre class="config">{"".join(lines)}</pre>'


def _lines(values: dict[str, Any], defaults: Flat, prefix: str, depth: int) -> Iterator[str]:
    for name, value in values.items():
        key, indent = f"{prefix}{name}", "  " * depth
        if isinstance(value, dict) and value:
            yield f"{indent}{escape(str(name))}:\n"
            yield from _lines(value, defaults, f"{key}.", depth + 1)
            continue
        text = f"{indent}{escape(str(name))}: {escape(_shown(value))}"
        default = defaults.get(key, value)
        if _shown(default) == _shown(value):
            yield f"{text}\n"
        else:
            beside = "" if default is PydanticUndefined else f'  <span class="faint"># {escape(_shown(default))}</span>'
            yield f"<mark>{text}</mark>{beside}\n"


def _defaults(config: dict[str, Any]) -> Flat | None:
    """Returns the default of each key of a config, undefined if it has none; or None if the task or its keys belong to another
    version."""
    task = config.get("task")
    if task not in TASKS:
        return None
    try:
        return dict(_defaults_in(bind(config, find_task(str(task)).load().config), ""))
    except (ConfigError, UserError):
        return None


def _defaults_in(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in type(section).model_fields.items():
        if name == "task":  # says which config it is
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
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
