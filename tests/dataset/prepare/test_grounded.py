"""Grounded annotations whose images are files: small files in the official formats, and expected records written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataset.config import GroundingSplitConfig
from dataset.prepare import line_shards
from dataset.prepare.to_odvg import to_odvg
from dataset.tasks.grounding import read_phrases
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, image, parsed_records, prepared, write
from tests.dataset.prepare.set_errors import files_left_in, one_line
from tests.dataset.prepare.test_laion import parquet
from tests.messages import OneLine
from utils.errors import UserError

ALL = ("karpathy_coco", "refcoco", "refcoco+", "refcocog")


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)


@pytest.fixture
def raw(tmp_path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def lines(path: Path, rows: list[Any]) -> None:
    write(path, "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))


def row(name: str, **parts: Any) -> dict[str, Any]:
    return {"filename": name, "height": 48, "width": 64, **parts}


def objects(*instances: tuple[Any, ...]) -> dict[str, Any]:
    keys = ("bbox", "label", "category")
    return {"instances": [dict(zip(keys, each, strict=False)) for each in instances]}


def test_odvg_lines_become_one_element_per_phrase_with_all_its_boxes(raw, out, monkeypatch):
    """Pitfalls: corners that are swapped, outside the image, not finite, or of the wrong type; phrases with one, several and no
    boxes; a phrase in parts and an empty one; null; a repeated line; invalid JSON; labels without a category; images that are
    missing or have another size."""
    image(raw / "pictures/a/1.jpg")
    image(raw / "pictures/b/1.jpg", size=(128, 96))
    image(raw / "pictures/b/square.jpg", size=(50, 50))
    grounding = {
        "caption": "Two dogs, and “a hat”.",
        "regions": [
            {"bbox": [[1, 2, 11, 22], [30, 2, 40, 22], [30, 2, 40.2, 22]], "phrase": "Two dogs"},
            {"bbox": [5, 5, 15.555, 15], "phrase": ["a", "hat"], "tokens_positive": [[10, 15]]},
            {"bbox": [], "phrase": "a zebra"},
            {"bbox": [20, 5, 10, 15], "phrase": "swapped"},
            {"bbox": [70, 5, 90, 15], "phrase": "outside"},
            {"bbox": [1, 2, 3], "phrase": "three numbers"},
            {"bbox": None, "phrase": "null"},
            {"bbox": [5, 5, 15, 15], "phrase": " . "},
            {"bbox": [5, 5, 15, 15], "phrase": None},
            "no object",
        ],
    }
    plain = row("b/1.jpg", detection=objects([[10, 10, 30, 30], 0, "traffic_light"], [[10, 10, 80, 30], 1, "dog"]))
    rows: list[Any] = [
        row("a/1.jpg", grounding=grounding),
        plain,
        "{broken",
        plain,
        row("c/missing.jpg", grounding=grounding),
        row("b/square.jpg", detection=objects([[1, 1, 9, 9], 0, "dog"])),
        {"height": 48, "width": 64, "detection": objects()},
        row("a/1.jpg", detection={"instances": None}),
        '{"filename": "a/1.jpg", "height": 48, "width": NaN, "detection": {"instances": []}}',
        "[1, 2]",
    ]
    lines(raw / "train_odvg.jsonl", rows)
    labelled = [row("a/1.jpg", detection=objects([[1, 1, 9, 9], 7], [[1, 1, 9, 9], 8], [[1, 1, float("nan"), 9], 7]))]
    lines(raw / "od/things_train.json", labelled)
    write(raw / "od/things_label_map.json", {"7": "Person"})
    write(raw / "od/other_label_map.json", {"7": "wrong"})
    error = one_line("odvg", raw, out)
    assert error == OneLine("odvg", "wrong type", "bad json", "missing key")
    prepared("odvg", raw, out, max_broken=1.0)
    assert counted(out / "odvg") == {
        "read": {"images": 11, "objects": 6, "phrases": 10},
        "written": {"records": 3, "images": 3, "objects": 3, "phrases": 3},
        "fixed": {"box clamped": 1, "box scaled to the stored image": 2},
        "skipped": {
            "duplicate box": 1,
            "degenerate box": 1,
            "box outside image": 1,
            "wrong type": 8,
            "empty text": 1,
            "bad json": 1,
            "duplicate row": 1,
            "missing image": 1,
            "image of another size": 1,
            "missing key": 1,
            "unknown category": 1,
            "image without boxes": 1,
        },
    }
    person, first, second = parsed_records(out / "odvg")
    assert person["elems"] == [{"caption": "person", "bb": [1, 1, 8, 8], "grain": "object"}]
    assert first == {
        "image": "../../raw/pictures/a/1.jpg",
        "caption": ["two dogs and “a hat”"],
        "elems": [
            {"caption": "two dogs", "bb": [[1, 2, 10, 20], [30, 2, 10, 20]], "grain": "region"},
            {"caption": "a hat", "bb": [5, 5, 10.55, 10], "grain": "region"},
            {"caption": "a zebra", "bb": [], "grain": "region"},
        ],
    }
    assert second["elems"] == [
        {"caption": "traffic light", "bb": [20, 20, 40, 40], "grain": "object"},
        {"caption": "dog", "bb": [20, 20, 108, 40], "grain": "object"},
    ]


def test_held_out_images_are_removed_from_the_files_of_any_set(raw, out):
    image(raw / "train2017/000000000009.jpg")
    image(raw / "val2017/000000000042.jpg")
    detection = objects([[1, 1, 9, 9], 0, "dog"])
    lines(
        raw / "coco.jsonl",
        [row("000000000009.jpg", detection=detection), row("000000000042.jpg", detection=detection)],
    )
    assert one_line("odvg", raw, out) == OneLine(
        "000000000009.jpg", "dataset_coco.json", "refs(unc).p", "--held-out", "--without karpathy_coco"
    )
    official.karpathy(raw / "coco")
    official.references(raw)
    prepared("odvg", raw, out)
    assert [record["image"] for record in parsed_records(out / "odvg")] == ["../../raw/train2017/000000000009.jpg"]
    assert counted(out / "odvg")["skipped"] == {"held out by COCO (Karpathy) test": 1}


def test_a_folder_without_odvg_files_is_reported(raw, out):
    write(raw / "records.jsonl", {"image": "a.jpg", "caption": "a dog"})
    assert one_line("odvg", raw, out) == OneLine("filename", "detection", "grounding")
    assert files_left_in(out) == []


def lvis(root: Path) -> None:
    """LVIS: coco_url instead of file_name, synonyms, categories that are absent or not exhaustive, an image without boxes."""
    images = [
        {"id": 9, "width": 64, "height": 48, "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg"},
        {"id": 25, "width": 64, "height": 48, "coco_url": "http://images.cocodataset.org/train2017/000000000025.jpg"},
        {"id": 30, "width": 64, "height": 48, "coco_url": "http://images.cocodataset.org/train2017/000000000030.jpg"},
    ]
    absent = {9: [3, 1, 99], 25: [], 30: []}
    images = [{**each, "neg_category_ids": absent[each["id"]], "not_exhaustive_category_ids": [1]} for each in images]
    categories = [
        {"id": 1, "name": "bow_(weapon)", "synset": "bow.n.04", "synonyms": ["bow_(weapon)"], "def": "a weapon"},
        {"id": 2, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can", ""], "def": "…", "frequency": "c"},
        {"id": 3, "name": "zebra", "synonyms": ["zebra"], "def": "…"},
    ]
    boxes: list[tuple[int, Any, Any]] = [
        (9, [1.0, 2.0, 10.0, 20.0], 1),
        (9, [30.0, 2.0, 10.0, 20.0], 1),
        (9, [5.5, 5.5, 90.0, 10.0], 2),
        (9, [5, 5, -3, 9], 2),
        (9, [5, 5, 3, 9], 77),
        (9, None, 2),
        (25, [5, 5, 9, 9], 2),
        (4, [5, 5, 9, 9], 2),
    ]
    annotations = [
        {"id": n, "image_id": i, "bbox": box, "category_id": c, "area": 1.0, "segmentation": [[1, 2, 3, 4, 5, 6]]}
        for n, (i, box, c) in enumerate(boxes)
    ]
    write(root / "lvis_v1_train.json", {"images": images, "annotations": annotations, "categories": categories})


def test_lvis_synonyms_become_alternatives_and_absent_categories_phrases_without_boxes(raw, out, monkeypatch):
    official.karpathy(raw / "coco")
    official.references(raw)
    image(raw / "train2017/000000000009.jpg")
    image(raw / "train2017/000000000025.jpg")
    lvis(raw)
    prepared("lvis", raw, out, max_broken=0.2)
    [record] = parsed_records(out / "lvis")
    assert record == {
        "image": "../../raw/train2017/000000000009.jpg",
        "elems": [
            {
                "caption": "bow weapon",
                "bb": [[1, 2, 10, 20], [30, 2, 10, 20]],
                "grain": "object",
                "exhaustive": False,
            },
            {"caption": ["aerosol can", "spray can"], "bb": [5.5, 5.5, 58.5, 10], "grain": "object"},
            {"caption": "zebra", "bb": [], "grain": "object"},
        ],
    }
    assert counted(out / "lvis") == {
        "read": {"objects": 8, "images": 3},
        "written": {"records": 1, "images": 1, "objects": 3, "absent phrases": 1},
        "fixed": {"box clamped": 1},
        "skipped": {
            "empty text": 1,
            "unknown image": 1,
            "degenerate box": 1,
            "unknown category": 2,
            "wrong type": 1,
            "held out by COCO (Karpathy) val": 1,
            "held out by RefCOCO testA": 1,
        },
    }


def test_instances_may_be_split_over_several_files(raw, out):
    for name, folder in (("train", "birds"), ("val", "fish")):
        image(raw / f"photographs/{folder}/1.jpg", size=(640, 480) if folder == "fish" else (64, 48))
        content = {
            "images": [{"id": 1, "file_name": f"{folder}/1.jpg", "width": 64, "height": 48}],
            "annotations": [
                {"image_id": 1, "category_id": 1, "segmentation": {}, "iscrowd": 1},
                {"image_id": 1, "bbox": [4, 5, 6, 7], "category_id": 1},
                {"image_id": 1, "bbox": [14, 5, 6, 7], "category_id": 1, "iscrowd": 0},
                {"image_id": 1, "bbox": [0, 0, 60, 40], "category_id": 1, "iscrowd": 1},
            ],
            "categories": [{"id": 1, "name": f"{folder}_of_a_kind", "supercategory": "animal"}],
        }
        write(raw / f"{name}.json", content)
    write(raw / "captions.json", {"images": [], "annotations": [{"image_id": 1, "caption": "a bird"}]})
    write(raw / "list.json", [{"bbox": [1, 2, 3, 4]}])
    write(raw / "broken.json", "{")
    prepared("instances", raw, out)
    birds, fish = parsed_records(out / "instances")
    assert birds["elems"] == [{"caption": "birds of a kind", "bb": [[4, 5, 6, 7], [14, 5, 6, 7]], "grain": "object"}]
    assert fish["elems"][0]["bb"] == [[40, 50, 60, 70], [140, 50, 60, 70]]
    assert counted(out / "instances") == {
        "read": {"objects": 8, "images": 2},
        "written": {"records": 2, "images": 2, "objects": 4},
        "fixed": {"box scaled to the stored image": 2},
        "skipped": {"crowd": 4},
    }


def finehard(root: Path) -> None:
    """Pitfalls: swapped and absolute boxes; five numbers; negatives that repeat the text, are empty or have no flag; a repeated
    row; null."""
    negatives = {"0": "a cat on the Grass", "1": "a dog on the grass", "2": " ", "3": "a cat on the grass"}
    dog = {"short_expr": "A dog on the grass", "long_expr": "A dog. It lies on the grass."}
    rows = [
        {
            "f_path": "grit-20m/data-12m/coyo_image_0/00000/000000001.jpg",
            "caption": "A dog &amp; a hat.\nIt is a sunny day, and nobody is there.",
            "short_caption": "A dog and a hat.",
            "bbox_info": [
                {**dog, "bbox": [0.25, 0.5, 0.75, 1.0, 0.9], "flag_short_neg": 1, "short_expr_negs": negatives},
                {**dog, "bbox": [0.25, 0.5, 0.75, 1.0, 0.8], "flag_short_neg": 0},
                {"short_expr": "a hat", "long_expr": None, "bbox": [0, 0, 0.5, 0.5, 0.9], "flag_short_neg": 0},
                {**dog, "bbox": [0.75, 0.5, 0.25, 1.0, 0.9], "flag_short_neg": 0},
                {**dog, "bbox": [10, 10, 30, 30, 0.9], "flag_short_neg": 0},
                {"short_expr": "", "long_expr": "", "bbox": [0, 0, 0.5, 0.5, 0.9], "flag_short_neg": 0},
                {**dog, "bbox": None, "flag_short_neg": 0},
                "no object",
            ],
        },
        {"f_path": "grit-20m/data-12m/coyo_image_1/00000/000000001.jpg", "caption": None, "bbox_info": []},
        {"f_path": "grit-20m/data-12m/coyo_image_0/00000/000000001.jpg", "bbox_info": []},
        {"f_path": "grit-20m/data-12m/coyo_image_2/00000/000000001.jpg", "bbox_info": []},
        {"f_path": None, "bbox_info": []},
        {"f_path": "grit-20m/data-12m/coyo_image_1/00000/000000002.jpg", "bbox_info": None},
    ]
    write(root / "jsonfiles/2024-12-06_results.json", rows)
    write(root / "url2key_jsons/url2key_coyo_image_0.json", {"http://a/1.jpg": "000000001"})
    image(root / "data/grit-12m/coyo_image_0/00000/000000001.jpg")
    image(root / "data/grit-12m/coyo_image_1/00000/000000001.jpg", size=(20, 20))
    (root / "data/grit-12m/coyo_image_1/00000/000000002.jpg").write_bytes(b"no image")


def test_finehard_has_long_captions_and_hard_negatives(raw, out, monkeypatch):
    finehard(raw)
    prepared("finehard", raw, out, max_broken=1.0)
    [record] = parsed_records(out / "finehard")
    assert record == {
        "image": "../../raw/data/grit-12m/coyo_image_0/00000/000000001.jpg",
        "caption": ["a dog and a hat"],
        "long_caption": "A dog & a hat. It is a sunny day, and nobody is there.",
        "elems": [
            {
                "caption": "a dog on the grass",
                "bb": [16, 24, 32, 24],
                "grain": "region",
                "long_caption": "A dog. It lies on the grass.",
                "hard_negatives": ["a cat on the grass"],
            },
            {"caption": "a hat", "bb": [0, 0, 32, 24], "grain": "region"},
        ],
    }
    assert counted(out / "finehard") == {
        "read": {"images": 6, "boxes": 8},
        "written": {"records": 1, "images": 1, "boxes": 2, "hard negatives": 1},
        "fixed": {},
        "skipped": {
            "duplicate text": 1,
            "empty text": 2,
            "hard negative equal to the text": 1,
            "duplicate box": 1,
            "degenerate box": 1,
            "box outside image": 1,
            "wrong type": 2,
            "image without boxes": 1,
            "duplicate row": 1,
            "missing image": 1,
            "missing key": 1,
            "unreadable image": 1,
        },
    }


def reference(image_id: Any, ann_id: Any, split: Any, *sentences: Any) -> dict[str, Any]:
    message = [{"sent": text, "raw": text, "sent_id": 0, "tokens": []} for text in sentences]
    name = f"COCO_train2014_{image_id!s:>012}_0.jpg"
    return {
        "ref_id": 0,
        "image_id": image_id,
        "ann_id": ann_id,
        "category_id": [1],
        "file_name": name,
        "split": split,
        "sentences": message,
        "sent_ids": [0],
    }


def grefcoco(root: Path) -> None:
    """Pitfalls: a single id without a list; no target; a box outside the image; unknown ids; an id of another image; an image in
    both splits; an empty text."""
    references: list[Any] = [
        reference(9, [900, 901], "train", "Two dogs", "two dogs", "both of them"),
        reference(9, [901, 900], "train", "the pair"),
        reference(9, 900, "train", "left dog"),
        reference(9, [-1], "train", "A zebra"),
        reference(9, [900, 902], "train", "one is outside"),
        reference(9, [77], "train", "unknown id"),
        reference(9, [[900]], "train", "a list in a list"),
        reference(9, [900, 7300], "train", "one of another image"),
        reference([9], [900], "train", "no image id"),
        reference(9, [901], "train", " "),
        reference(73, [7300], "train", "also in val"),
        reference(73, [7300], "val", "The one"),
        reference(73, [7300, 7301], "val", "Both.", ""),
        reference(73, [-1], "testA", "nobody"),
        reference(9, [-1], None, "no split"),
        "no object",
    ]
    references[-2]["image_id"] = 25
    write(root / "grefcoco/grefs(unc).json", references)
    boxes = {
        900: [1, 2, 10, 20],
        901: [30, 2, 10, 20],
        902: [90, 2, 10, 20],
        7300: [1, 2, 3, 4],
        7301: [5, 6, 7, 8],
    }
    annotations = [{"id": n, "image_id": n // 100, "bbox": box} for n, box in boxes.items()]
    images = [{"id": n, "width": 64, "height": 48, "file_name": "x"} for n in (9, 25, 73)]
    write(root / "grefcoco/instances.json", {"images": images, "annotations": annotations})


def test_grefcoco_has_expressions_for_several_objects_and_for_none(raw, out, monkeypatch):
    official.karpathy(raw / "coco")
    official.references(raw)
    grefcoco(raw)
    image(raw / "train2014/COCO_train2014_000000000009.jpg")
    prepared("grefcoco", raw, out, max_broken=1.0)
    [record] = parsed_records(out / "grefcoco")
    assert record["image"] == "../../raw/train2014/COCO_train2014_000000000009.jpg" and record["coco_id"] == 9
    assert record["elems"] == [
        {
            "caption": ["two dogs", "both of them", "the pair"],
            "bb": [[1, 2, 10, 20], [30, 2, 10, 20]],
            "grain": "region",
        },
        {"caption": ["left dog"], "bb": [1, 2, 10, 20], "grain": "region"},
        {"caption": ["a zebra"], "bb": [], "grain": "region"},
    ]
    assert counted(out / "grefcoco") == {
        "read": {"references": 16, "images": 1},
        "written": {"records": 1, "images": 1, "boxes": 3, "phrases": 4, "absent phrases": 1},
        "fixed": {},
        "skipped": {
            "missing key": 2,
            "annotation of another image": 1,
            "wrong type": 2,
            "not in the training split": 4,
            "held out by gRefCOCO val": 1,
            "duplicate text": 1,
            "box outside image": 1,
            "empty text": 1,
        },
    }


def test_grefcoco_for_evaluation_is_one_file_per_split(raw, out, monkeypatch):
    grefcoco(raw)
    prepared("grefcoco_eval", raw, out, max_broken=1.0)
    assert sorted(path.name for path in (out / "grefcoco_eval").glob("*.jsonl")) == ["testA.jsonl", "val.jsonl"]
    assert lines_of(out / "grefcoco_eval/val.jsonl") == [
        {
            "image": "COCO_train2014_000000000073.jpg",
            "elems": [{"caption": ["The one"], "bb": [1, 2, 3, 4], "grain": "region"}],
            "coco_id": 73,
        },
        {
            "image": "COCO_train2014_000000000073.jpg",
            "elems": [{"caption": ["Both."], "bb": [[1, 2, 3, 4], [5, 6, 7, 8]], "grain": "region"}],
            "coco_id": 73,
        },
    ]
    [absent] = lines_of(out / "grefcoco_eval/testA.jsonl")
    assert absent["elems"] == [{"caption": ["nobody"], "bb": [], "grain": "region"}]
    assert counted(out / "grefcoco_eval")["skipped"] == {
        "missing key": 2,
        "annotation of another image": 1,
        "wrong type": 2,
        "empty text": 1,
    }


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ref_l4(root: Path) -> None:
    """Pitfalls: a box outside the image, an empty caption, a missing file name, an annotation that the review found wrong, an
    unknown image."""
    known = {"bbox_area": 1.0, "bbox_id": "o365_1", "ori_category_id": "o365_64", "is_rewrite": True, "split": "val"}
    row = {**known, "id": 1, "caption": "Within the frame, an antique camera is present.", "height": 48, "width": 64}
    row |= {"bbox": [1.25, 2.5, 10.0, 20.0], "image_id": "o365_922765", "file_name": "objects365_v2_00922765.jpg"}
    rows = [
        row,
        {**row, "bbox": [90.0, 2.5, 10.0, 20.0]},
        {**row, "caption": " "},
        {**row, "file_name": None},
        {**row, "id": 2, "caption": None},
    ]
    parquet(root / "Ref-L4/ref-l4-val.parquet", rows)
    image = {"file_name": "COCO_train2014_000000000009.jpg", "height": 48, "width": 64, "original_id": 9}
    images = [{**image, "id": n, "caption": f"person {n}", "tokens_negative": [[0, 3]]} for n in (1, 2, 3)]
    annotations = [
        {"id": n, "image_id": n, "bbox": [1, 2, 3, 4], "original_id": 900 + n, "caption_quality": int(n != 2)}
        for n in (1, 2, 3, 4)
    ]
    annotations.append({**annotations[0], "image_id": [1]})
    content = {"info": [], "images": images, "annotations": annotations, "categories": []}
    write(root / "Ref-L4/refcocos_annotation_reviewed/refcoco+_testA_reviewed.json", content)


def test_ref_l4_becomes_one_file_per_split_that_the_grounding_task_reads(raw, out, monkeypatch):
    ref_l4(raw)
    prepared("ref_l4", raw, out, max_broken=1.0)
    folder = out / "ref_l4"
    assert sorted(path.name for path in folder.glob("*.jsonl")) == ["refcoco+_testA.jsonl", "val.jsonl"]
    assert lines_of(folder / "val.jsonl") == [
        {
            "image": "objects365_v2_00922765.jpg",
            "elems": [
                {
                    "caption": "Within the frame, an antique camera is present.",
                    "bb": [1.25, 2.5, 10, 20],
                    "grain": "region",
                }
            ],
            "id": 1,
        }
    ]
    assert [each["id"] for each in lines_of(folder / "refcoco+_testA.jsonl")] == [901, 903]
    assert counted(folder) == {
        "read": {"expressions": 10},
        "written": {"records": 3, "expressions": 3},
        "fixed": {},
        "skipped": {
            "box outside image": 1,
            "empty text": 2,
            "missing key": 1,
            "found wrong by the review": 1,
            "unknown image": 2,
        },
    }
    image(raw / "unpacked/objects365_v2_00922765.jpg")
    config = GroundingSplitConfig(annotations=str(folder / "val.jsonl"), images=str(raw / "unpacked"))
    [phrase] = read_phrases(config, "evaluation", 0.0)
    assert phrase.text.startswith("Within the frame") and phrase.boxes == ((1.25, 2.5, 10, 20),)


def test_a_column_of_ref_l4_without_values_is_an_error(raw, out):
    ref_l4(raw)
    path = raw / "Ref-L4/ref-l4-val.parquet"
    pyarrow = pytest.importorskip("pyarrow")
    parquet_files = pytest.importorskip("pyarrow.parquet")
    table = parquet_files.read_table(path)
    names = table.schema.names
    empty = pyarrow.nulls(table.num_rows, pyarrow.string())
    parquet_files.write_table(table.set_column(names.index("file_name"), "file_name", empty), path)
    assert one_line("ref_l4", raw, out) == OneLine("ref-l4-val.parquet", "file_name", "missing")


def test_images_of_ref_l4_are_excluded_from_training(raw, out):
    ref_l4(raw)
    images = [
        {"id": n, "width": 64, "height": 48, "file_name": f"images/v2/patch16/objects365_v2_00{n}.jpg"}
        for n in (922765, 900002)
    ]
    annotations = [{"image_id": each["id"], "bbox": [1, 2, 3, 4], "category_id": 1} for each in images]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    write(raw / "zhiyuan_objv2_train.json", content)
    prepared("objects365", raw, out)
    assert counted(out / "objects365")["skipped"] == {"held out by Ref-L4 val": 1}


def test_records_survive_the_round_trip_through_odvg(raw, out, tmp_path, capsys):
    for name in ("a/1.jpg", "b/2.jpg"):
        image(raw / "pictures" / name)
    records = [
        {
            "image": "../../raw/pictures/a/1.jpg",
            "caption": ["a dog and two cats", "some animals"],
            "elems": [
                {"caption": ["a dog", "a brown dog"], "bb": [1, 2, 10.5, 20], "grain": "region"},
                {"caption": "two cats", "bb": [[30, 2, 10, 20], [45, 2, 10, 20]], "grain": "object"},
                {"caption": ["a zebra", "a striped horse"], "bb": [], "grain": "object"},
            ],
        },
        {
            "image": "../../raw/pictures/b/2.jpg",
            "elems": [{"caption": "ein Hütchen", "bb": [1, 2, 3, 4], "grain": "object"}],
        },
    ]
    broken: list[Any] = [
        {"image": "missing.jpg", "elems": records[0]["elems"]},
        {**records[0], "elems": [{"caption": "outside", "bb": [100, 2, 10, 20]}]},
        {**records[0], "elems": [{"caption": "", "bb": [1, 2, 10, 20]}]},
        {**records[0], "elems": [{"caption": "absent alone", "bb": []}]},
        {**records[0], "elems": None},
        {**records[0], "elems": ["no object"]},
        "{broken",
    ]
    folder = tmp_path / "made/records"
    lines(folder / "part-00000.jsonl", [*records, *broken])
    lost = {
        **records[0],
        "long_caption": "A dog.",
        "elems": [{**records[0]["elems"][0], "hard_negatives": ["a cat"], "exhaustive": False}],
    }  # type: ignore[dict-item, index]
    lines(folder / "part-00001.jsonl", [lost])
    target = raw / "odvg.jsonl"
    assert to_odvg((str(folder),), out=target) == 1
    reported = capsys.readouterr().out
    for fact in (
        "3 lines",
        "1 long_caption, 1 hard_negatives, 1 exhaustive",
        "2 missing key",
        "1 wrong type",
        "1 empty text",
        "1 missing image",
        "1 box outside image",
    ):
        assert fact in reported
    first, second, _ = lines_of(target)
    assert first["filename"] == "pictures/a/1.jpg" and (first["width"], first["height"]) == (64, 48)
    assert first["grounding"]["caption"] == "a dog and two cats"
    assert [each["bbox"] for each in first["grounding"]["regions"]] == [
        [1, 2, 11.5, 22],
        [30, 2, 40, 22],
        [45, 2, 55, 22],
    ]
    for line in (first, second):
        for region in line["grounding"]["regions"]:
            [[start, end]] = region["tokens_positive"]
            assert line["grounding"]["caption"][start:end] == region["phrase"]
    prepared("odvg", raw, out)
    made = parsed_records(out / "odvg")[:2]
    assert made[0] == records[0]
    assert made[1] == {**records[1], "elems": [{"caption": "ein hütchen", "bb": [1, 2, 3, 4], "grain": "object"}]}
    with pytest.raises(UserError):
        to_odvg((), out=target)


def test_a_bad_phrase_does_not_drop_the_others_of_its_record(raw, tmp_path, capsys):
    image(raw / "1.jpg")
    good = {"caption": "a dog", "bb": [1, 2, 10, 20]}
    bad = [
        {"caption": "text as box", "bb": "1,2,3,4"},
        {"caption": "number", "bb": [1, 2, 10, 20], "long_caption": 5},
        {"caption": "outside", "bb": [100, 2, 10, 20]},
        {"caption": " ", "bb": [1, 2, 10, 20]},
        {"caption": "no box"},
    ]
    lines(raw / "a.jsonl", [{"image": "1.jpg", "caption": 5, "elems": [*bad, good]}])
    assert to_odvg((str(raw / "a.jsonl"),), out=raw / "odvg.jsonl") == 1
    [line] = lines_of(raw / "odvg.jsonl")
    assert [each["phrase"] for each in line["grounding"]["regions"]] == ["a dog"]
    reported = capsys.readouterr().out
    for fact in ("1 lines", "3 wrong type", "1 box outside image", "1 empty text", "1 missing key", "a.jsonl:1"):
        assert fact in reported


def test_missing_files_and_folders_of_to_odvg_are_reported_in_one_line(tmp_path):
    lines(tmp_path / "a.jsonl", [{}])
    here, missing = tmp_path / "a.jsonl", tmp_path / "missing"
    for records, out, images in (
        (tmp_path / "missing.jsonl", tmp_path / "out.jsonl", None),
        (missing, tmp_path / "out.jsonl", None),
        (here, tmp_path / "out.jsonl", missing),
    ):
        with pytest.raises(UserError) as refused:
            to_odvg((str(records),), out=out, images=images)
        assert str(refused.value) == OneLine("does not exist") and str(missing) in str(refused.value)
