"""The marks in config files: ``# paper, PLACE`` or ``# released`` at the end of a value's line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

MARK = re.compile(r"(paper, (?:section|table|appendix|equation) [\w.]+|released)(?=$|[:;])")
COMMENT = re.compile(r"\S.*?\s# (?P<text>.*)$")

Key = tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """A value in a config file that is not a mapping, with its mark. A list of plain values is one leaf."""

    value: Any
    file: Path
    line: int
    mark: str | None


@cache
def own_leaves(path: Path) -> dict[Key, Leaf]:
    """The leaves that a file contains itself, without the leaves of its bases."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    document = YAML(typ="rt").load(text)
    document.pop("base", None)
    leaves = {}
    for key, value, line in _leaves(document, ()):
        comment = COMMENT.match(lines[line].strip())
        mark = MARK.match(comment["text"]) if comment else None
        leaves[key] = Leaf(value, path, line + 1, mark[1] if mark else None)
    return leaves


def resolved_leaves(path: Path) -> dict[Key, Leaf]:
    """The leaves of a file and its bases; for each key, the leaf that takes effect."""
    leaves: dict[Key, Leaf] = {}
    for base in bases_of(path):
        _update(leaves, resolved_leaves(base))
    _update(leaves, own_leaves(path))
    return leaves


@cache
def bases_of(path: Path) -> list[Path]:
    """The files that a config inherits from directly."""
    bases = YAML(typ="safe").load(path.read_text(encoding="utf-8")).get("base", [])
    return [Path(os.path.normpath(path.parent / base)) for base in ([bases] if isinstance(bases, str) else bases)]


def _leaves(node: Any, prefix: Key) -> Iterator[tuple[Key, Any, int]]:
    items = node.items() if isinstance(node, CommentedMap) else enumerate(node)
    for name, value in items:
        line = node.lc.key(name)[0] if isinstance(node, CommentedMap) else node.lc.item(name)[0]
        is_list_of_mappings = isinstance(value, CommentedSeq) and any(isinstance(item, CommentedMap) for item in value)
        if (isinstance(value, CommentedMap) and value) or is_list_of_mappings:
            yield from _leaves(value, (*prefix, str(name)))
        else:
            yield (*prefix, str(name)), value, line


def _update(target: dict[Key, Leaf], update: dict[Key, Leaf]) -> None:
    """Merges like the config system: key by key, while a list of mappings or a plain value is replaced."""
    for key in update:
        lists = {key[:end] for end, part in enumerate(key) if part.isdigit()}
        for old in [old for old in target if old != key]:
            is_below = old[: len(key)] == key or key[: len(old)] == old
            if is_below or any(old[: len(prefix)] == prefix and old not in update for prefix in lists):
                del target[old]
    target.update(update)
