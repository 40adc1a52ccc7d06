"""Broken records: the error that names one, and how any exception raised while a record is used becomes one."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping

from batches.base import BrokenRecord
from utils.errors import UserError

BrokenKind = str
"""What is wrong with a record: "bad json", "missing key", "wrong type", "empty text", "bad text", "missing image", "unreadable
image", "image too large", "missing video", "unreadable video", "box outside image" or "degenerate box"; or, for an exception
that nothing here foresaw, the name of its class."""

_LONGEST_MESSAGE = 300


class BrokenRecordError(Exception):
    """A record that cannot be used: its kind, where it lies (``file:line``) and what was wrong."""

    def __init__(self, kind: BrokenKind, location: str, message: str):
        location, message = printable(location), printable(message)
        super().__init__(f"{location}: {kind}: {message}")
        self.kind: BrokenKind = kind
        self.location = location
        self.message = message

    def as_broken(self) -> BrokenRecord:
        """The error as plain data, for the batch."""
        return BrokenRecord(self.kind, self.location, self.message)


def broken_record(error: Exception, location: str) -> BrokenRecord:
    """Returns the broken record that ``error`` stands for, raised while the record at ``location`` was read or used.

    A class of exceptions that nothing foresaw is a kind of its own and keeps its traceback, so that a mistake in the code shows.

    Raises:
        UserError: ``error`` itself, if it is one: no record is to blame.
    """
    if isinstance(error, UserError):
        raise error
    if isinstance(error, BrokenRecordError):
        return error.as_broken()
    message = printable(" ".join(str(error).split())[:_LONGEST_MESSAGE]) or "no message"
    where = printable(location)
    return BrokenRecord(type(error).__name__, where, message, "".join(traceback.format_exception(error)))


def json_fault(error: Exception) -> str:
    """The fault of a JSON text, without Python's advice to programmers."""
    if "set_int_max_str_digits" in str(error):
        return "a number has thousands of digits"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    return f"{error.msg.removesuffix(' at').removesuffix(' starting')} at {line}column {error.colno}"


def remedy_for(kinds: Mapping[str, int], limit: str | None) -> str:
    """The remedy for broken records, by how often each kind occurs. ``limit``: the key that tolerates more; None: there are too
    many for that."""
    first = max(kinds, key=lambda kind: kinds[kind])
    if first in ("box outside image", "degenerate box"):
        return (
            "boxes are x, y, width, height in pixels of the stored image; `python run.py doctor` tells whether these are x1, y1, "
            "x2, y2 or were drawn on the turned view of photographs"
        )
    if first == "missing key" and limit is None:
        return "is it the right file, and the right format?"
    return "mend or remove them" + (f", or raise {limit}" if limit else "")


def not_whole(error: Exception, location: str) -> UserError:
    """The error for a broken record of a held-out set, in one line."""
    broken = broken_record(error, location)
    return UserError(f"{broken.location}: {broken.kind}: {broken.message}; a held-out set has to be whole")


def printable(text: str) -> str:
    """The text without what would break a line of a log, or its encoding: escapes stand for it."""
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
