"""The files and folders that a config names for a run to read, and which of them are not there: all at once, before work starts.

A config marks them by their type: ``annotations: InputFile``, ``images: InputFolder | None``.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag

from utils.addresses import is_address
from utils.config import Config
from utils.errors import UserError
from utils.files import expanded
from utils.hub import looks_like_path

Kind = Literal["file", "folder", "shards", "weights", "model"]
"""shards: files, patterns or folders. weights: a file, or the folder of a run. model: a folder, or a name on the hub."""


@dataclass(frozen=True)
class Input:
    """Marks a field of a config as the path of something that a run reads."""

    kind: Kind


InputFile = Annotated[str, Input("file")]
InputFolder = Annotated[str, Input("folder")]
InputShards = Annotated[list[str], Input("shards")]
InputWeights = Annotated[str, Input("weights")]
InputModel = Annotated[str, Input("model")]

TOKENIZER_KEY = "model.text.encoder"
NO_TOKENIZER = "learn one from your texts with `python run.py tokenizer`, or name another encoder"
"""The remedy for a tokenizer that is not there."""


class WeightedShards(Config):
    """An entry of a list of shards with a weight."""

    path: str = Field(description="a file, pattern, folder or address")
    weight: float = Field(gt=0, le=100, description="how often an epoch reads each of its records")


def _is_weighted(entry: Any) -> str:
    return "function-weighted" if isinstance(entry, Mapping | WeightedShards) else "function-path"


# An error's location has the tag; messages leave out parts that begin with "function-".
_Entry = Annotated[
    Annotated[str, Tag("function-path")] | Annotated[WeightedShards, Tag("function-weighted")],
    Discriminator(_is_weighted),
]
InputWeightedShards = Annotated[list[_Entry], Input("shards")]


def inputs_of(config: Config, prefix: str = "") -> Iterator[tuple[str, Kind, str]]:
    """Every input that the config names: its key, what it is, and the path."""
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), f"{prefix}{name}"
        # Of an optional input, the mark is on a part of the union.
        marks = [*field.metadata, *(mark for part in get_args(field.annotation) for mark in get_args(part))]
        mark = next((mark for mark in marks if isinstance(mark, Input)), None)
        if mark is not None and value is not None:
            for entry in [value] if isinstance(value, str) else value:
                yield key, mark.kind, entry.path if isinstance(entry, WeightedShards) else entry
        elif mark is None:
            for part, key_of_part in _configs_in(value, key):
                yield from inputs_of(part, f"{key_of_part}.")


def missing_inputs(config: Config, leave_out: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """The paths that are not there, each with the keys that name it; ``leave_out``: sections that the run does not read."""
    missing: dict[str, list[str]] = {}
    for key, kind, path in inputs_of(config):
        if key.partition(".")[0] not in leave_out and not _is_there(kind, path):
            missing.setdefault(path, []).append(key)
    return missing


def check_inputs(config: Config, leave_out: tuple[str, ...] = ()) -> None:
    """Raises :class:`UserError` that names every input that is not there."""
    missing = missing_inputs(config, leave_out)
    if not missing:
        return
    sources = "docs/data.md, docs/checkpoints.md and the first lines of the config"
    remedy = f"check the path (it is relative to {Path.cwd()}); for its source, see {sources}"
    if len(missing) == 1:
        [(path, keys)] = missing.items()
        raise UserError(f"{keys[0]}: {path} does not exist; {NO_TOKENIZER if TOKENIZER_KEY in keys else remedy}")
    if any(TOKENIZER_KEY in keys for keys in missing.values()):
        remedy += f"; of the tokenizer: {NO_TOKENIZER}"
    listed = "\n".join(f"  {path}  ({_shortened(keys)})" for path, keys in missing.items())
    raise UserError(f"{len(missing)} files or folders of this config do not exist; {remedy}\n{listed}")


def _shortened(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more keys" if len(keys) > 2 else "")


def _configs_in(value: Any, key: str) -> Iterator[tuple[Config, str]]:
    if isinstance(value, Config):
        yield value, key
    elif isinstance(value, dict):
        yield from ((part, f"{key}.{name}") for name, part in value.items() if isinstance(part, Config))
    elif isinstance(value, list | tuple):
        yield from ((part, f"{key}[{number}]") for number, part in enumerate(value) if isinstance(part, Config))


def pattern_of(path: Path) -> str:
    """The pattern for ``glob`` of a path in which only names below the folders that exist have wildcards: the name of a folder
    may have brackets."""
    folder = next((folder for folder in path.parents if folder.is_dir()), path.parents[-1] if path.parents else path)
    return os.path.join(glob.escape(str(folder)), path.relative_to(folder)) if folder != path else str(path)


def _is_there(kind: Kind, value: str) -> bool:
    if kind == "shards" and is_address(value):
        return True  # whether it is there, says the server
    path = expanded(value)
    try:
        if kind == "model" and not looks_like_path(value):
            return True
        if path.exists():  # first, since the name of a file or folder may have brackets
            return True
        return kind == "shards" and next(glob.iglob(pattern_of(path), recursive=True), None) is not None
    except (OSError, ValueError):  # longer than a path may be
        return False
