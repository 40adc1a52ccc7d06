"""Ids that identify the same photograph in several public data sets, such as COCO, Visual Genome and Flickr30K.

An id is a string: ``coco:391895``, ``flickr:4385058960`` (a photograph on Flickr) or ``vg:2407890``. Visual Genome and GQA use
the same ids. Two images with an id in common are the same photograph, even if their file names and sizes differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Ids = frozenset[str]
"""All known ids of an image; empty if the image belongs to none of these data sets."""

ID_KEYS = {"coco_id": "coco", "flickr_id": "flickr", "vg_id": "vg"}
"""Keys of a record that contain an id, and the data set that the id belongs to."""

_COCO = re.compile(r"(?:COCO_(?:train|val|test)201[45]_|(?:^|/))(\d{12})(?:\D|$)")
_OF_COCO = re.compile(r"(?:COCO_(?:train|val|test)201[45]_|(?:^|/)(?:train|val|test|unlabeled)201[457]/)\d{12}(?:\D|$)")
_FLICKR_URL = re.compile(
    r"^https?://(?:[^/]*static\.?flickr\.com/(?:[^?]*/)?(?=\d+_[0-9a-z])|(?:www\.)?flickr\.com/photos/[^/?]+/)(\d+)",
    re.IGNORECASE,
)
_BY_FOLDER = (  # the greedy start finds the innermost folder of a name
    (re.compile(r"(?:.*/)?()[^/]*flickr_?30k[^/]*/(?:[^/]+/)*(\d+)\.jpe?g$", re.IGNORECASE), "flickr"),
    (re.compile(r"(?:.*/)?()(?:VG_100K(?:_2)?|visual_?genome|vg|gqa)/(?:images?/)?(\d+)\.jpe?g$", re.IGNORECASE), "vg"),
)


def ids_in_path(path: str) -> Ids:
    """Returns the id in an image's path: the name of a COCO image (2014 to 2017), or a number as file name in a folder of a known
    data set. If the path contains folders of two data sets, the inner one is used."""
    if match := _COCO.search(path):
        return frozenset({f"coco:{int(match[1])}"})
    found = [(match.start(1), of, int(match[2])) for pattern, of in _BY_FOLDER if (match := pattern.match(path))]
    return frozenset(f"{of}:{number}" for _, of, number in [max(found)]) if found else frozenset()


def guessed_ids_in_path(path: str) -> Ids:
    """Returns the id in a path if it is a guess: 12 digits as file name, outside COCO's folders (``train2017/``) and without
    COCO's prefix (``COCO_train2014_``). A camera may name a picture in this way, too."""
    return frozenset() if _OF_COCO.search(path) or not _COCO.search(path) else ids_in_path(path)


def id_number(value: Any) -> int | None:
    """Parses an id from a file: an integer, a float (pandas writes 391895.0 if other ids are missing), or a string."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def needed_id(value: Any) -> int:
    """Parses an id like :func:`id_number`. Raises ``ValueError`` if the value is not an id."""
    number = id_number(value)
    if number is None:
        raise ValueError(f"{value!r:.40} is not an id")
    return number


def ids_in_url(url: str) -> Ids:
    """Returns the id in the URL of a photograph on Flickr, as used by SBU, COCO (``flickr_url``) and CC3M, or in the URL of its
    page."""
    match = _FLICKR_URL.match(url)
    return frozenset({f"flickr:{int(match[1])}"}) if match else frozenset()


def ids_of_record(values: Mapping[str, Any], path: str | None) -> Ids:
    """Returns the ids of the image of a record: from its keys (:data:`ID_KEYS`), its ``url``, and the ``path`` of the image."""
    found = set(ids_in_path(path)) if path else set()
    for key, of in ID_KEYS.items():
        number = id_number(values.get(key))
        if number is not None:
            found.add(f"{of}:{number}")
    url = values.get("url")
    if isinstance(url, str):
        found |= ids_in_url(url)
    return frozenset(found)
