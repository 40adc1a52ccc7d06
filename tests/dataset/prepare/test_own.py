"""``run.py prepare own`` converts each file format to the records of docs/own_data.md, and no broken row is lost."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from dataset.config import CaptionedSplitConfig, GroundingSplitConfig
from dataset.formats.captioned import read_captioned_images
from dataset.formats.csv_rows import CsvFile
from dataset.records.schema import ImageKeys, RawRecord, parse_region_record
from dataset.tasks.grounding import read_phrases
from run import main
from tests.messages import OneLine
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (40, 20)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


@pytest.fixture
def convert(folder, capsys):
    """Converts a text or JSON value, and returns the exit status, the records, the broken rows and the output."""

    def run(content: object, *flags: str, name: str = "mine.csv"):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
        out = folder / "out.jsonl"
        status = main(
            ["prepare", "own", str(folder / name), "--out", str(out), "--images", str(folder / "pictures"), *flags]
        )
        printed = capsys.readouterr()
        records, broken = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            for path in (out, folder / "out_broken.jsonl")
        )
        return status, records, broken, printed.out + printed.err

    return run


def test_captions_are_read_from_a_csv_file(convert, folder):
    status, records, broken, printed = convert('image,caption,mood\na.png,"a dog, running",calm\nb.png,a cat,sad\n')
    assert (status, broken) == (0, [])
    assert records[0] == {"image": "pictures/a.png", "caption": "a dog, running"}
    assert "2 captions of 2 rows (CSV)" in printed and OneLine("dropped", "mood") in printed.splitlines()
    read = read_captioned_images(CaptionedSplitConfig(annotations=str(folder / "out.jsonl")), "data.train", 0.0)
    assert len(read.images) == 2


def test_captions_of_an_image_become_one_record(convert):
    """Pre-training counts each record as an image: two records with the same image would be each other's negatives."""
    rows = ["a.png,a dog,1,x", "b.png,a cat,2,y", "a.png,an animal,,", "a.png,a dog again,3,x", "b.png,two cats,2,x"]
    status, records, broken, printed = convert("\n".join(["image,caption,coco_id,image_id", *rows]) + "\n")
    assert status == 1
    assert records == [
        {"image": "pictures/a.png", "caption": ["a dog", "an animal"], "coco_id": 1, "image_id": "x"},
        {"image": "pictures/b.png", "caption": "a cat", "coco_id": 2, "image_id": "y"},
    ]
    assert [(each["reason"], each["record"]["caption"]) for each in broken] == [
        ("wrong id", "a dog again"),
        ("wrong id", "two cats"),
    ]
    assert "3 captions in 2 records of 5 rows (CSV)" in printed


def test_the_folder_of_the_records_is_created_once_there_are_records(folder, capsys):
    """The first command of docs/own_data.md writes to data/own, which a new user does not have."""
    out = folder / "data/own/captions_train.jsonl"
    command = ["prepare", "own", str(folder / "mine.csv"), "--images", str(folder / "pictures"), "--out", str(out)]
    (folder / "mine.csv").write_text("image,caption\nnone.png,a cat\n")
    assert main(command) == 2
    assert not (folder / "data").exists()
    (folder / "mine.csv").write_text("image,caption\na.png,a cat\n")
    assert main(command) == 0
    assert len(out.read_text().splitlines()) == 1


@pytest.mark.parametrize("key", ["grounding", "detection"])
def test_odvg_lines_are_referred_to_the_command_that_reads_them(convert, folder, key):
    content = {"caption": "a dog", "regions": [], "instances": []}
    status, *_, printed = convert({"filename": "a.png", "height": 20, "width": 40, key: content}, name="odvg.jsonl")
    assert status == 2
    assert printed == OneLine("odvg.jsonl", "ODVG", f"python run.py prepare odvg --raw {folder} --out {folder}")


