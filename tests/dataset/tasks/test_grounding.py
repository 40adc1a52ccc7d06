"""Grounding data: RefCOCO's pickle, which must not execute code, records in our format, and boxes that follow crops and flips."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.config import GroundingDataConfig, GroundingSplitConfig, RegionAugmentConfig
from dataset.tasks.grounding import ANY_NUMBER, GroundingBatches, read_phrases
from tasks.kinds import find_task
from tests.messages import OneLine, naming
from utils.config import bind, load_config
from utils.config_files import ConfigError
from utils.errors import UserError
from utils.pickles import read_plain_pickle

PLAIN = RegionAugmentConfig(flip=0, rand_augment_ops=0)
WIDTH, HEIGHT = 40, 32


def write_picture(path: Path, box: tuple[int, int, int, int], size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Writes a black image that is white in ``box`` (x, y, w, h)."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    x, y, w, h = box
    pixels[y : y + h, x : x + w] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not JPEG, whatever the file is called: the white area must end exactly at the box.
    Image.fromarray(pixels).save(path, "PNG")


def refcoco() -> tuple[list[dict], dict]:
    """Four references of the splits train, val, testA and testA, in the format of ``refs(unc).p`` and ``instances.json``."""
    splits = ("train", "val", "testA", "testA")
    refs = [
        {
            "ref_id": 10 + n,
            "ann_id": 1719310 + n,
            "category_id": 1,
            "image_id": 581857 + n // 2,
            "file_name": f"COCO_train2014_{581857 + n // 2:012d}_{n}.jpg",
            "split": split,
            "sent_ids": [2 * n, 2 * n + 1],
            "sentences": [
                {"tokens": ["shirt", str(k)], "raw": f"Shirt {n}{k}!", "sent_id": 2 * n + k, "sent": f"shirt {n} {k}"}
                for k in range(2)
            ],
        }
        for n, split in enumerate(splits)
    ]
    boxes = [[1.5, 2.0, 10.25, 9.0], [20, 10, 12, 8], [3, 4, 5, 6], [30.0, 20.0, 10.0, 12.0]]
    instances = {
        "images": [{"id": 581857 + n, "width": WIDTH, "height": HEIGHT, "file_name": "x.jpg"} for n in range(2)],
        "annotations": [
            {"id": 1719310 + n, "image_id": 581857 + n // 2, "bbox": box, "category_id": 1}
            for n, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }
    return refs, instances


@pytest.fixture
def official(tmp_path):
    """Returns a function that writes RefCOCO's files and returns a config for some of their splits."""

    def write(*splits: str, refs=None, instances=None, protocol: int = 2, **config) -> GroundingSplitConfig:
        plain, boxes = refcoco()
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(plain if refs is None else refs, protocol=protocol))
        (tmp_path / "instances.json").write_text(json.dumps(boxes if instances is None else instances))
        for number in (581857, 581858):
            write_picture(tmp_path / "train2014" / f"COCO_train2014_{number:012d}.jpg", (0, 0, 5, 5))
        files = {"refs": str(tmp_path / "refs(unc).p"), "instances": str(tmp_path / "instances.json")}
        return GroundingSplitConfig(
            format="refcoco", **files, images=str(tmp_path / "train2014"), splits=list(splits), **config
        )

    return write


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_the_official_files_give_each_sentence_its_box_and_size(official, tmp_path, protocol):
    first, second = read_phrases(official("train", protocol=protocol), "k", 0.0)
    assert (first.text, second.text) == ("shirt 0 0", "shirt 0 1")
    assert first.boxes == second.boxes == ((1.5, 2.0, 10.25, 9.0),)
    assert first.size == (WIDTH, HEIGHT)
    assert first.image.path == tmp_path / "train2014" / "COCO_train2014_000000581857.jpg"
    assert first.location == f"{tmp_path}/refs(unc).p[0]"


def test_splits_are_read_together_and_phrases_remember_their_split(official):
    found = read_phrases(official("val", "testA"), "k", 0.0)
    assert [(phrase.text, phrase.grain) for phrase in found] == [
        (f"shirt {n} {k}", grain) for n, grain in ((1, "val"), (2, "testA"), (3, "testA")) for k in range(2)
    ]
    assert {phrase.image.path.stem[-6:] for phrase in found} == {"581857", "581858"}


