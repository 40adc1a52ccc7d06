"""Types of the values of flags: ``gpus: Positive`` takes a whole number of at least 1."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.token import Token


class WrongValueError(ValueError):
    """A word is not a value of a flag; says why."""


class NotAnOverrideError(WrongValueError):
    """A word is not of the form ``key=value``."""


def read_by(read: Callable[[str], Any], **options: Any) -> Parameter:
    """Marks a type whose values ``read`` converts from a word. It raises WrongValueError for a wrong one."""

    def convert(_: type, tokens: Sequence[Token]) -> Any:
        return read(tokens[0].value)

    return Parameter(converter=convert, **options)


def alone_or(read: Callable[[str], Any]) -> Parameter:
    """Marks a type ``bool | ...``: the flag alone is True, and ``read`` converts a word after it."""

    def convert(_: type, tokens: Sequence[Token]) -> Any:
        return read(tokens[0].value)

    return Parameter(converter=convert, consume_multiple=(0, 1), n_tokens=-1, accepts_keys=False)


SEVERAL = Parameter(consume_multiple=1)
"""Marks a list: the flag takes all words up to the next flag, and may be repeated."""

ANY_NUMBER = Parameter(consume_multiple=0)
"""Marks a list: as SEVERAL, but the flag may also stand alone."""


def positive(text: str) -> int:
    """An integer of at least 1."""
    return whole_number(1)(text)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Reads an integer within bounds."""

    def number(text: str) -> int:
        # not isdigit, which takes ² for a digit
        if text.isascii() and text.isdecimal() and least <= int(text) and (most is None or int(text) <= most):
            return int(text)
        wanted = f"a number from {least:,} to {most:,}" if most is not None else f"a whole number of at least {least}"
        raise WrongValueError(f"{text!r} is not {wanted}")

    return number


def within(least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
    """Reads a finite number from ``least``, or with ``above`` any number above it, to ``most``."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or not math.isfinite(value) or (above and value == least):
            first = "above" if above else "from"
            last = "" if most == math.inf else f" {'and at most' if above else 'to'} {most:g}"
            raise WrongValueError(f"{text!r} is not a number {first} {least:g}{last}")
        return value

    return number


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Reads one of some names; the nearest one is suggested for a misspelled one."""

    def name(text: str) -> str:
        if text in names:
            return text
        raise WrongValueError(unknown(text, names))

    return name


def unknown(text: str, names: Sequence[str]) -> str:
    """The message that a word is not among the names, with the nearest one."""
    close = difflib.get_close_matches(text, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"
    return f"{text!r} is unknown; {hint}"


def sentence(text: str) -> str:
    """A text that is not blank."""
    if not text.strip():
        raise WrongValueError(f"{text!r} is blank; give a text")
    return text


def override(text: str) -> str:
    """A value that replaces one of the config, as ``key=value``."""
    if "=" not in text:
        remedy = f"; did you mean --config {text}?" if text.endswith((".yaml", ".yml")) else ""
        raise NotAnOverrideError(f"{text!r} is neither a flag nor of the form key=value{remedy}")
    return text


Positive = Annotated[int, read_by(positive)]
PositiveReal = Annotated[float, read_by(within(0, math.inf, above=True))]
Share = Annotated[float, read_by(within(0, 1, above=True))]
Override = Annotated[str, read_by(override)]
