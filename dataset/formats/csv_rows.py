"""Reads CSV files strictly, so that a missing quotation mark or value is never taken for a part of a text."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator

from dataset.records.broken import BrokenRecordError
from dataset.records.forms import delimiter_of
from utils.errors import UserError


class CsvFile:
    """A CSV file with a header.

    Args:
        text: content of the file. The delimiter is a comma, a tab or a semicolon (:func:`~dataset.records.forms.delimiter_of`).
        name: name of the file in messages.

    Attributes:
        columns: names of the columns.

    Raises:
        UserError: the header is not CSV, does not name at least one column, or names a column twice.
    """

    def __init__(self, text: str, name: str):
        self._text, self._name, self.columns = text, name, list[str]()
        self._delimiter = delimiter_of(text.partition("\n")[0])
        _, header = next(self._lines(), (1, []))
        self.columns = [column.strip() for column in header]
        if not any(self.columns) or len(set(self.columns)) < len(self.columns):
            raise UserError(
                f"{name}:1: the header is {', '.join(self.columns) or 'empty'}; it should name each column once"
            )

    def __iter__(self) -> Iterator[tuple[str, dict[str, str] | BrokenRecordError]]:
        """Yields each row, or "wrong columns" for a row with more or fewer values than the header, with its location, the line on
        which it starts.

        Raises:
            UserError: the file is not CSV, for example because a quotation mark is not closed.
        """
        lines = self._lines()
        next(lines)
        for line, values in lines:
            location = f"{self._name}:{line}"
            if len(values) == len(self.columns):
                yield location, dict(zip(self.columns, values, strict=True))
            else:
                message = f"the row has {len(values)} values, and the header has {len(self.columns)}"
                yield location, BrokenRecordError("wrong columns", location, message)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the header and the rows, each with the line on which it starts. Blank lines are skipped."""
        reader = csv.reader(
            io.StringIO(self._text, newline=""), delimiter=self._delimiter, skipinitialspace=True, strict=True
        )
        while True:
            start = reader.line_num
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise self._fault(start, error) from None
            if values is None:
                return
            if values:
                yield start + 1, values

    def _fault(self, start: int, error: csv.Error) -> UserError:
        """Returns the error for the row that follows the first ``start`` lines."""
        row = "".join(itertools.islice(io.StringIO(self._text, newline=""), start, None))
        value = re.compile(rf' *(?:"(?:[^"]|"")*"|[^"{self._delimiter}\r\n][^{self._delimiter}\r\n]*)?')
        column, found = 0, value.match(row)
        while found is not None and row[found.end() : found.end() + 1] == self._delimiter:
            column, found = column + 1, value.match(row, found.end() + 1)
        named = f"column {self.columns[column]!r}" if column < len(self.columns) else f"column {column + 1}"
        return UserError(
            f"{self._name}:{start + 1}: {named} is not valid CSV ({error}); close its quotation mark, or double the quotation "
            "marks inside its text"
        )
