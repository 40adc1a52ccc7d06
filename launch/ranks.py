"""Checks, before a run starts, that it supports every number of ranks that the job may have."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.kinds import Choice
from utils.config import load_config
from utils.errors import UserError


def check_ranks(choice: Choice, rank_counts: Sequence[int], flags: str) -> None:
    """Checks that the run supports these numbers of ranks, and that its steps do not depend on the number. Imports the task.

    Args:
        choice: the task and its config.
        rank_counts: the numbers of ranks that the job may have.
        flags: the flags that allow these numbers, for error messages.

    Raises:
        UserError: if there are several numbers and ``train.global_batch`` is not set, or if the global batch, the chunks or the
            block order cannot be divided among the ranks.
    """
    schema, _ = choice.load()
    config = load_config(choice.config, choice.overrides, schema)
    if len(rank_counts) > 1 and config.train.global_batch is None:
        raise UserError(
            f"{flags} needs train.global_batch: without it, a different number of nodes would change which records a step uses; "
            "set train.global_batch=N"
        )
    for ranks in rank_counts:
        try:
            config.plan(ranks)
        except UserError as error:
            verb = "gives" if len(rank_counts) == 1 else "may give"
            raise UserError(f"{flags} {verb} {ranks} ranks: {error}") from None
