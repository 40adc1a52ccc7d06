"""Findings of checks of a config and its data, for the start of a run and for ``run.py doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["warning", "refused"]


@dataclass(frozen=True)
class Finding:
    """What a check found (``fact``, with its numbers), where (``place``, a config key or a file and line), and the ``remedy``.

    ``refused``: the run would fail or learn nothing; ``warning``: it may be intentional.
    """

    level: Level
    place: str
    fact: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.fact}; {self.remedy}"
