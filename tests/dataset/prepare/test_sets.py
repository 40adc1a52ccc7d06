"""Each set's records and counts, written by hand for the files of ``official``; held-out images; other layouts; other files."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from dataset.prepare import building
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, prepared, records, write
from utils.errors import UserError

COCO_TEST, COCO_VAL = "held out by COCO (Karpathy) test", "held out by COCO (Karpathy) val"
FLICKR_TEST = "held out by Flickr30K (Karpathy) test"
HELD_OUT_COCO = {COCO_TEST: 1, COCO_VAL: 1, "held out by RefCOCO testA": 1, "held out by RefCOCOg val": 1}


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setattr(building, "in_order", official.in_this_process)


@pytest.fixture
def raw(tmp_path) -> Path:
    """All sets below one folder."""
    return official.everything(tmp_path / "raw")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def one_line(name: str, raw: Path, out: Path, **changes) -> str:
    """The error of a set that cannot be made; nothing of it is left in ``out``."""
    with pytest.raises(UserError) as error:
        prepared(name, raw, out, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir()) if out.exists() else []


# -- the records


def coco_path(number: int) -> str:
    return f"../../raw/coco/{official.coco_name(number)}"


def test_coco_captions(raw, out):
    prepared("coco", raw, out)
    assert records(out / "coco") == [
        {"image": coco_path(number), "caption": text, "coco_id": number}
        for number in (9, 73)
        for text in (f"a tray of food {number}", "two dogs")
    ]
    assert counted(out / "coco") == {
        "read": {"captions": 18, "images": 6},
        "made": {"images": 2, "captions": 4, "records": 4},
        "mended": {},
        "left_out": {**HELD_OUT_COCO, "duplicate text": 2},
    }
    assert (out / "coco" / coco_path(9)).is_file()


def test_coco_objects(raw, out):
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
        "made": {"images": 2, "objects": 4, "records": 2},
        "mended": {"box clamped": 2},
        "left_out": {**HELD_OUT_COCO, "crowd": 6, "box outside image": 2, "degenerate box": 2, "duplicate text": 2},
    }


def test_coco_validation_has_the_images_that_karpathy_validates_on(raw, out):
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


def test_visual_genome(raw, out):
    """Image 2 is COCO's 42, 3 is Flickr30K's 36979, and 5 is a photograph that is COCO's 25."""
    prepared("visual_genome", raw, out)
    assert records(out / "vg_regions") == [vg_record(1, vg_id=1), vg_record(4, vg_id=4, coco_id=9, flickr_id=7009)]
    held_out = {COCO_TEST: 1, COCO_VAL: 1, FLICKR_TEST: 1}
    assert counted(out / "vg_regions") == {
        "read": {"images": 5, "attributes": 4, "objects": 6, "regions": 8},
        "made": {"images": 2, "objects": 4, "regions": 4, "records": 2},
        "mended": {"box clamped": 4},
        "left_out": {**held_out, "box without text": 2, "box outside image": 2, "empty text": 2},
    }
    captions = [(record["image"].rpartition("/")[2], record["caption"]) for record in records(out / "vg")]
    assert captions == [(f"{n}.jpg", text) for n in (1, 4) for text in ("the clock is green", "a wall")]
    assert counted(out / "vg")["made"] == {"images": 2, "captions": 4, "records": 4}


def test_an_image_has_captions_of_its_eight_largest_regions(raw, out):
    sides = [3, 9, 5, 7, 4, 6, 10, 8, 2, 11, 9]
    regions = [{"x": 0, "y": 0, "width": s, "height": s, "phrase": f"side {s}"} for s in sides]
    write(raw / "vg/region_descriptions.json", [{"id": 1, "regions": regions}])
    prepared("visual_genome", raw, out)
    assert [record["caption"] for record in records(out / "vg")] == [f"side {s}" for s in (11, 10, 9, 8, 7, 6, 5, 4)]
    left_out = counted(out / "vg")["left_out"]
    assert (left_out["duplicate text"], left_out["not of the largest regions"]) == (1, 2)


def test_gqa(raw, out):
    prepared("gqa", raw, out)
    chair = {"caption": "chair", "bb": [22, 31, 42, 8], "attributes": ["brown"], "grain": "object"}
    assert records(out / "gqa") == [{"image": "../../raw/vg/VG_100K/1.jpg", "elems": [chair], "vg_id": 1}]
    assert counted(out / "gqa") == {
        "read": {"images": 3, "objects": 2},
        "made": {"images": 1, "objects": 1, "records": 1},
        "mended": {"box clamped": 1},
        "left_out": {COCO_TEST: 1, "unknown image": 1, "degenerate box": 1},
    }


