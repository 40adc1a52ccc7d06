"""Checks, before a run starts, that it works with every number of ranks that it may get."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.kinds import Choice
from utils.config import load_config
from utils.errors import UserError


def check_ranks(choice: Choice, numbers: Sequence[int], flags: str) -> None:
    """Checks that the run supports these numbers of ranks, and that they would not change its steps. Imports the task.

    Args:
        choice: the task and its config.
        numbers: the numbers of ranks that the job may have.
        flags: the flags that allow these numbers, for messages.

    Raises:
        UserError: if there are several numbers and ``train.global_batch`` is not set, or if the global batch, the chunks or the
            block order cannot be divided among the ranks.
    """
    schema, _ = choice.load()
    config = load_config(choice.config, choice.overrides, schema)
    if len(numbers) > 1 and config.train.global_batch is None:
        raise UserError(
            f"{flags} needs train.global_batch: without it, a different number of nodes would change which records a step uses; "
            "give train.global_batch=N"
        )
    for ranks in numbers:
        try:
            config.plan(ranks)
        except UserError as error:
            verb = "gives" if len(numbers) == 1 else "may give"
            raise UserError(f"{flags} {verb} {ranks} ranks: {error}") from None
