"""Official JSON files of a gigabyte, one item at a time, in little memory.

A file is one array of items, or one object whose values are such arrays (COCO) or the items themselves (GQA). The text of an item
comes along, so that a worker process can be given it without the cost of pickling its value.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from dataset.records.broken import json_fault, printable
from utils.errors import UserError

BLOCK = 1 << 22
"""Bytes that are read at a time."""

LONGEST_ITEM = 1 << 27
"""Characters of an item at most. A file without structure is refused once an item has as many."""

_NEAR_END = 16
"""Characters. An error this close to the end of what was read may come from what was not read: a word, a number or an escape
that is cut."""

_LONGEST_PLACE = 80

_SPACE = " \t\r\n"


class Piece(NamedTuple):
    """An item of a file: ``section``, the key of the array that it is in ("" at the top), its ``key`` there (a number, or in an
    object a text), its ``value``, and its ``text``."""

    section: str
    key: int | str
    value: Any
    text: str


def json_pieces(stream: IO[bytes], name: str) -> Iterator[Piece]:
    """The items of a JSON file, in its order. A value that is no array counts as an item of the object at the top.

    Args:
        stream: the file, open for reading bytes.
        name: of the file, for messages.

    Raises:
        UserError: it is no JSON, cut off, or not in UTF-8.
    """
    text = _Text(stream, name)
    first = text.next_sign()
    if first == "[":
        yield from _items(text, "")
    elif first == "{":
        for key in _keys(text):
            if text.peek_sign() == "[":
                text.next_sign()
                yield from _items(text, key)
            else:
                value, content = text.value(key)
                yield Piece("", key, value, content)
    else:
        raise text.fault(f"it begins with {first!r}, not with an array or an object" if first else "it is empty")
    if sign := text.next_sign():
        raise text.fault(f"{sign!r} follows the end of the JSON")


def _items(text: _Text, section: str) -> Iterator[Piece]:
    """The items of an array whose bracket was read."""
    if text.peek_sign() == "]":
        text.next_sign()
        return
    index, name = 0, printable(section[:_LONGEST_PLACE])
    while True:
        text.place = f"{name}[{index}]"
        value, content = text.value(index)
        yield Piece(section, index, value, content)
        index += 1
        sign = text.next_sign()
        if sign == "]":
            return
        if sign != ",":
            raise text.fault("a comma or a bracket is missing" if sign else None)


def _keys(text: _Text) -> Iterator[str]:
    """The keys of an object whose brace was read; the caller reads the value of each."""
    if text.peek_sign() == "}":
        text.next_sign()
        return
    while True:
        key, _ = text.value("a key")
        if not isinstance(key, str) or text.next_sign() != ":":
            raise text.fault("a key and a colon are missing")
        text.place = printable(key[:_LONGEST_PLACE])
        yield key
        sign = text.next_sign()
        if sign == "}":
            return
        if sign != ",":
            raise text.fault("a comma or a brace is missing" if sign else None)


class _Text:
    """The text of a file that was read and not yet used."""

    def __init__(self, stream: IO[bytes], name: str):
        self.name, self.place = name, ""
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parser = json.JSONDecoder()
        self._buffer, self._at = "", 0
        self._ended = False

    def peek_sign(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read():
                return ""

    def next_sign(self) -> str:
        """The next character that is no white space, and go past it; "" at the end of the file."""
        if self._at < len(self._buffer) and (sign := self._buffer[self._at]) not in _SPACE:  # as nearly always
            self._at += 1
            return sign
        sign = self.peek_sign()
        self._at += len(sign)
        return sign

    def value(self, key: int | str) -> tuple[Any, str]:
        """The next value, and its text."""
        self.peek_sign()
        while True:
            try:
                value, end = self._parser.raw_decode(self._buffer, self._at)
                if end <= len(self._buffer) - _NEAR_END or self._ended:  # else a number may go on, as "1" of "1.5" does
                    text = self._buffer[self._at : end]
                    self._at = end
                    return value, text
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._buffer) - _NEAR_END or error.msg.startswith("Unterminated string")
                if not cut or (self._ended and error.pos < len(self._buffer) - _NEAR_END):
                    raise self.fault(error.msg) from None
                if self._ended:
                    raise self.fault(None) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists a thousand deep
                raise self.fault(json_fault(error)) from None
            if len(self._buffer) - self._at > LONGEST_ITEM:
                raise self.fault(f"one item has more than {LONGEST_ITEM:,} characters")
            self._read()

    def fault(self, reason: str | None) -> UserError:
        """The error at this place; None: the file ends too early."""
        where = f"{self.name}: {self.place}" if self.place else self.name
        if reason is None:
            return UserError(f"{where}: the file ends here, in the middle; download or unpack it again")
        return UserError(f"{where}: not JSON: {reason}; is it the official file, and whole?")

    def _read(self) -> bool:
        """Read one more block; False at the end of the file."""
        if self._ended:
            return False
        block = self._stream.read(BLOCK)
        self._ended = not block
        try:
            more = self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            after = f"after {self.place} " if self.place else ""
            raise UserError(
                f"{self.name}: {after}it is not in UTF-8: {error.reason}; is it the official file?"
            ) from None
        self._buffer = self._buffer[self._at :] + more
        self._at = 0
        return not self._ended
