"""Typed records, parsed from the rows of a shard (docs/records.md).

There are image-text records, region records (images with described boxes) and text records. The authors' readers use the same
records, except for ``long_caption``, ``hard_negatives``, and phrases with several boxes or none. The config sets the keys under
which the image and its caption are stored; all other keys are fixed. A record that does not match raises
:class:`~dataset.records.broken.BrokenRecordError`.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from batches.base import BrokenRecord
from dataset.config import CaptionLength, ImageIs
from dataset.files import IMAGE_BYTES, check_bytes, read_file
from dataset.records.broken import BrokenRecordError

Box = tuple[float, float, float, float]
Texts = tuple["str | Mapping[str, str | list[str]]", ...]
"""The value under a caption key, as a tuple of alternatives. Each one is a string, or a dictionary that maps languages to a
string or several strings."""

BOX_TOLERANCE_PX = 1.0
_ENCODED_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0AK")
_LONGEST_PATH = 1024
LONGEST_TEXT = 100_000
"""Maximum number of characters in a text. A tokenizer needs seconds for a word of a million characters."""


@dataclass(frozen=True)
class RawRecord:
    """A record as read from a shard.

    Attributes:
        values: the parsed JSON object, or the columns of a Parquet row that are not null.
        location: file and line, shard and member, or file and row.
        folder: folder that relative image paths start from.
        image: the encoded image member of a tar shard; None for JSON lines and Parquet.
        text: the ``.txt`` member of a tar shard; None for JSON lines and Parquet.
    """

    values: Mapping[str, Any]
    location: str
    folder: Path
    image: bytes | None = None
    text: str | None = None


@dataclass(frozen=True)
class ImageSource:
    """An image that is loaded on demand: from bytes (``content``), from ``base64`` text, or from a ``path``."""

    location: str
    content: bytes | None = None
    path: Path | None = None
    base64: str | None = None

    def load(self) -> bytes:
        """Returns the encoded bytes.

        Raises:
            BrokenRecordError: "missing image" if the file does not exist or cannot be read; "unreadable image" if it is not a
                regular file or is larger than :data:`~dataset.files.IMAGE_BYTES`, or if the text is not base64.
        """
        if self.content is not None:
            return self.content
        if self.base64 is not None:
            return _decode_base64(self.base64, self.location)
        assert self.path is not None
        return read_file(self.path, IMAGE_BYTES, self.location)


@dataclass(frozen=True)
class Description:
    """The texts about an image or a box.

    Attributes:
        captions: alternative captions, one of which is drawn each time.
        long_captions: alternative long captions.
        hard_negatives: texts that resemble a caption but are wrong.
        attributes: alternative attributes, one of which is put before the caption; only boxes have attributes.
    """

    captions: Texts = ()
    long_captions: Texts = ()
    hard_negatives: Texts = ()
    attributes: Texts = ()

    def texts(self, length: CaptionLength, rng: np.random.Generator) -> Texts:
        """Returns the captions of the given length. A missing long caption is replaced by a short one, and vice versa. With
        "both", this method returns the short captions, and :meth:`more_texts` the long ones."""
        if length in ("short", "both") or not (self.captions and self.long_captions):
            return self.captions or self.long_captions
        return self.long_captions if length == "long" or rng.random() < 0.5 else self.captions

    def more_texts(self, length: CaptionLength) -> Texts:
        """Returns the captions that have separate losses: with "both", the long captions, if there are also short ones."""
        return self.long_captions if length == "both" and self.captions else ()


@dataclass(frozen=True)
class ImageRecord(Description):
    """An image and its texts."""

    location: str = field(kw_only=True)
    image: ImageSource = field(kw_only=True)


@dataclass(frozen=True)
class Element(Description):
    """A phrase and its boxes.

    Attributes:
        name: name of the element in messages, such as ``elems[0]``.
        boxes: boxes as x, y, width, height in pixels of the stored image, as floats (the authors' reader truncates them to
            integers). A phrase may have several boxes, or none if the image does not show what the phrase describes.
        grain: type of the description ("object", "region", …), as written in the record.
    """

    name: str = field(kw_only=True)
    boxes: tuple[Box, ...] = field(kw_only=True)
    grain: str = "object"


@dataclass(frozen=True)
class RegionRecord(Description):
    """An image with phrases and their boxes, and, if the record has them, texts about the whole image. ``broken`` reports
    unusable parts."""

    location: str = field(kw_only=True)
    image: ImageSource = field(kw_only=True)
    elements: tuple[Element, ...] = field(kw_only=True)
    broken: tuple[BrokenRecord, ...] = ()


@dataclass(frozen=True)
class TextRecord:
    """A text without an image."""

    location: str
    texts: Texts


@dataclass(frozen=True)
class ImageKeys:
    """How the records of a stream specify their image: the key, its form, and the folder that relative paths start from."""

    image_key: str = "image"
    image_is: ImageIs = "auto"
    image_root: Path | None = None


def parse_image_record(
    raw: RawRecord, keys: ImageKeys, caption_key: str, length: CaptionLength = "short"
) -> ImageRecord:
    """Parses an image-text record. Unless ``length`` is "short", a long caption is enough.

    Raises:
        BrokenRecordError: "missing key", "wrong type", "missing image" or "unreadable image".
    """
    others = _other_texts(raw.values, "", raw.location)
    has_short = raw.values.get(caption_key) is not None or raw.text is not None
    return ImageRecord(
        _captions_of(raw, caption_key) if has_short or length == "short" or "long_captions" not in others else (),
        **others,
        location=raw.location,
        image=image_source(raw, keys),
    )


def parse_text_record(raw: RawRecord, text_key: str) -> TextRecord:
    """Parses a text record; raises :class:`BrokenRecordError` ("missing key", "wrong type")."""
    return TextRecord(raw.location, _captions_of(raw, text_key))


def parse_translation_record(raw: RawRecord, source_key: str, target_key: str) -> tuple[Texts, Texts]:
    """Parses a text and its translation; raises :class:`BrokenRecordError` ("missing key", "wrong type")."""
    return _captions_of(raw, source_key), _captions_of(raw, target_key)


def parse_region_record(raw: RawRecord, keys: ImageKeys, caption_key: str) -> RegionRecord:
    """Parses a region record. It keeps all usable elements and texts; unusable parts are listed in ``broken``.

    Raises:
        BrokenRecordError: if the image or ``elems`` is missing or has the wrong type, so that no part can be used.
    """
    image = image_source(raw, keys)
    broken: list[BrokenRecord] = []
    captions: Texts = ()
    others: dict[str, Texts] = {}
    try:
        if raw.values.get(caption_key) is not None or raw.text is not None:
            captions = _captions_of(raw, caption_key)
        others = _other_texts(raw.values, "", raw.location)
    except BrokenRecordError as error:
        broken.append(error.as_broken())
    values = raw.values.get("elems")
    if values is None and not captions and "long_captions" not in others:
        raise broken_key(raw, "elems", caption_key)
    if values is not None and not isinstance(values, list):
        raise BrokenRecordError("wrong type", raw.location, f"elems is {_type_name(values)}, not a list")
    elements: list[Element] = []
    for index, value in enumerate(values or ()):
        try:
            elements.append(element_in(value, f"elems[{index}]", raw.location))
        except BrokenRecordError as error:
            broken.append(error.as_broken())
    return RegionRecord(
        captions, **others, location=raw.location, image=image, elements=tuple(elements), broken=tuple(broken)
    )


def usable_elements(raw: RawRecord) -> list[Element]:
    """Returns the elements of a record. Unusable elements are skipped."""
    values = raw.values.get("elems")
    elements = []
    for index, value in enumerate(values if isinstance(values, list) else ()):
        with suppress(BrokenRecordError):
            elements.append(element_in(value, f"elems[{index}]", raw.location))
    return elements


def image_source(raw: RawRecord, keys: ImageKeys) -> ImageSource:
    """Returns the source of a record's image: the tar member, bytes in a Parquet row, base64 text in the record, or a path.

    With ``image_is="auto"``, a text is taken as base64 in three cases: it starts like an encoded JPEG, PNG, WebP, GIF, BMP or
    TIFF file and has no dot (base64 never has one, and nearly every file name does); it is a ``data:`` URL; or it is longer than
    any path.
    """
    if raw.image is not None:
        return ImageSource(raw.location, content=raw.image)
    value = raw.values.get(keys.image_key)
    if value is None:
        raise broken_key(raw, keys.image_key)
    return image_of(value, keys.image_key, raw.location, keys.image_root or raw.folder, keys.image_is)


def image_of(value: Any, key: str, location: str, folder: Path, image_is: ImageIs = "auto") -> ImageSource:
    """Returns the source of an image that is given as bytes, as a path relative to ``folder``, or as base64 text.

    Args:
        value: the encoded file, the path, the base64 text (see :func:`image_source`), or a dictionary as in Hugging Face data
            sets: ``{"bytes": ..., "path": ...}``, in which the path is used only if ``bytes`` is missing.
        key: key of the record that contains the value, to name in error messages.
        location: location of the record, to name in error messages.
        folder: folder that relative paths start from.
        image_is: whether the value is a path or base64 text.

    Raises:
        BrokenRecordError: "wrong type" or "missing image"; "unreadable image" if the image has more bytes than
            :data:`~dataset.files.IMAGE_BYTES`.
    """
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path", "")
    if isinstance(value, bytes) and value:
        check_bytes(len(value), IMAGE_BYTES, location, key)
        return ImageSource(location, content=value)
    if not isinstance(value, str | bytes):
        raise BrokenRecordError("wrong type", location, f"{key} is {_type_name(value)}, not a string or bytes")
    if not value:
        raise BrokenRecordError("missing image", location, f"{key} is empty")
    assert isinstance(value, str)
    if image_is == "base64" or (image_is == "auto" and _looks_encoded(value)):
        return ImageSource(location, base64=value)
    return ImageSource(location, path=folder / value)


def place_box(box: Box, width: int, height: int, location: str, name: str) -> Box:
    """Checks that a box is inside its image of ``width`` x ``height`` pixels. An excess of up to one pixel is clamped.

    Apart from the tolerance, this is the check of the authors' code: x, y >= 0; w, h > 0; x + w <= width; y + h <= height.

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
    """Returns the strings of all alternatives.

    Args:
        texts: the alternatives.
        language: language to take from a dictionary; if None, a random language is taken.
        rng: source of randomness; if None, the first language is taken.
        location: location of the record, to name in error messages.

    Raises:
        BrokenRecordError: "missing key" if no alternative has the language.
    """
    chosen: list[str] = []
    for text in texts:
        if isinstance(text, str) or language is not None:
            chosen += texts_in_language(text, language)
        else:
            names = list(text)
            chosen += texts_in_language(text, names[int(rng.integers(len(names))) if rng is not None else 0])
    if not chosen:
        wanted = "no text" if language is None else f"no text in language {language!r}"
        raise BrokenRecordError("missing key", location, wanted)
    return chosen