def test_broken_rows_are_counted_and_written_with_a_reason(convert, folder):
    rows = "image,caption\na.png,a dog\nnone.png,a cat\nb.png,\nb.png,a cow,extra\n"
    status, records, broken, printed = convert(rows)
    assert status == 1
    assert [record["caption"] for record in records] == ["a dog"]
    assert [each["reason"] for each in broken] == ["missing image", "missing key", "wrong columns"]
    assert broken[0]["place"] == f"{folder}/mine.csv:3" and broken[0]["record"] == {
        "image": "none.png",
        "caption": "a cat",
    }
    assert OneLine("3", "1 missing image", "1 missing key", "1 wrong columns") in printed.splitlines()


def test_ids_of_photographs_are_kept(convert):
    _, records, _, printed = convert("image,caption,coco_id,url\na.png,a dog,009,http://x/1\nb.png,a cat,,\n")
    assert (records[0]["coco_id"], records[0]["url"]) == (9, "http://x/1") and "coco_id" not in records[1]
    assert "dropped" not in printed
    rows = "image,caption,vg_id,x1,y1,x2,y2\na.png,dog,7,1,2,9,12\na.png,cat,,1,2,9,12\na.png,cow,8,1,2,9,12\n"
    _, records, broken, _ = convert(rows + "b.png,cat,x7,1,2,9,12\n", "--overwrite")
    assert len(records) == 1 and records[0]["vg_id"] == 7 and len(records[0]["elems"]) == 2
    assert [(each["reason"], "vg_id" in each["detail"]) for each in broken] == [
        ("wrong id", True),
        ("wrong type", True),
    ]
    statements = [{"image": "a.png", "image2": "b.png", "sentence": "a", "label": "true", "coco_id": 7}]
    assert "dropped" in convert(statements, "--overwrite", name="mine.json")[3]


@pytest.mark.parametrize("number", ["1_0", "\u0661\u0662", "nan", "inf", "0x5", "1,0"])
def test_only_decimal_numbers_are_read_as_numbers(convert, number):
    rows = f'image,caption,x1,y1,x2,y2\na.png,dog,1,2,"{number}",12\na.png,cat,30,10,4e1,+20.0\n'
    status, records, broken, _ = convert(rows)
    assert status == 1 and [each["reason"] for each in broken] == ["wrong type"]
    assert [element["caption"] for element in records[0]["elems"]] == ["cat"]


def test_a_broken_row_is_named_by_its_first_line(convert, folder):
    _, records, broken, _ = convert('image,caption\n\na.png,"two\nlines"\nb.png,"two\nlines",more\n')
    assert [record["caption"] for record in records] == ["two\nlines"]
    assert [each["place"] for each in broken] == [f"{folder}/mine.csv:5"]


def test_rows_with_box_corners_become_the_regions_of_an_image(convert, folder):
    rows = "image,caption,x1,y1,x2,y2\na.png,dog,1,2,11,12\na.png,cat,30,10,40,20\na.png,cow,30,10,90,20\nb.png,hen,0,0,x,5\n"
    status, records, broken, printed = convert(rows)
    assert status == 1
    assert records == [
        {
            "image": "pictures/a.png",
            "elems": [{"bb": [1, 2, 10, 10], "caption": "dog"}, {"bb": [30, 10, 10, 10], "caption": "cat"}],
        }
    ]
    assert [each["reason"] for each in broken] == ["box outside image", "wrong type"]
    assert OneLine("2 regions", "1 record", "4 rows") in printed.splitlines()
    assert len(read_phrases(GroundingSplitConfig(annotations=str(folder / "out.jsonl")), "data.train", 0.0)) == 2


def test_corners_in_records_are_converted_only_on_request(convert):
    corners = [{"image": "a.png", "elems": [{"bb": [20, 8, 40, 20], "caption": "dog"}] * 4}]
    status, records, _, printed = convert(corners, name="mine.json")
    assert (status, records) == (2, [])
    assert "boxes look like x1, y1, x2, y2" in printed and "--boxes corners" in printed
    status, records, _, _ = convert(corners, "--boxes", "corners", name="mine.json")
    assert status == 0 and records[0]["elems"][0]["bb"] == [20, 8, 20, 12]
    status, _, _, printed = convert(
        [{"image": "a.png", "bbox": [1, 2, 3, 4], "caption": "dog"}], "--overwrite", name="m.json"
    )
    assert status == 2 and "the form of bbox is unknown" in printed