PYTHON_2 = (
    b"\x80\x02]q\x00}q\x01(U\x05splitq\x02U\x05trainq\x03U\x06ann_idq\x04J\x0e<\x1a\x00U\x08image_idq\x05"
    b"\x8a\x04\xe1\xe0\x08\x00U\tsentencesq\x06]q\x07(}q\x08U\x04sentq\tX\x05\x00\x00\x00caf\xc3\xa9q\ns"
    b"}q\x0bh\tU\x04caf\xe9seua."
)
"""``pickle.dumps(refs, 2)`` of Python 2: ``str`` is a byte string (opcode U), here in Latin-1, and ``long`` is LONG1."""


def test_a_python_2_pickle_is_read(official, tmp_path):
    config = official("train")
    (tmp_path / "refs(unc).p").write_bytes(PYTHON_2)
    found = read_phrases(config, "k", 0.0)
    assert [(phrase.text, phrase.boxes[0]) for phrase in found] == [("café", (1.5, 2.0, 10.25, 9.0))] * 2


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_with_code_is_rejected_without_executing_it(official, tmp_path, protocol):
    ran = tmp_path / "ran"
    refs, _ = refcoco()
    config = official("train", refs=[*refs, {"split": Trap(ran)}], protocol=protocol)
    with pytest.raises(UserError) as error:
        read_phrases(config, "data.train", 0.0)
    message = str(error.value)
    assert message == OneLine("data.train.refs", config.refs, "pickle")
    assert message.endswith(", but only plain data is allowed")
    assert "\n" not in message
    assert not ran.exists()
    pickle.loads(Path(config.refs).read_bytes())
    assert ran.exists(), "the pickle would have executed code"


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(refcoco()[0])[:-40], b"\x80\x02}q\x00b."])
def test_a_damaged_pickle_is_reported_in_one_line(tmp_path, content):
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(UserError, match=naming("k", f"{tmp_path}/refs.p", "pickle")):
        read_plain_pickle(str(tmp_path / "refs.p"), "k")


def test_missing_and_wrong_files_are_reported_with_their_key(official, tmp_path):
    config = official("val")
    for key in ("refs", "instances"):
        gone = config.model_copy(update={key: "gone"})
        with pytest.raises(UserError, match=naming(f"data.train.{key}", "gone")):
            read_phrases(gone, "data.train", 0.0)
    with pytest.raises(UserError, match=naming("data.train.refs", "references")):
        read_phrases(official("val", refs={"a": 1}), "data.train", 0.0)
    for wrong in ([], {"annotations": []}, {"annotations": [{"id": 1}], "images": []}):
        with pytest.raises(UserError, match=naming("data.train.instances", "COCO")):
            read_phrases(official("val", instances=wrong), "data.train", 0.0)


def test_a_missing_split_is_reported_with_the_existing_splits(official):
    with pytest.raises(UserError, match=naming("testB, test", "train (1), val (1), testA (2)")):
        read_phrases(official("val", "testB", "test"), "k", 0.0)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"ann_id": None}, "missing key"),
        ({"ann_id": 5}, "missing key"),
        ({"image_id": 5}, "missing key"),
        ({"image_id": "581858"}, "wrong type"),
        ({"sentences": []}, "empty text"),
        ({"sentences": [{"sent": " "}]}, "empty text"),
        ({"sentences": [{"raw": "a"}]}, "empty text"),
        ({"sentences": ["a", {"sent": None}]}, "empty text"),
        ({"sentences": None}, "missing key"),
    ],
)
def test_an_unusable_reference_is_reported_or_skipped(official, change, fragments):
    refs, _ = refcoco()
    refs[2] |= change
    config = official("testA", refs=refs)
    with pytest.raises(UserError, match=naming("evaluation.test.a", "1 of 2", f"1 {fragments}")) as error:
        read_phrases(config, "evaluation.test.a", 0.0)
    assert f"(first: {config.refs}[2]: " in str(error.value)
    assert len(read_phrases(config, "data.train", 0.5)) == 2


