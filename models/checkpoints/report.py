"""A record of what happened to every tensor of a checkpoint and to every parameter of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from utils.errors import UserError


@dataclass
class LoadReport:
    """A record of what happened to the tensors of a file and to the parameters of a model.

    Names are the model's names, except in ``dropped`` and ``unused``, which contain the file's names.

    Attributes:
        source: the file or model that the tensors come from.
        loaded: parameters that were loaded.
        partly: parameters of which some rows were not in the file.
        resized: parameters that were resized, with a description.
        copied: parameters that were copied from a different tensor, with its name.
        fresh: parameters that were not in the file and kept their initial values.
        dropped: tensors that were skipped on purpose, with the reason.
        unused: tensors without a counterpart in the model.
        published: True if the file uses the published names.
        depth: if the vision encoder has only the first blocks of the file, how many of how many.
        text_skipped: True if the file's text encoder was skipped, because the model has a different text encoder.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    published: bool = False
    depth: str = ""
    text_skipped: bool = False

    def lines(self) -> list[str]:
        """Returns lines for a log: counts of the file's tensors, then all tensors that were not simply loaded, grouped by
        module."""
        counts = (
            f"{self.source}: {len(self.loaded)} loaded, {len(self.resized)} of them resized, {len(self.copied)} "
            f"copied, {len(self.dropped)} dropped, {len(self.unused)} unused in the file"
        )
        lines = [counts]
        lines += [f"  resized {name}: {how}" for name, how in _grouped(self.resized)]
        lines += [f"  copied {name} from {origin}" for name, origin in _by_part(self.copied)]
        lines += [f"  dropped {name}: {why}" for name, why in _grouped(self.dropped)]
        if self.unused:
            parts = Counter(name.partition(".")[0] for name in self.unused)
            lines.append(f"  unused: {', '.join(f'{part} ({count})' for part, count in parts.items())}")
        return lines

    def require_same_depth(self) -> None:
        """Raises a :class:`UserError` if an encoder does not have the same number of layers in the file and the model. Without
        this check, half an encoder could be loaded without any error."""
        for encoder, pattern in _LAYERS.items():
            if encoder == "text" and self.text_skipped:
                continue
            additional = {int(match[1]) for name in self.unused if (match := pattern.match(name))}
            missing = {int(match[1]) for name in self.fresh if (match := pattern.match(name))}
            loaded = {int(match[1]) for name in self.loaded if (match := pattern.match(name))}
            # A layer in which only some parameters are fresh is a different problem, which is left to the caller. It is not an
            # error if the file lacks an encoder.
            missing = missing - loaded if loaded else set()
            if additional or missing:
                difference = _layers(len(additional), "more") if additional else _layers(len(missing), "fewer")
                raise UserError(
                    f"has {difference} in its {encoder} encoder than the model",
                    where=self.source,
                    remedy=f"set {_DEPTH_KEYS[encoder]} to its depth",
                )

    def require_complete(self) -> None:
        """Raises a :class:`UserError` if a parameter stayed fresh, or if a tensor in the file was not used."""
        problems = []
        if self.fresh:
            problems.append(f"{len(self.fresh)} parameters are not in the file ({_some(self.fresh)})")
        if self.unused:
            problems.append(
                f"{len(self.unused)} tensors in the file have no counterpart in the model ({_some(self.unused)})"
            )
        if problems:
            raise UserError(
                f"{'; '.join(problems)}",
                where=self.source,
                remedy="is the model built with the sizes of the checkpoint?",
            )


_LAYERS = {
    "vision": re.compile(r"(?:vision\.backbone|vision_encoder)\.blocks\.(\d+)\."),
    "text": re.compile(r"text\.encoder\.layer\.(\d+)\."),
    "fusion": re.compile(r"fusion\.layer\.(\d+)\."),
}
_DEPTH_KEYS = {"vision": "model.vision.depth", "text": "model.text.arch.layers", "fusion": "model.fusion.layers"}


def _layers(count: int, word: str) -> str:
    return f"one layer {word}" if count == 1 else f"{count} layers {word}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, …"


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def by_module(names: Iterable[str]) -> list[str]:
    """Replaces the indices in names by ``*``, and lists each resulting name once, with its count."""
    groups: dict[str, int] = {}
    for name in names:
        groups[_pattern(name)] = groups.get(_pattern(name), 0) + 1
    return [name if count == 1 else f"{name} ({count})" for name, count in groups.items()]


def _by_part(copied: dict[str, str]) -> list[tuple[str, str]]:
    """Pairs of target and origin. Pairs that differ only in the same last components of both names, such as all parameters of a
    layer, are merged."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for names in copied.items():
        target, origin = (_pattern(name).split(".") for name in names)
        while len(target) > 1 and len(origin) > 1 and target[-1] == origin[-1]:
            target, origin = target[:-1], origin[:-1]
        groups.setdefault((".".join(target), ".".join(origin)), []).append(names)
    return [
        names[0] if len(names) == 1 else (f"{target}.* ({len(names)})", f"{origin}.*")
        for (target, origin), names in groups.items()
    ]


def _grouped(notes: dict[str, str]) -> list[tuple[str, str]]:
    groups: dict[str, tuple[str, int]] = {}
    for name, note in notes.items():
        pattern = _pattern(name)
        groups[pattern] = (groups.get(pattern, (_pattern(note), 0))[0], groups.get(pattern, ("", 0))[1] + 1)
    return [(name if count == 1 else f"{name} ({count})", note) for name, (note, count) in groups.items()]
