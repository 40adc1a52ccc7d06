"""Shards as one list of records: files are found, indexed and cached, and records are read in any order."""

from __future__ import annotations

import errno
import io
import itertools
import json
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

import dataset.shards.index
import dataset.shards.making
import dataset.shards.readers
import dataset.shards.scanning
from dataset.broken import BrokenRecordError
from dataset.shards.finding import find_shards
from dataset.shards.readers import Shards
from tests.messages import OneLine, naming
from utils import distributed
from utils.errors import UserError


@pytest.fixture(autouse=True)
def index_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "x2vlm" / "index"


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w", form: int = tarfile.GNU_FORMAT) -> str:
    with tarfile.open(path, mode, format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def test_any_record_is_read_with_its_line_number(write_lines):
    first = write_lines("a.jsonl", [{"n": 0}, {"n": 1}])
    second = write_lines("b.jsonl", ["", '{"n": 2}', "  \t", "", '{"n": "größer"}', ""])
    shards = Shards([first, second])
    assert shards.sizes == [2, 2]
    assert [shards.read(number).values["n"] for number in (3, 0, 2, 1)] == ["größer", 0, 2, 1]
    assert [shards.read(number).location for number in range(4)] == [
        f"{first}:1",
        f"{first}:2",
        f"{second}:2",
        f"{second}:5",
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_scan_boundaries_do_not_matter(tmp_path, monkeypatch, ending, last):
    monkeypatch.setattr(dataset.shards.scanning, "_SCAN_BYTES", 7)
    lines = [json.dumps({"n": "x" * n}) for n in range(12)]
    path = tmp_path / "a.jsonl"
    path.write_bytes((ending.join([*lines[:5], "", *lines[5:]]) + (ending if last else "")).encode())
    shards = Shards([str(path)])
    assert [shards.read(n).values["n"] for n in range(len(shards))] == ["x" * n for n in range(12)]
    assert shards.read(5).location.endswith(":7")


def test_files_folders_and_patterns_are_found_in_order(tmp_path, write_lines):
    for name in ("b.jsonl", "a.json", "c.txt", "part_SUCCESS.jsonl"):
        write_lines(name, [{}])
    names = ["a.json", "b.jsonl"]
    assert [path.name for path in find_shards([str(tmp_path)], "k")] == names
    assert [path.name for path in find_shards([str(tmp_path / "*.json*")], "k")] == names
    assert [path.name for path in find_shards([str(tmp_path / n) for n in names[::-1]], "k")] == names[::-1]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], ("data.images.files", "empty")),
        (["gone.jsonl"], ("data.images.files", "gone.jsonl")),
        (["*.gone"], ("data.images.files", "*.gone", "pattern")),
        (["folder"], ("data.images.files", "folder", "*.jsonl")),
        (["a.jsonl", "a.jsonl"], ("data.images.files", "a.jsonl", "twice")),
        (["_SUCCESS"], ("data.images.files", "_SUCCESS", "no shards")),
        (["c.csv"], ("data.images.files", "c.csv", "CSV", "prepare own")),
        (["empty.jsonl"], ("data.images.files", "empty.jsonl", "no records")),
        (["array.json"], ("data.images.files", "array.json", "JSON array", "prepare own")),
        (["coco.json"], ("data.images.files", "coco.json", "JSON object", "COCO's", "prepare own")),
        (["table.jsonl"], ("data.images.files", "table.jsonl", "CSV", "image, caption")),
        (["x.tar.gz"], ("data.images.files", "x.tar.gz", "compressed")),
        (["zipped.tar"], ("data.images.files", "zipped.tar", "compressed")),
        (["torn.tar"], ("data.images.files", "torn.tar", "complete tar")),
        (["noise.tar"], ("data.images.files", "noise.tar", "complete tar")),
    ],
)
def test_unreadable_files_are_reported_in_one_line_before_training(tmp_path, entries, message):
    (tmp_path / "folder").mkdir()
    for name, text in {
        "a.jsonl": "{}\n",
        "_SUCCESS": "",
        "c.csv": "x",
        "empty.jsonl": "\n \n",
        "array.json": " [{}]",
        "coco.json": '{"info": {"year": 2014}, "images": [{"id": 1}], "annotations": [{"id": 2, "image_id": 1}]}',
        "table.jsonl": "image,caption\na.png,a dog\n",
    }.items():
        (tmp_path / name).write_text(text)
    write_tar(tmp_path / "x.tar.gz", [("a.txt", b"x")], "w:gz")
    write_tar(tmp_path / "zipped.tar", [("a.txt", b"x")], "w:gz")
    whole = Path(write_tar(tmp_path / "whole.tar", [("a.txt", b"x"), ("b.txt", b"y" * 3000)])).read_bytes()
    (tmp_path / "torn.tar").write_bytes(whole[:2000])
    (tmp_path / "noise.tar").write_bytes(whole[:1024] + b"noise" * 400)
    with pytest.raises(UserError, match=naming(*message)) as caught:
        Shards([str(tmp_path / entry) for entry in entries], key="data.images.files")
    assert "\n" not in str(caught.value)