@pytest.mark.parametrize(
    ("bbox", "fragments"),
    [
        ([35, 0, 10, 5], "box outside image"),
        ([0, -5, 10, 5], "box outside image"),
        ([3, 3, 0, 5], "degenerate box"),
        ([3, 3, 5], "wrong type"),
        (None, "wrong type"),
    ],
)
def test_a_box_outside_its_image_is_reported(official, bbox, fragments):
    _, instances = refcoco()
    instances["annotations"][2]["bbox"] = bbox
    with pytest.raises(UserError, match=naming("1 of 2", f"1 {fragments}")):
        read_phrases(official("testA", instances=instances), "k", 0.0)
    assert len(read_phrases(official("val", instances=instances), "k", 0.0)) == 2, "other splits must not be affected"


def test_a_box_that_exceeds_the_image_by_less_than_a_pixel_is_clamped(official):
    _, instances = refcoco()
    instances["annotations"][2]["bbox"] = [30.5, 20.25, 10.0, 12.0]
    assert read_phrases(official("testA", instances=instances), "k", 0.0)[0].boxes[0] == (30.5, 20.25, 9.5, 11.75)


def test_a_missing_image_is_reported_by_its_coco_name(official, tmp_path):
    config = official("testA")
    (tmp_path / "train2014" / "COCO_train2014_000000581858.jpg").unlink()
    with pytest.raises(UserError, match=naming("2 of 2", "2 missing image", "COCO_train2014_000000581858.jpg")):
        read_phrases(config, "k", 0.0)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"refs": "r", "instances": "i", "splits": ["val"], "images": "p"},
        {"format": "refcoco", "refs": "r", "instances": "i", "splits": ["val"]},
        {"format": "refcoco", "refs": "r", "instances": "i", "images": "p"},
        {"format": "refcoco", "refs": "r", "splits": ["val"], "images": "p"},
        {"format": "refcoco", "annotations": "a"},
        {"annotations": "a", "refs": "r"},
        {"annotations": "a", "splits": ["val"]},
    ],
)
def test_a_split_has_either_official_files_or_annotations(values):
    with pytest.raises(
        ConfigError, match=r"format is (records|refcoco); (set|remove) (annotations|refs|instances|splits|images)"
    ):
        bind(values, GroundingSplitConfig)


@pytest.fixture
def own(tmp_path):
    """Returns a function that writes region records in our format, and an image for each."""

    def write(*records: dict, size: tuple[int, int] = (WIDTH, HEIGHT), name: str = "a.jsonl") -> GroundingSplitConfig:
        for number, record in enumerate(records):
            x, y, w, h = (round(value) for value in record.pop("painted", (0, 0, 4, 4)))
            write_picture(tmp_path / f"{number}.png", (x, y, w, h), size)
        rows = [{"image": f"{number}.png"} | record for number, record in enumerate(records)]
        text = "".join(json.dumps(row) + "\n" for row in rows) if name.endswith("l") else json.dumps(rows)
        (tmp_path / name).write_text(text)
        return GroundingSplitConfig(annotations=str(tmp_path / name))

    return write


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_own_records_give_one_phrase_per_caption_and_box(own, name):
    first = {"elems": [{"bb": [1, 2, 3, 4], "caption": ["a dog", "the dog"]}, {"bb": [5, 6, 7, 8], "caption": "a cat"}]}
    second = {"elems": [{"bb": [0, 0, 40, 32], "caption": "a star", "grain": "place"}]}
    found = read_phrases(own(first, second, name=name), "k", 0.0)
    assert [(phrase.text, phrase.boxes[0], phrase.grain) for phrase in found] == [
        ("a dog", (1, 2, 3, 4), "object"),
        ("the dog", (1, 2, 3, 4), "object"),
        ("a cat", (5, 6, 7, 8), "object"),
        ("a star", (0, 0, 40, 32), "place"),
    ]
    assert {phrase.size for phrase in found} == {(WIDTH, HEIGHT)}


def test_phrases_are_read_in_one_language_or_all(own):
    config = own({"elems": [{"bb": [1, 2, 3, 4], "caption": [{"en": "a dog", "de": "ein Hund"}, "perro"]}]})

    def texts(language: str | None) -> list[str]:
        return [phrase.text for phrase in read_phrases(config.model_copy(update={"language": language}), "k", 0.0)]

    assert texts(None) == ["a dog", "ein Hund", "perro"]
    assert texts("de") == ["ein Hund", "perro"]


