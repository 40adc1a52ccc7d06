"""Data sets of pre-training: what every one has, its official files, what is made of them, and the request to make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from dataset.prepare.building import Work
from dataset.prepare.held_out import HeldOut
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.verify import Verified
from dataset.prepare.video_clips import VideoOptions


@dataclass(frozen=True)
class Request:
    """A folder of records that is asked for: official files, the ids that may not be used, and the folder for the records;
    ``workers``: processes that read the files; ``videos``: how videos become records."""

    raw: RawFolder
    held_out: HeldOut
    folder: Path
    excluded: frozenset[str] = frozenset()
    verified: Mapping[Path, Verified] = field(default_factory=dict)
    workers: int = 1
    videos: VideoOptions = field(default_factory=VideoOptions)


class Finder(Protocol):
    """Finds images or videos: ``missing`` has the names of those that are not there; ``annotations_alone``: none at all is."""

    missing: list[str]

    @property
    def annotations_alone(self) -> bool: ...


class Opened(NamedTuple):
    """A conversion that is ready: the ``sources`` that it reads, and its ``work``, which starts when it is called with the folder
    of the shards, where it may keep files meanwhile. ``images``: knows afterwards which images or videos are missing."""

    sources: list[RawFile]
    work: Callable[[Path], Work]
    images: Finder


@dataclass(frozen=True)
class Product:
    """A folder of records that is made of a data set.

    ``folder``: its name, as the configs have it. ``records``: what a record is. ``open``: looks the official files up.
    ``measures``: name of the held-out split that it is made of; None: it is trained on.
    """

    folder: str
    records: str
    open: Callable[[Request], Opened]
    measures: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Args:
        title: its name.
        home: where it comes from.
        licence: as its home states it; not verified here.
        files: official files, with what they are for.
        sizes: official counts by unit, from the sets' own pages; the manifest compares them.
        products: what is made.
        required: names of held-out splits that have to be known (:data:`dataset.prepare.held_out.SPLITS`).
    """

    title: str
    home: str
    licence: str
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    products: tuple[Product, ...]
    required: tuple[str, ...]
