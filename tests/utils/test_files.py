"""Only regular files are read, and only one process at a time writes a new folder."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from dataset.broken import BrokenRecordError
from dataset.files import read_file
from engine.checkpoint import fault_of
from engine.metrics_log import keep_until
from tests.messages import OneLine, naming
from utils import log
from utils.errors import NotRegularError, UserError, file_access_error
from utils.files import check_regular, new_folder, open_regular, parse_json, read_json, read_text, write_text
from x2vlm.export.files import read_metadata


@pytest.fixture
def fifo(tmp_path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def as_fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def test_a_fifo_a_folder_and_a_device_are_rejected_without_waiting(fifo, tmp_path):
    for path, kind in ((fifo, "a FIFO"), (tmp_path, "a folder"), (Path("/dev/null"), "a device")):
        for read in (open_regular, check_regular, read_text, read_json):
            with pytest.raises(NotRegularError, match=naming(kind, "regular file")) as caught:
                read(path)
            assert str(file_access_error(caught.value)) == OneLine(path, kind)
        with pytest.raises(BrokenRecordError, match=naming(path, kind)):
            read_file(path, 100)
    check_regular(tmp_path / "absent")


def test_a_regular_file_is_read_through_a_link_with_unix_line_ends(tmp_path):
    (tmp_path / "a").write_bytes("é\r\nb\rc\n".encode())
    (tmp_path / "link").symlink_to("a")
    assert read_text(tmp_path / "link") == "é\nb\nc\n"
    with open_regular(tmp_path / "a") as file:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def test_json_that_is_nested_too_deeply_is_a_value_error():
    assert parse_json('{"a": [1]}') == {"a": [1]}
    for text in ("[" * 100_000, "{", ""):
        with pytest.raises(ValueError, match=r"nested too deeply|Expecting"):
            parse_json(text)


def test_a_fifo_in_place_of_a_file_of_a_run_or_export_is_reported_in_one_line(tmp_path):
    as_fifo(tmp_path / "manifest.json")
    assert fault_of(tmp_path) == f"{tmp_path}/manifest.json cannot be read: is a FIFO, not a regular file"
    with pytest.raises(NotRegularError):
        keep_until(as_fifo(tmp_path / "metrics.jsonl"), 1)
    with pytest.raises(UserError, match=naming("log.txt", "FIFO")):
        log.set_up(as_fifo(tmp_path / "log.txt"))
    as_fifo(tmp_path / "export.json")
    with pytest.raises(UserError, match=naming("export.json", "FIFO")):
        read_metadata(tmp_path)


def test_the_second_of_two_processes_that_write_a_folder_gets_an_error_about_the_first(tmp_path):
    target = tmp_path / "x.onnx"
    (tmp_path / ".x.onnx.tmp/deep").mkdir(parents=True)  # of a process that was killed
    with new_folder(target) as first:
        assert not list(first.iterdir())
        (first / "a").write_text("a")
        with (
            pytest.raises(UserError, match=naming("x.onnx", "another process")),
            new_folder(target),
        ):
            pass
        assert (first / "a").read_text() == "a"
    assert [path.name for path in tmp_path.rglob("*")] == ["x.onnx", "a"]
    with pytest.raises(UserError, match=naming("another process")), new_folder(target) as late:
        (late / "b").write_text("b")
    assert [path.name for path in tmp_path.rglob("*")] == ["x.onnx", "a"]


def test_undecodable_bytes_in_file_names_are_escaped_in_written_files(tmp_path):
    write_text(tmp_path / "a.json", json.dumps({"image": "caf\udce9.png"}, ensure_ascii=False))
    assert read_json(tmp_path / "a.json") == {"image": "caf\udce9.png"}


@pytest.mark.parametrize("name", [".", "..", "/", "a/.."])
def test_a_new_folder_without_a_name_is_reported_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=naming(name, "is not the name of a new folder")), new_folder(Path(name)):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_an_empty_folder_that_cannot_be_replaced_is_filled(tmp_path):
    """A link here represents a mount point, which cannot be replaced either."""
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(IsADirectoryError), new_folder(tmp_path / "link") as folder:
        folder.write_text("a failed write")
    assert list((tmp_path / "target").iterdir()) == []
    with new_folder(tmp_path / "link") as folder:
        (folder / "a").mkdir()
        (folder / "a/b").write_text("b")
    assert [path.relative_to(tmp_path / "target") for path in (tmp_path / "target").rglob("*")] == [
        Path("a"),
        Path("a/b"),
    ]
    assert (tmp_path / "link").is_symlink()
