"""Reads CSV files strictly, so that a missing quotation mark or value is never taken for a part of a text."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import re
from collections.abc import Iterator

from batches.base import BrokenRecord
from dataset.broken import printable
from dataset.records.forms import delimiter_of
from utils.errors import UserError
from utils.printing import counted

logger = logging.getLogger(__name__)


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
                f"the header is {', '.join(self.columns) or 'empty'}",
                where=f"{name}:1",
                remedy="it should name each column once",
            )

    def __iter__(self) -> Iterator[tuple[str, dict[str, str] | BrokenRecord]]:
        """Yields each row, or "wrong columns" for a row with more or fewer values than the header, with its location, the line on
        which it starts.

        Raises:
            UserError: the file is not CSV, for example because a quotation mark is not closed.
        """
        lines = self._lines()
        next(lines)
        swallowed: list[str] = []
        for line, values in lines:
            location = f"{self._name}:{line}"
            for index, value in enumerate(values):
                if rows := self._rows_in(value):
                    like_rows = counted(rows, "line that looks like a row", "lines that look like rows")
                    swallowed.append(f"{location}: {self._column(index)} contains {like_rows}")
            if len(values) == len(self.columns):
                yield location, dict(zip(self.columns, values, strict=True))
            else:
                message = f"the row has {len(values)} values, and the header has {len(self.columns)}"
                yield location, BrokenRecord(printable(location), "wrong columns", printable(message))
        if swallowed:
            more = f" (and {counted(len(swallowed) - 1, 'more text', 'more texts')})" if len(swallowed) > 1 else ""
            logger.warning("%s%s; check the quotation marks at the start and the end of the text", swallowed[0], more)

    def _rows_in(self, value: str) -> int:
        """Returns the number of lines in a text that look like rows, because they have the header's number of delimiters. Returns
        0 unless these are most of the lines after the first, which indicates that a quotation mark is missing."""
        if "\n" not in value or len(self.columns) == 1:  # any line looks like a row of one column
            return 0
        lines = value.split("\n")[1:]
        like_rows = sum(line.count(self._delimiter) == len(self.columns) - 1 for line in lines)
        return like_rows if 2 * like_rows > len(lines) else 0

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
        # The possessive quantifiers need no memory for backtracking.
        value = re.compile(rf' *+(?:"[^"]*+(?:""[^"]*+)*+"|[^"{self._delimiter}\r\n][^{self._delimiter}\r\n]*+)?+')
        limit = csv.field_size_limit()
        column, begin = 0, 0
        while (found := value.match(row, begin)) is not None and found.end() - begin <= limit:
            if row[found.end() : found.end() + 1] != self._delimiter:
                break
            column, begin = column + 1, found.end() + 1
        if re.compile(' *"').match(row, begin):
            remedy = "close its quotation mark, or double the quotation marks inside its text"
        else:
            remedy = f"shorten the text to {limit:,} characters, or put a text with line breaks in quotation marks"
        return UserError(
            f"{self._column(column)} is not valid CSV ({error})", where=f"{self._name}:{start + 1}", remedy=remedy
        )

    def _column(self, index: int) -> str:
        return f"column {self.columns[index]!r}" if index < len(self.columns) else f"column {index + 1}"
