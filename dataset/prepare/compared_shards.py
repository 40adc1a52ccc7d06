"""Compares the shards that img2dataset wrote for a data set with each other, with their list, and with held-out images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dataset.prepare.counts import Counts
from dataset.prepare.url_shards import record_key, shard_records
from dataset.prepare.verify import image_fault


class ScannedRecord(NamedTuple):
    """A record of a shard whose image can be used: its key, its URL, and a hash of its image if images are verified."""

    key: str
    url: str
    content: bytes


class ScannedShard(NamedTuple):
    """The usable records of a shard, the URLs of the other records, and the counts."""

    records: list[ScannedRecord]
    unusable: list[str]
    counts: Counts


def scan_records(verify: bool, path: Path) -> ScannedShard:
    """Reads the records of a shard, and decodes their images with ``verify``; runs in a worker process, on any machine."""
    scanned = ScannedShard([], [], Counts())
    for record in shard_records(path, scanned.counts):
        url, content, fault = str(record.values.get("url") or ""), b"", ""
        if record.image is None:
            fault = "missing image"
        elif verify:
            fault = image_fault(record.image, record.location)
            content = hashlib.blake2b(record.image, digest_size=16).digest()
        if fault:
            scanned.unusable.append(url)
            scanned.counts.skip(fault, record.location, url[:100])
        else:
            scanned.records.append(ScannedRecord(record_key(record, path), url, content))
    return scanned


class Comparison:
    """Decides which records of a data set's shards are used: each URL of the list once, and each image once.

    Args:
        urls: the URLs of the list.
        copies: maps the content hash of each held-out image to its split.

    Attributes:
        counts: counts of used and skipped records.
    """

    def __init__(self, urls: Iterable[str], copies: Mapping[bytes, str]):
        self.counts = Counts()
        self._listed, self._copies = set(map(_digest, urls)), copies
        self._found: set[bytes] = set()
        self._unusable: set[bytes] = set()
        self._contents: set[bytes] = set()

    def kept(self, shard: ScannedShard, path: Path) -> set[str]:
        """Returns the keys of the records of the shard ``path`` that are used, and counts why the others are not."""
        self._unusable.update(map(_digest, shard.unusable))
        self.counts.add(shard.counts)
        keys = set()
        for record in shard.records:
            if reason := self._fault(_digest(record.url), record.content):
                self.counts.skip(reason, f"{path}:{record.key}", record.url[:100])
            else:
                keys.add(record.key)
                self.counts.written.update(records=1, images=1)
        return keys

    def missing(self, urls: Iterable[str]) -> list[str]:
        """Returns the URLs of the list without a record, and counts them, except for URLs whose image cannot be used."""
        missing = [url for url in urls if _digest(url) not in self._found]
        self.counts.skipped["address without image"] += sum(_digest(url) not in self._unusable for url in missing)
        return missing

    def _fault(self, url: bytes, content: bytes) -> str:
        """Returns the reason why a record is not used; "" if it is used."""
        if url not in self._listed:
            return "not on the list"
        if url in self._found:
            return "duplicate address"
        self._found.add(url)
        if content in self._copies:
            return f"held out by {self._copies[content]} (a copy)"
        if content and content in self._contents:
            return "duplicate image"
        self._contents.add(content)
        return ""


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode("utf-8", "backslashreplace"), digest_size=8).digest()
