"""The columns of CC12M; LAION's lists and shards, where each file is processed separately."""

from __future__ import annotations

import io
import json
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dataset.prepare import line_shards, url_sets
from dataset.prepare.filters import Filters
from dataset.prepare.manifest import faults
from dataset.shards.readers import Shards
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, downloaded, prepared, write
from tests.dataset.prepare.set_errors import one_line
from tests.messages import OneLine

FLICKR = f"https://farm1.staticflickr.com/1/{official.FLICKR_TEST}_0a1b_o.jpg"


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    for module in (line_shards, url_sets):
        monkeypatch.setattr(module, "in_order", official.in_this_process)


@pytest.fixture
def raw(tmp_path) -> Path:
    official.karpathy(tmp_path / "raw/coco")
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def test_cc12m_has_the_url_first_and_people_as_person(raw, out):
    rows = [
        "http://a/1.jpg\t<PERSON> at the Beach!",
        "https://a/2.jpg\ttwo dogs",
        f"{FLICKR}\theld out",
        "http://a/1.jpg\tagain",
        "",
    ]
    write(raw / "cc12m.tsv", "".join(f"{row}\n" for row in rows))
    reported = prepared("cc12m", raw, out)
    listed = (out / "_download/cc12m_urls/urls.tsv").read_text().splitlines()
    assert listed == ["url\tcaption", "http://a/1.jpg\tperson at the beach", "https://a/2.jpg\ttwo dogs"]
    assert "img2dataset --url_list" in reported and "--input_format tsv" in reported
    write(
        raw / "cc12m.tsv", "".join(f"{caption}\t{url}\n" for url, caption in (row.split("\t") for row in rows if row))
    )
    assert one_line("cc12m", raw, other(out)) == OneLine("4 of 4", "4 wrong columns")


def other(out: Path) -> Path:
    return out.with_name("other")


ROWS: list[dict[str, Any]] = [
    {"URL": "http://a/0.jpg", "TEXT": "A Dog.", "WIDTH": 300, "HEIGHT": 400, "NSFW": "UNLIKELY", "similarity": 0.31},
    {"URL": "http://a/1.jpg", "TEXT": "a cat", "WIDTH": 300, "HEIGHT": 100, "NSFW": "UNLIKELY", "similarity": 0.40},
    {"URL": "http://a/2.jpg", "TEXT": "a hat", "WIDTH": 300, "HEIGHT": 400, "NSFW": "UNSURE", "similarity": 0.40},
    {"URL": "http://a/3.jpg", "TEXT": "a bat", "WIDTH": 300, "HEIGHT": 400, "NSFW": "NSFW", "similarity": 0.40},
    {"URL": "http://a/4.jpg", "TEXT": "a rat", "WIDTH": 300, "HEIGHT": 400, "NSFW": "UNLIKELY", "similarity": 0.25},
    {"URL": FLICKR, "TEXT": "held out", "WIDTH": 300, "HEIGHT": 400, "NSFW": "UNLIKELY", "similarity": 0.4},
    {"URL": "http://a/6.jpg", "TEXT": " . ", "WIDTH": 300, "HEIGHT": 400, "NSFW": "UNLIKELY", "similarity": 0.4},
    {"URL": None, "TEXT": "no address", "WIDTH": 300, "HEIGHT": 400, "NSFW": "UNLIKELY", "similarity": 0.4},
    {"URL": "http://a/8.jpg", "TEXT": None, "WIDTH": None, "HEIGHT": None, "NSFW": None, "similarity": None},
]


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=2)


def pairs(path: Path) -> list[tuple[str, str]]:
    import pyarrow.parquet

    return [(row["url"], row["caption"]) for row in pyarrow.parquet.read_table(path).to_pylist()]


