"""``run.py leaks`` finds training images that are also in a held-out split, even if their names differ."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import dataset.leaks
from dataset.prepare import line_shards
from dataset.prepare.held_out import read_held_out
from dataset.prepare.raw_folder import RawFolder
from run import main
from tests.dataset.prepare import official
from tests.dataset.prepare.official import photograph, prepared, write
from tests.messages import OneLine


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)
    return official.everything(tmp_path / "raw")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def pretraining(root: Path, *folders: Path, regions: Path | None = None, held_out: Path | None = None) -> Path:
    """A config that pre-trains on folders of records. Without ``held_out``, the config has no evaluation."""
    data = {
        "images": {"files": [str(folder) for folder in folders]},
        "regions": None if regions is None else {"files": [str(regions)]},
    }
    evaluation = None if held_out is None else {"files": [str(held_out)]}
    base = str(Path("configs/demo/pretrain.yaml").resolve())
    return write(root / "pretrain.yaml", {"base": base, "data": data, "evaluation": evaluation})


def retrieval(root: Path, *images: Path, train: Path | None = None) -> Path:
    """A retrieval config that tests on images."""
    rows = [{"image": str(image), "caption": ["a dog"]} for image in images]
    values = {
        "base": str(Path("configs/demo/retrieval.yaml").resolve()),
        "data": {"train": {"annotations": str(train or root / "no_training.jsonl")}},
        "evaluation": {
            "validation": None,
            "test": {"test": {"annotations": str(write(root / "test.json", rows))}},
        },
    }
    return write(root / "retrieval.yaml", values)


@pytest.fixture
def leaks(capsys):
    def command(*argv: object) -> tuple[int, str, str]:
        status = main(["leaks", *map(str, argv)])
        printed = capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        return status, printed.out, "\n".join(errors)

    return command


def test_prepared_records_contain_no_held_out_image(raw, out, tmp_path, leaks):
    for name in ("coco", "visual_genome", "gqa", "refcoco", "flickr30k_entities"):
        prepared(name, raw, out)
    config = pretraining(tmp_path, out / "coco", out / "vg", regions=out / "vg_regions")
    held_out = [raw / "coco" / official.coco_name(number) for number in (42, 25, 30, 34)]
    test = retrieval(tmp_path, *held_out, raw / f"flickr30k_entities/flickr30k-images/{official.FLICKR_TEST}.jpg")
    status, printed, error = leaks(config, test)
    assert (status, error) == (3, "")
    assert printed.splitlines()[:3] == [
        f"{config} {out}/{folder} contains none of 5 images of {test} evaluation.test.test"
        for folder in ("coco", "vg", "vg_regions")
    ]


@pytest.mark.parametrize(
    ("without", "held_out", "how"),
    [
        (("karpathy_coco",), "coco/val2014/COCO_val2014_000000000042.jpg", "id"),
        (("karpathy_flickr30k",), "flickr30k_entities/flickr30k-images/36979.jpg", "id"),
    ],
)
def test_an_image_of_visual_genome_is_found_by_its_id_in_another_set(without, held_out, how, raw, out, tmp_path, leaks):
    """The files differ, because one is scaled or encoded again."""
    prepared("visual_genome", raw, out, without=without)
    config = pretraining(tmp_path, out / "vg", regions=out / "vg_regions")
    table = tmp_path / "leaks.tsv"
    test = retrieval(tmp_path, raw / held_out)
    status, printed, _ = leaks(config, test, "--out", table)
    assert status == 1
    assert OneLine(config, f"{out}/vg", "1 of 1", f"1 by {how}", test, "evaluation.test.test") in printed.splitlines()
    header, *rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert header == ["training", "held_out", "found_by", "training_image", "held_out_image"]
    assert [row[2] for row in rows] == [how] * 3  # two records of pairs and one of regions
    assert rows[0][3].startswith(f"{out}/vg/part-00000.jsonl") and str(tmp_path / "test.json") in rows[0][4]
    assert f"{table}: 3 pairs" in printed


def own(tmp_path: Path, *images: str) -> Path:
    """A user's own records, which have no ids. All images differ."""
    folder = tmp_path / "own"
    for shade, image in enumerate(images):
        official.image(folder / image, shade * 30)
    lines = [json.dumps({"image": image, "caption": "a dog"}) + "\n" for image in images]
    write(folder / "part.jsonl", "".join(lines))
    return folder


