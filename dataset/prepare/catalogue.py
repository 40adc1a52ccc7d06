"""The data sets that ``run.py prepare`` knows, and how one of them is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataset.image_ids import ids_in_path
from dataset.prepare.building import build_folder, fill_with_records
from dataset.prepare.by_file import FileSet
from dataset.prepare.counts import Counts
from dataset.prepare.downloads import (
    command_of_list,
    finished_shards,
    shards_digest,
    take_shards,
    write_url_list,
)
from dataset.prepare.folder_index import write_folder_index
from dataset.prepare.held_out import VIDEO_SPLITS, HeldOut, read_held_out
from dataset.prepare.image_finder import held_out_contents
from dataset.prepare.manifest import Manifest
from dataset.prepare.missing import write_missing
from dataset.prepare.output import OutputFolder
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.results import tell_result
from dataset.prepare.sets.base import DataSet, Product, Request
from dataset.prepare.sets.coco import COCO
from dataset.prepare.sets.flickr30k_entities import ENTITIES
from dataset.prepare.sets.gqa import GQA
from dataset.prepare.sets.laion import LAION, Filters, Rules
from dataset.prepare.sets.objects365 import OBJECTS365
from dataset.prepare.sets.openimages import OPENIMAGES
from dataset.prepare.sets.refcoco import REFCOCO
from dataset.prepare.sets.v3det import V3DET
from dataset.prepare.sets.videos import HOWTO100M, WEBVID, YT_TEMPORAL
from dataset.prepare.sets.visual_genome import VISUAL_GENOME
from dataset.prepare.sets.web import CC3M, CC12M, SBU, WEB_SETS
from dataset.prepare.verify import Verified, verify_images
from dataset.prepare.video_clips import VideoOptions
from utils.suffixes import IMAGE_SUFFIXES

SETS: dict[str, DataSet] = {
    "coco": COCO,
    "visual_genome": VISUAL_GENOME,
    "sbu": SBU,
    "cc3m": CC3M,
    "refcoco": REFCOCO,
    "gqa": GQA,
    "flickr30k_entities": ENTITIES,
    "objects365": OBJECTS365,
    "openimages": OPENIMAGES,
    "v3det": V3DET,
    "cc12m": CC12M,
    "laion": LAION,
    "webvid": WEBVID,
    "howto100m": HOWTO100M,
    "yt_temporal": YT_TEMPORAL,
}
"""Data sets by name."""

GROUPS = {
    "4m": ("coco", "visual_genome", "sbu", "cc3m", "refcoco", "gqa", "flickr30k_entities"),
    "1b": ("cc12m", "objects365", "openimages", "laion"),
    "videos": ("webvid", "howto100m", "yt_temporal"),
}
"""Names that stand for several sets. A config reads those of its group, and of the groups before it."""

READERS = {
    "4m": "configs/pretrain/{base,large}_4m.yaml",
    "1b": "configs/pretrain/{base,large}_1b.yaml",
    "videos": "configs/pretrain/{base,large}_1b_stage2.yaml",
}
"""The configs of each group."""

DOWNLOADS = "_download"
"""Folder below the output for lists of addresses, and for what is downloaded by them."""


@dataclass(frozen=True)
class Options:
    """Choices of a user for one preparation.

    Args:
        raw: folder of the official files and images.
        out: folder in which the folders of records are made.
        held_out: more folders in which the files of downstream splits are looked for.
        without: names of downstream splits whose images are kept.
        missing: images that others miss, to be left out here too, as :func:`read_missing` gives them.
        verify: decode every image.
        overwrite: make anew what is there.
        workers: processes.
        tell: called with each line for the user.
        filters: of LAION.
        videos: how videos become records.
        ray: address of a Ray cluster for LAION; None: processes of this machine.
    """

    raw: Path
    out: Path
    held_out: tuple[Path, ...]
    without: tuple[str, ...]
    missing: frozenset[str]
    verify: bool
    overwrite: bool
    workers: int
    tell: Callable[[str], object]
    filters: Filters = field(default_factory=Filters)
    videos: VideoOptions = field(default_factory=VideoOptions)
    ray: str | None = None


def prepare(name: str, options: Options) -> list[Manifest]:
    """Make the folders of records of a set; returns the manifests of those that were not there before.

    Raises:
        UserError: official files are missing or cannot be used, or a folder is of another origin.
    """
    data_set = SETS[name]
    raw = RawFolder([options.raw])
    searched = RawFolder([options.raw, *options.held_out]) if options.held_out else raw
    videos = name in GROUPS["videos"]
    held_out = read_held_out(searched, data_set.required, options.without, VIDEO_SPLITS if videos else None)
    if name == "laion":
        return _prepare_laion(data_set, held_out, options)
    if name in WEB_SETS:
        return _prepare_web(name, raw, searched, held_out, options)
    verified = _verified(_images(raw) | _held_out_images(searched, held_out), options) if options.verify else {}
    made = []
    for product in data_set.products:
        if product.measures in options.without:
            options.tell(f"{product.folder}: not made, since --without {product.measures} trains on its images")
            continue
        folder = options.out / product.folder
        request = Request(raw, held_out, folder, options.missing, verified, options.workers, options.videos)
        manifest = _prepare_records(data_set, product, request, options)
        if manifest is not None:
            made.append(manifest)
    return made


def _prepare_records(data_set: DataSet, product: Product, request: Request, options: Options) -> Manifest | None:
    opened = product.open(request)
    arguments = _arguments(opened.sources, request.held_out, options)
    if data_set in (SETS[name] for name in GROUPS["videos"]):
        arguments["videos"] = asdict(options.videos)

    def fill(folder: OutputFolder) -> Counts:
        counts = fill_with_records(folder, opened.work(folder.out), options.workers, product.folder)
        write_missing(folder.out, opened.images.missing)
        if opened.images.annotations_alone:
            where = request.raw.roots[0]
            options.tell(f"{product.folder}: no image is there; the records name where they usually lie, below {where}")
        return counts

    def facts() -> Mapping[str, Any]:
        return _facts(data_set, request.held_out, options) | {"annotations_alone": opened.images.annotations_alone}

    name = product.folder
    manifest = build_folder(options.out, name, arguments, fill, overwrite=options.overwrite, facts=facts)
    write_folder_index(options.out / name, options.workers)
    sizes = {} if product.measures else data_set.sizes
    tell_result(options.out / name, manifest, sizes, options.tell)
    return manifest


def _prepare_web(name: str, raw: RawFolder, searched: RawFolder, held_out: HeldOut, options: Options) -> list[Manifest]:
    """Write the list of addresses; once img2dataset has downloaded by it, make the folder of shards. ``searched``: the folders in
    which held-out images lie."""
    data_set, web = SETS[name], WEB_SETS[name]
    sources = web.sources(raw)
    arguments = _arguments(sources, held_out, options)
    urls_folder, shards_folder = f"{name}_urls", options.out / DOWNLOADS / f"{name}_shards"
    urls = options.out / DOWNLOADS / urls_folder / "urls.tsv"

    def fill_urls(folder: OutputFolder) -> Counts:
        counts = Counts()
        pairs, total = web.pairs(sources, counts), data_set.sizes["pairs"]
        write_url_list(folder.out / urls.name, pairs, counts, held_out, options.missing, total)
        return counts

    def facts() -> Mapping[str, Any]:
        return _facts(data_set, held_out, options)

    listing = {key: value for key, value in arguments.items() if key != "verify"}  # the list is made without images
    listed = build_folder(
        options.out / DOWNLOADS, urls_folder, listing, fill_urls, overwrite=options.overwrite, facts=facts
    )
    tell_result(urls.parent, listed, data_set.sizes, options.tell)
    shards, unfinished = finished_shards(shards_folder) if shards_folder.is_dir() else ([], [])
    if not shards:
        options.tell(
            f"{name}: download the images with img2dataset (pip install img2dataset), then give this command again:"
        )
        options.tell(f"  {command_of_list(urls, shards_folder, 'tsv')}")
        return [listed] if listed is not None else []
    if unfinished:
        options.tell(
            f"{name}: {len(unfinished)} shards are unfinished and left out; give img2dataset's command again: {unfinished[0]}"
        )
    web_facts: dict[str, Any] = {}

    def fill(folder: OutputFolder) -> Counts:
        counts, downloaded = take_shards(
            urls, folder, shards, verify=options.verify, workers=options.workers, held_out=copies
        )
        write_missing(folder.out, downloaded.rot)
        web_facts["statuses"] = dict(downloaded.statuses)
        return counts

    copies: dict[bytes, str] = {}
    if options.verify:
        verified = _verified(_held_out_images(searched, held_out), options)
        copies = {bytes.fromhex(content): split for content, split in held_out_contents(verified, held_out).items()}
        arguments["held_out_contents"] = hashlib.sha256(b"".join(sorted(copies))).hexdigest()
    arguments["shards"] = shards_digest(shards)
    manifest = build_folder(
        options.out, name, arguments, fill, overwrite=options.overwrite, facts=lambda: {**facts(), **web_facts}
    )
    write_folder_index(options.out / name, options.workers)
    tell_result(options.out / name, manifest, data_set.sizes, options.tell)
    return [each for each in (listed, manifest) if each is not None]


def _prepare_laion(data_set: DataSet, held_out: HeldOut, options: Options) -> list[Manifest]:
    """See :class:`~dataset.prepare.by_file.FileSet`."""
    arguments = {
        key: value for key, value in _arguments([], held_out, options).items() if key not in ("sources", "verify")
    }
    return FileSet(
        "laion",
        options.raw,
        options.out,
        options.out / DOWNLOADS,
        rules=Rules(options.filters, held_out, options.missing),
        arguments=arguments,
        facts=_facts(data_set, held_out, options),
        workers=options.workers,
        ray=options.ray,
        overwrite=options.overwrite,
        tell=options.tell,
    ).prepare()


def _arguments(sources: list[RawFile], held_out: HeldOut, options: Options) -> dict[str, Any]:
    """The inputs that decide the content of a folder, as JSON values."""
    return {
        "sources": {str(file.path): file.digest() for file in sources},
        "held_out": {name: file.digest() for name, file in held_out.sources.items()},
        "links": {str(file.path): file.digest() for file in held_out.links.files},
        "without": sorted(options.without),
        "missing": hashlib.sha256("\n".join(sorted(options.missing)).encode()).hexdigest(),
        "verify": options.verify,
    }


def _facts(data_set: DataSet, held_out: HeldOut, options: Options) -> dict[str, Any]:
    """Entries of the manifest beside its arguments and counts."""
    return {
        "data_set": data_set.title,
        "official_sizes": dict(data_set.sizes),
        "leaks": {
            "removed": "every image of these splits",
            "splits": {name: str(file) for name, file in held_out.sources.items()},
            "ids": len(held_out.split_of),
            "not_checked": [*held_out.absent, *options.without],
            "not_linked": held_out.links.absent,
        },
    }


def _images(raw: RawFolder) -> set[Path]:
    """All images below the folders."""
    return {path for paths in raw.files.values() for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}


def _held_out_images(raw: RawFolder, held_out: HeldOut) -> set[Path]:
    """The images below the folders whose path has the id of a held-out one."""
    return {path for path in _images(raw) if held_out.find(ids_in_path(path.as_posix())) is not None}


def _verified(images: set[Path], options: Options) -> dict[Path, Verified]:
    """Decode images, or remember that they were."""
    return verify_images(sorted(images), options.out / "_verified.jsonl", options.workers)