@pytest.mark.parametrize("batch", [1 << 16, 2])
def test_lists_are_filtered_and_counted_before_and_after(raw, out, batch, monkeypatch):
    monkeypatch.setattr("dataset.prepare.parquet_rows.BATCH", batch)
    parquet(raw / "laion/part-00000.snappy.parquet", ROWS)
    lower = [{name.lower(): value for name, value in row.items()} for row in ROWS[:2]]
    parquet(raw / "laion/part-00001.snappy.parquet", lower)
    reported = prepared("laion", raw, out, filters=Filters(min_side=200, min_similarity=0.3))
    folder = out / "_download/laion_urls"
    assert pairs(folder / "part-00000.snappy.parquet") == [("http://a/0.jpg", "a dog"), ("http://a/2.jpg", "a hat")]
    assert pairs(folder / "part-00001.snappy.parquet") == [("http://a/0.jpg", "a dog")]
    assert counted(folder) == {
        "read": {"pairs": 11},
        "written": {"pairs": 3},
        "fixed": {},
        "skipped": {
            "side below 200": 3,
            "tagged NSFW": 1,
            "similarity below 0.3": 1,
            "held out by Flickr30K (Karpathy) test": 1,
            "empty text": 1,
            "no address": 1,
        },
    }
    assert f"img2dataset --url_list {folder} --input_format parquet --url_col url --caption_col caption" in reported
    assert list(faults(folder)) == []
    manifest = json.loads((folder / "_prepare/manifest.json").read_text())
    assert manifest["arguments"]["filters"] == {
        "min_side": 200,
        "min_similarity": 0.3,
        "safety": "NSFW",
        "max_unsafe": 1.0,
        "max_watermark": 1.0,
    }


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (Filters(safety="none"), [0, 1, 2, 3, 4]),
        (Filters(), [0, 1, 2, 4]),
        (Filters(safety="UNSURE"), [0, 1, 4]),
        (Filters(safety="none", min_similarity=0.25), [0, 1, 2, 3, 4]),
        (Filters(safety="none", min_side=101), [0, 2, 3, 4]),
    ],
)
def test_each_filter_removes_the_rows_it_describes(raw, out, filters, kept):
    parquet(raw / "laion/a.parquet", ROWS)
    prepared("laion", raw, out, filters=filters)
    assert [url for url, _ in pairs(out / "_download/laion_urls/a.parquet")] == [f"http://a/{n}.jpg" for n in kept]


