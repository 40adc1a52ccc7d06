"""Held-out images: downstream tasks select weights or test on them, so records for pre-training exclude them. (Section 4.1 of the
paper excludes test images.)

An image is identified by its ids in public data sets (:mod:`dataset.image_ids`). The links between ids of COCO, Visual Genome and
Flickr come from Visual Genome's ``image_data.json`` and from COCO's ``flickr_url``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from dataset.broken import BrokenRecordError, printable
from dataset.formats.karpathy import KarpathyImage
from dataset.formats.msrvtt import split_of_clip
from dataset.formats.refcoco import Reference, references
from dataset.formats.vqa2 import image_id_of, image_name
from dataset.image_ids import Ids, id_number, ids_in_path, ids_in_url, needed_id
from dataset.image_share import VQA2_SELECTION, is_in_share
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.parquet_rows import parquet_rows
from dataset.prepare.raw_folder import RawFile, RawFolder
from utils.errors import UserError
from utils.pickles import load_plain_pickle
from utils.printing import counted

_MSVD_LINE = re.compile(r"(\S+)_\d+_\d+\s+vid(\d+)")

TRAINING = ("train", "restval")
"""Downstream splits for training, whose images are not held out."""


class HeldOutSplits(NamedTuple):
    """The held-out splits of a downstream data set.

    Attributes:
        title: name of the data set.
        file: name of its official file, to name in error messages.
        locate: function that finds the official file.
        read: function that yields the ids of images, each with its split, or None if the image is not held out.
    """

    title: str
    file: str
    locate: Callable[[RawFolder], RawFile | None]
    read: Callable[[RawFile], Iterator[tuple[str, str | None]]]


@dataclass
class Links:
    """Links between ids in several data sets, which show that they belong to the same photograph.

    Attributes:
        groups: sets of ids; the ids in a set belong to the same photograph.
        files: the official files that contain the links.
        absent: names of official files that do not exist.
        sets: pairs of data sets, such as ``{"coco", "vg"}``, whose links were read.
        contradictions: descriptions of the links that contradict each other. All ids in contradictory links count as the same
            photograph, so that it is excluded if any of its ids is held out.
    """

    groups: list[Ids] = field(default_factory=list)
    files: list[RawFile] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    sets: set[frozenset[str]] = field(default_factory=set)
    contradictions: list[str] = field(default_factory=list)

    @cached_property
    def _groups_of(self) -> dict[str, list[Ids]]:
        found: dict[str, list[Ids]] = {}
        for group in self.groups:
            for each in group:
                found.setdefault(each, []).append(group)
        return found

    def all_ids(self, ids: Ids) -> Ids:
        """Returns all known ids of the photograph with these ids."""
        found, todo = set(ids), list(ids)
        while todo:
            for group in self._groups_of.get(todo.pop(), ()):
                todo += group - found
                found |= group
        return frozenset(found)


@dataclass
class HeldOut:
    """The held-out images.

    Attributes:
        split_of: maps the ids of held-out images to their splits.
        first_id: maps each id that was added by a link to the photograph's id in the official file of the split.
        sources: the official files that were read, under their names in :data:`SPLITS`.
        absent: names of splits whose official file does not exist.
        links: links between the ids of several data sets.
        roots: the folders that were searched.
    """

    split_of: dict[str, str] = field(default_factory=dict)
    first_id: dict[str, str] = field(default_factory=dict)
    sources: dict[str, RawFile] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    links: Links = field(default_factory=Links)
    roots: tuple[Path, ...] = ()

    def require(self, names: Sequence[str], because: str = "") -> None:
        """Raises :class:`UserError` if the official file of one of these splits does not exist. The message begins with
        ``because``, which says why the file is needed."""
        missing = [name for name in names if name in self.absent]
        if missing:
            files = ", ".join(f"{SPLITS[name].file} of {SPLITS[name].title}" for name in missing)
            roots = ", ".join(map(str, self.roots))
            raise UserError(
                f"{because}cannot exclude held-out images: there is no {files} below {roots}",
                remedy="pass the folder of the files with --held-out DIR, or, if you never evaluate on these splits, "
                f"{' '.join(f'--without {name}' for name in missing)}",
            )

    def require_for(self, ids: Ids, name: str) -> None:
        """Raises :class:`UserError` if an image with these ids, called ``name``, belongs to a data set whose held-out splits were
        not read. Used for annotation files that may refer to the images of any data set."""
        for data_set in {each.partition(":")[0] for each in ids}:
            self.require(REQUIRED_FOR.get(data_set, ()), f"{name} is an image that other data sets hold out: ")

    def photographs(self) -> dict[str, dict[str, Ids]]:
        """Returns, for each split, a mapping from the id of a held-out photograph in the official file to all of its ids."""
        found: dict[str, dict[str, set[str]]] = {}
        for each, split in self.split_of.items():
            found.setdefault(split, {}).setdefault(self.first_id.get(each, each), set()).add(each)
        return {split: {first: frozenset(ids) for first, ids in photos.items()} for split, photos in found.items()}

    def find(self, ids: Ids) -> str | None:
        """Returns the split in which an image with these ids is held out, or None if it is not held out."""
        return next((self.split_of[each] for each in sorted(ids) if each in self.split_of), None)

    def linked(self, ids: Ids) -> str:
        """Describes the link by which an image with these ids is held out, or returns "" if it is not held out by a link."""
        found = next((each for each in sorted(ids) if each in self.split_of), "")
        first = self.first_id.get(found)
        return f"{found} is the same photograph as {first} of {self.split_of[found]}" if first is not None else ""


def read_held_out(
    raw: RawFolder,
    required: Sequence[str],
    without: Sequence[str],
    all_splits: Mapping[str, HeldOutSplits] | None = None,
) -> HeldOut:
    """Reads the held-out images of every downstream data set whose official file exists.

    Args:
        raw: the folders that are searched for official files.
        required: names in :data:`SPLITS` whose file must exist.
        without: names of splits to ignore, so that their images may be used for pre-training.
        all_splits: the splits to read, such as :data:`VIDEO_SPLITS`; if None, :data:`SPLITS` are read.

    Raises:
        UserError: a required file is missing, or a file cannot be read or does not list any image.
    """
    held_out = HeldOut()
    for name, splits in (all_splits or SPLITS).items():
        if name in without:
            continue
        file = splits.locate(raw)
        if file is None:
            held_out.absent.append(name)
            continue
        held_out.sources[name] = file
        found_any = False
        for each, split in splits.read(file):
            found_any = True
            if split is not None:
                held_out.split_of.setdefault(each, printable(f"{splits.title} {split}"))
        if not found_any:
            raise UserError(
                f"{file} does not list any held-out image",
                remedy=f"check that it is {splits.file} of {splits.title}, and complete",
            )
    held_out.roots = tuple(raw.roots)
    held_out.require(required)
    if all_splits is None:
        held_out.links = read_links(raw)
        for known in list(held_out.split_of):
            for each in held_out.links.all_ids(frozenset({known})) - held_out.split_of.keys():
                held_out.split_of[each] = held_out.split_of[known]
                held_out.first_id[each] = known
    return held_out


def read_links(raw: RawFolder) -> Links:
    """Reads the links between ids from ``image_data.json`` of Visual Genome and the captions of COCO, if these files exist.

    Raises:
        UserError: a file cannot be read.
    """
    links = Links()
    _read_links_of_visual_genome(raw, links)
    of_visual_genome = len(links.groups)
    _read_links_of_coco(raw, links)
    photograph_of = {coco: flickr for flickr, coco in map(_flickr_and_coco, links.groups[of_visual_genome:])}
    for group in links.groups[:of_visual_genome]:
        flickr, coco = _flickr_and_coco(group)
        other = photograph_of.get(coco)
        if flickr and other is not None and flickr != other:
            images = ", ".join(each for each in group if each.startswith("vg:"))
            links.contradictions.append(
                f"image_data.json of Visual Genome says that {images} is {coco} and {flickr}, but COCO's flickr_url says that "
                f"{coco} is {other}"
            )
    return links


def _flickr_and_coco(group: Ids) -> tuple[str, str]:
    """Returns the Flickr id and the COCO id in a group of ids; "" for an id that is missing."""
    flickr, coco = (
        next((each for each in group if each.startswith(data_set)), "") for data_set in ("flickr:", "coco:")
    )
    return flickr, coco


def contradictory_links(links: Links) -> str:
    """Describes the contradictory links in one line. Returns "" if no links contradict each other."""
    if not links.contradictions:
        return ""
    number = counted(len(links.contradictions), "contradictory link", "contradictory links")
    return f"{number}, whose ids all count as the same photograph; the first: {links.contradictions[0]}"


def _read_links_of_visual_genome(raw: RawFolder, links: Links) -> None:
    file = raw.find("image_data.json")
    if file is None:
        links.absent.append("image_data.json of Visual Genome")
        return
    links.files.append(file)
    links.sets |= {frozenset({"vg", "coco"}), frozenset({"vg", "flickr"})}
    with official_pieces(file, "Visual Genome") as pieces:
        links.groups += [ids_in_image_data(piece.value) for piece in pieces if isinstance(piece.value, dict)]


def ids_in_image_data(values: dict[str, Any]) -> Ids:
    """Returns the ids in an object of Visual Genome's ``image_data.json``."""
    named = {"vg": values.get("image_id"), "coco": values.get("coco_id"), "flickr": values.get("flickr_id")}
    numbers = {data_set: id_number(value) for data_set, value in named.items()}
    return frozenset(f"{data_set}:{number}" for data_set, number in numbers.items() if number is not None)


