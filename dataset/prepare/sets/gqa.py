"""GQA's scene graphs: objects with attributes as region records. The images are Visual Genome's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batches.base import BrokenRecord
from dataset.image_ids import id_number
from dataset.prepare.cleaning import annotated_size
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source, files_named
from dataset.prepare.held_out import VG_SPLITS, ids_in_image_data
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.options import Options
from dataset.prepare.region_records import region_record
from dataset.prepare.sets.visual_genome import BATCH, IMAGES, attribute_key, described_box, read_image_data, vg_names
from utils.errors import UserError

GRAPHS = 74_942
"""Number of scene graphs in ``train_sceneGraphs.json``, for the progress bar."""


def _read(files: Files, scratch: Path, options: Options) -> Source:
    return Source(_images(files), _record, GRAPHS)


def _images(files: Files) -> Iterator[AnnotatedMedia | BrokenRecord]:
    graphs, listed = files["graphs"], files["images"]
    ids = {values["image_id"]: ids_in_image_data(values) for _, values in read_image_data(listed)}
    with official_pieces(graphs, "GQA") as pieces:
        for piece in pieces:
            location, number = piece.location, id_number(piece.key)
            if not isinstance(piece.value, dict) or not isinstance(piece.value.get("objects"), dict):
                raise UserError(f"{location} has no 'objects'", remedy="is it GQA's file of scene graphs?")
            if number is None or number not in ids:
                yield BrokenRecord(location, "unknown image", f"it is not in {listed}")
            else:
                yield AnnotatedMedia(vg_names(number, ids[number]), location, (number, piece.text))


def _record(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    number, text = image.values
    graph = json.loads(text)
    try:
        size = annotated_size(graph)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        counts.skip("missing key", image.location, f"no width and height ({error})")
        return
    elements = []
    for key, value in graph["objects"].items():
        counts.read["objects"] += 1
        location = f"{image.location}.objects.{key}"
        if not isinstance(value, dict):
            counts.skip("wrong type", location, f"{str(value)[:40]!r} is not an object")
            continue
        element = described_box(size, location, value, value.get("name"), counts)
        if element is not None:
            attributes = attribute_key(value.get("attributes"), location, counts)
            elements.append({**element, **attributes, "grain": "object"})
    yield from region_record(image, size, elements, {"objects": len(elements)}, counts, vg_id=number)


GQA = DataSet(
    name="gqa",
    title="GQA",
    home="cs.stanford.edu/people/dorarad/gqa",
    licence="CC BY 4.0",
    files={
        "train_sceneGraphs.json": "objects with attributes (sceneGraphs.zip)",
        "val_sceneGraphs.json": "the validation images, which are excluded (sceneGraphs.zip)",
        "image_data.json": "of Visual Genome: the ids of the images in COCO and on Flickr",
        "images/": "Visual Genome's images (images.zip)",
    },
    sizes={"images": GRAPHS},
    makes=(
        Records(
            "gqa",
            "an image and its objects with attributes",
            files=files_named(graphs="train_sceneGraphs.json", images="image_data.json"),
            read=_read,
            image_files=IMAGES,
            batch=BATCH,
        ),
    ),
    required=VG_SPLITS,
    group="4m",
)
