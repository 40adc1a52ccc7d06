"""The records and counts that each data set must give for the small files in ``official``, written by hand; and held-out
images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataset.config import QuestionsConfig
from dataset.prepare import line_shards
from dataset.prepare.held_out import read_held_out
from dataset.prepare.raw_folder import RawFolder
from dataset.prepare.region_records import same_shape
from dataset.tasks.vqa import read_questions
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, image, prepared, records, write
from tests.dataset.prepare.set_errors import files_left_in, one_line, pack_entities
from tests.messages import OneLine

COCO_TEST, COCO_VAL = "held out by COCO (Karpathy) test", "held out by COCO (Karpathy) val"
FLICKR_TEST = "held out by Flickr30K (Karpathy) test"
HELD_OUT_COCO = {COCO_TEST: 1, COCO_VAL: 1, "held out by RefCOCO testA": 1, "held out by RefCOCOg val": 1}


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)


@pytest.fixture
def raw(tmp_path) -> Path:
    """All sets below one folder."""
    return official.everything(tmp_path / "raw")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


# -- the records


def coco_path(number: int) -> str:
    return f"../../raw/coco/{official.coco_name(number)}"


def test_coco_captions_become_records(raw, out):
    prepared("coco", raw, out)
    assert records(out / "coco") == [
        {"image": coco_path(number), "caption": text, "coco_id": number}
        for number in (9, 73)
        for text in (f"a tray of food {number}", "two dogs")
    ]
    assert counted(out / "coco") == {
        "read": {"captions": 18, "images": 6},
        "written": {"images": 2, "captions": 4, "records": 4},
        "fixed": {},
        "skipped": {**HELD_OUT_COCO, "duplicate text": 2},
    }
    assert (out / "coco" / coco_path(9)).is_file()


def test_coco_objects_become_regions(raw, out):
    prepared("coco", raw, out)
    assert records(out / "coco_regions") == [
        {
            "image": coco_path(number),
            "caption": [f"a tray of food {number}", "two dogs"],
            "elems": [
                {"caption": "toothbrush", "bb": [1.5, 2.25, 20, 10.5], "grain": "object"},
                {"caption": "person", "bb": [50, 40, 14, 8], "grain": "object"},
            ],
            "coco_id": number,
        }
        for number in (9, 73)
    ]
    assert counted(out / "coco_regions") == {
        "read": {"captions": 18, "objects": 30, "images": 6},
        "written": {"images": 2, "objects": 4, "records": 2},
        "fixed": {"box clamped": 2},
        "skipped": {**HELD_OUT_COCO, "crowd": 6, "box outside image": 2, "degenerate box": 2, "duplicate text": 2},
    }


def test_coco_validation_uses_karpathys_validation_images(raw, out):
    prepared("coco", raw, out)
    assert records(out / "coco_val") == [{"image": coco_path(25), "caption": ["a dog", "two cats"], "coco_id": 25}]


def vg_record(number: int, **ids: int) -> dict:
    clock = {"caption": "clock", "bb": [0, 5, 17, 30], "attributes": ["green", "tall"], "grain": "object"}
    return {
        "image": f"../../raw/vg/{'VG_100K' if number % 2 else 'VG_100K_2'}/{number}.jpg",
        "elems": [
            clock,
            {"caption": "hand", "bb": [1, 1, 5, 5], "grain": "object"},
            {"caption": "the clock is green", "bb": [0, 0, 64, 48], "grain": "region"},
            {"caption": "a wall", "bb": [60, 40, 4, 8], "grain": "region"},
        ],
        **ids,
    }


def test_visual_genome_becomes_records(raw, out):
    """Image 2 is image 42 of COCO, image 3 is 36979 of Flickr30K, and image 5 is a photograph that is also COCO's 25."""
    prepared("visual_genome", raw, out)
    assert records(out / "vg_regions") == [vg_record(1, vg_id=1), vg_record(4, vg_id=4, coco_id=9, flickr_id=7009)]
    held_out = {COCO_TEST: 1, COCO_VAL: 1, FLICKR_TEST: 1}
    assert counted(out / "vg_regions") == {
        "read": {"images": 5, "attributes": 4, "objects": 6, "regions": 8},
        "written": {"images": 2, "objects": 4, "regions": 4, "records": 2},
        "fixed": {"box clamped": 4},
        "skipped": {**held_out, "box without text": 2, "box outside image": 2, "empty text": 2},
    }
    captions = [(record["image"].rpartition("/")[2], record["caption"]) for record in records(out / "vg")]
    assert captions == [(f"{n}.jpg", text) for n in (1, 4) for text in ("the clock is green", "a wall")]
    assert counted(out / "vg")["written"] == {"images": 2, "captions": 4, "records": 4}


