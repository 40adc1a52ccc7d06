"""Boxes of images that are stored at another size than their annotations say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dataset.media.encoded import FORMATS
from dataset.prepare.cleaning import tidy
from dataset.prepare.counts import Counts
from utils.files import open_regular

SIZE = "size"
"""Key of the (width, height) of the annotations in the records of a converter; records are written without it."""

TOLERANCE_PX = 1.0
"""Maximum difference of a side when the larger image is scaled down to the smaller one, in pixels."""

OTHER_SIZE, SCALED = "image of another size", "box scaled to the stored image"


def fit_to_stored(
    folder: Path,
    convert: Callable[[list[Any], Counts], Iterator[Mapping[str, Any]]],
    items: list[Any],
    counts: Counts,
) -> Iterator[dict[str, Any]]:
    """Convert ``items`` to region records with boxes in pixels of the stored images.

    Where the stored image has another size and the same aspect ratio, boxes are scaled. A record whose image has another aspect
    ratio is dropped, since nothing says what its boxes show. Images that are not there, or cannot be read, are not compared.

    Args:
        folder: the folder from which the image paths of the records start.
        convert: yields records that have :data:`SIZE`.
        items: items for ``convert``.
        counts: receives the counts of the conversion.
    """
    start = os.path.realpath(folder)  # it may not be there yet
    for item in items:
        own, kept = Counts(), []
        for record in convert([item], own):
            width, height = record[SIZE]
            fitted = {key: value for key, value in record.items() if key != SIZE}
            stored = stored_size(Path(os.path.normpath(os.path.join(start, fitted["image"]))))
            if stored is None or stored == (width, height):
                kept.append(fitted)
            elif same_shape((width, height), stored):
                scales = stored[0] / width, stored[1] / height
                fitted["elems"] = [{**each, "bb": _scaled(each["bb"], scales)} for each in fitted["elems"]]
                for _ in fitted["elems"]:
                    own.mend(SCALED, fitted["image"], f"from {width} x {height} to {stored[0]} x {stored[1]}")
                kept.append(fitted)
            else:
                own.made.clear()
                detail = f"{stored[0]} x {stored[1]} pixels, annotated as {width} x {height}"
                own.leave_out(OTHER_SIZE, fitted["image"], detail)
        counts.add(own)
        yield from kept


def same_shape(annotated: tuple[int, int], stored: tuple[int, int]) -> bool:
    """Whether two sizes have the same aspect ratio, up to the rounding of a side."""
    small, large = sorted((annotated, stored))
    if min(small) < 1:
        return False
    by_height = abs(large[0] * small[1] / large[1] - small[0])
    by_width = abs(large[1] * small[0] / large[0] - small[1])
    return min(by_height, by_width) <= TOLERANCE_PX


def stored_size(path: Path) -> tuple[int, int] | None:
    """Width and height of the stored pixels, from the header; None if the image is not there or cannot be read."""
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as header:
            return header.size
    except Exception:  # Pillow's readers raise many kinds on malformed bytes; --verify and training report them
        return None


def _scaled(box: Sequence[float], scales: tuple[float, float]) -> tuple[float, ...]:
    return tuple(tidy(value * scale) for value, scale in zip(box, (*scales, *scales), strict=True))
