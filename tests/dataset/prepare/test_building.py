"""A folder of records is built completely or not at all, an interrupted run is resumed, and the folder's manifest reveals every
change."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from dataset.prepare import line_shards, whole_folder
from dataset.prepare.catalogue import SETS
from dataset.prepare.counts import Counts
from dataset.prepare.line_shards import Job, Work, fill_with_records
from dataset.prepare.manifest import MANIFEST, faults, manifest_content, read_manifest, write_manifest
from dataset.prepare.processes import WorkerDiedError
from dataset.prepare.raw_folder import file_digest
from dataset.prepare.whole_folder import build_folder
from tests.dataset.prepare import official
from tests.dataset.prepare.official import contents, prepared
from tests.messages import OneLine, naming
from utils.errors import UserError

NUMBERS = range(100, 120)
"""COCO images that are not held out."""


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """COCO with 20 more images. A job covers one image, and a shard three."""
    small = tuple(dataclasses.replace(records, batch=1) for records in SETS["coco"].makes)
    monkeypatch.setitem(SETS, "coco", dataclasses.replace(SETS["coco"], makes=small))
    monkeypatch.setattr(line_shards, "JOBS_PER_SHARD", 3)
    root = tmp_path / "raw"
    official.coco(root, pictures=False)
    official.karpathy(root)
    official.references(root)
    path = root / "annotations/captions_train2014.json"
    values = json.loads(path.read_text())
    values["images"] += official.coco_images(list(NUMBERS))
    values["annotations"] += [{"image_id": n, "id": n, "caption": f"A dog, {n}."} for n in NUMBERS]
    values["annotations"].append({"image_id": 9, "id": 1, "caption": " ! "})
    official.write(path, values)
    return root


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def serial(monkeypatch):
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)


def is_whole(folder: Path) -> bool:
    return list(faults(folder)) == []


def test_one_and_two_processes_write_the_same_bytes(raw, out, tmp_path):
    prepared("coco", raw, out, workers=1)
    prepared("coco", raw, tmp_path / "two", workers=2)
    for name in ("coco", "coco_regions", "coco_val"):
        assert contents(out / name) == contents(tmp_path / "two" / name)
        assert read_manifest(out / name).values["counts"] == read_manifest(tmp_path / "two" / name).values["counts"]
    assert sorted(contents(out / "coco")) == [f"part-{n:05}.jsonl" for n in range(9)]  # 26 images


class Interruption(BaseException):
    """Interrupts a run, like Ctrl-C."""


@pytest.mark.parametrize("at", [0, 1, 4, 11, 25])
def test_an_interrupted_run_resumes_and_writes_the_same_bytes(at, raw, out, tmp_path, monkeypatch, serial):
    prepared("coco", raw, tmp_path / "whole")
    converted: list[str] = []

    def until(work, jobs, workers, died):
        for number, result in enumerate(official.in_this_process(work, jobs, workers, died)):
            if number == at:
                raise Interruption
            yield result

    monkeypatch.setattr(line_shards, "in_order", until)
    with pytest.raises(Interruption):
        prepared("coco", raw, out)
    assert [path.name for path in out.iterdir()] == [".building-coco"]

    def noted(work, jobs, workers, died):
        for job in jobs:
            converted.append(job.shard)
            yield work(job)

    (out / ".building-coco/part-00001.jsonl.half").write_text("half")
    monkeypatch.setattr(line_shards, "in_order", noted)
    prepared("coco", raw, out)
    assert contents(out / "coco") == contents(tmp_path / "whole/coco")
    counts = [read_manifest(folder / "coco").values["counts"] for folder in (out, tmp_path / "whole")]
    assert counts[0] == counts[1] and counts[0]["skipped"]["empty text"] == 1
    first = converted.index(f"part-{at // 3:05}.jsonl")
    assert first == 0  # no complete shard is built again
    assert sorted(path.name for path in out.iterdir()) == ["coco", "coco_regions", "coco_val"]


def test_nothing_has_the_final_name_before_the_end(raw, out, monkeypatch, serial):
    seen = []
    place = whole_folder._put_in_place
    monkeypatch.setattr(whole_folder, "_put_in_place", lambda *paths: (seen.append(paths[1].exists()), place(*paths)))
    prepared("coco", raw, out)
    assert seen == [False, False, False]
    prepared("coco", raw, out, overwrite=True)
    assert is_whole(out / "coco") and sorted(path.name for path in out.iterdir()) == [
        "coco",
        "coco_regions",
        "coco_val",
    ]


def test_shards_of_an_interrupted_run_with_other_arguments_are_not_reused(out):
    """A run is killed between writing a shard and recording the shard. The next run has other arguments and fewer shards."""

    def cut(folder):
        (folder.out / "part-00007.jsonl").write_text('{"image": "held_out.jpg"}\n')
        raise Interruption

    def fill(folder):
        return fill_with_records(folder, Work(convert, iter([Job([1])]), 1), 1, "x")

    with pytest.raises(Interruption):
        build_folder(out, "x", {"a": 1}, cut, overwrite=False, max_broken=0.01)
    build_folder(out, "x", {"a": 2}, fill, overwrite=False, max_broken=0.01)
    assert list(contents(out / "x")) == ["part-00000.jsonl"]


def convert(item: int, counts: Counts):
    yield {"image": item}


def test_complete_shards_stay_after_a_kill_and_are_removed_if_the_files_are_wrong(out):
    def fill(error):
        def stop(folder):
            fill_with_records(folder, Work(convert, iter([Job([1])]), 1), 1, "x")
            raise error

        return stop

    with pytest.raises(WorkerDiedError):
        build_folder(out, "x", {}, fill(WorkerDiedError("killed")), overwrite=False, max_broken=0.01)
    assert (out / ".building-x/part-00000.jsonl").exists()
    with pytest.raises(UserError):
        build_folder(out, "x", {}, fill(UserError("wrong")), overwrite=False, max_broken=0.01)
    assert list(out.iterdir()) == []


def test_the_same_command_does_nothing_the_second_time(raw, out, serial):
    prepared("coco", raw, out)
    before = (out / "coco" / MANIFEST).stat().st_mtime_ns
    reported = prepared("coco", raw, out)
    assert reported.count("nothing to do") == 3
    assert (out / "coco" / MANIFEST).stat().st_mtime_ns == before


def test_other_files_or_flags_are_rejected_and_overwrite_rebuilds_the_folder(raw, out, tmp_path, serial):
    prepared("coco", raw, out)
    with pytest.raises(UserError, match=naming("coco", "held_out, without", "--overwrite")):
        prepared("coco", raw, out, without=("refcoco",))
    path = raw / "annotations/captions_val2014.json"
    path.write_text(path.read_text().replace("two dogs", "two cats"))
    with pytest.raises(UserError, match=naming("sources, links")):
        prepared("coco", raw, out)
    prepared("coco", raw, out, overwrite=True)
    texts = [record["caption"] for record in official.records(out / "coco") if record["coco_id"] == 73]
    assert texts == ["a tray of food 73", "two dogs", "two cats"]


def test_a_folder_is_not_up_to_date_if_a_file_links_more_images(raw, out, serial):
    """According to Visual Genome's list, COCO's image 9 may be a held-out photograph of Flickr30K."""
    prepared("coco", raw, out)
    linked = [{"image_id": 1, "width": 64, "height": 48, "coco_id": 9, "flickr_id": official.FLICKR_TEST}]
    official.write(raw / "image_data.json", linked)
    with pytest.raises(UserError, match=r"with other flags \(links\); --overwrite"):
        prepared("coco", raw, out)
    prepared("coco", raw, out, overwrite=True)
    assert 9 not in {record["coco_id"] for record in official.records(out / "coco")}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_another_origin_is_rejected_and_kept(overwrite, raw, out, serial):
    """This also holds for --overwrite, because the folder may contain the official images."""
    (out / "coco/train2014").mkdir(parents=True)
    with pytest.raises(UserError, match=naming("out/coco", "run.py prepare", "--out")):
        prepared("coco", raw, out, overwrite=overwrite)
    assert (out / "coco/train2014").is_dir()
    (out / "coco/train2014").rmdir()
    prepared("coco", raw, out, overwrite=overwrite)
    assert is_whole(out / "coco")


def test_the_manifest_has_sources_counts_shards_command_and_version(raw, out, serial):
    prepared("coco", raw, out)
    values = read_manifest(out / "coco").values
    names = ("captions_train2014", "captions_val2014")
    sources = {name: file_digest(raw / f"annotations/{name}.json") for name in names}
    assert values["arguments"]["sources"] == sources
    assert values["arguments"]["held_out"]["karpathy_coco"] == file_digest(raw / "dataset_coco.json")
    shards = sorted((out / "coco").glob("*.jsonl"))
    assert [shard["file"] for shard in values["files"]] == [path.name for path in shards]
    assert [shard["sha256"] for shard in values["files"]] == [file_digest(path) for path in shards]
    assert values["counts"]["written"] == {"images": 22, "captions": 24, "records": 24}
    assert values["leaks"]["not_checked"] == [
        "vqa2",
        "gqa_val",
        "entities_val",
        "entities_test",
        "ref_l4_val",
        "ref_l4_test",
    ]
    assert values["official_sizes"] == {"images": 123_287}
    assert values["annotations_alone"] is True
    assert {"command", "version", "written_at"} <= set(values)


def test_files_are_recognised_under_another_path(raw, out, serial, monkeypatch):
    prepared("coco", raw, out)
    monkeypatch.chdir(raw.parent)
    assert "nothing to do" in prepared("coco", Path(raw.name), out)


def test_image_counts_add_up(raw, out, serial):
    prepared("coco", raw, out)
    counts = read_manifest(out / "coco").values["counts"]
    gone = sum(number for reason, number in counts["skipped"].items() if reason.startswith("held out"))
    assert counts["read"]["images"] == 26 == counts["written"]["images"] + gone
    texts = counts["skipped"]["duplicate text"] + counts["skipped"]["empty text"]
    assert counts["read"]["captions"] == 18 + 21 == counts["written"]["captions"] + texts + 3 * gone


# -- the check


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "prepared"
    (path / "_prepare").mkdir(parents=True)
    (path / "part-00000.jsonl").write_text('{"image": "a.jpg"}\n')
    (path / "part-00001.jsonl").write_text('{"image": "b.jpg"}\n')
    (path / "_prepare/missing.txt").write_text("images/1.jpg\n")
    counts = Counts()
    counts.skip("odd", "a\nb", "half of a pair: \ud83d")
    write_manifest(path, {"sources": {}}, counts)
    return path


@pytest.mark.parametrize("name", ["part-00000.jsonl", "part-00001.jsonl", "_prepare/missing.txt", MANIFEST])
def test_any_changed_byte_is_detected_and_its_file_named(name, folder):
    assert is_whole(folder)
    path = folder / name
    content = path.read_bytes()
    for place in range(0, len(content), 1 if len(content) < 50 else 3):
        for change in (0x01, 0x20, 0xFF):
            path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
            [fault] = faults(folder)
            assert fault.startswith(str(path))
    path.write_bytes(content)
    assert is_whole(folder)


def test_truncated_missing_and_foreign_shards_are_named(folder):
    shutil.copy(folder / "part-00000.jsonl", folder / "part-00002.jsonl")
    (folder / "part-00001.jsonl").unlink()
    (folder / "part-00000.jsonl").write_text("{}")
    assert list(faults(folder)) == [
        f"{folder}/part-00000.jsonl has 2 bytes, not 19",
        f"{folder}/part-00001.jsonl is missing",
        OneLine(f"{folder}/part-00002.jsonl", "manifest"),
    ]
    (folder / MANIFEST).unlink()
    [fault] = faults(folder)
    assert fault.startswith(f"{folder} has no {MANIFEST}")


def test_locations_in_a_manifest_are_line_numbers(folder):
    assert read_manifest(folder).values["counts"]["examples"] == [
        {"place": "a\\nb", "reason": "odd", "detail": "half of a pair: \\ud83d"}
    ]


def test_a_manifest_of_an_earlier_version_is_read_under_the_names_of_this_version(folder):
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    counts = {"read": {"images": 2}, "made": {"records": 1}, "mended": {}, "left_out": {"odd": 1}, "places": {}}
    described = {"shards": values.pop("files"), "notes": values.pop("other_files"), "made": values.pop("written_at")}
    del values["own_sha256"]
    path.write_bytes(manifest_content({**values, **described, "counts": counts}))
    assert is_whole(folder)
    manifest = read_manifest(folder)
    assert (manifest.counts.written, manifest.counts.skipped) == ({"records": 1}, {"odd": 1})
    assert [each["file"] for each in manifest.values["files"]] == ["part-00000.jsonl", "part-00001.jsonl"]
