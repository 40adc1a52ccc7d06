"""Each held-out record is read once, in order and without augmentation. If any record is broken, none is returned."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dataset.config import TextDataConfig, VideoStreamConfig
from dataset.media.video import FrameSampler
from dataset.records.schema import ImageKeys
from dataset.tasks.held_out import read_held_out, read_held_out_videos
from dataset.text.processors import TextProcessor
from tests.dataset.media.test_video import encoded
from tests.messages import naming
from utils.errors import UserError


@pytest.fixture
def read(tokenizer, tmp_path):
    Image.fromarray(np.full((20, 40, 3), 200, dtype=np.uint8)).save(tmp_path / "a.png")

    def run(*records: dict, **options):
        path = tmp_path / "held.jsonl"
        path.write_text("".join(json.dumps({"image": "a.png", **record}) + "\n" for record in records))
        processor = TextProcessor(tokenizer, TextDataConfig())
        folder = str(tmp_path / "index")
        return read_held_out([str(path)], processor, image_size=16, keys=ImageKeys(), index_folder=folder, **options)

    return run


def test_records_come_in_order_with_relative_boxes_and_first_texts(read):
    elem = {"bb": [10, 5, 20, 10], "caption": ["Dog!", "cat"], "attributes": ["brown", "big"], "grain": "relation"}
    first, second = read({"caption": ["A dog.", "A cat."], "elems": [elem]}, {"caption": "two dogs"})
    assert list(first.captions) == ["a dog", "a cat"]
    assert first.elements[0].box == (0.5, 0.5, 0.5, 0.5)
    assert first.elements[0].caption == "brown dog"
    assert first.elements[0].grain == "relation"
    assert first.pixels.shape == (3, 16, 16)
    assert list(second.captions) == ["two dogs"]
    assert second.elements == []


def test_a_limit_reads_the_first_records(read):
    assert len(read(*[{"caption": "dog"}] * 5, limit=2)) == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"caption": "dog", "elems": [{"bb": [30, 0, 20, 5], "caption": "cat"}]}, "held.jsonl:1: box outside image"),
        ({"caption": "dog", "image": "none.png"}, "held.jsonl:1: missing image"),
        ({"caption": "dog", "elems": [{"bb": [1, 2, 3], "caption": "cat"}]}, "held.jsonl:1: wrong type"),
    ],
)
def test_a_broken_record_is_an_error_that_names_it(read, record, message):
    with pytest.raises(UserError, match=naming(message, "held-out")):
        read(record)


def test_the_first_clip_with_a_text_is_held_out(tokenizer, tmp_path):
    path = tmp_path / "held.jsonl"
    clips = [[encoded(1)], [encoded(2), encoded(3)], [encoded(4)]]
    fragments = {"video": clips, "caption": ["[Music]", "A dog.", "a cat"], "is_continuous": True}
    path.write_text(json.dumps(fragments) + "\n" + json.dumps({**fragments, "caption": ["[music]"] * 3}) + "\n")
    config = VideoStreamConfig(files=[], batch_size=1)
    sampler = FrameSampler(2, config.reading, 10**6)
    given = ([str(path)], TextProcessor(tokenizer, TextDataConfig()), config, sampler)
    (record,) = read_held_out_videos(*given, image_size=16, limit=1, index_folder=str(tmp_path))
    assert record.captions == ["a dog"]
    assert record.pixels.shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match=naming("held.jsonl:2", "empty text", "held-out")):
        read_held_out_videos(*given, image_size=16, index_folder=str(tmp_path))