def texts_in_language(text: str | Mapping[str, str | list[str]], language: str | None) -> list[str]:
    """Returns the texts of one alternative in :data:`Texts`. From a dictionary, it returns the texts in ``language``, or all
    texts if ``language`` is None."""
    if isinstance(text, str):
        return [text]
    by_language = [value for name, value in text.items() if language in (None, name)]
    return [each for value in by_language for each in ([value] if isinstance(value, str) else value)]


def broken_key(raw: RawRecord, *names: str) -> BrokenRecordError:
    """Returns the error for a record in which the keys ``names`` are missing or null. The message lists the keys that the record
    has.

    Empty names are ignored; tasks pass them for keys that they do not read.
    """
    names = tuple(name for name in names if name)
    null = [name for name in names if name in raw.values]
    if null:
        return BrokenRecordError("missing key", raw.location, f"{' and '.join(map(repr, null))} is null")
    known = ", ".join(sorted(map(str, raw.values))) or "none"
    absent = " and ".join(f"no {name!r}" for name in names)
    return BrokenRecordError("missing key", raw.location, f"{absent}; keys: {known[:200]}")


def _captions_of(raw: RawRecord, key: str) -> Texts:
    """Returns the captions under ``key``, or the tar's text member if the key is missing."""
    value = raw.values.get(key)
    if value is None and raw.text is not None:
        value = raw.text
    if value is None:
        raise broken_key(raw, key)
    return texts_in(value, key, raw.location)


