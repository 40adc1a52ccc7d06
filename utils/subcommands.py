"""Tables of commands whose modules are imported only when a command runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., int])


class Command(NamedTuple):
    """A command: its function, as ``module:function``, and a one-line description for the list of commands."""

    target: str
    help: str

    def load(self) -> Callable[..., int]:
        """Imports the module and returns the function."""
        module, _, function = self.target.partition(":")
        command: Callable[..., int] = getattr(importlib.import_module(module), function)
        return command


def with_subcommands(table: Mapping[str, Command]) -> Callable[[F], F]:
    """Returns a decorator that adds subcommands to a command. The decorated function runs if the first argument is not a
    subcommand."""

    def add(command: F) -> F:
        command.subcommands = table  # type: ignore[attr-defined]
        return command

    return add


def subcommands_of(command: Any) -> Mapping[str, Command]:
    """Returns the subcommands of a command by name. The result is empty for most commands."""
    table: Mapping[str, Command] = getattr(command, "subcommands", {})
    return table
