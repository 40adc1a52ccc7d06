"""From records to batches: the contents of each row, and unusable records, which never count in a loss."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from batches.base import IGNORE
from batches.pretraining import PretrainBatch, RegionBatch
from dataset.config import (
    AugmentConfig,
    DataConfig,
    HardNegativesConfig,
    ImageStreamConfig,
    RegionAugmentConfig,
    RegionStreamConfig,
    TextStreamConfig,
)
from dataset.media.augment import evaluation_view
from dataset.media.encoded import decode
from dataset.tasks.pretrain import PretrainBatches
from tests.messages import naming
from utils.config import bind
from utils.config_files import ConfigError
from utils.errors import UserError

PLAIN = RegionAugmentConfig(flip=0, rand_augment_ops=0)
WHOLE = AugmentConfig(scale=(1, 1), ratio=(40 / 32, 40 / 32), flip=0, rand_augment_ops=0)
SIZE, PATCH = 32, 8


@pytest.fixture
def maker(tokenizer, tmp_path):
    def make(seed: int = 0, world_size: int = 1, **streams) -> PretrainBatches:
        data = DataConfig(cache_index=str(tmp_path / "index"), **streams)
        return PretrainBatches(
            data, tokenizer=tokenizer, image_size=SIZE, patch_size=PATCH, seed=seed, world_size=world_size
        )

    return make


def words(tokenizer, text, row: int) -> str:
    return tokenizer.decode(text.ids[row][text.mask[row]], skip_special_tokens=True)


def regions_of(batch: PretrainBatch) -> RegionBatch:
    assert batch.regions is not None
    return batch.regions


def test_a_pair_keeps_image_and_caption_together(maker, tokenizer, write_lines, make_pair, encoded):
    file = write_lines("a.jsonl", [make_pair(n) for n in range(9)])
    batches = maker(images=ImageStreamConfig(files=[file], batch_size=3, augment=WHOLE))
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
    seen = []
    for number in range(3):
        batch = batches.make(number)
        assert batch.images.pixels.shape == (3, 3, SIZE, SIZE)
        assert batch.images.pixels.dtype == torch.uint8
        for row, place in enumerate(batch.records):
            n = int(place.rsplit(":", 1)[1]) - 1
            assert words(tokenizer, batch.images.text, row) == f"number zero {names[n]}"
            expected = evaluation_view(decode(encoded(seed=n), 10**6), SIZE)
            assert torch.equal(batch.images.pixels[row], expected)
            seen.append(n)
    assert sorted(seen) == list(range(9))


def test_a_tar_gives_the_same_batches_as_json_lines(maker, write_lines, make_pair, make_regions, tmp_path):
    records = [make_regions(n) for n in range(6)]
    lines = write_lines("a.jsonl", records)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n, record in enumerate(records):
            values = {key: value for key, value in record.items() if key not in ("image", "caption")}
            parts = {
                "jpg": base64.b64decode(record["image"]),
                "txt": record["caption"].encode(),
                "json": json.dumps(values).encode(),
            }
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"x/{n:06d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    def streams(file):
        return {
            "images": ImageStreamConfig(files=[file], batch_size=4),
            "regions": RegionStreamConfig(files=[file], batch_size=7, max_images=3),
        }

    one, other = maker(**streams(lines)).make(1), maker(**streams(str(tmp_path / "a.tar"))).make(1)
    assert not one.broken
    assert not other.broken
    assert_same(one.images, other.images)
    assert_same(one.regions, other.regions)


def assert_same(one, other) -> None:
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(other, name)), name
        elif hasattr(value, "__dataclass_fields__"):
            assert_same(value, getattr(other, name))
        else:
            assert value == getattr(other, name), name


def test_a_broken_pair_is_an_invalid_row(maker, write_lines, make_pair):
    file = write_lines("a.jsonl", [make_pair(0), {"image": "gone.jpg", "caption": "a"}, make_pair(2)])
    batch = maker(images=ImageStreamConfig(files=[file], batch_size=3)).make(0)
    (broken,) = batch.broken
    assert (broken.reason, broken.place) == ("missing image", f"{file}:2")
    row = batch.images.valid.tolist().index(False)
    assert batch.images.valid.sum() == 2
    assert batch.images.pixels[row].sum() == 0
    assert (batch.images.text.labels[row] == IGNORE).all()
    assert batch.images.text.mask[row].sum() == 2
    assert (batch.read, len(batch.records)) == (3, 2)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("{", "bad json"),
        ({"image": None}, "missing key"),
        ({"caption": 3, "elems": []}, "wrong type"),
        ({"caption": "?!", "elems": []}, "empty text"),
        ({"image": "gone.jpg"}, "missing image"),
        ({"image": base64.b64encode(b"\xff\xd8\xff" * 40).decode()}, "unreadable image"),
        ({"elems": [{"bb": [30, 0, 20, 10], "caption": "a"}]}, "box outside image"),
        ({"elems": [{"bb": [3, 0, 0, 10], "caption": "a"}]}, "degenerate box"),
    ],
)
def test_every_kind_of_broken_region_record_is_skipped_and_named(maker, write_lines, make_regions, change, kind):
    broken = change if isinstance(change, str) else {**make_regions(1), **change}
    file = write_lines("a.jsonl", [make_regions(0), broken])
    batch = maker(regions=RegionStreamConfig(files=[file], batch_size=8, max_images=2)).make(0)
    assert [(item.reason, item.place) for item in batch.broken] == [(kind, f"{file}:2")]
    assert f"{file}:1" in batch.records
    assert regions_of(batch).valid.any()


def test_an_image_that_is_too_large_is_skipped_and_named(maker, write_lines, make_regions):
    file = write_lines("a.jsonl", [make_regions(0)])
    batch = maker(max_pixels=100, regions=RegionStreamConfig(files=[file], batch_size=2, max_images=1)).make(0)
    assert [item.reason for item in batch.broken] == ["image too large"]


def test_region_rows_point_at_their_boxes(maker, tokenizer, write_lines, make_regions):
    file = write_lines("a.jsonl", [make_regions(0)])
    stream = RegionStreamConfig(files=[file], batch_size=4, max_images=1, crop=False, augment=PLAIN)
    regions = regions_of(maker(regions=stream).make(0))
    assert regions.is_image.tolist() == [True, False, False, True]
    assert regions.valid.tolist() == [True, True, True, False]
    assert regions.boxes_cxcywh[0].tolist() == [0.5, 0.5, 1, 1]
    assert regions.patch_mask[0].all()
    assert words(tokenizer, regions.text, 0) == "number zero zero"
    rows = {words(tokenizer, regions.text, row): row for row in (1, 2)}
    star = rows["a red star"]
    assert regions.boxes_cxcywh[star].tolist() == pytest.approx([10 / 40, 9 / 32, 16 / 40, 12 / 32])
    # x from 1.6 to 14.4 and y from 3 to 15, of 32: two of four columns and two of four rows.
    assert regions.patch_mask[star].reshape(4, 4).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    (circle,) = rows.keys() - {"a red star"}
    assert circle in ("small the blue circle", "large the blue circle")


def test_patches_of_boxes_are_right_if_the_input_is_not_square(tokenizer, write_lines, make_pair, tmp_path):
    """The image of 40 x 32 pixels is resized to 48 x 16 pixels, which are two rows of six patches."""
    left, corner = {"bb": [0, 0, 10, 32], "caption": "a dog"}, {"bb": [20, 0, 20, 16], "caption": "a cat"}
    file = write_lines("a.jsonl", [{**make_pair(0), "caption": None, "elems": [left, corner]}])
    regions = RegionStreamConfig(files=[file], batch_size=2, max_images=1, crop=False, augment=PLAIN)
    data = DataConfig(cache_index=str(tmp_path / "index"), regions=regions)
    part = regions_of(PretrainBatches(data, tokenizer=tokenizer, image_size=(16, 48), patch_size=8, seed=0).make(0))
    found = {words(tokenizer, part.text, row): part.patch_mask[row].view(2, 6).int().tolist() for row in range(2)}
    assert found == {"a dog": [[1, 1, 0, 0, 0, 0]] * 2, "a cat": [[0, 0, 0, 1, 1, 1], [0] * 6]}


def test_a_phrase_with_several_boxes_has_the_patches_of_all_and_no_box_loss(maker, write_lines, make_pair):
    """In an image of 40 x 32 pixels, the first box covers the top left patch of 4 x 4 patches, and the second the bottom right
    one."""
    boxes = [[0, 0, 9, 7], [31, 25, 9, 7]]
    elems = [
        {"bb": boxes, "caption": "two stars"},
        {"bb": boxes[0], "caption": "a star"},
        {"bb": [], "caption": "a zebra"},
    ]
    record = {**make_pair(0), "caption": None, "elems": elems}
    stream = RegionStreamConfig(
        files=[write_lines("a.jsonl", [record])], batch_size=3, max_images=1, crop=False, augment=PLAIN
    )
    batch = maker(regions=stream).make(0)
    regions = regions_of(batch)
    assert regions.valid.tolist() == [True, True, False] and not batch.broken, "the image does not show a zebra"
    by_patches = {int(mask.sum()): row for row, mask in enumerate(regions.patch_mask[:2])}
    assert regions.patch_mask[by_patches[2]].reshape(4, 4).nonzero().tolist() == [[0, 0], [3, 3]]
    assert regions.several_boxes[by_patches[2]] and not regions.several_boxes[by_patches[1]]
    assert not regions.is_image[:2].any()


def test_a_record_with_only_absent_phrases_has_no_row_and_is_not_broken(maker, write_lines, make_pair):
    record = {**make_pair(0), "caption": None, "elems": [{"bb": [], "caption": "a zebra"}]}
    stream = RegionStreamConfig(files=[write_lines("a.jsonl", [record])], batch_size=3, max_images=1)
    batch = maker(regions=stream).make(0)
    assert (batch.read, len(batch.records), batch.broken) == (1, 1, ()) and not regions_of(batch).valid.any()


def test_rows_are_sorted_by_image_and_unused_images_are_dropped(maker, write_lines, make_regions):
    file = write_lines("a.jsonl", [make_regions(n) for n in range(12)])
    batches = maker(regions=RegionStreamConfig(files=[file], batch_size=5, max_images=6, crop=False))
    used = []
    for number in range(10):
        regions = regions_of(batches.make(number))
        index = regions.image_index
        assert regions.valid.all()
        assert len(index) == 5
        assert (index.diff() >= 0).all()
        assert index.unique().tolist() == list(range(len(regions.pixels)))
        used.append(len(regions.pixels))
    assert min(used) < 5
    assert max(used) > 2, "rows must be chosen at random, not from the first images"


def test_missing_rows_are_masked_and_not_duplicated(maker, write_lines, make_regions):
    file = write_lines("a.jsonl", [make_regions(n) for n in range(3)])
    stream = RegionStreamConfig(files=[file], batch_size=20, max_images=3, crop=False)
    regions = regions_of(maker(regions=stream).make(0))
    count = int(regions.valid.sum())
    assert count == 9
    missing = ~regions.valid
    assert missing.sum() == 20 - count
    assert regions.patch_mask[missing].all()
    assert regions.is_image[missing].all()
    assert (regions.text.labels[missing] == IGNORE).all()
    assert (regions.text.mask[missing].sum(1) == 2).all()


def test_missing_rows_are_spread_over_the_images(maker, write_lines, make_regions):
    """The maximum number of rows per image determines the size of the attention for all images."""
    file = write_lines("a.jsonl", [make_regions(n) for n in range(3)])
    stream = RegionStreamConfig(files=[file], batch_size=20, max_images=3, crop=False)
    regions = regions_of(maker(regions=stream).make(0))
    rows = regions.image_index.bincount().tolist()
    assert sorted(rows) == [6, 7, 7]
    assert regions.image_index.tolist() == sorted(regions.image_index.tolist())


def test_a_batch_without_usable_records_is_one_black_image_without_valid_rows(maker, write_lines):
    file = write_lines("a.jsonl", ["{"] * 4)
    batch = maker(
        images=ImageStreamConfig(files=[file], batch_size=2),
        regions=RegionStreamConfig(files=[file], batch_size=3, max_images=4),
        texts=TextStreamConfig(files=[file], batch_size=2),
    ).make(0)
    regions = regions_of(batch)
    assert regions.pixels.shape == (1, 3, SIZE, SIZE)
    assert regions.pixels.sum() == 0
    for stream in (batch.images, regions, batch.texts):
        assert not stream.valid.any()
    assert (batch.read, len(batch.broken), batch.records) == (8, 8, ())


def test_an_image_has_at_most_max_regions_rows(maker, write_lines, make_pair):
    elems = [{"bb": [n, 0, 5, 5], "caption": "a star"} for n in range(20)]
    file = write_lines("a.jsonl", [{**make_pair(0), "elems": elems}])
    for whole, most in ((True, 4), (False, 4), (True, 1)):
        stream = RegionStreamConfig(
            files=[file], batch_size=30, max_images=1, max_regions=most, whole_image_rows=whole, crop=False
        )
        regions = regions_of(maker(regions=stream).make(0))
        assert regions.valid.sum() == most
        assert (regions.is_image & regions.valid).sum() == int(whole)


@pytest.mark.parametrize("text", ["a red star left of a dog", "the rightmost star"])
def test_images_are_not_flipped_if_a_text_names_a_side(maker, write_lines, make_pair, text):
    always = RegionAugmentConfig(flip=1, rand_augment_ops=0)

    def center(caption: str, careful: bool, whole: str = "a dog", others=()) -> float:
        elems = [{"bb": [0, 0, 10, 10], "caption": caption}, *others]
        file = write_lines("a.jsonl", [{**make_pair(0), "caption": whole, "elems": elems}])
        stream = RegionStreamConfig(
            files=[file], batch_size=2, max_images=1, max_regions=2, careful_flip=careful, augment=always, crop=False
        )
        return float(regions_of(maker(regions=stream).make(0)).boxes_cxcywh[1, 0])

    assert center(text, careful=True) == pytest.approx(0.125)
    assert center(text, careful=False) == pytest.approx(0.875)
    assert center("a star", careful=True, whole=text) == pytest.approx(0.125), "the whole caption must be checked"
    assert center("a bright star, upright", careful=True) == pytest.approx(0.875), "only whole words may match"


def test_an_unused_text_does_not_prevent_a_flip(maker, write_lines, make_pair):
    elems = [{"bb": [0, 0, 10, 10], "caption": "a star"}]
    file = write_lines("a.jsonl", [{**make_pair(0), "caption": "left", "elems": elems}])
    stream = RegionStreamConfig(
        files=[file],
        batch_size=1,
        max_images=1,
        whole_image_rows=False,
        augment=RegionAugmentConfig(flip=1, rand_augment_ops=0),
        crop=False,
    )
    assert regions_of(maker(regions=stream).make(0)).boxes_cxcywh[0, 0] == pytest.approx(0.875)


@pytest.mark.parametrize("careful", [True, False])
def test_pairs_are_flipped_carefully_if_configured(maker, write_lines, make_pair, careful):
    file = write_lines("a.jsonl", [make_pair(0, caption="a dog left of a cat")])

    def pixels(flip: float, careful: bool) -> torch.Tensor:
        augment = WHOLE.model_copy(update={"flip": flip})
        stream = ImageStreamConfig(files=[file], batch_size=1, augment=augment, careful_flip=careful)
        return maker(images=stream).make(0).images.pixels[0]

    plain = pixels(0.0, careful)
    assert torch.equal(pixels(1.0, careful), plain if careful else plain.flip(-1))


def test_boxes_of_cropped_images_stay_inside_and_have_an_area(maker, write_lines, make_regions):
    file = write_lines("a.jsonl", [make_regions(n) for n in range(8)])
    batches = maker(regions=RegionStreamConfig(files=[file], batch_size=24, max_images=8))
    for number in range(10):
        regions = regions_of(batches.make(number))
        centre, size = regions.boxes_cxcywh.split(2, 1)
        assert (size > 1e-3).all()
        assert (centre - size / 2 > -1e-6).all()
        assert (centre + size / 2 < 1 + 1e-6).all()
        assert regions.patch_mask.any(1).all()
        assert (regions.is_image == (regions.boxes_cxcywh == torch.tensor([0.5, 0.5, 1, 1])).all(1))[
            regions.is_image
        ].all()


def test_colour_augmentation_of_regions_moves_nothing(maker, write_lines, make_pair):
    black = np.zeros((32, 40, 3), np.uint8)
    black[8:16, 10:20] = 255
    stream = io.BytesIO()
    Image.fromarray(black).save(stream, "PNG")
    record = {
        "image": base64.b64encode(stream.getvalue()).decode(),
        "elems": [{"bb": [10, 8, 10, 8], "caption": "a star"}],
    }
    file = write_lines("a.jsonl", [record])
    config = RegionStreamConfig(files=[file], batch_size=1, max_images=1, crop=False)
    for seed in range(20):
        regions = regions_of(maker(seed=seed, regions=config).make(0))
        cx, cy, w, h = (regions.boxes_cxcywh[0] * SIZE).tolist()
        bright = (regions.pixels[0, 0] > 127).nonzero().float()
        assert bright[:, 1].mean() + 0.5 == pytest.approx(cx, abs=0.6)
        assert bright[:, 0].mean() + 0.5 == pytest.approx(cy, abs=0.6)
        assert len(bright) == pytest.approx(w * h, rel=0.3)


def test_texts_without_images_are_encoded(maker, tokenizer, write_lines):
    file = write_lines("a.jsonl", [{"text": "a red star"}, {"text": 5}, {"text": ["a dog"]}])
    batch = maker(texts=TextStreamConfig(files=[file], batch_size=3)).make(0)
    found = {words(tokenizer, batch.texts.text, row) for row in range(3) if batch.texts.valid[row]}
    assert found == {"a red star", "a dog"}
    assert (batch.images, batch.regions) == (None, None)


def test_the_language_is_fixed_or_random(maker, tokenizer, write_lines, make_pair):
    file = write_lines("a.jsonl", [make_pair(n, caption={"en": "a star", "xx": "a dog"}) for n in range(16)])
    stream = ImageStreamConfig(files=[file], batch_size=16)

    def found(**text):
        batch = maker(images=stream, text=text).make(0)
        return {words(tokenizer, batch.images.text, row) for row in range(16)}

    assert found(language="xx") == {"a dog"}
    assert found() == {"a star", "a dog"}


def test_the_seed_changes_order_images_and_masks(maker, write_lines, make_pair):
    file = write_lines("a.jsonl", [make_pair(n) for n in range(20)])
    stream = ImageStreamConfig(files=[file], batch_size=4)
    one, again, other = (maker(seed=seed, images=stream).make(0) for seed in (0, 0, 1))
    assert_same(one.images, again.images)
    assert one.records != other.records


def test_batches_survive_pickling(maker, write_lines, make_regions):
    """Worker processes that are spawned, not forked, receive the data pipeline by pickle."""
    file = write_lines("a.jsonl", [make_regions(n) for n in range(6)])
    streams = {
        "images": ImageStreamConfig(files=[file], batch_size=4),
        "regions": RegionStreamConfig(files=[file], batch_size=5, max_images=2),
    }
    batches = maker(**streams)
    expected = batches.make(1)
    copy = pickle.loads(pickle.dumps(batches)).make(1)
    assert_same(copy.images, expected.images)
    assert_same(copy.regions, expected.regions)


def test_an_input_size_that_patches_do_not_divide_is_rejected(tokenizer):
    data = DataConfig(texts=TextStreamConfig(files=["a.jsonl"], batch_size=1))
    with pytest.raises(UserError, match=naming("image size 33", "patch size 8")):
        PretrainBatches(data, tokenizer=tokenizer, image_size=33, patch_size=8, seed=0)


def test_a_record_is_augmented_differently_in_each_epoch(maker, write_lines, make_pair):
    file = write_lines("a.jsonl", [make_pair(0)])
    batches = maker(images=ImageStreamConfig(files=[file], batch_size=1))
    assert not torch.equal(batches.make(0).images.pixels, batches.make(1).images.pixels)


def test_no_global_random_number_is_used(maker, write_lines, make_regions):
    file = write_lines("a.jsonl", [make_regions(n) for n in range(4)])
    batches = maker(
        images=ImageStreamConfig(files=[file], batch_size=4),
        regions=RegionStreamConfig(files=[file], batch_size=5, max_images=4),
    )
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())
    batches.make(0)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())


@pytest.mark.parametrize("name", ["images", "regions", "texts"])
def test_a_missing_file_names_its_config_key(maker, name):
    gone = {"files": ["gone.jsonl"], "batch_size": 1, **({"max_images": 1} if name == "regions" else {})}
    with pytest.raises(UserError, match=rf"^data\.{name}\.files: gone.jsonl does not exist"):
        maker(**{name: gone})


def test_data_without_a_stream_and_unknown_keys_are_rejected():
    with pytest.raises(ConfigError, match=naming("images, regions, videos, texts")):
        bind({"workers": 0}, DataConfig)
    with pytest.raises(ConfigError, match=r"texts.batchsize.*texts.batch_size"):
        bind({"texts": {"files": ["a"], "batchsize": 3}}, DataConfig)


def test_a_relative_image_path_starts_at_its_shard(maker, write_lines, encoded, tmp_path):
    (tmp_path / "pictures").mkdir()
    Path(tmp_path / "pictures" / "one.png").write_bytes(encoded(form="PNG"))
    file = write_lines("a.jsonl", [{"image": "pictures/one.png", "caption": "a star"}])
    assert not maker(images=ImageStreamConfig(files=[file], batch_size=1)).make(0).broken
    file = write_lines("b.jsonl", [{"image": "one.png", "caption": "a star"}])
    root = str(tmp_path / "pictures")
    assert not maker(images=ImageStreamConfig(files=[file], batch_size=1, image_root=root)).make(0).broken


@pytest.mark.parametrize(
    ("captions", "images", "boxes"),
    [
        ("short", {"one", "four"}, {"two"}),  # a record without a short caption is broken
        ("long", {"one two three", "four", "three three"}, {"two two two"}),
        ("sample", {"one", "one two three", "four", "three three"}, {"two", "two two two"}),
        ("both", {"one", "four", "three three"}, {"two"}),
    ],
)
def test_texts_may_be_short_long_or_either(maker, tokenizer, write_lines, make_pair, captions, images, boxes):
    element = {"bb": [0, 0, 20, 20], "caption": "two", "long_caption": "two two two"}
    records = [{**make_pair(number), "elems": [element]} for number in range(3)]
    records[0] |= {"caption": "one", "long_caption": "one two three"}
    records[1] |= {"caption": "four"}
    records[2] |= {"caption": None, "long_caption": "three three"}
    file = write_lines("a.jsonl", records)
    stream = ImageStreamConfig(files=[file], batch_size=3, captions=captions)
    regions = RegionStreamConfig(files=[file], batch_size=6, max_images=3, max_regions=2, captions=captions, crop=False)
    batches = maker(images=stream, regions=regions)
    found: dict[str, set[str]] = {"images": set(), "whole images": set(), "boxes": set()}
    for number in range(20):
        batch = batches.make(number)
        for row in range(3):
            if batch.images.valid[row]:
                found["images"].add(words(tokenizer, batch.images.text, row))
        part = regions_of(batch)
        for row in part.valid.nonzero().flatten().tolist():
            found["whole images" if part.is_image[row] else "boxes"].add(words(tokenizer, part.text, row))
        if captions == "both":
            for part in (batch.images, regions_of(batch)):
                for row in part.long.valid.nonzero().flatten().tolist():
                    short = words(tokenizer, part.text, row)
                    assert (
                        words(tokenizer, part.long.text, row) == {"one": "one two three", "two": "two two two"}[short]
                    )
            assert batch.images.long.valid.sum() == 1
            assert not (batch.images.long.text.labels[~batch.images.long.valid] != IGNORE).any()
        else:
            assert batch.images.long is None
            assert regions_of(batch).long is None
    assert found == {"images": images, "whole images": images, "boxes": boxes}


def test_long_captions_have_the_weight_of_their_stream():
    images = ImageStreamConfig(files=["a.jsonl"], batch_size=1, weight=0.5, captions="both")
    regions = RegionStreamConfig(files=["a.jsonl"], batch_size=1, max_images=1, weight=3, captions="both")
    texts = TextStreamConfig(files=["a.jsonl"], batch_size=1, weight=2)
    found = DataConfig(images=images, regions=regions, texts=texts).loss_weights()
    assert found == {"images": 0.5, "regions": 3, "texts": 2, "long_images": 0.5, "long_regions": 3}
    sampled = images.model_copy(update={"captions": "sample"})
    assert DataConfig(images=sampled).loss_weights() == {"images": 0.5}


HARD = {
    "a red star left of a blue dog": {"a blue star left of a red dog", "a street"},
    "a red star": {"a blue star", "a bright star"},
    "a blue dog": {"a red dog"},
    "four": set(),
}


def test_hard_negatives_belong_to_their_text_and_count_if_present(maker, write_lines, make_pair, tokenizer):
    elements = [
        {"bb": [0, 0, 20, 20], "caption": "a red star", "hard_negatives": ["a bright star"]},
        {"bb": [20, 0, 20, 20], "caption": "a blue dog"},
    ]
    records = [{**make_pair(number), "elems": elements} for number in range(2)]
    records[0] |= {"caption": "a red star left of a blue dog", "hard_negatives": ["a street"]}
    records[1] |= {"caption": "four", "elems": []}
    file = write_lines("a.jsonl", records)
    hard = HardNegativesConfig(count=2, sources=("given", "exchanged"))
    images = ImageStreamConfig(files=[file], batch_size=2, augment=WHOLE, hard_negatives=hard)
    regions = RegionStreamConfig(
        files=[file], batch_size=9, max_images=2, crop=False, augment=PLAIN, hard_negatives=hard
    )
    batches = maker(images=images, regions=regions)
    seen: dict[str, set[str]] = {}
    for number in range(20):
        batch = batches.make(number)
        for part in (batch.images, regions_of(batch)):
            wrong = part.hard_negatives
            assert wrong.valid.shape == (len(part.valid), 2)
            assert len(wrong.text.ids) == 2 * len(part.valid)
            assert not wrong.valid[~part.valid].any()
            for row in part.valid.nonzero().flatten().tolist():
                texts = [words(tokenizer, wrong.text, 2 * row + each) for each in range(2)]
                counted = {text for text, counts in zip(texts, wrong.valid[row].tolist(), strict=True) if counts}
                seen.setdefault(words(tokenizer, part.text, row), set()).update(counted)
    assert seen == HARD


@pytest.mark.parametrize("complete", [True, False])
def test_attributes_and_long_captions_are_true_of_the_image(maker, write_lines, make_pair, tokenizer, complete):
    """They are as true as captions, so no hard negative may equal them. Without them in the record, the same texts are wrong."""
    star = {"bb": [0, 0, 20, 20], "caption": "star", "attributes": ["red", "blue"] if complete else ["red"]}
    dog = {"bb": [20, 0, 20, 20], "caption": "dog", "long_caption": "a dog on a large circle" if complete else "a dog"}
    record = {**make_pair(0), "caption": "the red star on the right of a small circle", "elems": [star, dog]}
    file = write_lines("a.jsonl", [record])
    hard = HardNegativesConfig(count=16, sources=("replaced", "exchanged"))
    images = ImageStreamConfig(files=[file], batch_size=1, hard_negatives=hard)
    regions = RegionStreamConfig(files=[file], batch_size=3, max_images=1, crop=False, hard_negatives=hard)
    batches, made = maker(images=images, regions=regions), set[str]()
    for number in range(80):
        batch = batches.make(number)
        for part in (batch.images, regions_of(batch)):
            counted = part.hard_negatives.valid.flatten().nonzero().flatten().tolist()
            made |= {words(tokenizer, part.hard_negatives.text, row) for row in counted}
    assert any("on the left of" in text for text in made)
    assert any("blue star" in text for text in made) is not complete
    assert any("large circle" in text for text in made) is not complete


@pytest.mark.parametrize("complete", [True, False])
def test_texts_about_the_image_and_other_boxes_are_no_hard_negatives_of_a_box(
    maker, write_lines, make_pair, tokenizer, complete
):
    """Without these texts in the record, the same texts are hard negatives."""
    elements = [
        {"bb": [20 * number, 0, 20, 20], "caption": text}
        for number, text in enumerate(("a red star", "a small circle"))
    ]
    others = {"caption": "a blue star"} if complete else {"caption": "a dog"}
    elements += [{"bb": [0, 20, 12, 12], "caption": "a large circle"}] if complete else []
    file = write_lines("a.jsonl", [{**make_pair(0), **others, "elems": elements}])
    hard = HardNegativesConfig(count=16, sources=("replaced",))
    regions = RegionStreamConfig(
        files=[file], batch_size=3, max_images=1, crop=False, whole_image_rows=False, hard_negatives=hard
    )
    batches, made = maker(regions=regions), set[str]()
    for number in range(80):
        negatives = regions_of(batches.make(number)).hard_negatives
        counted = negatives.valid.flatten().nonzero().flatten().tolist()
        made |= {words(tokenizer, negatives.text, row) for row in counted}
    assert made, "otherwise this test proves nothing"
    assert (made & {"a blue star", "a large circle"} == set()) is complete
    assert complete or made >= {"a blue star", "a large circle"}


def test_hard_negatives_are_counted_with_the_attributes_that_precede_captions(maker, write_lines, make_pair):
    """Otherwise a warning would claim that few texts have a hard negative."""
    star = {"bb": [0, 0, 20, 20], "caption": "star", "attributes": ["red"]}
    file = write_lines("a.jsonl", [{**make_pair(0), "caption": None, "elems": [star]}])
    hard = HardNegativesConfig(sources=("replaced",))
    regions = RegionStreamConfig(files=[file], batch_size=3, max_images=1, crop=False, hard_negatives=hard)
    counts = maker(regions=regions).count_hard_negatives()["regions"]
    assert (counts.texts, counts.having) == (1, 1)


def test_hard_negatives_are_absent_by_default(maker, write_lines, make_pair):
    file = write_lines("a.jsonl", [{**make_pair(0), "hard_negatives": ["no star"]}])
    batch = maker(images=ImageStreamConfig(files=[file], batch_size=1)).make(0)
    assert batch.images.hard_negatives is None


def test_an_image_is_not_flipped_if_a_hard_negative_would_become_true(maker, write_lines, make_pair):
    """This also holds if captions that say left or right do not prevent flips, as in the authors' code."""
    record = {**make_pair(0), "caption": "a star", "hard_negatives": ["a star on the left"]}
    file = write_lines("a.jsonl", [record])
    mirrored = WHOLE.model_copy(update={"flip": 1.0})

    def pixels(**settings) -> torch.Tensor:
        return maker(images=ImageStreamConfig(files=[file], batch_size=1, **settings)).make(0).images.pixels

    upright = pixels(augment=WHOLE)
    assert not torch.equal(pixels(augment=mirrored), upright)
    assert torch.equal(pixels(augment=mirrored, hard_negatives=HardNegativesConfig(sources=("given",))), upright)
