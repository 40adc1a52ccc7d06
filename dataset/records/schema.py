"""Typed records, parsed from the rows of a shard (docs/records.md).

There are image-text records, region records (images with described boxes) and text records. The authors' readers use the same
records, except for ``long_caption``, ``hard_negatives``, and phrases with several boxes or none. The config sets the keys under
which the image and its caption are stored; all other keys are fixed. A record that does not match raises
:class:`~dataset.broken.BrokenRecordError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.broken import BrokenRecordError, json_fault, json_type
from dataset.config import CaptionLength, ImageIs, ImageRecordsConfig
from dataset.media.sources import ImageSource, image_of
from utils.files import expanded

Box = tuple[float, float, float, float]
Texts = tuple["str | Mapping[str, str | list[str]]", ...]
"""The value under a caption key, as a tuple of alternatives. Each one is a string, or a dictionary that maps languages to a
string or several strings."""

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


def parse_object(line: bytes) -> dict[str, Any]:
    """Parses a JSON object; raises :class:`BrokenRecordError` ("bad json" or "wrong type") for anything else."""
    try:
        values = json.loads(line.decode("utf-8-sig"))  # json's own decoding takes twice as long as the rest
    except (ValueError, RecursionError) as error:
        raise BrokenRecordError("bad json", json_fault(error)) from None
    if not isinstance(values, dict):
        raise BrokenRecordError("wrong type", f"it is {json_type(values)}, not a JSON object")
    return values


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
class ImageRecord(Description):
    """An image with its texts, and the phrases with their boxes.

    Attributes:
        location: location of the record.
        image: the image.
        elements: the phrases.
        broken: errors of the parts that cannot be used; the record's other parts can.
    """

    location: str = field(kw_only=True)
    image: ImageSource = field(kw_only=True)
    elements: tuple[Element, ...] = field(default=(), kw_only=True)
    broken: tuple[BrokenRecordError, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class ImageKeys:
    """How the records of a stream specify their image: the key, its form, and the folder that relative paths start from."""

    image_key: str = "image"
    image_is: ImageIs = "auto"
    image_root: Path | None = None

    @classmethod
    def of(cls, config: ImageRecordsConfig) -> ImageKeys:
        """Returns the keys of a stream."""
        root = expanded(config.image_root) if config.image_root is not None else None
        return cls(config.image_key, config.image_is, root)


def parse_image_record(
    raw: RawRecord, keys: ImageKeys, caption_key: str, length: CaptionLength = "short", *, elements: bool = False
) -> ImageRecord:
    """Parses an image-text record. Unless ``length`` is "short", a long caption is enough. The phrases are parsed only with
    ``elements``; unusable ones are skipped.

    Raises:
        BrokenRecordError: "missing key", "wrong type", "empty text", "bad text", "missing image" or "unreadable image".
    """
    others = _other_texts(raw.values, "")
    has_short = raw.values.get(caption_key) is not None or raw.text is not None
    values = raw.values.get("elems") if elements else None
    return ImageRecord(
        _captions_of(raw, caption_key) if has_short or length == "short" or "long_captions" not in others else (),
        **others,
        location=raw.location,
        image=image_source(raw, keys),
        elements=_elements_in(values, []) if isinstance(values, list) else (),
        broken=(),
    )


def parse_text_record(raw: RawRecord, text_key: str) -> Texts:
    """Parses a text without an image; raises :class:`BrokenRecordError` ("missing key", "wrong type")."""
    return _captions_of(raw, text_key)


def parse_translation_record(raw: RawRecord, source_key: str, target_key: str) -> tuple[Texts, Texts]:
    """Parses a text and its translation; raises :class:`BrokenRecordError` ("missing key", "wrong type")."""
    return _captions_of(raw, source_key), _captions_of(raw, target_key)


def parse_region_record(raw: RawRecord, keys: ImageKeys, caption_key: str) -> ImageRecord:
    """Parses a record of an image with phrases and boxes. Its texts about the whole image are optional. Unusable texts and
    phrases are listed in ``broken``, and all others are kept.

    Raises:
        BrokenRecordError: if the image is missing or has the wrong type, or if there is neither a usable text nor a list of
            phrases, so that no part can be used.
    """
    image = image_source(raw, keys)
    broken: list[BrokenRecordError] = []
    captions: Texts = ()
    others: dict[str, Texts] = {}
    try:
        if raw.values.get(caption_key) is not None or raw.text is not None:
            captions = _captions_of(raw, caption_key)
        others = _other_texts(raw.values, "")
    except BrokenRecordError as error:
        broken.append(error)
    values = raw.values.get("elems")
    if values is None and not captions and "long_captions" not in others:
        raise broken[0] if broken else broken_key(raw, "elems", caption_key)
    if values is not None and not isinstance(values, list):
        raise BrokenRecordError("wrong type", f"elems is {json_type(values)}, not a list")
    elements = _elements_in(values or [], broken)
    return ImageRecord(captions, **others, location=raw.location, image=image, elements=elements, broken=tuple(broken))


def image_source(raw: RawRecord, keys: ImageKeys) -> ImageSource:
    """Returns the source of a record's image: the tar member, or whatever :func:`~dataset.media.sources.image_of` finds under the
    key of the image.

    Raises:
        BrokenRecordError: "missing key", or the errors of :func:`~dataset.media.sources.image_of`.
    """
    if raw.image is not None:
        return ImageSource(raw.location, content=raw.image)
    value = raw.values.get(keys.image_key)
    if value is None:
        raise broken_key(raw, keys.image_key)
    return image_of(value, keys.image_key, raw.location, keys.image_root or raw.folder, keys.image_is)


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
        return BrokenRecordError("missing key", f"{' and '.join(map(repr, null))} is null")
    known = ", ".join(sorted(map(str, raw.values))) or "none"
    absent = " and ".join(f"no {name!r}" for name in names)
    return BrokenRecordError("missing key", f"{absent}; keys: {known[:200]}")


def _captions_of(raw: RawRecord, key: str) -> Texts:
    """Returns the captions under ``key``, or the tar's text member if the key is missing."""
    value = raw.values.get(key)
    if value is None and raw.text is not None:
        value = raw.text
    if value is None:
        raise broken_key(raw, key)
    return texts_in(value, key)