def test_phrases_with_any_number_of_boxes_and_their_other_texts_are_kept(convert):
    texts = {"long_caption": "a dog that runs", "hard_negatives": ["a cat"]}
    elems = [
        {"bb": [[1, 2, 10, 8], [20, 2, 10, 8]], "caption": "two dogs"},
        {"bb": [], "caption": "a zebra"},
        {"bb": [1, 2, 10, 8], "caption": "a dog", **texts},
        {"bb": [[1, 2, 10, 8], [35, 2, 10, 8]], "caption": "outside"},
    ]
    status, records, broken, _ = convert(
        [{"image": "a.png", "caption": "pets", **texts, "elems": elems}], name="m.json"
    )
    assert status == 1 and [each["reason"] for each in broken] == ["box outside image"]
    assert records == [{"image": "pictures/a.png", "caption": "pets", **texts, "elems": elems[:3]}]


def test_records_with_phrases_are_kept_and_records_that_training_rejects_are_broken(convert):
    dog = {"bb": [1, 2, 10, 8], "caption": "a dog"}
    rows = [
        {"image": "a.png", "caption": "first", "image_id": 3, "elems": [dog]},
        {"image": "a.png", "caption": "second", "elems": []},
        {"image": "b.png", "caption": "no phrases"},
        {
            "image": "b.png",
            "elems": [dog, {**dog, "hard_negatives": [1]}, {**dog, "attributes": [3]}, {**dog, "caption": []}],
        },
        {"image": "b.png", "caption": "kept", "long_caption": 5, "elems": [dog]},
        {"image": "b.png", "elems": []},
    ]
    status, records, broken, _ = convert(rows, name="mine.json")
    assert status == 1
    assert [(record.get("caption"), record.get("image_id"), len(record.get("elems", ()))) for record in records] == [
        ("first", 3, 1),
        ("second", None, 0),
        ("no phrases", None, 0),
        (None, None, 1),
        ("kept", None, 1),
    ]
    assert [each["reason"] for each in broken] == [
        "wrong type",
        "wrong type",
        "empty text",
        "wrong type",
        "missing key",
    ]
    for record in records:
        assert not parse_region_record(RawRecord(record, "a:1", Path(".")), ImageKeys(), "caption").broken


