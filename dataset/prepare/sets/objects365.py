"""Objects365: objects as region records; of version 2 (2020), or of version 1 (2019), which the paper's number of images fits."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
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
from dataset.prepare.sets.base import DataSet, Opened, Product, Request
from dataset.prepare.stored_size import fit_to_stored
from utils.errors import UserError

FILES = ("zhiyuan_objv2_train.json", "objects365_train.json")
"""Of version 2 and of version 1."""

IMAGES = SetFiles("objects365", re.compile(r"(?:objects365_v[12]_\d{8}|obj365_(?:train|val)_\d{12})\.jpg"))
BATCH = 200
"""Images of a job."""


class _Image(NamedTuple):
    """An image on its way to a worker: the path of its record, its place and its text, and place and text of each object."""

    path: str
    place: str
    text: str
    objects: list[tuple[str, str]]


def open_objects(request: Request) -> Opened:
    """Region records, one for each image."""
    there = [file for name in FILES if (file := request.raw.find(name)) is not None]
    file = there[0] if there else request.raw.need(FILES[0])[0]
    finder = ImageFinder(request.raw, request.folder, IMAGES, request.held_out, request.excluded, request.verified)

    def work(scratch: Path) -> Work:
        folder = tempfile.TemporaryDirectory(prefix="pieces-", dir=scratch)
        store = Path(folder.name, "store")
        [(names, total, counts)] = read_files(partial(_fill, store), {"objects": file}, request.workers)
        convert = partial(fit_to_stored, request.folder, partial(_records, names))
        return Work(convert, _jobs(folder, store, finder, counts), total)

    return Opened([file], work, finder)


def _fill(path: Path, _: str, file: RawFile) -> tuple[dict[int, str], int, Counts]:
    """Store images and objects; returns the names of the categories, and the number of images. Runs in a worker process."""
    counts, names = Counts(), dict[int, str]()
    path.unlink(missing_ok=True)  # what a process left that was killed, for which this one is in
    with BoxStore(path, ("objects",)) as store:
        store.add_images(_images(file))
        store.add_boxes("objects", _objects(file, names, counts))
        if not len(store) or not names:
            raise UserError(f"{file} has no list {'categories' if len(store) else 'images'}; is it Objects365's file?")
        number, first = store.of_no_image("objects")
        counts.left_out["unknown image"] += number - 1 if first is not None else 0
        if first is not None:
            counts.leave_out("unknown image", first.place, f"image_id is {first.key!r}")
        return names, len(store), counts


def _images(file: RawFile) -> Iterator[Row]:
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            if piece.section != "images":
                continue
            place, value = f"{file}: images[{piece.key}]", piece.value
            try:
                shown = [str(value["file_name"]), int(value["width"]), int(value["height"])]
                yield Row(str(int(value["id"])), place, json.dumps(shown))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(f"{place} is not as in Objects365's file ({type(error).__name__}: {error})") from None


def _objects(file: RawFile, names: dict[int, str], counts: Counts) -> Iterator[Row]:
    """The objects; the categories, which may stand before or after them, go into ``names``."""
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            value, place = piece.value, f"{file}: {piece.section}[{piece.key}]"
            if piece.section == "categories":
                _add_name(names, value, place)
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


def _add_name(names: dict[int, str], value: Any, place: str) -> None:
    try:
        names[int(value["id"])] = str(value["name"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{place} is not as in Objects365's file ({type(error).__name__}: {error})") from None


def image_names(file_name: str) -> ImageNames:
    """How an image may be called. Annotations name a folder of the version and one of the patch (``images/v1/patch8/…``); the
    archives unpack to the patch alone, or to nothing."""
    path = PurePosixPath(file_name)
    patch = path.parent.name
    usual = f"{patch}/{path.name}" if re.fullmatch(r"patch\d+", patch) else path.name
    return ImageNames(frozenset({f"objects365:{path.stem}"}), [path.name], usual)


def _jobs(folder: tempfile.TemporaryDirectory[str], path: Path, finder: ImageFinder, counts: Counts) -> Iterator[Job]:
    def item_of(stored: StoredImage, counts: Counts) -> _Image | None:
        _, place, text = stored.image
        found = finder.find(image_names(json.loads(text)[0]), counts, place)
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


OBJECTS365 = DataSet(
    title="Objects365",
    home="www.objects365.org",
    licence="CC BY 4.0",
    files={
        FILES[0]: "objects, version 2",
        FILES[1]: "objects, version 1, if the other is not there",
        "patch0/, patch1/, …": "images, in any folders",
    },
    sizes={"images": 1_742_289},
    products=(Product("objects365", "an image and its objects", open_objects),),
    required=(),
)
