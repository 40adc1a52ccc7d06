"""Annotated web images: lists in the official formats, the shards that img2dataset builds from them, and their records."""

from __future__ import annotations

import io
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset.prepare import line_shards, parquet_rows, url_sets
from dataset.prepare.filters import Filters
from dataset.prepare.manifest import faults
from dataset.prepare.sets.blip3_grounding import phrase_before
from dataset.prepare.to_odvg import to_odvg
from dataset.shards.readers import Shards
from tests.dataset.prepare import official
from tests.dataset.prepare.official import check_record, counted, write
from tests.dataset.prepare.set_errors import one_line
from tests.dataset.prepare.test_laion import parquet
from tests.messages import OneLine

FLICKR = f"https://farm1.staticflickr.com/1/{official.FLICKR_TEST}_0a1b_o.jpg"
SIZE = (64, 48)

prepared = partial(official.prepared, max_broken=1.0)  # these small files contain more faulty rows than good ones


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


def listed(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return [row for path in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]


def download(folder: Path, rows: list[dict[str, Any]], sizes: dict[str, tuple[int, int]] | None = None) -> None:
    """Writes a shard as img2dataset does. Images of 128 x 96 pixels are stored at half their size."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, row in enumerate(rows):
            size = (sizes or {}).get(row["url"], SIZE)
            content = io.BytesIO()
            Image.new("RGB", size, (number, 0, 0)).save(content, "JPEG")
            original = {"original_width": 128, "original_height": 96, "width": size[0], "height": size[1]}
            values = {**row, "key": f"{number:09}", "status": "success", **original}
            members = {"jpg": content.getvalue(), "txt": b"as downloaded", "json": json.dumps(values).encode()}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{number:09}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    write(folder / "00000_stats.json", {"status_dict": {"success": len(rows)}})


def made(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder of shards, each accepted by the parser."""
    shards = Shards([str(folder)])
    found = []
    for number in range(len(shards)):
        raw = shards.read(number)
        assert raw.image is not None and raw.text is None
        check_record(dict(raw.values), raw.location, folder, raw.image)
        found.append(dict(raw.values))
    return found


def grit_row(url: str, caption: Any, chunks: Any, expressions: Any, **more: Any) -> dict[str, Any]:
    key = {"key": "000373938", "clip_similarity_vitb32": 0.35, "clip_similarity_vitl14": 0.3, "id": 1795296605919}
    known = {"url": url, "caption": caption, "width": 128, "height": 96}
    return {**key, **known, "noun_chunks": chunks, "ref_exps": expressions, **more}


NAN = float("nan")
GRIT_ROWS = [
    # "Ä dog — and 🐕 two cats": offsets count characters, not bytes
    grit_row(
        "http://a/0.jpg",
        "Ä dog — and 🐕 two cats",
        [
            [0.0, 5.0, 0.25, 0.5, 0.75, 1.0, 0.9],
            [14.0, 22.0, 0.0, 0.0, 0.25, 0.5, 0.8],
            [14.0, 22.0, 0.5, 0.0, 0.75, 0.5, 0.8],
            [14.0, 22.0, 0.5, 0.0, 0.751, 0.5, 0.7],
        ],
        [[0.0, 22.0, 0.25, 0.5, 0.75, 1.0, 0.9]],
    ),
    grit_row(
        "http://a/1.jpg",
        "a hat",
        [
            [0.0, 9.0, 0.25, 0.5, 0.75, 1.0, 0.9],
            [3.0, 2.0, 0.25, 0.5, 0.75, 1.0, 0.9],
            [NAN, 5.0, 0.25, 0.5, 0.75, 1.0, 0.9],
            [0.0, 5.0, 0.75, 0.5, 0.25, 1.0, 0.9],
            [0.0, 5.0, 20.0, 30.0, 200.0, 300.0, 0.9],
            [0.0, 5.0, NAN, 0.5, 0.25, 1.0, 0.9],
            [1.0, 2.0, 0.25, 0.5, 0.75, 1.0, 0.9],
            [0.0, 5.0, 0.5],
            [2.0, 5.0, -0.01, 0.0, 1.02, 0.5, 0.9],
        ],
        None,
    ),
    grit_row("http://a/2.jpg", "no boxes", [], []),
    grit_row(FLICKR, "held out", [[0.0, 8.0, 0.25, 0.5, 0.75, 1.0, 0.9]], []),
    grit_row(None, "no address", [], []),
    grit_row("http://a/5.jpg", None, [[0.0, 8.0, 0.25, 0.5, 0.75, 1.0, 0.9]], []),
    grit_row("http://a/6.jpg", "a bat", None, [[0.0, 5.0, 0.25, 0.5, 0.75, 1.0, 0.9]]),
    grit_row("http://a/2.jpg", "no boxes", [], []),
]
GRIT_RECORDS = [
    {
        "caption": "ä dog — and 🐕 two cats",
        "elems": [
            {"caption": "ä dog", "bb": [16, 24, 32, 24], "grain": "object"},
            {"caption": "two cats", "bb": [[0, 0, 16, 24], [32, 0, 16, 24]], "grain": "object"},
            {"caption": "ä dog — and 🐕 two cats", "bb": [16, 24, 32, 24], "grain": "region"},
        ],
        "url": "http://a/0.jpg",
    },
    {
        "caption": "a hat",
        "elems": [{"caption": "hat", "bb": [0, 0, 64, 24], "grain": "object"}],
        "url": "http://a/1.jpg",
    },
    {"caption": "no boxes", "url": "http://a/2.jpg"},
    {
        "caption": "a bat",
        "elems": [{"caption": "a bat", "bb": [16, 24, 32, 24], "grain": "region"}],
        "url": "http://a/6.jpg",
    },
]


def test_grit_is_listed_and_downloaded_and_its_boxes_fit_the_stored_images(raw, out):
    parquet(raw / "grit-20m/coyo_0_snappy.parquet", GRIT_ROWS)
    reported = prepared("grit", raw, out)
    assert "--save_additional_columns '[\"annotations\"]'" in reported
    rows = listed(out / "_download/grit_urls")
    assert [row["url"] for row in rows] == [f"http://a/{n}.jpg" for n in (0, 1, 2, 6)]
    assert rows[0]["caption"] == GRIT_ROWS[0]["caption"], "the offsets count its characters"
    skipped = {"no address": 1, "held out by Flickr30K (Karpathy) test": 1, "duplicate row": 1, "no caption": 1}
    assert counted(out / "_download/grit_urls")["skipped"] == skipped
    download(out / "_download/grit_shards", rows)
    prepared("grit", raw, out)
    assert made(out / "grit") == GRIT_RECORDS
    assert counted(out / "grit") == {
        "read": {"images": 4, "phrases": 15},
        "written": {"images": 4, "records": 4, "objects": 4, "regions": 2},
        "fixed": {"box clamped": 1},
        "skipped": {
            "duplicate box": 1,
            "offsets outside the caption": 3,
            "degenerate box": 1,
            "box outside image": 1,
            "wrong type": 2,
            "empty text": 1,
        },
    }
    assert list(faults(out / "grit")) == []


def test_images_in_shards_are_written_to_files_that_odvg_lines_name(raw, out, tmp_path):
    parquet(raw / "grit-20m/coyo_0_snappy.parquet", GRIT_ROWS)
    prepared("grit", raw, out)
    download(out / "_download/grit_shards", listed(out / "_download/grit_urls"))
    prepared("grit", raw, out)
    target = tmp_path / "odvg/grit.jsonl"
    assert to_odvg((str(out / "grit"),), out=target) == 1, "one record has no box"
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["filename"] for line in lines] == [f"grit_images/00000000{n}.jpeg" for n in (0, 1, 3)]
    for line in lines:
        with Image.open(target.parent / line["filename"]) as image:
            assert image.size == (line["width"], line["height"]) == SIZE
    again = tmp_path / "again"
    prepared("odvg", tmp_path / "odvg", again, held_out=(raw,))
    found = official.parsed_records(again / "odvg")
    assert [each["elems"] for each in found] == [each["elems"] for each in GRIT_RECORDS if "elems" in each]


