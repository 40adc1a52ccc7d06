"""Retrieval data: every file format gives the same images and captions, and a batch depends only on its index."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from batches.retrieval import RetrievalBatch
from dataset.config import AugmentConfig, CaptionedSplitConfig, RetrievalDataConfig
from dataset.formats.captioned import read_captioned_images
from dataset.loaders import BatchLoader
from dataset.tasks.retrieval import RetrievalBatches
from tests.messages import OneLine, naming
from utils.errors import UserError

WHOLE = AugmentConfig(scale=(1, 1), ratio=(1, 1), flip=0, rand_augment_ops=0)
SIZE = 16
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def colour(number: int) -> tuple[int, int, int]:
    """The colour of image ``number``. The left half of each image is black."""
    return 20 * number + 30, 255 - 20 * number, 10 * number


@pytest.fixture
def picture(tmp_path):
    """Returns a function that writes an image with its own colour and returns its name."""

    def write(name: str, number: int) -> str:
        pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        pixels[:, SIZE // 2 :] = colour(number)
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, "PNG")
        return name

    return write


@pytest.fixture
def write(tmp_path):
    def write(content, name: str = "a.json") -> str:
        lines = name.endswith("l")
        text = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def read(tmp_path):
    def read(annotations: str, max_broken: float = 0.0, **options):
        options |= {"format": "karpathy"} if "splits" in options else {}
        config = CaptionedSplitConfig(annotations=annotations, images=str(tmp_path / "images"), **options)
        return read_captioned_images(config, "evaluation.test.a", max_broken)

    return read


def found(items) -> list[tuple[str, list[str]]]:
    """The captions of each image, by file name."""
    captions: list[list[str]] = [[] for _ in items.images]
    for caption, image in zip(items.captions, items.image_of_caption, strict=True):
        captions[image].append(caption)
    return [(source.path.name, own) for source, own in zip(items.images, captions, strict=True)]


def sentences(*texts: str, start: int = 0) -> list[dict]:
    return [{"tokens": text.split(), "raw": text, "imgid": 0, "sentid": start + n} for n, text in enumerate(texts)]


def coco(picture) -> list[dict]:
    """Images in the format of ``dataset_coco.json``: two folders, COCO ids, and a split "restval"."""
    parts = [
        ("val2014", "test"),
        ("train2014", "train"),
        ("val2014", "restval"),
        ("val2014", "val"),
        ("train2014", "train"),
    ]
    return [
        {
            "filepath": folder,
            "sentids": [2 * n, 2 * n + 1],
            "filename": picture(f"{folder}/COCO_{folder}_{900 + n:012d}.jpg", n).split("/")[1],
            "imgid": n,
            "split": split,
            "sentences": sentences(f"A dog, {WORDS[n]}.", f"a cat {WORDS[n]}", start=2 * n),
            "cocoid": 900 + n,
        }
        for n, (folder, split) in enumerate(parts)
    ]


def test_karpathys_coco_file_has_the_named_splits(read, write, picture):
    path = write({"images": coco(picture), "dataset": "coco"})
    assert found(read(path, splits=["train", "restval"])) == [
        ("COCO_train2014_000000000901.jpg", ["A dog, one.", "a cat one"]),
        ("COCO_val2014_000000000902.jpg", ["A dog, two.", "a cat two"]),
        ("COCO_train2014_000000000904.jpg", ["A dog, four.", "a cat four"]),
    ]
    assert [name for name, _ in found(read(path, splits=["test"]))] == ["COCO_val2014_000000000900.jpg"]
    assert [name[-7:-4] for name, _ in found(read(path, splits=["train"]))] == ["901", "904"]


def test_karpathys_flickr_file_has_no_folders_and_no_coco_ids(read, write, picture):
    images = [
        {
            "sentids": [n],
            "imgid": n,
            "sentences": sentences(*[f"dog {WORDS[k]}" for k in range(n + 1)]),
            "split": ("train", "test")[n % 2],
            "filename": picture(f"{1000 + n}.jpg", n),
        }
        for n in range(4)
    ]
    path = write({"images": images, "dataset": "flickr30k"})
    expected = [("1001.jpg", ["dog zero", "dog one"]), ("1003.jpg", ["dog zero", "dog one", "dog two", "dog three"])]
    assert found(read(path, splits=["test"])) == expected
    assert read(path, splits=["test"]).captions_per_image.tolist() == [2, 4]


def test_pairs_with_the_same_image_id_are_captions_of_one_image(read, write, picture):
    """Like the released training lists: one caption per row, rows of one image are not adjacent, and ids are strings or
    numbers."""
    names = [picture(f"{n}.png", n) for n in range(3)]
    ids = ["coco_7", 8, "9"]
    rows = [
        {"image": names[n], "caption": f"dog {k}", "image_id": ids[n]}
        for n, k in ((0, 0), (1, 1), (0, 2), (2, 3), (1, 4))
    ]
    expected = [("0.png", ["dog 0", "dog 2"]), ("1.png", ["dog 1", "dog 4"]), ("2.png", ["dog 3"])]
    for name in ("a.json", "a.jsonl"):
        items = read(write(rows, name))
        assert found(items) == expected
        assert items.image_of_caption.tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("without", [{}, {"image_id": None}])
def test_without_image_ids_captions_are_grouped_by_image_path(read, write, picture, without):
    rows = [{"image": picture(f"{n}.png", n), "caption": f"dog {k}", **without} for k, n in enumerate((0, 1, 0))]
    assert found(read(write(rows))) == [("0.png", ["dog 0", "dog 2"]), ("1.png", ["dog 1"])]


def test_lists_of_captions_are_read_from_arrays_and_lines(read, write, picture):
    rows = [{"image": picture(f"{n}.png", n), "caption": [f"dog {k}" for k in range(n + 1)]} for n in range(3)]
    expected = [("0.png", ["dog 0"]), ("1.png", ["dog 0", "dog 1"]), ("2.png", ["dog 0", "dog 1", "dog 2"])]
    assert found(read(write(rows, "a.json"))) == found(read(write(rows, "a.jsonl"))) == expected


def test_captions_are_read_in_one_language_or_all(read, write, picture):
    rows = [{"image": picture("0.png", 0), "caption": {"en": ["a dog", "a cat"], "de": "ein Hund"}}]
    path = write(rows)
    assert found(read(path)) == [("0.png", ["a dog", "a cat", "ein Hund"])]
    assert found(read(path, language="de")) == [("0.png", ["ein Hund"])]
    with pytest.raises(UserError, match=naming("'fr'")):
        read(path, language="fr")


def test_the_same_image_id_for_two_images_is_rejected(read, write, picture):
    """Otherwise captions of one image would be trained and evaluated with another image."""
    rows = [{"image": picture(f"{n}.png", n), "caption": "a dog", "image_id": 5} for n in range(2)]
    path = write(rows)
    with pytest.raises(UserError, match=r"^evaluation\.test\.a: .*image_id 5.*0\.png.*1\.png") as error:
        read(path)
    assert f"{path}[1]" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": []}, "empty text"),
        ({"caption": ["a dog", ""]}, "empty text"),
        ({"caption": " "}, "empty text"),
        ({"caption": None}, "missing key"),
        ({"caption": 3}, "wrong type"),
        ({"image": "gone.png"}, "missing image"),
        ({"image": 3}, "wrong type"),
        ({"image": None}, "missing key"),
    ],
)
def test_an_unusable_row_is_reported_or_skipped(read, write, picture, change, message):
    rows = [{"image": picture(f"{n}.png", n), "caption": ["a dog"]} for n in range(4)]
    rows[2] |= change
    path = write(rows, "a.jsonl")
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value) == OneLine("evaluation.test.a", "1 of 4", f"1 {message}", f"{path}:3")
    assert "\n" not in str(error.value)
    assert [name for name, _ in found(read(path, max_broken=0.25))] == ["0.png", "1.png", "3.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentences": []}, "empty text"),
        ({"sentences": [{"raw": ""}]}, "empty text"),
        ({"sentences": [{"tokens": ["a"]}]}, "wrong type"),
        ({"sentences": ["a dog"]}, "wrong type"),
        ({"sentences": None}, "missing key"),
        ({"filename": None}, "missing key"),
        ({"filename": "gone.jpg"}, "missing image"),
        ({"filepath": "test2014"}, "missing image"),
    ],
)
def test_an_unusable_image_of_a_karpathy_file_is_reported_with_its_location(read, write, picture, change, message):
    images = coco(picture)
    images[1] |= change
    path = write({"images": images})
    with pytest.raises(UserError, match=naming("1 of 2", f"1 {message}")) as error:
        read(path, splits=["train"])
    assert f"{path}: images[1]: " in str(error.value)


def test_a_missing_split_is_reported_with_the_existing_splits(read, write, picture):
    path = write({"images": coco(picture)})
    with pytest.raises(UserError) as error:
        read(path, splits=["val", "dev"])
    there = "test (1), train (2), restval (1), val (1)"
    assert str(error.value) == OneLine("evaluation.test.a", path, "dev", there)


@pytest.mark.parametrize("content", [[{"image": "a.png", "caption": "a"}], {"image": "a.png"}, {"images": 3}])
def test_requesting_splits_of_a_file_without_splits_is_an_error(read, write, content):
    path = write(content)
    with pytest.raises(UserError, match=naming(path, "images", "evaluation.test.a.format")):
        read(path, splits=["val"])


def test_a_karpathy_entry_that_is_not_an_object_is_reported_in_one_line(read, write, picture):
    path = write({"images": [*coco(picture), "dog.jpg"]})
    with pytest.raises(UserError, match=r"^evaluation\.test\.a: .*images\[5\]"):
        read(path, splits=["val"])


@pytest.fixture
def batches(tokenizer, tmp_path, write, picture):
    """Batches of 3 over 5 images with 1 to 3 captions each: 11 captions, each with a different word."""

    def make(seed: int = 0, batch_size: int = 3, rows: list | None = None, **options) -> RetrievalBatches:
        numbers = iter(WORDS)
        rows = rows or [
            {"image": picture(f"{n}.png", n), "caption": [f"number {next(numbers)}" for _ in range(1 + (n + 1) % 3)]}
            for n in range(5)
        ]
        split = CaptionedSplitConfig(annotations=write(rows, "train.jsonl"), images=str(tmp_path / "images"))
        data = RetrievalDataConfig(train=split, batch_size=batch_size, **{"augment": WHOLE, **options})
        return RetrievalBatches(data, tokenizer=tokenizer, image_size=SIZE, seed=seed)

    return make


def words(tokenizer, batch: RetrievalBatch) -> list[str]:
    return [
        tokenizer.decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(batch.text.ids, batch.text.mask, strict=True)
    ]


def assert_same(one: RetrievalBatch, other: RetrievalBatch) -> None:
    for name in ("pixels", "group", "valid"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.text.ids, other.text.ids)
    assert torch.equal(one.text.mask, other.text.mask)
    assert (one.records, one.broken, one.read) == (other.records, other.broken, other.read)


def test_an_epoch_has_every_caption_once_with_its_image(batches, tokenizer):
    """Three epochs of 11 captions are 11 batches of 3, which cross the boundaries of epochs."""
    maker = batches()
    assert maker.stream_sizes == {"captions": 11}
    seen = []
    for number in range(11):
        batch = maker.make(number)
        assert batch.valid.all()
        for caption, group, pixels in zip(words(tokenizer, batch), batch.group, batch.pixels, strict=True):
            assert pixels[:, 0, -1].tolist() == list(colour(int(group)))
            seen.append(caption)
    for epoch in range(3):
        assert sorted(seen[11 * epoch : 11 * epoch + 11]) == sorted(f"number {word}" for word in WORDS)
    assert seen[:11] != seen[11:22]


def test_groups_are_equal_only_for_captions_of_the_same_image(batches, tokenizer):
    owner = dict(zip(WORDS, [0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4], strict=True))
    batch = batches(batch_size=11).make(0)
    images = [owner[caption.split()[1]] for caption in words(tokenizer, batch)]
    same = torch.tensor(images)[:, None] == torch.tensor(images)
    assert torch.equal(batch.group[:, None] == batch.group, same)


def test_a_batch_depends_only_on_seed_and_index(batches):
    options = {"augment": AugmentConfig()}
    maker = batches(**options)
    for number in (5, 0, 3, 0):
        assert_same(maker.make(number), batches(**options).make(number))
    assert_same(pickle.loads(pickle.dumps(maker)).make(2), maker.make(2))
    assert not torch.equal(maker.make(0).pixels, batches(seed=1, **options).make(0).pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_ranks_read_the_same_batches(batches, workers):
    maker = batches(workers=workers)
    for rank in range(2):
        loader = BatchLoader(maker, maker.data, rank=rank, world_size=2)
        for place, batch in enumerate(loader.batches(consumed=4, count=2)):
            assert_same(batch, maker.make(4 + 2 * place + rank))


def test_an_image_damaged_after_the_check_is_an_invalid_row(batches, tmp_path):
    maker = batches(batch_size=11)
    whole = maker.make(0)
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    (tmp_path / "images" / "3.png").unlink()
    batch = maker.make(0)
    lost = (whole.group == 1) | (whole.group == 3)
    assert torch.equal(batch.valid, ~lost)
    assert (batch.pixels[lost] == 0).all()
    assert (batch.group[lost] == -1).all()
    assert (batch.text.mask[lost].sum(dim=1) == 3).all(), "[CLS] a [SEP]"
    assert torch.equal(batch.pixels[~lost], whole.pixels[~lost])
    assert torch.equal(batch.group[~lost], whole.group[~lost])
    places = [(broken.reason, broken.place.rpartition(":")[2]) for broken in batch.broken]
    assert sorted(places) == [("missing image", "4")] * 2 + [("unreadable image", "2")] * 3
    assert (batch.read, len(batch.records)) == (11, 6)
    assert batch.counts == {"captions": (11, 6, 5)}, "each caption of a broken image counts"


def test_too_many_damaged_images_stop_the_run(batches, tmp_path):
    maker = batches(workers=0)
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=naming("data.max_broken = 1%", "3 unreadable image")):
        list(BatchLoader(maker, maker.data).batches(consumed=0, count=4))


def test_a_caption_that_is_empty_after_cleaning_is_reported_before_training(batches, picture):
    rows = [{"image": picture("0.png", 0), "caption": ["?!", "a dog"]}]
    with pytest.raises(UserError, match=naming("1 of 1", "1 empty text", "caption", "?!")):
        batches(rows=rows, batch_size=2)


@pytest.mark.parametrize("caption", ["a dog left of a cat", "the rightmost dog", "a dog"])
@pytest.mark.parametrize("careful", [True, False])
def test_a_caption_that_names_a_side_is_flipped_only_without_careful_flips(batches, picture, caption, careful):
    flip = WHOLE.model_copy(update={"flip": 1.0})
    rows = [{"image": picture("0.png", 0), "caption": caption}]
    pixels = batches(rows=rows, batch_size=1, augment=flip, careful_flip=careful).make(0).pixels[0]
    flipped = pixels[:, 0, 0].tolist() == list(colour(0))
    assert flipped != (careful and caption != "a dog")
    assert pixels[:, 0, 0 if not flipped else -1].tolist() == [0, 0, 0]


def test_the_released_config_disables_careful_flips():
    fields = RetrievalDataConfig.model_fields
    text = fields["text"].get_default(call_default_factory=True)
    assert fields["careful_flip"].default is False
    assert (text.max_tokens, text.max_words) == (40, 30)


def test_captions_are_cleaned_and_truncated_at_words(batches, picture, tokenizer):
    rows = [{"image": picture("0.png", 0), "caption": "A dog, a cat; " + "dog " * 50}]
    text = {"max_tokens": 40, "max_words": 6}
    assert words(tokenizer, batches(rows=rows, batch_size=1, text=text).make(0)) == ["a dog a cat dog dog"]
