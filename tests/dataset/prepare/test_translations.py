"""Records for multilingual pre-training: captions by language, from files that any translation system can write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset.prepare import line_shards, multilingual
from dataset.records.schema import ImageKeys, parse_image_record, parse_region_record
from dataset.shards.readers import Shards
from run import main
from tests.dataset.prepare import official
from tests.dataset.prepare.official import downloaded, prepared, write
from tests.messages import OneLine


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)
    monkeypatch.setattr(multilingual, "in_order", official.in_this_process)


@pytest.fixture
def folders(tmp_path) -> Path:
    """Records of COCO and Visual Genome, and an SBU shard with two pairs, the second of which has an invalid JSON member."""
    raw, out = official.everything(tmp_path / "raw"), tmp_path / "deep/er/pretrain"
    for name in ("coco", "visual_genome"):
        prepared(name, raw, out)
    downloaded(out / "sbu", [("http://a/1.jpg", "a wooden chair"), ("http://a/2.jpg", "two dogs")])
    (out / "sbu/00000_stats.json").unlink()
    return out


@pytest.fixture
def run(folders, tmp_path, capsys):
    def call(*flags: str) -> tuple[int, str, str]:
        given = ["--records", str(folders), "--translations", str(tmp_path / "texts"), "--out", str(tmp_path / "out")]
        status = main(["prepare", "multilingual", *given, "--workers", "1", *flags])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


TEXTS = [
    "a tray of food 9",
    "two dogs",
    "a tray of food 73",
    "the clock is green",
    "a wall",
    "a wooden chair",
    "toothbrush",
    "person",
    "clock",
    "green",
    "tall",
    "hand",
]


def translate(folder: Path, language: str, *, without: tuple[str, ...] = ()) -> None:
    lines = (folder / "texts.txt").read_text().splitlines()
    write(
        folder / f"texts.{language}.txt", "".join("\n" if line in without else f"{language}:{line}\n" for line in lines)
    )


def by_language(text: str, *languages: str) -> dict[str, str]:
    return {"en": text} | {language: f"{language}:{text}" for language in languages}


def test_the_first_run_writes_every_text_once(run, tmp_path):
    status, printed, _ = run()
    assert status == 0 and not (tmp_path / "out").exists()
    assert (tmp_path / "texts/texts.txt").read_text().splitlines() == TEXTS
    assert "texts.txt: 12 texts; translate it line by line" in printed
    assert OneLine("no cc3m") in printed.splitlines()


def test_the_next_run_writes_records_that_the_streams_read(run, folders, tmp_path):
    run()
    translate(tmp_path / "texts", "de", without=("two dogs",))
    translate(tmp_path / "texts", "ja")
    (tmp_path / "texts/texts.ja.txt").rename(tmp_path / "texts/texts.JA.txt")
    status, printed, _ = run()
    assert status == 0
    shards = Shards([str(tmp_path / "out/coco")], index_folder=tmp_path / "index")
    found = [parse_image_record(shards.read(number), ImageKeys(), "caption") for number in range(len(shards))]
    assert [record.captions for record in found[:2]] == [
        (by_language("a tray of food 9", "de", "ja"),),
        (by_language("two dogs", "ja"),),
    ]
    assert all(record.image.path.is_file() for record in found), "paths are relative to the new folder"
    assert OneLine(tmp_path / "out/coco", "4 records", "4 texts", "en, de, ja") in printed.splitlines()
    assert "  2 empty translation (de), first " in printed and "texts.txt:2" in printed
    assert shards.read(0).values["coco_id"] == 9, "needed to find held-out images"
    shards = Shards([str(tmp_path / "out/vg_regions")], index_folder=tmp_path / "index")
    record = parse_region_record(shards.read(0), ImageKeys(), "caption")
    assert record.elements[0].captions == (by_language("clock", "de", "ja"),)
    assert record.elements[0].attributes == (by_language("green", "de", "ja"), by_language("tall", "de", "ja"))
    assert record.image.path.is_file()


def test_a_record_without_an_image_is_skipped_and_the_others_are_translated(run, folders, tmp_path):
    shard = next((folders / "coco").glob("*.jsonl"))
    lines = shard.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    del rows[1]["image"]
    shard.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run()
    translate(tmp_path / "texts", "de")
    status, printed, _ = run()
    assert status == 0 and "1 missing key, first " in printed
    assert OneLine(tmp_path / "out/coco", f"{len(rows) - 1} records") in printed.splitlines()


def test_a_file_of_a_complete_folder_is_built_again_if_it_or_its_source_changed(run, folders, tmp_path):
    run()
    translate(tmp_path / "texts", "de")
    run()
    assert "already complete" in run()[1]
    built, source = (next((folder / "coco").glob("*.jsonl")) for folder in (tmp_path / "out", folders))
    built.unlink()
    assert f"{tmp_path / 'out/coco'} is already complete" not in run()[1] and built.exists()
    with source.open("a") as file:
        file.write("no record\n")
    assert "1 bad json, first " in run()[1]


def test_translations_may_have_windows_line_ends(run, tmp_path):
    run()
    translate(tmp_path / "texts", "de")
    path = tmp_path / "texts/texts.de.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert run()[0] == 0
    first = json.loads((tmp_path / "out/coco/part-00000.jsonl").read_text().splitlines()[0])
    assert first["caption"] == by_language("a tray of food 9", "de")


@pytest.mark.parametrize("prefix", ["", "v1.0/"])
def test_shards_of_tars_keep_their_images(run, folders, tmp_path, prefix):
    downloaded(folders / "sbu", [("http://a/1.jpg", "a wooden chair"), ("http://a/2.jpg", "two dogs")], prefix=prefix)
    (folders / "sbu/00000_stats.json").unlink()
    run()
    translate(tmp_path / "texts", "de")
    run()
    before, after = (
        Shards([str(folder / "sbu")], index_folder=tmp_path / "index") for folder in (folders, tmp_path / "out")
    )
    assert len(before) == len(after) == 2
    for number, text in enumerate(["a wooden chair", "two dogs"]):
        assert after.read(number).image == before.read(number).image
        assert parse_image_record(after.read(number), ImageKeys(), "caption").captions == (by_language(text, "de"),)
        assert after.read(number).values["url"] == before.read(number).values["url"]


def test_an_interrupted_run_resumes_and_a_finished_one_does_nothing(run, folders, tmp_path, monkeypatch):
    run()
    translate(tmp_path / "texts", "de")
    work = multilingual._translate_shard

    def killed(job):
        if job.source.parent.name == "vg":
            raise KeyboardInterrupt
        return work(job)

    with monkeypatch.context() as patched:
        patched.setattr(multilingual, "_translate_shard", killed)
        assert run()[0] == 130
    done = (tmp_path / "out/coco/part-00000.jsonl").stat().st_mtime_ns
    status, printed, _ = run()
    assert status == 0 and OneLine("out/coco", "complete") in printed.splitlines()
    assert (tmp_path / "out/coco/part-00000.jsonl").stat().st_mtime_ns == done
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith("translations-")] == []
    translate(tmp_path / "texts", "de", without=("person",))
    status, _, error = run()
    assert status == 2 and OneLine("error:", "translations", "--overwrite") in error.splitlines()
    assert run("--overwrite")[0] == 0


def test_a_run_interrupted_between_shards_counts_all_of_them(run, folders, tmp_path, monkeypatch):
    first = folders / "coco/part-00000.jsonl"
    *lines, last = first.read_text().splitlines(keepends=True)
    first.write_text("".join(lines))
    (folders / "coco/part-00001.jsonl").write_text(last)
    run()
    translate(tmp_path / "texts", "de", without=("two dogs",))
    work = multilingual._translate_shard

    def killed(job):
        if job.source.name == "part-00001.jsonl":
            raise KeyboardInterrupt
        return work(job)

    with monkeypatch.context() as patched:
        patched.setattr(multilingual, "_translate_shard", killed)
        assert run()[0] == 130
    status, printed, _ = run()
    assert status == 0 and OneLine(tmp_path / "out/coco", "4 records", "4 texts", "en, de") in printed.splitlines()
    assert "1 empty translation (de), first " in printed


def test_records_added_later_keep_their_english_text_and_are_reported(run, folders, tmp_path):
    run()
    translate(tmp_path / "texts", "de")
    with (folders / "coco/part-00000.jsonl").open("a") as stream:
        stream.write(json.dumps({"image": "a.jpg", "caption": ["a new text", {"fr": "déjà"}]}) + "\n")
    status, printed, _ = run()
    assert (
        status == 0 and OneLine("1 text", "not translated") in printed.splitlines() and "part-00000.jsonl:5" in printed
    )
    last = json.loads((tmp_path / "out/coco/part-00000.jsonl").read_text().splitlines()[-1])
    assert last["caption"] == [{"en": "a new text"}, {"fr": "déjà"}]


def test_mistakes_are_reported_in_one_line(run, tmp_path, capsys):
    run()
    write(tmp_path / "texts/texts.de.txt", "one line\n")
    status, _, error = run()
    assert (
        status == 2 and "texts.de.txt: 1 lines, but" in error and error.splitlines()[-1] == OneLine("texts.txt", "12")
    )
    assert main(["prepare", "multilingual", "--records", str(tmp_path), "--translations", "x", "--out", "y"]) == 2
    assert OneLine("coco, vg, sbu, cc3m, coco_regions, vg_regions") in capsys.readouterr().err.splitlines()