def test_duplicate_rows_are_found_in_the_whole_file(raw, out, monkeypatch):
    monkeypatch.setattr(parquet_rows, "BATCH", 2)
    chunks = [[0.0, 5.0, 0.25, 0.5, 0.75, 1.0, 0.9]]
    rows = [grit_row(f"http://a/{number}.jpg", "a hat", chunks, []) for number in (0, 1, 2, 0, 3, 1)]
    parquet(raw / "grit/coyo_0_snappy.parquet", rows)
    prepared("grit", raw, out)
    assert [row["url"] for row in listed(out / "_download/grit_urls")] == [f"http://a/{n}.jpg" for n in range(4)]
    assert counted(out / "_download/grit_urls")["skipped"] == {"duplicate row": 2}


def test_rows_that_cannot_become_records_are_not_listed(raw, out):
    chunks = [[0.0, 5.0, 0.25, 0.5, 0.75, 1.0, 0.9]]
    rows = [grit_row(f"http://a/{n}.jpg", text, chunks, []) for n, text in enumerate(("a hat", None, " \n", ""))]
    parquet(raw / "grit/coyo_0_snappy.parquet", rows)
    texts = [(None, "long"), (" ", "long"), ("short", None), ("short", " ")]
    captions = [
        {"url": f"http://a/{n}.jpg", "original_caption": short, "vlm_caption": whole}
        for n, (short, whole) in enumerate(texts)
    ]
    parquet(raw / "pixelprose/vlm_captions_cc12m_00.parquet", captions)
    for name, kept, reason, left in (("grit", [0], "no caption", 3), ("pixelprose", [0, 1], "no vlm_caption", 2)):
        prepared(name, raw, out)
        folder = out / f"_download/{name}_urls"
        assert [row["url"] for row in listed(folder)] == [f"http://a/{n}.jpg" for n in kept]
        assert counted(folder)["skipped"] == {reason: left}


