"""GRIT (Peng et al., 2023, "Kosmos-2"): captions from the web whose noun phrases and referring expressions have boxes.

The README of huggingface.co/datasets/zzliang/GRIT describes the columns; ``tools/grit2odvg.py`` of Open-GroundingDino reads them
in the same way. ``noun_chunks`` and ``ref_exps`` are lists of seven numbers: the first and the last offset of a phrase in the
caption, in characters; x1, y1, x2, y2 as fractions of the image's sides; and the confidence of the detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataset.prepare.cleaning import cleaned_text, relative_box
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Annotations, DataSet, Urls
from dataset.prepare.phrases import Phrases

SPANS = {"noun_chunks": "object", "ref_exps": "region"}
"""Columns with phrases, and the ``grain`` of the elements built from them."""

COLUMNS = {
    "url": ("url",),
    "text": ("caption",),
    "width": ("width",),
    "height": ("height",),
    "similarity": ("clip_similarity_vitl14", "clip_similarity_vitb32"),
}


def grit_record(row: Mapping[str, Any], size: tuple[int, int], counts: Counts, location: str) -> dict[str, Any] | None:
    """Returns the record of an image, given its columns and the size of the stored image."""
    caption = row["caption"]
    if not isinstance(caption, str):
        counts.skip("wrong type", location, f"caption is {str(caption)[:40]}")
        return None
    phrases, texts = Phrases(counts), dict[tuple[float, float], str | None]()
    made = []
    for column, grain in SPANS.items():
        spans = row[column]
        if spans is None:
            continue
        if not isinstance(spans, list):
            counts.skip("wrong type", location, f"{column} is {str(spans)[:40]}")
            continue
        counts.read["phrases"] += len(spans)
        before = phrases.boxes
        for index, span in enumerate(spans):
            _add_span(phrases, span, caption, texts, grain, size, counts, f"{location}: {column}[{index}]")
        made.append((f"{grain}s", phrases.boxes - before))
    elements, text = phrases.elements(), cleaned_text(caption, counts, location)
    if not elements and text is None:
        counts.skip("image without boxes", location)
        return None
    for unit, number in made:
        counts.written[unit] += number
    return {**({"caption": text} if text is not None else {}), **({"elems": elements} if elements else {})}


def _add_span(
    phrases: Phrases,
    span: Any,
    caption: str,
    texts: dict[tuple[float, float], str | None],
    grain: str,
    size: tuple[int, int],
    counts: Counts,
    location: str,
) -> None:
    """Adds a phrase and its box.

    Args:
        texts: cleaned phrases by their offsets, because a phrase with several boxes is listed several times.
    """
    if not isinstance(span, list) or len(span) < 6:
        counts.skip("wrong type", location, f"{str(span)[:60]} is not two offsets and a box")
        return
    first, last = span[0], span[1]
    if not isinstance(first, int | float) or not isinstance(last, int | float) or not 0 <= first < last <= len(caption):
        counts.skip("offsets outside the caption", location, f"{first} to {last} of {len(caption)} characters")
        return
    box = relative_box(span[2:6], *size, counts, location)
    if box is None:
        return
    if (first, last) not in texts:
        texts[first, last] = cleaned_text(caption[int(first) : int(last)], counts, location)
    if (text := texts[first, last]) is not None:
        phrases.add([text], box, grain, location)


GRIT = DataSet(
    name="grit",
    title="GRIT",
    home="huggingface.co/datasets/zzliang/GRIT",
    licence="Microsoft Public License; images under their own terms",
    files={
        "grit*/*.parquet": "URLs, captions, and the boxes of their phrases",
        "grit*/*.tar": "or shards of img2dataset with their *_stats.json, already downloaded, with noun_chunks and ref_exps, or "
        "with the parquet files in the same folder",
    },
    sizes={},
    makes=Urls(
        columns=COLUMNS,
        in_shards={**COLUMNS, "width": ("original_width", "width"), "height": ("original_height", "height")},
        annotations=Annotations(
            "an image, its caption, and the boxes of its phrases", ("caption", *SPANS), grit_record, needs="caption"
        ),
    ),
)
