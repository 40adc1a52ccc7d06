"""``run.py tokenizer``: trains a WordPiece tokenizer on the texts of records."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from dataset.broken import broken_record
from dataset.formats.annotations import Row, read_rows
from dataset.prepare.tokenizer import train_wordpiece
from dataset.shards.readers import Shards
from utils.errors import UserError
from utils.files import expanded
from utils.flags import SEVERAL, File, OutputFolder, Positive, read_by
from utils.printing import counted
from utils.progress import progress_bar

TEXT_KEYS = ("caption", "text", "sentence", "question", "answer", "attributes", "source_text", "target_text")
"""Keys that contain texts by default, in a record and in its elements."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def tokenizer(
    *,
    records: Annotated[list[File], SEVERAL],
    out: OutputFolder,
    size: Positive = 30_000,
    keys: Annotated[tuple[str, ...], read_by(_names, metavar="KEY,KEY", show_default=",".join)] = TEXT_KEYS,
    cased: bool = False,
    overwrite: bool = False,
) -> int:
    """Train a tokenizer on the texts of records. To use the tokenizer, set model.text.encoder to its folder.

    Args:
        records: JSON Lines files, JSON arrays, tars or folders.
        out: folder to create.
        size: maximum number of vocabulary entries.
        keys: keys that contain texts, in a record and in its elems, separated by commas.
        cased: distinguish upper and lower case.
        overwrite: replace a tokenizer in --out.

    Examples:
        python run.py tokenizer --records data/own/captions_train.jsonl --out data/own/tokenizer
        python run.py tokenizer --records data/pairs/*.tar data/regions --out data/tokenizer --size 8000
        python run.py tokenizer --records list.jsonl --keys title,alt_text --out data/tokenizer
    """
    if (out / "tokenizer.json").exists() and not overwrite:
        raise UserError("contains a tokenizer", where=f"--out {out}", remedy="use another folder, or --overwrite")
    counts = {"records": 0, "texts": 0}
    broken: list[str] = []
    texts = dict.fromkeys(_texts(records, keys, counts, broken))
    if not texts:
        raise UserError(
            f"no text under the keys {', '.join(keys)} in {counts['records']} records",
            where="--records",
            remedy="pass the right keys with --keys",
        )
    try:
        entries = train_wordpiece(texts, out, vocab_size=size, lowercase=not cased)
    except ValueError as error:
        raise UserError(f"{error}", where=f"--size {size}") from None
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=f"--out {out}") from None
    left_out = f"; {counted(len(broken), 'record', 'records')} skipped, the first: {broken[0]}" if broken else ""
    texts_read, records_read = (
        counted(counts["texts"], "text", "texts"),
        counted(counts["records"], "record", "records"),
    )
    sys.stdout.write(f"{out}: {entries} entries, from {texts_read} of {records_read}{left_out}\n")
    return 0


def _texts(files: Iterable[str], keys: tuple[str, ...], counts: dict[str, int], broken: list[str]) -> Iterator[str]:
    for file in files:
        records, total = _records(file)
        for record in progress_bar(records, total=total, desc=f"reading {file}", unit="record"):
            counts["records"] += 1
            if isinstance(record, str):
                broken.append(record)
                continue
            for text in texts_of(record, keys):
                counts["texts"] += 1
                yield text


def texts_of(record: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    """Yields all texts of a record and of its ``elems`` under ``keys``, including texts in lists and by language."""
    for key in keys:
        yield from _strings(record.get(key))
    elements = record.get("elems")
    for element in elements if isinstance(elements, list) else ():
        if isinstance(element, Mapping):
            yield from texts_of(element, keys)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        # No vocabulary contains unpaired surrogates. Runs count records with them as broken.
        yield value.encode("utf-8", "replace").decode("utf-8")
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(part)


def _records(file: str) -> tuple[Iterator[Mapping[str, Any] | str], int]:
    """Returns the records of a file and their number. A record that cannot be read is replaced by its location and the reason."""
    path = expanded(file)
    if path.is_file() and path.suffix in (".json", ".jsonl") and _starts_array(path):
        rows = read_rows(file, "--records")
        return (row.values if isinstance(row, Row) else str(row) for row in rows), len(rows)
    shards = Shards([file], key="--records", in_order=True)
    return (_record(shards, index) for index in range(len(shards))), len(shards)


def _record(shards: Shards, index: int) -> Mapping[str, Any] | str:
    try:
        record = shards.read(index)
    except Exception as error:
        return str(broken_record(error, shards.exact_location(index)))
    # In a tar, the caption of a pair is a separate member.
    return record.values if record.text is None else {"text": record.text, **record.values}


def _starts_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