def element_in(value: Any, name: str, location: str) -> Element:
    """Parses a phrase with its boxes.

    Raises:
        BrokenRecordError: "missing key", "wrong type", "empty text" or "bad text".

    Args:
        name: name of the element in error messages.
    """
    if not isinstance(value, dict):
        raise BrokenRecordError("wrong type", location, f"{name} is {_type_name(value)}, not an object")
    for key in ("bb", "caption"):
        if value.get(key) is None:
            raise BrokenRecordError("missing key", location, f"{name} has no {key!r}")
    attributes = value.get("attributes")
    return Element(
        texts_in(value["caption"], f"{name}.caption", location),
        **_other_texts(value, f"{name}.", location),
        name=name,
        boxes=boxes_in(value["bb"], f"{name}.bb", location),
        attributes=texts_in(attributes, f"{name}.attributes", location) if attributes else (),
        grain=str(value.get("grain") or "object"),
    )


def _other_texts(values: Mapping[str, Any], prefix: str, location: str) -> dict[str, Texts]:
    """Returns the long captions and hard negatives of an image or element, under the names of their fields. Unlike captions, they
    may be empty.

    Args:
        prefix: prefix of the keys in messages.
    """
    keys = {"long_captions": "long_caption", "hard_negatives": "hard_negatives"}
    return {
        name: texts_in(values[key], f"{prefix}{key}", location)
        for name, key in keys.items()
        if values.get(key) not in (None, [], "")
    }


