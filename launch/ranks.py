"""A run checked for numbers of ranks before it starts on any of them."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.kinds import Choice
from utils.config import load_config
from utils.errors import UserError


def check_ranks(choice: Choice, numbers: Sequence[int], flags: str) -> None:
    """Refuse numbers of ranks on which steps of the run would differ, or that it cannot have. Imports the task.

    Args:
        choice: the task and its config.
        numbers: of ranks that the job may have.
        flags: that allow these numbers, for messages.

    Raises:
        UserError: if ``train.global_batch`` is not set for more than one number, or if it, chunks or an order by blocks do not
            divide.
    """
    schema, _ = choice.load()
    config = load_config(choice.config, choice.overrides, schema)
    if len(numbers) > 1 and config.train.global_batch is None:
        raise UserError(
            f"{flags} needs train.global_batch: without it, another number of nodes would change the records of a step; give "
            "train.global_batch=N"
        )
    for ranks in numbers:
        try:
            config.plan(ranks)
        except UserError as error:
            verb = "gives" if len(numbers) == 1 else "may give"
            raise UserError(f"{flags} {verb} {ranks} ranks: {error}") from None