def test_phrases_without_exactly_one_box_are_skipped_and_counted(own, caplog):
    one = {"bb": [1, 2, 3, 4], "caption": "a dog"}
    several, absent = {"bb": [[1, 2, 3, 4], [5, 6, 7, 8]], "caption": "two dogs"}, {"bb": [], "caption": "a zebra"}
    caplog.set_level("INFO")
    found = read_phrases(own({"elems": [several, one, absent]}, {"elems": [absent]}), "data.train", 0.0)
    assert [phrase.text for phrase in found] == ["a dog"]
    assert [OneLine("data.train", "1 phrases with several boxes", "2 without a box")] == [
        r.getMessage() for r in caplog.records
    ]
    with pytest.raises(UserError, match=naming("data.train", "no phrase", "exactly one box")):
        read_phrases(own({"elems": [several, absent]}), "data.train", 0.0)


def test_the_official_grefcoco_json_has_any_number_of_boxes(tmp_path):
    """The records have the format of ``grefs(unc).json``."""

    def reference(image: int, annotations: object, split: str, *texts: str) -> dict:
        return {
            "image_id": image,
            "ann_id": annotations,
            "split": split,
            "sentences": [{"sent": text} for text in texts],
        }

    references = [
        reference(9, [900, 901], "train", "two dogs", "both of them"),
        reference(9, [900], "train", "left dog"),
        reference(9, [-1], "train", "a zebra"),
        reference(9, [-1], "val", "a horse"),
        reference(9, [77], "train", "unknown id"),
        reference(9, [], "train", "an empty list says nothing"),
        reference(9, [True], "train", "true is not an id"),
        reference(9, [900, 900], "train", "twice the same"),
    ]
    annotations = [
        {"id": 1, "bbox": [0, 0, 5, 5]},
        {"id": 900, "bbox": [1, 2, 10, 20]},
        {"id": 901, "bbox": [30, 2, 10, 20]},
    ]
    instances = {"images": [{"id": 9, "width": WIDTH, "height": HEIGHT}], "annotations": annotations}
    (tmp_path / "grefs(unc).json").write_text(json.dumps(references))
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    write_picture(tmp_path / "COCO_train2014_000000000009.jpg", (1, 2, 10, 20))
    config = GroundingSplitConfig(
        format="refcoco",
        refs=str(tmp_path / "grefs(unc).json"),
        instances=str(tmp_path / "instances.json"),
        splits=["train"],
        images=str(tmp_path),
    )
    found = read_phrases(config, "k", 0.5, range(17))
    left, right = (1, 2, 10, 20), (30, 2, 10, 20)
    assert [(phrase.text, phrase.boxes) for phrase in found] == [
        ("two dogs", (left, right)),
        ("both of them", (left, right)),
        ("left dog", (left,)),
        ("a zebra", ()),
        ("twice the same", (left,)),
    ]
    assert [phrase.text for phrase in read_phrases(config, "k", 0.5)] == ["left dog", "twice the same"]
    with pytest.raises(UserError, match=naming("k", "3 missing key", "[77]")):
        read_phrases(config, "k", 0.0, range(17))


def test_a_set_head_reads_phrases_with_up_to_as_many_boxes_as_it_predicts(own, caplog):
    several = {"bb": [[1, 2, 3, 4], [5, 6, 7, 8]], "caption": "two dogs"}
    absent, many = {"bb": [], "caption": "a zebra"}, {"bb": [[1, 2, 3, 4]] * 3, "caption": "dogs"}
    caplog.set_level("INFO")
    found = read_phrases(own({"elems": [several, absent, many]}), "data.train", 0.0, range(3))
    assert [(phrase.text, len(phrase.boxes)) for phrase in found] == [("two dogs", 2), ("a zebra", 0)]
    assert OneLine("1 phrases with several boxes", "at most 2 boxes", "model.box_set.queries") in caplog.messages
    with pytest.raises(UserError, match=naming("data.train", "at most 2 boxes", "model.box_set.queries")):
        read_phrases(own({"elems": [many]}), "data.train", 0.0, range(3))


