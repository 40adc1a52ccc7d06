"""Prepares sets of URLs that are small enough for duplicate detection: each URL is used once, and missing images are listed.

The list for img2dataset contains every pair that may be used, with its cleaned caption. It contains each URL once, and no
held-out photographs. The shards that img2dataset writes become the data set's folder. A shard whose records may all be used is
linked; otherwise, the usable records are copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dataset.image_ids import ids_in_url
from dataset.prepare.building import WorkerDiedError
from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.finders import held_out_contents
from dataset.prepare.img2dataset import Form, is_url, place_shard
from dataset.prepare.missing import write_missing
from dataset.prepare.output import OutputFolder
from dataset.prepare.preparation import Preparation
from dataset.prepare.processes import in_order
from dataset.prepare.sets.base import Pair, Pairs
from dataset.prepare.verify import image_fault
from dataset.records.broken import BrokenRecordError
from dataset.shards.scanning import scan_shard
from dataset.shards.tars import key_of, location_of, read_record
from utils.files import replacing
from utils.progress import progress_bar

HEADER = "url\tcaption\n"
LIST = "urls.tsv"


class ComparedPairs:
    """The URLs of a data set (:class:`~dataset.prepare.addresses.Addresses`)."""

    form: Form = "tsv"
    columns: tuple[str, ...] = ()
    hashed = True

    def __init__(self, preparation: Preparation, pairs: Pairs):
        self.preparation, self.pairs = preparation, pairs
        self.files = pairs.files(preparation.raw)
        self._arguments = preparation.arguments(self.files)
        self._copies: dict[bytes, str] = {}
        """Maps the content hash of each held-out image to its split, if images are verified."""

    @property
    def list_path(self) -> Path:
        return self.preparation.downloads / f"{self.preparation.name}_urls" / LIST

    def list_arguments(self) -> Mapping[str, Any]:
        # The list does not depend on any images.
        return {key: value for key, value in self._arguments.items() if key != "verify"}

    def write_list(self, output: OutputFolder) -> Counts:
        """Writes the list, with a header."""
        counts = Counts()
        total = self.preparation.data_set.sizes.get("pairs")
        seen: set[bytes] = set()
        with replacing(output.out / LIST) as part, part.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(HEADER)
            pairs = self.pairs.read(self.files, counts)
            for pair in progress_bar(pairs, total=total, desc=self.preparation.name, unit="pair"):
                caption = self._caption(pair, seen, counts)
                if caption is not None:
                    counts.written["pairs"] += 1
                    stream.write(f"{pair.url}\t{caption}\n")
        return counts

    def _caption(self, pair: Pair, seen: set[bytes], counts: Counts) -> str | None:
        """Returns the cleaned caption of a pair. If the pair must not be used, counts the reason and returns None. ``seen``
        contains the hashes of the URLs that were already used."""
        held_out, digest, ids = self.preparation.held_out, _digest(pair.url), ids_in_url(pair.url)
        if (split := held_out.find(ids)) is not None:
            detail = "; ".join(filter(None, (pair.url[:100], held_out.linked(ids))))
            counts.skip(f"held out by {split}", pair.location, detail)
        elif pair.url in self.preparation.options.missing:
            counts.skip("on the list of missing images", pair.location, pair.url[:100])
        elif digest in seen:
            counts.skip("duplicate address", pair.location, pair.url[:100])
        elif not is_url(pair.url):
            counts.skip("wrong columns", pair.location, f"{pair.url[:60]!r} is not a URL")
        elif (caption := cleaned_text(pair.caption, counts, pair.location)) is not None:
            seen.add(digest)
            return caption
        return None

    def shard_folders(self) -> list[Path]:
        return [self.preparation.downloads / f"{self.preparation.name}_shards"]

    def shard_arguments(self) -> Mapping[str, Any]:
        if not self.preparation.options.verify:
            return self._arguments
        contents = held_out_contents(self.preparation.verified_held_out, self.preparation.held_out)
        self._copies = {bytes.fromhex(content): split for content, split in contents.items()}
        copies = hashlib.sha256(b"".join(sorted(self._copies))).hexdigest()
        return {**self._arguments, "held_out_contents": copies}

    def take_shards(self, output: OutputFolder, shards: list[Path]) -> Counts:
        """Writes the shards. If images are verified, broken images, repeated images and copies of held-out images are skipped.
        The URLs of the list without an image are written to the list of missing images."""
        options = self.preparation.options
        records = _UsableRecords({_digest(url) for url in _urls(self.list_path)}, self._copies)
        scan = partial(_scan, verify=options.verify)
        with closing(in_order(scan, shards, options.workers, _died)) as results:
            bar = progress_bar(results, total=len(shards), desc=self.preparation.name, unit="shard")
            for path, scanned in zip(shards, bar, strict=True):
                kept = {record.key for record in scanned if records.take(record, path)}
                if kept:
                    place_shard(path, output.out / path.name, kept if len(kept) < len(scanned) else None)
        missing = [url for url in _urls(self.list_path) if _digest(url) not in records.found]
        records.counts.skipped["address without image"] += sum(_digest(url) not in records.unusable for url in missing)
        write_missing(output.out, missing)
        return records.counts


class _Scanned(NamedTuple):
    """A record of a shard: the key that its members share, its URL, what is wrong with it, and the image's hash if images are
    verified."""

    key: str
    url: str
    fault: str
    content: bytes


def _scan(path: Path, verify: bool) -> list[_Scanned]:
    """Reads the records of a shard; runs in a worker process."""
    scanned = scan_shard(path, str(path))
    records = []
    with path.open("rb") as file:
        for span, detached in scanned.records(path.stat().st_size):
            key = key_of(location_of(file, path, span, detached).removeprefix(f"{path}:"))
            try:
                raw = read_record(file, path, span, detached)
                fault, content = "", b""
                if raw.image is None:
                    fault = "missing image"
                elif verify:
                    fault = image_fault(raw.image, raw.location)
                    content = hashlib.blake2b(raw.image, digest_size=16).digest()
                records.append(_Scanned(key, str(raw.values.get("url") or ""), fault, content))
            except BrokenRecordError as error:
                records.append(_Scanned(key, "", error.kind, b""))
    return records


def _died(path: Path) -> list[_Scanned]:
    raise WorkerDiedError(f"{path}: a process that read it was killed, perhaps because memory ran out; lower --workers")


class _UsableRecords:
    """Decides which records of the shards are used.

    Args:
        allowed: hashes of the URLs in the list.
        copies: maps the content hash of each held-out image to its split.

    Attributes:
        found: hashes of the URLs with an image.
        unusable: hashes of the URLs whose image cannot be used.
        counts: counts of used and skipped records.
    """

    def __init__(self, allowed: set[bytes], copies: Mapping[bytes, str]):
        self.allowed, self.copies = allowed, copies
        self.found: set[bytes] = set()
        self.unusable: set[bytes] = set()
        self.counts = Counts()
        self._contents: set[bytes] = set()

    def take(self, record: _Scanned, path: Path) -> bool:
        """Returns True if a record of the shard ``path`` is used. Otherwise counts the reason and returns False."""
        self.counts.read["images"] += 1
        digest, reason = _digest(record.url), ""
        if record.fault:
            self.unusable.add(digest)
            reason = record.fault
        elif digest not in self.allowed:
            reason = "not on the list"
        elif digest in self.found:
            reason = "duplicate address"
        else:
            self.found.add(digest)
            if record.content in self.copies:
                reason = f"held out by {self.copies[record.content]} (a copy)"
            elif record.content and record.content in self._contents:
                reason = "duplicate image"
            else:
                self._contents.add(record.content)
        if reason:
            self.counts.skip(reason, f"{path}:{record.key}", record.url[:100])
        else:
            self.counts.written.update(records=1, images=1)
        return not reason


def _urls(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        next(stream)
        for line in stream:
            yield line.partition("\t")[0]


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode("utf-8", "backslashreplace"), digest_size=8).digest()
