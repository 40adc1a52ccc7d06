"""``python run.py prepare NAME --raw DIR --out DIR``: records for pre-training from the official files of a public data set.

NAME is a data set of `--list`, or a group: 4m for all that configs/pretrain/base_4m.yaml reads, 1b for what base_1b.yaml reads
besides, videos for the second step of 1b. DIR of --raw holds the official
annotation files, plain or zipped, and the images, in any folders; files of downstream splits are looked for there too: their
images are left out. A run that is cut goes on when the same command is given again; a folder of records appears when it is whole.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import get_args

from dataset.prepare.catalogue import GROUPS, READERS, SETS, Options, prepare
from dataset.prepare.folders import LineParser, whole_number
from dataset.prepare.held_out import SPLITS, VIDEO_SPLITS
from dataset.prepare.manifest import faults, prepared_folders, read_manifest
from dataset.prepare.missing import read_missing
from dataset.prepare.sets.laion import Filters, Safety
from dataset.prepare.video_clips import VideoOptions
from utils.cores import usable_cores
from utils.errors import UserError, one_line_errors
from utils.flags import positive_real, within

OUT = Path("data/pretrain")

CONVERTERS = {
    "own": "your own CSV, JSON or COCO file to records",
    "multi30k": "Multi30K, captions in four languages",
    "multilingual_coco": "COCO in English, Japanese and Chinese",
    "wit": "IGLUE's WIT",
    "wikimatrix": "WikiMatrix's translations",
    "multilingual": "captions by language for the records of 4m, and WikiMatrix: all that the multilingual configs read",
    "frames": "video files to lists of frames",
}
"""Names with flags of their own, and what each one converts: modules of dataset.prepare."""

LAION_FLAGS = ("min_side", "min_similarity", "safety", "max_unsafe", "max_watermark", "ray")
VIDEO_FLAGS = ("short_side", "frames_per_second", "clips", "words")


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py prepare``."""
    if argv and argv[0] in CONVERTERS:
        arguments: argparse.Namespace = _converter(argv[0]).arguments_of(argv[1:])
        return arguments
    return _parser().parse_args(argv)


def _converter(name: str) -> ModuleType:
    return importlib.import_module(f"dataset.prepare.{name}")


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Prepare, list or check; returns the exit status: 1 if a check found a fault, 2 for a mistake of the user."""
    if argv and argv[0] in CONVERTERS:
        status: int = _converter(argv[0]).main(argv[1:])
        return status
    flags = arguments_of(argv)
    if flags.list:
        sys.stdout.write(listing())
        return 0
    if flags.check is not None:
        return check(flags.check)
    if flags.name is None:
        raise UserError("give the name of a data set; --list shows them")
    names = GROUPS.get(flags.name, (flags.name,))
    if unknown := [name for name in names if name not in SETS]:
        known = ", ".join((*SETS, *GROUPS, *CONVERTERS))
        raise UserError(f"{unknown[0]!r} is no data set; known: {known}; --list describes them")
    if flags.raw is None:
        raise UserError("give the folder of the official files: --raw DIR")
    splits = {**SPLITS, **VIDEO_SPLITS}
    if unknown := [name for name in flags.without if name not in splits]:
        raise UserError(f"--without {unknown[0]}: no such splits; known: {', '.join(splits)}")
    _refuse_unread(flags, names)
    options = Options(
        raw=flags.raw,
        out=flags.out,
        held_out=tuple(flags.held_out),
        without=tuple(flags.without),
        missing=frozenset() if flags.missing is None else read_missing(flags.missing),
        verify=flags.verify,
        overwrite=flags.overwrite,
        workers=flags.workers,
        tell=lambda line: sys.stdout.write(f"{line}\n"),
        filters=Filters(flags.min_side, flags.min_similarity, flags.safety, flags.max_unsafe, flags.max_watermark),
        videos=VideoOptions(flags.short_side, flags.frames_per_second, flags.clips, flags.words),
        ray=flags.ray,
    )
    return prepare_all(names, options)


def _refuse_unread(flags: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse a flag that none of the sets reads."""
    usual = arguments_of(["laion"])
    if flags.verify and set(names) <= {"laion", *GROUPS["videos"]}:
        raise UserError(f"--verify: {', '.join(names)} does not decode images; leave it out")
    for readers, of_them in ((("laion",), LAION_FLAGS), (GROUPS["videos"], VIDEO_FLAGS)):
        for name in of_them if not set(readers) & set(names) else ():
            if (value := getattr(flags, name)) != getattr(usual, name):
                raise UserError(f"--{name.replace('_', '-')} {value}: only {', '.join(readers)} read it; leave it out")


def prepare_all(names: Sequence[str], options: Options) -> int:
    """Prepare several sets. One that cannot be made does not keep the others from it; all of these are told at the end."""
    errors = []
    for name in names:
        try:
            prepare(name, options)
        except UserError as error:
            if len(names) == 1:
                raise
            errors.append(f"{name}: {error}")
    if errors:
        raise UserError(
            f"{len(errors)} of {len(names)} sets were not made; the others are whole\n  " + "\n  ".join(errors)
        )
    return 0


