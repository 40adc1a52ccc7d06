"""Groups runs that differ only in their seed, so that the page can show the mean and the spread over the seeds."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.runs.reading import Run
from utils.config import flat

SEED = "seed"
WITHOUT_EFFECT = re.compile(
    r"output$|train\.(log_every|checkpoint_every|keep_checkpoints|start_timeout_min|step_timeout_min|stall_s|grace_s|"
    r"peak_tflops|wandb)\b|data\.(workers|worker_timeout_s|cache_index|remote)\b|"
    r"evaluation\.(panels|bootstrap|published)\b"
)
"""Config keys that change neither the weights nor the metrics of a run."""
END_OF_NAME = re.compile(r"[-_/. ]*(seeds?[-_/.= ]*\d*)?[-_/. ]*$", re.I)


@dataclass(frozen=True)
class Spread:
    """Mean of a value over ``count`` seeds, and its standard deviation, which is None for a single seed."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Returns the spread of the values, or None without values."""
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed; often a single run.

    Attributes:
        colour: index of the group's colour on the page.
    """

    name: str
    colour: int
    runs: tuple[Run, ...]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Returns the groups, ordered by their first run.

    A run without a config forms a separate group. So does a run with the same seed as another run, because a repetition does not
    show the spread over seeds.
    """
    members: dict[Any, list[Run]] = {}
    for number, run in enumerate(runs):
        config = flat(run.config) if run.config is not None else {}
        key: Any = tuple(sorted((name, repr(value)) for name, value in config.items() if has_effect(name)))
        if not config or any(_seed(config) == _seed(flat(other.config)) for other in members.get(key, ())):
            key = number
        members.setdefault(key, []).append(run)
    found = list(members.values())
    names = [_name(group) for group in found]
    taken = [*names, *(run.name for group in found for run in group if len(group) > 1)]
    unique = [name if taken.count(name) == 1 else _first_of(group) for name, group in zip(names, found, strict=True)]
    return [Group(name, n, tuple(group)) for n, (name, group) in enumerate(zip(unique, found, strict=True))]


def columns_of(groups: Sequence[Group]) -> list[Group]:
    """Returns the columns of a comparison: the groups, or if there is only one group, its runs."""
    if len(groups) > 1:
        return list(groups)
    return [Group(run.name, number, (run,)) for number, run in enumerate(groups[0].runs)]


def has_effect(key: str) -> bool:
    """Returns True if a config key may change the weights or the metrics of a run. The seed does not count."""
    return key != SEED and not WITHOUT_EFFECT.match(key)


def _seed(config: dict[str, Any]) -> str:
    return repr(config.get(SEED))


def _name(runs: Sequence[Run]) -> str:
    """Returns the name of a run, or the common part of the names of several runs: ``lr-1e-3`` of ``lr-1e-3/seed-0`` and
    ``…/seed-1``."""
    if len(runs) == 1:
        return runs[0].name
    names = [run.name for run in runs]
    # Names are compared by characters, because the seed may be only a part of a folder's name.
    common = END_OF_NAME.sub("", os.path.commonprefix(names))  # noqa: RUF071
    return common or _first_of(runs)


def _first_of(runs: Sequence[Run]) -> str:
    return runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more"