def test_references_of_the_three_sets_on_one_box_are_joined(raw, out):
    prepared("refcoco", raw, out)
    element = {"caption": ["navy shirt", "the man"], "bb": [1, 2, 30, 20], "grain": "region"}
    assert records(out / "refcoco") == [{"image": coco_path(9), "elems": [element], "coco_id": 9}]
    assert counted(out / "refcoco") == {
        "read": {"references": 7, "images": 2},
        "made": {"images": 1, "boxes": 1, "phrases": 2, "records": 1},
        "mended": {},
        "left_out": {"not in the training split": 3, "held out by RefCOCO testA": 1, "duplicate text": 3},
    }


def test_entities_have_one_box_around_those_of_a_chain(raw, out):
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
        "made": {"phrases": 2, "images": 1, "boxes": 1, "records": 1},
        "mended": {},
        "left_out": {FLICKR_TEST: 1, "phrase without box": 2, "not visual": 1},
    }


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
    """36979 is on Flickr, 42 is COCO's, and 7042 is the photograph on Flickr that COCO's 42 is."""
    write(
        raw / "vg/image_data.json",
        [{"image_id": n, "width": 64, "height": 48, **(ids if n == 1 else {})} for n in (1, 4)],
    )
    prepared("visual_genome", raw, out)
    assert [record["vg_id"] for record in records(out / "vg_regions")] == ([4] if found else [1, 4])


def test_links_are_followed_from_flickr_to_coco_and_on_to_visual_genome(raw, out):
    """Flickr30K's test image is COCO's 73 by its address, and that is Visual Genome's 1 by its id."""
    for name in ("captions", "instances"):
        path = raw / f"coco/annotations/{name}_val2014.json"
        values = json.loads(path.read_text())
        values["images"][1]["flickr_url"] = f"http://farm1.staticflickr.com/1/{official.FLICKR_TEST}_0a_z.jpg"
        write(path, {"annotations": values.pop("annotations"), **values})  # the images come last
    write(
        raw / "vg/image_data.json",
        [{"image_id": n, "width": 64, "height": 48, "coco_id": {1: 73}.get(n)} for n in (1, 4)],
    )
    prepared("visual_genome", raw, out)
    assert [record["vg_id"] for record in records(out / "vg_regions")] == [4]
    prepared("coco", raw, out)
    assert counted(out / "coco")["left_out"][FLICKR_TEST] == 1


def test_images_of_vqas_test_split_are_held_out(raw, out):
    write(
        raw / "vqa/v2_OpenEnded_mscoco_test2015_questions.json",
        {"info": {}, "questions": [{"image_id": 73, "question": "?"}]},
    )
    prepared("coco", raw, out)
    assert counted(out / "coco")["left_out"]["held out by VQA v2 test"] == 1


@pytest.mark.parametrize("packed", [False, True])
def test_the_splits_of_flickr30k_entities_are_held_out_too(packed, raw, out):
    """Packed or not, its lists of ids lie beside what has the sentences."""
    write(raw / "flickr30k_entities/test.txt", f"{official.FLICKR_TRAIN}\n78\n")
    if packed:
        pack_entities(raw / "flickr30k_entities")
    message = one_line("flickr30k_entities", raw, out)
    assert message.endswith("2 entries: 1 held out by Flickr30K Entities test, 1 held out by Flickr30K (Karpathy) test")
    assert left(out) == []


def test_a_required_file_of_held_out_images_has_to_be_there(raw, out):
    (raw / "coco/dataset_coco.json").unlink()
    message = one_line("coco", raw, out)
    assert "no dataset_coco.json of COCO (Karpathy) below" in message
    assert "--held-out DIR" in message and "--without karpathy_coco" in message
    assert left(out) == []
    told = prepared("coco", raw, out, without=("karpathy_coco",))
    assert {record["coco_id"] for record in records(out / "coco")} == {9, 25, 42, 73}
    assert "coco_val: not made" in told and "not checked against held-out images of: vqa2, karpathy_coco" in told


def test_held_out_files_may_lie_in_another_folder(raw, out, tmp_path):
    (tmp_path / "splits").mkdir()
    shutil.move(raw / "coco/dataset_coco.json", tmp_path / "splits/dataset_coco.json")
    prepared("visual_genome", raw, out, held_out=(tmp_path / "splits",))
    assert counted(out / "vg_regions")["left_out"][COCO_TEST] == 1


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
def test_a_file_of_held_out_images_that_names_none_is_refused(name, content, raw, out):
    write(raw / name, json.dumps(content) if not isinstance(content, str) else content)
    assert str(raw / name) in one_line("visual_genome", raw, out)
    assert left(out) == []


