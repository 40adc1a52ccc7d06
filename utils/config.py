"""The config system: YAML files that inherit, command-line overrides, strict binding to typed models.

Files follow YAML 1.2: ``1e-4`` is a number, ``no`` is a string, a repeated key is an error; ``<<: *name`` merges as in YAML
1.1. ``base:`` names one or more files, relative to the file itself, whose values the file inherits. ``a.b=value`` on the
command line overrides both. Binding reports all unknown, missing or mistyped keys at once, with file, line and the nearest
valid name.
"""

from __future__ import annotations

import difflib
import io
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from utils.errors import UserError
from utils.yaml_text import MAX_CHARACTERS, MAX_DEPTH, KeyPath, YamlError, parse


class Config(BaseModel):
    """Base of every config section: immutable; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number; pydantic would convert them to 1 and 0."""
        assert info.field_name is not None
        types_of_field = _leaf_types(cls.model_fields[info.field_name].annotation)
        values = value if isinstance(value, list) else [value]
        if (
            any(isinstance(item, bool) for item in values)
            and types_of_field & {int, float}
            and bool not in types_of_field
        ):
            raise ValueError("Input should be a number, not a boolean")
        return value


def _leaf_types(annotation: Any) -> set[Any]:
    """The leaf types of an annotation: int and None for ``list[int] | None``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _leaf_types(arguments[0])
    if not arguments or origin is typing.Literal:
        return {origin or annotation}
    return set().union(*(_leaf_types(argument) for argument in arguments if argument is not ...))


class ConfigError(UserError):
    """All errors of a config, one per line."""

    def __init__(self, findings: Sequence[str]):
        self.findings = [_printable(finding) for finding in findings]
        shown = self.findings[:MAX_FINDINGS]
        if len(self.findings) > len(shown):
            shown.append(f"… and {len(self.findings) - len(shown):,} more")
        super().__init__("\n       ".join(shown))


def _printable(text: str) -> str:
    """The text in one line: names and values of a file may hold line breaks and control characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


C = TypeVar("C", bound=Config)
COMMAND_LINE = "command line"
"""The place of an override."""

MAX_FINDINGS = 20
"""Errors of a config that are shown."""
MAX_SHOWN = 200
"""Characters of a wrong value that are shown."""
MAX_FILES = 100
"""Files that a config may inherit from, each as often as it is named."""

Places = dict[KeyPath, str]


def load_config(path: str | Path, overrides: Sequence[str], schema: type[C]) -> C:
    """Read ``path`` with its bases, apply ``a.b=value`` overrides and bind the result to ``schema``.

    Raises:
        ConfigError: with one line per unreadable file and per unknown, missing or mistyped key.
    """
    return load_with_places(path, overrides, schema)[0]


def load_with_places(path: str | Path, overrides: Sequence[str], schema: type[C]) -> tuple[C, Places]:
    """Load as :func:`load_config`; also returns where each key was written, ``file:line`` or :data:`COMMAND_LINE`."""
    values, places = read_with_places(path, overrides)
    return bind(values, schema, places, str(path)), places


def read_with_places(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Places]:
    """The plain, unbound values of a config with its bases and overrides, and where each key was written.

    Raises:
        ConfigError: if a file cannot be read, or an override is malformed.
    """
    places: Places = {}
    values = _read_with_bases(Path(path), places, chain=())
    findings: list[str] = []
    for override in overrides:
        _apply_override(values, override, places, findings)
    if findings:
        raise ConfigError(findings)
    return values, places


def bind(values: Mapping[str, Any], schema: type[C], places: Places | None = None, source: str = "config") -> C:
    """Bind plain values to ``schema``. ``places``: ``file:line`` of each key, for error messages.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_finding(dict(e), schema, places or {}, source) for e in error.errors()]) from None


def read_config(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The plain, unbound values of a config with its bases and overrides. Malformed overrides are skipped: binding reports them.

    Raises:
        ConfigError: if a file cannot be read.
    """
    values = _read_with_bases(Path(path), {}, chain=())
    for override in overrides:
        _apply_override(values, override, {}, [])
    return values


def peek(path: str | Path, overrides: Sequence[str], key: str) -> Any:
    """The plain, unbound value of a top-level key; None if the key is absent, or the config cannot be read (binding reports
    that)."""
    try:
        values = read_config(path, overrides)
    except ConfigError:
        return None
    return values.get(key)


