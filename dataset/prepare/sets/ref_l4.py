"""Ref-L4 (Chen et al., 2024): long referring expressions on images of COCO and Objects365, and its review of RefCOCO's.

The README of huggingface.co/datasets/JierunChen/Ref-L4 describes the files. ``ref-l4-val.parquet`` and ``ref-l4-test.parquet``
have a row for each expression: ``caption``, ``bbox`` (x, y, width, height in pixels), ``width``, ``height``, ``file_name``. The
files ``refcoco_val_reviewed.json`` and so on have COCO's format, with an image for each expression (``caption``,
``original_id``), and ``caption_quality`` 0 for the annotations that the review found wrong. All files are for evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataset.formats.refcoco import IMAGE_NAME
from dataset.image_ids import id_number, needed_id
from dataset.prepare.cleaning import clamped_box
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import DataSet, Files, Splits
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.options import Options
from dataset.prepare.parquet_rows import parquet_rows
from dataset.prepare.raw_folder import RawFile, RawFolder
from utils.errors import UserError

PARQUET = {"val": "ref-l4-val.parquet", "test": "ref-l4-test.parquet"}
REVIEWED = {
    f"{family}_{split}": f"{family}_{split}_reviewed.json"
    for family, splits in (
        ("refcoco", ("val", "testA", "testB")),
        ("refcoco+", ("val", "testA", "testB")),
        ("refcocog", ("val", "test")),
    )
    for split in splits
}
COLUMNS = ("id", "caption", "bbox", "width", "height", "file_name")


def _files(raw: RawFolder) -> Files:
    names = PARQUET | REVIEWED
    files = {split: file for split, name in names.items() if (file := raw.find(name)) is not None}
    if not files:
        raise UserError(
            f"there is neither {PARQUET['val']} nor {REVIEWED['refcoco_val']}", where=", ".join(map(str, raw.roots))
        )
    return files


def _read(files: Files, folder: Path, options: Options, counts: Counts) -> Mapping[str, Iterator[Mapping[str, Any]]]:
    return {
        split: _expressions(file, counts) if split in PARQUET else _reviewed(file, counts)
        for split, file in files.items()
    }


def _expressions(file: RawFile, counts: Counts) -> Iterator[Mapping[str, Any]]:
    for location, row in parquet_rows(file.path, COLUMNS):
        counts.read["expressions"] += 1
        yield from _record(row, row["file_name"], row["id"], counts, location)


def _reviewed(file: RawFile, counts: Counts) -> Iterator[Mapping[str, Any]]:
    images: dict[int | None, Mapping[str, Any]] = {}
    annotations: list[tuple[str, Mapping[str, Any]]] = []
    names = ("image_id", "bbox", "caption_quality", "original_id")
    with official_pieces(file, "Ref-L4") as pieces:
        for piece in pieces:
            value = piece.value
            if piece.section == "images":
                kept = {key: value[key] for key in ("caption", "width", "height")}
                images[needed_id(value["id"])] = {**kept, "image": IMAGE_NAME.format(needed_id(value["original_id"]))}
            elif piece.section in ("annotations", "annotation"):
                annotations.append((piece.location, {name: value.get(name) for name in names}))
    for location, annotation in annotations:
        counts.read["expressions"] += 1
        image = images.get(id_number(annotation["image_id"]))
        if annotation["caption_quality"] == 0:
            counts.skip("found wrong by the review", location)
        elif image is None:
            counts.skip("unknown image", location, f"image_id is {annotation['image_id']!r:.40}")
        else:
            yield from _record({**image, **annotation}, image["image"], annotation["original_id"], counts, location)


def _record(
    row: Mapping[str, Any], name: Any, number: Any, counts: Counts, location: str
) -> Iterator[Mapping[str, Any]]:
    text = row["caption"].strip() if isinstance(row["caption"], str) else ""
    if not text:
        counts.skip("empty text", location)
        return
    if not isinstance(name, str) or not name:
        counts.skip("missing key", location, f"file_name is {name!r:.40}")
        return
    box = clamped_box(row["bbox"], row["width"], row["height"], counts, location)
    if box is not None:
        counts.written["expressions"] += 1
        yield {"image": name, "elems": [{"caption": text, "bb": box, "grain": "region"}], "id": number}


REF_L4 = DataSet(
    name="ref_l4",
    title="Ref-L4, and its review of RefCOCO, RefCOCO+, RefCOCOg",
    home="huggingface.co/datasets/JierunChen/Ref-L4",
    licence="CC BY-NC 4.0",
    files={
        f"{PARQUET['val']}, {PARQUET['test']}": "expressions",
        "refcocos_annotation_reviewed/*.json": "the reviewed annotations",
        "images.tar.gz": "images of the expressions, to be unpacked; the reviewed annotations are about COCO's train2014",
    },
    sizes={},
    makes=Splits(
        "ref_l4",
        "val.jsonl, test.jsonl, refcoco+_testA.jsonl, …: a referring expression and its box, for evaluation",
        files=_files,
        read=_read,
    ),
    read_by="configs/grounding/*.yaml, with annotations: val.jsonl and the unpacked images in place of the official files",
)