# -- other layouts of the same


def pack(root: Path, archive: str, *names: str) -> None:
    with zipfile.ZipFile(root / archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.write(root / name, name)
            (root / name).unlink()


def pack_entities(root: Path) -> None:
    pack(root, "annotations.zip", *(str(path.relative_to(root)) for path in sorted(root.glob("[SA]*/*"))))
    for name in ("Sentences", "Annotations"):
        (root / name).rmdir()


def test_packed_annotations_give_the_same_records(raw, out, tmp_path):
    for name in ("coco", "visual_genome", "flickr30k_entities"):
        prepared(name, raw, tmp_path / "plain")
    names = [
        f"annotations/{kind}_{split}.json" for kind in ("captions", "instances") for split in ("train2014", "val2014")
    ]
    pack(raw / "coco", "annotations_trainval2014.zip", *names)
    pack(raw / "coco", "caption_datasets.zip", "dataset_coco.json", "dataset_flickr30k.json")
    for name in ("objects", "attributes", "region_descriptions", "image_data"):
        pack(raw / "vg", f"{name}.json.zip", f"{name}.json")
    pack_entities(raw / "flickr30k_entities")
    for name in ("coco", "visual_genome", "flickr30k_entities"):
        prepared(name, raw, out)
    for folder in ("coco", "coco_regions", "coco_val", "vg", "vg_regions", "flickr_entities"):
        assert records(out / folder) == records(tmp_path / "plain" / folder)


def test_images_of_coco_2017_and_of_a_merged_visual_genome_are_found(raw, out):
    for number in (9, 73):
        target = raw / f"coco/train2017/{number:012}.jpg"
        target.parent.mkdir(exist_ok=True)
        shutil.move(raw / "coco" / official.coco_name(number), target)
    for split, year in (("train2014", "train2017"), ("val2014", "val2017")):
        for kind in ("captions", "instances"):
            shutil.move(raw / f"coco/annotations/{kind}_{split}.json", raw / f"coco/annotations/{kind}_{year}.json")
    (raw / "vg/images").mkdir()
    for number in (1, 4):
        [path] = (raw / "vg").glob(f"VG*/{number}.jpg")
        shutil.move(path, raw / f"vg/images/{number}.jpg")
    prepared("coco", raw, out)
    images = [record["image"] for record in records(out / "coco_regions")]
    assert images == [f"../../raw/coco/train2017/{number:012}.jpg" for number in (9, 73)]
    prepared("visual_genome", raw, out)
    assert [record["image"] for record in records(out / "vg_regions")] == [
        f"../../raw/vg/images/{n}.jpg" for n in (1, 4)
    ]


def test_folders_may_be_links(raw, out, tmp_path):
    """Of the images, and of the output: the paths of records are right from where the output really lies."""
    shutil.move(raw / "coco/train2014", tmp_path / "disk/a/b/train2014")
    (raw / "coco/train2014").symlink_to(tmp_path / "disk/a/b/train2014")
    (raw / "coco/round").symlink_to(raw)
    (tmp_path / "disk/records").mkdir()
    out.symlink_to(tmp_path / "disk/records")
    prepared("coco", raw, out)
    assert len(records(out / "coco")) == 4
    assert all((out / "coco" / record["image"]).is_file() for record in records(out / "coco"))


def test_an_image_of_another_set_with_the_same_number_is_not_taken(raw, out):
    """Of both sets there is an image 36979, and only Visual Genome's may be trained on."""
    listed = [{"image_id": number, "width": 64, "height": 48} for number in (1, 36979)]
    write(raw / "vg/image_data.json", listed)
    regions = [{"x": 0, "y": 0, "width": 9, "height": 9, "phrase": "a wall"}]
    write(raw / "vg/region_descriptions.json", [{"id": number, "regions": regions} for number in (1, 36979)])
    prepared("visual_genome", raw, out)
    assert [record["vg_id"] for record in records(out / "vg")] == [1]
    assert (out / "vg/_prepare/missing.txt").read_text() == "images/36979.jpg\n"
    official.image(raw / "zz_images/36979.jpg")
    prepared("visual_genome", raw, out, overwrite=True)
    assert [record["image"] for record in records(out / "vg")][1] == "../../raw/zz_images/36979.jpg"
    official.image(raw / f"a/{official.FLICKR_TRAIN}.jpg")  # comes first, and might be anything
    prepared("flickr30k_entities", raw, out)
    assert "flickr30k-images/" in records(out / "flickr_entities")[0]["image"]


# -- images that are not there


def test_without_any_image_records_name_the_usual_places(raw, out):
    for folder in ("coco/train2014", "coco/val2014", "vg/VG_100K", "vg/VG_100K_2"):
        shutil.rmtree(raw / folder)
    told = prepared("visual_genome", raw, out)
    assert f"vg: no image is there; the records name where they usually lie, below {raw}" in told
    assert [record["image"] for record in records(out / "vg_regions")] == [f"../../raw/images/{n}.jpg" for n in (1, 4)]
    prepared("coco", raw, out)
    usual = [f"../../raw/{official.coco_name(number)}" for number in (9, 73)]
    assert [record["image"] for record in records(out / "coco_regions")] == usual
    assert (out / "coco_regions/_prepare/missing.txt").read_text() == ""


def test_missing_images_are_counted_listed_and_left_out_by_others_too(raw, out, tmp_path):
    (raw / "coco" / official.coco_name(73)).unlink()
    told = prepared("coco", raw, out)
    assert "left out: 1 missing image, first" in told
    assert {record["coco_id"] for record in records(out / "coco")} == {9}
    listed = out / "coco/_prepare/missing.txt"
    assert listed.read_text() == "val2014/COCO_val2014_000000000073.jpg\n"
    official.image(raw / "coco" / official.coco_name(73))
    prepared("coco", raw, tmp_path / "theirs", missing=listed)
    for folder in ("coco", "coco_regions"):
        assert official.contents(tmp_path / "theirs" / folder) == official.contents(out / folder)
        assert counted(tmp_path / "theirs" / folder)["left_out"]["on the list of missing images"] == 1


# -- other files in the place of the official ones

SWAPPED = {
    "vg/objects.json": "vg/attributes.json",
    "vg/attributes.json": "vg/objects.json",
    "vg/region_descriptions.json": "vg/objects.json",
    "vg/image_data.json": "vg/region_descriptions.json",
    "coco/annotations/captions_train2014.json": "coco/annotations/instances_train2014.json",
    "coco/annotations/captions_val2014.json": "coco/dataset_coco.json",
    "coco/annotations/instances_val2014.json": "coco/annotations/captions_val2014.json",
    "coco/dataset_coco.json": "coco/dataset_flickr30k.json",
    "coco/dataset_flickr30k.json": "coco/dataset_coco.json",
    "gqa/train_sceneGraphs.json": "vg/objects.json",
    "refcoco/instances.json": "coco/annotations/captions_train2014.json",
    "refcoco/refs(unc).p": "refcoco/instances.json",
    "flickr30k_entities/train.txt": "flickr30k_entities/Sentences/36979.txt",
}
SET_OF = {
    "vg": "visual_genome",
    "coco": "coco",
    "gqa": "gqa",
    "refcoco": "refcoco",
    "flickr30k_entities": "flickr30k_entities",
}
MADE_BEFORE = {"vg": ["vg"], "coco": ["coco"]}
"""Folders that are made before the file is read."""


@pytest.mark.parametrize("name", SWAPPED)
def test_another_file_in_the_place_of_one_is_one_line_with_its_name(name, raw, out):
    shutil.copy(raw / SWAPPED[name], raw / name)
    folder = name.partition("/")[0]
    assert str(raw / name) in one_line(SET_OF[folder], raw, out)
    assert set(left(out)) <= set(MADE_BEFORE.get(folder, []))


@pytest.mark.parametrize("name", [name for name in SWAPPED if name.endswith(".json")])
@pytest.mark.parametrize("damage", ["cut", "utf-16", "latin-1"])
def test_a_damaged_file_is_one_line_with_its_name(name, damage, raw, out):
    content = (raw / name).read_bytes()
    damaged = {
        "cut": content[: len(content) * 2 // 3],
        "utf-16": content.decode().encode("utf-16"),
        "latin-1": content[:-9] + b"\xe9" + content[-9:],
    }
    (raw / name).write_bytes(damaged[damage])
    folder = name.partition("/")[0]
    assert str(raw / name) in one_line(SET_OF[folder], raw, out)
    assert set(left(out)) <= set(MADE_BEFORE.get(folder, []))


@pytest.mark.parametrize("at", [0.5, 0.98])
def test_a_zip_that_is_cut_or_damaged_is_one_line(at, raw, out):
    pack(raw / "vg", "objects.json.zip", "objects.json")
    path = raw / "vg/objects.json.zip"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: int(len(content) * at)])
    assert f"{path} is no whole zip archive" in one_line("visual_genome", raw, out)
    for place in range(60, 90):
        content[place] ^= 0xFF
    path.write_bytes(content)
    assert f"{path}:objects.json: the archive is damaged" in one_line("visual_genome", raw, out)
    assert set(left(out)) == {"vg"}


