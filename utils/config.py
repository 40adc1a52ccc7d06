"""The config system. It binds the values from config files and from the command line to typed models.

:mod:`utils.config_files` reads the files. Binding reports all unknown, missing or mistyped keys together, with the file, the line
and the closest valid name.
"""

from __future__ import annotations

import io
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from utils.config_files import (
    COMMAND_LINE,
    ConfigError,
    Locations,
    nearest_location,
    read_config,
    shown_value,
    unknown_key,
)
from utils.errors import UserError


class WhenResumed(Enum):
    """Says whether a key may change when a run is resumed. A field declares its value in its annotation
    (``Annotated[int, MAY_CHANGE]``), and a section in the class variable ``when_resumed``. Fields without a declaration inherit
    from their section."""

    MUST_NOT_CHANGE = "the key affects training"
    AFFECTS_METRICS = "the key may change, but in a finished run it would change the metrics that are kept"
    MAY_CHANGE = "the key may change"


MAY_CHANGE = WhenResumed.MAY_CHANGE
MUST_NOT_CHANGE = WhenResumed.MUST_NOT_CHANGE


class Config(BaseModel):
    """Base class of all config sections. Sections are immutable and reject unknown keys and non-finite numbers."""

    when_resumed: ClassVar[WhenResumed | None] = None
    """Default for the keys of this section; if None, the default of the enclosing section applies."""

    previous_defaults: ClassVar[Mapping[str, Any]] = {}
    """For keys that older versions did not have, the values that reproduce the behaviour of those versions; see
    :func:`with_previous_defaults`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Rejects true and false as numbers, because pydantic would convert them to 1 and 0."""
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
    """Returns the leaf types of an annotation, such as int and None for ``list[int] | None``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _leaf_types(arguments[0])
    if not arguments or origin is typing.Literal:
        return {origin or annotation}
    return set().union(*(_leaf_types(argument) for argument in arguments if argument is not ...))


C = TypeVar("C", bound=Config)


def load_config(path: str | Path, overrides: Sequence[str], schema: type[C]) -> C:
    """Reads a config file and its bases, applies overrides of the form ``a.b=value``, and binds the result to ``schema``.

    Raises:
        ConfigError: with one line per unreadable file and per unknown, missing or mistyped key.
    """
    read = read_config(path, overrides)
    return bind(read.values, schema, read.locations, str(path), read.malformed)


def bind(
    values: Mapping[str, Any],
    schema: type[C],
    locations: Locations | None = None,
    source: str = "config",
    malformed: Sequence[UserError] = (),
) -> C:
    """Binds plain values to a typed config.

    Args:
        values: the values by key.
        schema: class of the config.
        locations: location of each key (``file:line``), for error messages.
        source: name of the whole config, for error messages about keys without a location.
        malformed: errors that were found when the values were read, to report with all others.

    Raises:
        ConfigError: with a line for each unknown, missing or mistyped key.
    """
    findings = list(malformed)
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        findings += [_finding(each, schema, locations or {}, source) for each in _causes(error)]
    if findings:
        raise ConfigError(findings)
    return config


def _causes(error: ValidationError) -> list[dict[str, Any]]:
    """Returns the individual errors, with the paths of their keys. Errors that follow from others are omitted."""
    found: list[dict[str, Any]] = [{**each, "loc": _without_members(each["loc"])} for each in error.errors()]
    paths: list[tuple[int | str, ...]] = [each["loc"] for each in found]

    def is_consequence(kind: str, path: tuple[int | str, ...], value: Any) -> bool:
        inside = any(len(loc) > len(path) and loc[: len(path)] == path for loc in paths)
        if kind == "literal_error":  # the section of a union of names and a section has mistakes
            return inside and isinstance(value, Mapping)
        if kind == "model_type":  # a union of names and a section, with an unknown name
            return any(each["type"] == "literal_error" and each["loc"] == path for each in found)
        return kind == "too_short" and inside

    return [each for each in found if not is_consequence(each["type"], each["loc"], each["input"])]


def _without_members(path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Removes the names of the members of unions, which pydantic adds to the path of a key."""
    member = re.compile(r"function-.*|literal\[.*|[A-Z]\w*Config")
    kept = tuple(part for part in path if not (isinstance(part, str) and member.fullmatch(part)))
    plain = ("bool", "int", "float", "str", "constrained-int", "constrained-float", "constrained-str")
    return kept[:-1] if kept[-1:] and kept[-1] in plain else kept