def test_bad_lines_are_broken_records_with_a_location(write_lines):
    shards = Shards([write_lines("a.jsonl", ['{"a": 1', "[1]", '{"a": 1}'])])
    with pytest.raises(BrokenRecordError, match=r"^bad json: "):
        shards.read(0)
    with pytest.raises(BrokenRecordError, match=naming("wrong type", "JSON")):
        shards.read(1)
    assert [shards.exact_location(n).rpartition("/")[2] for n in range(2)] == ["a.jsonl:1", "a.jsonl:2"]
    assert shards.read(2).values == {"a": 1}


def test_an_invalid_first_line_is_one_broken_record(write_lines):
    shards = Shards([write_lines("a.jsonl", ["one, two", '{"a": 1}'])])
    assert len(shards) == 2 and shards.read(1).values == {"a": 1}


def test_the_index_is_built_once_and_rebuilt_with_a_message_if_the_file_changed(write_lines, monkeypatch, caplog):
    file = write_lines("a.jsonl", [{"n": 0}, {"n": 1}])
    assert len(Shards([file])) == 2
    with monkeypatch.context() as patched:
        patched.setattr(dataset.shards.making, "scan_shard", lambda *_: pytest.fail("scanned again"))
        assert Shards([file]).read(1).values == {"n": 1}
    assert not caplog.records
    write_lines("a.jsonl", [{"n": 5}, {"n": 6}, {"n": 7}])
    assert Shards([file], key="data.images.files").read(2).values == {"n": 7}
    assert caplog.messages == [OneLine("data.images.files", "1 of 1", file)]


@pytest.mark.parametrize("damage", ["torn", "noise", "empty", "count"])
@pytest.mark.parametrize("name", ["shards.npy", "starts.npy", "irregularities.npy"])
def test_a_broken_index_is_rebuilt_with_a_message(write_lines, index_folder, name, damage, caplog):
    file = write_lines("a.jsonl", [{"n": 0}, "", {"n": 1}])
    Shards([file])
    (folder,) = index_folder.glob("*.index")
    content = (folder / name).read_bytes()
    if damage == "count":
        np.save(folder / name, np.concatenate([np.load(folder / name)] * 2))
    else:
        (folder / name).write_bytes({"torn": content[:-8], "noise": b"noise", "empty": b""}[damage])
    assert Shards([file]).read(1).location == f"{file}:3"
    assert OneLine("files", folder, "damaged") in caplog.messages


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="/proc is needed to count open files")
def test_opening_many_shards_opens_at_most_one_file(write_lines):
    files = [write_lines(f"{number}.jsonl", [{"n": number}] * 10) for number in range(30)]
    before = len(os.listdir("/proc/self/fd"))
    shards = Shards(files)
    assert len(shards) == 300
    assert len(os.listdir("/proc/self/fd")) - before <= 1


def test_without_a_writable_cache_the_index_stays_in_memory(tmp_path, write_lines, caplog):
    (tmp_path / "blocked").write_text("a file where the folder should be")
    files = [write_lines("a.jsonl", [{"n": 0}]), write_lines("b.jsonl", [{"n": 1}])]
    shards = Shards(files, index_folder=tmp_path / "blocked")
    assert shards.read(0).values == {"n": 0}
    assert caplog.messages == [OneLine(tmp_path / "blocked", "data.cache_index", "File exists")], (
        "one warning is enough for all files"
    )
    assert pickle.loads(pickle.dumps(shards)).read(0).values == {"n": 0}


