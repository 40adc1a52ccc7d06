"""Properties of converted annotations: ODVG lines are read back as they were written, and any ODVG line or GRIT row becomes a
record that the parser accepts, or is counted under a reason."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset.broken import BrokenRecordError
from dataset.media.sources import ImageSource
from dataset.prepare.to_odvg import to_odvg
from dataset.records.schema import Description, ImageKeys, ImageRecord, parse_region_record
from dataset.shards.readers import Shards
from run import main
from tests.dataset.prepare.official import (
    check_record,
    counted,
    image,
    in_this_process,
    parsed_records,
    prepared,
    write,
)
from tests.properties import JSON, PROPERTY_OF_FILES, RECORDS, TEXTS, mostly

SIZE = (64, 48)
MAX_BROKEN = 1.0
"""More than 1, because a line may have several faults."""
WORDS = st.sampled_from(["a", "red", "dog", "two", "cats", "ünder", "the", "table", "7", "bats"])
PHRASES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
NAMES = st.sampled_from(["a", "b/c", "x" * 120, f"{'folder' * 20}/ü{'y' * 90}", "ß", "000001", "d"])
CELLS = [(x, y) for x in range(0, 64, 16) for y in range(0, 48, 12)]


def encoded_picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", SIZE).save(stream, "JPEG")
    return stream.getvalue()


PICTURE = encoded_picture()


def downloaded(folder: Path, records: list[tuple[str, bytes, dict[str, Any]]]) -> None:
    """Writes a shard in img2dataset's format from names, images and JSON members."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, picture, values in records:
            values = {"width": SIZE[0], "height": SIZE[1], "status": "success", **values}
            for suffix, content in (("jpg", picture), ("json", json.dumps(values).encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write(folder / "00000_stats.json", {"status_dict": {"success": len(records)}})


def parsed(shards: Shards) -> list[ImageRecord | None]:
    """The parsed records without their locations; None for a record that is broken, also in part."""
    found: list[ImageRecord | None] = []
    for number in range(len(shards)):
        raw = shards.read(number)
        try:
            record = parse_region_record(replace(raw, values={"elems": [], **raw.values}), ImageKeys(), "caption")
        except BrokenRecordError:
            found.append(None)
            continue
        image = ImageSource("", content=record.image.load())
        elements = tuple(map(with_listed_texts, record.elements))
        whole = with_listed_texts(replace(record, location="", image=image, elements=elements))
        found.append(None if record.broken else whole)
    return found


def with_listed_texts(described: Description) -> Description:
    """Replaces each text of a language by a list of one text, because a column of a Parquet file has only one form."""
    names = ("captions", "long_captions", "hard_negatives", "attributes")
    return replace(described, **{name: tuple(map(listed_by_language, getattr(described, name))) for name in names})


def listed_by_language(text: str | dict[str, str | list[str]]) -> str | dict[str, list[str]]:
    if isinstance(text, str):
        return text
    return {language: [value] if isinstance(value, str) else value for language, value in text.items()}


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    """No processes."""
    for module in ("line_shards", "url_sets", "rows", "verify"):
        monkeypatch.setattr(f"dataset.prepare.{module}.in_order", in_this_process, raising=False)


@pytest.fixture
def new_folder(tmp_path, monkeypatch):
    """Returns a function that makes an empty folder for each example."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda: Path(tempfile.mkdtemp(dir=tmp_path))


def boxes_in_cells(min_size: int) -> st.SearchStrategy[list[list[int]]]:
    """A strategy for boxes that do not overlap, because two boxes of a phrase that are almost equal count as one."""
    cells = st.lists(st.sampled_from(CELLS), min_size=min_size, max_size=3, unique=True)
    sides = st.lists(st.tuples(st.integers(1, 16), st.integers(1, 12)), min_size=3, max_size=3)
    return st.tuples(cells, sides).map(lambda drawn: [[*cell, *size] for cell, size in zip(*drawn, strict=False)])


@st.composite
def region_records(draw: Any) -> dict[str, Any]:
    """A record with the texts and boxes that ODVG lines can represent. At least one phrase has a box."""
    phrases = draw(st.lists(PHRASES, min_size=1, max_size=6, unique=True))
    elements: list[dict[str, Any]] = []
    while phrases:
        own = phrases[: draw(st.integers(1, 2))]
        del phrases[: len(own)]
        boxes = draw(boxes_in_cells(0 if elements else 1))
        caption = own[0] if len(own) == 1 else own
        bb = boxes[0] if len(boxes) == 1 else boxes
        elements.append({"caption": caption, "bb": bb, "grain": draw(st.sampled_from(["object", "region"]))})
    captions = draw(st.lists(PHRASES, max_size=2, unique=True))
    return {**({"caption": captions} if captions else {}), "elems": elements}


@PROPERTY_OF_FILES
@given(st.lists(region_records(), min_size=1, max_size=5))
def test_odvg_lines_are_read_back_as_they_were_written(new_folder, made):
    folder = new_folder()
    for number, record in enumerate(made):
        image(folder / f"raw/{number}.jpg", size=SIZE)
        record["image"] = f"../raw/{number}.jpg"
    write(folder / "records/a.jsonl", "".join(f"{json.dumps(record)}\n" for record in made))
    assert to_odvg((str(folder / "records"),), out=folder / "raw/lines.jsonl") == 0
    prepared("odvg", folder / "raw", folder / "out")
    found = parsed_records(folder / "out/odvg")
    for record, back in zip(made, found, strict=True):
        shown = [each for each in record["elems"] if each["bb"]]
        absent = [each for each in record["elems"] if not each["bb"]]
        assert back.get("caption") == record.get("caption")
        assert back["elems"] == shown + absent
    assert counted(folder / "out/odvg")["skipped"] == {}


odd_boxes = mostly(st.lists(mostly(st.integers(-5, 70) | st.floats(-5, 70)), min_size=4, max_size=4))
instances = st.fixed_dictionaries(
    {}, optional={"bbox": odd_boxes, "category": mostly(PHRASES), "label": mostly(st.integers(0, 3))}
)
regions = st.fixed_dictionaries(
    {},
    optional={
        "bbox": mostly(odd_boxes | st.lists(odd_boxes, max_size=3)),
        "phrase": mostly(PHRASES | st.lists(PHRASES, max_size=2)),
        "alternatives": mostly(st.lists(PHRASES)),
        "grain": mostly(st.just("object")),
    },
)
odd_lines = st.fixed_dictionaries(
    {},
    optional={
        "width": mostly(st.just(SIZE[0])),
        "height": mostly(st.just(SIZE[1])),
        "detection": mostly(st.fixed_dictionaries({"instances": mostly(st.lists(mostly(instances), max_size=3))})),
        "grounding": mostly(
            st.fixed_dictionaries(
                {"regions": mostly(st.lists(mostly(regions), max_size=3))}, optional={"caption": JSON}
            )
        ),
        "image_caption": JSON,
        "absent": mostly(st.lists(mostly(regions), max_size=2)),
    },
)


@PROPERTY_OF_FILES
@given(st.lists(odd_lines, min_size=1, max_size=12))
def test_any_odvg_line_becomes_a_record_or_is_counted(new_folder, made):
    folder = new_folder()
    good = {"grounding": {"regions": [{"bbox": [1, 2, 30, 40], "phrase": "a dog"}]}}
    rows = [{"filename": f"{number}.jpg", **row} for number, row in enumerate([good, *made])]
    for row in rows:
        image(folder / "raw" / row["filename"], size=SIZE)
    write(folder / "raw/lines.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    prepared("odvg", folder / "raw", folder / "out", max_broken=MAX_BROKEN)
    found, counts = parsed_records(folder / "out/odvg"), counted(folder / "out/odvg")
    assert counts["written"]["images"] == len(found)
    assert len(rows) - len(found) <= sum(counts["skipped"].values())


fractions = st.floats(-0.05, 1.05) | st.floats()
spans = st.tuples(st.integers(-1, 8) | st.floats(), st.integers(1, 30), *[fractions] * 4, st.floats(0, 1)).map(list)
grit_rows = st.fixed_dictionaries(
    {"caption": mostly(TEXTS | PHRASES)},
    optional={name: mostly(st.lists(mostly(spans), max_size=4)) for name in ("noun_chunks", "ref_exps")},
)


@PROPERTY_OF_FILES
@given(st.lists(grit_rows, min_size=1, max_size=12))
def test_any_grit_row_becomes_a_record_or_is_counted(new_folder, made):
    folder = new_folder()
    good = {"caption": "a dog", "noun_chunks": [[0, 5, 0.1, 0.1, 0.5, 0.5, 1.0]], "ref_exps": []}
    members = [
        (f"{number:09}", PICTURE, {"url": f"http://a/{number}.jpg", **row}) for number, row in enumerate([good, *made])
    ]
    downloaded(folder / "raw/grit", members)
    prepared("grit", folder / "raw", folder / "out", max_broken=MAX_BROKEN)
    shards, counts = Shards([str(folder / "out/grit")]), counted(folder / "out/grit")
    for number in range(len(shards)):
        record = shards.read(number)
        assert record.image == PICTURE
        check_record(dict(record.values), record.location, folder, record.image)
    assert counts["read"]["images"] == len(made) + 1 and counts["written"]["records"] == len(shards)
    assert len(made) + 1 - len(shards) <= sum(counts["skipped"].values())


@PROPERTY_OF_FILES
@given(
    st.lists(
        st.tuples(NAMES, PHRASES, st.binary(max_size=3000)), min_size=1, max_size=6, unique_by=lambda each: each[0]
    )
)
def test_images_and_names_of_a_tar_survive_its_conversion(new_folder, made):
    folder = new_folder()
    given_members = []
    for number, (name, caption, padding) in enumerate(made):
        values = {"url": f"http://a/{number}.jpg", "caption": caption, "noun_chunks": [], "ref_exps": []}
        given_members.append((name, PICTURE + padding, values))
    downloaded(folder / "raw/grit", given_members)
    prepared("grit", folder / "raw", folder / "out")
    shards = Shards([str(folder / "out/grit")])
    for number, (name, picture, values) in enumerate(given_members):
        record = shards.read(number)
        assert record.location == f"{shards.paths[0]}:{name}.jpg"
        assert (record.image, record.values["caption"]) == (picture, values["caption"])


@settings(PROPERTY_OF_FILES, max_examples=4)
@given(st.lists(RECORDS | st.dictionaries(TEXTS, JSON, max_size=3), min_size=1, max_size=12))
def test_parquet_files_contain_every_record_that_is_not_broken(new_folder, made):
    pytest.importorskip("pyarrow")
    folder = new_folder()
    rows = [{"image": "data:,eA==", "caption": "a dog"}, *({**row, "image": "data:,eA=="} for row in made)]
    write(folder / "in/a.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    before = parsed(Shards([str(folder / "in/a.jsonl")]))
    main(["prepare", "parquet", str(folder / "in/a.jsonl"), "--out", str(folder / "out"), "--workers", "1"])
    broken = folder / "out/_parquet/broken.jsonl"
    after = parsed(Shards([str(folder / "out")]))
    assert len(before) == len(rows)
    assert after == [record for record in before if record is not None]
    assert len(rows) - len(after) == (len(broken.read_text().splitlines()) if broken.exists() else 0)
