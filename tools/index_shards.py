"""``python run.py index-shards``: make the indexes of a run's shards before it starts, by several processes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dataset.shards.readers import Shards
from tasks.kinds import choose
from utils.config import Config, load_config
from utils.cores import usable_cores
from utils.errors import UserError, one_line_errors
from utils.flags import positive
from utils.inputs import inputs_of

EXAMPLES = """examples:
  python run.py index-shards --config configs/pretrain/base_1b.yaml --workers 32
  python run.py index-shards data/pretrain/cc3m --workers 8

An index lies in the user's cache folder, or in data.cache_index of the config (--index). A run makes what is missing, by one
process; the others wait for it. Interrupted, the same command goes on.

exit status: 0 all shards are indexed; 2 one cannot be read"""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py index-shards``."""
    parser = argparse.ArgumentParser(
        prog="run.py index-shards",
        description="Find where each record begins in the shards of a config's streams, or of one list.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--config", metavar="FILE", help="index every list of shards that this config names")
    flag(
        "--index",
        metavar="DIR",
        help="folder of indexes (default: the config's data.cache_index, or the user's cache folder)",
    )
    flag("--workers", type=positive, default=usable_cores(), metavar="N", help="processes (default: %(default)s)")
    flag(
        "words",
        nargs="*",
        metavar="FILES | key=value",
        help="one list of files, patterns or folders; or values of the config",
    )
    arguments = parser.parse_intermixed_args(argv)
    files = [word for word in arguments.words if "=" not in word]
    if bool(files) == bool(arguments.config):
        parser.error("give --config FILE, or one list of files, patterns or folders")
    return arguments


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Index the shards, and print a line for each list; returns the exit status."""
    flags = arguments_of(argv)
    folder, lists, remote = flags.index, {"FILES": flags.words}, None
    if flags.config is not None:
        choice = choose(flags.config, flags.words, None)
        config = load_config(choice.config, flags.words, choice.load().config)
        lists = shard_lists(config)
        folder, remote = folder or getattr(config.data, "cache_index", None), getattr(config.data, "remote", None)
        if not lists:
            raise UserError(f"--config {flags.config}: names no shards; only pre-training reads any")
    for key, files in lists.items():
        shards = Shards(files, key=key, index_folder=folder, remote=remote, workers=flags.workers, ask=True)
        where = shards.index.folder or "memory alone"
        sys.stdout.write(f"{key}: {len(shards):,} records in {len(shards.paths):,} shards; {where}\n")
        sys.stdout.flush()
    return 0


def shard_lists(config: Config) -> dict[str, list[str]]:
    """Every list of shards that a config names, by its key."""
    lists: dict[str, list[str]] = {}
    for key, kind, path in inputs_of(config):
        if kind == "shards":
            lists.setdefault(key, []).append(path)
    return lists
