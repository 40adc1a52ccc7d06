"""EXIF orientation: reads it from the bytes of a file without an image library, and applies it to pixels."""

from __future__ import annotations

import struct

from torch import Tensor

_EXIF = b"Exif\0\0"
_APP1 = 0xE1
_TAG = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I"}
"""TIFF types of the tag's value: byte, short (as in the standard), long."""


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation, 1 to 8, in a block of EXIF data, or 1 if the block has no orientation or is malformed."""
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
    """Returns the orientation of a JPEG file, or 1 if the file has no orientation.

    Args:
        end: offset of the frame header, where the search ends.
    """
    if content.find(_EXIF, 0, end) < 0:  # most files have no EXIF data, so their segments do not have to be parsed
        return 1
    at = 2
    while at < end:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _APP1 and content.startswith(_EXIF, at + 4):
            return exif_orientation(content[at + 4 : at + 2 + length])
        at += 2 + length
    return 1


def oriented(pixels: Tensor, orientation: int) -> Tensor:
    """Applies an orientation to an image (3, H, W). Returns (3, H, W), or (3, W, H) for the orientations 5 to 8."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels if flipped is None else pixels.flip(flipped)
