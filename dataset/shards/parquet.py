"""Parquet shards, with random access to rows.

A row group is the smallest part of a Parquet file that can be decoded. The rows of a window (see :mod:`dataset.shards.blocks`)
come in random order from many row groups, too many to keep in memory. A row group is therefore decoded once, in a stream, and its
rows are written to the block cache (:class:`~utils.block_cache.BlockCache`) in pieces of about :data:`PIECE_BYTES`, as Arrow
IPC streams. All processes of the machine read rows from the memory-mapped pieces.

Rows that are read in order do not need the cache: each process keeps only the piece that it is reading.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from dataset.broken import BrokenRecordError, json_fault
from dataset.config import RemoteConfig
from dataset.records.schema import RawRecord
from dataset.shards.finding import ShardFile, open_shard
from dataset.shards.index import RowGroup
from dataset.shards.remote.server import open_cache
from dataset.shards.remote.shards import RemoteShard
from utils.block_cache import Block, BlockCache, crc_digest
from utils.errors import UserError, reason_of
from utils.extras import require

PIECE_BYTES = 2_000_000
"""Target size of a piece. Pieces must fit in the smallest cache that a config can set."""
_PIECE_ROWS = 1000
"""Maximum number of rows in a piece. Dictionary encoding can make the pages of a row group much smaller than its rows."""
_READ_BYTES = 1 << 20
"""Number of bytes of a column that are read at a time."""
_OPEN_PIECES, _REOPEN_S = 256, 20.0
"""Maximum number of pieces that a process keeps open, and number of seconds after which a piece is opened again to tell the cache
that it is still in use."""
_MAX_REMEMBERED = 1024
"""Maximum number of damaged row groups, and of prefetched row groups, that a process remembers."""

_BYTE_TYPES = ("binary", "large_binary", "string", "large_string")
_LIST_TYPES = ("list", "large_list", "fixed_size_list")

JSON_COLUMN = {b"x2vlm": b"json"}
"""Field metadata that marks a column whose values are JSON texts, because they have no common Arrow type."""

Key = tuple[str, int]
"""The path of a shard and the index of a row group."""


def check_pyarrow(key: str) -> None:
    """Raises :class:`UserError`, naming the config ``key``, if pyarrow is not installed."""
    require("pyarrow.parquet", "parquet", where=key)


def scan_row_groups(file: BinaryIO, path: ShardFile, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the footer of a Parquet file.

    Args:
        file: the open file.
        path: path of the file, to name in error messages.
        key: config key of the shards, to name in error messages.

    Returns:
        (G,) int64, the number of rows of each of the G row groups; and (G, 4) int64, the first row, the size of the decompressed
        pages, and the start and end offsets of each row group.

    Raises:
        UserError: if pyarrow is not installed, the file is not a complete Parquet file, or two columns have the same name.
    """
    check_pyarrow(key)
    import pyarrow
    import pyarrow.parquet

    try:
        footer = pyarrow.parquet.read_metadata(file)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path} is not a complete Parquet file ({_reason(error)})", where=key, remedy="copy or write it again"
        ) from None
    check_names(footer.schema.to_arrow_schema().names, f"{key}: {path}")
    rows, table, first = [], [], 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
        rows.append(group.num_rows)
        table.append([first, group.total_byte_size, min(starts, default=0), max(ends, default=0)])
        first += group.num_rows
    return np.array(rows, np.int64), np.array(table, np.int64).reshape(-1, 4)


