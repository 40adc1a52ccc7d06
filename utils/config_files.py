"""Reads config files and command-line overrides as plain values.

Config files are written in YAML 1.2: ``1e-4`` is a number, ``no`` is a string, and a repeated key is an error. ``<<: *name``
merges mappings as in YAML 1.1. ``base:`` lists one or more files from which a file inherits values. The paths of bases are
relative to this file. ``a.b=value`` on the command line overrides the values of the file and of its bases. :mod:`utils.config`
binds the values to types.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.yaml_text import MAX_CHARACTERS, MAX_DEPTH, KeyPath, YamlError, parse

COMMAND_LINE = "command line"
"""Location of an override."""

MAX_FINDINGS = 20
"""Maximum number of config errors that are shown."""
MAX_SHOWN = 200
"""Maximum number of characters that are shown of an invalid value."""
MAX_FILES = 100
"""Maximum number of files that a config may inherit from. A file that is inherited twice counts twice."""

Locations = dict[KeyPath, str]
"""Locations by the path of the key, as ``file:line`` or :data:`COMMAND_LINE`."""


class ConfigError(UserError):
    """All errors of a config, one per line."""

    def __init__(self, findings: Sequence[UserError]):
        self.findings = list(findings)
        # Names and values in a file may contain line breaks and control characters.
        shown = [
            "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(finding))
            for finding in self.findings[:MAX_FINDINGS]
        ]
        if len(self.findings) > MAX_FINDINGS:
            shown.append(f"… and {len(self.findings) - MAX_FINDINGS:,} more")
        if len(self.findings) == 1 and shown[0] == str(self.findings[0]):
            (only,) = self.findings
            super().__init__(only.what, where=only.where, remedy=only.remedy)
        else:
            super().__init__("\n       ".join(shown))


class ReadConfig(NamedTuple):
    """The plain values of a config, including its bases and overrides, before they are bound to types.

    Attributes:
        values: the values by key.
        locations: the location of each key.
        malformed: an error for each override that could not be applied, for :func:`utils.config.bind` to report with its own.
    """

    values: dict[str, Any]
    locations: Locations
    malformed: list[UserError]


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> ReadConfig:
    """Reads a config.

    Raises:
        ConfigError: if a file cannot be read.
    """
    read = ReadConfig({}, {}, [])
    _merge(read.values, _read_with_bases(Path(path), read.locations, chain=()))
    for override in overrides:
        try:
            _apply_override(read.values, override, read.locations)
        except UserError as error:
            read.malformed.append(error)
    return read


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file as plain values, without bases or binding.

    Raises:
        ConfigError: if the file cannot be read.
    """
    return _read_yaml(path, {})


def _read_with_bases(
    path: Path, locations: Locations, chain: tuple[Path, ...], files: list[Path] | None = None
) -> dict[str, Any]:
    """Returns the values of a file, merged over the values of its bases.

    Args:
        path: the file.
        locations: the locations of the keys, to which this function adds.
        chain: the files through which this file is inherited, to detect cycles.
        files: all files that have been read so far.
    """
    files = [] if files is None else files
    files.append(path)
    if len(files) > MAX_FILES:
        raise ConfigError(
            [
                UserError(
                    f"the config inherits from more than {MAX_FILES} files", where=path, remedy="inherit from fewer"
                )
            ]
        )
    own_locations: Locations = {}
    document = _read_yaml(path, own_locations)
    absolute = Path(os.path.realpath(path))
    if absolute in chain:
        raise ConfigError(
            [UserError(f"base files form a cycle: {' -> '.join(p.name for p in (*chain, path))}", where=path)]
        )
    bases = document.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            [
                UserError(
                    f"base must be a file name or a list of file names, not {shown_value(bases)}",
                    where=own_locations["base",],
                )
            ]
        )
    values: dict[str, Any] = {}
    for base in bases:
        base_path = Path(os.path.normpath(path.parent / base))
        if not os.path.isfile(base_path):
            raise ConfigError(
                [
                    UserError(
                        f"base file {base_path} does not exist",
                        where=path,
                        remedy="base is relative to the file that sets it",
                    )
                ]
            )
        _merge(values, _read_with_bases(base_path, locations, (*chain, absolute), files))
    locations.update({keys: location for keys, location in own_locations.items() if keys[0] != "base"})
    _merge(values, document)
    return values


def _read_yaml(path: Path, locations: Locations) -> dict[str, Any]:
    """Returns the values of a file, and adds the locations of its keys to ``locations``."""
    # Path.is_file would raise for a name that is too long or in a folder without permission.
    if not os.path.isfile(path):
        what, remedy = why_no_file(path)
        raise ConfigError([UserError(what, where=path, remedy=remedy)])
    try:
        size = path.stat().st_size
        if size > 4 * MAX_CHARACTERS:
            raise ConfigError(
                [
                    UserError(
                        f"the file has {size:,} bytes, too many for a config",
                        where=f"{path}:1",
                        remedy="is this a config?",
                    )
                ]
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            [UserError(f"cannot be read: {error.strerror}", where=path, remedy="check its permissions")]
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            [UserError("cannot be read: it is not UTF-8 text", where=f"{path}:{line}", remedy="save it as UTF-8")]
        ) from None
    try:
        values, lines = parse(text)
    except YamlError as error:
        raise ConfigError([UserError(error.problem, where=f"{path}:{error.line}", remedy=error.remedy)]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            [UserError(f"a config is a mapping of keys to values, not a {type(values).__name__}", where=f"{path}:1")]
        )
    locations.update({keys: f"{path}:{line}" for keys, line in lines.items()})
    return values


