"""A property of tars: whatever the order and the names of their members, the records are read with all bytes, in order."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.broken import BrokenRecordError
from dataset.shards.readers import Shards
from tests.properties import JSON, PROPERTY_OF_FILES, TEXTS

STEMS = st.sampled_from(["a", "b", "folder/a", "x" * 150, f"{'folder' * 20}/ü{'y' * 90}", "ß"])
CONTENTS = {
    "jpg": st.binary(max_size=2000),
    "PNG": st.binary(max_size=20),
    "txt": TEXTS.map(str.encode),
    "json": st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=3).map(json.dumps).map(str.encode),
    "cls": st.binary(max_size=600),
    "mask.png": st.binary(max_size=20),
}
KINDS = {"jpg": "image", "PNG": "image", "txt": "text", "json": "values"}

Member = tuple[str, str, bytes]
"""Stem, suffix and content. A member without a suffix is a folder or a link."""


def members_with(suffix: str) -> st.SearchStrategy[Member]:
    return st.tuples(STEMS, st.just(suffix), CONTENTS[suffix])


others = st.tuples(st.just("a"), st.just(""), st.sampled_from([tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]))
members = st.lists(st.one_of(*map(members_with, CONTENTS), others), min_size=1, max_size=20, unique_by=lambda m: m[:2])


def write_tar(path: Path, content: list[Member], form: int) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for stem, suffix, data in content:
            info = tarfile.TarInfo(f"{stem}.{suffix}" if suffix else stem)
            if suffix:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data, "elsewhere"
                tar.addfile(info)


@PROPERTY_OF_FILES
@given(members, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_every_record_of_a_tar_is_read_with_its_bytes(tmp_path, content, form):
    expected: dict[str, dict[str, list[bytes]]] = {}
    for stem, suffix, data in content:
        if suffix:
            record = expected.setdefault(stem, {"image": [], "text": [], "values": []})
            if suffix in KINDS:
                record[KINDS[suffix]].append(data)
    if not expected:
        return
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    write_tar(folder / "a.tar", content, form)
    shards = Shards([str(folder / "a.tar")], index_folder=folder / "index")
    assert len(shards) == len(expected)
    for number, (stem, record) in enumerate(expected.items()):
        if max(map(len, record.values())) > 1:
            with pytest.raises(BrokenRecordError, match="repeated member"):
                shards.read(number)
            continue
        found = shards.read(number)
        assert found.location.startswith(f"{folder}/a.tar:{stem}.")
        assert ([] if found.image is None else [found.image]) == record["image"]
        assert ([] if found.text is None else [found.text.encode()]) == record["text"]
        assert found.values == (json.loads(record["values"][0]) if record["values"] else {})


@PROPERTY_OF_FILES
@given(st.lists(st.text(max_size=30).filter(str.strip) | JSON.map(json.dumps), min_size=1, max_size=20))
def test_every_line_is_a_record_or_a_broken_one(tmp_path, lines):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    content = "\n".join(['{"n": 1}', *lines]).encode()
    (folder / "a.jsonl").write_bytes(content)
    shards = Shards([str(folder / "a.jsonl")], index_folder=folder / "index")
    expected = [line for line in content.split(b"\n") if line.strip()]
    assert len(shards) == len(expected)
    for number, line in enumerate(expected):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if isinstance(values, dict):
            assert json.dumps(shards.read(number).values) == json.dumps(values)  # NaN differs from itself
        else:
            with pytest.raises(BrokenRecordError, match=r"bad json|wrong type"):
                shards.read(number)
