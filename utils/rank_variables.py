"""Reads the environment variables in which launchers and schedulers pass a process its rank. Errors name the variables."""

from __future__ import annotations

import re
from collections.abc import Mapping

from utils.errors import UserError

LAST_PORT = 65535


def parsed_number(text: str) -> int | None:
    """Parses decimal digits. Returns None for any other text. (``str.isdigit`` would also accept ².)"""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


class Variables:
    """Reads the variables in an environment."""

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment

    def has(self, *names: str) -> bool:
        return all(self._environment.get(name, "") for name in names)

    def text(self, *names: str) -> str:
        """Returns the value of the first of ``names`` that is set."""
        for name in names:
            if value := self._environment.get(name):
                return value
        raise UserError(
            f"{names[0]} is not set, although {self._others()} indicate a job",
            remedy="start the job with the scheduler, or unset them",
        )

    def number(self, *names: str, minimum: int = 0, maximum: int | None = None, reason: str = "") -> int:
        """Returns the value of the first of ``names`` that is set, which must be a number from ``minimum`` to ``maximum``.
        ``reason`` explains the maximum in the error message."""
        text = self.text(*names)
        name = next(name for name in names if self.has(name))
        number = parsed_number(text)
        if number is None:
            raise UserError(
                f"{name} = {text!r} is not a number", remedy="the launcher or the scheduler should have set one"
            )
        if number < minimum or (maximum is not None and number > maximum):
            wanted = f"{minimum} or more" if maximum is None else f"within {minimum} .. {maximum}{reason}"
            raise UserError(
                f"{name} = {number} is not {wanted}", remedy="check how the launcher or the scheduler sets it"
            )
        return number

    def port(self, *names: str) -> int:
        return self.number(*names, minimum=1, maximum=LAST_PORT)

    def index(self, *names: str, count: int, of: str) -> int:
        """Returns the value of the first of ``names`` that is set, which must be the index, counted from 0, of one of ``count``
        nodes or ranks."""
        return self.number(*names, maximum=count - 1, reason=f" ({count} {of})")

    def _others(self) -> str:
        known = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "PET_NNODES", "PET_NODE_RANK", "SLURM_JOB_ID")
        return ", ".join(name for name in known if self.has(name))


def is_rank(environment: Mapping[str, str]) -> bool:
    """Returns True if this process is a rank of torchrun or of a launcher that sets the same variables."""
    return Variables(environment).has("LOCAL_RANK", "RANK", "WORLD_SIZE")


def check_rank(environment: Mapping[str, str]) -> None:
    """Raises :class:`UserError` if the variables of this rank are inconsistent. Otherwise, ranks could wait for a rank that does
    not exist."""
    variables = Variables(environment)
    if variables.has("RANK", "WORLD_SIZE"):
        variables.index("RANK", count=variables.number("WORLD_SIZE", minimum=1), of="ranks")
    if variables.has("LOCAL_RANK"):
        variables.number("LOCAL_RANK")
    if variables.has("WORLD_SIZE", "MASTER_PORT") and variables.number("WORLD_SIZE", minimum=1) > 1:
        variables.port("MASTER_PORT")
