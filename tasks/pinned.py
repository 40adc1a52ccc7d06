"""Pins the data sets on the Hub that a run reads to commits. The commits are kept in the run's folder, so that all ranks, and a
resumed run, read the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from dataset.shards.remote.hub import pinned
from utils import distributed
from utils.addresses import is_hub
from utils.config import Config
from utils.files import read_json, write_text
from utils.inputs import inputs_of, with_shards

PINS = "hub.json"
"""File in a run's folder that maps the ``files`` entries in its config to entries with a commit."""

C = TypeVar("C", bound=Config)


def with_pinned_data(config: C, run: Path, *, resumes: bool, ignored_sections: tuple[str, ...] = ()) -> C:
    """Returns the config with a commit in each entry ``hf:ORG/NAME`` of its shards.

    Rank 0 looks up the commits, or reads the commits that the run started with. If this fails, all ranks raise the error.

    Args:
        config: config of a run.
        run: folder of the run.
        resumes: True if the run resumes or is evaluated.
        ignored_sections: sections to ignore.

    Raises:
        UserError: see :func:`~dataset.shards.remote.hub.find_hub`.
    """
    entries = {
        entry: key
        for key, kind, entry in inputs_of(config)
        if kind == "shards" and is_hub(entry) and key.partition(".")[0] not in ignored_sections
    }
    if not entries:
        return config

    def pin() -> dict[str, str]:
        try:
            kept = read_json(run / PINS) if resumes else {}
        except (OSError, ValueError):  # written by an older version, or damaged
            kept = {}
        pins = {entry: kept.get(entry) or pinned(entry, key) for entry, key in entries.items()}
        write_text(run / PINS, json.dumps(pins, indent=2) + "\n")
        return pins

    pins = distributed.on_rank_0(pin)
    return with_shards(config, lambda entry: pins.get(entry, entry))