def test_boxes_follow_an_image_that_is_stored_at_another_size(raw, out):
    """The annotations assume 64 x 48 pixels. Image 1 is stored at half that size, and image 4 with another aspect ratio."""
    image(raw / "vg/VG_100K/1.jpg", size=(32, 24))
    image(raw / "vg/VG_100K_2/4.jpg", size=(48, 64))
    reported = prepared("visual_genome", raw, out)
    (record,) = records(out / "vg_regions")
    whole = vg_record(1, vg_id=1)
    for found, annotated in zip(record.pop("elems"), whole.pop("elems"), strict=True):
        assert found == {**annotated, "bb": [value / 2 for value in annotated["bb"]]}
    assert record == whole
    counts = counted(out / "vg_regions")
    assert counts["written"] == {"images": 1, "objects": 2, "regions": 2, "records": 1}
    assert counts["fixed"]["box scaled to the stored image"] == 4
    assert counts["skipped"]["image of another size"] == 1
    assert OneLine("48 x 64 pixels", "64 x 48") in reported.splitlines()


@pytest.mark.parametrize(
    ("annotated", "stored", "same"),
    [
        ((500, 375), (1024, 768), True),
        ((333, 500), (1000, 1501), True),
        ((800, 600), (500, 376), True),
        ((500, 375), (375, 500), False),
        ((500, 375), (512, 512), False),
    ],
)
def test_sizes_with_the_same_aspect_ratio_may_differ_by_rounding(annotated, stored, same):
    assert same_shape(annotated, stored) is same


def test_an_image_gets_captions_of_its_eight_largest_regions(raw, out):
    sides = [3, 9, 5, 7, 4, 6, 10, 8, 2, 11, 9]
    regions = [{"x": 0, "y": 0, "width": s, "height": s, "phrase": f"side {s}"} for s in sides]
    write(raw / "vg/region_descriptions.json", [{"id": 1, "regions": regions}])
    prepared("visual_genome", raw, out)
    assert [record["caption"] for record in records(out / "vg")] == [f"side {s}" for s in (11, 10, 9, 8, 7, 6, 5, 4)]
    skipped = counted(out / "vg")["skipped"]
    assert (skipped["duplicate text"], skipped["not of the largest regions"]) == (1, 2)


def test_gqa_becomes_records(raw, out):
    prepared("gqa", raw, out)
    chair = {"caption": "chair", "bb": [22, 31, 42, 8], "attributes": ["brown"], "grain": "object"}
    assert records(out / "gqa") == [{"image": "../../raw/vg/VG_100K/1.jpg", "elems": [chair], "vg_id": 1}]
    assert counted(out / "gqa") == {
        "read": {"images": 3, "objects": 2},
        "written": {"images": 1, "objects": 1, "records": 1},
        "fixed": {"box clamped": 1},
        "skipped": {COCO_TEST: 1, "unknown image": 1, "degenerate box": 1},
    }