def test_shards_downloaded_with_the_official_columns_need_no_lists(raw, out):
    kept = ("url", "caption", "id", "noun_chunks", "ref_exps", "clip_similarity_vitb32", "clip_similarity_vitl14")
    rows = [{name: row[name] for name in kept} for row in GRIT_ROWS if row["url"]]
    download(raw / "grit/shards", rows)
    prepared("grit", raw, out)
    assert made(out / "grit") == [*GRIT_RECORDS, GRIT_RECORDS[2]], "the last row repeats the third one"
    assert counted(out / "grit")["skipped"]["held out by Flickr30K (Karpathy) test"] == 1


def test_shards_downloaded_without_the_columns_take_them_from_the_lists_by_url(raw, out):
    parquet(raw / "grit/coyo_0_snappy.parquet", GRIT_ROWS)
    rows = [{"url": row["url"], "caption": row["caption"]} for row in GRIT_ROWS[:2]]
    download(raw / "grit/shards", [*rows, {"url": "http://a/unknown.jpg", "caption": "a dog"}])
    reported = prepared("grit", raw, out)
    assert OneLine("grit", "lists", "URLs") in reported.splitlines()
    assert made(out / "grit") == GRIT_RECORDS[:2]
    assert counted(out / "grit")["skipped"]["without annotations"] == 1
    assert not list((out / "grit").glob("rows-*"))


def test_cropped_or_padded_images_are_rejected(raw, out):
    rows = [{name: row[name] for name in ("url", "caption", "noun_chunks", "ref_exps")} for row in GRIT_ROWS[:2]]
    rows += [{**rows[0], "url": f"http://b/{n}.jpg"} for n in range(2)]
    square = {row["url"]: (48, 48) for row in rows}
    download(raw / "grit", rows, square)
    assert one_line("grit", raw, out) == OneLine("4 of 4", "48 x 48", "128 x 96", "--resize_mode keep_ratio")
    download(raw / "grit", rows, dict(list(square.items())[:1]))
    prepared("grit", raw, out)
    assert counted(out / "grit")["skipped"]["image of another size"] == 1
    assert len(made(out / "grit")) == 3


def test_a_damaged_shard_does_not_stop_the_others(raw, out):
    rows = [{name: row[name] for name in ("url", "caption", "noun_chunks", "ref_exps")} for row in GRIT_ROWS[:1]]
    download(raw / "grit", rows)
    (raw / "grit/00001.tar").write_bytes(b"no tar" * 200)
    write(raw / "grit/00001_stats.json", {"status_dict": {"success": 3}})
    prepared("grit", raw, out)
    assert counted(out / "grit")["skipped"] == {"duplicate box": 1, "damaged file": 1}
    assert [path.name for path in (out / "grit").glob("*.tar")] == ["00000.tar"]


