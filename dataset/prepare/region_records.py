"""Region records of annotated images, with boxes in pixels of the stored images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dataset.media.encoded import FORMATS
from dataset.prepare.cleaning import tidy
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Found
from utils.files import open_regular

TOLERANCE_PX = 1.0
"""Maximum difference in pixels between the sides of two images after the larger one is scaled down to the smaller one."""

OTHER_SIZE, SCALED = "image of another size", "box scaled to the stored image"


def region_record(
    image: Found,
    size: tuple[int, int] | None,
    elements: list[dict[str, Any]],
    written: Mapping[str, int],
    counts: Counts,
    captions: Sequence[str] = (),
    **keys: Any,
) -> Iterator[dict[str, Any]]:
    """Yields the record of an image, if it has boxes or a caption.

    If the stored image has a different size than the annotations say, but the same aspect ratio, the boxes are scaled. If it has
    a different aspect ratio, the image is skipped, because it is unknown what the boxes show. The size of an image that does not
    exist or cannot be read is not checked.

    Args:
        image: the image.
        size: width and height of the image in pixels, according to the annotations; None if the boxes are in pixels of the stored
            image.
        elements: the boxes with their texts. The "bb" of an element is a box, or a list of boxes.
        written: counts by unit, such as 3 objects, to add to ``counts`` if a record is built.
        counts: receives the counts.
        captions: captions of the whole image.
        keys: additional keys of the record.
    """
    if not elements and not captions:
        counts.skip("image without boxes", image.location)
        return
    stored = stored_size(image.file) if size is not None else None
    if size is not None and stored is not None and stored != size:
        sizes = f"{size[0]} x {size[1]}", f"{stored[0]} x {stored[1]}"
        if not same_shape(size, stored):
            counts.skip(OTHER_SIZE, image.path, f"{sizes[1]} pixels, annotated as {sizes[0]}")
            return
        scales = stored[0] / size[0], stored[1] / size[1]
        elements = [{**each, "bb": _scaled(each["bb"], scales)} for each in elements]
        for each in elements:
            for _ in each["bb"] if isinstance(each["bb"], list) else (each["bb"],):
                counts.fix(SCALED, image.path, f"from {sizes[0]} to {sizes[1]}")
    counts.written["images"] += 1
    counts.written.update(written)
    caption = {"caption": list(captions)} if captions else {}
    yield {"image": image.path, **caption, **({"elems": elements} if elements else {}), **keys}


def same_shape(annotated: tuple[int, int], stored: tuple[int, int]) -> bool:
    """Returns True if two sizes have the same aspect ratio, up to the rounding of a side."""
    small, large = sorted((annotated, stored))
    if min(small) < 1:
        return False
    by_height = abs(large[0] * small[1] / large[1] - small[0])
    by_width = abs(large[1] * small[0] / large[0] - small[1])
    return min(by_height, by_width) <= TOLERANCE_PX


def stored_size(path: Path) -> tuple[int, int] | None:
    """Returns the width and height of the stored pixels, from the header, or None if the image does not exist or cannot be
    read."""
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as header:
            return header.size
    except Exception:  # Pillow's readers raise many types of errors, which --verify and training report
        return None


def _scaled(boxes: Sequence[Any], scales: tuple[float, float]) -> Sequence[Any]:
    """Scales a box, or each of a list of boxes."""
    if isinstance(boxes, list):
        return [_scaled_box(box, scales) for box in boxes]
    return _scaled_box(boxes, scales)


def _scaled_box(box: Sequence[float], scales: tuple[float, float]) -> tuple[float, ...]:
    return tuple(tidy(value * scale) for value, scale in zip(box, (*scales, *scales), strict=True))
