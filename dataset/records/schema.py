"""Typed records: what a line of a shard must hold, and the one error for those that do not.

The formats are those of the released readers (one JSON object a line): an image-text record, a record of an image with
described boxes, and a text record. Key names come from the config; ``elems``, ``bb``, ``caption`` and ``attributes`` inside a
region record are fixed, as released.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from batches.base import BrokenRecord
from dataset.files import IMAGE_BYTES, check_bytes, read_file
from dataset.records.broken import BrokenRecordError

ImageIs = Literal["auto", "path", "base64"]
Box = tuple[float, float, float, float]
Texts = tuple["str | Mapping[str, str | list[str]]", ...]
"""What a caption key holds, as alternatives: plain strings, or dictionaries from language to a string or several."""

BOX_TOLERANCE_PX = 1.0
_ENCODED_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0AK")
_LONGEST_PATH = 1024
LONGEST_TEXT = 100_000
"""Characters of a text: a word of a million costs a tokenizer seconds."""


@dataclass(frozen=True)
class RawRecord:
    """A record as read: parsed JSON ``values``, and where it came from.

    ``image`` and ``text`` are what a tar shard holds beside the JSON: the encoded image and the ``.txt`` member. They are
    None for JSON lines. ``folder`` is what a relative image path starts from.
    """

    values: Mapping[str, Any]
    location: str
    folder: Path
    image: bytes | None = None
    text: str | None = None


@dataclass(frozen=True)
class ImageSource:
    """An image that is loaded only when it is needed: its ``content``, the same as ``base64`` text, or the ``path`` to it."""

    location: str
    content: bytes | None = None
    path: Path | None = None
    base64: str | None = None

    def load(self) -> bytes:
        """The encoded bytes.

        Raises:
            BrokenRecordError: "missing image" where the file is not there or cannot be read; "unreadable image" for what is no
                regular file, is larger than :data:`~dataset.files.IMAGE_BYTES`, or is a text that is not base64.
        """
        if self.content is not None:
            return self.content
        if self.base64 is not None:
            return _decode_base64(self.base64, self.location)
        assert self.path is not None
        return read_file(self.path, IMAGE_BYTES, self.location)


@dataclass(frozen=True)
class ImageRecord:
    """An image and its captions (alternatives: one is drawn each time)."""

    location: str
    image: ImageSource
    captions: Texts


@dataclass(frozen=True)
class Element:
    """A described box: ``box`` is x, y, width, height in pixels of the stored image, kept as floats (the released reader
    truncates to integers). ``name`` says which element of the record it is; ``grain`` is what kind of text it has."""

    name: str
    box: Box
    captions: Texts
    attributes: Texts = ()
    grain: str = "object"


@dataclass(frozen=True)
class RegionRecord:
    """An image with described boxes and, if the record has one, a caption of the whole; ``broken`` names unusable parts."""

    location: str
    image: ImageSource
    elements: tuple[Element, ...]
    captions: Texts = ()
    broken: tuple[BrokenRecord, ...] = field(default=())


@dataclass(frozen=True)
class TextRecord:
    """A text without an image."""

    location: str
    texts: Texts


@dataclass(frozen=True)
class ImageKeys:
    """How a stream's records name and hold their image."""

    image_key: str = "image"
    image_is: ImageIs = "auto"
    image_root: Path | None = None


def parse_image_record(raw: RawRecord, keys: ImageKeys, caption_key: str) -> ImageRecord:
    """Raises :class:`BrokenRecordError` ("missing key", "wrong type", "missing image", "unreadable image")."""
    return ImageRecord(raw.location, image_source(raw, keys), _captions_of(raw, caption_key))


def parse_text_record(raw: RawRecord, text_key: str) -> TextRecord:
    """Raises :class:`BrokenRecordError` ("missing key", "wrong type")."""
    return TextRecord(raw.location, _captions_of(raw, text_key))


def parse_translation_record(raw: RawRecord, source_key: str, target_key: str) -> tuple[Texts, Texts]:
    """A text and its translation. Raises :class:`BrokenRecordError` ("missing key", "wrong type")."""
    return _captions_of(raw, source_key), _captions_of(raw, target_key)