def test_a_list_without_annotation_columns_is_reported(raw, out):
    parquet(raw / "grit/a.parquet", [{"url": "http://a/0.jpg", "caption": "a"}])
    assert one_line("grit", raw, out) == OneLine("a.parquet", "noun_chunks, ref_exps", "url, caption")


def vertex(name: Any, label: Any, box: Any, descs: list[Any], called: list[str], targets: list[str]) -> dict[str, Any]:
    sides = dict(zip(("left", "top", "right", "bottom", "confidence"), [*box, 0.5], strict=True)) if box else box
    edges = [{"source": "", "text": text, "target": name} for text in called]
    out = [{"source": name, "text": target, "target": target} for target in targets]
    message = [{"text": text, "label": kind} for kind, text in descs]
    return {"vertex_id": name, "bbox": sides, "label": label, "descs": message, "in_edges": edges, "out_edges": out}


def graph(url: Any, vertices: Any, caption: Any = "Winter Scene!") -> dict[str, Any]:
    return {"img_url": url, "original_caption": caption, "vertices": vertices, "short_caption": "…"}


def test_gbc_graphs_become_captions_and_elements(raw, out):
    """Pitfalls: swapped, absolute and missing boxes; null texts; unknown labels; bags of words; invalid JSON; a repeated line."""
    scene = [("detail", "Two trees.  They are &quot;bare&quot;."), ("short", "trees in snow"), ("bagofwords", "trees")]
    brown = [("detail", "A horse walks."), ("short", "a brown horse")]
    first = [
        vertex("", "image", [0, 0, 1, 1], scene, [], ["horse", "trees"]),
        vertex(
            "horse",
            "entity",
            [0.25, 0.5, 0.75, 1],
            brown,
            ["horse"],
            [],
        ),
        vertex("trees_0", "entity", [0, 0, 0.25, 0.5], [("detail", "A bare tree.")], ["tree 1"], []),
        vertex("trees_1", "entity", [0.5, 0, 0.75, 0.5], [("detail", "A tree with snow.")], ["tree 2"], []),
        vertex(
            "trees",
            "composition",
            [0, 0, 0.75, 0.5],
            [("hardcode", "tree 1 is left")],
            ["trees"],
            ["trees_0", "trees_1"],
        ),
        vertex(
            "[horse|snow]", "relation", [0, 0, 1, 1], [("relation", "The horse is in the snow.")], ["horse"], ["horse"]
        ),
        vertex("swapped", "entity", [0.75, 0, 0.25, 0.5], [], ["a swap"], []),
        vertex("pixels", "entity", [10, 10, 60, 40], [], ["a hat"], []),
        vertex("no box", "entity", None, [], ["a bat"], []),
        vertex("silent", "entity", [0, 0, 0.25, 0.5], [], [], []),
        vertex("odd", "cluster", [0, 0, 0.25, 0.5], [], ["odd"], []),
        {
            **vertex("half", "entity", [0, 0.5, 0.25, 1], [], ["a half"], []),
            "descs": [{"text": None}],
            "out_edges": None,
        },
        {
            **vertex("numbers", "entity", [0, 0.5, 0.25, 1], [], ["numbers"], []),
            "descs": 5,
            "in_edges": 5,
            "out_edges": 5,
        },
        "no vertex",
    ]
    rows = [graph("http://a/0.jpg", first), graph("http://a/1.jpg", None, None), graph("http://a/2.jpg", [])]
    lines = [json.dumps(row) for row in (*rows, rows[0], graph(FLICKR, first))]
    write(raw / "GBC10M/train_0.jsonl", "\n".join([*lines, "{broken", ""]))
    reported = prepared("gbc", raw, out)
    assert "--input_format parquet" in reported
    listed_rows = listed(out / "_download/gbc_urls")
    assert [row["url"] for row in listed_rows] == [f"http://a/{n}.jpg" for n in range(3)]
    skipped = {"bad json": 1, "duplicate row": 1, "held out by Flickr30K (Karpathy) test": 1}
    assert counted(out / "_download/gbc_urls")["skipped"] == skipped
    download(out / "_download/gbc_shards", listed_rows)
    prepared("gbc", raw, out)
    [record] = made(out / "gbc")
    assert record == {
        "caption": ["winter scene", "trees in snow"],
        "long_caption": 'Two trees. They are "bare".',
        "elems": [
            {
                "caption": ["horse", "a brown horse"],
                "bb": [16, 24, 32, 24],
                "grain": "object",
                "long_caption": "A horse walks.",
            },
            {"caption": "tree", "bb": [[0, 0, 16, 24], [32, 0, 16, 24]], "grain": "object"},
            {"caption": "trees", "bb": [[0, 0, 16, 24], [32, 0, 16, 24]], "grain": "object"},
            {"caption": "the horse is in the snow", "bb": [0, 0, 64, 48], "grain": "region"},
            {"caption": "a half", "bb": [0, 24, 16, 24], "grain": "object"},
        ],
        "url": "http://a/0.jpg",
    }
    assert counted(out / "gbc") == {
        "read": {"images": 3, "vertices": 14},
        "written": {"images": 1, "records": 1, "boxes": 7},
        "fixed": {},
        "skipped": {
            "degenerate box": 1,
            "box outside image": 1,
            "wrong type": 4,
            "vertex without a text": 2,
            "unknown label": 1,
            "long caption of one of several boxes": 1,
            "image without boxes": 1,
        },
    }


