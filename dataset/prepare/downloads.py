"""Sets of addresses: the list for img2dataset, which downloads the images, and what it wrote, read back.

The list has every pair that may be used: captions cleaned, each address once, no photograph that is held out. The shards that
img2dataset writes become the set's folder: as they are where every record may be used, and else written anew without those that
may not.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from dataset.image_ids import ids_in_url
from dataset.prepare.building import WorkerDiedError
from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.held_out import HeldOut
from dataset.prepare.output import OutputFolder
from dataset.prepare.processes import in_order
from dataset.prepare.sets.web import Pair
from dataset.prepare.verify import image_fault
from dataset.records.broken import BrokenRecordError
from dataset.shards.scanning import scan_shard
from dataset.shards.tars import location_of, read_record
from utils.files import read_json, replacing
from utils.progress import progress_bar

HEADER = "url\tcaption\n"


def command_of_list(urls: Path, shards: Path, form: Literal["tsv", "parquet"]) -> str:
    """The command that downloads the images of a list, or of a folder of lists.

    Their short sides are at least 384 pixels where the originals' are, the largest that a pre-training config uses with random
    crops.
    """
    return (
        f"img2dataset --url_list {shlex.quote(str(urls))} --input_format {form} --url_col url --caption_col caption "
        f"--output_format webdataset --output_folder {shlex.quote(str(shards))} "
        "--image_size 384 --resize_mode keep_ratio --resize_only_if_bigger True --processes_count 16 --thread_count 64"
    )


def write_url_list(
    path: Path,
    pairs: Iterator[Pair],
    counts: Counts,
    held_out: HeldOut,
    excluded: frozenset[str],
    total: int,
) -> None:
    """Write the list of a set's addresses and cleaned captions, a header first."""
    seen: set[bytes] = set()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(HEADER)
        with progress_bar(total=total, desc=path.stem, unit="pair") as bar:
            for pair in pairs:
                bar.update()
                digest = _digest(pair.url)
                if (split := held_out.find(ids := ids_in_url(pair.url))) is not None:
                    detail = "; ".join(filter(None, (pair.url[:100], held_out.linked(ids))))
                    counts.leave_out(f"held out by {split}", pair.place, detail)
                elif pair.url in excluded:
                    counts.leave_out("on the list of missing images", pair.place, pair.url[:100])
                elif digest in seen:
                    counts.leave_out("duplicate address", pair.place, pair.url[:100])
                elif not is_address(pair.url):
                    counts.leave_out("wrong columns", pair.place, f"{pair.url[:60]!r} is no address")
                elif (caption := cleaned_text(pair.caption, counts, pair.place)) is not None:
                    seen.add(digest)
                    counts.made["pairs"] += 1
                    stream.write(f"{pair.url}\t{caption}\n")


def is_address(text: str) -> bool:
    """Whether a text is one address of the web."""
    return text.lower().startswith(("http://", "https://")) and len(text.split()) == 1 and text.isprintable()


@dataclass
class Downloaded:
    """The result of img2dataset, held against the list that it was given.

    ``rot``: addresses of the list without an image; ``statuses``: how often each status occurred, as img2dataset counted.
    """

    rot: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


def finished_shards(folder: Path) -> tuple[list[Path], list[str]]:
    """The shards of img2dataset that are finished, and the names of those that are not."""
    tars = sorted(folder.glob("*.tar"))
    finished = [path for path in tars if statistics_of(path).exists()]
    return finished, [path.name for path in tars if path not in finished]


def shards_digest(shards: list[Path]) -> str:
    """A hash that tells downloads apart without reading the images: names and sizes, and the statistics with their times."""
    found = hashlib.sha256()
    for path in shards:
        found.update(f"{path.name} {path.stat().st_size}\n".encode())
        found.update(statistics_of(path).read_bytes())
    return found.hexdigest()


