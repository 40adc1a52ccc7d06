"""The identity of a run, which its checkpoints keep, and which is compared when it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError


@dataclass(frozen=True)
class RunIdentity:
    """All that the steps of a run depend on beside its config.

    ``ranks``: processes. ``records_per_step``: records of the leading stream in a step, over all ranks. ``steps``: of the whole
    run. ``records``: number of records of each stream, the leading one first. ``data``: a digest of the files by config key.
    """

    ranks: int
    records_per_step: int
    steps: int
    records: Mapping[str, int]
    data: Mapping[str, str]

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> RunIdentity:
        """The identity from plain values; earlier versions wrote one more, which nothing needs now."""
        return cls(**{name: value for name, value in state.items() if name != "order_needs_ranks"})

    def check_resumes(self, before: RunIdentity, folder: Path, records_per_batch: int) -> list[str]:
        """Compare with what the run was when it wrote its checkpoint; returns a line for each change that it goes on with.

        Args:
            before: of the checkpoint.
            folder: of the run.
            records_per_batch: records of the leading stream in a micro-batch of one rank.

        Raises:
            UserError: if the run would not go on as it began.
        """
        if self.records_per_step != before.records_per_step:
            raise UserError(
                f"{folder}: a step of this run is {before.records_per_step} records on {_ranks(before.ranks)}, but "
                f"{self.records_per_step} on {_ranks(self.ranks)}; {_remedy(before, self.ranks, records_per_batch)}"
            )
        changes = self._changed_data(before)
        if self.steps != before.steps:
            reason = f", since {changes[0]}" if changes else ""
            raise UserError(
                f"{folder}: this run was of {before.steps} steps, and would be of {self.steps} now{reason}; bring the data back, "
                f"or start another run from its weights with init.checkpoint={folder}"
            )
        if self.ranks != before.ranks:
            changes.append(
                f"the run goes on with {_ranks(self.ranks)} instead of {before.ranks}, at the same records a step"
            )
        return changes

    def _changed_data(self, before: RunIdentity) -> list[str]:
        changes = []
        for name in sorted(self.records.keys() | before.records.keys()):
            was, now = before.records.get(name, 0), self.records.get(name, 0)
            if was != now:
                changes.append(f"{name} has {now:,} records instead of {was:,}")
        # Files whose number of records has changed are told by that.
        # Earlier versions made digests of fewer keys.
        changed = [key for key in sorted(self.data) if self.data[key] != before.data.get(key, self.data[key])]
        return changes or [f"the files of {key} are not those that the run began with" for key in changed]


def _ranks(number: int) -> str:
    return f"{number} rank" if number == 1 else f"{number} ranks"


def _remedy(before: RunIdentity, ranks: int, records_per_batch: int) -> str:
    accumulate, rest = divmod(before.records_per_step, ranks * records_per_batch)
    if rest or not accumulate:
        return f"resume it on {_ranks(before.ranks)}"
    return f"resume it on {_ranks(before.ranks)}, or with train.global_batch=null train.accumulate={accumulate}"
