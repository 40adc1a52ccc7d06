"""Ids by which public data sets share images: one photograph may be in COCO, in Visual Genome and in Flickr30K.

An id is a text, ``coco:391895``, ``flickr:4385058960`` (a photograph on Flickr) or ``vg:2407890``. Visual Genome and GQA share
theirs. Two images with an id in common are one photograph, whatever its file is called and however it is scaled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Ids = frozenset[str]
"""All ids of an image that are known; none for an image that is of no such set."""

ID_KEYS = {"coco_id": "coco", "flickr_id": "flickr", "vg_id": "vg"}
"""Keys of a record that give an id, and its set."""

_COCO = re.compile(r"(?:COCO_(?:train|val|test)201[45]_|(?:^|/))(\d{12})(?:\D|$)")
_FLICKR_URL = re.compile(
    r"^https?://(?:[^/]*static\.?flickr\.com/(?:[^?]*/)?(?=\d+_[0-9a-z])|(?:www\.)?flickr\.com/photos/[^/?]+/)(\d+)",
    re.IGNORECASE,
)
_BY_FOLDER = (  # the greedy start finds the innermost folder of a name
    (re.compile(r"(?:.*/)?()[^/]*flickr_?30k[^/]*/(?:[^/]+/)*(\d+)\.jpe?g$", re.IGNORECASE), "flickr"),
    (re.compile(r"(?:.*/)?()(?:VG_100K(?:_2)?|visual_?genome|vg|gqa)/(?:images?/)?(\d+)\.jpe?g$", re.IGNORECASE), "vg"),
)


def ids_in_path(path: str) -> Ids:
    """The id in an image's path: the name of a COCO image (2014 to 2017), or a number in a folder that is known for its set; of
    two such folders, in the inner one."""
    if match := _COCO.search(path):
        return frozenset({f"coco:{int(match[1])}"})
    found = [(match.start(1), of, int(match[2])) for pattern, of in _BY_FOLDER if (match := pattern.match(path))]
    return frozenset(f"{of}:{number}" for _, of, number in [max(found)]) if found else frozenset()


def id_number(value: Any) -> int | None:
    """An id as files give it: a whole number, also as a float (pandas writes 391895.0 beside missing ids) or as a text."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def ids_in_url(url: str) -> Ids:
    """The id in the address of a photograph on Flickr, as SBU, COCO (``flickr_url``) and CC3M give it, or of its page there."""
    match = _FLICKR_URL.match(url)
    return frozenset({f"flickr:{int(match[1])}"}) if match else frozenset()


def ids_of_record(values: Mapping[str, Any], path: str | None) -> Ids:
    """The ids of a record's image: in its keys (:data:`ID_KEYS`), its ``url``, and the ``path`` of the image."""
    found = set(ids_in_path(path)) if path else set()
    for key, of in ID_KEYS.items():
        number = id_number(values.get(key))
        if number is not None:
            found.add(f"{of}:{number}")
    url = values.get("url")
    if isinstance(url, str):
        found |= ids_in_url(url)
    return frozenset(found)