def test_without_a_home_the_index_stays_in_memory(write_lines, monkeypatch, caplog):
    for variable in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    dataset.shards.making._warn_not_cached.cache_clear()
    assert dataset.shards.index.default_index_folder() is None
    shards = Shards([write_lines("a.jsonl", [{"n": 0}])])
    assert OneLine("home folder") in caplog.messages
    assert pickle.loads(pickle.dumps(shards)).read(0).values == {"n": 0}


def test_shards_survive_pickling(write_lines):
    shards = Shards([write_lines("a.jsonl", [{"n": n} for n in range(500)])])
    assert shards.read(0).values == {"n": 0}
    assert len(pickle.dumps(shards)) < 3000, "the index itself must not be copied"
    assert pickle.loads(pickle.dumps(shards)).read(7).values == {"n": 7}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_forked_processes_do_not_disturb_each_other(write_lines):
    # The records are longer than a read buffer, so that each read moves the position of the open file.
    shards = Shards([write_lines("a.jsonl", [{"n": n, "filler": "x" * 20_000} for n in range(50)])])
    shards.read(3)
    opened = shards._open(0).fileno()
    before = os.lseek(opened, 0, os.SEEK_CUR)
    # A separate process like a DataLoader worker: it inherits the shards and their open files without pickling.
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(shards.read(30).values["n"]))
    child.start()
    child.join()
    assert child.exitcode == 30
    assert os.lseek(opened, 0, os.SEEK_CUR) == before, "file positions must not be shared"


def test_tar_members_are_grouped_by_name_and_read_in_place(tmp_path, encoded):
    long_name = "folder/" + "n" * 120
    members = [
        ("a/000001.txt", b"a red star\n"),
        ("a/000001.JPG", encoded(seed=1)),
        ("b/000001.png", encoded(seed=2, form="PNG")),
        (f"{long_name}.txt", b"long"),
        (f"{long_name}.webp", encoded(seed=3, form="WEBP")),
        ("b/000001.json", b'{"caption": "blue", "id": 4}'),
        ("c.cls", b"3"),
    ]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = write_tar(tmp_path / f"{form}.tar", members, form=form)
        shards = Shards([file])
        records = [shards.read(number) for number in range(len(shards))]
        assert [record.location for record in records] == [
            f"{file}:a/000001.JPG",
            f"{file}:b/000001.png",
            f"{file}:{long_name}.webp",
            f"{file}:c.cls",
        ]
        assert [record.image for record in records[:2]] == [encoded(seed=1), encoded(seed=2, form="PNG")]
        assert [record.text for record in records] == ["a red star\n", None, "long", None]
        assert records[1].values == {"caption": "blue", "id": 4}
        assert records[3].image is None


ORDERED = [("a.jpg", b"A"), ("a.txt", b"of a"), ("a.json", b'{"id": 1}'), ("b.jpg", b"B"), ("b.txt", b"of b")]


def test_a_record_keeps_all_members_whatever_their_order(tmp_path):
    files = [
        write_tar(tmp_path / f"{number:03d}.tar", list(members))
        for number, members in enumerate(itertools.permutations(ORDERED))
    ]
    shards = Shards(files)
    assert shards.sizes == [2] * len(files)
    for number, file in enumerate(files):
        records = {
            record.image: (record.text, record.values) for record in map(shards.read, (2 * number, 2 * number + 1))
        }
        assert records == {b"A": ("of a", {"id": 1}), b"B": ("of b", {})}, file


def test_a_tar_of_all_images_then_all_texts_keeps_every_record(tmp_path):
    members = [(f"{n}.{suffix}", f"{suffix} {n}".encode()) for suffix in ("jpg", "txt") for n in range(50)]
    shards = Shards([write_tar(tmp_path / "a.tar", members)])
    records = [shards.read(number) for number in range(len(shards))]
    assert [(record.image, record.text) for record in records] == [(f"jpg {n}".encode(), f"txt {n}") for n in range(50)]


