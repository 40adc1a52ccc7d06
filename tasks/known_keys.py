"""The valid config keys of our tasks, available without importing torch.

``configs/keys.json`` lists the keys by task. ``python run.py config --keys`` generates the file from the config classes, and a
test checks that it is up to date. With this file, misspelled keys are reported immediately. All other checks happen later, when
the config classes validate the values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from utils.config_files import ConfigError, nearest_location, read_with_locations, unknown_key

FILE = Path(__file__).parent.parent / "configs/keys.json"


@cache
def known_keys(task: str | None = None) -> tuple[str, ...]:
    """Returns the paths of all keys in a task's config, in the notation of ``run.py config``. If ``task`` is None, the keys of
    all tasks are returned."""
    by_task = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(by_task[task] if task is not None else dict.fromkeys(key for keys in by_task.values() for key in keys))


def check_keys(task: str, path: Path, overrides: Sequence[str]) -> None:
    """Checks a config file, its bases and the overrides for keys that are unknown to the task.

    Raises:
        ConfigError: with one line per unknown key, or if the file cannot be read.
    """
    values, locations = read_with_locations(path, overrides)
    keys = known_keys(task)
    unknown = list(_unknown(values, "", (), keys))
    if unknown:
        raise ConfigError(
            [unknown_key(".".join(name), nearest_location(name, locations, str(path)), keys) for name in unknown]
        )


def _unknown(
    values: Mapping[str, Any], pattern: str, name: tuple[str, ...], keys: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """Yields the unknown keys of a section.

    Args:
        values: the section.
        pattern: path of the section in ``keys``.
        name: path of the section in the config.
        keys: the known keys.
    """
    for key, value in values.items():
        path = next((each for each in (f"{pattern}{key}", f"{pattern}<name>") if _is_prefix(each, keys)), None)
        if path is None:
            yield (*name, key)
        elif isinstance(value, dict) and any(each.startswith(f"{path}.") for each in keys):
            yield from _unknown(value, f"{path}.", (*name, key), keys)
        elif isinstance(value, list) and any(each.startswith(f"{path}[].") for each in keys):
            for index, entry in enumerate(value):
                if isinstance(entry, dict):
                    yield from _unknown(entry, f"{path}[].", (*name, key, str(index)), keys)


def _is_prefix(path: str, keys: Sequence[str]) -> bool:
    return any(key == path or key.startswith((f"{path}.", f"{path}[].")) for key in keys)
