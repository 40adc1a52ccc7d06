"""Types for the values of command-line flags. For example, ``gpus: Positive`` accepts a whole number of at least 1."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.token import Token

from utils.errors import NotRegularError, reason_of
from utils.files import check_writable, expanded
from utils.numerals import plain_number
from utils.printing import is_unicode


class WrongValueError(ValueError):
    """An argument is not a valid value for a flag. The message says why."""


class NotAnOverrideError(WrongValueError):
    """An argument is not of the form ``key=value``."""


def read_by(read: Callable[[str], Any], **options: Any) -> Parameter:
    """Marks a type of flag whose value is parsed by ``read``. ``read`` raises WrongValueError for an invalid value."""

    def convert(_: type, tokens: Sequence[Token]) -> Any:
        return read(str(tokens[0].value))

    return Parameter(converter=convert, **options)


def alone_or(read: Callable[[str], Any], name: str) -> Parameter:
    """Marks a type ``bool | ...`` for a flag whose value is optional. Without a value, the flag is True; otherwise, ``read``
    parses the value. ``name`` is the name of the value in the help."""
    return read_by(read, n_tokens=1, accepts_keys=False, metavar=f"[{name}]")


def named(name: str) -> Parameter:
    """Sets the name of a flag's value in the help. If the type is a list, the flag takes one value and may be repeated."""
    return Parameter(metavar=name)


SEVERAL = Parameter(consume_multiple=1)
"""Marks a list whose flag takes all arguments up to the next flag, and may be repeated."""

ANY_NUMBER = Parameter(consume_multiple=0)
"""Like SEVERAL, but the flag may also be passed without a value."""


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Returns a parser for integers from ``minimum`` to ``maximum``."""

    def number(text: str) -> int:
        # isdigit would accept ²
        if text.isascii() and text.isdecimal() and minimum <= int(text) and (maximum is None or int(text) <= maximum):
            return int(text)
        expected = (
            f"a number from {minimum:,} to {maximum:,}"
            if maximum is not None
            else f"a whole number of at least {minimum}"
        )
        raise WrongValueError(f"{text!r} is not {expected}")

    return number


positive = whole_number(1)


def number_within(minimum: float, maximum: float, *, above: bool = False) -> Callable[[str], float]:
    """Returns a parser for finite numbers from ``minimum`` to ``maximum``. If ``above`` is True, ``minimum`` is excluded."""

    def number(text: str) -> float:
        try:
            value = plain_number(text)
        except ValueError:
            value = math.nan
        if not minimum <= value <= maximum or not math.isfinite(value) or (above and value == minimum):
            first = "above" if above else "from"
            last = "" if maximum == math.inf else f" {'and at most' if above else 'to'} {maximum:g}"
            raise WrongValueError(f"{text!r} is not a number {first} {minimum:g}{last}")
        return value

    return number


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Returns a parser that accepts only the given names and suggests the closest name for a misspelled one."""

    def name(text: str) -> str:
        if text in names:
            return text
        raise WrongValueError(unknown(text, names))

    return name


def unknown(text: str, names: Sequence[str]) -> str:
    """Returns the message for an unknown name, which suggests the closest known name."""
    close = nearest(text, names)
    hint = f"did you mean {close}?" if close else f"choose from {', '.join(names)}"
    return f"{text!r} is unknown; {hint}"


def nearest(text: str, names: Iterable[str]) -> str | None:
    """Returns the name that is closest to a misspelled name, ignoring case, or None if no name is close."""
    folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(text.casefold(), folded, n=1)
    return folded[close[0]] if close else None


def non_blank(text: str) -> str:
    """Parses a text, which must not be blank, and must not contain bytes that could not be decoded."""
    if not text.strip():
        raise WrongValueError(f"{text!r} is blank; pass some text")
    if not is_unicode(text):
        raise WrongValueError(f"{text!r} is not valid UTF-8; check the encoding of your terminal or script")
    return text


def output_file(text: str) -> Path:
    """Parses the path of a file that a command writes. The path is checked first, so that the command does not fail after its
    work is done."""
    path = _writable(text)
    if path.is_dir():
        raise WrongValueError(f"{text}: is a folder; pass the name of a file")
    return path


def output_folder(text: str) -> Path:
    """Parses the path of a folder that a command writes; see :func:`output_file`."""
    path = _writable(text)
    if path.exists() and not path.is_dir():
        raise WrongValueError(f"{text}: is a file; pass a folder")
    return path


def _writable(text: str) -> Path:
    path = expanded(text)
    if path.is_symlink():
        path = path.resolve()  # the command replaces the file, not the link
    try:
        check_writable(path)
    except NotRegularError as error:
        raise WrongValueError(f"{text} {error.strerror}; use another path") from None
    except OSError as error:
        folder = error.filename or text
        raise WrongValueError(f"{text}: cannot write to {folder}: {reason_of(error)}; use another path") from None
    return path


def override(text: str) -> str:
    """Parses a config override of the form ``key=value``."""
    if "=" not in text:
        remedy = f"; did you mean --config {text}?" if text.endswith((".yaml", ".yml")) else ""
        raise NotAnOverrideError(f"{text!r} is neither a flag nor of the form key=value{remedy}")
    return text


Positive = Annotated[int, read_by(positive)]
PositiveReal = Annotated[float, read_by(number_within(0, math.inf, above=True))]
Fraction = Annotated[float, read_by(number_within(0, 1, above=True))]
Override = Annotated[str, read_by(override, name="key=value")]
File = Annotated[str, named("FILE")]
OutputFile = Annotated[Path, read_by(output_file)]
OutputFolder = Annotated[Path, read_by(output_folder)]
ModelName = Annotated[str, named("MODEL")]
"""The folder of a run, a weight file, hub:owner/name, or an exported model."""