@pytest.mark.parametrize(
    ("second", "kind"), [("a.jpg", "image"), ("a.PNG", "image"), ("a.txt", "text"), ("a.json", "json")]
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_record_with_two_members_of_a_kind_is_broken(tmp_path, second, kind, apart):
    again = (second, b"{}")
    members = [*ORDERED[:3], *(ORDERED[3:] if apart else []), again, *([] if apart else ORDERED[3:])]
    shards = Shards([write_tar(tmp_path / "a.tar", members)])
    with pytest.raises(BrokenRecordError, match=naming("repeated member", kind, second)):
        shards.read(0)
    assert shards.exact_location(0).endswith("a.tar:a.jpg")
    assert shards.read(1).image == b"B"


@pytest.mark.parametrize(
    ("kinds", "counted"),
    [
        ((tarfile.LNKTYPE, tarfile.DIRTYPE), "1 link, which has no content and is skipped;"),
        ((tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE), "2 links, which have no content and are skipped;"),
    ],
)
def test_links_in_a_tar_are_counted_because_they_have_no_content(kinds, counted, tmp_path, caplog):
    file = Path(write_tar(tmp_path / "a.tar", ORDERED))
    with tarfile.open(file, "a") as tar:
        for number, kind in enumerate(kinds):
            link = tarfile.TarInfo(f"c{number}.jpg")
            link.type, link.linkname = kind, "a.jpg"
            tar.addfile(link)
    assert len(Shards([str(file)], key="data.images.files")) == 2
    assert caplog.messages == [OneLine("data.images.files", file, counted, "--hard-dereference")]


def test_an_index_of_an_earlier_version_is_rebuilt(tmp_path, index_folder):
    file = write_tar(tmp_path / "a.tar", ORDERED)
    Shards([file])
    (table,) = index_folder.glob("*.index/shards.npy")
    np.save(table, np.load(table)[:, :5])
    np.save(table.with_name("starts.npy"), np.zeros(2, np.int64))
    assert Shards([file]).read(1).text == "of b"


def test_a_tar_member_with_invalid_json_is_a_broken_record(tmp_path, encoded):
    shards = Shards([write_tar(tmp_path / "a.tar", [("x.jpg", encoded()), ("x.json", b"{"), ("y.txt", b"\xff")])])
    with pytest.raises(BrokenRecordError, match=r"^bad json"):
        shards.read(0)
    with pytest.raises(BrokenRecordError, match=naming("wrong type", "UTF-8")):
        shards.read(1)
    assert [shards.exact_location(n).rpartition("/")[2] for n in range(2)] == ["a.tar:x.jpg", "a.tar:y.txt"]


def test_more_shards_than_open_files_can_be_read(write_lines, monkeypatch):
    monkeypatch.setattr(dataset.shards.readers, "_OPEN_FILES", 3)
    files = [write_lines(f"{n}.jsonl", [{"n": n}]) for n in range(9)]
    shards = Shards(files)
    assert [shards.read(n).values["n"] for n in [*range(9), *range(9)]] == [*range(9), *range(9)]
    assert len(shards._files) == 3


def test_few_files_stay_open_if_the_system_allows_few(write_lines, monkeypatch):
    monkeypatch.setattr(dataset.shards.readers.open_files, "limit", lambda: 64)
    shards = Shards([write_lines(f"{number}.jsonl", [{"n": number}]) for number in range(9)])
    assert [shards.read(number).values["n"] for number in range(9)] == list(range(9))
    assert len(shards._files) == 4


def test_reaching_the_limit_on_open_files_is_not_reported_as_a_lost_shard(write_lines, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.jsonl")

    shards = Shards([write_lines("a.jsonl", [{}])])
    monkeypatch.setattr(dataset.shards.readers, "open_shard", refuse)
    with pytest.raises(UserError, match=r"too many open files.*ulimit -n"):
        shards.read(0)


def test_a_shard_that_vanishes_during_the_run_is_a_user_error(write_lines):
    file = write_lines("a.jsonl", [{}])
    shards = Shards([file])
    Path(file).unlink()
    with pytest.raises(UserError, match=naming("a.jsonl", "can no longer be read")):
        shards.read(0)


def test_a_shard_that_is_replaced_during_the_run_is_a_user_error(write_lines):
    """Otherwise other records would be read without an error, if they begin at the same bytes."""
    path = Path(write_lines("a.jsonl", [{"n": number} for number in range(3)]))
    shards = Shards([str(path)])
    write_lines("b.jsonl", [{"n": number} for number in range(3, 6)])
    os.replace(path.with_name("b.jsonl"), path)
    with pytest.raises(UserError, match=naming("a.jsonl", "changed")):
        shards.read(1)


def test_a_tar_without_end_blocks_is_reported_with_its_count_on_every_run(tmp_path, caplog, monkeypatch):
    whole = Path(write_tar(tmp_path / "whole.tar", [("a.txt", b"x"), ("b.txt", b"y" * 3000), ("c.txt", b"z")]))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: 2 * 512 + 512 + 3072])  # a and b, and nothing after them
    assert len(Shards([str(whole)])) == 3
    assert not caplog.records
    for run in range(2):
        assert len(Shards([str(cut)], key="data.images.files")) == 2
        (fragments,) = [record.getMessage() for record in caplog.records[run:]]
        assert fragments == (OneLine("data.images.files", cut, "2 records"))
    assert [Shards([str(cut)]).read(n).text for n in range(2)] == ["x", "y" * 3000]
    caplog.clear()
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert len(Shards([str(cut)])) == 2 and not caplog.records, "only rank 0 reports it"


