"""Annotation files: which rows are read, which rows are counted as broken, and the message that reports the broken rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError
from dataset.formats.annotations import (
    ImageFiles,
    Row,
    check_splits,
    images_folder,
    parse_rows,
    read_json,
    read_records,
    read_rows,
    texts_of,
)
from dataset.records.schema import RawRecord, parse_text_record, texts_in_language
from tests.messages import OneLine, naming
from utils.errors import UserError

KEY = "data.train"


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "a.json") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return str(path)

    return write


def values(rows) -> list[dict]:
    return [row.values for row in rows]


def test_an_array_and_lines_give_the_same_rows_with_locations(write):
    records = [{"n": 1}, {"n": 2}]
    array = read_rows(write(json.dumps(records, indent=1), "a.json"), KEY)
    lines = read_rows(write("".join(json.dumps(record) + "\n" for record in records), "a.jsonl"), KEY)
    assert values(array) == values(lines) == records
    assert [Path(row.location).name for row in array] == ["a.json[0]", "a.json[1]"]
    assert [Path(row.location).name for row in lines] == ["a.jsonl:1", "a.jsonl:2"]


def test_blank_lines_are_skipped_but_counted_in_line_numbers(write):
    rows = read_rows(write('\n{"n": 1}\r\n\n  \n{"n": 2}'), KEY)
    assert values(rows) == [{"n": 1}, {"n": 2}]
    assert [row.location.rpartition(":")[2] for row in rows] == ["2", "5"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_only_at_a_line_feed(write, separator):
    """Unicode calls these characters line breaks. JSON allows them unescaped in a string, and JSON Lines does not split at
    them."""
    record = {"caption": f"a dog{separator}and a cat"}
    rows = read_rows(write(json.dumps(record, ensure_ascii=False) + '\n{"n": 2}\n'), KEY)
    assert values(rows) == [record, {"n": 2}]


def test_a_line_without_a_json_object_is_returned_as_an_error(write):
    path = write('{"n": 1}\n{"n": \n[1, 2]\n"text"\n{"n": 5}\n')
    rows = read_rows(path, KEY)
    kinds = [(row.reason, row.place) if isinstance(row, BrokenRecord) else row.values["n"] for row in rows]
    assert kinds == [1, ("bad json", f"{path}:2"), ("wrong type", f"{path}:3"), ("wrong type", f"{path}:4"), 5]


def test_an_array_entry_that_is_not_an_object_is_returned_as_an_error(write):
    path = write('[{"n": 1}, 7]')
    first, second = read_rows(path, KEY)
    assert first.values == {"n": 1}
    assert (second.reason, second.place, second.detail) == ("wrong type", f"{path}[1]", "7 is not an object")


@pytest.mark.parametrize("text", ["", "\n \n", "[]", " [ ]\n"])
def test_a_file_without_rows_is_reported(write, text):
    path = write(text)
    with pytest.raises(UserError) as error:
        read_rows(path, KEY)
    assert str(error.value) == OneLine(KEY, path, "empty")


@pytest.mark.parametrize("read", [read_rows, read_json])
def test_a_missing_file_is_reported_with_key_path_and_remedy(read):
    with pytest.raises(UserError, match=naming("data.train", "gone.json", "/")):
        read("gone.json", KEY)


@pytest.mark.parametrize("read", [read_rows, read_json])
def test_a_file_that_is_not_text_is_reported_in_one_line(read, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "a.bin"):
        with pytest.raises(UserError, match=naming("data.train", path)):
            read(str(path), KEY)


def test_damage_in_an_array_is_reported_with_its_line(write):
    path = write('[{"n": 1},\n{"n": 2},\n{"n" 3}]')
    with pytest.raises(UserError, match=f"^data.train: {path}:3: not JSON: "):
        read_rows(path, KEY)


def row(number: int, **more) -> Row:
    return Row({"n": number, **more}, f"a:{number}")


def number_below_7(row: Row) -> int:
    number = row.get("n", int)
    if number >= 7:
        raise BrokenRecordError("empty text", f"{number} is too much")
    return number


def test_broken_rows_up_to_the_allowed_share_are_skipped_with_a_warning(caplog):
    rows = [row(n) for n in range(10)]
    with caplog.at_level("WARNING"):
        assert parse_rows(rows, number_below_7, KEY, max_broken=0.3) == list(range(7))
    assert caplog.messages == [OneLine("data.train", "3 of 10", "3 empty text", "a:7: 7 is too much")]


def test_one_broken_row_above_the_allowed_share_is_an_error():
    with pytest.raises(UserError, match=r"3 of 10 records .* are broken"):
        parse_rows([row(n) for n in range(10)], number_below_7, KEY, max_broken=0.29)


def test_nothing_is_logged_without_broken_rows(caplog):
    assert parse_rows([row(n) for n in range(5)], number_below_7, KEY, max_broken=0.0) == list(range(5))
    assert not caplog.messages


def test_the_message_counts_each_kind_and_gives_its_first_location():
    rows = [
        Row({}, "a:1"),
        BrokenRecord("a:2", "bad json", "Expecting value"),
        *[row(n) for n in (8, 9)],
        row(1),
        Row({"m": 1}, "a:11"),
        Row({"n": "x"}, "a:12"),
        row(7),
    ]
    with pytest.raises(UserError) as error:
        parse_rows(rows, number_below_7, KEY, max_broken=0.1)
    assert str(error.value) == (
        OneLine(
            "data.train",
            "7 of 8",
            "3 empty text",
            "a:8: 8 is too much",
            "2 missing key",
            "a:1",
            "1 bad json",
            "a:2: Expecting value",
            "1 wrong type",
            "a:12",
        )
    )


@pytest.mark.parametrize(
    ("key", "share", "remedy"),
    [
        ("data.train", 0.01, "data.max_broken"),
        ("data.train", 0.0, "data.max_broken"),
        ("evaluation.validation", 0.0, "held-out set"),
        ("evaluation.test.dev", 0.0, "held-out set"),
    ],
)
def test_the_remedy_depends_on_training_or_held_out_data(key, share, remedy):
    with pytest.raises(UserError) as error:
        parse_rows([row(1), row(8)], number_below_7, key, max_broken=share)
    assert remedy in str(error.value)


def test_no_share_allows_every_row_to_be_broken():
    with pytest.raises(UserError, match=r"2 of 2 records .* are broken"):
        parse_rows([row(8), row(9)], number_below_7, KEY, max_broken=1.0)


def test_errors_of_a_row_list_its_keys_and_quote_the_value():
    with pytest.raises(BrokenRecordError, match=naming("missing key", "image", "caption, n")):
        row(1, caption="a").get("image", str)
    with pytest.raises(BrokenRecordError, match="missing key"):
        row(1, image=None).get("image", str)
    with pytest.raises(BrokenRecordError, match=naming("wrong type", "image", "3", "str")):
        row(1, image=3).get("image", str)
    assert row(1, label=False).get("label", object) is False


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "missing key"),
        ([], "empty text"),
        ("", "empty text"),
        (["a", " \n"], "empty text"),
        (5, "wrong type"),
        (["a", None], "wrong type"),
        ({"en": 5}, "wrong type"),
        ({"en": "a", "de": ""}, "empty text"),
    ],
)
def test_values_that_are_not_texts_are_rejected_by_kind(value, kind):
    with pytest.raises(BrokenRecordError) as error:
        texts_of(row(1, caption=value), "caption")
    assert error.value.reason == kind


def test_one_language_or_all_can_be_read_from_texts_by_language():
    captions = [{"en": "a frog", "de": "ein Frosch"}, {"en": "a toad", "de": "eine Kröte"}]
    assert texts_of(row(1, caption=captions), "caption", "de") == ["ein Frosch", "eine Kröte"]
    assert texts_of(row(1, caption=captions[0]), "caption") == ["a frog", "ein Frosch"]
    with pytest.raises(BrokenRecordError, match=naming("missing key", "caption", "fr")):
        texts_of(row(1, caption=captions), "caption", "fr")


def test_a_text_or_a_list_of_texts_is_accepted():
    assert texts_of(row(1, caption="a dog"), "caption") == ["a dog"]
    assert texts_of(row(1, caption=["a dog", "a cat"]), "caption") == ["a dog", "a cat"]


def test_an_empty_split_is_reported_with_the_splits_that_have_records():
    found = ["train", "train", "val"]
    check_splits(found, ["val", "train"], KEY, "refs.p")
    with pytest.raises(UserError) as error:
        check_splits(found, ["train", "testA", "testB"], KEY, "refs.p")
    expected = "data.train: no record of refs.p is in split testA, testB; splits in the file: train (2), val (1)"
    assert str(error.value) == expected
    with pytest.raises(UserError, match=r"splits in the file: none$"):
        check_splits([], ["val"], KEY, "refs.p")


def test_images_are_found_below_their_folder_or_by_absolute_path(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (5, 3)).save(tmp_path / "sub" / "a.png")
    pictures = ImageFiles(tmp_path)
    for name in ("sub/a.png", str(tmp_path / "sub" / "a.png")):
        source = pictures.find(name, "a:1")
        assert source.location == "a:1"
        assert pictures.size(source) == (5, 3)
        assert source.load() == (tmp_path / "sub" / "a.png").read_bytes()


@pytest.mark.parametrize("name", ["gone.png", "", ".", "a\0b", "/9j/" + "A" * 5000], ids=lambda name: name[:8])
def test_an_invalid_image_name_is_a_missing_image_with_a_short_message(tmp_path, name):
    """Pre-training records hold the image itself, and base64 text is longer than a file name may be."""
    pictures = ImageFiles(tmp_path)
    for place in ("a:1", "a:2"):
        with pytest.raises(BrokenRecordError) as error:
            pictures.find(name, place)
        assert error.value.reason == "missing image"
        assert len(error.value.detail) < 400


def test_each_image_is_looked_up_once(tmp_path, monkeypatch):
    Image.new("RGB", (5, 3)).save(tmp_path / "a.png")
    asked = []
    is_file = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path.name) or is_file(path))
    pictures = ImageFiles(tmp_path)
    for place in range(5):
        pictures.find("a.png", f"a:{place}")
        with pytest.raises(BrokenRecordError):
            pictures.find("b.png", f"a:{place}")
    assert asked == ["a.png", "b.png"]


def test_the_size_of_a_file_that_is_not_an_image_is_a_broken_record(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    pictures = ImageFiles(tmp_path)
    with pytest.raises(BrokenRecordError, match=r"^unreadable image: "):
        pictures.size(pictures.find("a.png", "a:1"))


def test_images_are_looked_up_next_to_the_annotations_by_default():
    assert images_folder(None, "data/x/a.json") == Path("data/x")
    assert images_folder("pictures", "data/x/a.json") == Path("pictures")
    assert images_folder("~/pictures", "a.json") == Path.home() / "pictures"


TEXTS = [
    "a dog",
    ["a dog", "a cat"],
    {"en": "a dog", "de": ["ein Hund", "der Hund"]},
    [{"en": "a dog"}, "a cat"],
    [],
    {},
    [{}],
    {"en": []},
    3,
    [["a dog"]],
    [None],
]


@pytest.mark.parametrize("value", TEXTS, ids=repr)
def test_annotations_and_shards_accept_the_same_texts(value):
    """Either both accept a value and return the same texts, or both reject it for the same reason."""
    raw = RawRecord({"caption": value}, "a.jsonl:1", Path())
    outcomes = []
    for read in (
        lambda: texts_of(row(1, caption=value), "caption"),
        lambda: [each for text in parse_text_record(raw, "caption") for each in texts_in_language(text, None)],
    ):
        try:
            outcomes.append(read())
        except BrokenRecordError as error:
            outcomes.append((error.reason, error.detail))
    assert outcomes[0] == outcomes[1]


def test_a_boolean_is_not_accepted_as_a_number():
    with pytest.raises(BrokenRecordError, match=naming("number", "True", "int")):
        Row({"number": True}, "a:1").get("number", int)
    assert Row({"flag": True}, "a:1").get("flag", bool) is True


def test_the_remedy_fits_the_error():
    outside = [Row({"n": n}, f"a:{n}") for n in range(4)]

    def box(row: Row) -> int:
        raise BrokenRecordError("box outside image", "leaves the image")

    with pytest.raises(UserError, match=naming("x, y, width, height", "doctor")):
        parse_rows(outside, box, KEY, 0.01)
    with pytest.raises(UserError, match=naming("right file", "right format")):
        parse_rows(outside, lambda row: row.get("caption", str), KEY, 0.01)
    mixed = [row(n) for n in range(10)]
    with pytest.raises(UserError, match=naming("data.max_broken")):
        parse_rows(mixed, number_below_7, KEY, 0.01)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("image,caption\na.png,a dog\n", ("CSV", "image, caption")),
        ("image\tcaption\na.png\ta dog\n", ("CSV", "image, caption")),
        ('{"images": [{"id": 1}], "annotations": [{"image_id": 1}]}', ("COCO's",)),
    ],
)
def test_a_file_in_another_format_is_reported_with_the_command_that_converts_it(write, content, what):
    path = write(content)
    with pytest.raises(UserError, match=naming(*what, f"python run.py prepare own {path} --out")):
        read_records(path, KEY)


def test_an_official_file_names_its_format_where_the_task_reads_it(write):
    path = write('{"images": [], "dataset": "coco"}')
    with pytest.raises(UserError, match=naming("Karpathy's", "format: karpathy")):
        read_records(path, KEY, ("karpathy",))
    with pytest.raises(UserError, match=naming("Karpathy's", "task")):
        read_records(path, KEY, ("refcoco",))
    with pytest.raises(UserError, match=naming("JSON lines", "remove format")):
        read_json(write('{"n": 1}\n{"n": 2}\n'), KEY)