def test_coco_captions_and_instances_become_records(convert):
    images = [{"id": 7, "file_name": "a.png", "width": 40, "height": 20}]
    captions = [{"image_id": 7, "id": 1, "caption": "a dog"}, {"image_id": 8, "id": 2, "caption": "a cat"}]
    status, records, broken, printed = convert({"images": images, "annotations": captions}, name="captions.json")
    assert status == 1 and "(COCO)" in printed
    assert records == [{"image": "pictures/a.png", "caption": "a dog", "image_id": 7}]
    assert broken[0]["reason"] == "missing key"
    objects = [
        {"image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 3},
        {"image_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 1},
    ]
    content = {"images": images, "annotations": objects, "categories": [{"id": 3, "name": "dog"}]}
    status, records, broken, _ = convert(content, "--overwrite", name="instances.json")
    assert records == [{"image": "pictures/a.png", "elems": [{"bb": [1, 2, 3, 4], "caption": "dog"}]}]
    assert [each["reason"] for each in broken] == ["crowd"]


def test_questions_and_statements_become_records(convert):
    status, records, _, _ = convert(
        "picture\tquestion\tanswer\na.png\twhat is it?\ta dog\n", "--rename", "picture=image", name="q.tsv"
    )
    assert status == 0
    assert records == [{"image": "pictures/a.png", "question": "what is it?", "answer": "a dog"}]
    rows = "image,image2,sentence,label\na.png,b.png,both are black,true\na.png,b.png,one is red,perhaps\n"
    status, records, broken, _ = convert(rows, "--overwrite")
    assert status == 1 and broken[0]["detail"].startswith("label is 'perhaps'")
    assert records == [{"images": ["pictures/a.png", "pictures/b.png"], "sentence": "both are black", "label": "true"}]


@pytest.mark.parametrize(
    ("content", "flags", "reported"),
    [
        ("image,words\na.png,x\n", [], ("found columns: image, words",)),
        ("image,caption,caption\na.png,x,y\n", [], ("name each column once",)),
        ("image,caption\nnone.png,x\n", [], ("1", "1 missing image")),
        ("image,caption,x1,y1,x2,y2\na.png,x,0.1,0.1,0.5,0.5\n", [], ("lie within 0 and 1",)),
        ("image,caption,x1,y1,x2,y2\na.png,x,1,1,5,5\n", ["--boxes", "xywh"], ("x1, y1, x2, y2",)),
        ("image,caption\na.png,x\n", ["--rename", "caption"], ("OLD=NEW",)),
        ("image,caption\n", [], ("mine.csv", "no rows")),
        ('image,"caption\na.png,x\n', [], ("mine.csv:1", "column 2", "quotation mark")),
        (
            'image,caption\na.png,"a ""red"" dog"\nb.png,"a dog' + "\na.png,x" * 1000,
            [],
            ("mine.csv:3", "'caption'", "close"),
        ),
        ('image,caption\n"a".png,x\n', [], ("mine.csv:2", "'image'", "quotation mark")),
        ('image,caption\na.png,"two\nlines"\nb.png,"a dog\nb.png,"a cat"\n', [], ("mine.csv:4", "'caption'")),
        (f"image,caption\na.png,{'x' * 140_000},y\n", [], ("mine.csv:2", "'caption'", "shorten the text")),
        (f'image,caption\n"a.png",{"x" * 140_000}\n', [], ("mine.csv:2", "'caption'", "shorten the text")),
        ("image,caption\na.png,x,y\nb.png,x,y\n", [], ("none of 2 rows", "2 wrong columns", "3 values", "mine.csv:2")),
        ("image,caption\n , \n,\n", [], ("mine.csv", "image, caption has no value in any row")),
        ("image,question,answer\na.png,what?,\nb.png,who?, \n", [], ("mine.csv", "answer", "no value in any row")),
        ("image,caption,x1,y1,x2,y2\na.png,dog,,,,\n", [], ("x1, y1, x2, y2", "no value in any row")),
    ],
)
def test_mistakes_are_reported_in_one_line_and_write_nothing(content, flags, reported, convert):
    status, records, broken, printed = convert(content, *flags)
    assert (status, records, broken) == (2, [], [])
    assert OneLine(*reported) in printed.splitlines() and printed.startswith("error: ") and printed.count("\n") == 1


def test_an_unclosed_quotation_mark_is_found_in_little_memory():
    file = CsvFile('image,caption\na.png,"' + "x" * 2_000_000, "mine.csv")
    tracemalloc.start()
    with pytest.raises(UserError, match=r"mine\.csv:2: column 'caption' .*close its quotation mark"):
        list(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_a_text_that_contains_rows_is_reported(convert, folder, caplog):
    convert('image,caption\na.png,"a dog,\nrunning"\n')
    assert not caplog.messages
    rows = "".join(f"{name}.png,a cat\n" for name in "ab" * 500)
    status, records, _, _ = convert(f'image,caption\na.png,"a dog\n{rows}b.png,a cow"\n', "--overwrite")
    assert status == 0 and len(records) == 1
    assert caplog.messages == [OneLine(f"{folder}/mine.csv:2", "'caption'", "1,001 lines", "quotation marks")]


def test_nothing_is_overwritten_unless_requested(convert, folder):
    (folder / "out.jsonl").write_text("{}\n")
    status, records, _, printed = convert("image,caption\na.png,x\n")
    assert status == 2 and records == [{}] and "already exists" in printed
