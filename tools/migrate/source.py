"""Reads a config of the authors' code."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config_files import ConfigError, Locations, nearest_location, read_config, shown_value
from utils.errors import UserError
from utils.files import read_json

SINGLE, SEPARATE = "XVLM", "CrossViewLM"
"""The two layouts of the authors' models: a single BERT with layers for text and fusion, or separate encoders."""

MARKERS = {
    "pretrain": ("train_dataset_size", "images", "train_file_regions", "train_file_videos", "train_file_mtext"),
    "grounding": ("refcoco_data", "det_file", "vlue_test"),
    "captioning": ("apply_FG_free", "num_beams"),
    "video_qa": ("ans2label_file",),
    "vqa": ("answer_list", "num_dec_layers"),
    "retrieval": ("k_test", "batch_size_test_text"),
}
"""Keys by which the task of a config is recognised, in the order in which they are tried. Configs for NLVR2 have none of these
keys."""

VISION_JSON = "vision_config/"
"""Prefix for keys in the JSON file that ``vision_config`` names."""


@dataclass
class Source:
    """A config of the authors' code.

    Attributes:
        path: the YAML file.
        values: the values, including overrides.
        places: location of each key.
        task: our name of the task.
        root: folder that relative paths are relative to.
        out: output folder.
        work: temporary folder that will be renamed to ``out``.
        gpus: total number of GPUs of the run, or None.
        checkpoint: weights to start from, or None.
        files: what was done with each file; the conversion fills in this list.
    """

    path: Path
    values: Mapping[str, Any]
    places: Locations
    task: str
    root: Path
    out: Path
    work: Path
    gpus: int | None = None
    checkpoint: str | None = None
    files: list[tuple[str, str]] = field(default_factory=list)

    @property
    def layout(self) -> str:
        """:data:`SINGLE` or :data:`SEPARATE`."""
        return SEPARATE if self.get("model_type") == SEPARATE or self.get("cross_encoder") is not None else SINGLE

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of a dotted key, or ``default`` if the config does not have the key."""
        node: Any = self.values
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return default
            node = node[part]
        return node

    def place(self, key: str) -> str:
        """Returns the location of a dotted key, ``file:line``."""
        return nearest_location(tuple(key.split(".")), self.places, str(self.path))

    def number(self, key: str) -> float:
        """Returns the value of a key, which must be a number.

        Raises:
            UserError: if the key is missing or its value has the wrong type.
        """
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, "a number")
        return value

    def text(self, key: str, default: str = "") -> str:
        """Returns the value of a key, which must be a string, or ``default`` if the config does not have the key.

        Raises:
            UserError: if the value has the wrong type.
        """
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def wrong(self, key: str, wanted: str) -> UserError:
        """Returns the error for a value of the wrong type.

        Args:
            wanted: description of the expected type.
        """
        value = self.get(key)
        fact = f"{key} is missing" if value is None else f"{key} = {shown_value(value)} is not {wanted}"
        return UserError(
            f"{fact}", where=self.place(key), remedy=f"pass {wanted}, in the file or as {key}=... after --out"
        )

    def file(self, name: str) -> str:
        """Returns the path of a file name in the config. Absolute paths and ``hdfs://`` are unchanged; other paths are relative
        to ``root``."""
        return name if "://" in name else os.path.normpath(self.root / name)

    def names(self, key: str, value: Any) -> list[str]:
        """Returns the file names in a value, which is a comma-separated string or a list of strings.

        Raises:
            UserError: if the value has the wrong type.
        """
        names = value.split(",") if isinstance(value, str) else value
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) and name.strip() for name in names)
        ):
            raise self.wrong(key, "a file name or a list of file names")
        return [name.strip() for name in names]


def read_source(
    path: Path, overrides: tuple[str, ...], task: str | None, root: Path, out: Path, work: Path, **options: Any
) -> Source:
    """Reads a config of the authors' code, with the keys of the JSON file that its ``vision_config`` names.

    Args:
        path: the YAML file.
        overrides: ``key=value`` arguments with the authors' keys.
        task: our name of the task; if None, it is recognised with :data:`MARKERS`.
        root: folder that relative paths in the config are relative to.
        out: output folder.
        work: temporary folder that will be renamed to ``out``.
        options: other attributes of :class:`Source`.

    Raises:
        UserError: if a file cannot be read, the config is one of ours, or the task is not given and not recognised.
    """
    values, places, malformed = read_config(path, overrides)
    if malformed:
        raise ConfigError(malformed)
    if isinstance(values.get("model"), dict) and isinstance(values.get("data"), dict):
        raise UserError(f"{path} is already a config of this project", remedy=f"use it with run.py --config {path}")
    if task is None:
        found = [name for name, markers in MARKERS.items() if any(marker in values for marker in markers)]
        if not found:
            known = ", ".join(marker for markers in MARKERS.values() for marker in markers)
            raise UserError(
                f"the task is unknown, since the config has none of these keys: {known}",
                where=path,
                remedy="pass --task, such as nlvr",
            )
        task = found[0]
    source = Source(path, values, places, task, root, out, work, **options)
    if isinstance(described := source.get("vision_config"), str):
        content = _vision_json(source, described)
        source.values = {**values, **{f"{VISION_JSON}{key}": value for key, value in content.items()}}
        source.places.update({(f"{VISION_JSON}{key}",): source.file(described) for key in content})
    return source


def _vision_json(source: Source, name: str) -> dict[str, Any]:
    file = Path(source.file(name))
    where = f"{source.place('vision_config')}: vision_config = {name}"
    if not file.is_file():
        raise UserError(
            f"{file} does not exist",
            where=where,
            remedy=f"paths in the config are relative to --root, which is {source.root}",
        )
    try:
        content = read_json(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}", where=where) from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object", where=where, remedy="pass the config of a vision encoder")
    return content