def _read_links_of_coco(raw: RawFolder, links: Links) -> None:
    files = {
        split: raw.find(f"captions_{split}.json") or raw.find(f"instances_{split}.json")
        for split in ("train2014", "val2014", "train2017", "val2017")
    }
    if not all(files[f"{split}2014"] or files[f"{split}2017"] for split in ("train", "val")):
        links.absent.append("captions_train2014.json and captions_val2014.json of COCO")
    else:
        links.sets.add(frozenset({"coco", "flickr"}))
    for file in files.values():
        if file is None:
            continue
        links.files.append(file)
        found_images = False
        with official_pieces(file, "COCO") as pieces:
            for piece in pieces:
                if piece.section != "images" and found_images:
                    break  # most of the file is annotations, which follow the images
                found_images = found_images or piece.section == "images"
                if piece.section == "images" and isinstance(piece.value, dict) and "id" in piece.value:
                    flickr = ids_in_url(str(piece.value.get("flickr_url") or ""))
                    if flickr:
                        links.groups.append(flickr | {f"coco:{piece.value['id']}"})


def _karpathy(data_set: str) -> Callable[[RawFile], Iterator[tuple[str, str]]]:
    """Returns a reader for Karpathy's file for COCO or Flickr30K.

    Args:
        data_set: prefix of the ids.
    """

    def read(file: RawFile) -> Iterator[tuple[str, str]]:
        with official_pieces(file, "Karpathy", "images") as pieces:
            for image in (KarpathyImage(piece.row) for piece in pieces):
                if image.split not in TRAINING:
                    number = image.coco_id if data_set == "coco" else needed_id(image.name.partition(".")[0])
                    yield f"{data_set}:{number}", image.split

    return read