def test_references_of_three_sets_to_one_box_are_merged(raw, out):
    prepared("refcoco", raw, out)
    element = {"caption": ["navy shirt", "the man"], "bb": [1, 2, 30, 20], "grain": "region"}
    assert records(out / "refcoco") == [{"image": coco_path(9), "elems": [element], "coco_id": 9}]
    assert counted(out / "refcoco") == {
        "read": {"references": 7, "images": 2},
        "written": {"images": 1, "boxes": 1, "phrases": 2, "records": 1},
        "fixed": {},
        "skipped": {"not in the training split": 3, "held out by RefCOCO testA": 1, "duplicate text": 3},
    }


def test_the_boxes_of_an_entities_chain_become_one_enclosing_box(raw, out):
    prepared("flickr30k_entities", raw, out)
    assert records(out / "flickr_entities") == [
        {
            "image": f"../../raw/flickr30k_entities/flickr30k-images/{official.FLICKR_TRAIN}.jpg",
            "caption": ["two young guys with shaggy hair look up", "two men stand in a yard it seems"],
            "elems": [{"caption": ["two young guys", "two men"], "bb": [2, 4, 38, 40], "grain": "region"}],
            "flickr_id": official.FLICKR_TRAIN,
        }
    ]
    assert counted(out / "flickr_entities") == {
        "read": {"images": 2, "phrases": 5},
        "written": {"phrases": 2, "images": 1, "boxes": 1, "records": 1},
        "fixed": {},
        "skipped": {FLICKR_TEST: 1, "phrase without box": 2, "not visual": 1},
    }


def test_sentences_of_entities_that_are_not_utf8_are_read(raw, out):
    path = raw / f"flickr30k_entities/Sentences/{official.FLICKR_TRAIN}.txt"
    path.write_bytes(b"[/EN#1/people Two young guys] in a caf\xe9 .\n")
    prepared("flickr30k_entities", raw, out)
    [record] = records(out / "flickr_entities")
    assert record["elems"][0]["caption"] == ["two young guys"] and record["caption"][0].startswith(
        "two young guys in a caf"
    )


# -- held-out images


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ({"coco_id": 42}, True),
        ({"coco_id": 42.0}, True),
        ({"coco_id": "42"}, True),
        ({"flickr_id": 36979}, True),
        ({"flickr_id": 7042}, True),
        ({"coco_id": 36979, "flickr_id": 42}, False),
        ({}, False),
    ],
)
def test_a_held_out_image_of_visual_genome_is_found_by_its_ids(ids, found, raw, out):
    """36979 is a Flickr id, 42 is a COCO id, and 7042 is the Flickr id of COCO's image 42."""
    write(
        raw / "vg/image_data.json",
        [{"image_id": n, "width": 64, "height": 48, **(ids if n == 1 else {})} for n in (1, 4)],
    )
    prepared("visual_genome", raw, out)
    assert [record["vg_id"] for record in records(out / "vg_regions")] == ([4] if found else [1, 4])


def test_links_are_followed_from_flickr_to_coco_and_on_to_visual_genome(raw, out):
    """Flickr30K's test image has the same URL as COCO's image 73, which has the same id as Visual Genome's image 1."""
    for name in ("captions", "instances"):
        path = raw / f"coco/annotations/{name}_val2014.json"
        values = json.loads(path.read_text())
        values["images"][1]["flickr_url"] = f"http://farm1.staticflickr.com/1/{official.FLICKR_TEST}_0a_z.jpg"
        write(path, {"annotations": values.pop("annotations"), **values})  # the images are last
    write(
        raw / "vg/image_data.json",
        [{"image_id": n, "width": 64, "height": 48, "coco_id": {1: 73}.get(n)} for n in (1, 4)],
    )
    prepared("visual_genome", raw, out)
    assert [record["vg_id"] for record in records(out / "vg_regions")] == [4]
    prepared("coco", raw, out)
    assert counted(out / "coco")["skipped"][FLICKR_TEST] == 1


def test_images_of_vqas_test_split_are_held_out(raw, out):
    write(
        raw / "vqa/v2_OpenEnded_mscoco_test2015_questions.json",
        {"info": {}, "questions": [{"image_id": 73, "question": "?"}]},
    )
    prepared("coco", raw, out)
    assert counted(out / "coco")["skipped"]["held out by VQA v2 test"] == 1