def test_the_users_own_images_are_found_by_path_and_by_content(tmp_path, leaks):
    folder = own(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    shutil.copy(folder / "b.jpg", tmp_path / "copy.jpg")
    official.image(tmp_path / "other.jpg", 200)
    test = retrieval(tmp_path, folder / "a.jpg", tmp_path / "copy.jpg", tmp_path / "other.jpg")
    config = pretraining(tmp_path, folder)
    status, printed, _ = leaks(config, test)
    assert status == 1
    assert (
        OneLine(config, folder, "2 of 3", "1 by path, 1 by content", test, "evaluation.test.test")
        in printed.splitlines()
    )
    status, printed, _ = leaks(config, retrieval(tmp_path, tmp_path / "other.jpg"))
    assert status == 3 and "contains none of 1 image of" in printed


def test_downloaded_images_in_shards_are_found_by_their_urls(tmp_path, leaks):
    folder = tmp_path / "sbu"
    official.downloaded(
        folder, [(f"http://static.flickr.com/1/{official.FLICKR_TEST}_a.jpg", "x"), ("http://x.org/1.jpg", "y")]
    )
    image = tmp_path / f"flickr30k-images/{official.FLICKR_TEST}.jpg"
    official.image(image)
    status, printed, _ = leaks(pretraining(tmp_path, folder), retrieval(tmp_path, image))
    assert status == 1 and "contains 1 of 1 image of" in printed and "(1 by id)" in printed


def test_five_leaks_are_printed_and_the_table_has_all(tmp_path, leaks):
    folder = own(tmp_path, *(f"{n}.jpg" for n in range(7)))
    test = retrieval(tmp_path, *(folder / f"{n}.jpg" for n in range(7)))
    status, printed, _ = leaks(pretraining(tmp_path, folder), test, "--out", tmp_path / "table.tsv")
    assert status == 1
    assert len([line for line in printed.splitlines() if line.startswith("  /")]) == 5
    assert "  and 2 more (--out FILE lists all)" in printed
    assert len((tmp_path / "table.tsv").read_text().splitlines()) == 8


def test_the_training_data_of_a_fine_tuning_config_are_checked_too(tmp_path, leaks):
    folder = own(tmp_path, "a.jpg")
    rows = write(tmp_path / "their_train.json", [{"image": str(folder / "a.jpg"), "caption": "x", "image_id": 1}])
    test = retrieval(tmp_path, folder / "a.jpg", train=rows)
    status, printed, _ = leaks(test)
    assert status == 1
    assert OneLine(test, "data.train", "1 of 1", "1 by path", "evaluation.test.test") in printed.splitlines()


def test_unreadable_files_are_reported_and_the_rest_is_checked(tmp_path, leaks):
    folder = own(tmp_path, "a.jpg")
    config = pretraining(tmp_path, folder, tmp_path / "gone")
    good, bad = retrieval(tmp_path, folder / "a.jpg"), retrieval(tmp_path / "bad", folder / "a.jpg")
    (tmp_path / "bad/test.json").unlink()
    status, printed, _ = leaks(config, good, bad)
    assert status == 1
    assert f"not checked: {config} {tmp_path}/gone: " in printed
    assert f"not checked: {bad} evaluation.test.test: " in printed
    assert OneLine(config, folder, "1 of 1", "1 by path") in printed.splitlines()


@pytest.mark.parametrize(
    ("missing", "counts"),
    [
        (("a.jpg", "b.jpg"), ("2 of 2 training records", "2 of 2 held-out images", "part.jsonl:1")),
        (("s.jpg", "t.jpg"), ("2 of 2 training records", "2 of 2 held-out images", "test.jsonl:1")),
        (("b.jpg",), ("1 of 2 training records", "2 of 2 held-out images", "part.jsonl:2")),
        (("s.jpg",), ("2 of 2 training records", "1 of 2 held-out images", "test.jsonl:1")),
    ],
)
def test_missing_images_are_not_checked(tmp_path, leaks, missing, counts):
    folder = own(tmp_path, "a.jpg", "b.jpg", "s.jpg", "t.jpg")
    lines = (folder / "part.jsonl").read_text().splitlines(keepends=True)
    write(folder / "part.jsonl", "".join(lines[:2]))
    test = write(folder / "test/test.jsonl", "".join(lines[2:]).replace('"image": "', '"image": "../'))
    config = pretraining(tmp_path, folder, held_out=test)
    assert leaks(config)[0] == 0
    for name in missing:
        (folder / name).unlink()
    status, printed, _ = leaks(config)
    assert status == 3
    assert OneLine(f"not checked: {config} {folder}", "evaluation.files", *counts) in printed.splitlines()


def test_a_copy_of_an_official_picture_under_another_name_is_found_by_content(raw, tmp_path, leaks):
    (raw / "coco/dataset_flickr30k.json").unlink()
    folder = own(tmp_path, "photo.jpg", "other.jpg")
    config = pretraining(tmp_path, folder)
    assert leaks(config, "--held-out", raw / "coco")[0] == 0
    shutil.copy(raw / "coco" / official.coco_name(official.KARPATHY_TEST), folder / "photo.jpg")
    status, printed, _ = leaks(config, "--held-out", raw / "coco")
    assert status == 1
    assert OneLine(config, folder, "1 of 1", "1 by content", "COCO (Karpathy) test") in printed.splitlines()


def test_records_without_ids_are_not_checked_against_lists_without_images(raw, tmp_path, leaks):
    config = pretraining(tmp_path, own(tmp_path, "a.jpg", "b.jpg"))
    status, printed, _ = leaks(config, "--held-out", raw / "refcoco")
    assert status == 3
    fact = ("2 of 2 training records", "1 of 1 held-out image", "RefCOCO testA", "--held-out")
    assert OneLine("not checked: ", *fact) in printed.splitlines()


def test_twelve_digits_as_file_name_do_not_count_as_compared_by_id(raw, tmp_path, leaks):
    names = ("cam/020240101000.jpg", f"flat/{official.KARPATHY_TEST:012}.jpg")
    config = pretraining(tmp_path, own(tmp_path, names[0]))
    status, printed, _ = leaks(config, "--held-out", raw / "refcoco")
    assert status == 3 and OneLine("not checked: ", "1 of 1 training record", "RefCOCO testA") in printed.splitlines()
    folder = own(tmp_path, *names)
    lines = [{"image": names[0], "caption": "a", "coco_id": 5}, {"image": names[1], "caption": "b"}]
    write(folder / "part.jsonl", "".join(json.dumps(line) + "\n" for line in lines[:1]))
    assert leaks(config, "--held-out", raw / "refcoco")[0] == 0
    write(folder / "part.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    status, printed, _ = leaks(config, "--held-out", raw / "coco")
    assert status == 1 and "(1 by id)" in printed


def test_too_many_files_to_compare_are_not_checked(raw, tmp_path, leaks, monkeypatch):
    config = pretraining(tmp_path, own(tmp_path, "a.jpg", "b.jpg"))
    for limit in ("MAX_FILES", "MAX_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(dataset.leaks, limit, 1)
            status, printed, _ = leaks(config, "--held-out", raw / "coco")
        assert status == 3
        lines, too_many = printed.splitlines(), f"too many {limit[4:].lower()} "
        assert OneLine("not checked: ", "2 of 2 training records", too_many) in lines
        assert OneLine(config, "contains none of", too_many) in lines
        assert OneLine("compared by id and path (not all by content)") in lines


def test_links_that_contradict_each_other_are_named(raw, out, tmp_path, leaks):
    path = raw / "vg/image_data.json"
    values = json.loads(path.read_text())
    values[1]["flickr_id"] = 5
    write(path, values)
    prepared("coco", raw, out)
    _, printed, _ = leaks(pretraining(tmp_path, out / "coco"), "--held-out", raw)
    facts = ("image_data.json", "vg:2", "coco:42", "flickr:5", "flickr:7042")
    assert OneLine("1 contradictory link", *facts) in printed.splitlines()
    assert OneLine("1 contradictory link", *facts) in prepared("refcoco", raw, out).splitlines()


def test_broken_records_are_counted_as_unchecked(tmp_path, leaks):
    folder = own(tmp_path, "a.jpg", "b.jpg")
    path = folder / "part.jsonl"
    path.write_text(path.read_text().replace('"image"', '"picture"', 1))
    config, test = pretraining(tmp_path, folder), retrieval(tmp_path, folder / "a.jpg")
    status, printed, _ = leaks(config, test)
    assert status == 3 and OneLine(config, folder, "none of 1") in printed.splitlines()
    assert OneLine(config, folder, "1 of 2", f"{path}:1", "missing key", "image") in printed.splitlines()


def test_missing_training_or_held_out_data_is_an_error(tmp_path, leaks):
    config = pretraining(tmp_path, own(tmp_path, "a.jpg"))
    status, printed, error = leaks(config)
    assert (status, printed) == (2, "")
    assert error == OneLine(f"error: {config}", "held-out")
    (tmp_path / "own/part.jsonl").unlink()
    status, _, error = leaks(config, retrieval(tmp_path, tmp_path / "own/a.jpg"))
    assert status == 2 and error == OneLine("no training data")
    assert leaks(tmp_path / "none.yaml")[0] == 2


def test_official_splits_are_compared_by_id_without_images(raw, out, tmp_path, leaks):
    prepared("coco", raw, out, without=("karpathy_coco", "refcocog"))
    config = pretraining(tmp_path, out / "coco")
    splits = write(tmp_path / "splits/dataset_coco.json", (raw / "coco/dataset_coco.json").read_text()).parent
    status, printed, _ = leaks(config, "--held-out", splits)
    assert (
        status == 1
        and OneLine(config, f"{out}/coco", "1 of 1", "1 by id", "COCO (Karpathy) test") in printed.splitlines()
    )
    assert "COCO (Karpathy) test: coco:42 is " in printed
    status, printed, _ = leaks(config, "--held-out", raw / "refcoco")
    assert status == 0 and "contains none of " in printed and "of RefCOCO testA" in printed
    assert sum(line.startswith(f"{config} ") for line in printed.splitlines()) == 1
    (tmp_path / "empty").mkdir()
    status, _, error = leaks(config, "--held-out", tmp_path / "empty")
    assert status == 2 and "none of dataset_coco.json, " in error


def test_a_held_out_photograph_with_several_ids_counts_once(raw, out, tmp_path, leaks):
    """Files that link data sets give COCO's images Visual Genome and Flickr ids in addition to their own."""
    prepared("visual_genome", raw, out, without=("karpathy_coco", "refcoco", "refcoco+", "refcocog"))
    linked = read_held_out(RawFolder([raw]), required=(), without=())
    photographs = linked.photographs()["COCO (Karpathy) test"]
    assert any(len(ids) > 1 for ids in photographs.values())
    of_karpathy = json.loads((raw / "coco/dataset_coco.json").read_text())["images"]
    assert set(photographs) == {f"coco:{image['cocoid']}" for image in of_karpathy if image["split"] == "test"}
    config = pretraining(tmp_path, out / "vg")
    status, printed, _ = leaks(config, "--held-out", raw)
    assert status == 1 and OneLine(f"of {len(photographs)}", "1 by id", "COCO (Karpathy) test") in printed.splitlines()


def test_ids_of_two_data_sets_without_a_linking_file_count_as_unchecked(raw, out, tmp_path, leaks):
    prepared("visual_genome", raw, out, without=("karpathy_coco", "refcoco", "refcoco+", "refcocog"))
    lines = [{"image": each["image"], "caption": "a", "vg_id": each["vg_id"]} for each in official.records(out / "vg")]
    folder = write(tmp_path / "vg/part.jsonl", "".join(json.dumps(line) + "\n" for line in lines)).parent
    splits = write(tmp_path / "splits/dataset_coco.json", (raw / "coco/dataset_coco.json").read_text()).parent
    status, printed, _ = leaks(pretraining(tmp_path, folder), "--held-out", splits)
    assert status == 3
    for fact in ("not checked: ", f"{len(lines)} records", "Visual Genome ids", "COCO ids", "image_data.json"):
        assert fact in printed
    status, printed, _ = leaks(pretraining(tmp_path, folder), "--held-out", splits, "--held-out", raw / "vg")
    assert status == 1 and "not checked" not in printed
    coco = retrieval(tmp_path, raw / "coco" / official.coco_name(official.KARPATHY_TEST))
    assert "pass the folder of image_data.json" in leaks(pretraining(tmp_path, folder), coco)[1]
    assert leaks(pretraining(tmp_path, folder), coco, "--held-out", raw / "vg")[0] == 1


def test_ids_that_no_official_file_links_count_as_unchecked(raw, out, tmp_path, leaks):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    prepared("coco", raw, out)
    table = pyarrow.table({"file_name": ["objects365_v2_00922765.jpg"]})
    (tmp_path / "splits").mkdir()
    parquet.write_table(table, tmp_path / "splits/ref-l4-val.parquet")
    status, printed, _ = leaks(pretraining(tmp_path, out / "coco"), "--held-out", tmp_path / "splits")
    assert status == 3
    assert (
        OneLine("not checked: ", "COCO ids", "Objects365 ids", "Ref-L4 val", "no official file") in printed.splitlines()
    )


def test_the_table_has_every_training_record_of_a_held_out_image(tmp_path, leaks):
    folder = own(tmp_path, "a.jpg")
    shutil.copy(folder / "a.jpg", folder / "copy.jpg")
    lines = [{"image": image, "caption": text} for image in ("a.jpg", "copy.jpg") for text in ("one", "two")]
    write(folder / "part.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    table = tmp_path / "new/table.tsv"
    status, printed, _ = leaks(pretraining(tmp_path, folder), retrieval(tmp_path, folder / "a.jpg"), "--out", table)
    assert status == 1 and "contains 1 of 1 image of" in printed and "(1 by path)" in printed
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    assert [(row[2], row[3].rpartition("part.jsonl")[2]) for row in rows] == [
        ("path", ":1"),
        ("path", ":2"),
        ("content", ":3"),
        ("content", ":4"),
    ]


def test_crops_and_recompressed_copies_are_found_by_perceptual_hash(tmp_path, leaks):
    folder = own(tmp_path, *(f"{n}.jpg" for n in range(4)))
    for n in range(4):
        photograph(n).save(folder / f"{n}.jpg")
    photograph(0).crop((8, 6, 312, 234)).save(tmp_path / "crop.jpg", quality=85)
    photograph(1).resize((160, 120)).convert("L").save(tmp_path / "small.jpg", quality=40)
    photograph(9).save(tmp_path / "other.jpg")
    config, table = pretraining(tmp_path, folder), tmp_path / "table.tsv"
    test = retrieval(tmp_path, *(tmp_path / f"{name}.jpg" for name in ("crop", "small", "other")))
    status, printed, _ = leaks(config, test)
    assert status == 3 and "contains none of 3 images" in printed and "--perceptual" in printed
    status, printed, _ = leaks(config, test, "--perceptual", "--out", table)
    assert status == 1 and OneLine("2 pairs", "4 x 3 images") in printed.splitlines()
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    assert [(row[2], row[3][-1], row[4].rpartition("/")[2]) for row in rows] == [
        ("look", "1", "test.json[0]"),
        ("look", "2", "test.json[1]"),
    ]
    assert "of 2 x 2 images" in leaks(config, test, "--perceptual", "--sample", 2, "--seed", 1)[1]
    (tmp_path / "other.jpg").write_bytes(b"not an image")
    printed = leaks(config, test, "--perceptual")[1]
    assert OneLine(f"not checked: {test} evaluation.test.test", "1 of 3", "appearance") in printed.splitlines()


def test_without_imagehash_the_command_says_how_to_install_it(tmp_path, leaks, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    status, printed, error = leaks(pretraining(tmp_path, own(tmp_path, "a.jpg")), "--perceptual")
    assert (status, printed) == (2, "") and "imagehash" in error and 'pip install -e ".[leaks]"' in error
