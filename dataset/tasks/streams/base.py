"""Shared code of the pre-training streams."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import Field, field_validator, model_validator

from dataset.records.schema import CaptionLength, ImageIs, ImageKeys, RawRecord
from dataset.shards.blocks import BLOCK_RECORDS, BlockOrder, check_ranks
from dataset.shards.readers import Shards
from dataset.shards.samplers import Order, RandomOrder, RecordSource
from dataset.shards.weights import Weights
from dataset.tasks.account import Account
from dataset.text.hard_negatives import HardNegativesConfig
from utils import distributed
from utils.config import Config
from utils.errors import UserError
from utils.files import expanded
from utils.inputs import InputFolder, InputShards, InputWeightedShards, WeightedShards

E = TypeVar("E")

RANDOM_ROW_GROUP = 32_000_000
"""Maximum size of a row group in bytes with ``order: random``. A row group of a single row may be larger."""

logger = logging.getLogger(__name__)


class StreamConfig(Config):
    """Config of a stream."""

    files: InputWeightedShards = Field(
        description="shards: files, glob patterns, or folders of *.jsonl, *.json (JSON lines), *.tar and *.parquet; URLs of "
        "such files (https, s3); Parquet files of data sets on the Hugging Face Hub (hf:ORG/NAME, "
        "hf:ORG/NAME@REVISION/data/train-*); with a weight, {path: …, weight: 2}"
    )
    batch_size: int = Field(ge=1, description="examples of the stream in a micro-batch of one rank")
    weight: float = Field(1.0, ge=0, description="factor of the stream's losses in the sum of all losses")
    order: Literal["random", "blocks"] = Field(
        "random",
        description="random: shuffle all records; blocks: read runs of neighbouring records, each on one rank, and shuffle them "
        "with other runs, for data with slow random access",
    )
    lanes: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="with order: blocks, number of parts into which the data are split. Every rank reads the same number of "
        "parts, so lanes must be a multiple of the number of ranks; null: number of micro-batches in a global batch",
    )
    block_records: int | None = Field(
        None, ge=1, description=f"with order: blocks, maximum number of records in a block; null: {BLOCK_RECORDS:,}"
    )

    records_key: ClassVar[str] = "batch_size"
    """Config key of the number of records that a rank reads for a micro-batch."""

    @field_validator("order", mode="before")
    @classmethod
    def _sequential_is_gone(cls, value: Any) -> Any:
        if value == "sequential":
            raise ValueError(
                "set order: blocks, which also reads long runs, shuffles, and allows the number of ranks to change"
            )
        return value

    @model_validator(mode="after")
    def _only_blocks_have_lanes(self) -> StreamConfig:
        for key in ("lanes", "block_records"):
            if self.order != "blocks" and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} = {getattr(self, key)} has no effect with order: {self.order}; set order: blocks"
                )
        return self

    @property
    def records_per_batch(self) -> int:
        """Number of records that a rank reads for a micro-batch."""
        return int(getattr(self, self.records_key))

    @property
    def paths(self) -> list[str]:
        """The ``files`` entries without their weights."""
        return [entry.path if isinstance(entry, WeightedShards) else entry for entry in self.files]

    def weights_of(self, shards: Shards) -> Weights | None:
        """Returns the weights of the ``files`` entries, or None if all weights are 1."""
        weights = [entry.weight if isinstance(entry, WeightedShards) else 1 for entry in self.files]
        return None if all(weight == 1 for weight in weights) else Weights(self._runs(shards), weights)

    def _runs(self, shards: Shards) -> list[list[int]]:
        """Returns, for each entry of ``files``, the sizes of the runs of records that are split into blocks."""
        return shards.runs_by_entry(self.block_records or BLOCK_RECORDS)

    def open(self, shards: Shards, *, name: str, seed: int, ranks: int, step: int) -> RecordSource:
        """Returns the records of shards in the order of the stream.

        Args:
            shards: the shards.
            name: name of the stream, or ``<name>/clean``.
            seed: seed of the order.
            ranks: number of ranks.
            step: number of micro-batches in a global batch, over all ``ranks``.

        Raises:
            UserError: if the number of ranks does not divide the number of lanes, there are fewer records than lanes, or row
                groups of a Parquet shard are too large for a random order.
        """
        count = self.records_per_batch
        # A clean set has no weights.
        weights = None if name.endswith("/clean") else self.weights_of(shards)
        order: Order = RandomOrder(len(shards if weights is None else weights), count, seed=seed, stream=name)
        if self.order == "blocks":
            lanes = self.lanes or step
            block_records = self.block_records or BLOCK_RECORDS
            check_ranks(lanes, ranks, f"data.{name.removesuffix('/clean')}.lanes")
            order = BlockOrder(
                list(itertools.chain(*self._runs(shards))) if weights is None else weights.sizes,
                count,
                lanes=lanes,
                block_records=block_records,
                step=step,
                seed=seed,
                stream=name,
                key=shards.key,
            )
        elif (found := shards.large_row_group(RANDOM_ROW_GROUP)) is not None:
            path, size, rows = found
            raise UserError(
                f"{shards.key}: {path} has a row group of {size / 1e6:.0f} MB ({rows:,} rows), and order: random would decode it "
                f"for every record (limit: {RANDOM_ROW_GROUP / 1e6:.0f} MB); set order: blocks, or rewrite the file: python "
                f"run.py prepare parquet {path} --out FOLDER"
            )
        if shards.cached_bytes and distributed.rank() == 0:
            _warn_of_small_cache(shards, order, distributed.local_size() / ranks)
        return RecordSource(shards, order, name=name, seed=seed, weights=weights)


def _warn_of_small_cache(shards: Shards, order: Order, rank_fraction: float) -> None:
    """Logs a warning if the cache is so small that blocks will be fetched repeatedly.

    Args:
        shards: the shards.
        order: order of the records.
        rank_fraction: fraction of all ranks that run on this machine.
    """
    room = shards.remote.cache_gb * 1e9
    if isinstance(order, BlockOrder):
        in_use = min(1.0, order.records_in_use / len(shards)) * min(1.0, rank_fraction) * shards.cached_bytes
        reason = "a machine uses {} of blocks at a time"
        remedy = "or set fewer lanes, or a smaller block_records"
    else:
        in_use, reason = (
            shards.cached_bytes,
            "order: random reads from all {} of the shards at the same time, and fetches 1 MiB or a row group for each record",
        )
        remedy = "or set order: blocks"
    if in_use > room:
        logger.warning(
            "%s: %s, but the cache holds only %.2f GB, so blocks are fetched repeatedly; raise data.remote.cache_gb, %s",
            shards.key,
            reason.format(f"{in_use / 1e9:.2f} GB"),
            room / 1e9,
            remedy,
        )


class ImageRecordsConfig(StreamConfig):
    """A stream whose records have an image."""

    image_key: str = Field("image", description="key of the image in a JSON record")
    image_is: ImageIs = Field(
        "auto",
        description="path: the value is a path; base64: the value is the encoded file in base64; auto: detect which from its "
        "first characters",
    )
    image_root: InputFolder | None = Field(
        None, description="folder that relative image paths start from; null: the folder of the shard"
    )
    caption_key: str = Field("caption", description="key of the caption of the whole image")
    captions: CaptionLength = Field(
        "short",
        description="texts of records and phrases that also have a long_caption: short; long; sample, one of the two at random; "
        "or both, each with its own losses; data.text.max_tokens limits the length",
    )
    hard_negatives: HardNegativesConfig | None = Field(
        None,
        description="texts that differ from a caption or phrase in one detail and are wrong: {}, or {count: 2, sources: "
        "[given, replaced]}; null: only the texts of other images and boxes are negatives",
    )

    def keys(self) -> ImageKeys:
        """Returns the keys that locate the image of a record."""
        root = expanded(self.image_root) if self.image_root is not None else None
        return ImageKeys(self.image_key, self.image_is, root)


class CleanSetConfig(Config):
    """A smaller set of cleaner pairs, which all ranks use in some steps. The other steps use the stream's own, noisy set and have
    no matching loss (as in the authors' code for the 1B set).

    The number of steps in an epoch is computed from the size of the noisy set, and includes steps that read the clean set. An
    epoch therefore reads only the fraction 1 - ``probability`` of the noisy set, each record at most once, and the selected
    records differ between epochs.
    """

    files: InputShards = Field(description="shards of the clean pairs, in the same forms as the stream's `files`")
    probability: float = Field(gt=0, lt=1, description="probability that a step reads this set")
    caption_key: str | None = Field(None, description="key of the caption; null: the key of the stream")


def read_examples(
    source: RecordSource, number: int, account: Account, make: Callable[[RawRecord, np.random.Generator], E | None]
) -> list[E | None]:
    """Reads the records of micro-batch ``number`` and makes an example of each.

    Args:
        source: records of the stream, in reading order.
        number: index of the micro-batch.
        account: counts the records.
        make: function that parses and augments a record. If it raises anything other than UserError, the record is counted as
            broken. It returns None if it has already reported all parts of the record as broken.

    Returns:
        An example for each record, or None if the record cannot be used.
    """
    examples: list[E | None] = []
    for index, rng in source.samples(number):
        with account.record(source.name, source.shards.location(index)) as record:
            raw = source.shards.read(index)
            record.location = raw.location  # for a tar, this has the name of the member
            record.example = make(raw, rng)
        examples.append(record.example)
    return examples
