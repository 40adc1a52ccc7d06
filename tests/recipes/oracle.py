"""Compares a config with the oracle ``paper.yaml``, which lists the paper's and the released values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.binding import bind_run
from utils.config import Config, load_config

ROOT = Path(__file__).parent.parent.parent
ORACLE = Path(__file__).parent / "paper.yaml"
ABSENT = "absent"


@dataclass(frozen=True)
class Expected:
    """A value with its source: ``paper, PLACE``, ``released, WHERE`` or ``ours, WHY``."""

    value: Any
    source: str

    def mark(self) -> str | None:
        """The mark of the value in a config; None for our own values, which have no mark."""
        kind = self.source.split(",")[0]
        return {"paper": self.source, "released": "released", "ours": None}[kind]


def runs_of_the_paper(root: Path = ROOT) -> dict[str, Path]:
    """The shipped configs by folder/file, except the configs of the demo, of own data, and the small ones."""
    paths = sorted(root.glob("configs/*/*.yaml"))
    return {
        f"{path.parent.name}/{path.stem}": path
        for path in paths
        if path.parent.name not in ("presets", "demo", "own", "real") and not path.stem.endswith("_tiny")
    }


@cache
def _document() -> Any:
    return YAML(typ="safe").load(ORACLE.read_text(encoding="utf-8"))


def belongs(config: str, groups: list[str]) -> bool:
    """Whether a config (folder/file) is in one of the groups or matches one of the patterns."""
    known = _document()["groups"]
    return any(belongs(config, known[group]) if group in known else fnmatchcase(config, group) for group in groups)


def expected_of(config: str) -> dict[str, Expected]:
    """The expected values of a config by dotted key. If a key is in two entries of ``paper.yaml``, that file is wrong."""
    expected: dict[str, Expected] = {}
    for entry in _document()["values"]:
        if not belongs(config, entry["configs"]):
            continue
        skipped = {key for group, keys in entry.get("except", {}).items() if belongs(config, [group]) for key in keys}
        for key, value in entry["values"].items():
            if key not in skipped:
                assert key not in expected, f"{config}: {key} is in two entries of {ORACLE.name}"
                expected[key] = Expected(value, entry["source"])
    return expected


def load(path: Path, *overrides: str) -> Config:
    """The bound config of a file."""
    return load_config(path, overrides, bind_run(path, list(overrides)).source.load().config)


@cache
def shipped(config: str) -> Config:
    """The bound config of one of :func:`runs_of_the_paper`."""
    return load(runs_of_the_paper()[config])


def differences(config: Mapping[str, Any], expected: Mapping[str, Expected]) -> list[str]:
    """A line for each expected value that differs from the resolved config (plain values)."""
    return [
        f"{key} = {actual!r}, but {requested.source}: {requested.value!r}"
        for key, requested in expected.items()
        if not same(actual := value_at(config, key), requested.value)
    ]


def same(actual: Any, requested: Any) -> bool:
    """Whether a value equals the expected value.

    An expected string that begins with ``.../`` is the end of a path. A plain value expected of a section is expected of each
    value in the section.
    """
    if isinstance(actual, Mapping) and not isinstance(requested, Mapping):
        return bool(actual) and all(same(value, requested) for value in actual.values())
    if isinstance(requested, list):
        items = isinstance(actual, list) and len(actual) == len(requested)
        return items and all(same(*pair) for pair in zip(actual, requested, strict=True))
    if isinstance(requested, str) and requested.startswith(".../"):
        return isinstance(actual, str) and actual.endswith(requested[3:])
    return isinstance(actual, bool) == isinstance(requested, bool) and bool(actual == requested)


def value_at(config: Any, key: str) -> Any:
    """Returns the value at a dotted key, in which numbers index lists. Returns ``ABSENT`` if the key does not exist."""
    for part in key.split("."):
        if isinstance(config, list):
            config = config[int(part)] if part.isdigit() and int(part) < len(config) else ABSENT
        else:
            config = config.get(part, ABSENT) if isinstance(config, Mapping) else ABSENT
    return config