@pytest.mark.parametrize("end", [100, 512, 900, 1024, 1100, 1536, 3000, 4608, 4700, 5120, 5500, 5632])
def test_a_tar_truncated_anywhere_is_rejected_or_reported(tmp_path, caplog, end):
    whole = Path(write_tar(tmp_path / "whole.tar", [("a.txt", b"x"), ("b.txt", b"y" * 3000), ("c.txt", b"z")]))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:end])
    ends = (1024, 1024 + 512 + 3072, 1024 + 512 + 3072 + 1024)
    if end in ends:
        assert len(Shards([str(cut)])) == 1 + ends.index(end)
        assert OneLine("no end-of-archive marker") in caplog.messages
    else:
        with pytest.raises(UserError, match=naming("complete tar")):
            Shards([str(cut)])


def test_other_files_written_by_img2dataset_are_not_shards(tmp_path):
    shard = write_tar(tmp_path / "00000.tar", [("a.txt", b"x")])
    (tmp_path / "00000_stats.json").write_text('{"count": 1}')
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "sizes.json").write_text('{"00000.tar": 1}')
    (tmp_path / "_tmp").mkdir()
    for entry in (tmp_path, tmp_path / "*", tmp_path / "*.tar", tmp_path / "0*"):
        assert find_shards([str(entry)], "key") == [Path(shard)], entry
    assert len(Shards([str(tmp_path)])) == 1
    with pytest.raises(UserError, match=r"^key: no file matches .*_stats.json"):
        find_shards([str(tmp_path / "*_stats.json")], "key")
    lines = tmp_path / "lines"
    lines.mkdir()
    (lines / "sizes.json").write_text('{"text": "a"}')
    assert len(Shards([str(lines)])) == 1, "without a tar next to it, a shard may have any name"


def test_an_unreadable_record_still_has_a_location(tmp_path, write_lines):
    lines = Shards([write_lines("a.jsonl", ["", "{", "{"])])
    assert [lines.exact_location(n) for n in range(2)] == [f"{tmp_path}/a.jsonl:{n}" for n in (2, 3)]
    file = write_tar(
        tmp_path / "a.tar", [("x/a.txt", b"x"), ("x/a.jpg", b"y"), ("b.cls", b"1"), ("y" * 150 + ".txt", b"z")]
    )
    tar = Shards([file])
    assert [tar.exact_location(n) for n in range(3)] == [f"{file}:x/a.jpg", f"{file}:b.cls", f"{file}:{'y' * 150}.txt"]
    assert [tar.read(n).location for n in range(3)] == [tar.exact_location(n) for n in range(3)]
    Path(file).write_bytes(b"")
    assert Shards.exact_location(tar, 1) in (f"{file}:b.cls", f"{file}: record 1")