@pytest.mark.parametrize("packed", [False, True])
def test_the_splits_of_flickr30k_entities_are_held_out_too(packed, raw, out):
    """Compressed or not, the lists of ids are next to the folder of sentences."""
    write(raw / "flickr30k_entities/test.txt", f"{official.FLICKR_TRAIN}\n78\n")
    if packed:
        pack_entities(raw / "flickr30k_entities")
    message = one_line("flickr30k_entities", raw, out)
    assert message.endswith(
        "2 entries gave a record: 1 held out by Flickr30K Entities test, 1 held out by Flickr30K (Karpathy) test"
    )
    assert files_left_in(out) == []


def with_image(raw: Path, number: int) -> None:
    """Adds an image to COCO's val2014, and to Karpathy's training split."""
    path = raw / "coco/annotations/captions_val2014.json"
    values = json.loads(path.read_text())
    name = f"COCO_val2014_{number:012}.jpg"
    values["images"].append({"id": number, "width": 64, "height": 48, "file_name": name})
    values["annotations"].append({"image_id": number, "id": 1, "caption": "a kite"})
    write(path, values)
    official.image(raw / f"coco/val2014/{name}")
    path = raw / "coco/dataset_coco.json"
    values = json.loads(path.read_text())
    values["images"].append({**values["images"][0], "cocoid": number, "filepath": "val2014", "split": "restval"})
    write(path, values)


def test_images_that_select_weights_of_vqa_v2_are_excluded_and_other_validation_images_are_kept(raw, out, tmp_path):
    with_image(raw, official.VQA_SELECTION)
    prepared("coco", raw, out)
    assert counted(out / "coco")["skipped"]["held out by VQA v2 val (5%)"] == 1
    assert {record["coco_id"] for record in records(out / "coco")} == {9, 73}
    prepared("coco", raw, tmp_path / "all", without=("vqa2_val",))
    assert {record["coco_id"] for record in records(tmp_path / "all/coco")} == {9, 73, official.VQA_SELECTION}


@pytest.mark.parametrize("source", ["questions", "captions", "karpathy"])
def test_the_configs_of_vqa_v2_select_weights_on_the_excluded_images_and_train_on_the_others(source, tmp_path):
    """The config reads exactly the excluded images, whichever official file lists val2014."""
    numbers = range(1, 401)
    questions = [{"question_id": n, "image_id": n, "question": "What is it?"} for n in numbers]
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    file = write(tmp_path / "vqa" / name, {"data_subtype": "val2014", "questions": questions})
    for n in numbers:
        image = tmp_path / f"coco/val2014/COCO_val2014_{n:012}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()

    def read(values: dict[str, Any]) -> set[str]:
        given = {"questions": str(file), "annotations": None, "images": str(tmp_path / "coco")}
        config = QuestionsConfig(**{**values, **given})
        return {f"coco:{each.question_id}" for each in read_questions(config, "k", 0.0, answered=False)}

    preset = yaml.safe_load(Path("configs/presets/vqa.yaml").read_text())
    official_files = {
        "questions": (name, {"questions": questions}),
        "captions": ("captions_val2014.json", {"images": [{"id": n} for n in numbers], "annotations": []}),
        "karpathy": (
            "dataset_coco.json",
            {
                "images": [
                    {"cocoid": n, "filepath": f, "split": "test"} for f in ("train2014", "val2014") for n in numbers
                ]
            },
        ),
    }
    listed, content = official_files[source]
    write(tmp_path / "raw" / listed, content)
    held_out = read_held_out(RawFolder([tmp_path / "raw"]), required=(), without=("karpathy_coco",))
    selected = read(preset["evaluation"]["validation"])
    assert 5 < len(selected) < 40
    assert set(held_out.split_of) == selected == read(preset["evaluation"]["test"]["held-out"])
    assert read(preset["data"]["train"][1]) == {f"coco:{n}" for n in numbers} - selected


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("valid.json", [{"question_id": "1"}]),
        ("valid.json", [{"objects": {}}]),
        ("val_balanced_questions.json", {"05451384": {"question": "Is it?"}}),
    ],
)
def test_a_question_of_gqa_without_an_image_is_an_error(file, content, raw, out):
    (raw / "gqa/val_sceneGraphs.json").unlink()
    write(raw / "gqa" / file, content)
    assert one_line("visual_genome", raw, out) == OneLine(file, "official format", "imageId")