def take_shards(
    urls: Path, folder: OutputFolder, shards: list[Path], *, verify: bool, workers: int, held_out: Mapping[bytes, str]
) -> tuple[Counts, Downloaded]:
    """Put the shards into ``folder``, by a hard link where that is possible, without the records that may not be used.

    Args:
        urls: the list of what may be used.
        folder: the folder of records.
        shards: the finished shards.
        verify: decode every image, and skip images that are broken, repeated, or a copy of a held-out image.
        workers: processes.
        held_out: the split of each held-out image by the hash of its content.
    """
    allowed = _read_digests(urls)
    counts, downloaded = Counts(), Downloaded()
    found: set[bytes] = set()
    contents: set[bytes] = set()
    unusable: set[bytes] = set()
    scan = functools.partial(_scan, verify=verify)
    with closing(in_order(scan, shards, workers, _died)) as scanned:
        for path, records in zip(
            shards,
            progress_bar(scanned, total=len(shards), desc=folder.out.name.removeprefix(".building-"), unit="shard"),
            strict=True,
        ):
            downloaded.statuses.update(statuses_of(path))
            counts.read["images"] += len(records)
            kept = {
                record.stem for record in records if _keep(record, path, allowed, found, contents, held_out, counts)
            }
            unusable |= {_digest(record.url) for record in records if record.fault}
            counts.made["records"] += len(kept)
            counts.made["images"] += len(kept)
            if kept:
                place_shard(path, folder.out / path.name, kept if len(kept) < len(records) else None)
    downloaded.rot = _not_in(urls, found)
    counts.left_out["address without image"] += sum(_digest(url) not in unusable for url in downloaded.rot)
    return counts, downloaded


class _Scanned(NamedTuple):
    """A record of a shard: the name of its members, its address, what is wrong with it, and if it was verified its hash."""

    stem: str
    url: str
    fault: str
    content: bytes


def _scan(path: Path, verify: bool) -> list[_Scanned]:
    """The records of a shard; runs in a worker process."""
    scanned = scan_shard(path, str(path))
    records = []
    with path.open("rb") as file:
        for span, apart in scanned.records(path.stat().st_size):
            stem = location_of(file, path, span, apart).removeprefix(f"{path}:").partition(".")[0]
            try:
                raw = read_record(file, path, span, apart)
                fault, content = "", b""
                if raw.image is None:
                    fault = "missing image"
                elif verify:
                    fault, content = _verified(raw.image, raw.location)
                records.append(_Scanned(stem, str(raw.values.get("url") or ""), fault, content))
            except BrokenRecordError as error:
                records.append(_Scanned(stem, "", error.kind, b""))
    return records


def _verified(image: bytes, place: str) -> tuple[str, bytes]:
    fault = image_fault(image, place)
    return fault, hashlib.blake2b(image, digest_size=16).digest()


def _died(path: Path) -> list[_Scanned]:
    raise WorkerDiedError(f"{path}: a process that read it was killed; is there enough memory? give fewer --workers")


def _keep(
    record: _Scanned,
    path: Path,
    allowed: set[bytes],
    found: set[bytes],
    contents: set[bytes],
    held_out: Mapping[bytes, str],
    counts: Counts,
) -> bool:
    place = f"{path}:{record.stem}"
    digest = _digest(record.url)
    if record.fault:
        counts.leave_out(record.fault, place, record.url[:100])
    elif digest not in allowed:
        counts.leave_out("not on the list", place, record.url[:100])
    elif digest in found:
        counts.leave_out("duplicate address", place, record.url[:100])
    elif record.content in held_out:
        found.add(digest)
        counts.leave_out(f"held out by {held_out[record.content]} (a copy)", place, record.url[:100])
    elif record.content and record.content in contents:
        found.add(digest)
        counts.leave_out("duplicate image", place, record.url[:100])
    else:
        found.add(digest)
        contents.add(record.content)
        return True
    return False


def place_shard(source: Path, target: Path, kept: set[str] | None) -> None:
    """The shard under its new path, with the records ``kept``; None: all of them, as it is."""
    if kept is None:
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another disk, or one without links
            with replacing(target) as part:
                shutil.copyfile(source, part)
        return
    with replacing(target) as part, tarfile.open(source, "r:") as old, tarfile.open(part, "w:") as new:
        for member in old:
            if member.isfile() and member.name.partition(".")[0] in kept:
                new.addfile(member, old.extractfile(member))


def statistics_of(path: Path) -> Path:
    """The file that img2dataset writes when a shard is finished."""
    return path.with_name(f"{path.stem}_stats.json")


def statuses_of(path: Path) -> Mapping[str, int]:
    """How often each status occurred in a shard: "success", or why there is no image."""
    try:
        values = read_json(statistics_of(path))
        return {str(status): int(number) for status, number in values["status_dict"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"statistics that cannot be read": 1}


def _urls(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        next(stream)
        for line in stream:
            yield line.partition("\t")[0]


def _read_digests(path: Path) -> set[bytes]:
    return {_digest(url) for url in _urls(path)}


def _not_in(path: Path, found: set[bytes]) -> list[str]:
    return [url for url in _urls(path) if _digest(url) not in found]


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode("utf-8", "backslashreplace"), digest_size=8).digest()