def why_no_file(path: Path) -> tuple[str, str]:
    """Returns the reason why a path is not a config file, and the remedy."""
    try:
        path.stat()
    except FileNotFoundError:
        existing = [each.name for each in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, existing, n=1)
        return (
            "no such config file",
            f"did you mean {path.parent / near[0]}?" if near else "see the configs in configs/",
        )
    except (OSError, ValueError) as error:
        return f"no such config file ({getattr(error, 'strerror', None) or error})", "check the path"
    if path.is_dir():
        return "is a folder, not a config file", "use a file in it"
    return "is not a regular file", "use a YAML file"


def _merge(target: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Merges mappings key by key. Any other value, including a list, replaces the old value."""
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _apply_override(values: dict[str, Any], override: str, locations: Locations) -> None:
    """Sets a key to the value of an override.

    Raises:
        UserError: if the override is malformed.
    """
    name, equals, text = override.partition("=")
    keys = tuple(name.split("."))
    if not equals or not all(keys):
        raise UserError(f"{shown_value(override)} is not of the form section.key=value", where=COMMAND_LINE)
    if len(keys) > MAX_DEPTH:
        raise UserError(
            f"{shown_value(override)} is nested more than {MAX_DEPTH} deep", where=COMMAND_LINE, remedy="check the key"
        )
    try:
        value, _ = parse(text)
    except YamlError as error:
        raise UserError(
            f"the value of {shown_value(override)}: {error.problem}", where=COMMAND_LINE, remedy=error.remedy
        ) from None
    node = values
    for depth, key in enumerate(keys[:-1], start=1):
        child = node.get(key)
        if isinstance(child, list):
            name = ".".join(keys[:depth])
            raise UserError(f"{name} is a list", where=COMMAND_LINE, remedy=f"set the whole list, as {name}=[...]")
        if not isinstance(child, dict):
            child = {}
            node[key] = child
            locations[keys[:depth]] = COMMAND_LINE
        node = child
    node[keys[-1]] = value
    for replaced in [path for path in locations if path[: len(keys)] == keys]:
        del locations[replaced]
    _record_override(value, locations, keys)


def _record_override(value: Any, locations: Locations, keys: KeyPath) -> None:
    locations[keys] = COMMAND_LINE
    if isinstance(value, dict):
        for key, child in value.items():
            _record_override(child, locations, (*keys, key))


def unknown_key(name: str, location: str, known: Sequence[str]) -> UserError:
    """Returns the error for an unknown key, which suggests the closest keys in the whole config.

    Args:
        name: path of the key, such as ``train.batch_size``.
        location: location of the key.
        known: paths of the valid keys, in which ``[]`` stands for any list entry and ``<name>`` for any name that the user
            chooses.
    """
    close = nearest_keys(re.sub(r"\.\d+\.", "[].", name), known)
    section, dot, _ = name.rpartition(".")
    prefix = section + dot
    inside = dict.fromkeys(key.removeprefix(prefix).partition(".")[0] for key in known if key.startswith(prefix))
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(inside)}"
    return UserError(f"{name} is not a key of this config", where=location, remedy=hint)


def nearest_keys(name: str, known: Sequence[str]) -> list[str]:
    """Returns up to three keys that the user may have meant by a misspelled or misplaced key, with the most likely key first.

    The order of preference is: similar names in the same section, equal names in other sections, similar names in other
    sections.
    """
    section, _, last = name.rpartition(".")
    sections = {".".join(key.split(".")[:end]) for key in known for end in range(1, key.count(".") + 1)}
    paths = [*dict.fromkeys([*known, *sorted(sections)])]
    last_of = {path: path.rpartition(".")[2].removesuffix("[]") for path in paths}
    siblings = [path for path in paths if path.rpartition(".")[0] == section]
    if matches := difflib.get_close_matches(last, [last_of[path] for path in siblings], n=1):
        return [path for path in siblings if last_of[path] == matches[0]][:1]
    close = [path for path in paths if last_of[path] == last]
    if not close and (matches := difflib.get_close_matches(last, set(last_of.values()), n=1, cutoff=0.75)):
        close = [path for path in paths if last_of[path] == matches[0]]
    return sorted(close, key=lambda path: (path.count("."), -difflib.SequenceMatcher(None, name, path).ratio()))[:3]


def shown_value(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


def nearest_location(keys: KeyPath, locations: Locations, source: str) -> str:
    """Returns the location of a key or of its innermost known section, or ``source`` if neither is known."""
    for end in range(len(keys), 0, -1):
        if keys[:end] in locations:
            return locations[keys[:end]]
    return source