def test_numbers_out_of_all_bounds_are_one_line(raw, out):
    for width, said in (("Infinity", "OverflowError"), ('"wide"', "ValueError"), ("null", "TypeError")):
        write(raw / "vg/image_data.json", f'[{{"image_id": 1, "width": {width}, "height": 48}}]')
        assert said in one_line("visual_genome", raw, out)
    write(raw / "vg/image_data.json", '[{"image_id": 1, "width": 64, "height": 48}]')
    boxes = ["1e999", "NaN", '"left"', "null", "[1]", "1" * 400]
    regions = [f'{{"x": {x}, "y": 0, "width": 9, "height": 9, "phrase": "odd"}}' for x in boxes]
    fine = ['{"x": 1, "y": 0, "width": 9, "height": 9, "phrase": "fine"}'] * 600
    write(raw / "vg/region_descriptions.json", f'[{{"id": 1, "regions": [{", ".join(regions + fine)}]}}]')
    prepared("visual_genome", raw, out)
    assert counted(out / "vg")["left_out"] == {"wrong type": 5, "missing key": 1, "duplicate text": 599}


@pytest.mark.parametrize("number", [None, {}, [1], "x"])
def test_objects_without_a_number_get_no_attributes(number, raw, out):
    box = {"object_id": number, "x": 1, "y": 1, "w": 5, "h": 5, "names": ["clock"]}
    write(raw / "vg/objects.json", [{"image_id": 1, "objects": [box]}])
    write(raw / "vg/attributes.json", [{"image_id": 1, "attributes": [{**box, "attributes": ["green"]}]}])
    prepared("visual_genome", raw, out)
    assert records(out / "vg_regions")[0]["elems"][0] == {"caption": "clock", "bb": [1, 1, 5, 5], "grain": "object"}


