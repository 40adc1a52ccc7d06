"""Visual reasoning data: the official files, and lists that name their images. The left image stays left from file to batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.config import AugmentConfig, NLVRDataConfig, NLVRSplitConfig
from dataset.tasks.nlvr import NLVRBatches, read_statements
from tests.messages import OneLine, naming
from utils.errors import UserError

WHOLE = AugmentConfig(scale=(1, 1), ratio=(1, 1), flip=0, rand_augment_ops=0)
SIZE = 16


@pytest.fixture
def picture(tmp_path):
    """Returns a function that writes an image whose left half is black and whose right half has the given level, and returns its
    name."""

    def write(name: str, level: int) -> str:
        pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        pixels[:, SIZE // 2 :] = level
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, "PNG")
        return name

    return write


@pytest.fixture
def split(tmp_path):
    def split(rows: list[dict], name: str = "a.jsonl", **options) -> NLVRSplitConfig:
        lines = name.endswith("l")
        text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
        (tmp_path / name).write_text(text)
        return NLVRSplitConfig(annotations=str(tmp_path / name), images=str(tmp_path / "images"), **options)

    return split


def official(identifier: str, label: str = "True", **more) -> dict:
    """A line in the format of the official repository."""
    return {
        "sentence": f"One of the dogs is {identifier}.",
        "left_url": "http://a/l.jpg",
        "right_url": "http://a/r.jpg",
        "identifier": identifier,
        "synset": "dog",
        "query": "two dogs",
        "label": label,
        "writer": "61",
        "validation": {"61": label},
        **more,
    }


def names(item, folder) -> tuple[str, str]:
    return tuple(str(source.path.relative_to(folder)) for source in item.images)


@pytest.mark.parametrize(
    ("identifier", "more", "folder"),
    [
        ("train-10171-0-0", {"directory": 17}, "train/17"),
        ("dev-850-0-0", {"extra_validations": {"9": "True"}}, "dev"),
        ("test1-0-1-3", {"extra_validations": {}}, "test1"),
        ("test2-7-1-0", {}, "test2"),
    ],
)
def test_official_lines_find_their_images_in_the_official_layout(split, picture, tmp_path, identifier, more, folder):
    """The left image is img0. The last field of the identifier is the sentence number, which image names do not contain."""
    stem = f"{folder}/{identifier.rpartition('-')[0]}"
    for side in (0, 1):
        picture(f"{stem}-img{side}.png", 100 + side)
    config = split([official(identifier, **more)], "train.json" if more else "a.jsonl", format="nlvr2")
    (item,) = read_statements(config, "k", 0.0)
    assert names(item, tmp_path / "images") == (f"{stem}-img0.png", f"{stem}-img1.png")
    assert (item.sentence, item.label) == (f"One of the dogs is {identifier}.", 1)


def test_official_files_are_json_lines_in_a_json_file(tmp_path, picture):
    for side in (0, 1):
        picture(f"dev/dev-0-0-img{side}.png", side)
    (tmp_path / "dev.json").write_text("".join(json.dumps(official(f"dev-0-0-{n}")) + "\n" for n in range(3)))
    config = NLVRSplitConfig(format="nlvr2", annotations=str(tmp_path / "dev.json"), images=str(tmp_path / "images"))
    assert [item.location.rpartition(":")[2] for item in read_statements(config, "k", 0.0)] == ["1", "2", "3"]


@pytest.mark.parametrize("file", ["a.json", "a.jsonl"])
def test_processed_lists_name_the_left_image_first(split, picture, tmp_path, file):
    images = [picture("dev/b.png", 1), picture("dev/a.png", 2)]
    labels = [True, "True", "true", False, "False", "false"]
    rows = [{"sentence": f"dog {n}", "label": label, "images": images} for n, label in enumerate(labels)]
    items = read_statements(split(rows, file), "k", 0.0)
    assert {names(item, tmp_path / "images") for item in items} == {("dev/b.png", "dev/a.png")}
    assert [item.label for item in items] == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"label": "yes"}, "wrong type", ("label", "yes", "True", "False")),
        ({"label": 1}, "wrong type", ("label", "1", "True", "False")),
        ({"label": None}, "missing key", ("no 'label'",)),
        ({"sentence": "  "}, "empty text", ("sentence", "words")),
        ({"sentence": None}, "missing key", ("no 'sentence'",)),
        ({"identifier": "dev-850-0"}, "wrong type", ("identifier 'dev-850-0'", "split-set-pair-sentence")),
        ({"identifier": "850-0-0-0"}, "wrong type", ("identifier '850-0-0-0'",)),
        ({"identifier": "dev-850-0-0.png"}, "wrong type", ("identifier 'dev-850-0-0.png'",)),
        ({"identifier": None}, "missing key", ("no 'identifier'",)),
        ({"identifier": "dev-851-0-0"}, "missing image", ("dev/dev-851-0-img0.png",)),
        ({"identifier": "train-1-0-0"}, "missing key", ("no 'directory'",)),
        ({"images": ["dev/dev-850-0-img0.png"] * 3}, "wrong type", ("not one or two paths",)),
        ({"images": ["dev/dev-850-0-img0.png", 3]}, "wrong type", ("not one or two paths",)),
        ({"images": "dev/dev-850-0-img0.png"}, "wrong type", ("not of type list",)),
        ({"images": ["dev/dev-850-0-img0.png", "gone.png"]}, "missing image", ("gone.png",)),
    ],
)
def test_an_unusable_row_is_reported_in_one_line(split, picture, change, kind, message):
    for side in (0, 1):
        picture(f"dev/dev-850-0-img{side}.png", side)
    sides = [f"dev/dev-850-0-img{side}.png" for side in (0, 1)]
    rows = [official("dev-850-0-0") | {"images": sides}, official("dev-850-0-0") | {"images": sides} | change]
    rows = [{key: row[key] for key in row if not key.endswith("_url")} for row in rows]
    config = split(rows, format="records" if "images" in change else "nlvr2")
    with pytest.raises(UserError, match=naming("evaluation.test.dev", "1 of 2", f"1 {kind}")) as error:
        read_statements(config, "evaluation.test.dev", 0.0)
    assert f"(first: {config.annotations}:2: " in str(error.value)
    assert str(error.value) == OneLine(*message)
    assert "\n" not in str(error.value)
    assert len(read_statements(config, "data.train", 0.5)) == 1


def test_rows_with_the_same_sentence_share_a_group_for_any_pair(split, picture):
    """The official script blanks the third field of the identifier. Another set number or sentence number means another
    sentence."""
    identifiers = ["dev-0-0-0", "dev-0-1-0", "dev-0-0-1", "dev-1-0-0", "dev-0-2-0", "test1-0-0-0", "dev-10-0-0"]
    for identifier in identifiers:
        part, stem = identifier.partition("-")[0], identifier.rpartition("-")[0]
        for side in (0, 1):
            picture(f"{part}/{stem}-img{side}.png", side)
    config = split([official(identifier) for identifier in identifiers], format="nlvr2")
    groups = [item.sentence_id for item in read_statements(config, "k", 0.0)]

    def blanked(identifier: str) -> str:
        part, number, _, sentence = identifier.split("-")
        return f"{part}-{number}--{sentence}"

    expected = [blanked(identifier) for identifier in identifiers]
    same = [[a == b for b in expected] for a in expected]
    assert [[a == b for b in groups] for a in groups] == same


def test_without_identifiers_equal_sentences_share_a_group(split, picture):
    images = [picture("a.png", 1), picture("b.png", 2)]
    rows = [{"sentence": sentence, "label": True, "images": images} for sentence in ("dog", "cat", "dog")]
    first, second, third = (item.sentence_id for item in read_statements(split(rows), "k", 0.0))
    assert first == third != second


@pytest.fixture
def batches(tokenizer, split, picture):
    """Statement n is "number n" and is true for odd n. The levels of its left and right image are 10 n and 10 n + 100."""

    def make(sentences: list[str] | None = None, seed: int = 0, batch_size: int = 3, **options) -> NLVRBatches:
        numbers = ["zero", "one", "two", "three", "four", "five", "six"]
        rows = [
            {
                "sentence": sentence,
                "label": n % 2 == 1,
                "images": [picture(f"{n}l.png", 10 * n), picture(f"{n}r.png", 10 * n + 100)],
            }
            for n, sentence in enumerate(sentences or [f"number {number}" for number in numbers])
        ]
        data = NLVRDataConfig(train=split(rows), batch_size=batch_size, **{"augment": WHOLE, **options})
        return NLVRBatches(data, tokenizer=tokenizer, image_size=SIZE, seed=seed)

    return make


def numbers_of(tokenizer, batch) -> list[int]:
    numbers = ["zero", "one", "two", "three", "four", "five", "six"]
    texts = [tokenizer.decode(ids[mask]) for ids, mask in zip(batch.text.ids, batch.text.mask, strict=True)]
    return [numbers.index(text.split()[2]) for text in texts]


def test_all_left_images_come_before_all_right_images(batches, tokenizer):
    maker = batches()
    seen = []
    for number in range(7):
        batch = maker.make(number)
        assert batch.pixels.shape == (6, 3, SIZE, SIZE)
        assert batch.pixels.dtype == torch.uint8
        for row, n in enumerate(numbers_of(tokenizer, batch)):
            assert batch.pixels[row, :, 0, -1].tolist() == [10 * n] * 3
            assert batch.pixels[row + 3, :, 0, -1].tolist() == [10 * n + 100] * 3
            assert batch.label[row] == n % 2
            seen.append(n)
    for epoch in range(3):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_a_damaged_image_makes_an_invalid_row(batches, tmp_path, tokenizer):
    maker = batches(batch_size=7)
    whole = maker.make(0)
    (tmp_path / "images" / "4r.png").write_bytes(b"no picture")
    batch = maker.make(0)
    row = numbers_of(tokenizer, whole).index(4)
    assert batch.valid.tolist() == [place != row for place in range(7)]
    assert (batch.pixels[[row, row + 7]] == 0).all()
    others = [place for place in range(14) if place % 7 != row]
    assert torch.equal(batch.pixels[others], whole.pixels[others])
    (broken,) = batch.broken
    assert (broken.reason, broken.place.rpartition(":")[2]) == ("unreadable image", "5")
    assert (batch.read, len(batch.records)) == (7, 6)


def test_a_batch_depends_only_on_seed_and_index(batches):
    maker = batches(augment=AugmentConfig())
    for number in (3, 0, 3):
        one, other = maker.make(number), batches(augment=AugmentConfig()).make(number)
        assert torch.equal(one.pixels, other.pixels)
        assert one.records == other.records
    assert not torch.equal(maker.make(0).pixels, batches(seed=1, augment=AugmentConfig()).make(0).pixels)


def test_the_images_of_a_pair_are_augmented_independently(batches):
    half = WHOLE.model_copy(update={"flip": 0.5})
    maker = batches(augment=half, batch_size=7)
    flipped = torch.cat([maker.make(number).pixels[:, 0, 0, -1].view(2, 7) == 0 for number in range(1, 9)], dim=1)
    left, right = flipped
    for one in (True, False):
        for other in (True, False):
            assert ((left == one) & (right == other)).any()


@pytest.mark.parametrize(("sentence", "says_a_side"), [("the left dog is small", True), ("a small bright dog", False)])
@pytest.mark.parametrize("careful", [True, False])
def test_a_sentence_that_names_a_side_is_flipped_only_without_careful_flips(batches, sentence, says_a_side, careful):
    flip = WHOLE.model_copy(update={"flip": 1.0})
    pixels = batches([sentence], batch_size=1, augment=flip, careful_flip=careful).make(0).pixels
    # After mirroring, the level of the right half is in the left half.
    assert (pixels[1, 0, 0, 0] == 100).item() != (careful and says_a_side)


def test_the_released_config_disables_careful_flips():
    assert NLVRDataConfig.model_fields["careful_flip"].default is False
