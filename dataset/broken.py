"""Broken records: the error that reports one, and the conversion of other exceptions into broken records."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from typing import Any

from batches.base import BrokenRecord
from utils.errors import UserError

Reason = str
"""Why a record is broken: "bad json", "missing key", "wrong type", "empty text", "bad text", "repeated member", "missing image",
"unreadable image", "image too large", "missing video", "unreadable video", "unreadable json", "unreadable text", "unreadable row
group", "box outside image" or "degenerate box"; or the class name of an unexpected exception."""

_LONGEST_MESSAGE = 300


class BrokenRecordError(Exception):
    """Raised if a record, or a part of it, cannot be used.

    The error does not say which record it is: whoever reads records adds the location (:func:`broken_record`).

    Attributes:
        reason: see :data:`Reason`.
        detail: what is wrong.
    """

    def __init__(self, reason: Reason, detail: str):
        self.reason: Reason = reason
        self.detail = printable(detail)
        super().__init__(f"{reason}: {self.detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Makes the error picklable, so that worker processes can raise it."""
        return type(self), (self.reason, self.detail)


class MediaError(BrokenRecordError):
    """Raised if an image or a video, or a file that contains one, cannot be read."""


def broken_record(error: Exception, location: str) -> BrokenRecord:
    """Converts an exception that was raised while the record at ``location`` was read or used to a broken record.

    An unexpected exception becomes a separate kind, named after its class, and keeps its traceback, so that bugs are visible.

    Raises:
        UserError: ``error`` itself if it is a UserError, because the record did not cause it.
    """
    if isinstance(error, UserError):
        raise error
    location = printable(location)
    if isinstance(error, BrokenRecordError):
        return BrokenRecord(location, error.reason, error.detail)
    message = printable(" ".join(str(error).split())[:_LONGEST_MESSAGE]) or "no message"
    return BrokenRecord(location, type(error).__name__, message, "".join(traceback.format_exception(error)))


def json_type(value: Any) -> str:
    """Returns the name of the type of a value in JSON, for messages."""
    names = {type(None): "null", dict: "an object", list: "a list", str: "a string", bool: "a boolean", bytes: "bytes"}
    return names.get(type(value), "a number")


def json_fault(error: Exception) -> str:
    """Returns the message of a JSON error, without Python's advice for programmers."""
    if "set_int_max_str_digits" in str(error):
        return "a number has thousands of digits"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    return f"{error.msg.removesuffix(' at').removesuffix(' starting')} at {line}column {error.colno}"


def remedy_for(reasons: Mapping[str, int], limit: str | None, paths_from: str = "") -> str:
    """Returns the remedy for broken records.

    Args:
        reasons: number of broken records for each reason.
        limit: config key that sets how many broken records are tolerated; None if raising it would not be a remedy.
        paths_from: the folder that relative paths of images and videos start from, and the config key that sets it; "" if the
            caller does not know them.
    """
    first = max(reasons, key=lambda reason: reasons[reason])
    if paths_from and first in ("missing image", "missing video"):
        return f"correct the paths; relative paths start from {paths_from}"
    if first in ("box outside image", "degenerate box"):
        return (
            "boxes are x, y, width, height in pixels of the stored image; `python run.py doctor` checks whether these are x1, "
            "y1, x2, y2 or were drawn on the rotated view of photographs"
        )
    if first == "missing key" and limit is None:
        return "check that this is the right file and the right format"
    return "fix or remove them" + (f", or raise {limit}" if limit else "")


def held_out_error(error: Exception, location: str) -> UserError:
    """Returns the one-line error for a broken record in a held-out set."""
    broken = broken_record(error, location)
    return UserError(
        f"{broken.reason}: {broken.detail}",
        where=broken.place,
        remedy="a held-out set must not contain broken records",
    )


def printable(text: str) -> str:
    """Escapes the characters of a text that would break a log line or could not be encoded."""
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
