"""Collects the files and folders that a config names as inputs, and reports all missing inputs together before work starts.

Fields of a config declare inputs by their type, such as ``annotations: InputFile`` or ``images: InputFolder | None``.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Discriminator, Field, Tag
from pydantic.fields import FieldInfo

from utils.addresses import is_hub, is_url
from utils.config import Config
from utils.errors import UserError
from utils.files import expanded, path_remedy
from utils.hub import HUB, TIMM, looks_like_path

C = TypeVar("C", bound=Config)
Kind = Literal["file", "folder", "shards", "weights", "model"]
"""Types of inputs. "shards" are files, patterns or folders; "weights" are a file or the folder of a run; a "model" is a folder or
the name of a model on the Hub."""


@dataclass(frozen=True)
class Input:
    """Marks a config field as the path of an input of the run."""

    kind: Kind


InputFile = Annotated[str, Input("file")]
InputFolder = Annotated[str, Input("folder")]
InputShards = Annotated[list[str], Input("shards")]
InputWeights = Annotated[str, Input("weights")]
InputModel = Annotated[str, Input("model")]

SOURCES = "docs/data.md, docs/pretraining_data.md, docs/checkpoints.md and the first lines of the config"
TOKENIZER_KEY = "model.text.encoder"
NO_TOKENIZER = (
    "check the path, name another encoder, or learn a tokenizer from your texts with `python run.py tokenizer`"
)
"""Remedy for a missing tokenizer."""


class WeightedShards(Config):
    """An entry of a list of shards, with a weight."""

    path: str = Field(description="a file, pattern, folder or URL")
    weight: float = Field(
        gt=0, le=100, description="number of times that an epoch reads each record; may be a fraction"
    )


def _is_weighted(entry: Any) -> str:
    return "function-weighted" if isinstance(entry, Mapping | WeightedShards) else "function-path"


# In pydantic's errors, the location of a key includes the tag. Our messages omit tags, which begin with "function-".
_Entry = Annotated[
    Annotated[str, Tag("function-path")] | Annotated[WeightedShards, Tag("function-weighted")],
    Discriminator(_is_weighted),
]
InputWeightedShards = Annotated[list[_Entry], Input("shards")]


def inputs_of(config: Config, prefix: str = "") -> Iterator[tuple[str, Kind, str]]:
    """Yields the key, the type and the path of every input in the config."""
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), f"{prefix}{name}"
        mark = _mark(field)
        if mark is not None and value is not None:
            for entry in [value] if isinstance(value, str) else value:
                yield key, mark.kind, entry.path if isinstance(entry, WeightedShards) else entry
        elif mark is None:
            for part, key_of_part in _configs_in(value, key):
                yield from inputs_of(part, f"{key_of_part}.")


def with_shards(config: C, change: Callable[[str], str]) -> C:
    """Returns a copy of the config in which ``change`` has been applied to the path of every entry in lists of shards."""

    def changed(value: Any) -> Any:
        if isinstance(value, WeightedShards):
            return value.model_copy(update={"path": change(value.path)})
        if isinstance(value, Config):
            return with_shards(value, change)
        if isinstance(value, dict):
            return {name: changed(part) for name, part in value.items()}
        return type(value)(map(changed, value)) if isinstance(value, list | tuple) else value

    updates = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        shards = value is not None and (mark := _mark(field)) is not None and mark.kind == "shards"
        updates[name] = [change(v) if isinstance(v, str) else changed(v) for v in value] if shards else changed(value)
    return config.model_copy(update=updates)


def missing_inputs(config: Config, ignored_sections: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Returns the paths of missing inputs, each with the keys that contain the path. The keys in ``ignored_sections`` are not
    checked."""
    missing: dict[str, list[str]] = {}
    for key, kind, path in inputs_of(config):
        if key.partition(".")[0] not in ignored_sections and not _exists(kind, path):
            missing.setdefault(path, []).append(key)
    return missing


def check_inputs(config: Config, ignored_sections: tuple[str, ...] = ()) -> None:
    """Raises a :class:`UserError` that lists all missing inputs."""
    missing = missing_inputs(config, ignored_sections)
    if not missing:
        return
    if len(missing) == 1:
        [(path, keys)] = missing.items()
        raise UserError(f"{path} does not exist", where=keys[0], remedy=remedy_of(path, keys))
    remedy = f"check the paths (relative ones start at {Path.cwd()}); {SOURCES} say where to get them"
    if any(TOKENIZER_KEY in keys for keys in missing.values()):
        remedy += f"; for the tokenizer: {NO_TOKENIZER}"
    listed = "\n".join(f"  {path}  ({_shortened(keys)})" for path, keys in missing.items())
    raise UserError(f"{len(missing)} files or folders of this config do not exist; {remedy}\n{listed}")


def remedy_of(path: str, keys: Sequence[str]) -> str:
    """Returns the remedy for a missing input that ``keys`` name."""
    if TOKENIZER_KEY in keys:
        return NO_TOKENIZER
    if keys[0] == "init.vision" and not looks_like_path(path):
        return f"for weights from timm, use timm:{path}, for weights on the Hub, hf:{path}"
    remedy = f"{path_remedy(path)}; {SOURCES} say where to get it"
    return f"{remedy}; or set {keys[0]}=null to start from random weights" if keys[0].startswith("init.") else remedy


def _mark(field: FieldInfo) -> Input | None:
    """Returns the mark of a field that is an input, or None."""
    # For an optional input, the mark is on a member of the union.
    marks = [*field.metadata, *(mark for part in get_args(field.annotation) for mark in get_args(part))]
    return next((mark for mark in marks if isinstance(mark, Input)), None)


def _shortened(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more keys" if len(keys) > 2 else "")


def _configs_in(value: Any, key: str) -> Iterator[tuple[Config, str]]:
    if isinstance(value, Config):
        yield value, key
    elif isinstance(value, dict):
        yield from ((part, f"{key}.{name}") for name, part in value.items() if isinstance(part, Config))
    elif isinstance(value, list | tuple):
        yield from ((part, f"{key}[{index}]") for index, part in enumerate(value) if isinstance(part, Config))


def pattern_of(path: Path) -> str:
    """Returns a pattern for ``glob`` in which the existing parent folders are escaped, because folder names may contain
    brackets."""
    folder = next(
        (folder for folder in path.parents if os.path.isdir(folder)), path.parents[-1] if path.parents else path
    )
    return os.path.join(glob.escape(str(folder)), path.relative_to(folder)) if folder != path else str(path)


def _exists(kind: Kind, value: str) -> bool:
    if kind == "shards" and (is_url(value) or is_hub(value)):
        return True  # only the server knows whether it exists
    path = expanded(value)
    if kind == "model" and not looks_like_path(value.removeprefix(HUB)):
        return True
    if value.startswith((HUB, TIMM)):
        return not looks_like_path(value.partition(":")[2]) or os.path.exists(expanded(value.partition(":")[2]))
    if os.path.exists(path):  # checked first, since the name of a file or folder may contain brackets
        return True
    return kind == "shards" and next(glob.iglob(pattern_of(path), recursive=True), None) is not None
