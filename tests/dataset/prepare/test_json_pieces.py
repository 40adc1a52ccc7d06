"""Official JSON files are parsed in pieces. The values equal the result of ``json.loads`` wherever a block ends, and any other
file is reported in one line."""

from __future__ import annotations

import codecs
import io
import json
import random

import pytest

from dataset.prepare import json_pieces as module
from dataset.prepare.json_pieces import Piece, json_pieces, official_pieces
from dataset.prepare.raw_folder import RawFile
from tests.messages import OneLine, naming
from utils.errors import UserError

SCALARS = [
    0,
    -7,
    1.5,
    -2.5e-7,
    1e300,
    10**30,
    True,
    False,
    None,
    "",
    'say "yes"\\\n',
    "žluťoučký \U0001f600 kůň",
    "\u2028",
    "\ud83d",
]


def random_value(rng: random.Random, depth: int):
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(SCALARS)
    if rng.random() < 0.5:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice("abcdé") * (n + 1): random_value(rng, depth - 1) for n in range(rng.randrange(4))}


def pieces(content: bytes) -> list[Piece]:
    return list(json_pieces(io.BytesIO(content), "raw.json"))


def expected(value) -> list[tuple]:
    """Section, key and value of each piece, as specified by the docstring of ``json_pieces``."""
    if isinstance(value, list):
        return [("", index, item) for index, item in enumerate(value)]
    found = []
    for key, item in value.items():
        found += (
            [(key, index, each) for index, each in enumerate(item)] if isinstance(item, list) else [("", key, item)]
        )
    return found


def fault(content: bytes) -> str:
    with pytest.raises(UserError) as error:
        pieces(content)
    message = str(error.value)
    assert message.startswith("raw.json") and "\n" not in message
    return message


@pytest.mark.parametrize("block", range(1, 8))
def test_pieces_equal_json_loads_wherever_a_block_ends(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = random.Random(block)
    for number in range(40):
        value = random_value(rng, 4)
        if not isinstance(value, list | dict):
            value = [value, value]
        text = json.dumps(value, ensure_ascii=number % 2 == 0, indent=rng.choice([None, 1]))
        content = text.encode("utf-8", "backslashreplace")
        found = pieces(codecs.BOM_UTF8 + content + b" \n" if number % 3 == 0 else content)
        assert [each[:3] for each in found] == expected(value)
        assert [json.loads(each.text) for each in found] == [each.value for each in found]


@pytest.mark.parametrize("number", ["1.5", "1e5", "-2.5E-17", "123456789012345678901234567890", "-Infinity"])
def test_a_number_at_the_end_of_a_block_is_complete(number, monkeypatch):
    for block in range(1, 9):
        monkeypatch.setattr(module, "BLOCK", block)
        assert [each.value for each in pieces(f"[{number},{number}]".encode())] == [json.loads(number)] * 2


@pytest.mark.parametrize("block", [3, 1 << 22])
def test_a_file_truncated_at_any_byte_is_reported_in_one_line(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    value = {
        "info": {"y": 2.5},
        "images": [{"id": 1, "t": "kůň \U0001f600"}, {"id": 20}],
        "n": None,
        "more": [[1], True],
    }
    whole = codecs.BOM_UTF8 + json.dumps(value, ensure_ascii=False).encode()
    assert len(pieces(whole)) == 6
    for length in range(len(whole)):
        fault(whole[:length])
    array = b'[{"a": "\\u00e9\\ud83d\\ude00"}, 12, -1.5e3]'
    assert len(pieces(array)) == 3
    for length in range(len(array)):
        fault(array[:length])


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ("it is empty",)),
        (b" \n\t", ("it is empty",)),
        (b"PK\x03\x04 a zip", ("'P'", "array", "object")),
        (b"<html>not found</html>", ("it begins with '<'",)),
        (b"3", ("it begins with '3'",)),
        (json.dumps([{"a": 1}]).encode("utf-16"), ("UTF-8",)),
        ('["žluť"]'.encode("cp1250"), ("UTF-8",)),
        (b'[{"a": 1} {"a": 2}]', ("[0]", "comma", "bracket")),
        (b'{"images": [1, 2], "a" 3}', ("key", "colon")),
        (b'{"images": [1], 3: 4}', ("key", "colon")),
        (b'{"images": [1] "a": 3}', ("images[0]", "comma", "brace")),
        (b"[1] [2]", ("'[' follows the end of the JSON",)),
        (b'[{"id": 1}, {"id": x, "and": "much more text follows"}]', ("[1]: not JSON: Expecting value",)),
        (b"[" + b"1" * 5000 + b"]", ("[0]", "digits")),
        (b"[" * 100_000, ("not JSON",)),
        (b'{"a": ' * 100_000, ("not JSON",)),
    ],
    ids=lambda value: value[:12].decode("latin1") if isinstance(value, bytes) else "",
)
def test_another_file_is_reported_with_its_location(content, fragments):
    assert fault(content) == OneLine(*fragments)


def test_a_key_with_line_breaks_does_not_break_the_line():
    assert "a\\nb" in fault(b'{"a\\nb": [1, 2')


def test_nan_and_infinity_are_read_as_by_python():
    first, second = pieces(b'[NaN, {"w": Infinity}]')
    assert first.value != first.value and second.value == {"w": float("inf")}


def test_an_endless_item_is_rejected_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10)
    monkeypatch.setattr(module, "MAX_ITEM_CHARACTERS", 100)
    assert len(pieces(json.dumps(["a" * 70, "b" * 70, "c" * 70]).encode())) == 3
    stream = io.BytesIO(b'["' + b"a" * 10_000)
    with pytest.raises(UserError, match=naming("raw.json", "100")):
        list(json_pieces(stream, "raw.json"))
    assert stream.tell() < 200


def test_items_are_yielded_before_the_whole_file_is_read(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    stream = io.BytesIO(json.dumps({"images": list(range(1000, 2000))}).encode())
    first = next(json_pieces(stream, "raw.json"))
    assert first[:3] == ("images", 0, 1000) and stream.tell() < 60


@pytest.mark.parametrize(
    ("content", "location"),
    [
        ({"info": {}, "images": [{"id": 1}, {"name": 2}]}, "images[1]"),
        ({"images": [{"id": 1}, 7]}, "images[1]"),
        ([{"id": 1}, {"id": 2}, []], "[2]"),
        ({"one": {"id": 1}, "two": {}}, "two"),
    ],
)
def test_a_value_that_is_missing_or_of_another_type_names_its_item_and_the_data_set(content, location, tmp_path):
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(content))
    sections = ("images",) if "images" in content else ()

    def ids() -> list[int]:
        with official_pieces(RawFile(path), "Birds", *sections) as pieces:
            return [piece.value["id"] for piece in pieces]

    with pytest.raises(UserError) as error:
        ids()
    assert str(error.value) == OneLine(str(path), location, "Birds's file")
