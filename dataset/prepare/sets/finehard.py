"""FineHARD (Xie et al., 2025, "FG-CLIP"): 12 million images of GRIT with long captions, described boxes, and hard negatives.

``data/data.md`` of github.com/360CVGroup/FG-CLIP describes the files, and ``fgclip/train/train_fgclip.py`` reads the annotations:
arrays of objects with ``f_path``, ``caption`` (long), ``short_caption`` and ``bbox_info``. A described box has ``bbox`` (x1, y1,
x2, y2 as fractions of the sides of the image, and a confidence), ``short_expr``, ``long_expr`` and, if ``flag_short_neg`` is 1,
``short_expr_negs``: an object whose values are wrong for the box, though close to ``short_expr``.

The images are downloaded and renamed as described in ``data/data.md``, since ``f_path`` contains the authors' file names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from batches.base import BrokenRecord
from dataset.prepare.cleaning import cleaned_text, cleaned_texts, long_text, relative_box
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source
from dataset.prepare.finders import ANY_IMAGES, names_of_path
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.options import Options
from dataset.prepare.phrases import overlap
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.region_records import region_record, stored_size
from utils.errors import UserError

FOLDER = "coyo_image_"
"""Prefix of the name of the folder from which on an image path is the same for all users."""

_PATH = b'"f_path"'


def _files(raw: RawFolder) -> Files:
    files = {
        path.as_posix(): RawFile(path)
        for name in sorted(raw.files)
        if name.endswith(".json")
        for path in raw.files[name]
        if _is_annotations(RawFile(path))
    }
    if not files:
        raise UserError("no file *.json is an array of objects with f_path", where=", ".join(map(str, raw.roots)))
    return files


def _is_annotations(file: RawFile) -> bool:
    try:
        with official_pieces(file, "FineHARD") as pieces:
            piece = next(pieces, None)
    except UserError:
        return False
    return piece is not None and not piece.section and isinstance(piece.value, dict) and "f_path" in piece.value


def _read(files: Files, scratch: Path, options: Options) -> Source:
    return Source(_annotated(files), _record, sum(map(_count, files.values())))


def _count(file: RawFile) -> int:
    with file.open() as stream:
        return sum(block.count(_PATH) for block in iter(partial(stream.read, 1 << 20), b""))


def _annotated(files: Files) -> Iterator[AnnotatedMedia | BrokenRecord]:
    seen: set[int] = set()
    for file in files.values():
        with official_pieces(file, "FineHARD") as pieces:
            for piece in pieces:
                location = piece.location
                path = piece.value.get("f_path") if isinstance(piece.value, dict) else None
                if not isinstance(path, str) or not path.strip("./"):
                    yield BrokenRecord(location, "missing key", f"f_path is {path!r:.80}")
                    continue
                folder = path.find(FOLDER)
                names = names_of_path(path[max(folder, 0) :])
                if (digest := hash(names.usual)) in seen:
                    yield BrokenRecord(location, "duplicate row", f"{names.usual} was described before")
                    continue
                seen.add(digest)
                yield AnnotatedMedia(names, location, piece.text)


def _record(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    row = json.loads(image.values)
    size = stored_size(image.file)
    if size is None:
        counts.skip("unreadable image", image.location, "its size is needed, since the boxes are relative")
        return
    described = row.get("bbox_info")
    if not isinstance(described, list):
        counts.skip("wrong type", image.location, f"bbox_info is {str(described)[:40]}")
        return
    counts.read["boxes"] += len(described)
    elements: list[dict[str, Any]] = []
    for index, value in enumerate(described):
        element = _element(value, size, counts, f"{image.location}: bbox_info[{index}]")
        if element is None:
            continue
        if any(each["caption"] == element["caption"] and overlap(each["bb"], element["bb"]) > 0.9 for each in elements):
            counts.skip("duplicate box", image.location, f"bbox_info[{index}]")
        else:
            elements.append(element)
    text, longer = row.get("short_caption"), row.get("caption")
    short = cleaned_text(text, counts, f"{image.location}: short_caption") if text is not None else None
    long_caption = long_text(longer, counts, f"{image.location}: caption") if longer is not None else None
    made = {"boxes": len(elements), "hard negatives": sum(len(each.get("hard_negatives", ())) for each in elements)}
    keys = {"long_caption": long_caption} if long_caption is not None else {}
    yield from region_record(image, None, elements, made, counts, [short] if short is not None else [], **keys)


def _element(value: Any, size: tuple[int, int], counts: Counts, location: str) -> dict[str, Any] | None:
    if not isinstance(value, Mapping):
        counts.skip("wrong type", location, f"{str(value)[:40]} is not an object")
        return None
    corners = value.get("bbox")
    box = relative_box(corners[:4] if isinstance(corners, list) else corners, *size, counts, location)
    text = cleaned_text(value.get("short_expr"), counts, f"{location}.short_expr") if box is not None else None
    if text is None:
        return None
    element: dict[str, Any] = {"caption": text, "bb": box, "grain": "region"}
    if value.get("long_expr") is not None:
        long_caption = long_text(value["long_expr"], counts, f"{location}.long_expr")
        element |= {"long_caption": long_caption} if long_caption is not None else {}
    if value.get("flag_short_neg") == 1:
        negatives = value.get("short_expr_negs")
        listed = list(negatives.values()) if isinstance(negatives, dict) else negatives
        texts = cleaned_texts(listed, counts, f"{location}.short_expr_negs")
        if text in texts:
            counts.skip("hard negative equal to the text", location, repr(text[:80]))
            texts.remove(text)
        element |= {"hard_negatives": texts} if texts else {}
    return element


FINEHARD = DataSet(
    name="finehard",
    title="FineHARD",
    home="huggingface.co/datasets/qihoo360/FineHARD",
    licence="Apache 2.0, according to data/data.md of FG-CLIP; images under their own terms",
    files={
        "jsonfiles/*.json": "captions, described boxes, hard negatives",
        "coyo_image_0/00000/, …": "images in any folder, renamed as github.com/360CVGroup/FG-CLIP says in data/data.md",
    },
    sizes={},
    makes=(
        Records(
            "finehard",
            "an image, a short and a long caption, and described boxes with hard negatives",
            files=_files,
            read=_read,
            image_files=ANY_IMAGES,
        ),
    ),
)
