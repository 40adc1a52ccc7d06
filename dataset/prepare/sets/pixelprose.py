"""PixelProse (Singla et al., 2024): 16 million images of CommonPool, CC12M and RedCaps with long captions written by a model.

The README of huggingface.co/datasets/tomg-group-umd/pixelprose lists the columns of its parquet files. ``vlm_caption`` is the
long caption; ``original_caption`` was found with the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataset.prepare.cleaning import cleaned_text, long_text
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Annotations, DataSet, Urls

COLUMNS = {
    "url": ("url",),
    "text": ("original_caption",),
    "width": ("original_width",),
    "height": ("original_height",),
}


def pixelprose_record(
    row: Mapping[str, Any], size: tuple[int, int], counts: Counts, location: str
) -> dict[str, Any] | None:
    """Returns the record of an image, given its columns."""
    if row["vlm_caption"] is None:
        counts.skip("no long caption", location)
        return None
    long_caption = long_text(row["vlm_caption"], counts, location)
    if long_caption is None:
        return None
    text = cleaned_text(row["original_caption"], counts, location) if row["original_caption"] is not None else None
    counts.written["long captions"] += 1
    return {**({"caption": text} if text is not None else {}), "long_caption": long_caption}


PIXELPROSE = DataSet(
    name="pixelprose",
    title="PixelProse",
    home="huggingface.co/datasets/tomg-group-umd/pixelprose",
    licence="CC BY 4.0; images under their own terms",
    files={
        "pixelprose*/*.parquet": "URLs and captions",
        "pixelprose*/*.tar": "or shards of img2dataset with their *_stats.json, already downloaded",
    },
    sizes={},
    makes=Urls(
        columns=COLUMNS,
        in_shards=COLUMNS,
        annotations=Annotations(
            "an image, its caption, and a long caption",
            ("original_caption", "vlm_caption"),
            pixelprose_record,
            has_boxes=False,
            needs="vlm_caption",
        ),
    ),
)
