"""Builds a folder of shards from URLs in two steps: it writes a list of URLs for img2dataset, which downloads the images, and
later takes over the shards that img2dataset wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dataset.prepare.compared_pairs import ComparedPairs
from dataset.prepare.counts import Counts
from dataset.prepare.img2dataset import (
    Form,
    check_unique_names,
    download_command,
    finished_shards,
    shards_digest,
    statuses_of,
)
from dataset.prepare.output import OutputFolder
from dataset.prepare.parquet_pairs import PairsByFile
from dataset.prepare.preparation import Preparation
from dataset.prepare.sets.base import Pairs, ParquetPairs


class Addresses(Protocol):
    """The URLs of a data set.

    Attributes:
        form: file format of the list for img2dataset.
        columns: additional columns of the list, which img2dataset must keep.
        hashed: whether the manifest contains a hash of each shard.
    """

    form: Form
    columns: tuple[str, ...]
    hashed: bool

    @property
    def list_path(self) -> Path:
        """Path of the list below its output folder, or of the folder if it contains several lists."""
        ...

    def list_arguments(self) -> Mapping[str, Any] | None:
        """Returns the values that determine the content of the list, or None if there is no list because the shards are already
        downloaded."""
        ...

    def write_list(self, output: OutputFolder) -> Counts:
        """Writes the URLs and captions that may be used."""
        ...

    def shard_folders(self) -> list[Path]:
        """Returns the folders of the shards."""
        ...

    def shard_arguments(self) -> Mapping[str, Any]:
        """Returns the values that, besides the shards, determine the content of the folder of records."""
        ...

    def take_shards(self, output: OutputFolder, shards: list[Path]) -> Counts:
        """Writes the shards without the records that must not be used."""
        ...


def make_from_addresses(preparation: Preparation, makes: Pairs | ParquetPairs) -> None:
    """Builds the list of a data set, and its folder of records once there are finished shards.

    Raises:
        UserError: official files are missing or cannot be used, or a folder has a different origin.
    """
    addresses: Addresses = (
        ComparedPairs(preparation, makes) if isinstance(makes, Pairs) else PairsByFile(preparation, makes)
    )
    listed = addresses.list_arguments()
    if listed is not None:
        folder = preparation.downloads / f"{preparation.name}_urls"
        preparation.make(folder, listed, addresses.write_list, index=False)
    shards: list[Path] = []
    for folder in addresses.shard_folders():
        finished, unfinished = finished_shards(folder)
        shards += finished
        if unfinished:
            preparation.report(
                f"{len(unfinished):,} shards are unfinished and skipped, first {unfinished[0]}; rerun the img2dataset command"
            )
    check_unique_names(shards)
    if not shards:
        preparation.report("download the images with img2dataset (pip install img2dataset), then rerun this command:")
        command = download_command(
            addresses.list_path,
            preparation.downloads / f"{preparation.name}_shards",
            addresses.form,
            addresses.columns,
        )
        distributor = " --distributor ray" if preparation.options.ray else ""
        preparation.options.report(f"  {command}{distributor}")
        return
    statuses: Counter[str] = Counter()

    def fill(output: OutputFolder) -> Counts:
        for path in shards:
            statuses.update(statuses_of(path))
        return addresses.take_shards(output, shards)

    arguments = {**addresses.shard_arguments(), "shards": shards_digest(shards)}
    folder = preparation.options.out / preparation.name
    facts = {"statuses": statuses}
    preparation.make(folder, arguments, fill, lambda: facts, hashed=addresses.hashed)
