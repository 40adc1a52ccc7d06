"""Builds a folder of records that only appears once it is complete.

Records are written to ``OUT/.building-NAME``, which is renamed to ``OUT/NAME`` at the end, with a manifest. An interrupted run
leaves its working folder behind, and the same command resumes after the last complete shard; only a data set whose URLs are
compared with each other starts again. If the files contain an error, the working folder is removed.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dataset.prepare.counts import Counts
from dataset.prepare.manifest import Manifest, check_same, is_prepared, write_manifest
from dataset.prepare.output_folder import JOURNAL, OutputFolder
from dataset.prepare.processes import WorkerDiedError
from utils.errors import UserError

MALFORMED_REASONS = ("missing key", "wrong type", "bad json", "wrong columns")
"""Reasons for skipping an entry that indicate a damaged or wrong file."""

IMAGES = "images"
"""Name of the image folder in a folder of records. Several files of records may share images. Once a file of records is complete,
all of its images are complete too."""

_JOURNAL_MANIFEST = "_journal/manifest.json"


def build_folder(
    out: Path,
    name: str,
    arguments: Mapping[str, Any],
    fill: Callable[[OutputFolder], Counts],
    *,
    overwrite: bool,
    max_broken: float,
    facts: Callable[[], Mapping[str, Any]] = dict,
    hashed: bool = True,
) -> Manifest | None:
    """Builds the folder ``out/name``, unless it is complete.

    Args:
        out: parent folder.
        name: name of the folder.
        arguments: everything that determines the content, as JSON values, including the sources with their hashes.
        fill: function that writes the shards to the given folder, and adds an entry for each complete shard.
        overwrite: whether to rebuild an existing folder.
        max_broken: maximum fraction of malformed entries. If more are malformed, no folder is built.
        facts: function that returns additional entries for the manifest; it is called after the shards were written.
        hashed: whether the manifest contains a hash of each shard. If False, it only contains sizes, because the shards are too
            large to read again.

    Returns:
        The folder's manifest, or None if the folder was already built with these arguments.

    Raises:
        UserError: if the folder has a different origin or was built with different arguments, or if the files cannot be used.
    """
    target = out / name
    if is_prepared(target) and not overwrite:
        check_same(target, arguments)
        return None
    building = out / f".building-{name}"
    _remove_stale(building, arguments)
    with OutputFolder(building, _JOURNAL_MANIFEST, arguments, (), overwrite=overwrite) as folder:
        _remove_leftovers(folder)
        try:
            counts = fill(folder)
            _check_usable(counts, name, max_broken)
        except WorkerDiedError:
            raise
        except UserError:
            folder.release()
            shutil.rmtree(building, ignore_errors=True)
            raise
        manifest = write_manifest(building, arguments, counts, facts(), hashed=hashed)
        folder.close()
    shutil.rmtree(building / "_journal")
    _put_in_place(building, target)
    return Manifest(target, manifest.values)


def _remove_stale(building: Path, arguments: Mapping[str, Any]) -> None:
    """Removes the working folder of an interrupted run with different arguments, unless that run is still active."""
    try:
        with (building / JOURNAL).open("r+", encoding="utf-8") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            notes = [json.loads(line) for line in journal.read().split("\n") if line.startswith('{"arguments"')]
            if notes and notes[0]["arguments"] != dict(arguments):
                shutil.rmtree(building)
    except (OSError, ValueError):  # there is no folder, or it is in use (reported later), or a line is incomplete
        return


def _remove_leftovers(folder: OutputFolder) -> None:
    """Removes files of a previous run that have no entry in the journal, because they may be incomplete or built with different
    arguments."""
    for path in folder.out.iterdir():
        if path.is_dir() and not (path.name == IMAGES and folder.entries):
            shutil.rmtree(path)
        elif path.is_file() and path.name != JOURNAL and path.name not in folder.entries:
            path.unlink()


def _check_usable(counts: Counts, name: str, max_broken: float) -> None:
    """Raises :class:`UserError` if too many entries are malformed, or if no entry gave a record."""
    broken = {reason: counts.skipped[reason] for reason in MALFORMED_REASONS if counts.skipped[reason]}
    read = sum(counts.read.values())
    bad = min(read, sum(broken.values()))  # several texts of an entry may be malformed
    if bad > max_broken * read:
        first = "; ".join(f"{number:,} {reason} ({counts.first(reason)})" for reason, number in broken.items())
        raise UserError(
            f"{bad:,} of {read:,} entries cannot be used: {first}",
            where=name,
            remedy="check that each file is the official one and complete, or skip these entries with --max-broken "
            f"{min(1.0, math.ceil(100 * bad / read) / 100):g}",
        )
    if not sum(counts.written.values()):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.skipped.items()) or "nothing was read"
        raise UserError(f"none of the {read:,} entries gave a record: {reasons}", where=name)


def _put_in_place(building: Path, target: Path) -> None:
    """Renames the working folder to its final name, replacing any existing folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".old-{target.name}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(building, target)
    shutil.rmtree(old, ignore_errors=True)
