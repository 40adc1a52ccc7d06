"""BLIP3-GROUNDING-50M (Xue et al., 2024, "xGen-MM (BLIP-3)"): images of DataComp-1B whose captions have boxes in their text.

The README of huggingface.co/datasets/Salesforce/blip3-grounding-50m describes parquet files with URLs, and three forms in
which a caption locates an object. One of them has coordinates: ``<bbox>x1, y1, x2, y2</bbox>``. Section 3 of the paper puts them
in brackets behind the object: "the dog (<bbox>…</bbox>)". ``cogvlm_caption`` is the caption without boxes, and ``captions`` has
the three forms.

Neither source says how ``captions`` is encoded, where a phrase begins, or the unit of the coordinates, and no file was available
for checking. So texts are found in any nesting of lists and JSON. A phrase begins at the nearest article or after the nearest
preposition, verb or punctuation. Coordinates must be fractions of the image's sides; others are counted, and too many of them
stop the conversion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dataset.prepare.cleaning import cleaned_text, long_text, relative_box
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Annotations, DataSet, Urls
from dataset.prepare.phrases import Phrases

CAPTION, GROUNDED = "cogvlm_caption", "captions"
COLUMNS = {"url": ("url",), "text": (CAPTION,)}

BOX = "<bbox>"
BOXES = re.compile(r"\(?\s*(?P<boxes>(?:<bbox>[^<]*</bbox>[\s,;]*(?:and\s+)?)+)\s*\)?")
"""The boxes of a phrase, in brackets or without."""
COORDINATES = re.compile(r"<bbox>([^<]*)</bbox>")
SENTENCE = re.compile(r"[.,;:!?()\[\]\"]")

STARTS = re.compile(
    r"an?|the|this|that|these|those|his|her|its|their|some|several|many|few|one|two|three|four|five|six", re.IGNORECASE
)
"""First words of a phrase."""
ENDS = re.compile(
    r"of|in|on|at|by|with|from|to|into|onto|over|under|above|below|near|behind|beside|between|against|around|across|through|along|"
    r"for|as|and|or|but|while|which|who|where|there|is|are|was|were|being|ha[sd]|have|having|depicts|shows|showing|features|"
    r"featuring|includes|including|contains|containing|wearing|holding",
    re.IGNORECASE,
)
"""Words that end what precedes a phrase."""


def blip3_record(row: Mapping[str, Any], size: tuple[int, int], counts: Counts, location: str) -> dict[str, Any] | None:
    """Returns the record of an image, given its columns and the size of the stored image."""
    grounded = next((text for text in _texts(row[GROUNDED]) if BOX in text), None)
    if grounded is None:
        counts.skip("no caption with boxes", location)
        return None
    phrases = Phrases(counts)
    start = 0
    for found in BOXES.finditer(grounded):
        words = phrase_before(grounded[start : found.start()])
        start = found.end()
        boxes = COORDINATES.findall(found["boxes"])
        counts.read["phrases"] += len(boxes)
        text = cleaned_text(words, counts, location)
        for numbers in boxes if text is not None else ():
            box = relative_box(numbers.split(","), *size, counts, location)
            if box is not None and text is not None:
                phrases.add([text], box, "object", location)
    if not phrases:
        counts.skip("image without boxes", location)
        return None
    counts.written["objects"] += phrases.boxes
    long_caption = long_text(row[CAPTION], counts, location) if row[CAPTION] is not None else None
    return {**({"long_caption": long_caption} if long_caption is not None else {}), "elems": phrases.elements()}


def phrase_before(text: str) -> str:
    """Returns the noun phrase at the end of a text, as far as short word lists can find it: "a man in a red hat" gives "a red
    hat"."""
    words: list[str] = []
    for word in reversed(SENTENCE.split(text.rstrip())[-1].split()):
        if ENDS.fullmatch(word):
            break
        words.append(word)
        if STARTS.fullmatch(word):
            break
    return " ".join(reversed(words))


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts in a value. A text that is a JSON list or object is read."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            yield value
            return
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            yield value
            return
    if isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


BLIP3_GROUNDING = DataSet(
    name="blip3_grounding",
    title="BLIP3-GROUNDING-50M",
    home="huggingface.co/datasets/Salesforce/blip3-grounding-50m",
    licence="Apache 2.0; images under their own terms",
    files={
        "blip3_grounding*/*.parquet": "URLs and captions",
        "blip3_grounding*/*.tar": "or shards of img2dataset with their *_stats.json, already downloaded, with cogvlm_caption and "
        "captions, or with the parquet files in the same folder",
    },
    sizes={},
    makes=Urls(
        columns=COLUMNS,
        in_shards=COLUMNS,
        annotations=Annotations(
            "an image, a long caption, and the boxes of its objects", (CAPTION, GROUNDED), blip3_record, needs=GROUNDED
        ),
    ),
)