def parse_region_record(raw: RawRecord, keys: ImageKeys, caption_key: str) -> RegionRecord:
    """Keep every usable element and the caption; what is unusable is named in ``broken``.

    Raises:
        BrokenRecordError: where the image's key or ``elems`` is missing or mistyped, so that nothing can be used.
    """
    image = image_source(raw, keys)
    broken: list[BrokenRecord] = []
    captions: Texts = ()
    if raw.values.get(caption_key) is not None or raw.text is not None:
        try:
            captions = _captions_of(raw, caption_key)
        except BrokenRecordError as error:
            broken.append(error.as_broken())
    values = raw.values.get("elems")
    if values is None and not captions:
        raise broken_key(raw, "elems", caption_key)
    if values is not None and not isinstance(values, list):
        raise BrokenRecordError("wrong type", raw.location, f"elems is {_type_name(values)}, not a list")
    elements: list[Element] = []
    for index, value in enumerate(values or ()):
        try:
            elements.append(_element(value, f"elems[{index}]", raw.location))
        except BrokenRecordError as error:
            broken.append(error.as_broken())
    return RegionRecord(raw.location, image, tuple(elements), captions, tuple(broken))


def image_source(raw: RawRecord, keys: ImageKeys) -> ImageSource:
    """Where the record's image is: the tar member, base64 text in the record, or a path.

    With ``image_is="auto"``, text is base64 if it starts like an encoded JPEG, PNG, WebP, GIF, BMP or TIFF file and holds no
    dot (no base64 text does, nearly every file name does), if it is a ``data:`` address, or if it is longer than any path.
    """
    if raw.image is not None:
        return ImageSource(raw.location, content=raw.image)
    value = raw.values.get(keys.image_key)
    if value is None:
        raise broken_key(raw, keys.image_key)
    return image_of(value, keys.image_key, raw.location, keys.image_root or raw.folder, keys.image_is)


def image_of(value: Any, key: str, location: str, folder: Path, image_is: ImageIs = "auto") -> ImageSource:
    """The image that the text ``value`` of ``key`` holds or names, a path from ``folder``; see :func:`image_source`.

    Raises:
        BrokenRecordError: "wrong type" or "missing image".
    """
    if not isinstance(value, str):
        raise BrokenRecordError("wrong type", location, f"{key} is {_type_name(value)}, not a string")
    if not value:
        raise BrokenRecordError("missing image", location, f"{key} is empty")
    if image_is == "base64" or (image_is == "auto" and _looks_encoded(value)):
        return ImageSource(location, base64=value)
    return ImageSource(location, path=folder / value)


def place_box(box: Box, width: int, height: int, location: str, name: str) -> Box:
    """The box inside its image of ``width`` x ``height`` pixels: within one pixel of the border it is clamped.

    Rule (released, with our tolerance): x, y >= 0; w, h > 0; x + w <= width; y + h <= height.

    Raises:
        BrokenRecordError: "degenerate box" or "box outside image".
    """
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise BrokenRecordError("degenerate box", location, f"{name}.bb = {list(box)} has no area")
    low, right, bottom = -BOX_TOLERANCE_PX, width + BOX_TOLERANCE_PX, height + BOX_TOLERANCE_PX
    if x < low or y < low or x + w > right or y + h > bottom:
        message = f"{name}.bb = {list(box)} (x, y, width, height) leaves the {width} x {height} image"
        raise BrokenRecordError("box outside image", location, message)
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if x1 <= x0 or y1 <= y0:
        raise BrokenRecordError("degenerate box", location, f"{name}.bb = {list(box)} has no area inside the image")
    return x0, y0, x1 - x0, y1 - y0


def alternatives(texts: Texts, language: str | None, rng: np.random.Generator | None, location: str) -> list[str]:
    """One string for each alternative; a dictionary gives ``language``, or a random one (the first without ``rng``).

    Raises:
        BrokenRecordError: "missing key" where no alternative has the language.
    """
    chosen: list[str] = []
    for text in texts:
        if isinstance(text, str) or language is not None:
            chosen += spoken(text, language)
        else:
            names = list(text)
            chosen += spoken(text, names[int(rng.integers(len(names))) if rng is not None else 0])
    if not chosen:
        wanted = "no text" if language is None else f"no text in language {language!r}"
        raise BrokenRecordError("missing key", location, wanted)
    return chosen


def spoken(text: str | Mapping[str, str | list[str]], language: str | None) -> list[str]:
    """The texts of an alternative of :data:`Texts`: of a dictionary in ``language``, or with None in all of them."""
    if isinstance(text, str):
        return [text]
    by_language = [value for name, value in text.items() if language in (None, name)]
    return [each for value in by_language for each in ([value] if isinstance(value, str) else value)]


