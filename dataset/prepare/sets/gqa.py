"""GQA's scene graphs: objects with attributes as region records. The images are Visual Genome's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from dataset.image_ids import id_number
from dataset.prepare.building import Job, Work, image_jobs
from dataset.prepare.counts import Counts
from dataset.prepare.held_out import OF_COCO, ids_in_image_data
from dataset.prepare.image_finder import ImageFinder
from dataset.prepare.json_pieces import Piece, json_pieces
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.sets.base import DataSet, Opened, Product, Request
from dataset.prepare.sets.visual_genome import BATCH, IMAGES, attribute_key, described_box, read_image_data, vg_names
from dataset.prepare.stored_size import fit_to_stored
from utils.errors import UserError

GRAPHS = 74_942
"""Scene graphs of ``train_sceneGraphs.json``, for the progress bar."""


@dataclass(frozen=True)
class _Graph:
    """A scene graph on its way to a worker: the path that its record has, its Visual Genome id, its place and its text."""

    path: str
    number: int
    place: str
    text: str


def open_graphs(request: Request) -> Opened:
    """Region records, one for each image of the training split."""
    graphs, listed = request.raw.need("train_sceneGraphs.json", "image_data.json")
    finder = ImageFinder(request.raw, request.folder, IMAGES, request.held_out, request.excluded, request.verified)
    convert = partial(fit_to_stored, request.folder, _records)
    return Opened([graphs, listed], lambda _: Work(convert, _jobs(graphs, listed, finder), GRAPHS), finder)


def _jobs(graphs: RawFile, listed: RawFile, finder: ImageFinder) -> Iterator[Job]:
    ids = {values["image_id"]: ids_in_image_data(values) for _, values in read_image_data(listed)}

    def item_of(piece: Piece, counts: Counts) -> _Graph | None:
        place = f"{graphs}: {piece.key}"
        if not isinstance(piece.value, dict) or not isinstance(piece.value.get("objects"), dict):
            raise UserError(f"{place} has no 'objects'; is it GQA's file of scene graphs?")
        if id_number(piece.key) not in ids:
            counts.leave_out("unknown image", place, f"it is not in {listed}")
            return None
        number = int(piece.key)
        path = finder.find(vg_names(number, ids[number]), counts, place)
        return None if path is None else _Graph(path, number, place, piece.text)

    with graphs.open() as stream:
        yield from image_jobs(json_pieces(stream, str(graphs)), item_of, BATCH)


def _records(items: list[_Graph], counts: Counts) -> Iterator[dict[str, Any]]:
    for graph in items:
        values = json.loads(graph.text)
        try:
            width, height = int(values["width"]), int(values["height"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            counts.leave_out("missing key", graph.place, f"no width and height ({error})")
            continue
        elements = []
        for key, value in values["objects"].items():
            counts.read["objects"] += 1
            place = f"{graph.place}.objects.{key}"
            if not isinstance(value, dict):
                counts.leave_out("wrong type", place, f"{str(value)[:40]!r} is no object")
                continue
            element = described_box(width, height, place, value, value.get("name"), counts)
            if element is not None:
                elements.append({**element, **attribute_key(value.get("attributes"), place, counts), "grain": "object"})
        if not elements:
            counts.leave_out("image without boxes", graph.place)
            continue
        counts.made["images"] += 1
        counts.made["objects"] += len(elements)
        yield {"image": graph.path, "size": (width, height), "elems": elements, "vg_id": graph.number}


GQA = DataSet(
    title="GQA",
    home="cs.stanford.edu/people/dorarad/gqa",
    licence="CC BY 4.0",
    files={
        "train_sceneGraphs.json": "objects with attributes (sceneGraphs.zip)",
        "image_data.json": "of Visual Genome: the ids of the images in COCO and on Flickr",
        "images/": "Visual Genome's images (images.zip)",
    },
    sizes={"images": GRAPHS},
    products=(Product("gqa", "an image and its objects with attributes", open_graphs),),
    required=(*OF_COCO, "karpathy_flickr30k"),
)
