"""Translations of captions. Line n of each translation file is the translation of line n of ``texts.txt``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from dataset.prepare.counts import Counts
from dataset.prepare.rows import KeyedRow, RowFile
from utils.errors import UserError
from utils.files import replacing
from utils.progress import progress_bar

TEXTS, ENGLISH = "texts.txt", "en"
TEXT_KEYS = ("caption", "long_caption", "hard_negatives")
"""Keys of an image or a box whose values are texts."""
_TRANSLATED = re.compile(r"texts\.([A-Za-z]{2,3}(?:[-_]\w+)?)\.txt")


def digest_of(text: str) -> int:
    """Returns a hash of a text, an integer of 63 bits."""
    content = text.encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def one_line(text: str) -> str:
    """Returns the text on one line: each run of whitespace, including line breaks, becomes a space."""
    return " ".join(text.split())


def write_texts(folder: Path, texts: Iterable[str]) -> int:
    """Writes the distinct texts, in the order of their first occurrence, to the file to translate; returns their number."""
    seen: set[int] = set()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / TEXTS) as part, part.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for text in texts:
            line, digest = one_line(text), digest_of(one_line(text))
            if line and digest not in seen:
                seen.add(digest)
                stream.write(f"{line}\n")
    return len(seen)


def translated_files(folder: Path) -> dict[str, Path]:
    """Returns the translation files by language."""
    found = ((_TRANSLATED.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
    named = {match[1].lower(): path for match, path in found if match is not None}
    return {language: path for language, path in sorted(named.items()) if language != ENGLISH}


def fill_store(path: Path, folder: Path, files: Mapping[str, Path]) -> None:
    """Stores the translations of each text under its :func:`digest_of`, as a JSON object by language, without empty translations.

    Raises:
        UserError: a file cannot be read, or its number of lines differs from ``texts.txt``.
    """
    lines = _line_counts([folder / TEXTS, *files.values()])
    for file, count in lines.items():
        if count != lines[folder / TEXTS]:
            raise UserError(
                f"{count:,} lines, but {folder / TEXTS} has {lines[folder / TEXTS]:,}",
                where=file,
                remedy="translate line by line",
            )
    path.unlink(missing_ok=True)
    with closing(RowFile(path)) as store:
        store.add(_rows(folder, files, lines[folder / TEXTS]))


def _line_counts(files: Iterable[Path]) -> dict[Path, int]:
    return {file: sum(1 for _ in _lines(file)) for file in files}


def _rows(folder: Path, files: Mapping[str, Path], total: int) -> Iterator[KeyedRow]:
    texts = progress_bar(_lines(folder / TEXTS), total=total, desc="translations", unit="text")
    for line_number, (text, *translations) in enumerate(zip(texts, *map(_lines, files.values()), strict=True), start=1):
        by_language = {language: line for language, line in zip(files, translations, strict=True) if line}
        location = f"{folder / TEXTS}:{line_number}"
        yield KeyedRow("texts", str(digest_of(text)), location, json.dumps(by_language, ensure_ascii=False))


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as stream:
            for line in stream:
                yield one_line(line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", remedy="it must be a text file in UTF-8") from None


class Translator:
    """Replaces the captions of records with captions by language, ``{"en": …, "de": …}``.

    A translator is a context manager, and each process needs its own.

    Args:
        path: the file that :func:`fill_store` wrote.
        languages: the languages into which every caption should be translated; missing translations are counted.
    """

    def __init__(self, path: Path, languages: Iterable[str]):
        self.languages, self._store = tuple(languages), RowFile(path)

    def record(self, values: Mapping[str, Any], counts: Counts, location: str) -> dict[str, Any]:
        """Translates the captions of a record of an image or of regions. Captions by language are not changed."""
        return translate_record(values, lambda text: self._caption(text, counts, location))

    def _caption(self, text: str, counts: Counts, location: str) -> dict[str, str]:
        counts.written["texts"] += 1
        found = self._store.find("texts", str(digest_of(one_line(text))))
        if not found:
            counts.skip("text that was not translated", location, repr(text[:80]))
            return {ENGLISH: text}
        translations: dict[str, str] = json.loads(found[-1].text)
        for language in self.languages:
            if language not in translations:
                counts.skip(f"empty translation ({language})", found[-1].location)
        return {ENGLISH: text, **translations}

    def __enter__(self) -> Translator:
        return self

    def __exit__(self, *error: object) -> None:
        self._store.close()


def translate_record(values: Mapping[str, Any], translate: Callable[[str], Any]) -> dict[str, Any]:
    """Returns a copy of a record with translated texts: captions of the image and its elements, and attributes of elements."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return translate(value)
        return [changed(each) for each in value] if isinstance(value, list) else value

    copy = dict(values)
    copy |= {key: changed(copy[key]) for key in TEXT_KEYS if key in copy}
    if isinstance(copy.get("elems"), list):
        copy["elems"] = [
            {**element, **{key: changed(element[key]) for key in (*TEXT_KEYS, "attributes") if key in element}}
            if isinstance(element, dict)
            else element
            for element in copy["elems"]
        ]
    return copy