def test_probabilities_of_later_releases_are_filtered_too(raw, out):
    rows = [
        {"url": f"http://a/{n}.jpg", "caption": "x y", "punsafe": p, "pwatermark": w}
        for n, (p, w) in enumerate([(0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (None, 0.1)])
    ]
    parquet(raw / "laion/a.parquet", rows)
    prepared("laion", raw, out, filters=Filters(safety="none", max_unsafe=0.5, max_watermark=0.8))
    assert pairs(out / "_download/laion_urls/a.parquet") == [("http://a/0.jpg", "x y")]


def test_numbers_may_be_decimals_or_strings(raw, out):
    rows = [{"URL": f"http://a/{n}.jpg", "TEXT": "x y", "WIDTH": "300", "HEIGHT": "400"} for n in range(3)]
    similarities = [Decimal("0.35"), Decimal("0.10"), None]
    parquet(raw / "laion/a.parquet", [{**row, "similarity": s} for row, s in zip(rows, similarities, strict=True)])
    prepared("laion", raw, out, filters=Filters(safety="none", min_side=200, min_similarity=0.3))
    assert pairs(out / "_download/laion_urls/a.parquet") == [("http://a/0.jpg", "x y")]
    assert counted(out / "_download/laion_urls")["skipped"] == {"similarity below 0.3": 2}


def test_lists_may_be_in_the_given_folder_but_not_in_folders_of_other_sets(raw, out):
    parquet(raw / "part-0.snappy.parquet", ROWS)
    parquet(raw / "cc3m/x.parquet", ROWS[:1])
    prepared("laion", raw, out)
    assert [path.name for path in (out / "_download/laion_urls").glob("*.parquet")] == ["part-0.snappy.parquet"]


def test_mistakes_are_reported_in_one_line_and_a_damaged_file_does_not_stop_the_others(raw, out):
    assert one_line("laion", raw, out) == OneLine("laion", "img2dataset")
    parquet(raw / "laion2b/b.parquet", [{"URL": "http://a/0.jpg", "TEXT": "a"}])
    assert one_line("laion", raw, out) == OneLine("b.parquet", "safety", "URL, TEXT")
    parquet(raw / "laion/b.parquet", ROWS)
    assert one_line("laion", raw, out, filters=Filters(safety="none")) == OneLine("the same name", "rename")
    (raw / "laion/b.parquet").rename(raw / "laion/c.parquet")
    for name in ("a", "d"):
        (raw / f"laion/{name}.parquet").write_bytes((raw / "laion/c.parquet").read_bytes()[:-50])
    prepared("laion", raw, out, filters=Filters(safety="none"))
    assert counted(out / "_download/laion_urls")["skipped"]["damaged file"] == 2
    assert len(pairs(out / "_download/laion_urls/c.parquet")) == 5


def add_columns(path: Path, columns: list[dict[str, Any]]) -> None:
    """Adds columns of a list to the JSON of a shard's records, as img2dataset does with ``--save_additional_columns``."""
    members: list[tuple[str, bytes]] = []
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            if member.name.endswith(".json"):
                content = json.dumps(json.loads(content) | columns[int(member.name[:9])]).encode()
            members.append((member.name, content))
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def test_a_column_that_occurs_twice_in_a_list_is_an_error(raw, out):
    parquet(raw / "laion/a.parquet", [{**row, "url": "http://a/1.jpg"} for row in ROWS])
    assert one_line("laion", raw, out) == OneLine("a.parquet", "several columns", "url")


@pytest.mark.parametrize("prefix", ["", "v1.0/"])
def test_the_shards_downloaded_from_the_lists_become_the_set(raw, out, prefix):
    parquet(raw / "laion/a.parquet", ROWS)
    prepared("laion", raw, out)
    pairs_of_shard = [("http://a/0.jpg", "a dog"), (FLICKR, "held out"), ("http://a/2.jpg", "a hat")]
    downloaded(out / "_download/laion_shards", pairs_of_shard, prefix=prefix)
    prepared("laion", raw, out)
    shards = Shards([str(out / "laion")])
    assert [shards.read(number).text for number in range(len(shards))] == ["a dog", "a hat"]
    assert counted(out / "laion")["skipped"] == {"held out by Flickr30K (Karpathy) test": 1}
    assert list(faults(out / "laion")) == []
    (out / "laion/00000.tar").write_bytes(b"x")
    assert ["bytes, not" in fault for fault in faults(out / "laion")] == [True]


def test_shards_next_to_the_lists_are_reported_and_not_read(raw, out):
    parquet(raw / "laion/a.parquet", ROWS)
    downloaded(raw / "laion/shards", [("http://a/0.jpg", "a dog")])
    reported = prepared("laion", raw, out)
    assert OneLine("laion", "1", "lists") in reported.splitlines()
    assert not (out / "laion").exists()


def test_existing_shards_are_used_unchanged(raw, out):
    downloaded(raw / "laion", [(f"http://a/{n}.jpg", "a dog") for n in range(4)])
    assert one_line("laion", raw, out) == OneLine("4 entries", "4 without a tag of safety")
    sizes = {"original_width": 500, "original_height": 400}
    tags = [
        {"NSFW": "UNLIKELY", **sizes},
        {"NSFW": "NSFW", **sizes},
        {"NSFW": "UNLIKELY", "original_width": 90, "original_height": 90},
    ]
    add_columns(raw / "laion/00000.tar", [*tags, tags[0]])
    prepared("laion", raw, out, filters=Filters(min_side=200))
    assert counted(out / "laion")["skipped"] == {"tagged NSFW": 1, "side below 200": 1}
    prepared("laion", raw, other(out), filters=Filters(safety="none"))
    assert (other(out) / "laion/00000.tar").samefile(raw / "laion/00000.tar"), "linked, not copied"
    assert not list((raw / "laion").glob(".*"))


def test_damaged_and_unfinished_shards_are_reported(raw, out):
    downloaded(raw / "laion", [("http://a/0.jpg", "a dog")])
    (raw / "laion/00001.tar").write_bytes(b"no tar" * 200)
    write(raw / "laion/00001_stats.json", {"status_dict": {"success": 3}})
    (raw / "laion/00002.tar").write_bytes(b"")
    reported = prepared("laion", raw, out, filters=Filters(safety="none"))
    assert OneLine("laion", "1", "00002.tar") in reported.splitlines()
    assert counted(out / "laion")["skipped"] == {"damaged file": 1}


def test_an_interrupted_run_resumes_with_the_remaining_files(raw, out, monkeypatch):
    for number in range(3):
        parquet(raw / f"laion/deep/{number}.parquet", ROWS)
    work, done = url_sets.write_list, []

    def cut(job):
        done.append(job.source.name)
        if len(done) == 2:
            raise RuntimeError
        return work(job)

    monkeypatch.setattr(url_sets, "write_list", cut)
    with pytest.raises(RuntimeError):
        prepared("laion", raw, out)
    prepared("laion", raw, out)
    assert done == ["0.parquet", "1.parquet", "1.parquet", "2.parquet"]
    assert counted(out / "_download/laion_urls")["read"] == {"pairs": 27}
