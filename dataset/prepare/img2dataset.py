"""The command that runs img2dataset, and its output: shards of images with their URLs, and statistics for each shard."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from dataset.shards.tars import key_of
from utils.errors import UserError
from utils.files import read_json, replacing

ListFormat = Literal["tsv", "parquet"]
"""File format of a list of URLs."""


def download_command(addresses: Path, shards: Path, list_format: ListFormat, columns: Sequence[str] = ()) -> str:
    """Returns the command that downloads the images of a list, or of a folder of lists, and keeps the given additional
    ``columns``.

    Images are shrunk so that the shorter side has 384 pixels; smaller images are not enlarged. 384 is the largest input size of
    any pre-training config with random crops.
    """
    kept = f" --save_additional_columns {shlex.quote(json.dumps(list(columns)))}" if columns else ""
    return (
        f"img2dataset --url_list {shlex.quote(str(addresses))} --input_format {list_format} --url_col url --caption_col caption "
        f"--output_format webdataset --output_folder {shlex.quote(str(shards))} "
        "--image_size 384 --resize_mode keep_ratio --resize_only_if_bigger True --processes_count 16 --thread_count 64"
        f"{kept}"
    )


def finished_shards(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the finished and the unfinished shards of a folder. Both lists are empty if the folder does not exist."""
    tars = sorted(folder.glob("*.tar"))
    finished = [path for path in tars if _statistics_of(path).exists()]
    return finished, [path for path in tars if path not in finished]


def shards_digest(shards: Sequence[Path]) -> str:
    """Returns a hash that distinguishes downloads without reading the images. It covers the names and sizes of the shards, and
    their statistics, which contain times."""
    digest = hashlib.sha256()
    for path in shards:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(_statistics_of(path).read_bytes())
    return digest.hexdigest()


def statuses_of(path: Path) -> Mapping[str, int]:
    """Returns the number of times that each status occurred in a shard: "success", or the reason why the image is missing."""
    try:
        values = read_json(_statistics_of(path))
        return {str(status): int(number) for status, number in values["status_dict"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"statistics that cannot be read": 1}


def _statistics_of(path: Path) -> Path:
    """Returns the path of the file that img2dataset writes when a shard is finished."""
    return path.with_name(f"{path.stem}_stats.json")


def place_shard(source: Path, target: Path, kept: set[str] | None) -> None:
    """Puts a shard under a new path, by a hard link if possible.

    Args:
        source: the shard.
        target: its new path.
        kept: keys of the records to keep, which are copied; if None, the whole shard is kept.
    """
    if kept is None:
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # a different disk, or a file system without links
            with replacing(target) as part:
                shutil.copyfile(source, part)
        return
    with replacing(target) as part, tarfile.open(source, "r:") as old, tarfile.open(part, "w:") as new:
        for member in old:
            if member.isfile() and key_of(member.name) in kept:
                new.addfile(member, old.extractfile(member))


def check_unique_names(files: Sequence[Path]) -> None:
    """Raises :class:`UserError` if two files have the same name, because both would be written to the same folder."""
    first: dict[str, Path] = {}
    for path in files:
        if (other := first.setdefault(path.name, path)) != path:
            raise UserError(
                f"{other} and {path} have the same name", remedy="rename one of them, or prepare the sets one by one"
            )


def is_url(text: str) -> bool:
    """Returns True if a text is a single web URL."""
    return text.lower().startswith(("http://", "https://")) and len(text.split()) == 1 and text.isprintable()
