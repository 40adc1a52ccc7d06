"""``python run.py index-shards``: indexes a run's shards before the run starts, with several processes."""

from __future__ import annotations

import sys
from typing import Annotated

from tasks.binding import bind_run
from utils.config import Config
from utils.cores import usable_cores
from utils.errors import UserError
from utils.flags import File, named, positive, read_by
from utils.inputs import inputs_of
from utils.printing import counted


def index_shards(
    *words: str,
    config: File | None = None,
    index: Annotated[str | None, named("FOLDER")] = None,
    workers: Annotated[int, read_by(positive)] = usable_cores(),
) -> int:
    """Find where each record begins in the shards of a config's streams, or in the given shards.

    Indexes are stored in the user's cache folder, or in the folder that --index or the config's data.cache_index names. A run
    builds missing indexes itself, in one process while the other processes wait. If the command is interrupted, run it again to
    continue.

    Args:
        words: files, patterns or folders; or, with --config, values that replace the config's, as key=value.
        config: index every list of shards in this config.
        index: folder for the indexes (default: the config's data.cache_index, or the user's cache folder).
        workers: number of processes.

    Examples:
        python run.py index-shards --config configs/pretrain/base_1b.yaml --workers 32
        python run.py index-shards data/pretrain/cc3m --workers 8

    Returns:
        0 all shards are indexed; 2 a shard cannot be read
    """
    if any("=" not in word for word in words) == (config is not None):
        raise UserError("pass either --config FILE or a list of files, patterns or folders")
    folder, lists, remote = index, {"FILES": list(words)}, None
    if config is not None:
        values = bind_run(config, words).config
        lists = shard_lists(values)
        folder, remote = folder or getattr(values.data, "cache_index", None), getattr(values.data, "remote", None)
        if not lists:
            raise UserError("names no shards", where=f"--config {config}", remedy="only pre-training reads shards")
    from dataset.shards.readers import Shards  # imports torch, which takes seconds

    for key, files in lists.items():
        shards = Shards(files, key=key, index_folder=folder, remote=remote, workers=workers, ask_servers=True)
        where = shards.index.folder or "memory alone"
        sys.stdout.write(
            f"{key}: {counted(len(shards), 'record', 'records')} in {counted(len(shards.paths), 'shard', 'shards')}; {where}\n"
        )
        sys.stdout.flush()
    return 0


def shard_lists(config: Config) -> dict[str, list[str]]:
    """Returns every list of shards in a config, by its key."""
    lists: dict[str, list[str]] = {}
    for key, kind, path in inputs_of(config):
        if kind == "shards":
            lists.setdefault(key, []).append(path)
    return lists
