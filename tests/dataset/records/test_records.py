"""Required contents of a record. Every kind of broken record is reported with its name."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path

import numpy as np
import pytest

from dataset.broken import BrokenRecordError, MediaError
from dataset.records.boxes import place_box
from dataset.records.schema import (
    ImageKeys,
    RawRecord,
    image_source,
    parse_image_record,
    parse_region_record,
    parse_text_record,
)
from dataset.text.processors import alternatives
from tests.messages import OneLine, naming

KEYS = ImageKeys()


def raw(**values) -> RawRecord:
    return RawRecord(values, "shard.jsonl:7", Path("folder"))


def test_base64_and_paths_are_distinguished(encoded):
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        content = encoded(form=form)
        assert image_source(raw(image=base64.b64encode(content).decode()), KEYS).load() == content
    data_address = "data:image/png;base64," + base64.b64encode(encoded()).decode()
    assert image_source(raw(image=data_address), KEYS).load() == encoded()
    for name in ("a/b.jpg", "/9j/picture.jpg", "Quick.png", "no_suffix"):
        assert image_source(raw(image=name), KEYS).path == Path("folder") / name


def test_relative_paths_start_at_the_shard_or_image_root_and_absolute_paths_stay(tmp_path):
    assert image_source(raw(image="x.jpg"), ImageKeys(image_root=tmp_path)).path == tmp_path / "x.jpg"
    assert image_source(raw(image="/else/x.jpg"), ImageKeys(image_root=tmp_path)).path == Path("/else/x.jpg")


def test_the_config_can_set_whether_an_image_is_a_path_or_base64():
    assert image_source(raw(image="/9j/4AAQ"), ImageKeys(image_is="path")).path == Path("/9j/4AAQ")
    assert image_source(raw(image="AAAA"), ImageKeys(image_is="base64")).load() == b"\0\0\0"


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"caption": "a"}, "missing key", ("no 'image'; keys: caption",)),
        ({"image": "x.jpg"}, "missing key", ("no 'caption'; keys: image",)),
        ({"image": 3, "caption": "a"}, "wrong type", ("image", "number", "string")),
        ({"image": "x.jpg", "caption": 3}, "wrong type", ("caption", "number", "text")),
        ({"image": "x.jpg", "caption": {"en": 1}}, "wrong type", ("caption", "object", "text")),
        ({"image": "x.jpg", "caption": []}, "empty text", ("caption is an empty list",)),
        ({"image": "", "caption": "a"}, "missing image", ("image is empty",)),
    ],
)
def test_a_broken_image_record_is_reported_with_its_reason(values, kind, message):
    with pytest.raises(BrokenRecordError) as caught:
        parse_image_record(raw(**values), KEYS, "caption")
    assert caught.value.reason == kind
    assert caught.value.detail == OneLine(*message)


def test_a_missing_image_is_detected_on_loading(tmp_path):
    source = image_source(raw(image="gone.jpg"), ImageKeys(image_root=tmp_path))
    with pytest.raises(BrokenRecordError, match=naming("missing image", "gone.jpg")):
        source.load()


def test_invalid_base64_is_detected_on_loading():
    source = image_source(raw(image="data:image/png;base64,a"), KEYS)
    with pytest.raises(BrokenRecordError, match="unreadable image: not base64"):
        source.load()


def test_a_broken_element_does_not_affect_the_rest_of_its_record():
    good = {"bb": [1, 2.5, 3, 4], "caption": "star", "attributes": "red", "grain": "region"}
    elems = [
        good,
        {"caption": "x"},
        {"bb": [1, 2, 3], "caption": "x"},
        {"bb": [1, 2, 3, float("nan")], "caption": "x"},
        5,
    ]
    record = parse_region_record(raw(image="x.jpg", caption=7, elems=elems), KEYS, "caption")
    assert [element.boxes for element in record.elements] == [((1.0, 2.5, 3.0, 4.0),)]
    assert (record.elements[0].attributes, record.elements[0].grain) == (("red",), "region")
    assert [broken.reason for broken in record.broken] == ["wrong type", "missing key", *["wrong type"] * 3]
    assert record.broken[1].detail == "elems[1] has no 'bb'"
    assert record.captions == ()


def test_phrases_may_have_any_number_of_boxes():
    elems = [
        {"bb": [1, 2, 3, 4], "caption": "a star"},
        {"bb": [[1, 2, 3, 4], [5, 6, 7, 8.5]], "caption": "two stars"},
        {"bb": [[1, 2, 3, 4]], "caption": "one star in a list"},
        {"bb": [], "caption": "a zebra"},
        {"bb": [[1, 2, 3, 4], [5, 6, 7]], "caption": "x"},
        {"bb": [[], [1, 2, 3, 4]], "caption": "x"},
        {"bb": [[1, 2, 3, 4], 5], "caption": "x"},
    ]
    record = parse_region_record(raw(image="x.jpg", elems=elems), KEYS, "caption")
    first, second = (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.5)
    assert [element.boxes for element in record.elements] == [(first,), (first, second), (first,), ()]
    assert [broken.reason for broken in record.broken] == ["wrong type"] * 3
    assert record.broken[0].detail == "elems[4].bb[1] = [5, 6, 7] is not [x, y, width, height]"


@pytest.mark.parametrize("parse", [parse_image_record, parse_region_record])
def test_long_captions_and_hard_negatives_are_read(parse):
    values = {
        "image": "x.jpg",
        "caption": "a dog",
        "long_caption": ["a long one", {"de": "lang"}],
        "hard_negatives": "a cat",
    }
    record = parse(raw(**values), KEYS, "caption")
    assert (record.captions, record.hard_negatives) == (("a dog",), ("a cat",))
    assert record.long_captions == ("a long one", {"de": "lang"})
    for nothing in (None, [], ""):
        plain = parse(
            raw(image="x.jpg", caption="a dog", long_caption=nothing, hard_negatives=nothing), KEYS, "caption"
        )
        assert (plain.long_captions, plain.hard_negatives) == ((), ())
    assert parse_region_record(raw(image="x.jpg", long_caption="a long one"), KEYS, "caption").long_captions


def test_texts_of_the_wrong_type_are_broken_in_every_field():
    with pytest.raises(BrokenRecordError, match=naming("wrong type", "hard_negatives", "a number")):
        parse_image_record(raw(image="x.jpg", caption="a dog", hard_negatives=[5]), KEYS, "caption")
    good = {"bb": [1, 2, 3, 4], "caption": "star", "long_caption": "a star that shines", "hard_negatives": ["a moon"]}
    elems = [good, {**good, "long_caption": {}}]
    record = parse_region_record(raw(image="x.jpg", caption="a", long_caption=7, elems=elems), KEYS, "caption")
    assert [(broken.reason, broken.detail) for broken in record.broken] == [
        ("wrong type", "long_caption contains a number, not a text"),
        ("empty text", "elems[1].long_caption contains an empty object"),
    ]
    assert record.captions == ("a",)
    [element] = record.elements
    assert (element.long_captions, element.hard_negatives) == (("a star that shines",), ("a moon",))


def test_a_region_record_without_elements_and_caption_is_broken():
    with pytest.raises(BrokenRecordError, match="missing key: no 'elems'"):
        parse_region_record(raw(image="x.jpg"), KEYS, "caption")
    with pytest.raises(BrokenRecordError, match=naming("wrong type", "elems", "object", "list")):
        parse_region_record(raw(image="x.jpg", elems={}), KEYS, "caption")


def test_a_region_record_is_broken_for_the_reason_of_its_only_text():
    with pytest.raises(BrokenRecordError, match=r"caption contains a number, not a text"):
        parse_region_record(raw(image="a.jpg", caption=5), KEYS, "caption")


def test_a_worker_process_can_raise_the_error_of_a_record():
    error = pickle.loads(pickle.dumps(MediaError("unreadable image", "no JPEG")))
    assert (type(error), error.reason, error.detail) == (MediaError, "unreadable image", "no JPEG")


def test_boxes_keep_fractions_and_may_exceed_the_image_by_a_pixel():
    assert place_box((1.5, 2.5, 3.25, 4.0), 10, 10, "elems[0]") == (1.5, 2.5, 3.25, 4.0)
    assert place_box((-0.5, 0, 11.0, 10.9), 10, 10, "elems[0]") == (0.0, 0.0, 10.0, 10.0)
    for box in ((-1.5, 0, 5, 5), (0, 0, 11.5, 5), (0, 6, 5, 6)):
        with pytest.raises(BrokenRecordError, match=naming("box outside image", "elems[0].bb")):
            place_box(box, 10, 10, "elems[0]")
    for box in ((1, 1, 0, 5), (1, 1, 5, -2), (10.2, 1, 0.5, 5)):
        with pytest.raises(BrokenRecordError, match="degenerate box"):
            place_box(box, 10, 10, "elems[0]")


def test_a_language_is_fixed_or_random():
    texts = parse_text_record(raw(text=[{"en": "star", "de": "Stern"}, "any"]), "text")
    assert alternatives(texts, "de", None) == ["Stern", "any"]
    drawn = {alternatives(texts, None, np.random.default_rng(seed))[0] for seed in range(20)}
    assert drawn == {"star", "Stern"}
    with pytest.raises(BrokenRecordError, match=naming("missing key", "fr")):
        alternatives(({"en": "star"},), "fr", None)
