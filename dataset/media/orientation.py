"""EXIF orientation: read from the bytes of a file without an image library, and applied to pixels."""

from __future__ import annotations

import struct

from torch import Tensor

_EXIF = b"Exif\0\0"
_APP1 = 0xE1
_TAG = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I"}
"""TIFF's types of the tag's value: byte, short (the standard's), long."""


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in a block of EXIF data; 1 where it has none or is malformed."""
    data = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, entry)
            if tag == _TAG and kind in _FORMATS:
                (value,) = struct.unpack_from(f"{order}{_FORMATS[kind]}", data, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def jpeg_orientation(content: bytes, end: int) -> int:
    """The orientation that a JPEG file states before the byte ``end``, where its frame header lies; 1 where it states none."""
    if content.find(_EXIF, 0, end) < 0:  # most files: no need to look at segment after segment
        return 1
    at = 2
    while at < end:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _APP1 and content.startswith(_EXIF, at + 4):
            return exif_orientation(content[at + 4 : at + 2 + length])
        at += 2 + length
    return 1


def turned(pixels: Tensor, orientation: int) -> Tensor:
    """(3, H, W) as it is meant to be seen: (3, H, W), or for the orientations 5 to 8 (3, W, H)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels if flipped is None else pixels.flip(flipped)
