"""``run.py config``: prints the keys of a config, or the values in a config file."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tasks import TASKS
from tasks.binding import bind_run
from tasks.kinds import find_task
from tools.config.keys import Key, keys_of
from utils.config import Config, dump_config
from utils.errors import UserError

SUFFIXES = (".yaml", ".yml")

DEFAULT = "default"
"""The location shown for a value that neither a file nor an override sets."""

TITLE = """# Config keys

This page lists all keys of all tasks, as printed by `python run.py config --markdown`. `python run.py config TASK` shows the keys
of one task; `python run.py config FILE` shows the values in a file, with the file and line that each comes from. `[]` stands for
an entry of a list, and `<name>` for a name that you choose. The default of a section, such as `{"max_tokens": 40}`, applies if a
config omits the section; if a config contains the section, the defaults of its keys apply.
"""


def config(target: str | None = None, /, *filters: str, yaml: bool = False, markdown: bool = False) -> int:
    """Print the keys of a task's config with type, default and description, or the values in a file and where each value comes
    from.

    Args:
        target: a task, a folder with task.py, or a YAML file.
        filters: show only keys with one of these prefixes; key=value overrides a value in the file.
        yaml: print the complete values of a file as a config, to be saved and edited.
        markdown: print the keys of all tasks as a Markdown document.

    Examples:
        python run.py config retrieval                                   every key of a retrieval run
        python run.py config retrieval optim. schedule.                  the keys of these sections
        python run.py config configs/pretrain/base_4m.yaml train.        values, and the file and line of each
        python run.py config configs/pretrain/base_4m.yaml train. train.steps=10
        python run.py config configs/demo/retrieval.yaml --yaml > mine.yaml
        python run.py config --markdown > keys.md                        every key of every task, as on the site
    """
    if markdown == (target is not None):
        raise UserError("pass a TASK or a FILE, or --markdown alone")
    if markdown:
        sys.stdout.write(document())
        return 0
    assert target is not None
    prefixes = [text for text in filters if "=" not in text]
    overrides = [text for text in filters if "=" in text]
    if yaml and (prefixes or not target.endswith(SUFFIXES)):
        raise UserError("--yaml prints a whole config", remedy="pass only a FILE, and KEY=VALUE to change values")
    if yaml:
        lines = [dump_config(bind_run(target, overrides).config).rstrip()]
    elif target.endswith(SUFFIXES):
        lines = list(lines_of_file(target, overrides, prefixes))
    else:
        if overrides:
            raise UserError(
                "only values in a file can be overridden", where=overrides[0], remedy=f"pass a FILE instead of {target}"
            )
        lines = list(lines_of_task(target, prefixes))
    if not lines:
        raise UserError(
            f"{target} has no key that begins with {' or '.join(prefixes)}", remedy="omit the prefix to see all keys"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def lines_of_task(task: str, prefixes: Sequence[str]) -> Iterator[str]:
    """Yields two lines for each key: first its path, type and default, then its description."""
    for key in _selected(keys_of(find_task(task).config_class()), prefixes):
        yield f"{key.path}: {key.form}"
        if key.meaning:
            yield f"    {key.meaning}"


def lines_of_file(path: str, overrides: Sequence[str], prefixes: Sequence[str]) -> Iterator[str]:
    """Yields two lines for each value in a config: first its path, value and location, then its description."""
    run = bind_run(path, overrides)
    meanings = {key.path: key.meaning for key in keys_of(type(run.config))}
    for keys, value in _values(run.config):
        name = ".".join(keys)
        if prefixes and not name.startswith(tuple(prefixes)):
            continue
        yield f"{name} = {json.dumps(value, ensure_ascii=False)}  ({run.read.locations.get(keys, DEFAULT)})"
        if meaning := _meaning_of(keys, meanings):
            yield f"    {meaning}"


def _meaning_of(keys: Sequence[str], meanings: Mapping[str, str]) -> str | None:
    """Returns the description of a key. One component of the key may be a name that the user chose."""
    chosen = [[*keys[:index], "<name>", *keys[index + 1 :]] for index in range(len(keys))]
    return next((meanings[path] for path in map(".".join, [keys, *chosen]) if path in meanings), None)


def document() -> str:
    """Returns the keys of all tasks in Markdown: first the keys that all tasks share, then the other keys of each task."""
    by_task = {task: list(keys_of(find_task(task).config_class())) for task in TASKS}
    first, *others = by_task.values()
    common = [key for key in first if all(key in keys for keys in others)]
    parts = [TITLE, "## Every task", *_entries(common)]
    for task, keys in by_task.items():
        parts += [
            f"## {task}",
            f"{TASKS[task].help[:1].upper()}{TASKS[task].help[1:]}.",
            *_entries(key for key in keys if key not in common),
        ]
    return "\n\n".join(parts) + "\n"


def _entries(keys: Iterable[Key]) -> Iterator[str]:
    """Yields the keys as a definition list for each section of the config: type and default, then the description."""
    sections: dict[str, list[Key]] = {}
    for key in keys:
        sections.setdefault(_section(key), []).append(key)
    for section, members in sections.items():
        yield f"### {section}"
        for key in members:
            yield f"`{key.path}`\n:   {html.escape(key.form, quote=False)}  \n    {html.escape(key.meaning, quote=False)}"


def _section(key: Key) -> str:
    """Returns the section of a key: its first component, or the first two for keys of ``model`` and ``data``."""
    parts = key.path.split(".")
    return ".".join(parts[: 2 if parts[0] in ("model", "data") and len(parts) > 2 else 1])


def _selected(keys: Iterable[Key], prefixes: Sequence[str]) -> Iterator[Key]:
    return (key for key in keys if not prefixes or key.path.startswith(tuple(prefixes)))


def _values(config: Config) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the values of a bound config with their keys. A list counts as one value."""

    def walk(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if isinstance(node, dict) and node:
            for name, child in node.items():
                yield from walk(child, (*keys, name))
        else:
            yield keys, node

    return walk(config.model_dump(mode="json"), ())
