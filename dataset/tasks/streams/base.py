"""Shared code of the pre-training streams."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from dataset.config import BLOCK_RECORDS, ImageRecordsConfig, StreamConfig, check_lanes
from dataset.records.schema import ImageKeys, RawRecord
from dataset.shards.blocks import BlockOrder
from dataset.shards.readers import Shards
from dataset.shards.samplers import Order, RandomOrder, RecordSource
from dataset.shards.weights import Weights
from dataset.tasks.account import Account
from utils import distributed
from utils.errors import UserError
from utils.files import expanded
from utils.inputs import WeightedShards

E = TypeVar("E")

RANDOM_ROW_GROUP = 32_000_000
"""Maximum size of a row group in bytes with ``order: random``. A row group of a single row may be larger."""

logger = logging.getLogger(__name__)


def weights_of(config: StreamConfig, shards: Shards) -> Weights | None:
    """Returns the weights of the ``files`` entries, or None if all weights are 1."""
    weights = [entry.weight if isinstance(entry, WeightedShards) else 1 for entry in config.files]
    return None if all(weight == 1 for weight in weights) else Weights(_runs(config, shards), weights)


def _runs(config: StreamConfig, shards: Shards) -> list[list[int]]:
    """Returns, for each entry of ``files``, the sizes of the runs of records that are split into blocks."""
    return shards.runs_by_entry(config.block_records or BLOCK_RECORDS)


def open_source(config: StreamConfig, shards: Shards, *, name: str, seed: int, ranks: int, step: int) -> RecordSource:
    """Returns the records of shards in the order of the stream.

    Args:
        config: config of the stream.
        shards: the shards.
        name: name of the stream, or ``<name>/clean``.
        seed: seed of the order.
        ranks: number of ranks.
        step: number of micro-batches in a global batch, over all ``ranks``.

    Raises:
        UserError: if the number of ranks does not divide the number of lanes, there are fewer records than lanes, or row
            groups of a Parquet shard are too large for a random order.
    """
    count = config.records_per_batch
    # A clean set has no weights.
    weights = None if name.endswith("/clean") else weights_of(config, shards)
    order: Order = RandomOrder(len(shards if weights is None else weights), count, seed=seed, stream=name)
    if config.order == "blocks":
        lanes = config.lanes or step
        block_records = config.block_records or BLOCK_RECORDS
        check_lanes(lanes, ranks, f"data.{name.removesuffix('/clean')}.lanes")
        order = BlockOrder(
            list(itertools.chain(*_runs(config, shards))) if weights is None else weights.sizes,
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
            f"{path} has a row group of {size / 1000000.0:.0f} MB ({rows:,} rows), and order: random would "
            f"decode it for every record (limit: {RANDOM_ROW_GROUP / 1000000.0:.0f} MB)",
            where=shards.key,
            remedy=f"set order: blocks, or rewrite the file: python run.py prepare parquet {path} --out FOLDER",
        )
    if shards.cached_bytes and distributed.rank() == 0:
        _warn_of_small_cache(shards, order, distributed.local_size() / ranks)
    return RecordSource(shards, order, name=name, seed=seed, weights=weights)


def image_keys(config: ImageRecordsConfig) -> ImageKeys:
    """Returns the keys that locate the image of a record."""
    root = expanded(config.image_root) if config.image_root is not None else None
    return ImageKeys(config.image_key, config.image_is, root)


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