def _elements_in(values: list[Any], broken: list[BrokenRecordError]) -> tuple[Element, ...]:
    """Parses phrases with their boxes. The errors of unusable ones are appended to ``broken``."""
    elements = []
    for index, value in enumerate(values):
        try:
            elements.append(element_in(value, f"elems[{index}]"))
        except BrokenRecordError as error:
            broken.append(error)
    return tuple(elements)


def element_in(value: Any, name: str) -> Element:
    """Parses a phrase with its boxes.

    Raises:
        BrokenRecordError: "missing key", "wrong type", "empty text" or "bad text".

    Args:
        name: name of the element in error messages.
    """
    if not isinstance(value, dict):
        raise BrokenRecordError("wrong type", f"{name} is {json_type(value)}, not an object")
    for key in ("bb", "caption"):
        if value.get(key) is None:
            raise BrokenRecordError("missing key", f"{name} has no {key!r}")
    attributes = value.get("attributes")
    return Element(
        texts_in(value["caption"], f"{name}.caption"),
        **_other_texts(value, f"{name}."),
        name=name,
        boxes=boxes_in(value["bb"], f"{name}.bb"),
        attributes=texts_in(attributes, f"{name}.attributes") if attributes else (),
        grain=str(value.get("grain") or "object"),
    )


def _other_texts(values: Mapping[str, Any], prefix: str) -> dict[str, Texts]:
    """Returns the long captions and hard negatives of an image or element, under the names of their fields. Unlike captions, they
    may be empty.

    Args:
        prefix: prefix of the keys in messages.
    """
    keys = {"long_captions": "long_caption", "hard_negatives": "hard_negatives"}
    return {
        name: texts_in(values[key], f"{prefix}{key}")
        for name, key in keys.items()
        if values.get(key) not in (None, [], "")
    }


def boxes_in(value: Any, name: str) -> tuple[Box, ...]:
    """Parses the boxes of a phrase: one box, [x, y, width, height], or a list of boxes, which may be empty.

    Raises:
        BrokenRecordError: "wrong type" unless each box has four finite numbers. ``name`` is the name of the value in messages.
    """
    if isinstance(value, list) and all(isinstance(each, list) for each in value):
        return tuple(box_in(each, f"{name}[{index}]") for index, each in enumerate(value))
    return (box_in(value, name),)


def box_in(value: Any, name: str) -> Box:
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
    raise BrokenRecordError("wrong type", f"{name} = {str(value)[:80]} is not [x, y, width, height]")


def check_text(text: str, key: str) -> None:
    """Raises :class:`BrokenRecordError` ("bad text") for a text that a tokenizer cannot process, because it contains half a
    surrogate pair or is too long."""
    if len(text) > LONGEST_TEXT:
        message = (
            f"{key} has {len(text):,} characters, more than the limit of {LONGEST_TEXT:,} (dataset/records/schema.py)"
        )
        raise BrokenRecordError("bad text", message)
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BrokenRecordError("bad text", f"{key}: character {error.start} is half a surrogate pair") from None


def texts_in(value: Any, key: str) -> Texts:
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
            raise BrokenRecordError("wrong type", f"{key} contains {json_type(item)}, not a text")
        for text in texts_in_language(item, None):
            check_text(text, key)
    if not items or {} in items:
        raise BrokenRecordError("empty text", f"{key} {'contains an empty object' if items else 'is an empty list'}")
    return tuple(items)


def _is_text_or_texts(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) for text in texts)