DOG = {"bb": [1, 2, 3, 4], "caption": "a dog"}


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"elems": [DOG, {"bb": [38, 2, 5, 4], "caption": "a cat"}]}, "box outside image"),
        ({"elems": [{"bb": [3, 2, -1, 4], "caption": "a cat"}]}, "degenerate box"),
        ({"elems": [{"bb": [3, 2, 4], "caption": "a cat"}]}, "wrong type"),
        ({"elems": [{"bb": [3, 2, 4, "4"], "caption": "a cat"}]}, "wrong type"),
        ({"elems": [DOG | {"caption": ""}]}, "empty text"),
        ({"elems": [DOG | {"caption": ["a dog", " "]}]}, "empty text"),
        ({"elems": [DOG | {"caption": []}]}, "empty text"),
        ({"elems": [DOG | {"caption": None}]}, "missing key"),
        ({"elems": []}, "empty text"),
        ({"elems": None}, "missing key"),
        ({"image": "gone.png"}, "missing image"),
        ({"image": None}, "missing key"),
    ],
)
def test_an_unusable_own_record_is_reported_or_skipped(own, change, fragments):
    config = own({"elems": [DOG]}, {"elems": [DOG]} | change)
    with pytest.raises(UserError, match=naming("evaluation.test.a", "1 of 2", f"1 {fragments}")) as error:
        read_phrases(config, "evaluation.test.a", 0.0)
    assert f"(first: {config.annotations}:2: " in str(error.value)
    assert [phrase.text for phrase in read_phrases(config, "data.train", 0.5)] == ["a dog"]


def test_a_file_that_is_not_an_image_is_reported(own, tmp_path):
    config = own({"elems": [DOG]})
    (tmp_path / "0.png").write_text("no picture")
    with pytest.raises(UserError, match="1 unreadable image "):
        read_phrases(config, "k", 0.0)


@pytest.fixture
def batches(tokenizer, own):
    """Batches of phrases about 64 x 64 images, in which the box is white on black."""

    def make(*elems: tuple[str, tuple[float, ...]], batch_size: int = 1, seed: int = 0, size: int = 64, **options):
        records = [{"elems": [{"bb": list(box), "caption": text}], "painted": box} for text, box in elems]
        config = own(*records, size=(64, 64))
        data = GroundingDataConfig(train=config, batch_size=batch_size, **{"augment": PLAIN, **options})
        return GroundingBatches(data, tokenizer=tokenizer, image_size=size, seed=seed)

    return make