def test_a_split_with_a_line_break_in_its_name_is_told_in_one_line(raw, out):
    rows = [{"filename": f"{n}.jpg", "split": "odd\nsplit"} for n in (official.FLICKR_TRAIN, official.FLICKR_TEST)]
    write(raw / "coco/dataset_flickr30k.json", {"images": rows})
    assert "2 held out by Flickr30K (Karpathy) odd\\nsplit" in one_line("flickr30k_entities", raw, out)


def test_more_than_one_in_a_hundred_of_another_form_is_another_file(raw, out):
    regions = [{"x": 0, "y": 0, "width": 9, "height": 9, "phrase": "fine"}] * 99
    write(raw / "vg/region_descriptions.json", [{"id": 1, "regions": [*regions, {"phrase": "odd"}, {"phrase": "odd"}]}])
    message = one_line("visual_genome", raw, out)
    assert message.startswith("vg: 2 of 106 entries cannot be used: 2 missing key (")
    assert f"{raw}/vg/region_descriptions.json[0].regions[99]: no x, y, width, height; keys: phrase" in message


def test_a_file_that_is_missing_is_named_with_the_others(raw, out):
    for name in ("objects", "attributes"):
        (raw / f"vg/{name}.json").unlink()
    message = one_line("visual_genome", raw, out)
    assert "objects.json, attributes.json are not there, plain or zipped; `python run.py prepare --list`" in message
    (raw / "refcoco/instances.json").unlink()
    assert "no instances.json is in the folder refcoco beside it" in one_line("refcoco", raw, out)


def test_code_in_a_pickle_of_references_is_not_run(raw, out, tmp_path):
    (raw / "refcoco/refs(unc).p").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    assert "is not a pickle of plain data: it asks for os.system" in one_line("refcoco", raw, out)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_annotation_of_entities_is_counted(raw, out):
    folder = raw / "flickr30k_entities"
    numbers = [official.FLICKR_TRAIN, 11, 12, 13]
    write(folder / "train.txt", "".join(f"{n}\n" for n in numbers))
    for n in numbers[1:]:
        official.image(folder / f"flickr30k-images/{n}.jpg")
        write(folder / f"Sentences/{n}.txt", "[/EN#1/people A man] .\n")
    write(folder / "Annotations/11.xml", "<annotation><size>")
    write(folder / "Annotations/12.xml", '<?xml version="1.0" encoding="nowhere"?><annotation/>')
    prepared("flickr30k_entities", raw, out)
    assert len(records(out / "flickr_entities")) == 1
    assert counted(out / "flickr_entities")["left_out"] == {
        "bad xml": 2,
        "missing annotation": 1,
        "phrase without box": 2,
        "not visual": 1,
    }
