"""Tables of commands, whose modules are imported only when a command runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., int])


class Command(NamedTuple):
    """A command: where its function is, as ``module:function``, and what it does, for the list of commands."""

    target: str
    help: str

    def load(self) -> Callable[..., int]:
        """Import the module, and return the function."""
        module, _, function = self.target.partition(":")
        command: Callable[..., int] = getattr(importlib.import_module(module), function)
        return command


def with_subcommands(table: Mapping[str, Command]) -> Callable[[F], F]:
    """Decorates a command that has subcommands; its function runs if the first word names none of them."""

    def add(command: F) -> F:
        command.subcommands = table  # type: ignore[attr-defined]
        return command

    return add


def subcommands_of(command: Any) -> Mapping[str, Command]:
    """The subcommands of a command by name; empty for most."""
    table: Mapping[str, Command] = getattr(command, "subcommands", {})
    return table