def listing() -> str:
    """The known sets: official files, sizes, licence, what is made, and which config reads it."""
    lines = ["Licences as the sets' own pages are said to state them: none was verified here.", ""]
    for name, data_set in SETS.items():
        sizes = ", ".join(f"{number:,} {unit}" for unit, number in data_set.sizes.items()) or "not known"
        lines += [f"{name}: {data_set.title}", f"  from      {data_set.home}", f"  licence   {data_set.licence}"]
        lines += [
            f"  {'files' if not index else '':9} {files}: {what}"
            for index, (files, what) in enumerate(data_set.files.items())
        ]
        lines += [f"  size      {sizes}"]
        made = [(product.folder, product.records) for product in data_set.products] or [
            (name, "an image and its caption")
        ]
        lines += [
            f"  {'makes' if not index else '':9} {folder}/: {records}" for index, (folder, records) in enumerate(made)
        ]
        lines += [f"  read by   {READERS[group]}" for group, names in GROUPS.items() if name in names]
        lines.append("")
    lines += [f"{group}: {', '.join(names)}" for group, names in GROUPS.items()]
    lines += ["", "With flags of their own (python run.py prepare NAME --help):"]
    lines += [f"  {name:19}{what}" for name, what in CONVERTERS.items()]
    return "\n".join(lines) + "\n"


def check(root: Path) -> int:
    """Compare the prepared folders below ``root`` with their manifests; returns 1 if one of them was changed.

    Raises:
        UserError: there is none.
    """
    folders = prepared_folders(root) if root.is_dir() else []
    if not folders:
        raise UserError(f"--check {root}: no prepared folder is there; give the --out of `run.py prepare`")
    found = 0
    for folder in folders:
        lines = list(faults(folder))
        found += len(lines)
        if not lines:
            shards = len(read_manifest(folder).values["shards"])
            lines = [f"{folder}: whole, {shards} {'file' if shards == 1 else 'files'}"]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 1 if found else 0


def _parser() -> LineParser:
    parser = LineParser(
        prog="run.py prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help=f"{', '.join((*SETS, *GROUPS))}")
    add("--list", action="store_true", help="show the data sets: files, sizes, licence, what is made")
    add("--check", type=Path, metavar="DIR", help="compare prepared folders with their manifests")
    add("--raw", type=Path, metavar="DIR", help="folder of the official files and images")
    add("--out", type=Path, default=OUT, metavar="DIR", help="folder for the folders of records (default: %(default)s)")
    add(
        "--held-out",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="one more folder with files of downstream splits; may be repeated",
    )
    add(
        "--without",
        action="append",
        default=[],
        metavar="SPLITS",
        help="keep the held-out images of this set, on which you never measure; may be repeated",
    )
    add(
        "--missing",
        type=Path,
        metavar="FILE",
        help="leave out these images too: another group's missing.txt, or its --out",
    )
    add("--verify", action="store_true", help="decode every image: broken ones and duplicates are left out")
    add("--overwrite", action="store_true", help="make anew what is there")
    cores = usable_cores()
    add(
        "--workers",
        type=whole_number(1, 1024),
        default=cores,
        metavar="N",
        help="processes (default: one a core, %(default)d)",
    )
    _add_laion(parser)
    _add_videos(parser)
    return parser


def _add_videos(parser: argparse.ArgumentParser) -> None:
    add, usual = parser.add_argument_group("videos").add_argument, VideoOptions()
    side = "of a frame, at most (default %(default)d, enough for pre-training at 224)"
    add("--short-side", type=whole_number(16, 4096), default=usual.short_side, metavar="PIXELS", help=side)
    rate = "frames that are kept of each (default %(default)g, the paper's)"
    add("--frames-per-second", type=positive_real, default=usual.frames_per_second, metavar="N", help=rate)
    clips = "neighbouring clips of a record, at most (default %(default)d)"
    add("--clips", type=whole_number(1, 10_000), default=usual.clips, metavar="N", help=clips)
    words = "of a clip of yt_temporal (default %(default)d)"
    add("--words", type=whole_number(1, 1000), default=usual.words, metavar="N", help=words)


def _add_laion(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("laion (the paper does not say how it was filtered)").add_argument
    add("--min-side", type=whole_number(0, 100_000), default=0, metavar="PIXELS", help="of the shorter side, as listed")
    add("--min-similarity", type=within(-1, 1), default=-1.0, metavar="S", help="of image and text, by CLIP, as listed")
    add(
        "--safety",
        choices=get_args(Safety),
        default="NSFW",
        help="the tag left out: NSFW, UNSURE too, or none (%(default)s)",
    )
    add(
        "--max-unsafe",
        type=within(0, 1),
        default=1.0,
        metavar="P",
        help="largest probability of an unsafe image (column punsafe)",
    )
    add(
        "--max-watermark",
        type=within(0, 1),
        default=1.0,
        metavar="P",
        help="largest probability of a watermark (pwatermark)",
    )
    add("--ray", metavar="ADDRESS", help="work on a Ray cluster that shares the disk: its address, auto, or local")
