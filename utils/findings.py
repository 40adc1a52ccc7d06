"""What a check finds in a config or its data, for the start of a run and for ``run.py doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["warning", "refused"]


@dataclass(frozen=True)
class Finding:
    """A fact with its numbers, the ``place`` it is about (a config key, a file and line), and what to do about it.

    ``refused``: a run would stop, or teach nothing; ``warning``: it may be meant.
    """

    level: Level
    place: str
    fact: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.fact}; {self.remedy}"
