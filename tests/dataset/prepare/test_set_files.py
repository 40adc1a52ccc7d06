"""The official files of each set in other layouts, without images, or replaced by other files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from dataset.prepare import line_shards
from dataset.prepare.missing import read_missing
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, prepared, records, write
from tests.dataset.prepare.set_errors import files_left_in, one_line, pack, pack_entities
from tests.messages import OneLine
from utils.errors import UserError


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


# -- other layouts of the same files


def test_compressed_annotations_give_the_same_records(raw, out, tmp_path):
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
    """Links to the images and to the output: record paths are relative to the real location of the output."""
    shutil.move(raw / "coco/train2014", tmp_path / "disk/a/b/train2014")
    (raw / "coco/train2014").symlink_to(tmp_path / "disk/a/b/train2014")
    (raw / "coco/round").symlink_to(raw)
    (tmp_path / "disk/records").mkdir()
    out.symlink_to(tmp_path / "disk/records")
    prepared("coco", raw, out)
    assert len(records(out / "coco")) == 4
    assert all((out / "coco" / record["image"]).is_file() for record in records(out / "coco"))


def test_an_image_of_another_set_with_the_same_number_is_not_used(raw, out):
    """Both sets have an image 36979, and only Visual Genome's may be trained on."""
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
    official.image(raw / f"a/{official.FLICKR_TRAIN}.jpg")  # this folder is searched first and may hold anything
    prepared("flickr30k_entities", raw, out)
    assert "flickr30k-images/" in records(out / "flickr_entities")[0]["image"]


# -- missing images


def test_without_any_image_records_name_the_usual_paths(raw, out):
    for folder in ("coco/train2014", "coco/val2014", "vg/VG_100K", "vg/VG_100K_2"):
        shutil.rmtree(raw / folder)
    reported = prepared("visual_genome", raw, out)
    assert OneLine("vg", raw) in reported.splitlines()
    assert [record["image"] for record in records(out / "vg_regions")] == [f"../../raw/images/{n}.jpg" for n in (1, 4)]
    prepared("coco", raw, out)
    usual = [f"../../raw/{official.coco_name(number)}" for number in (9, 73)]
    assert [record["image"] for record in records(out / "coco_regions")] == usual
    assert (out / "coco_regions/_prepare/missing.txt").read_text() == ""


def test_missing_images_are_counted_listed_and_excluded_from_other_sets(raw, out, tmp_path):
    (raw / "coco" / official.coco_name(73)).unlink()
    reported = prepared("coco", raw, out)
    assert "skipped: 1 missing image, first" in reported
    assert {record["coco_id"] for record in records(out / "coco")} == {9}
    listed = out / "coco/_prepare/missing.txt"
    assert listed.read_text() == "val2014/COCO_val2014_000000000073.jpg\n"
    official.image(raw / "coco" / official.coco_name(73))
    prepared("coco", raw, tmp_path / "theirs", missing=read_missing(listed))
    for folder in ("coco", "coco_regions"):
        assert official.contents(tmp_path / "theirs" / folder) == official.contents(out / folder)
        assert counted(tmp_path / "theirs" / folder)["skipped"]["on the list of missing images"] == 1


def test_a_list_of_missing_images_applies_to_other_coco_names_and_all_folders_of_an_output(raw, out, tmp_path):
    (raw / "coco" / official.coco_name(73)).unlink()
    prepared("coco", raw, out)
    by_id = read_missing(out)
    assert by_id == {"val2014/COCO_val2014_000000000073.jpg", "coco:73"}
    write(tmp_path / "of_2017.txt", "val2017/000000000073.jpg\n")
    assert read_missing(tmp_path / "of_2017.txt") == {"val2017/000000000073.jpg", "coco:73"}
    with pytest.raises(UserError, match=r"found no _prepare/missing\.txt below"):
        read_missing(raw)


# -- other files in place of the official ones

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
"""Folders that are created before the file is read."""