def broken_key(raw: RawRecord, *names: str) -> BrokenRecordError:
    """The error for a record that has none of the keys ``names``, or only keys with null; it lists the keys that the record has.
    Empty names, of keys that a task does not read, are ignored."""
    names = tuple(name for name in names if name)
    null = [name for name in names if name in raw.values]
    if null:
        return BrokenRecordError("missing key", raw.location, f"{' and '.join(map(repr, null))} is null")
    known = ", ".join(sorted(map(str, raw.values))) or "none"
    absent = " and ".join(f"no {name!r}" for name in names)
    return BrokenRecordError("missing key", raw.location, f"{absent}; keys: {known[:200]}")


def _captions_of(raw: RawRecord, key: str) -> Texts:
    """The alternatives under ``key``, or the text beside the record in a tar."""
    value = raw.values.get(key)
    if value is None and raw.text is not None:
        value = raw.text
    if value is None:
        raise broken_key(raw, key)
    return texts_in(value, key, raw.location)


def _element(value: Any, name: str, location: str) -> Element:
    if not isinstance(value, dict):
        raise BrokenRecordError("wrong type", location, f"{name} is {_type_name(value)}, not an object")
    for key in ("bb", "caption"):
        if value.get(key) is None:
            raise BrokenRecordError("missing key", location, f"{name} has no {key!r}")
    attributes = value.get("attributes")
    return Element(
        name=name,
        box=box_in(value["bb"], f"{name}.bb", location),
        captions=texts_in(value["caption"], f"{name}.caption", location),
        attributes=texts_in(attributes, f"{name}.attributes", location) if attributes else (),
        grain=str(value.get("grain", "object")),
    )


def box_in(value: Any, name: str, location: str) -> Box:
    """The box that ``value`` of ``name`` gives as [x, y, width, height].

    Raises:
        BrokenRecordError: "wrong type" for anything but four finite numbers.
    """
    try:
        if isinstance(value, list) and len(value) == 4 and not any(isinstance(item, bool | str) for item in value):
            x, y, w, h = (float(item) for item in value)
            if all(map(math.isfinite, (x, y, w, h))):
                return x, y, w, h
    except (TypeError, OverflowError):  # no number, or an integer beyond all floats
        pass
    raise BrokenRecordError("wrong type", location, f"{name} = {str(value)[:80]} is not [x, y, width, height]")


def check_text(text: str, key: str, location: str) -> None:
    """Raises :class:`BrokenRecordError` ("bad text") for a text that no tokenizer takes: one with half a surrogate pair, or an
    endless one."""
    if len(text) > LONGEST_TEXT:
        message = (
            f"{key} has {len(text):,} characters, more than the limit of {LONGEST_TEXT:,} (dataset/records/schema.py)"
        )
        raise BrokenRecordError("bad text", location, message)
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BrokenRecordError(
            "bad text", location, f"{key}: character {error.start} is half a surrogate pair"
        ) from None


def texts_in(value: Any, key: str, location: str) -> Texts:
    """The alternatives in ``value`` of ``key``: a text, texts by language, or a list of such alternatives.

    Raises:
        BrokenRecordError: "wrong type", "empty text" or "bad text".
    """
    items: Sequence[Any] = value if isinstance(value, list) else [value]
    for item in items:
        is_languages = isinstance(item, dict) and all(map(_is_text_or_texts, item.values()))
        if not isinstance(item, str) and not is_languages:
            raise BrokenRecordError("wrong type", location, f"{key} holds {_type_name(item)}, not a text")
        for text in spoken(item, None):
            check_text(text, key, location)
    if not items or {} in items:
        raise BrokenRecordError(
            "empty text", location, f"{key} {'holds an empty object' if items else 'is an empty list'}"
        )
    return tuple(items)


def _is_text_or_texts(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def _looks_encoded(value: str) -> bool:
    if value.startswith("data:"):
        return True
    return "." not in value and (value.startswith(_ENCODED_STARTS) or len(value) > _LONGEST_PATH)


def _decode_base64(value: str, location: str) -> bytes:
    if value.startswith("data:"):
        value = value.partition(",")[2]
    check_bytes(len(value) * 3 // 4, IMAGE_BYTES, location, "the base64 text")
    try:
        return binascii.a2b_base64(value)
    except ValueError as error:
        raise BrokenRecordError("unreadable image", location, f"not base64: {error}") from None


def _type_name(value: Any) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")
