"""Opens the records of the pre-training streams, each in its order."""

from __future__ import annotations

import itertools
import logging

from dataset.config import BLOCK_RECORDS, DataConfig, StreamConfig, check_lanes
from dataset.examples import RecordStream
from dataset.records.schema import RawRecord
from dataset.shards.blocks import BlockOrder
from dataset.shards.readers import Shards
from dataset.shards.samplers import Order, RandomOrder
from dataset.shards.weights import Weights
from utils import distributed
from utils.errors import UserError
from utils.inputs import WeightedShards

RANDOM_ROW_GROUP = 32_000_000
"""Maximum size of a row group in bytes with ``order: random``. A row group of a single row may be larger."""

logger = logging.getLogger(__name__)


def open_streams(data: DataConfig, seed: int, ranks: int, step: int) -> dict[str, RecordStream[RawRecord]]:
    """Opens the records of each stream. The clean set of a stream is named ``<name>/clean``.

    Args:
        data: the streams.
        seed: seed of the order.
        ranks: number of ranks.
        step: number of micro-batches in a global batch, over all ``ranks``.

    Raises:
        UserError: if a stream is empty, or for the reasons listed in :func:`open_stream`.
    """
    opened = {}
    for name, config in data.record_sets().items():
        key = f"data.{name.replace('/', '.')}.files"
        shards = Shards(config.paths, key=key, index_folder=data.cache_index, remote=data.remote)
        opened[name] = open_stream(config, shards, name=name, seed=seed, ranks=ranks, step=step)
    return opened


def weights_of(config: StreamConfig, shards: Shards) -> Weights | None:
    """Returns the weights of the ``files`` entries, or None if all weights are 1."""
    weights = [entry.weight if isinstance(entry, WeightedShards) else 1 for entry in config.files]
    return None if all(weight == 1 for weight in weights) else Weights(_runs(config, shards), weights)


def _runs(config: StreamConfig, shards: Shards) -> list[list[int]]:
    """Returns, for each entry of ``files``, the sizes of the runs of records that are split into blocks."""
    return shards.runs_by_entry(config.block_records or BLOCK_RECORDS)


def open_stream(
    config: StreamConfig, shards: Shards, *, name: str, seed: int, ranks: int, step: int
) -> RecordStream[RawRecord]:
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
    weights = weights_of(config, shards)
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
    return RecordStream(shards, order, name=name, seed=seed, weights=weights)


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