@pytest.mark.parametrize("name", SWAPPED)
def test_a_replaced_official_file_is_named_in_one_line(name, raw, out):
    shutil.copy(raw / SWAPPED[name], raw / name)
    folder = name.partition("/")[0]
    assert str(raw / name) in one_line(SET_OF[folder], raw, out)
    assert set(files_left_in(out)) <= set(MADE_BEFORE.get(folder, []))


@pytest.mark.parametrize("name", [name for name in SWAPPED if name.endswith(".json")])
@pytest.mark.parametrize("damage", ["cut", "utf-16", "latin-1"])
def test_a_damaged_file_is_named_in_one_line(name, damage, raw, out):
    content = (raw / name).read_bytes()
    damaged = {
        "cut": content[: len(content) * 2 // 3],
        "utf-16": content.decode().encode("utf-16"),
        "latin-1": content[:-9] + b"\xe9" + content[-9:],
    }
    (raw / name).write_bytes(damaged[damage])
    folder = name.partition("/")[0]
    assert str(raw / name) in one_line(SET_OF[folder], raw, out)
    assert set(files_left_in(out)) <= set(MADE_BEFORE.get(folder, []))


@pytest.mark.parametrize("at", [0.5, 0.98])
def test_a_truncated_or_damaged_zip_is_reported_in_one_line(at, raw, out):
    pack(raw / "vg", "objects.json.zip", "objects.json")
    path = raw / "vg/objects.json.zip"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: int(len(content) * at)])
    assert one_line("visual_genome", raw, out) == OneLine(path, "zip")
    for place in range(60, 90):
        content[place] ^= 0xFF
    path.write_bytes(content)
    assert one_line("visual_genome", raw, out) == OneLine(f"{path}:objects.json", "damaged")
    assert set(files_left_in(out)) == {"vg"}


def test_numbers_out_of_range_are_reported_in_one_line(raw, out):
    for width, fragments in (("Infinity", "OverflowError"), ('"wide"', "ValueError"), ("null", "TypeError")):
        write(raw / "vg/image_data.json", f'[{{"image_id": 1, "width": {width}, "height": 48}}]')
        assert fragments in one_line("visual_genome", raw, out)
    write(raw / "vg/image_data.json", '[{"image_id": 1, "width": 64, "height": 48}]')
    boxes = ["1e999", "NaN", '"left"', "null", "[1]", "1" * 400]
    regions = [f'{{"x": {x}, "y": 0, "width": 9, "height": 9, "phrase": "odd"}}' for x in boxes]
    fine = ['{"x": 1, "y": 0, "width": 9, "height": 9, "phrase": "fine"}'] * 600
    write(raw / "vg/region_descriptions.json", f'[{{"id": 1, "regions": [{", ".join(regions + fine)}]}}]')
    prepared("visual_genome", raw, out)
    assert counted(out / "vg")["skipped"] == {"wrong type": 5, "missing key": 1, "duplicate text": 599}


@pytest.mark.parametrize(
    ("name", "file", "number"),
    [
        ("visual_genome", "vg/image_data.json", '"width": 64'),
        ("visual_genome", "vg/image_data.json", '"image_id": 1'),
        ("coco", "coco/annotations/captions_train2014.json", '"height": 48'),
        ("refcoco", "refcoco/instances.json", '"width": 64'),
    ],
)
def test_texts_with_underscores_are_not_numbers(name, file, number, raw, out):
    path = raw / file
    key, _, digits = number.partition(": ")
    write(path, path.read_text().replace(number, f'{key}: "0_{digits}"'))
    assert one_line(name, raw, out) == OneLine(path, "ValueError", f"'0_{digits}'")


@pytest.mark.parametrize("number", [None, {}, [1], "x"])
def test_objects_without_an_id_get_no_attributes(number, raw, out):
    box = {"object_id": number, "x": 1, "y": 1, "w": 5, "h": 5, "names": ["clock"]}
    write(raw / "vg/objects.json", [{"image_id": 1, "objects": [box]}])
    write(raw / "vg/attributes.json", [{"image_id": 1, "attributes": [{**box, "attributes": ["green"]}]}])
    prepared("visual_genome", raw, out)
    assert records(out / "vg_regions")[0]["elems"][0] == {"caption": "clock", "bb": [1, 1, 5, 5], "grain": "object"}