def blip3_row(number: int, grounded: Any, caption: str | None = "A dog.\nIt sits.") -> dict[str, Any]:
    captions = (
        grounded if grounded is None else json.dumps([["The dog (in the middle) sits.", True, 2], [grounded, True, 0]])
    )
    return {"url": f"http://a/{number}.jpg", "cogvlm_caption": caption, "captions": captions}


def test_blip3_grounding_boxes_are_read_from_its_captions(raw, out):
    rows = [
        blip3_row(
            0,
            "The image shows a dog (<bbox>0.25, 0.5, 0.75, 1.0</bbox>) on a Red Mat <bbox>0.0, 0.75, 1.0, 1.0</bbox>, and three "
            "birds (<bbox>0.0,0.0,0.25,0.5</bbox>, <bbox>0.5,0.0,0.75,0.5</bbox>).",
        ),
        blip3_row(1, "A caption whose boxes are in the corner of the image"),
        blip3_row(2, "a cat (<bbox>10, 20, 300, 400</bbox>)"),
        blip3_row(
            3, "a cat (<bbox>0.1, 0.2</bbox>) and a hat (<bbox>0.5, 0.5, 0.4, 0.9</bbox>) of (<bbox>0, 0, 1, 1</bbox>)"
        ),
        blip3_row(4, None),
        blip3_row(5, "some hats (<bbox>0, 0, 0.5, 1</bbox>)", None),
    ]
    parquet(raw / "blip3_grounding_50m/combined_part_00.parquet", rows)
    prepared("blip3_grounding", raw, out)
    download(out / "_download/blip3_grounding_shards", listed(out / "_download/blip3_grounding_urls"))
    prepared("blip3_grounding", raw, out)
    assert made(out / "blip3_grounding") == [
        {
            "long_caption": "A dog. It sits.",
            "elems": [
                {"caption": "a dog", "bb": [16, 24, 32, 24], "grain": "object"},
                {"caption": "a red mat", "bb": [0, 36, 64, 12], "grain": "object"},
                {"caption": "three birds", "bb": [[0, 0, 16, 24], [32, 0, 16, 24]], "grain": "object"},
            ],
            "url": "http://a/0.jpg",
        },
        {"elems": [{"caption": "some hats", "bb": [0, 0, 32, 48], "grain": "object"}], "url": "http://a/5.jpg"},
    ]
    assert counted(out / "_download/blip3_grounding_urls")["skipped"] == {"no captions": 1}
    assert counted(out / "blip3_grounding")["skipped"] == {
        "no caption with boxes": 1,
        "box outside image": 1,
        "wrong type": 1,
        "degenerate box": 1,
        "empty text": 1,
        "image without boxes": 2,
    }


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("The man is wearing a red hat ", "a red hat"),
        ("a man in hats of wool", "wool"),
        ("It is large. Two white dogs", "Two white dogs"),
        ("near", ""),
        ("", ""),
    ],
)
def test_the_phrase_of_a_box_starts_at_an_article_or_after_a_preposition_or_verb(text, phrase):
    assert phrase_before(text) == phrase


