"""The identity of a run, which is saved in its checkpoints and compared when the run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError


@dataclass(frozen=True)
class RunIdentity:
    """Everything besides its config that the steps of a run depend on.

    A stream is one type of training data. The leading stream is the one whose records are counted by epochs and batch sizes.

    Attributes:
        ranks: number of processes.
        records_per_step: records of the leading stream in a step, over all ranks.
        steps: total number of steps of the run.
        records: number of records of each stream. The leading stream comes first.
        data: digests of the data files, by config key.
    """

    ranks: int
    records_per_step: int
    steps: int
    records: Mapping[str, int]
    data: Mapping[str, str]

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RunIdentity:
        """Creates the identity from the plain values in a checkpoint. Ignores ``order_needs_ranks``, which only earlier versions
        wrote."""
        return cls(**{name: value for name, value in state.items() if name != "order_needs_ranks"})

    def check_resumes(self, saved: RunIdentity, folder: Path, records_per_batch: int) -> list[str]:
        """Compares this run with the run that wrote the checkpoint. Returns a message for each difference that does not prevent
        resuming.

        Args:
            saved: the identity that was saved in the checkpoint.
            folder: folder of the run.
            records_per_batch: records of the leading stream in a micro-batch of one rank.

        Raises:
            UserError: if a difference would change the steps of the run.
        """
        if self.records_per_step != saved.records_per_step:
            raise UserError(
                f"a step of this run has {saved.records_per_step} records on {_ranks(saved.ranks)}, but would have "
                f"{self.records_per_step} on {_ranks(self.ranks)}",
                where=folder,
                remedy=_remedy(saved, self.ranks, records_per_batch),
            )
        changes = self._changed_data(saved)
        if self.steps != saved.steps:
            reason = f", since {changes[0]}" if changes else ""
            raise UserError(
                f"this run had {saved.steps} steps, but would now have {self.steps}{reason}",
                where=folder,
                remedy=f"restore the data, or start a new run from its weights with init.checkpoint={folder}",
            )
        if self.ranks != saved.ranks:
            changes.append(
                f"the run resumes on {_ranks(self.ranks)} instead of {saved.ranks}, with the same number of records "
                "per step"
            )
        return changes

    def _changed_data(self, saved: RunIdentity) -> list[str]:
        changes = []
        for name in sorted(self.records.keys() | saved.records.keys()):
            was, now = saved.records.get(name, 0), self.records.get(name, 0)
            if was != now:
                changes.append(f"{name} has {now:,} records instead of {was:,}")
        # Earlier versions saved digests of fewer keys. Digests are compared only if all record counts are unchanged.
        changed = [key for key in sorted(self.data) if self.data[key] != saved.data.get(key, self.data[key])]
        return changes or [f"the files of {key} have changed since the run started" for key in changed]


def _ranks(number: int) -> str:
    return f"{number} rank" if number == 1 else f"{number} ranks"


def _remedy(saved: RunIdentity, ranks: int, records_per_batch: int) -> str:
    accumulate, rest = divmod(saved.records_per_step, ranks * records_per_batch)
    settings = f"train.global_batch=null train.accumulate={accumulate}" if accumulate and not rest else ""
    if ranks == saved.ranks:
        return f"resume it with {settings or 'the same batch sizes'}"
    return f"resume it on {_ranks(saved.ranks)}{f', or with {settings}' if settings else ''}"
