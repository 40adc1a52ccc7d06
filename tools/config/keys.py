"""Lists the keys of a config class, with their types, defaults and descriptions."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from utils.config import Config, WhenResumed, fields_of, sections_of, when_resumed

REQUIRED = "required"


@dataclass(frozen=True)
class Key:
    """A key of a config.

    ``path`` is ``section.name``, where ``[]`` stands for an entry of a list, and ``<name>`` for a key that the user chooses.
    ``type``, ``default`` and ``meaning`` are strings; ``default`` is :data:`REQUIRED` if the key has no default. ``may_change``
    is whether the value may change when a run is resumed.
    """

    path: str
    type: str
    default: str
    meaning: str
    may_change: bool

    @property
    def form(self) -> str:
        """The values that the key accepts, and its default."""
        default = self.default if self.default == REQUIRED else f"default: {self.default}"
        return f"{self.type} ({default}{'; may change when a run is resumed' if self.may_change else ''})"


def keys_of(schema: type[Config]) -> Iterator[Key]:
    """Yields every key of a config class and of its sections, in order."""
    for path, field in fields_of(schema):
        has_sections = next(sections_of(field.annotation, path), None) is not None
        if not has_sections or _takes_other_values(field.annotation) or field.description or _changes_defaults(field):
            may_change = when_resumed(schema, path) is not WhenResumed.MUST_NOT_CHANGE
            yield Key(path, type_of(field), default_of(field), field.description or "", may_change)


def type_of(field: FieldInfo) -> str:
    """Returns the values that a field accepts, such as ``int >= 1 or null``."""
    limits = "".join(f" {sign} {limit:g}" for sign, limit in _limits(field.metadata))
    return re.sub(r"\b(int|float|text)\b", rf"\1{limits}", _type(field.annotation), count=1)


def default_of(field: FieldInfo) -> str:
    """Returns the default value as JSON; for a section, the values that differ from its keys' defaults."""
    if field.is_required():
        return REQUIRED
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return REQUIRED
    if isinstance(default, Config):
        return json.dumps(_changes(default), ensure_ascii=False) if _changes(default) else "its keys' defaults"
    return json.dumps(default, ensure_ascii=False, default=str)


def _changes_defaults(field: FieldInfo) -> bool:
    """Returns True if omitting a section results in values other than its keys' defaults."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return isinstance(default, Config) and bool(_changes(default))


def _changes(section: Config) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_defaults=True)


def _takes_other_values(annotation: Any) -> bool:
    """Returns True if the field also accepts values other than a section, such as null."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_takes_other_values(argument) for argument in typing.get_args(annotation))
    return next(sections_of(annotation, ""), None) is None


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (None, types.NoneType):
        return "null"
    if origin is typing.Literal:
        return " or ".join(json.dumps(value) if not isinstance(value, str) else value for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is typing.Annotated:
        limits = [f"{sign} {limit:g}" for sign, limit in _limits(arguments[1:])]
        return " ".join([_type(arguments[0]), *limits])
    if origin in (list, tuple):
        inner = [argument for argument in arguments if argument is not ...]
        return f"[{', '.join(_type(argument) for argument in inner)}{'' if len(inner) > 1 else ', ...'}]"
    if origin is dict:
        return f"{{name: {_type(arguments[1])}}}"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "section"
    return (
        {"str": "text"}.get(annotation.__name__, annotation.__name__)
        if isinstance(annotation, type)
        else str(annotation)
    )


def _limits(metadata: typing.Iterable[Any]) -> Iterator[tuple[str, float]]:
    signs = {annotated_types.Ge: (">=", "ge"), annotated_types.Gt: (">", "gt")}
    signs |= {annotated_types.Le: ("<=", "le"), annotated_types.Lt: ("<", "lt")}
    for entry in metadata:
        if isinstance(entry, FieldInfo):
            yield from _limits(entry.metadata)
        elif type(entry) in signs:
            sign, attribute = signs[type(entry)]
            yield sign, getattr(entry, attribute)
