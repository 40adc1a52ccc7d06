"""Reads the rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset.shards.parquet import check_names, check_pyarrow
from utils.errors import UserError, reason_of
from utils.files import check_regular

BATCH = 1 << 16
"""Number of rows that are in memory at a time."""


class DamagedFileError(UserError):
    """Raised if a file cannot be read."""


def open_parquet(path: Path) -> Any:
    """Returns the file, opened by pyarrow.

    Raises:
        UserError: pyarrow is not installed.
        DamagedFileError: the file is not a complete parquet file.
    """
    check_pyarrow(str(path))
    import pyarrow
    import pyarrow.parquet

    try:
        check_regular(path)
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DamagedFileError(
            f"{path} is not a complete parquet file ({reason_of(error)}); download it again"
        ) from None


Rows = list[tuple[str, dict[str, Any]]]
"""Rows by the names of their columns, each with its location."""


def parquet_batches(path: Path, columns: Mapping[str, str]) -> Iterator[Rows]:
    """Yields up to :data:`BATCH` rows at a time.

    Args:
        path: the file.
        columns: maps our name for each column to its name in the file.

    Raises:
        UserError: for the reasons listed in :func:`open_parquet`, or a column is missing or occurs twice.
        DamagedFileError: a part of the file cannot be read.
    """
    file = open_parquet(path)
    names = file.schema_arrow.names
    check_names(names, str(path))
    if missing := [name for name in columns.values() if name not in names]:
        raise UserError(f"{path} has no column {', '.join(missing)}", remedy=f"its columns: {', '.join(names)}")
    number = 0
    for batch in _batches(file, path, list(columns.values())):
        values = [batch.column(batch.schema.names.index(name)).to_pylist() for name in columns.values()]
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
        yield [(f"{path}: row {index}", row) for index, row in enumerate(rows, start=number)]
        number += batch.num_rows


def _batches(file: Any, path: Path, columns: list[str]) -> Iterator[Any]:
    import pyarrow

    try:
        yield from file.iter_batches(BATCH, columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise DamagedFileError(f"{path} is damaged ({reason_of(error)}); download it again") from None


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the given columns of each row, with the location of the row.

    Raises:
        UserError: see :func:`parquet_batches`; or a column does not contain any value, which is known after the last row.
    """
    empty, number = set(columns), 0
    for rows in parquet_batches(path, {name: name for name in columns}):
        empty -= {name for _, row in rows for name in empty if row[name] is not None}
        number += len(rows)
        yield from rows
    if number and empty:
        named = ", ".join(name for name in columns if name in empty)
        raise UserError(f"all {number:,} values of {named} are missing", where=path, remedy="download the file again")