def with_previous_defaults(saved: Any, schema: type[Config]) -> Any:
    """Returns the values of a saved config, to which :attr:`Config.previous_defaults` have been added.

    A saved config contains all keys that existed when it was saved. The defaults of some newer keys would change what the run
    computes, so these keys get the values that reproduce the behaviour of older versions.
    """
    if not isinstance(saved, dict):
        return saved
    filled = {**{name: value for name, value in schema.previous_defaults.items() if name not in saved}, **saved}
    for name, field in schema.model_fields.items():
        section = _config_class(field.annotation)
        if section is not None and name in filled:
            filled[name] = with_previous_defaults(filled[name], section)
    return filled


def dump_config(config: Config) -> str:
    """Returns the complete config as YAML. :func:`load_config` reads it back as an equal config."""
    stream = io.StringIO()
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of a config, as read from YAML, by full key. A list counts as one value."""
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _finding(error: dict[str, Any], schema: type[Config], locations: Locations, source: str) -> UserError:
    path = error["loc"]
    name = ".".join(str(part) for part in path) or "config"
    keys = tuple(str(part) for part in path)
    location = nearest_location(keys, locations, source)
    if error["type"] == "extra_forbidden":
        return unknown_key(name, location, [key for key, _ in fields_of(schema)])
    if error["type"] == "missing":
        return UserError(f"{name} is missing", where=location, remedy=f"add it or pass {name}=... on the command line")
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "model_type" and (section := _owner(schema, path)) is not None:
        message = f"is a section; set keys inside it: {', '.join(section.model_fields)}"
    if isinstance(error["input"], Mapping | BaseModel):
        overridden = any(where == COMMAND_LINE and key[: len(keys)] == keys for key, where in locations.items())
        if overridden and location != COMMAND_LINE:
            location = f"{COMMAND_LINE} and {location}"
        return UserError(f"{name}: {message}", where=location)
    return UserError(f"{name} = {shown_value(error['input'])}: {message}", where=location)


def _owner(schema: type[Config], location: Sequence[Any]) -> type[Config] | None:
    """Returns the section class that contains the key at ``location``, looking through optional and container annotations."""
    owner: type[Config] | None = schema
    for part in location:
        if owner is None or not isinstance(part, str) or part not in owner.model_fields:
            continue
        owner = _config_class(owner.model_fields[part].annotation)
    return owner


def fields_of(schema: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields the path of every field in a config class and in its sections, and the field. In a path, ``[]`` stands for any list
    entry, and ``<name>`` for any name that the user chooses."""
    for name, field in schema.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        for section_path, section in sections_of(field.annotation, path):
            yield from fields_of(section, f"{section_path}.")


def when_resumed(schema: type[Config], key: str) -> WhenResumed:
    """Returns whether ``key``, a path in a config of class ``schema``, may change when a run is resumed."""
    found, section = schema.when_resumed or MUST_NOT_CHANGE, schema
    for part in key.split("."):
        field = section.model_fields.get(part)
        if field is None:  # a name chosen by the user, or a list index
            continue
        inner = _config_class(field.annotation)
        if inner is not None:
            section = inner
            found = inner.when_resumed or found
        found = next((each for each in field.metadata if isinstance(each, WhenResumed)), found)
    return found


def sections_of(annotation: Any, path: str) -> Iterator[tuple[str, type[Config]]]:
    """Yields the config classes in an annotation, each with the path that precedes its keys."""
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