def check_names(names: Sequence[str], file: str) -> None:
    """Raises :class:`UserError` if two columns of a ``file`` have the same name, because only one of them could be read."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"{file} has several columns with the name {repeated[0]}", remedy="rename or remove all but one of them"
        )


def runs_of_groups(firsts: np.ndarray, records: int, block_records: int) -> list[int]:
    """Joins neighbouring row groups into runs of at most ``block_records`` rows. A larger row group forms a separate run.

    Args:
        firsts: (G,) int64, first row of each row group.
        records: total number of rows in the row groups.
        block_records: maximum number of rows in a block.

    Returns:
        The number of rows of each run.
    """
    runs = [0]
    for rows in np.diff(firsts, append=records).tolist():
        if runs[-1] and runs[-1] + rows > block_records:
            runs.append(0)
        runs[-1] += rows
    return runs


class _Stream:
    """A row group that is being decoded, with the index and the record batch of the current piece."""

    def __init__(self, key: Key, pieces: Iterator[Any]):
        self.key, self.process, self._pieces = key, os.getpid(), pieces
        self.piece, self.batch = -1, None

    def advance(self) -> bool:
        """Decodes the next piece. Returns False after the last piece."""
        self.batch = next(self._pieces, None)
        self.piece += self.batch is not None
        return self.batch is not None


class ParquetRows:
    """Reads rows of Parquet shards, through the block cache or in order. It can be pickled, and used after a fork.

    Args:
        config: settings of the block cache.
        in_order: True if each process reads rows in order. They are then not cached, and reading an earlier row decodes its row
            group again.
    """

    def __init__(self, config: RemoteConfig, in_order: bool = False):
        self.config, self.in_order = config, in_order
        self._process = -1
        self._stream: _Stream | None = None
        self._cache: BlockCache | None = None
        self._buffer: Any = None
        self._open: OrderedDict[tuple[str, int, int], tuple[float, Any]] = OrderedDict()
        self._damaged: OrderedDict[Key, tuple[int, str]] = (
            OrderedDict()
        )  # number of pieces before the damage, and its description
        self._prefetched: OrderedDict[Key, None] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "in_order": self.in_order}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @staticmethod
    def location(path: ShardFile, row: int) -> str:
        """Returns the location of a row, ``file.parquet:row 17``. Rows are counted from 0, as in pyarrow and pandas."""
        return f"{path}:row {row}"

    def read(self, path: ShardFile, state: tuple[int, int], group: RowGroup, row: int) -> RawRecord:
        """Reads a row. Null values are skipped, in structs, too.

        Args:
            path: the shard.
            state: state of the shard when it was indexed.
            group: the row group of the row.
            row: index of the row in the file.

        Raises:
            BrokenRecordError: "unreadable row group" if the row group cannot be decoded up to this row; "wrong type" if a text
                is not UTF-8; "bad json" if a column of JSON texts contains a text that is not JSON.
            UserError: if the shard has changed or cannot be read.
            OSError: if the shard can no longer be read.
        """
        location = self.location(path, row)
        piece, row_in_piece = divmod(row - group.first, _rows_of_piece(group))
        try:
            batch = (self._next_batch if self.in_order else self._batch)(path, state, group, piece)
        except _DamagedError as error:
            raise BrokenRecordError("unreadable row group", f"row group {group.number}: {error}") from None
        try:
            values = {
                name: column[row_in_piece].as_py()
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            }
        except UnicodeDecodeError as error:
            raise BrokenRecordError("wrong type", f"a text is not UTF-8: {error}") from None
        try:
            for field in batch.schema:
                if isinstance(values[field.name], str) and (field.metadata or {}).items() >= JSON_COLUMN.items():
                    values[field.name] = json.loads(values[field.name])
        except (ValueError, RecursionError) as error:
            raise BrokenRecordError("bad json", json_fault(error)) from None
        return RawRecord(_without_nulls(values), location, path.parent)

    def prefetch(self, path: RemoteShard, state: tuple[int, int], group: RowGroup, row: int) -> None:
        """Prefetches the row group of a row of a remote shard, unless the row is in the cache; see :meth:`read`."""
        blocks, key = self._blocks(), (str(path), group.number)
        if key in self._prefetched:
            return
        _remember(self._prefetched, key, None)
        if not blocks.has(_name(path, state, group, (row - group.first) // _rows_of_piece(group))):
            path.prefetch(state, group.start, group.end)

    def _batch(self, path: ShardFile, state: tuple[int, int], group: RowGroup, piece: int) -> Any:
        """Returns the record batch of a piece, which is mapped from the cache."""
        import pyarrow

        key, now = (str(path), group.number, piece), time.monotonic()
        opened, batch = self._open.get(key, (-_REOPEN_S, None))
        if now - opened > _REOPEN_S or self._process != os.getpid():
            content = self._blocks().get(
                _name(path, state, group, piece), None, lambda: self._decode(path, state, group, piece)
            )
            batch = pyarrow.ipc.open_stream(pyarrow.py_buffer(content)).read_next_batch()
            self._open[key] = now, batch
            if len(self._open) > _OPEN_PIECES:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return batch

    def _next_batch(self, path: ShardFile, state: tuple[int, int], group: RowGroup, piece: int) -> Any:
        """Returns the record batch of a piece, which is decoded from the current position in the row group if possible.

        Raises:
            _DamagedError: if the row group cannot be decoded up to the end of the piece.
        """
        import pyarrow

        key = self._undamaged(path, group, piece)
        stream = self._stream
        if stream is None or (stream.key, stream.process) != (key, os.getpid()) or stream.piece > piece:
            stream = self._stream = _Stream(key, _pieces(_open_for_pyarrow(path, state), group))
        while stream.piece < piece:
            try:
                reason = "" if stream.advance() else f"it has fewer than {group.rows:,} rows"
            except (pyarrow.ArrowException, OSError) as error:
                reason = _damage(error)
            if reason:
                self._stream = None
                _remember(self._damaged, key, (stream.piece + 1, reason))
                raise _DamagedError(reason)
        return stream.batch

    def _undamaged(self, path: ShardFile, group: RowGroup, piece: int) -> Key:
        """Returns the key of a row group in ``_damaged``. Raises :class:`_DamagedError` if the piece is known to be damaged."""
        key = str(path), group.number
        readable_pieces, reason = self._damaged.get(key, (piece + 1, ""))
        if piece >= readable_pieces:
            raise _DamagedError(reason)
        return key

    def _blocks(self) -> BlockCache:
        if self._process != os.getpid():
            self._process = os.getpid()
            self._cache = None
            self._open.clear()
        if self._cache is None:
            # Fetching a piece may fetch blocks of a remote shard, so pieces and blocks use different locks. Verifying pieces with
            # SHA-256 would take longer than decoding them.
            self._cache = open_cache(self.config, kind="rows", digest=crc_digest)
        return self._cache

    def _to_ipc_stream(self, batch: Any) -> memoryview:
        """Returns a record batch as an Arrow IPC stream, in a buffer that the next call overwrites."""
        import pyarrow

        size = pyarrow.MockOutputStream()
        with pyarrow.ipc.new_stream(size, batch.schema) as writer:
            writer.write_batch(batch)
        # Allocating new memory for each piece would take longer than everything else in this method.
        if self._buffer is None or self._buffer.size < size.size():
            self._buffer = pyarrow.allocate_buffer(size.size())
        with pyarrow.ipc.new_stream(pyarrow.FixedSizeBufferWriter(self._buffer), batch.schema) as writer:
            writer.write_batch(batch)
        return memoryview(self._buffer)[: size.size()]

    def _decode(self, path: ShardFile, state: tuple[int, int], group: RowGroup, piece: int) -> Block:
        """Decodes a row group, caches its pieces, and returns one of them.

        Raises:
            _DamagedError: if the row group cannot be decoded up to the end of the piece.
        """
        import pyarrow

        key = self._undamaged(path, group, piece)
        wanted: Block | None = None
        number = -1
        with _open_for_pyarrow(path, state) as file:
            try:
                for number, batch in enumerate(_pieces(file, group)):
                    content = self._to_ipc_stream(_compact(batch))
                    if number == piece:
                        wanted = bytes(content)
                    kept = self._blocks().add(_name(path, state, group, number), content)
                    if wanted is not None and not kept:
                        break  # the cache could not store later pieces either
            except (pyarrow.ArrowException, OSError) as error:
                reason = _damage(error)
        if wanted is None:
            reason = reason or f"it has fewer than {group.rows:,} rows"
            _remember(self._damaged, key, (number + 1, reason))
            raise _DamagedError(reason)
        return wanted


def _open_for_pyarrow(path: ShardFile, state: tuple[int, int]) -> Any:
    """Opens a shard for pyarrow. pyarrow's local files are faster than Python's.

    Raises:
        UserError: if a local shard has changed.
    """
    import pyarrow

    if isinstance(path, RemoteShard):
        return path.open(state)
    file = pyarrow.OSFile(str(path))
    open_shard(path, state).close()  # checks the state after the file was opened
    return file


class _DamagedError(Exception):
    """A row group cannot be decoded."""


def _damage(error: Exception) -> str:
    """Describes the damage that an error of pyarrow reports. Raises the error itself if the system caused it."""
    # pyarrow raises OSError for damaged pages, too, but without the system's error number.
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return _reason(error)


def _pieces(file: Any, group: RowGroup) -> Iterator[Any]:
    """Decodes a row group in a stream, and yields its rows in pieces, each as a record batch."""
    import pyarrow
    import pyarrow.parquet

    # With pre_buffer, pyarrow would read the whole row group at once, in other threads.
    parquet = pyarrow.parquet.ParquetFile(
        file, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True
    )
    size = _rows_of_piece(group)
    waiting: list[Any] = []  # decoded batches that may be smaller than a piece
    for batch in parquet.iter_batches(size, row_groups=[group.number], use_threads=False):
        waiting.append(_without_dictionaries(batch))
        while (rows := sum(each.num_rows for each in waiting)) >= size:
            joined = _joined(waiting)
            yield joined.slice(0, size)
            waiting = [joined.slice(size)] if rows > size else []
    if waiting:
        yield _joined(waiting)


def _without_dictionaries(batch: Any) -> Any:
    import pyarrow

    columns = [
        column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column for column in batch.columns
    ]
    fields = [field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)]
    return pyarrow.record_batch(columns, schema=pyarrow.schema(fields))


def _compact(batch: Any) -> Any:
    """Returns a record batch that stores repeated texts and contents of images once, if it is much larger than a piece should be.

    The size of a piece is planned with the size of the row group's pages, which may store these values once, too.
    """
    import pyarrow

    if batch.nbytes <= 2 * PIECE_BYTES:
        return batch
    columns = [_with_dictionary(column) for column in batch.columns]
    fields = [field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)]
    return pyarrow.record_batch(columns, schema=pyarrow.schema(fields))


def _with_dictionary(column: Any) -> Any:
    """Encodes a column of texts or bytes, the fields of a struct, or the items of lists, with a dictionary if this is smaller."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_struct(column.type):
        columns = [_with_dictionary(each) for each in column.flatten()]
        fields = [field.with_type(each.type) for field, each in zip(column.type, columns, strict=True)]
        return pyarrow.StructArray.from_arrays(columns, fields=fields, mask=column.is_null())
    if any(getattr(pyarrow.types, f"is_{name}")(column.type) for name in _LIST_TYPES):
        items = _with_dictionary(column.flatten())
        lengths = pyarrow.compute.list_value_length(column).fill_null(0).to_numpy()
        offsets = pyarrow.array(np.append(0, np.cumsum(lengths, dtype=np.int64)))
        return pyarrow.LargeListArray.from_arrays(offsets, items, mask=column.is_null())
    if not any(getattr(pyarrow.types, f"is_{name}")(column.type) for name in _BYTE_TYPES):
        return column
    encoded = column.dictionary_encode()
    return encoded if encoded.nbytes < column.nbytes else column