def edges(box: torch.Tensor, size: int) -> list[float]:
    """Converts a relative box (centre and size) to its left, top, right and bottom edges in pixels."""
    cx, cy, w, h = (box.double() * size).tolist()
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def test_an_image_without_a_box_is_cropped_around_the_relative_box_of_another_image(tokenizer, tmp_path):
    """The left edge of the wide image's box is at 0.4 of its width, and the top edge at 0.7 of its height."""
    for name, size in (("wide.png", (60, 20)), ("high.png", (20, 60))):
        write_picture(tmp_path / name, (0, 0, 1, 1), size)
    elems = [[{"bb": [24, 14, 30, 5], "caption": "a dog"}], [{"bb": [], "caption": "a zebra"}]]
    rows = [{"image": name, "elems": each} for name, each in zip(("wide.png", "high.png"), elems, strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = GroundingDataConfig(train=GroundingSplitConfig(annotations=str(tmp_path / "a.jsonl")), batch_size=2)
    made = GroundingBatches(data, ANY_NUMBER, tokenizer=tokenizer, image_size=32, seed=0)
    [box] = made._boxes_of_another_phrase((20, 60), np.random.default_rng(0))
    assert box == pytest.approx((8, 42, 10, 15))
    assert made.make(0).present.sum() == 1


BOXES = [(10, 20, 30, 12), (0, 0, 8, 8), (50, 40, 14, 24), (0, 5, 64, 9), (31, 31, 2, 2)]


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("box", BOXES)
def test_the_crop_contains_the_whole_box_and_the_target_follows_it(batches, box, flip):
    """The target must equal the white rectangle found in the view, with its whole area; a clipped box would have less.

    The edge is where the brightness is half-way between black and white. Resizing blurs the edge but does not shift it.
    """
    size = 64
    maker = batches(("a dog", box), augment=PLAIN.model_copy(update={"flip": flip}), size=size)
    shapes = set()
    for number in range(60):
        batch = maker.make(number)
        assert batch.valid.all()
        target = edges(batch.boxes_cxcywh[0, 0], size)
        white = batch.pixels[0, 0] >= 128
        rows, columns = white.any(dim=1).nonzero().flatten(), white.any(dim=0).nonzero().flatten()
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert [float(edge) for edge in found] == pytest.approx(target, abs=1), number
        assert min(target) >= -1e-4
        assert max(target) <= size + 1e-4
        # The side of the crop, computed from the size of the target, is a whole number of pixels.
        for side, edge in ((box[2], target[2] - target[0]), (box[3], target[3] - target[1])):
            crop = side * size / edge
            assert crop == pytest.approx(round(crop), abs=1e-3)
            assert side <= round(crop) <= 64
        shapes.add(tuple(round(edge, 3) for edge in target))
    assert len(shapes) > 20, "the crops must differ"


def test_without_a_crop_the_target_is_the_box_in_the_whole_image(batches):
    maker = batches(("a dog", (16, 8, 32, 16)), crop=False)
    for number in range(5):
        assert maker.make(number).boxes_cxcywh.tolist() == [[[0.5, 0.25, 0.5, 0.25]]]


@pytest.mark.parametrize("text", ["the left dog", "dog on the right", "leftmost dog", "the dog", "a bright dog"])
@pytest.mark.parametrize("careful", [True, False])
def test_a_flip_mirrors_box_and_pixels_unless_the_phrase_names_a_side(batches, text, careful):
    always = PLAIN.model_copy(update={"flip": 1.0})
    maker = batches((text, (8, 16, 16, 32)), crop=False, augment=always, careful_flip=careful)
    batch = maker.make(0)
    stays = careful and text not in ("the dog", "a bright dog")
    assert batch.boxes_cxcywh.tolist() == [[[0.25 if stays else 0.75, 0.5, 0.25, 0.5]]]
    white = (batch.pixels[0, 0] == 255).any(dim=0).nonzero().flatten()
    assert white.tolist() == list(range(8, 24) if stays else range(40, 56))


def test_careful_flips_are_the_default_as_in_the_released_code():
    assert GroundingDataConfig.model_fields["careful_flip"].default is True
    assert GroundingDataConfig.model_fields["crop"].default is True


def test_colour_augmentation_moves_nothing(batches):
    maker = batches(("a dog", (16, 8, 32, 16)), crop=False, augment=RegionAugmentConfig(flip=0, rand_augment_ops=3))
    for number in range(30):
        pixels = maker.make(number).pixels[0, 0].float()
        assert pixels[9:23, 17:47].min() > pixels[25:, :].max()


def test_an_epoch_has_every_phrase_once_with_its_box(batches, tokenizer):
    words = ("one", "two", "three", "four", "five")
    maker = batches(*[(f"number {w}", b) for w, b in zip(words, BOXES, strict=True)], crop=False, batch_size=2)
    assert maker.stream_sizes == {"phrases": 5}
    seen = []
    for number in range(5):
        batch = maker.make(number)
        for row in range(2):
            text = tokenizer.decode(batch.text.ids[row][batch.text.mask[row]], skip_special_tokens=True)
            word = words.index(text.split()[1])
            x, y, w, h = BOXES[word]
            assert edges(batch.boxes_cxcywh[row, 0], 64) == pytest.approx([x, y, x + w, y + h], abs=1e-4)
            seen.append(word)
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))


def test_a_batch_depends_only_on_seed_and_index(batches):
    options = {"augment": RegionAugmentConfig(), "batch_size": 3}
    phrases = [("a dog", box) for box in BOXES]
    maker = batches(*phrases, **options)
    for number in (4, 0, 2, 0):
        one, other = maker.make(number), batches(*phrases, **options).make(number)
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.boxes_cxcywh, other.boxes_cxcywh)
        assert one.records == other.records
    assert not torch.equal(maker.make(0).boxes_cxcywh, batches(*phrases, seed=1, **options).make(0).boxes_cxcywh)