def dump_config(config: Config) -> str:
    """The resolved config as YAML; :func:`load_config` reads it back to an equal config."""
    stream = io.StringIO()
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as plain values, without bases or binding.

    Raises:
        ConfigError: if it cannot be read.
    """
    return _read_yaml(path, {})


def _read_with_bases(
    path: Path, places: Places, chain: tuple[Path, ...], files: list[Path] | None = None
) -> dict[str, Any]:
    """The values of a file over those of its bases. ``chain``: the files that lead here; ``files``: all that were read."""
    files = [] if files is None else files
    files.append(path)
    if len(files) > MAX_FILES:
        raise ConfigError([f"{path}: more than {MAX_FILES} files are inherited from; inherit from fewer"])
    own_places: Places = {}
    document = _read_yaml(path, own_places)
    absolute = Path(os.path.realpath(path))
    if absolute in chain:
        raise ConfigError([f"{path}: base files form a circle: {' -> '.join(p.name for p in (*chain, path))}"])
    bases = document.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            [f"{own_places[('base',)]}: base must be a file name or a list of file names, not {_shown(bases)}"]
        )
    values: dict[str, Any] = {}
    for base in bases:
        base_path = Path(os.path.normpath(path.parent / base))
        if not os.path.isfile(base_path):
            raise ConfigError([f"{path}: base file {base_path} does not exist; base is relative to the file it is in"])
        _merge(values, _read_with_bases(base_path, places, (*chain, absolute), files))
    places.update({keys: place for keys, place in own_places.items() if keys[0] != "base"})
    _merge(values, document)
    return values


def _read_yaml(path: Path, places: Places) -> dict[str, Any]:
    """The values of a file; adds the places of its keys."""
    # os.path: Path.is_file raises for a name that is too long, or in a folder that may not be entered.
    if not os.path.isfile(path):
        raise ConfigError([f"{path}: {why_no_file(path)}"])
    try:
        size = path.stat().st_size
        if size > 4 * MAX_CHARACTERS:
            raise ConfigError([f"{path}:1: {size:,} bytes are more than a config may have; is this a config?"])
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}; check its permissions"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: cannot be read: it is not UTF-8 text; save it as UTF-8"]) from None
    try:
        values, lines = parse(text)
    except YamlError as error:
        raise ConfigError([f"{path}:{error.line}: {error.problem}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path}:1: a config is a mapping of keys to values, not a {type(values).__name__}"])
    places.update({keys: f"{path}:{line}" for keys, line in lines.items()})
    return values


def why_no_file(path: Path) -> str:
    """Why a path is not the file of a config, with the remedy."""
    try:
        path.stat()
    except FileNotFoundError:
        return "no such config file"
    except (OSError, ValueError) as error:
        return f"no such config file ({getattr(error, 'strerror', None) or error}); check the path"
    return (
        "is a folder, not a config file; give a file in it"
        if path.is_dir()
        else "is not a plain file; give a YAML file"
    )


def _merge(target: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Merge mappings key by key; any other value, lists included, replaces the old value."""
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _apply_override(values: dict[str, Any], override: str, places: Places, findings: list[str]) -> None:
    name, equals, text = override.partition("=")
    keys = tuple(name.split("."))
    if not equals or not all(keys):
        findings.append(f"{COMMAND_LINE}: {_shown(override)} is not of the form section.key=value")
        return
    if len(keys) > MAX_DEPTH:
        findings.append(f"{COMMAND_LINE}: {_shown(override)} is nested more than {MAX_DEPTH} deep; check the key")
        return
    try:
        value, _ = parse(text)
    except YamlError as error:
        findings.append(f"{COMMAND_LINE}: the value of {_shown(override)}: {error.problem}")
        return
    node = values
    for depth, key in enumerate(keys[:-1], start=1):
        child = node.get(key)
        if isinstance(child, list):
            name = ".".join(keys[:depth])
            findings.append(f"{COMMAND_LINE}: {name} is a list; give it whole, as {name}=[...]")
            return
        if not isinstance(child, dict):
            child = {}
            node[key] = child
            places[keys[:depth]] = COMMAND_LINE
        node = child
    node[keys[-1]] = value
    for replaced in [path for path in places if path[: len(keys)] == keys]:
        del places[replaced]
    _record_override(value, places, keys)


def _record_override(value: Any, places: Places, keys: KeyPath) -> None:
    places[keys] = COMMAND_LINE
    if isinstance(value, dict):
        for key, child in value.items():
            _record_override(child, places, (*keys, key))