def _references(file: RawFile) -> Iterator[tuple[str, str]]:
    """Reads ``refs(*).p`` of the RefCOCO family."""
    for reference in read_references(file):
        if reference.split not in TRAINING:
            try:
                yield f"coco:{reference.image_id}", reference.split
            except BrokenRecordError as error:
                raise UserError(f"{error}", where=reference.row.location, remedy="is it the official file?") from None


def read_references(file: RawFile) -> list[Reference]:
    """Reads the references of the RefCOCO family, without executing code from the pickle.

    Raises:
        UserError: the file is damaged, contains more than plain data, or is not a list of objects.
    """
    with file.open() as stream:
        try:
            return references(load_plain_pickle(stream), str(file))
        except ValueError as error:
            raise UserError(
                f"{file} is not a pickle of plain data: {error}", remedy="is it the official file?"
            ) from None


def _questions(file: RawFile) -> Iterator[tuple[str, str]]:
    """Reads VQA v2's questions about the images of test2015, or the list of these images."""
    with official_pieces(file, "VQA v2", "questions", "images") as pieces:
        for piece in pieces:
            number = image_id_of(piece.row) if piece.section == "questions" else needed_id(piece.value["id"])
            yield f"coco:{number}", "test"


def _vqa2_selection(file: RawFile) -> Iterator[tuple[str, str | None]]:
    """Reads the images of val2014, of which a part selects the weights of VQA v2 (:data:`~dataset.image_share.VQA2_SELECTION`),
    from VQA v2's questions, from COCO's annotations, or from Karpathy's file."""
    found_images = False
    with official_pieces(file, "VQA v2") as pieces:
        for piece in pieces:
            if piece.section not in ("questions", "images"):
                if found_images:
                    break  # most of COCO's file is annotations, which follow the images
                continue
            found_images, folder = True, "val2014"
            if piece.section == "questions":
                number = image_id_of(piece.row)
            elif "cocoid" in piece.value:
                image = KarpathyImage(piece.row)
                number, folder = image.coco_id, image.folder
            else:
                number = needed_id(piece.value["id"])
            name = image_name(folder, number)
            is_held_out = name.startswith("val2014/") and is_in_share(name, VQA2_SELECTION)
            yield f"coco:{number}", "val (5%)" if is_held_out else None


