"""The preparation of a data set: its files, the images that records must not contain, and the content of its manifests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dataset.image_ids import ids_in_path
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import DataSet, Files, Splits
from dataset.prepare.held_out import VIDEO_SPLITS, HeldOut, contradictory_links, read_held_out
from dataset.prepare.options import Options
from dataset.prepare.output_folder import OutputFolder
from dataset.prepare.raw_folder import RawFolder
from dataset.prepare.results import report_result
from dataset.prepare.verify import Verified, verify_images
from dataset.prepare.whole_folder import build_folder
from dataset.shards.making import write_entries
from utils.suffixes import IMAGE_SUFFIXES

DOWNLOADS = "_download"
"""Name of the folder below ``--out`` for lists of URLs and for the images downloaded from them."""


@dataclass(frozen=True)
class Preparation:
    """The preparation of a data set.

    Attributes:
        data_set: declaration of the data set.
        options: the user's options.
        raw: the folder of official files.
        searched: the folders that are searched for held-out images and the files that list them.
        held_out: the held-out images.
    """

    data_set: DataSet
    options: Options
    raw: RawFolder
    searched: RawFolder
    held_out: HeldOut

    @classmethod
    def start(cls, data_set: DataSet, options: Options) -> Preparation:
        """Reads the held-out images.

        Raises:
            UserError: a folder or a file of a required held-out split is missing, or a file cannot be read.
        """
        raw = RawFolder([options.raw])
        searched = RawFolder([options.raw, *options.held_out]) if options.held_out else raw
        if isinstance(data_set.makes, Splits):  # the data set's own splits are held out
            return cls(data_set, options, raw, searched, HeldOut())
        splits = VIDEO_SPLITS if data_set.has_videos else None
        held_out = read_held_out(searched, data_set.required, options.without, splits)
        return cls(data_set, options, raw, searched, held_out)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.data_set.name

    @property
    def downloads(self) -> Path:
        """The folder for lists of URLs and for the images downloaded from them."""
        return self.options.out / DOWNLOADS

    def report(self, line: str) -> None:
        """Prints a line about the data set."""
        self.options.report(f"{self.name}: {line}")

    def arguments(self, files: Files) -> dict[str, Any]:
        """Returns everything that determines the content of a folder built from official files, as JSON values."""
        options = self.options
        return {
            "sources": {name: file.digest() for name, file in files.items()},
            "held_out": {name: file.digest() for name, file in self.held_out.sources.items()},
            "links": {file.path.name: file.digest() for file in self.held_out.links.files},
            "without": sorted(options.without),
            "missing": hashlib.sha256("\n".join(sorted(options.missing)).encode()).hexdigest(),
            "verify": options.verify,
        }

    def make(
        self,
        folder: Path,
        arguments: Mapping[str, Any],
        fill: Callable[[OutputFolder], Counts],
        facts: Callable[[], Mapping[str, Any]] = dict,
        *,
        sizes: Mapping[str, int] | None = None,
        hashed: bool = True,
        index: bool = True,
    ) -> None:
        """Builds a folder, unless it already exists, and reports the result.

        Args:
            folder: path of the folder.
            arguments: everything that determines the folder's content.
            fill: function that writes the shards; see :func:`~dataset.prepare.whole_folder.build_folder`.
            facts: function that returns additional entries for the manifest.
            sizes: official counts to compare with; if None, the data set's official counts.
            hashed: see :func:`~dataset.prepare.whole_folder.build_folder`.
            index: whether to build the index of the shards.
        """
        manifest = build_folder(
            folder.parent,
            folder.name,
            arguments,
            fill,
            overwrite=self.options.overwrite,
            max_broken=self.options.max_broken,
            facts=lambda: {**self._facts(), **facts()},
            hashed=hashed,
        )
        if index:
            write_entries(folder, self.options.workers)
        report_result(folder, manifest, self.data_set.sizes if sizes is None else sizes, self.options.report)

    @cached_property
    def verified(self) -> dict[Path, Verified]:
        """Results of decoding all images of the data set and the held-out images; empty without ``--verify``."""
        return self._decoded(_images(self.raw) | self._held_out_images())

    @cached_property
    def verified_held_out(self) -> dict[Path, Verified]:
        """Results of decoding the held-out images; empty without ``--verify``."""
        return self._decoded(self._held_out_images())

    def _decoded(self, images: set[Path]) -> dict[Path, Verified]:
        if not self.options.verify:
            return {}
        return verify_images(sorted(images), self.options.out / "_verified.jsonl", self.options.workers)

    def _held_out_images(self) -> set[Path]:
        """Returns the images whose path contains the id of a held-out image."""
        images = _images(self.searched)
        return {path for path in images if self.held_out.find(ids_in_path(path.as_posix())) is not None}

    def _facts(self) -> dict[str, Any]:
        facts = {"data_set": self.data_set.title, "official_sizes": dict(self.data_set.sizes)}
        if isinstance(self.data_set.makes, Splits):
            return facts
        return facts | {
            "leaks": {
                "removed": "every image of these splits",
                "splits": {name: str(file) for name, file in self.held_out.sources.items()},
                "ids": len(self.held_out.split_of),
                "not_checked": [*self.held_out.absent, *self.options.without],
                "not_linked": self.held_out.links.absent,
                "contradictory": contradictory_links(self.held_out.links),
            },
        }


def _images(raw: RawFolder) -> set[Path]:
    """Returns all images below the folders."""
    return {path for paths in raw.files.values() for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}
