"""Objects as region records, from one JSON file in the form of COCO's instances: the lists ``images``, ``categories`` and
``annotations``, in any order. A data set of this form is a declaration: see :mod:`dataset.prepare.sets.objects365`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dataset.image_ids import id_number
from dataset.prepare.box_store import BoxStore, Row, StoredImage
from dataset.prepare.building import Job, Work, image_jobs
from dataset.prepare.cleaning import cleaned_text, placed_box
from dataset.prepare.counts import Counts
from dataset.prepare.image_finder import ImageFinder, ImageNames, SetFiles
from dataset.prepare.json_pieces import json_pieces
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.reading import read_files
from dataset.prepare.sets.base import Opened, Request
from dataset.prepare.stored_size import fit_to_stored
from utils.errors import UserError

BATCH = 200
"""Images of a job."""


class _Image(NamedTuple):
    """An image on its way to a worker: the path in its record, its location and text, and location and text of each object."""

    path: str
    place: str
    text: str
    objects: list[tuple[str, str]]


def open_instances(
    title: str,
    files: Sequence[str],
    images: SetFiles,
    names_of: Callable[[str], ImageNames],
    request: Request,
) -> Opened:
    """Opens the conversion of a set into region records, one for each image.

    Args:
        title: name of the set, for messages.
        files: names of the annotation file, of which the first that is there is read.
        images: the image files of the set.
        names_of: the ids and names of an image, given its ``file_name`` in the annotations.
        request: what is asked for.
    """
    there = [file for name in files if (file := request.raw.find(name)) is not None]
    file = there[0] if there else request.raw.need(files[0])[0]
    finder = ImageFinder(request.raw, request.folder, images, request.held_out, request.excluded, request.verified)

    def work(scratch: Path) -> Work:
        folder = tempfile.TemporaryDirectory(prefix="pieces-", dir=scratch)
        store = Path(folder.name, "store")
        [(names, total, counts)] = read_files(partial(_fill, title, store), {"objects": file}, request.workers)
        convert = partial(fit_to_stored, request.folder, partial(_records, names))
        return Work(convert, _jobs(folder, store, finder, names_of, counts), total)

    return Opened([file], work, finder)


def _fill(title: str, path: Path, _: str, file: RawFile) -> tuple[dict[int, str], int, Counts]:
    """Store images and objects; returns the names of the categories, and the number of images. Runs in a worker process."""
    counts, names = Counts(), dict[int, str]()
    path.unlink(missing_ok=True)  # what a process left that was killed, for which this one is in
    with BoxStore(path, ("objects",)) as store:
        store.add_images(_images(title, file))
        store.add_boxes("objects", _objects(title, file, names, counts))
        if not len(store) or not names:
            missing = "categories" if len(store) else "images"
            raise UserError(f"{file} has no list {missing}; is it {title}'s file?")
        number, first = store.of_no_image("objects")
        if first is not None:
            counts.left_out["unknown image"] += number - 1
            counts.leave_out("unknown image", first.place, f"image_id is {first.key!r}")
        return names, len(store), counts


def _images(title: str, file: RawFile) -> Iterator[Row]:
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            if piece.section != "images":
                continue
            place, value = f"{file}: images[{piece.key}]", piece.value
            try:
                shown = [str(value["file_name"]), int(value["width"]), int(value["height"])]
                yield Row(str(int(value["id"])), place, json.dumps(shown))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(f"{place} is not as in {title}'s file ({type(error).__name__}: {error})") from None


def _objects(title: str, file: RawFile, names: dict[int, str], counts: Counts) -> Iterator[Row]:
    """The objects; the categories, which may stand before or after them, go into ``names``."""
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            value, place = piece.value, f"{file}: {piece.section}[{piece.key}]"
            if piece.section == "categories":
                _add_name(title, names, value, place)
            if piece.section != "annotations":
                continue
            counts.read["objects"] += 1
            if not isinstance(value, dict):
                counts.leave_out("wrong type", place, f"{piece.text[:40]} is no object")
            elif (image := id_number(value.get("image_id"))) is None:
                counts.leave_out("missing key", place, f"image_id is {value.get('image_id')!r}")
            elif value.get("iscrowd"):
                counts.leave_out("crowd", place)
            else:
                yield Row(str(image), place, json.dumps([id_number(value.get("category_id")), value.get("bbox")]))


def _add_name(title: str, names: dict[int, str], value: Any, place: str) -> None:
    try:
        names[int(value["id"])] = str(value["name"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{place} is not as in {title}'s file ({type(error).__name__}: {error})") from None


def _jobs(
    folder: tempfile.TemporaryDirectory[str],
    path: Path,
    finder: ImageFinder,
    names_of: Callable[[str], ImageNames],
    counts: Counts,
) -> Iterator[Job]:
    def item_of(stored: StoredImage, counts: Counts) -> _Image | None:
        _, place, text = stored.image
        found = finder.find(names_of(json.loads(text)[0]), counts, place)
        return None if found is None else _Image(found, place, text, stored.boxes["objects"])

    with folder, BoxStore(path, ("objects",)) as store:
        yield from image_jobs(store.images(), item_of, BATCH, counts)


def _records(names: Mapping[int, str], items: list[_Image], counts: Counts) -> Iterator[dict[str, Any]]:
    for image in items:
        _, width, height = json.loads(image.text)
        elements = []
        for place, text in image.objects:
            category, box = json.loads(text)
            if category not in names:
                counts.leave_out("unknown category", place, repr(category)[:40])
                continue
            placed = placed_box(box, width, height, counts, place)
            name = cleaned_text(names[category], counts, place) if placed is not None else None
            if placed is not None and name is not None:
                elements.append({"caption": name, "bb": placed, "grain": "object"})
        if not elements:
            counts.leave_out("image without boxes", image.place)
            continue
        counts.made["images"] += 1
        counts.made["objects"] += len(elements)
        yield {"image": image.path, "size": (width, height), "elems": elements}