def _gqa(file: RawFile) -> Iterator[tuple[str, str]]:
    """Reads GQA's validation images from scene graphs by image, or from questions, also in LXMERT's format."""
    with official_pieces(file, "GQA") as pieces:
        for piece in pieces:
            value = piece.value
            if "objects" in value and isinstance(piece.key, str):
                number = piece.key
            else:
                number = value["img_id" if "img_id" in value else "imageId"]
            yield f"vg:{needed_id(number)}", "val"


def _entities(split: str) -> Callable[[RawFile], Iterator[tuple[str, str]]]:
    """Returns a reader for ``val.txt`` or ``test.txt`` of Flickr30K Entities."""

    def read(file: RawFile) -> Iterator[tuple[str, str]]:
        for number in entities_ids(file):
            yield f"flickr:{number}", split

    return read


def entities_ids(file: RawFile) -> Iterator[int]:
    """Yields the ids in ``train.txt``, ``val.txt`` or ``test.txt`` of Flickr30K Entities.

    Raises:
        UserError: a line is not an id.
    """
    for location, line in file.lines():
        text = line.strip()
        if text and id_number(text) is None:
            raise UserError(f"{text[:40]!r} is not an id of Flickr30K", where=location, remedy="use the official file")
        if text:
            yield int(text)


def entities_list(raw: RawFolder, name: str) -> RawFile | None:
    """Finds one of the lists of ids of Flickr30K Entities, next to the folder ``Sentences`` or to ``annotations.zip``."""
    sentences = raw.folder("Sentences")
    packed = raw.find("annotations.zip") if sentences is None else None
    neighbour = sentences or (packed.path if packed is not None else None)
    return None if neighbour is None else raw.sibling(neighbour, name)


def _ref_l4(split: str) -> Callable[[RawFile], Iterator[tuple[str, str]]]:
    """Returns a reader for Ref-L4's expressions. Its images are named as in COCO or in Objects365."""

    def read(file: RawFile) -> Iterator[tuple[str, str]]:
        for _, row in parquet_rows(file.path, ("file_name",)):
            name = str(row["file_name"])
            for each in ids_in_path(name) or {f"objects365:{name.rpartition('/')[2].partition('.')[0]}"}:
                yield each, split

    return read


def _msrvtt(file: RawFile) -> Iterator[tuple[str, str]]:
    """Reads MSR-VTT's list of clips; the ids come from the URLs of the videos."""
    with official_pieces(file, "MSR-VTT", "videos") as pieces:
        for split, number in (split_of_clip(piece.row) for piece in pieces):
            if number is not None and (split.startswith("val") or split == "test"):
                yield f"youtube:{number}", split


def _msvd(file: RawFile) -> Iterator[tuple[str, str]]:
    """Reads MSVD's mapping, ``<id>_<start>_<end> vid<N>``: 1,200 clips are for training, the next 100 for validation, the
    rest for testing."""
    for location, line in file.lines():
        match = _MSVD_LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(
                "not a clip and its number, <id>_<start>_<end> vid<N>", where=location, remedy="is it MSVD's file?"
            )
        if int(match[2]) > 1200:
            yield f"youtube:{match[1]}", "val" if int(match[2]) <= 1300 else "test"


