"""``run.py predict``: every call from the command line. Unreadable images are counted and reported, and do not stop the
command."""

from __future__ import annotations

import io
import json
import os

import pytest
from PIL import Image

from commands.predict import expand_folder
from run import main
from tests.messages import OneLine
from tests.tasks.painted import SIZE

CALLS = {
    "caption": ("captioning", []),
    "answer": ("vqa", ["--text", "what colour is the star?", "--text", "is there a star?"]),
    "locate": ("pretrain", ["--text", "a red star", "--text", "a circle"]),
    "score": ("pretrain", ["--box", "2,3,20,30", "--box=10,10,40,12.5", "--text", "a red star", "--text", "a circle"]),
    "match": ("retrieval", ["--text", "a red star", "--text", "a circle"]),
    "compare": ("nlvr", ["--text", "both pictures have a red star"]),
    "explain": ("pretrain", ["--text", "a red star"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_prints_and_draws(call, run, photos, tmp_path, capsys):
    task, words = CALLS[call]
    argv = ["predict", call, "--model", str(run(task)), "--image", str(photos), *words]
    assert main([*argv, "--save", str(tmp_path / "out.png"), "--batch-size", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count(".png") == 4 and str(tmp_path / "out.png") in captured.err
    assert min(Image.open(tmp_path / "out.png").size) > 100
    assert main([*argv, "--json"]) == 0
    values = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(values) == (2 if call == "compare" else 4)
    if call == "locate":
        assert values[0]["size"] == [SIZE, SIZE] and len(values[0]["boxes"]) == 2
        assert {"phrase", "x", "y", "width", "height", "score"} == values[0]["boxes"][0].keys()
    if call == "score":
        assert [each["box"] for each in values[0]["scores"][::2]] == [[2, 3, 20, 30], [10, 10, 40, 12.5]]
        assert values[0]["absent"].keys() == {"a red star", "a circle"}
    if call == "answer":
        assert [each["question"] for each in values[0]["answers"]] == ["what colour is the star?", "is there a star?"]


def test_files_patterns_and_standard_input_name_images(run, photos, capsys, monkeypatch):
    argv = ["predict", "caption", "--model", str(run("captioning")), "--json", "--image"]
    assert main([*argv, str(photos / "0.png"), str(photos / "[01].png")]) == 0
    by_pattern = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert by_pattern == [str(photos / name) for name in ("0.png", "0.png", "1.png")]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos / '3.png'}\n\n{photos / '2.png'}\n"))
    assert main([*argv, "-"]) == 0
    assert [json.loads(line)["image"][-5:] for line in capsys.readouterr().out.splitlines()] == ["3.png", "2.png"]


def test_unreadable_images_are_counted_and_do_not_stop_the_command(run, photos, capsys):
    (photos / "1.png").write_bytes(b"no image")
    argv = ["predict", "match", "--model", str(run("retrieval")), "--text", "a star", "--image", str(photos)]
    assert main([*argv, str(photos / "notes.txt")]) == 1
    captured = capsys.readouterr()
    assert captured.out.count(".png") == 3
    assert "not read: " in captured.err and "1.png: unreadable image" in captured.err and "notes.txt" in captured.err
    assert OneLine("error: 2 of 5") in captured.err.splitlines()


def test_a_loop_of_symbolic_links_is_an_unreadable_image(run, photos, capsys):
    (photos / "a.png").symlink_to("b.png")
    (photos / "b.png").symlink_to("a.png")
    command = [
        "predict",
        "match",
        "--model",
        str(run("pretrain")),
        "--text",
        "a star",
        "--image",
        str(photos / "a.png"),
    ]
    assert main([*command, "--save", str(photos.parent / "drawn.png")]) == 2
    printed = capsys.readouterr().err
    assert OneLine("a.png", "symbolic links") in printed.splitlines() and "Traceback" not in printed


def test_images_that_are_compared_are_skipped_together(run, photos, capsys):
    (photos / "1.png").write_bytes(b"no image")
    argv = ["predict", "compare", "--model", str(run("nlvr")), "--text", "both are red", "--image"]
    assert main([*argv, str(photos)]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == f"{photos / '2.png'}, {photos / '3.png'}"
    assert OneLine(f"{photos / '0.png'}, {photos / '1.png'}") in captured.err.splitlines()
    assert main([*argv, str(photos / "0.png")]) == 2
    assert OneLine("compare", "2 images", "1") in capsys.readouterr().err.splitlines()


def test_an_image_can_be_compared_with_several_others(run, photos, capsys):
    names = [str(photos / f"{number}.png") for number in (1, 2, 1, 3, 1, 1)]
    assert (
        main(["predict", "compare", "--model", str(run("nlvr")), "--text", "both are red", "--json", "--image", *names])
        == 0
    )
    printed = [json.loads(line)["images"] for line in capsys.readouterr().out.splitlines()]
    assert printed == [names[:2], names[2:4], names[4:]]


def test_a_figure_path_is_checked_first_and_never_overwrites_an_image(run, photos, tmp_path, capsys):
    argv = ["predict", "caption", "--model", str(run("captioning")), "--image", str(photos / "0.png"), "--save"]
    before = (photos / "0.png").read_bytes()
    for target, reported in {
        photos / "0.png": "this is one of the images",
        tmp_path / "out.jpg": "figures are written as PNG",
        photos / "0.png/out.png": "Not a directory",
    }.items():
        assert main([*argv, str(target)]) == 2
        captured = capsys.readouterr()
        assert reported in captured.err and not captured.out
    of_folder = ["predict", "caption", "--model", str(run("captioning")), "--image", str(photos), "--save"]
    assert main([*of_folder, str(photos / "0.png")]) == 2
    assert OneLine("one of the images") in capsys.readouterr().err.splitlines()
    assert (photos / "0.png").read_bytes() == before
    assert main([*argv, str(tmp_path / "new/folder/out.png")]) == 0
    assert (tmp_path / "new/folder/out.png").is_file()


@pytest.mark.parametrize(
    ("argv", "reported"),
    [
        (["match", "--image", "{photos}"], ("match", "--text")),
        (["caption", "--image", "{photos}", "--text", "a"], ("caption", "--text")),
        (["match", "--image", "{photos}", "--text", " "], ("--text", "' '")),
        (["describe", "--image", "{photos}"], ("'describe'",)),
        (["caption", "--image", "nowhere.png"], ("--image nowhere.png",)),
        (["caption", "--image", "{empty}"], ("no image in this folder",)),
        (["match", "--image", "{photos}", "--text", "a star"], ("captioning",)),
        (["caption", "--image", "-"], ("--image -",)),
        (["caption", "--image", "{photos}/notes.txt"], ("no image could be read",)),
        (["caption", "--image", "{photos}", "--device", "gpu"], ("'gpu'",)),
    ],
)
def test_mistakes_are_reported_in_one_line_with_status_2(argv, reported, run, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    (tmp_path / "empty").mkdir()
    words = [word.format(photos=photos, empty=tmp_path / "empty") for word in argv]
    assert main(["predict", *words, "--model", str(run("captioning"))]) == 2
    assert OneLine(*reported) in capsys.readouterr().err.splitlines()


def test_a_folder_contains_images_or_for_a_video_model_videos_or_the_frames_of_one(photos):
    images = [str(photos / f"{number}.png") for number in range(4)]
    assert expand_folder(str(photos), videos=False) == images
    assert expand_folder(str(photos), videos=True) == [str(photos)]
    (photos / "clip.MP4").touch()
    assert expand_folder(str(photos), videos=True) == [str(photos / "clip.MP4")]
    assert expand_folder(str(photos), videos=False) == images
    assert expand_folder(images[0], videos=False) == [images[0]]


LATIN_1 = os.fsdecode(b"caf\xe9")
"""An argument or a file name that is not valid UTF-8, as Python decodes it."""


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "match", "--model", "nowhere", "--image", "nowhere", "--text", LATIN_1],
        ["search", "nowhere", LATIN_1],
        ["search", "nowhere", "a dog", "--locate", LATIN_1],
    ],
)
def test_a_text_that_is_not_utf_8_is_reported_before_anything_is_read(argv, capsys):
    assert main(argv) == 2
    assert capsys.readouterr().err == OneLine(r"'caf\udce9'", "not valid UTF-8")


@pytest.mark.parametrize("call", CALLS)
def test_file_names_that_are_not_utf_8_are_printed_in_json(call, run, photos, monkeypatch, tmp_path):
    names = sorted(str(path) for path in photos.glob("*.png"))[:2]
    renamed = [os.fsdecode(os.fsencode(name) + b"\xe9.png") for name in names]
    for name, new in zip(names, renamed, strict=True):
        os.rename(name, new)
    task, words = CALLS[call]
    for more in ([], ["--json"]):
        with (tmp_path / "printed").open("w", encoding="utf-8") as stream, monkeypatch.context() as patched:
            patched.setattr("sys.stdout", stream)
            assert main(["predict", call, "--model", str(run(task)), "--image", *renamed, *words, *more]) == 0
    values = [json.loads(line) for line in (tmp_path / "printed").read_text("utf-8").splitlines()]
    printed = [name for each in values for name in (each.get("images") or [each["image"]])]
    assert printed[:2] == renamed


def test_json_can_be_parsed_in_any_encoding_of_the_output(run, photos, monkeypatch, tmp_path):
    (photos / "0.png").rename(photos / "日é.png")
    with (tmp_path / "printed").open("w", encoding="latin-1") as stream, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", stream)
        argv = ["predict", "caption", "--model", str(run("captioning")), "--image", str(photos / "日é.png"), "--json"]
        assert main(argv) == 0
    assert json.loads((tmp_path / "printed").read_text("latin-1"))["image"] == str(photos / "日é.png")


def test_standard_input_may_contain_any_file_name(run, photos, monkeypatch, capsys):
    name = os.fsencode(photos) + b"/\xe9.png"
    os.rename(photos / "0.png", name)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(name + b"\n"), encoding="utf-8"))
    assert main(["predict", "caption", "--model", str(run("captioning")), "--json", "--image", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == os.fsdecode(name)
