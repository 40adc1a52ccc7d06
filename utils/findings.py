"""Problems that are found when a config and its data are checked, at the start of a run or by ``run.py doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from utils.errors import UserError

Level = Literal["warning", "refused"]


@dataclass(frozen=True)
class Finding:
    """A problem that a check has found.

    Attributes:
        level: "refused" if the run would fail or learn nothing; "warning" if the problem may be intentional.
        location: a config key, or a file and line.
        fact: the problem, with its numbers.
        remedy: what to do; "" if the fact says it.
    """

    level: Level
    location: str
    fact: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.location}: {self.fact}" + f"; {self.remedy}" * bool(self.remedy)


def finding_of(error: UserError) -> Finding:
    """Returns an error that a check raised as a finding."""
    return Finding("refused", error.where or "config", error.what, error.remedy)