def _first_of(*names: str, below: str = "") -> Callable[[RawFolder], RawFile | None]:
    """Returns a function that finds the first of these files that exists. With ``below``, only files in a folder of this name
    count."""
    return lambda raw: next((file for name in names if (file := raw.find(name, below)) is not None), None)


SPLITS: dict[str, HeldOutSplits] = {
    "karpathy_coco": HeldOutSplits(
        "COCO (Karpathy)", "dataset_coco.json", _first_of("dataset_coco.json"), _karpathy("coco")
    ),
    "karpathy_flickr30k": HeldOutSplits(
        "Flickr30K (Karpathy)", "dataset_flickr30k.json", _first_of("dataset_flickr30k.json"), _karpathy("flickr")
    ),
    "refcoco": HeldOutSplits("RefCOCO", "refcoco/refs(unc).p", _first_of("refs(unc).p", below="refcoco"), _references),
    "refcoco+": HeldOutSplits(
        "RefCOCO+", "refcoco+/refs(unc).p", _first_of("refs(unc).p", below="refcoco+"), _references
    ),
    "refcocog": HeldOutSplits(
        "RefCOCOg", "refcocog/refs(umd).p", _first_of("refs(umd).p", "refs(google).p", below="refcocog"), _references
    ),
    "vqa2": HeldOutSplits(
        "VQA v2",
        "v2_OpenEnded_mscoco_test2015_questions.json",
        _first_of("v2_OpenEnded_mscoco_test2015_questions.json", "image_info_test2015.json"),
        _questions,
    ),
    "vqa2_val": HeldOutSplits(
        "VQA v2",
        "v2_OpenEnded_mscoco_val2014_questions.json",
        _first_of(  # all of these files list the same images
            "dataset_coco.json",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            "captions_val2014.json",
            "instances_val2014.json",
        ),
        _vqa2_selection,
    ),
    "gqa_val": HeldOutSplits(
        "GQA",
        "val_sceneGraphs.json",
        lambda raw: (
            _first_of("val_sceneGraphs.json", "val_all_questions.json", "val_balanced_questions.json")(raw)
            or _first_of("valid.json", below="gqa")(raw)
        ),
        _gqa,
    ),
    "entities_val": HeldOutSplits(
        "Flickr30K Entities", "val.txt", partial(entities_list, name="val.txt"), _entities("val")
    ),
    "entities_test": HeldOutSplits(
        "Flickr30K Entities", "test.txt", partial(entities_list, name="test.txt"), _entities("test")
    ),
    "ref_l4_val": HeldOutSplits("Ref-L4", "ref-l4-val.parquet", _first_of("ref-l4-val.parquet"), _ref_l4("val")),
    "ref_l4_test": HeldOutSplits("Ref-L4", "ref-l4-test.parquet", _first_of("ref-l4-test.parquet"), _ref_l4("test")),
}
"""Downstream splits by name."""

VIDEO_SPLITS: dict[str, HeldOutSplits] = {
    "msrvtt": HeldOutSplits(
        "MSR-VTT", "MSRVTT_data.json", _first_of("MSRVTT_data.json", "test_videodatainfo.json"), _msrvtt
    ),
    "msvd": HeldOutSplits("MSVD", "youtube_mapping.txt", _first_of("youtube_mapping.txt"), _msvd),
}
"""Downstream splits of videos by name; the ids are from YouTube."""

COCO_SPLITS = ("karpathy_coco", "refcoco", "refcoco+", "refcocog", "vqa2_val")
"""Splits that consist of COCO's training and validation images."""

VG_SPLITS = (*COCO_SPLITS, "karpathy_flickr30k", "gqa_val")
"""Splits that may contain images of Visual Genome."""

REQUIRED_FOR = {
    "coco": COCO_SPLITS,
    "flickr": ("karpathy_flickr30k",),
    "vg": VG_SPLITS,
}
"""For each data set that occurs in ids (:mod:`dataset.image_ids`), the splits that hold out images of this data set."""