def boxes_in(value: Any, name: str, location: str) -> tuple[Box, ...]:
    """Parses the boxes of a phrase: one box, [x, y, width, height], or a list of boxes, which may be empty.

    Raises:
        BrokenRecordError: "wrong type" unless each box has four finite numbers. ``name`` is the name of the value in messages.
    """
    if isinstance(value, list) and all(isinstance(each, list) for each in value):
        return tuple(box_in(each, f"{name}[{index}]", location) for index, each in enumerate(value))
    return (box_in(value, name, location),)


def box_in(value: Any, name: str, location: str) -> Box:
    """Parses a box, [x, y, width, height].

    Raises:
        BrokenRecordError: "wrong type" unless the value is a list of four finite numbers.

    Args:
        name: name of the value in messages.
    """
    try:
        if isinstance(value, list) and len(value) == 4 and not any(isinstance(item, bool | str) for item in value):
            x, y, w, h = (float(item) for item in value)
            if all(map(math.isfinite, (x, y, w, h))):
                return x, y, w, h
    except (TypeError, OverflowError):  # not a number, or an integer too large for a float
        pass
    raise BrokenRecordError("wrong type", location, f"{name} = {str(value)[:80]} is not [x, y, width, height]")


def check_text(text: str, key: str, location: str) -> None:
    """Raises :class:`BrokenRecordError` ("bad text") for a text that a tokenizer cannot process, because it contains half a
    surrogate pair or is too long."""
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
    """Parses alternatives: a text, a dictionary of texts by language, or a list of these.

    Raises:
        BrokenRecordError: "wrong type", "empty text" or "bad text".

    Args:
        key: key of the value, to name in error messages.
    """
    items: Sequence[Any] = value if isinstance(value, list) else [value]
    for item in items:
        is_languages = isinstance(item, dict) and all(map(_is_text_or_texts, item.values()))
        if not isinstance(item, str) and not is_languages:
            raise BrokenRecordError("wrong type", location, f"{key} contains {_type_name(item)}, not a text")
        for text in texts_in_language(item, None):
            check_text(text, key, location)
    if not items or {} in items:
        raise BrokenRecordError(
            "empty text", location, f"{key} {'contains an empty object' if items else 'is an empty list'}"
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
    names = {type(None): "null", dict: "an object", list: "a list", str: "a string", bool: "a boolean", bytes: "bytes"}
    return names.get(type(value), "a number")
