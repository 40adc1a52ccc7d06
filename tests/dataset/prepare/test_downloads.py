"""SBU and CC3M: the list of URLs for img2dataset, its command, and the shards that it wrote."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from pathlib import Path

import pytest

from dataset.prepare.manifest import faults, read_manifest
from dataset.prepare.missing import read_missing
from dataset.shards.readers import Shards
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, prepared, write
from tests.messages import OneLine, naming
from utils.errors import UserError

CHAIR = "http://static.flickr.com/2723/4385058960_b0f291553e.jpg"


@pytest.fixture
def raw(tmp_path) -> Path:
    """SBU, CC3M, and the files that list held-out photographs."""
    root = tmp_path / "raw"
    official.coco(root / "coco", pictures=False)
    official.karpathy(root)
    official.sbu(root)
    official.cc3m(root)
    return root


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def listed(out: Path, name: str) -> list[str]:
    return (out / f"_download/{name}_urls/urls.tsv").read_text().split("\n")


def bus(number: int) -> tuple[str, str]:
    return f"http://example.org/{number}.jpg", f"a very typical bus station {number}"


def error_of(name: str, raw: Path, out: Path) -> str:
    with pytest.raises(UserError) as error:
        prepared(name, raw, out)
    assert "\n" not in str(error.value) and not list(out.glob("**/*.tsv"))
    return str(error.value)


# -- the list


def test_the_sbu_list_has_clean_unique_captions_and_no_held_out_photograph(raw, out):
    prepared("sbu", raw, out)
    assert listed(out, "sbu") == ["url\tcaption", f"{CHAIR}\ta wooden chair in the living room", ""]
    assert counted(out / "_download/sbu_urls") == {
        "read": {"pairs": 5},
        "written": {"pairs": 1},
        "fixed": {},
        "skipped": {
            "held out by Flickr30K (Karpathy) test": 1,
            "duplicate address": 1,
            "empty text": 1,
            "held out by COCO (Karpathy) test": 1,
        },
    }


def test_sbu_in_a_single_file_gives_the_same_list(raw, out, tmp_path):
    prepared("sbu", raw, out)
    urls, captions = (raw / f"SBU_captioned_photo_dataset_{kind}.txt" for kind in ("urls", "captions"))
    columns = {"image_urls": urls.read_text().splitlines(), "captions": captions.read_text().splitlines()}
    write(raw / "sbu-captions-all.json", {"user_ids": ["x"] * 5, **columns})
    urls.unlink()
    prepared("sbu", raw, tmp_path / "json")
    assert listed(tmp_path / "json", "sbu") == listed(out, "sbu")


def test_texts_and_urls_that_do_not_fit_a_table_do_not_break_its_lines(raw, out):
    for kind in ("urls", "captions"):
        (raw / f"SBU_captioned_photo_dataset_{kind}.txt").unlink()
    pairs = [
        ("http://x.org/1.jpg", "a dog\ta cat\nand \ud83d more\u2028here"),
        ("http://x.org/2 .jpg", "two words"),
        ("http://x.org/\ud83d.jpg", "half of a pair"),
        ("ftp://x.org/3.jpg", "not the web"),
    ]
    fine = [(f"http://x.org/{n}.jpg", "fine") for n in range(10, 400)]
    urls, captions = zip(*pairs, *fine, strict=True)
    write(raw / "sbu-captions-all.json", json.dumps({"image_urls": urls, "captions": captions}))
    prepared("sbu", raw, out)
    assert listed(out, "sbu")[1] == "http://x.org/1.jpg\ta dog a cat and more here"
    assert counted(out / "_download/sbu_urls")["skipped"] == {"wrong columns": 3}
    assert len(listed(out, "sbu")) == 1 + 1 + 390 + 1


def test_the_cc3m_list_has_the_caption_after_the_url(raw, out):
    official.cc3m(raw, 2)
    reported = prepared("cc3m", raw, out)
    assert listed(out, "cc3m") == ["url\tcaption", *("\t".join(bus(n)) for n in (0, 1)), ""]
    assert OneLine("2", "3,318,333", "pairs") in reported.splitlines()


def test_a_header_of_cc3m_is_not_a_pair(raw, out):
    path = raw / "Train_GCC-training.tsv"
    path.write_text("caption\turl\n" + path.read_text())
    prepared("cc3m", raw, out)
    assert counted(out / "_download/cc3m_urls")["read"] == {"pairs": 3}
    assert len(listed(out, "cc3m")) == 5


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("cc3m", "Train_GCC-training.tsv", "http://x.org/1.jpg\ta dog\n", (":1", "a dog")),
        ("cc3m", "Train_GCC-training.tsv", "a dog\n", (":1", "1 columns", "caption", "URL")),
        ("cc3m", "Train_GCC-training.tsv", b"a dog\thttp://x\n\xe9\thttp://y\n", (":2", "UTF-8")),
        ("cc3m", "Train_GCC-training.tsv", b"x" * (1 << 20), (":1", "1,048,576 bytes")),
        ("cc3m", "Train_GCC-training.tsv", "", ("gave a record", "0 entries")),
        (
            "sbu",
            "SBU_captioned_photo_dataset_captions.txt",
            "one\ntwo\n",
            ("SBU_captioned_photo_dataset_urls.txt", "2"),
        ),
        (
            "sbu",
            "SBU_captioned_photo_dataset_urls.txt",
            "a\nb\nc\nd\ne\n",
            ("SBU_captioned_photo_dataset_urls.txt:1", "'a'"),
        ),
    ],
)
def test_another_file_is_reported_in_one_line_with_its_location(name, file, content, message, raw, out):
    (raw / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert error_of(name, raw, out) == OneLine(*message)


def test_the_img2dataset_command_is_printed_until_there_are_shards(raw, tmp_path):
    out = tmp_path / "my data"
    reported = prepared("cc3m", raw, out)
    [command] = [line for line in reported.splitlines() if "--url_list" in line]
    words = shlex.split(command)
    assert words[0] == "img2dataset"
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    assert flags["--url_list"] == str(out / "_download/cc3m_urls/urls.tsv")
    assert flags["--output_folder"] == str(out / "_download/cc3m_shards")
    assert (flags["--input_format"], flags["--url_col"], flags["--caption_col"]) == ("tsv", "url", "caption")
    assert flags["--output_format"] == "webdataset"
    assert "download the images with img2dataset" in prepared("cc3m", raw, out)


# -- downloaded shards


def shards_of(out: Path, name: str = "cc3m") -> Path:
    return out / f"_download/{name}_shards"


def captions_of(folder: Path) -> list[str]:
    shards = Shards([str(folder)], key="data")
    raws = [shards.read(number) for number in range(len(shards))]
    assert all(raw.image for raw in raws)
    return [raw.values["caption"] for raw in raws]


def test_an_unfiltered_shard_is_a_hard_link_and_is_read_as_records(raw, out):
    official.downloaded(shards_of(out), [bus(0), bus(1)])
    reported = prepared("cc3m", raw, out)
    assert (out / "cc3m/00000.tar").stat().st_ino == (shards_of(out) / "00000.tar").stat().st_ino
    assert captions_of(out / "cc3m") == [bus(0)[1], bus(1)[1]]
    assert (out / "cc3m/_prepare/missing.txt").read_text() == f"{bus(2)[0]}\n"
    assert read_manifest(out / "cc3m").values["statuses"] == {"success": 2, "HTTP Error 404: Not Found": 1}
    assert counted(out / "cc3m")["skipped"] == {"address without image": 1}
    assert "img2dataset: 2 success, 1 HTTP Error 404: Not Found" in reported
    assert list(faults(out / "cc3m")) == []


def test_unlisted_and_repeated_records_are_removed(raw, out):
    official.downloaded(shards_of(out), [bus(0), ("http://example.org/held_out.jpg", "x"), bus(0), bus(1)])
    before = (shards_of(out) / "00000.tar").read_bytes()
    prepared("cc3m", raw, out)
    assert captions_of(out / "cc3m") == [bus(0)[1], bus(1)[1]]
    assert counted(out / "cc3m")["skipped"] == {
        "not on the list": 1,
        "duplicate address": 1,
        "address without image": 1,
    }
    assert (shards_of(out) / "00000.tar").read_bytes() == before


def test_urls_known_to_be_missing_are_excluded_from_list_and_shards(raw, out, tmp_path):
    official.downloaded(shards_of(out), [bus(0), bus(1), bus(2)])
    missing = write(tmp_path / "missing.txt", f"{bus(1)[0]}\n")
    prepared("cc3m", raw, out, missing=read_missing(missing))
    assert captions_of(out / "cc3m") == [bus(0)[1], bus(2)[1]]
    assert counted(out / "_download/cc3m_urls")["skipped"] == {"on the list of missing images": 1}


def test_an_unfinished_shard_is_reported_and_skipped(raw, out):
    official.downloaded(shards_of(out), [bus(0)])
    (shards_of(out) / "00001.tar").write_bytes(b"cut")
    reported = prepared("cc3m", raw, out)
    assert OneLine("cc3m", "1", "img2dataset", "00001.tar") in reported.splitlines()
    assert captions_of(out / "cc3m") == [bus(0)[1]]


def test_a_truncated_finished_shard_is_reported_in_one_line(raw, out):
    official.downloaded(shards_of(out), [bus(0)])
    path = shards_of(out) / "00000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=naming("00000.tar", "complete tar")) as error:
        prepared("cc3m", raw, out)
    assert "\n" not in str(error.value) and not (out / "cc3m").exists() and not (out / ".building-cc3m").exists()


def test_more_shards_change_the_sources_of_the_folder(raw, out):
    official.downloaded(shards_of(out), [bus(0)])
    prepared("cc3m", raw, out)
    official.downloaded(shards_of(out), [bus(0), bus(1)])
    with pytest.raises(UserError, match=naming("shards", "--overwrite")):
        prepared("cc3m", raw, out)
    prepared("cc3m", raw, out, overwrite=True)
    assert captions_of(out / "cc3m") == [bus(0)[1], bus(1)[1]]


def test_a_dot_in_a_folder_of_a_shard_does_not_bring_back_excluded_records(raw, out):
    prepared("cc3m", raw, out)
    official.downloaded(shards_of(out), [bus(0), ("http://example.org/other.jpg", "not on the list")], prefix="v1.0/")
    prepared("cc3m", raw, out)
    assert captions_of(out / "cc3m") == [bus(0)[1]]


def with_broken_and_twin(folder: Path) -> None:
    """The image of the third record is truncated, and the image of the second is a copy of the first."""
    official.downloaded(folder, [bus(0), bus(1), bus(2)])
    path = folder / "00000.tar"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    images = {"000000001.jpg": members[0][1], "000000002.jpg": members[0][1][:100]}
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            content = images.get(name, content)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_verify_drops_broken_and_duplicate_images(raw, out):
    """This also holds after a run that wrote the list without --verify."""
    prepared("cc3m", raw, out)
    with_broken_and_twin(shards_of(out))
    prepared("cc3m", raw, out, verify=True)
    assert captions_of(out / "cc3m") == [bus(0)[1]]
    skipped = counted(out / "cc3m")["skipped"]
    assert skipped == {"duplicate image": 1, "unreadable image": 1, "address without image": 0}
    assert (out / "cc3m/_prepare/missing.txt").read_text() == f"{bus(2)[0]}\n"


@pytest.mark.parametrize("below", ["raw", "elsewhere"])
def test_verify_drops_copies_of_held_out_images_from_shards(below, raw, out, tmp_path):
    official.cc3m(raw, rows=20)
    official.downloaded(shards_of(out), [bus(number) for number in range(20)])  # every image is slightly redder
    with tarfile.open(shards_of(out) / "00000.tar") as tar:
        content = tar.extractfile("000000000.jpg").read()
    root = tmp_path / below
    path = root / "images" / official.coco_name(official.KARPATHY_TEST)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    prepared("cc3m", raw, out, verify=True, held_out=() if below == "raw" else (root,))
    assert counted(out / "cc3m")["skipped"]["held out by COCO (Karpathy) test (a copy)"] >= 1
    assert bus(0)[1] not in captions_of(out / "cc3m") and captions_of(out / "cc3m")


def test_unreadable_statistics_are_counted(raw, out):
    official.downloaded(shards_of(out), [bus(0)])
    (shards_of(out) / "00000_stats.json").write_text("[")
    prepared("cc3m", raw, out)
    assert read_manifest(out / "cc3m").values["statuses"] == {"statistics that cannot be read": 1}


# -- several machines


@pytest.mark.night
def test_a_local_ray_cluster_writes_the_same_list_and_takes_the_same_records(raw, out, tmp_path):
    for folder, changes in ((out, {"ray": "local", "workers": 2}), (tmp_path / "here", {})):
        prepared("cc3m", raw, folder, **changes)
        with_broken_and_twin(shards_of(folder))
        prepared("cc3m", raw, folder, verify=True, **changes)
    here = tmp_path / "here"
    assert listed(out, "cc3m") == listed(here, "cc3m")
    for name in ("_download/cc3m_urls", "cc3m"):
        assert counted(out / name) == counted(here / name)
    assert captions_of(out / "cc3m") == captions_of(here / "cc3m") == [bus(0)[1]]