def test_pixelprose_has_long_captions_and_accepts_crops(raw, out):
    known = {"uid": "0", "key": "0", "status": "success", "vlm_model": "gemini-pro-vision", "aesthetic_score": 5.0}
    rows = [
        {**known, "url": "http://a/0.jpg", "original_caption": "A Dog!", "vlm_caption": " This is a dog.\nIt sits."},
        {**known, "url": "http://a/1.jpg", "original_caption": None, "vlm_caption": "A cat &amp; a hat."},
        {**known, "url": "http://a/2.jpg", "original_caption": "a", "vlm_caption": None},
        {**known, "url": "http://a/3.jpg", "original_caption": "a", "vlm_caption": " … "},
        {**known, "url": "not an address", "original_caption": "a", "vlm_caption": "b"},
    ]
    parquet(raw / "pixelprose/vlm_captions_cc12m_00.parquet", rows)
    prepared("pixelprose", raw, out)
    listed_rows = listed(out / "_download/pixelprose_urls")
    download(out / "_download/pixelprose_shards", listed_rows, {row["url"]: (48, 48) for row in listed_rows})
    prepared("pixelprose", raw, out)
    shards = Shards([str(out / "pixelprose")])
    assert [dict(shards.read(number).values) for number in range(len(shards))] == [
        {"caption": "a dog", "long_caption": "This is a dog. It sits.", "url": "http://a/0.jpg"},
        {"long_caption": "A cat & a hat.", "url": "http://a/1.jpg"},
    ]
    assert counted(out / "_download/pixelprose_urls")["skipped"] == {"no vlm_caption": 1, "no address": 1}
    assert counted(out / "pixelprose")["skipped"] == {"empty text": 1}


def test_datacomp_is_filtered_by_its_own_columns_and_needs_no_safety_tags(raw, out):
    known = {"uid": "0", "face_bboxes": [[0.5, 0.4, 0.6, 0.5]], "sha256": "0", "clip_b32_similarity_score": 0.1}
    rows = [
        {**known, "url": f"http://a/{n}.jpg", "text": text, "original_width": width, "original_height": 300}
        | {"clip_l14_similarity_score": similarity}
        for n, (text, width, similarity) in enumerate(
            [("A Dog", 300, 0.3), ("small", 90, 0.3), ("unlike", 300, 0.2), (None, 300, 0.3), ("no size", None, 0.3)]
        )
    ]
    parquet(raw / "datacomp/a.parquet", rows)
    prepared("datacomp", raw, out, filters=Filters(min_side=200, min_similarity=0.25))
    assert [row["url"] for row in listed(out / "_download/datacomp_urls")] == ["http://a/0.jpg"]
    assert counted(out / "_download/datacomp_urls")["skipped"] == {
        "side below 200": 2,
        "similarity below 0.25": 1,
        "empty text": 1,
    }
    assert one_line("datacomp", raw, out.with_name("b"), filters=Filters(safety="UNSURE")) == OneLine(
        "a.parquet", "safety"
    )


def test_an_interrupted_run_resumes_with_the_remaining_shards(raw, out, monkeypatch):
    rows = [{name: row[name] for name in ("url", "caption", "noun_chunks", "ref_exps")} for row in GRIT_ROWS[:1]]
    for name in ("a", "b", "c"):
        download(raw / "grit" / name, rows)
        for path in (raw / "grit" / name).iterdir():
            path.rename(path.with_name(path.name.replace("00000", name)))
    work, done = url_sets.take_shard, []

    def cut(job):
        done.append(job.source.name)
        if len(done) == 2:
            raise RuntimeError
        return work(job)

    monkeypatch.setattr(url_sets, "take_shard", cut)
    with pytest.raises(RuntimeError):
        prepared("grit", raw, out)
    prepared("grit", raw, out)
    assert done == ["a.tar", "b.tar", "b.tar", "c.tar"]
    assert counted(out / "grit")["written"] == {"images": 3, "records": 3, "objects": 9, "regions": 3}