def _joined(batches: Sequence[Any]) -> Any:
    import pyarrow

    return batches[0] if len(batches) == 1 else pyarrow.concat_batches(batches)


def _rows_of_piece(group: RowGroup) -> int:
    """Returns the number of rows in a piece of a row group; the last piece may be smaller."""
    return max(1, min(_PIECE_ROWS, PIECE_BYTES * group.rows // max(1, group.bytes)))


def _name(path: ShardFile, state: tuple[int, int], group: RowGroup, piece: int) -> str:
    """Returns the name of a piece in the cache. The names of all pieces of a row group begin with the same digits, so that they
    share a lock."""
    file = path if isinstance(path, RemoteShard) else os.path.abspath(path)
    group_digest = hashlib.sha256(
        f"{file} {state} row group {group.number}".encode("utf-8", "surrogateescape")
    ).hexdigest()
    piece_digest = hashlib.sha256(f"{group_digest} {piece} {_rows_of_piece(group)}".encode()).hexdigest()
    return group_digest[:20] + piece_digest[:20]


def _without_nulls(value: Any) -> Any:
    """Removes null fields from objects, including objects in lists. Null items of lists are kept."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _remember(remembered: OrderedDict[Key, Any], key: Key, value: Any) -> None:
    remembered[key] = value
    if len(remembered) > _MAX_REMEMBERED:
        remembered.popitem(last=False)


def _reason(error: Exception) -> str:
    return reason_of(error).rstrip(".")[:200]
