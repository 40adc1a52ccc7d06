"""Captioning data: prompt, caption, and the positions to predict."""

from __future__ import annotations

import numpy as np
import pytest

from batches.base import IGNORE
from dataset.config import AugmentConfig, CaptionedSplitConfig, CaptioningDataConfig, TextDataConfig
from dataset.formats.captioned import read_captioned_images
from dataset.tasks.captioning import CaptioningBatches
from tests.messages import naming
from utils.errors import UserError

WHOLE = AugmentConfig(scale=(1, 1), ratio=(1, 1), flip=0, rand_augment_ops=0)
PROMPT = "a street with "


@pytest.fixture
def make(tmp_path, write_lines, tokenizer, encoded):
    """Returns a function that builds batches of images with captions, under the given options."""

    def make(captions, flip=0.0, careful_flip=True, prompt=PROMPT, **text) -> CaptioningBatches:
        rows = []
        for number, caption in enumerate(captions):
            (tmp_path / f"{number}.jpg").write_bytes(encoded(seed=number))
            rows.append({"image": f"{number}.jpg", "caption": caption, "image_id": f"coco_{number}"})
        data = CaptioningDataConfig(
            train=CaptionedSplitConfig(annotations=write_lines("train.jsonl", rows)),
            batch_size=len(captions),
            prompt=prompt,
            augment=WHOLE.model_copy(update={"flip": flip}),
            careful_flip=careful_flip,
            text=TextDataConfig(**{"max_tokens": 20, "mask_prob": 0.6, "max_masks": 18, "skipgram_prob": 0.0, **text}),
            max_broken=1.0,
            workers=0,
        )
        return CaptioningBatches(data, tokenizer=tokenizer, image_size=16, seed=0)

    return make


def spelled(batches: CaptioningBatches, tokenizer, row) -> list[str]:
    return tokenizer.convert_ids_to_tokens(row.tolist())


def test_a_row_is_prompt_and_caption_with_a_mask_before_each_predicted_token(make, tokenizer):
    batches = make(["A red STAR"])
    text = batches.make(0).text
    tokens = tokenizer.convert_ids_to_tokens(text.ids[0].tolist())
    assert [token for token in tokens if token != "[MASK]"] == [
        "[CLS]", "a", "street", "with", "a", "red", "star", "[SEP]",
    ]  # fmt: skip
    places = text.mask_indices[0][text.labels[0] != IGNORE].tolist()
    assert places == [place for place, token in enumerate(tokens) if token == "[MASK]"]
    assert [tokens[place + 1] for place in places] == tokenizer.convert_ids_to_tokens(
        text.labels[0][text.labels[0] != IGNORE].tolist()
    )


def test_prompt_and_start_are_never_predicted(make, tokenizer):
    batches = make(["a red star"])
    prompt = len(batches.prompt)
    for seed in range(50):
        ids, message = batches.tokens("a red star", np.random.default_rng(seed))
        assert all(prompt <= place < len(ids) for place in message)
        assert message == sorted(set(message))
        # The share applies to the caption with [CLS] and [SEP], which are five tokens.
        assert len(message) == 3
    assert {place for seed in range(50) for place in batches.tokens("a red star", np.random.default_rng(seed))[1]} == {
        4, 5, 6, 7,
    }  # fmt: skip


def test_a_truncated_caption_has_no_end_token(make, tokenizer):
    batches = make(["red blue star circle"], max_tokens=7)
    ids, _ = batches.tokens("red blue star circle", np.random.default_rng(0))
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "street", "with", "red", "blue", "star"]


def test_a_batch_contains_all_reference_captions_of_an_image(make):
    batch = make([["A red star!", "a star"], "a dog"]).make(0)
    assert sorted(batch.references) in ([("A red star!", "a star")] * 2, [("A red star!", "a star"), ("a dog",)])


def test_a_flip_never_makes_a_caption_false(make):
    captions = ["a star on the left"] * 6
    careful, careless = make(captions, flip=1.0), make(captions, flip=1.0, careful_flip=False)
    whole = make(captions)
    for image in range(6):
        rng = np.random.default_rng(0)
        assert (
            careful.example(careful.items[image], rng).pixels == whole.example(whole.items[image], rng).pixels
        ).all()
        assert (
            careless.example(careless.items[image], rng).pixels == whole.example(whole.items[image], rng).pixels.flip(2)
        ).all()


def test_an_unreadable_image_becomes_an_invalid_row_and_is_counted(make, tmp_path):
    batches = make(["a dog", "a cat"])
    (tmp_path / "1.jpg").write_bytes(b"no picture")
    batch = batches.make(0)
    assert batch.valid.sum() == 1
    assert [broken.reason for broken in batch.broken] == ["unreadable image"]
    assert batch.text.ids.shape[0] == batch.pixels.shape[0] == len(batch.references) == 2


def test_a_prompt_that_leaves_no_room_is_rejected(make):
    with pytest.raises(UserError, match=naming("data.prompt", "4 tokens", "data.text.max_tokens is 4")):
        make(["a dog"], max_tokens=4)


def test_images_keep_their_ids_and_references(make, tmp_path):
    make([["a", "b"], "c", ["d", "e"]])
    items = read_captioned_images(CaptionedSplitConfig(annotations=str(tmp_path / "train.jsonl")), "data.train", 0.0)
    assert list(items.ids) == ["coco_0", "coco_1", "coco_2"]
    assert items.references() == [("a", "b"), ("c",), ("d", "e")]
