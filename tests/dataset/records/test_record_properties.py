"""Properties of the parsers of records: they keep every text and box, and anything else is a broken record of a known kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.broken import BrokenRecordError
from dataset.media.sources import image_of
from dataset.records.boxes import BOX_TOLERANCE_PX, place_box
from dataset.records.schema import (
    ImageKeys,
    RawRecord,
    parse_image_record,
    parse_object,
    parse_region_record,
    parse_text_record,
    parse_translation_record,
    texts_in_language,
)
from dataset.text.processors import alternatives
from tests.properties import BOXES, CAPTIONS, JSON, PROPERTY, RECORDS, TEXTS, mostly

KINDS = {"bad json", "missing key", "wrong type", "empty text", "bad text", "missing image", "unreadable image"}
KEYS = ImageKeys()

odd_elements = st.fixed_dictionaries(
    {},
    optional={
        name: mostly(values)
        for name, values in {"caption": CAPTIONS, "bb": BOXES, "long_caption": CAPTIONS, "grain": TEXTS}.items()
    },
)
odd_records = st.fixed_dictionaries(
    {},
    optional={
        "image": mostly(TEXTS) | st.fixed_dictionaries({}, optional={"bytes": JSON, "path": JSON}),
        "caption": mostly(CAPTIONS),
        "long_caption": mostly(CAPTIONS),
        "hard_negatives": mostly(CAPTIONS),
        "elems": mostly(st.lists(odd_elements, max_size=3)),
    },
)


def listed(value: Any) -> tuple[Any, ...]:
    """The alternatives that a value represents; long captions and other texts may also be empty."""
    return () if value in (None, "", []) else tuple(value) if isinstance(value, list) else (value,)


def broken_kind(read: Callable[[], Any]) -> str | None:
    """The kind of the broken record that a function reports; None if it returns."""
    try:
        read()
    except BrokenRecordError as error:
        return error.reason
    return None


def raw(values: dict[str, Any], text: str | None = None) -> RawRecord:
    return RawRecord(parse_object(json.dumps(values).encode()), "a.jsonl:1", Path("folder"), text=text)


@PROPERTY
@given(RECORDS)
def test_a_region_record_keeps_every_text_and_box(values):
    if "caption" not in values and not listed(values.get("long_caption")) and "elems" not in values:
        with pytest.raises(BrokenRecordError, match="missing key"):
            parse_region_record(raw(values), KEYS, "caption")
        return
    record = parse_region_record(raw(values), KEYS, "caption")
    assert record.broken == ()
    assert record.captions == (listed(values["caption"]) or ("",) if "caption" in values else ())
    for part, given_part in ((record, values), *zip(record.elements, values.get("elems", ()), strict=True)):
        assert part.long_captions == listed(given_part.get("long_caption"))
        assert part.hard_negatives == listed(given_part.get("hard_negatives"))
    for element, given_element in zip(record.elements, values.get("elems", ()), strict=True):
        box = given_element["bb"]
        assert element.captions == (listed(given_element["caption"]) or ("",))
        assert element.attributes == listed(given_element.get("attributes"))
        several = all(isinstance(each, list) for each in box)
        assert element.boxes == tuple(map(tuple, box if several else [box]))


@PROPERTY
@given(odd_records | st.dictionaries(TEXTS, JSON, max_size=4), st.none() | TEXTS)
def test_any_json_object_is_a_record_or_a_broken_one_of_a_known_kind(values, text):
    found = raw(values, text)
    for parse in (
        partial(parse_image_record, found, KEYS, "caption"),
        partial(parse_image_record, found, KEYS, "caption", "long"),
        partial(parse_text_record, found, "caption"),
        partial(parse_translation_record, found, "caption", "long_caption"),
    ):
        assert broken_kind(parse) in (None, *KINDS)
    parse = partial(parse_region_record, found, KEYS, "caption")
    kind = broken_kind(parse)
    assert kind in KINDS if kind else {each.reason for each in parse().broken} <= KINDS


@PROPERTY
@given(st.binary(max_size=40) | JSON.map(json.dumps).map(str.encode))
def test_any_line_is_an_object_or_a_broken_record(line):
    assert broken_kind(partial(parse_object, line)) in (None, "bad json", "wrong type")


@PROPERTY
@given(JSON | st.binary(max_size=20) | TEXTS.map("data:,{}".format), st.sampled_from(["auto", "path", "base64"]))
def test_any_value_of_an_image_can_be_loaded_or_is_a_broken_record(tmp_path, value, image_is):
    def load() -> None:
        assert isinstance(image_of(value, "image", "a.jsonl:1", tmp_path, image_is).load(), bytes)

    assert broken_kind(load) in (None, *KINDS)


@PROPERTY
@given(CAPTIONS, st.integers(0, 10))
def test_a_random_language_of_every_alternative_has_a_text(value, seed):
    texts = parse_text_record(raw({"caption": value}), "caption")
    chosen = alternatives(texts, None, np.random.default_rng(seed))
    assert len(chosen) >= len(texts)
    assert set(chosen) <= {text for each in texts for text in texts_in_language(each, None)}


@PROPERTY
@given(BOXES, st.integers(1, 5000), st.integers(1, 5000))
def test_a_placed_box_is_inside_its_image_and_at_most_a_pixel_smaller(box, width, height):
    place = partial(place_box, tuple(map(float, box)), width, height, "elems[0]")
    kind = broken_kind(place)
    if kind is not None:
        assert kind in ("degenerate box", "box outside image")
        return
    x, y, w, h = place()
    assert min(x, y) >= 0 and min(w, h) > 0
    assert x + w <= width * (1 + 1e-9) and y + h <= height * (1 + 1e-9)
    corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    moved = [abs(one - other) for one, other in zip(corners, (x, y, x + w, y + h), strict=True)]
    assert max(moved) <= BOX_TOLERANCE_PX + 1e-6 and all(map(math.isfinite, (x, y, w, h)))
