"""Reads large JSON files one item at a time, so that a file of a gigabyte needs little memory.

A file is an array of items, an object whose values are arrays of items (COCO), or an object whose values are the items (GQA).
Each item is returned with its JSON text, because sending the text to a worker process is cheaper than pickling the value.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from dataset.broken import BrokenRecordError, json_fault, printable
from dataset.formats.annotations import Row
from dataset.prepare.raw_folder import RawFile
from utils.errors import UserError

BLOCK = 1 << 22
"""Number of bytes that are read at a time."""

MAX_ITEM_CHARACTERS = 1 << 27
"""Maximum number of characters in an item. A longer item is an error, so that a damaged file does not fill the memory."""

_NEAR_END = 16
"""A parse error within this number of characters before the end of the buffer may come from a literal, a number or an escape
sequence that continues in the next block."""

_MAX_LOCATION = 80
"""Maximum number of characters of a key in a message."""

_SPACE = " \t\r\n"


class Piece(NamedTuple):
    """An item of a file.

    Attributes:
        section: key of the array that contains the item; "" if the file itself contains it.
        key: index of the item in the array, or its key in the object.
        value: the parsed item.
        text: its JSON text.
        file: name of the file.
    """

    section: str
    key: int | str
    value: Any
    text: str
    file: str

    @property
    def row(self) -> Row:
        """The item as a row. Raises TypeError if it is not an object."""
        if not isinstance(self.value, dict):
            raise TypeError(f"{self.text[:40]} is not an object")
        return Row(self.value, self.location)

    @property
    def location(self) -> str:
        """The location of the item, such as ``captions.json: images[7]``."""
        if self.section:
            return f"{self.file}: {self.section}[{self.key}]"
        return f"{self.file}[{self.key}]" if isinstance(self.key, int) else f"{self.file}: {self.key}"


@contextmanager
def official_pieces(file: RawFile, title: str, *sections: str) -> Iterator[Iterator[Piece]]:
    """Context manager that opens an official JSON file, and returns an iterator over its items.

    Args:
        file: the file.
        title: name of the data set, to name in error messages.
        sections: the arrays whose items are read; if empty, all items are read.

    Raises:
        UserError: for the reasons listed in :func:`json_pieces`; or if the block raises an error because a value of an item is
            missing or has the wrong type. The message names the item.
    """
    current = Piece("", "", None, "", str(file))

    def pieces() -> Iterator[Piece]:
        nonlocal current
        for current in json_pieces(stream, str(file)):
            if not sections or current.section in sections:
                yield current

    with file.open() as stream:
        try:
            yield pieces()
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, BrokenRecordError) as error:
            named = error.reason if isinstance(error, BrokenRecordError) else type(error).__name__
            reason = f"{named}: {error.detail if isinstance(error, BrokenRecordError) else error}"
            raise UserError(
                f"{current.location} does not have the official format of {title}'s file ({reason})"
            ) from None


def json_pieces(stream: IO[bytes], name: str) -> Iterator[Piece]:
    """Yields the items of a JSON file in order. In an object, each value that is not an array is an item.

    Args:
        stream: the file, opened in binary mode.
        name: name of the file, to name in error messages.

    Raises:
        UserError: the file is not valid JSON, is truncated, or is not encoded in UTF-8.
    """
    text = _Text(stream, name)
    first = text.next_character()
    if first == "[":
        yield from _items(text, "")
    elif first == "{":
        for key in _keys(text):
            if text.peek_character() == "[":
                text.next_character()
                yield from _items(text, key)
            else:
                value, content = text.value()
                yield Piece("", key, value, content, name)
    else:
        raise text.fault(f"it begins with {first!r}, not with an array or an object" if first else "it is empty")
    if character := text.next_character():
        raise text.fault(f"{character!r} follows the end of the JSON")


def _items(text: _Text, section: str) -> Iterator[Piece]:
    """Yields the items of an array whose opening bracket was read."""
    if text.peek_character() == "]":
        text.next_character()
        return
    index, shown = 0, printable(section[:_MAX_LOCATION])
    while True:
        text.location = f"{shown}[{index}]"
        value, content = text.value()
        yield Piece(section, index, value, content, text.name)
        index += 1
        character = text.next_character()
        if character == "]":
            return
        if character != ",":
            raise text.fault("a comma or a bracket is missing" if character else None)


def _keys(text: _Text) -> Iterator[str]:
    """Yields the keys of an object whose opening brace was read. The caller reads each value before the next key."""
    if text.peek_character() == "}":
        text.next_character()
        return
    while True:
        key, _ = text.value()
        if not isinstance(key, str) or text.next_character() != ":":
            raise text.fault("a key and a colon are missing")
        text.location = printable(key[:_MAX_LOCATION])
        yield key
        character = text.next_character()
        if character == "}":
            return
        if character != ",":
            raise text.fault("a comma or a brace is missing" if character else None)


class _Text:
    """A buffer of text that has been read from a file but not yet parsed."""

    def __init__(self, stream: IO[bytes], name: str):
        self.name, self.location = name, ""
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parser = json.JSONDecoder()
        self._buffer, self._at = "", 0
        self._ended = False

    def peek_character(self) -> str:
        """Returns the next character after white space without consuming it; "" at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read():
                return ""

    def next_character(self) -> str:
        """Consumes and returns the next character after white space; "" at the end of the file."""
        if self._at < len(self._buffer) and (character := self._buffer[self._at]) not in _SPACE:  # the common case
            self._at += 1
            return character
        character = self.peek_character()
        self._at += len(character)
        return character

    def value(self) -> tuple[Any, str]:
        """Consumes and returns the next value and its text."""
        self.peek_character()
        while True:
            try:
                value, end = self._parser.raw_decode(self._buffer, self._at)
                if end <= len(self._buffer) - _NEAR_END or self._ended:  # otherwise "1" may be the beginning of "1.5"
                    text = self._buffer[self._at : end]
                    self._at = end
                    return value, text
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._buffer) - _NEAR_END or error.msg.startswith("Unterminated string")
                if not cut or (self._ended and error.pos < len(self._buffer) - _NEAR_END):
                    raise self.fault(error.msg) from None
                if self._ended:
                    raise self.fault(None) from None
            except (ValueError, RecursionError) as error:  # a number with thousands of digits; deeply nested lists
                raise self.fault(json_fault(error)) from None
            if len(self._buffer) - self._at > MAX_ITEM_CHARACTERS:
                raise self.fault(f"one item has more than {MAX_ITEM_CHARACTERS:,} characters")
            self._read()

    def fault(self, reason: str | None) -> UserError:
        """Returns the error for the current location. If ``reason`` is None, the error says that the file is truncated."""
        where = f"{self.name}: {self.location}" if self.location else self.name
        if reason is None:
            return UserError("the file is truncated here", where=where, remedy="download or unpack it again")
        return UserError(f"not JSON: {reason}", where=where, remedy="check that it is the official file, and complete")

    def _read(self) -> bool:
        """Reads the next block into the buffer; returns False at the end of the file."""
        if self._ended:
            return False
        block = self._stream.read(BLOCK)
        self._ended = not block
        try:
            more = self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            after = f"after {self.location} " if self.location else ""
            raise UserError(
                f"{after}it is not encoded in UTF-8: {error.reason}", where=self.name, remedy="is it the official file?"
            ) from None
        self._buffer = self._buffer[self._at :] + more
        self._at = 0
        return not self._ended