@pytest.mark.parametrize("file", ["val_sceneGraphs.json", "val_balanced_questions.json", "valid.json"])
def test_validation_images_of_gqa_are_excluded(file, raw, out):
    (raw / "gqa/val_sceneGraphs.json").unlink()
    message = one_line("visual_genome", raw, out)
    assert message == OneLine("no val_sceneGraphs.json of GQA", "--without gqa_val")
    content = {
        "val_sceneGraphs.json": {"4": {"objects": {}}},
        "val_balanced_questions.json": {"05451384": {"imageId": "4", "question": "Is it?"}},
        "valid.json": [{"img_id": "4", "sent": "Is it?", "label": {"no": 1.0}}],
    }
    write(raw / "gqa" / file, content[file])
    prepared("visual_genome", raw, out)
    assert counted(out / "vg_regions")["skipped"]["held out by GQA val"] == 1
    assert {record["vg_id"] for record in records(out / "vg_regions")} == {1}
    prepared("coco", raw, out)
    assert {record["coco_id"] for record in records(out / "coco")} == {73}, "image 4 is COCO's image 9"


def test_a_required_file_of_held_out_images_must_exist(raw, out):
    (raw / "coco/dataset_coco.json").unlink()
    message = one_line("coco", raw, out)
    assert "no dataset_coco.json of COCO (Karpathy) below" in message
    assert "--held-out DIR" in message and "--without karpathy_coco" in message
    assert files_left_in(out) == []
    reported = prepared("coco", raw, out, without=("karpathy_coco",))
    assert {record["coco_id"] for record in records(out / "coco")} == {9, 25, 42, 73}
    assert "coco_val: not built" in reported and OneLine("vqa2", "karpathy_coco") in reported.splitlines()


def test_missing_files_that_link_held_out_images_to_other_sets_are_reported(raw, out):
    assert "not linked" not in prepared("sbu", raw, out)
    for path in [*raw.rglob("captions_*.json*"), *raw.rglob("instances_*.json*"), *raw.rglob("image_data.json*")]:
        path.unlink()
    reported = prepared("sbu", raw, out, overwrite=True)
    line = "ids of held-out images are not linked between sets: there is no "
    assert f"{line}image_data.json of Visual Genome" in reported and f"{line}captions_train2014.json and " in reported


def test_held_out_files_may_be_in_another_folder(raw, out, tmp_path):
    (tmp_path / "splits").mkdir()
    shutil.move(raw / "coco/dataset_coco.json", tmp_path / "splits/dataset_coco.json")
    prepared("visual_genome", raw, out, held_out=(tmp_path / "splits",))
    assert counted(out / "vg_regions")["skipped"][COCO_TEST] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("coco/dataset_coco.json", []),
        ("coco/dataset_coco.json", {"dataset": "coco", "images": []}),
        ("coco/dataset_flickr30k.json", {"videos": [{"split": "test"}]}),
        ("flickr30k_entities/test.txt", "\n"),
        ("flickr30k_entities/val.txt", "²\n"),
        ("coco/v2_OpenEnded_mscoco_test2015_questions.json", {"annotations": []}),
        ("coco/dataset_coco.json", {"images": [{"cocoid": 1e999, "split": "test"}]}),
    ],
)
def test_a_file_that_names_no_held_out_image_is_rejected(name, content, raw, out):
    write(raw / name, json.dumps(content) if not isinstance(content, str) else content)
    assert str(raw / name) in one_line("visual_genome", raw, out)
    assert files_left_in(out) == []
