"""``run.py prepare``: builds records for pre-training from the official files of a public data set."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from dataset.prepare.catalogue import GROUPS, SETS, listing, users_of
from dataset.prepare.declarations import Splits
from dataset.prepare.filters import Filters
from dataset.prepare.held_out import SPLITS, VIDEO_SPLITS
from dataset.prepare.manifest import faults, prepared_folders, read_manifest
from dataset.prepare.missing import read_missing
from dataset.prepare.options import Options, VideoOptions
from dataset.prepare.prepare import prepare as prepare_set
from utils.cores import usable_cores
from utils.errors import UserError
from utils.flags import OutputFolder, PositiveReal, named, number_within, read_by, unknown, whole_number
from utils.subcommands import Command, with_subcommands

CONVERTERS = {
    "own": Command("dataset.prepare.own:own", "convert your own CSV, JSON or COCO file to records"),
    "to_odvg": Command("dataset.prepare.to_odvg:to_odvg", "convert region records to ODVG lines"),
    "multilingual": Command(
        "dataset.prepare.multilingual:multilingual", "add captions in other languages to the records of 4m"
    ),
    "frames": Command("dataset.prepare.frames:frames", "convert video files to lists of frames"),
    "parquet": Command(
        "dataset.prepare.parquet:parquet",
        "convert shards to Parquet files with small row groups that contain the images",
    ),
}
"""Subcommands with separate options. The help of each subcommand says what it converts."""


def _group(*options: str) -> str:
    """Returns the title of the flags that set some options: the data sets that use them."""
    return ", ".join(dict.fromkeys(name for option in options for name in users_of(option)))


FILTERS_TITLE = f"{_group('filters')} (the paper does not say how LAION was filtered)"
NAME_HELP = f"{', '.join((*SETS, *GROUPS))}; or a command"


@with_subcommands(CONVERTERS)
def prepare(
    name: Annotated[
        str | None, Parameter(choices=(*SETS, *GROUPS, *CONVERTERS), show_choices=False, help=NAME_HELP)
    ] = None,
    /,
    *,
    list_: bool = False,
    check: Path | None = None,
    raw: Path | None = None,
    out: OutputFolder = Path("data/pretrain"),
    held_out: Annotated[tuple[Path, ...], named("FOLDER")] = (),
    without: Annotated[tuple[str, ...], named("SET")] = (),
    missing: Path | None = None,
    verify: bool = False,
    overwrite: bool = False,
    max_broken: Annotated[float, read_by(number_within(0, 1))] = Options.max_broken,
    workers: Annotated[int, read_by(whole_number(1, 1024))] = usable_cores(),
    filters: Annotated[Filters, Parameter(name="*", group=FILTERS_TITLE)] = Filters(),
    ray: Annotated[str | None, Parameter(group=_group("ray"))] = None,
    videos: Annotated[VideoOptions, Parameter(name="*", group=_group("videos"))] = VideoOptions(),
    min_score: Annotated[PositiveReal, Parameter(group=_group("min_score"))] = Options.min_score,
) -> int:
    """Make records from the official files of a public data set.

    NAME is a data set shown by --list, or a group: 4m for everything that configs/pretrain/base_4m.yaml reads, 1b for what
    base_1b.yaml reads in addition, and videos for the second stage of 1b. The folder --raw contains the official annotation
    files, plain or zipped, and the images, in any subfolders. If it contains files that define downstream splits, the images of
    these splits are excluded. To continue after an interruption, repeat the command. Each folder of records appears only when it
    is complete.

    Args:
        name: data set, group or command.
        list_: show the data sets with their files, sizes, licences and the resulting records.
        check: compare the prepared folders in this folder with their manifests.
        raw: folder of the official files and images.
        out: folder in which the folders of records are created.
        held_out: an additional folder with files of downstream splits; may be repeated.
        without: keep the held-out images of this data set, on which you will never evaluate; may be repeated.
        missing: also exclude the images listed in another research group's missing.txt; pass this file, or the group's --out.
        verify: decode every image, and exclude broken images and duplicates.
        overwrite: rebuild existing folders.
        max_broken: maximum fraction of malformed entries, which are skipped; with more, no folder is written.
        workers: number of processes, by default one per core.
        ray: run on a Ray cluster with a shared disk; pass its address, auto, or local.
        min_score: minimum margin score of a pair of sentences; the default is the value that the authors of the score use.

    Examples:
        python run.py prepare --list
        python run.py prepare 4m --raw raw --out data/pretrain
        python run.py prepare multi30k --raw raw/multi30k --out data
        python run.py prepare --check data/pretrain
        python run.py prepare own --help

    Returns:
        0 the records exist, or all folders are intact; 1 --check found a fault; 2 the command line or the files are wrong
    """
    if sum((list_, check is not None, name is not None)) > 1:
        raise UserError("pass only one of NAME, --list and --check")
    if list_:
        commands = [f"  {name:19}{converter.help}" for name, converter in CONVERTERS.items()]
        lines = [listing(), "With their own flags (python run.py prepare NAME --help):", *commands]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    if check is not None:
        return check_folders(check)
    if name is None:
        raise UserError("pass the name of a data set", remedy="--list shows them")
    names = GROUPS.get(name, (name,))
    if raw is None:
        raise UserError("pass the folder of the official files: --raw DIR")
    splits = {**SPLITS, **VIDEO_SPLITS}
    if wrong := [each for each in without if each not in splits]:
        raise UserError(f"{unknown(wrong[0], list(splits))}", where="--without")
    exclusions = {"--held-out": held_out, "--without": without, "--missing": missing, "--verify": verify}
    if isinstance(SETS[names[0]].makes, Splits) and (given := [flag for flag, value in exclusions.items() if value]):
        raise UserError(
            f"{name} has its own splits, from which no image is excluded", where=given[0], remedy="remove the flag"
        )
    if verify and not set(names) & set(users_of("verify")):
        raise UserError(f"{', '.join(names)} does not decode images", where="--verify", remedy="remove the flag")
    chosen = {
        "filters": _changed(filters),
        "videos": _changed(videos),
        "ray": {} if ray is None else {"ray": ray},
        "min_score": {} if min_score == Options.min_score else {"min_score": min_score},
    }
    for option, values in chosen.items():
        _reject_unused(values, users_of(option), names)
    options = Options(
        raw=raw,
        out=out,
        held_out=held_out,
        without=without,
        missing=frozenset() if missing is None else read_missing(missing),
        verify=verify,
        overwrite=overwrite,
        workers=workers,
        report=lambda line: sys.stdout.write(f"{line}\n"),
        filters=filters,
        videos=videos,
        ray=ray,
        min_score=min_score,
        max_broken=max_broken,
    )
    return prepare_all(names, options)


def _changed(options: Filters | VideoOptions) -> dict[str, Any]:
    """Returns the options that differ from their defaults."""
    return {name: value for name, value in asdict(options).items() if value != getattr(type(options), name)}


def _reject_unused(values: Mapping[str, Any], readers: Sequence[str], names: Sequence[str]) -> None:
    """Rejects a flag that none of the data sets uses."""
    for name, value in values.items() if not set(readers) & set(names) else ():
        raise UserError(
            f"--{name.replace('_', '-')} {value}: only used by {', '.join(readers)}", remedy="remove the flag"
        )


def prepare_all(names: Sequence[str], options: Options) -> int:
    """Prepares several data sets. If one fails, the others are still prepared; all errors are reported at the end."""
    errors = []
    for name in names:
        try:
            prepare_set(name, options)
        except UserError as error:
            if len(names) == 1:
                raise
            errors.append(f"{name}: {error}")
    if errors:
        raise UserError(
            f"{len(errors)} of {len(names)} data sets could not be prepared; the others are complete\n  "
            + "\n  ".join(errors)
        )
    return 0


def check_folders(root: Path) -> int:
    """Compares the prepared folders in ``root`` with their manifests, and returns 1 if a folder has changed.

    Raises:
        UserError: if no prepared folder was found.
    """
    folders = prepared_folders(root) if root.is_dir() else []
    if not folders:
        raise UserError(
            "contains no prepared folder", where=f"--check {root}", remedy="pass the --out of `run.py prepare`"
        )
    found = 0
    for folder in folders:
        lines = list(faults(folder))
        found += len(lines)
        if not lines:
            shards = len(read_manifest(folder).values["files"])
            lines = [f"{folder}: intact, {shards} {'file' if shards == 1 else 'files'}"]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 1 if found else 0