def test_an_image_damaged_or_changed_after_the_check_is_an_invalid_row(batches, tmp_path):
    phrases = [("a dog", box) for box in BOXES]
    maker = batches(*phrases, batch_size=5)
    (tmp_path / "1.png").write_bytes(b"no picture")
    write_picture(tmp_path / "3.png", (0, 0, 4, 4), size=(60, 64))
    batch = maker.make(0)
    assert batch.valid.sum() == 3
    assert sorted((b.reason, b.place.rpartition(":")[2]) for b in batch.broken) == [
        ("unreadable image", "2"),
        ("unreadable image", "4"),
    ]
    assert (batch.pixels[~batch.valid] == 0).all()
    assert batch.boxes_cxcywh[~batch.valid].tolist() == [[[0.5, 0.5, 1, 1]]] * 2
    assert (batch.read, len(batch.records)) == (5, 3)


def phrases_of(maker: GroundingBatches, tokenizer, count: int) -> list[tuple[int, str, bool]]:
    """The line of the record, the phrase, and whether it has a box, of each example of the first batches."""
    seen = []
    for number in range(count):
        batch = maker.make(number)
        for row, record in enumerate(batch.records):
            text = tokenizer.decode(batch.text.ids[row][batch.text.mask[row]], skip_special_tokens=True)
            seen.append((int(record.rpartition(":")[2]), text, bool(batch.present[row].any())))
    return seen


def test_a_share_of_the_phrases_is_replaced_by_phrases_of_other_images_without_a_box(tokenizer, own):
    words = ["dog", "red", "cat", "dog", "blue"]  # two images contain a dog
    train = own(*({"elems": [{"bb": [4, 4, 8, 8], "caption": word}]} for word in words))
    options = {"train": train, "batch_size": 5, "augment": PLAIN, "crop": False}
    makers = {
        share: GroundingBatches(
            GroundingDataConfig(absent=share, **options), ANY_NUMBER, tokenizer=tokenizer, image_size=32, seed=0
        )
        for share in (0.0, 0.4)
    }
    plain, replaced = (phrases_of(maker, tokenizer, 120) for maker in makers.values())
    assert all(present and text == words[line - 1] for line, text, present in plain)
    assert all(present == (text == words[line - 1]) for line, text, present in replaced)
    assert np.mean([not present for *_, present in replaced]) == pytest.approx(0.4, abs=0.05)
    assert torch.equal(makers[0.4].make(7).text.ids, makers[0.4].make(7).text.ids)


def test_with_replay_each_data_set_gets_absent_phrases_of_the_other(tokenizer, own, tmp_path):
    new, earlier = ["dog", "cat"], ["red", "blue", "dog"]
    sets = []
    for name, words in (("new", new), ("earlier", earlier)):
        sets.append(own(*({"elems": [{"bb": [4, 4, 8, 8], "caption": word}]} for word in words), name=f"{name}.jsonl"))
    data = GroundingDataConfig(
        train=sets[0],
        replay={"share": 0.5, "train": sets[1]},
        batch_size=4,
        augment=PLAIN,
        crop=False,
        absent=0.5,
    )
    maker = GroundingBatches(data, ANY_NUMBER, tokenizer=tokenizer, image_size=32, seed=0)
    absent: dict[str, set[str]] = {"new": set(), "earlier": set()}
    for number in range(100):
        batch = maker.make(number)
        for row, record in enumerate(batch.records):
            file, _, line = record.rpartition(":")
            name = Path(file).stem
            text = tokenizer.decode(batch.text.ids[row][batch.text.mask[row]], skip_special_tokens=True)
            if not batch.present[row].any():
                absent[name].add(text)
                assert text != {"new": new, "earlier": earlier}[name][int(line) - 1]
    assert absent == {"new": {"red", "blue", "dog"}, "earlier": {"dog", "cat"}}


def test_absent_phrases_need_a_head_for_any_number_of_boxes():
    with pytest.raises(UserError, match=naming("data.absent", "set model.box_set")):
        load_config("configs/demo/grounding.yaml", ["data.absent=0.2"], find_task("grounding").load().config)
