"""The command: reads the packages, splits by concept, writes images and records, and counts."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import demo.real
from dataset.prepare.folders import SPLITS, tally, whole_number, write_records
from demo.folder import Folder, command_parser, run_command
from demo.real.collect import CUTOUT_SOURCES, HELD_OUT, collect
from demo.real.records import composite_records, map_records, name_of, single_records
from utils.errors import UserError, one_line_errors
from utils.progress import progress_bar

FACTS = "real.json"
FILES = (
    *(f"{split}.jsonl" for split in SPLITS),
    "train_names.jsonl",
    *(f"{split}_{source}.jsonl" for split in HELD_OUT for source in CUTOUT_SOURCES),
    *(f"regions_{split}_{kind}.jsonl" for split in SPLITS for kind in ("composites", "maps")),
)
"""train, val and test have all single cut-outs, and ``train_names.jsonl`` those of train with their names alone, which captioning
learns; ``test_stamps.jsonl`` and others have those of one source."""

MAKING = 3
"""Goes up when the same arguments give other images or texts."""


def build(
    out: Path,
    packages: Path,
    *,
    seed: int = 0,
    side: int = 224,
    composites: int = 4000,
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Make the files :data:`FILES`, ``out/images/`` and, last, ``out/real.json`` with all counts.

    ``seed`` decides what lies where in composites, and their backgrounds; the splits do not depend on it. ``side`` is the longest
    side of an image that is no map. Train has ``composites`` composites, validation and test a tenth each.

    Raises:
        UserError: a package is missing or damaged, a split of a source would be empty, or ``out`` cannot be used.
    """
    arguments = {"packages": str(packages), "seed": seed, "side": side, "composites": composites, "making": MAKING}
    folder = Folder(out, FACTS, (*FILES, "images"), arguments, overwrite)
    if folder.is_complete():
        return
    collection = collect(packages)
    for split in SPLITS:
        for source, members in (*collection.cutouts[split].items(), ("maps", collection.maps[split])):
            if not members:
                raise UserError(f"{packages}: no usable picture of {source} is left for {split}; give whole packages")
    numbers = {"train": composites, "val": (composites + 9) // 10, "test": (composites + 9) // 10}
    total = sum(numbers.values()) + sum(map(len, collection.maps.values()))
    total += sum(len(members) for sources in collection.cutouts.values() for members in sources.values())
    with (
        folder.filling() as facts,
        progress_bar(total=total, quiet=not progress, desc="drawing", unit="image") as bar,
    ):
        for split, sources in collection.cutouts.items():
            composed = composite_records(out, split, sources, numbers[split], seed, side, bar)
            drawn = map_records(out, split, collection.maps[split], bar)
            facts[split] = {
                **_write_singles(out, split, sources, side, bar),
                "composites": write_records(out / f"regions_{split}_composites.jsonl", composed),
                "maps": write_records(out / f"regions_{split}_maps.jsonl", drawn),
                "divisions of maps": sum(len(found.divisions) for found in collection.maps[split]),
            }
        facts["left_out"] = {
            source: dict(sorted((+reasons).items())) for source, reasons in collection.left_out.items()
        }
        facts["common"] = collection.common


def _write_singles(out: Path, split: str, sources: Mapping[str, Sequence[Any]], side: int, bar: Any) -> dict[str, int]:
    """Write the single cut-outs of a split: all together, and those of each source (of train: all with names alone).

    Returns the number of each source."""
    records = {
        source: list(single_records(out, source, split, members, side, bar)) for source, members in sources.items()
    }
    every = [record for group in records.values() for record in group]
    write_records(out / f"{split}.jsonl", every)
    if split == "train":
        write_records(out / "train_names.jsonl", [record | {"caption": name_of(record)} for record in every])
    else:
        for source, group in records.items():
            write_records(out / f"{split}_{source}.jsonl", group)
    return {source: len(group) for source, group in records.items()}


@one_line_errors
def main() -> int:
    """Make the records and print one line of facts; exit status 2 for a mistake of the user."""
    parser = command_parser("real", demo.real.__doc__)
    parser.add_argument("--packages", type=Path, required=True, metavar="DIR", help="with .tgz files and usr/share")
    parser.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=0)
    parser.add_argument("--side", type=whole_number(64, 1024), default=224, metavar="PIXELS", help="default: 224")
    parser.add_argument("--composites", type=whole_number(1, 1_000_000), default=4000, metavar="N", help="in train")
    # Open Clip Art has pictures of 169 million pixels, which are left out as too large; Pillow warns of each.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def summary(facts: dict[str, Any]) -> str:
        counts = "; ".join(f"{split}: {tally(facts[split])}" for split in SPLITS)
        left_out = sum(sum(reasons.values()) for reasons in facts["left_out"].values())
        return f"{counts}; {left_out} left out, by source and reason in {FACTS}"

    return run_command(parser, FACTS, build, summary)


if __name__ == "__main__":
    sys.exit(main())