def test_a_split_name_with_a_line_break_is_reported_in_one_line(raw, out):
    rows = [{"filename": f"{n}.jpg", "split": "odd\nsplit"} for n in (official.FLICKR_TRAIN, official.FLICKR_TEST)]
    write(raw / "coco/dataset_flickr30k.json", {"images": rows})
    assert "2 held out by Flickr30K (Karpathy) odd\\nsplit" in one_line("flickr30k_entities", raw, out)


def test_more_than_one_percent_of_unknown_rows_indicates_another_file(raw, out):
    regions = [{"x": 0, "y": 0, "width": 9, "height": 9, "phrase": "fine"}] * 99
    write(raw / "vg/region_descriptions.json", [{"id": 1, "regions": [*regions, {"phrase": "odd"}, {"phrase": "odd"}]}])
    message = one_line("visual_genome", raw, out)
    assert message == OneLine("vg", "2 of 106", "2 missing key")
    assert message == OneLine(f"{raw}/vg/region_descriptions.json[0].regions[99]", "x, y, width, height", "phrase")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("visual_genome", "vg/objects.json"),
        ("refcoco", "refcoco/refs(unc).p"),
        ("flickr30k_entities", "flickr30k_entities/val.txt"),
        ("coco", "coco/any.zip"),
        ("coco", "coco/image_data.json.gz"),
    ],
)
def test_a_fifo_in_place_of_an_official_file_is_named_in_one_line(name, file, raw, out):
    path = raw / file
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert one_line(name, raw, out) == OneLine(path, "is a FIFO, not a regular file")


def test_all_missing_files_are_named_together(raw, out):
    for name in ("objects", "attributes"):
        (raw / f"vg/{name}.json").unlink()
    message = one_line("visual_genome", raw, out)
    assert message == OneLine("objects.json", "attributes.json", "python run.py prepare --list")
    (raw / "refcoco/instances.json").unlink()
    assert one_line("refcoco", raw, out) == OneLine("instances.json", "refcoco")


def test_code_in_a_references_pickle_is_not_executed(raw, out, tmp_path):
    (raw / "refcoco/refs(unc).p").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    assert one_line("refcoco", raw, out) == OneLine("pickle", "os.system")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_entities_annotation_is_counted(raw, out):
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
    assert counted(out / "flickr_entities")["skipped"] == {
        "bad xml": 2,
        "missing annotation": 1,
        "phrase without box": 2,
        "not visual": 1,
    }


def test_a_flickr30k_training_photograph_that_coco_holds_out_is_excluded_with_a_reason(raw, out):
    """COCO and Flickr30K both contain Flickr photographs, with the same Flickr ids."""
    path = raw / "coco/annotations/captions_train2014.json"
    captions = json.loads(path.read_text())
    held_out = next(image for image in captions["images"] if image["id"] == 30)  # RefCOCO testA
    held_out["flickr_url"] = f"http://farm1.staticflickr.com/1/{official.FLICKR_TRAIN}_0a1b2c_z.jpg"
    write(path, captions)
    folder = raw / "flickr30k_entities"
    write(folder / "train.txt", f"{official.FLICKR_TRAIN}\n11\n")
    official.image(folder / "flickr30k-images/11.jpg")
    for name in (f"Sentences/{official.FLICKR_TRAIN}.txt", f"Annotations/{official.FLICKR_TRAIN}.xml"):
        shutil.copy(folder / name, (folder / name).with_stem("11"))
    fragments = prepared("flickr30k_entities", raw, out)
    assert [each["flickr_id"] for each in records(out / "flickr_entities")] == [11]
    assert OneLine(f"flickr:{official.FLICKR_TRAIN}", "coco:30", "RefCOCO", "testA") in fragments.splitlines()


def test_equal_ids_in_different_data_sets_are_different_photographs(raw, out):
    refs = [official._reference(official.FLICKR_TRAIN, 1, "testB", ["held out"])]
    (raw / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    prepared("flickr30k_entities", raw, out)
    assert [each["flickr_id"] for each in records(out / "flickr_entities")] == [official.FLICKR_TRAIN]