def _finding(error: dict[str, Any], schema: type[Config], places: Places, source: str) -> str:
    location = tuple(part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    name = ".".join(str(part) for part in location) or "config"
    keys = tuple(str(part) for part in location)
    place = nearest_place(keys, places, source)
    if error["type"] == "extra_forbidden":
        return unknown_key(name, place, [key for key, _ in fields_of(schema)])
    if error["type"] == "missing":
        return f"{place}: {name} is missing; add it or give {name}=... on the command line"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "model_type" and (section := _owner(schema, location)) is not None:
        message = f"is a section; give keys of it: {', '.join(section.model_fields)}"
    if isinstance(error["input"], Mapping | BaseModel):
        overridden = any(where == COMMAND_LINE and key[: len(keys)] == keys for key, where in places.items())
        if overridden and place != COMMAND_LINE:
            place = f"{COMMAND_LINE} and {place}"
        return f"{place}: {name}: {message}"
    return f"{place}: {name} = {_shown(error['input'])}: {message}"


def unknown_key(name: str, place: str, known: Sequence[str]) -> str:
    """The error for a key that does not exist, with the nearest keys of the whole config.

    Args:
        name: path of the key, such as ``train.batch_size``.
        place: where it was written.
        known: paths of the keys that exist; ``[]`` stands for an entry of a list, ``<name>`` for a name that the user chooses.
    """
    close = nearest_keys(name, known)
    section, dot, _ = name.rpartition(".")
    prefix = section + dot
    inside = dict.fromkeys(key.removeprefix(prefix).partition(".")[0] for key in known if key.startswith(prefix))
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(inside)}"
    return f"{place}: {name} is not a key of this config; {hint}"


def nearest_keys(name: str, known: Sequence[str]) -> list[str]:
    """Up to three keys that the user may have meant by a misspelled or misplaced one, the likeliest first.

    A similar name in the same section is preferred; then the same name in other sections; then similar names anywhere.
    """
    section, _, last = name.rpartition(".")
    sections = {".".join(key.split(".")[:end]) for key in known for end in range(1, key.count(".") + 1)}
    paths = [*dict.fromkeys([*known, *sorted(sections)])]
    last_of = {path: path.rpartition(".")[2].removesuffix("[]") for path in paths}
    siblings = [path for path in paths if path.rpartition(".")[0] == section]
    if found := difflib.get_close_matches(last, [last_of[path] for path in siblings], n=1):
        return [path for path in siblings if last_of[path] == found[0]][:1]
    same = [path for path in paths if last_of[path] == last]
    if not same and (found := difflib.get_close_matches(last, set(last_of.values()), n=1, cutoff=0.75)):
        same = [path for path in paths if last_of[path] == found[0]]
    return sorted(same, key=lambda path: (path.count("."), -difflib.SequenceMatcher(None, name, path).ratio()))[:3]


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


def nearest_place(keys: KeyPath, places: Places, source: str) -> str:
    """Where a key was written, or the nearest section around it; ``source`` if neither is known."""
    for end in range(len(keys), 0, -1):
        if keys[:end] in places:
            return places[keys[:end]]
    return source


def _owner(schema: type[Config], location: Sequence[Any]) -> type[Config] | None:
    """The section class that holds the key at ``location``, also inside optional and container annotations."""
    owner: type[Config] | None = schema
    for part in location:
        if owner is None or not isinstance(part, str) or part not in owner.model_fields:
            continue
        owner = _config_class(owner.model_fields[part].annotation)
    return owner


def fields_of(schema: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of a config class and of its sections, with its path: ``[]`` stands for an entry of a list, ``<name>`` for a
    name that the user chooses."""
    for name, field in schema.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        for section_path, section in sections_of(field.annotation, path):
            yield from fields_of(section, f"{section_path}.")


def sections_of(annotation: Any, path: str) -> Iterator[tuple[str, type[Config]]]:
    """The config classes in an annotation, each with the path of its keys."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Config) and origin is None:
        yield path, annotation
    elif origin in (list, tuple):
        yield from sections_of(arguments[0], f"{path}[]")
    elif origin is dict:
        yield from sections_of(arguments[1], f"{path}.<name>")
    elif origin in (typing.Union, types.UnionType, typing.Annotated):
        for argument in arguments:
            yield from sections_of(argument, path)


def _config_class(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, Config) else None
    for argument in typing.get_args(annotation):
        section = _config_class(argument)
        if section:
            return section
    return None
