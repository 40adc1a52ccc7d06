"""The command: reads the packages, splits the pictures by concept, and writes images, records and counts."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from PIL import Image

from dataset.prepare.folders import SPLITS, tally, write_records
from dataset.prepare.output_folder import OutputFolder
from demo.folder import FolderFlags, Seed, is_complete
from demo.real.collect import CUTOUT_SOURCES, collect
from demo.real.records import composite_records, map_records, name_of, single_records
from utils.commands import call
from utils.errors import UserError
from utils.flags import read_by, whole_number
from utils.progress import progress_bar

FACTS = "real.json"
FILES = (
    *(f"{split}.jsonl" for split in SPLITS),
    "train_names.jsonl",
    *(f"{split}_{source}.jsonl" for split in SPLITS for source in CUTOUT_SOURCES),
    *(f"regions_{split}_{kind}.jsonl" for split in SPLITS for kind in ("composites", "maps")),
)
"""``train.jsonl``, ``val.jsonl`` and ``test.jsonl`` contain all single cut-outs. ``train_names.jsonl`` contains the training
cut-outs with only their names, for captioning. ``test_stamps.jsonl`` and similar files contain the cut-outs of one source."""

DATA_VERSION = 3
"""Version number, increased when the same arguments give different images or texts."""


def _write_singles(out: Path, split: str, sources: Mapping[str, Sequence[Any]], side: int, bar: Any) -> dict[str, int]:
    """Writes the single cut-outs of a split to one file, and the cut-outs of each source to a separate file.

    For train, an additional file contains all cut-outs with only their names. Returns the number of cut-outs of each source.
    """
    records = {
        source: list(single_records(out, source, split, members, side, bar)) for source, members in sources.items()
    }
    every = [record for group in records.values() for record in group]
    write_records(out / f"{split}.jsonl", every)
    if split == "train":
        write_records(out / "train_names.jsonl", [record | {"caption": name_of(record)} for record in every])
    for source, group in records.items():
        write_records(out / f"{split}_{source}.jsonl", group)
    return {source: len(group) for source, group in records.items()}


def real(
    *,
    output: FolderFlags,
    packages: Path,
    seed: Seed = 0,
    side: Annotated[int, read_by(whole_number(64, 1024))] = 224,
    composites: Annotated[int, read_by(whole_number(1, 1_000_000))] = 4000,
) -> int:
    """Make records of real pictures with human texts, from four sources and maps.

    The sources are cut-outs, names of emoji and maps:

      stamps          apt: tuxpaint-stamps-default; GPL-2
      emoji_google    npm: emoji-datasource-google; pictures Apache-2.0, package MIT
      emoji_fluent    npm: @lobehub/fluent-emoji-3d; MIT
      names of emoji  npm: cldr-annotations-full, cldr-annotations-derived-full; Unicode-3.0
      clipart         apt: openclipart-png, openclipart-svg; public domain
      maps            apt: kgeography-data; GPL-2 or later

    Install them, but do not redistribute them. --packages is a folder with the .tgz files of npm pack and, unless the Debian
    packages are installed, the files that dpkg-deb -x unpacks (usr/share/…); docs/real_model.md lists the commands.

    All sources are split by the same concepts (demo/real/concepts.py), so that no name or picture of a held-out record occurs in
    training. Each source has its own validation and test files. Only composites of cut-outs and maps have boxes.

    Args:
        packages: folder with .tgz files and usr/share.
        seed: seed of the layout and the backgrounds of composites.
        side: longer side in pixels of images other than maps.
        composites: number of training composites; validation and test each have a tenth of this number.

    Examples:
        python -m demo.real --packages packages --out data/real
    """
    # Open Clip Art has pictures of 169 million pixels. They are skipped as too large, but Pillow warns about each of them.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    arguments = {
        "packages": str(packages), "seed": seed, "side": side, "composites": composites, "making": DATA_VERSION,
    }  # fmt: skip
    folder = OutputFolder(output.out, FACTS, arguments, (*FILES, "images"), output.overwrite)
    if is_complete(folder):
        return 0
    collection = collect(packages)
    for split in SPLITS:
        for source, members in (*collection.cutouts[split].items(), ("maps", collection.maps[split])):
            if not members:
                raise UserError(
                    f"no usable pictures of {source} remain for {split}", where=packages, remedy="use complete packages"
                )
    numbers = {"train": composites, "val": (composites + 9) // 10, "test": (composites + 9) // 10}
    total = sum(numbers.values()) + sum(map(len, collection.maps.values()))
    total += sum(len(members) for sources in collection.cutouts.values() for members in sources.values())
    with folder, progress_bar(total=total, desc="drawing", unit="image") as bar:
        written = {}
        for split, sources in collection.cutouts.items():
            composed = composite_records(folder.out, split, sources, numbers[split], seed, side, bar)
            drawn = map_records(folder.out, split, collection.maps[split], bar)
            written[split] = {
                **_write_singles(folder.out, split, sources, side, bar),
                "composites": write_records(folder.out / f"regions_{split}_composites.jsonl", composed),
                "maps": write_records(folder.out / f"regions_{split}_maps.jsonl", drawn),
                "divisions of maps": sum(len(found.divisions) for found in collection.maps[split]),
            }
        skipped = {source: dict(sorted((+reasons).items())) for source, reasons in collection.skipped.items()}
        folder.close({**written, "skipped": skipped, "common": collection.common})
    made = "; ".join(f"{split}: {tally(counts)}" for split, counts in written.items())
    left_out = sum(sum(reasons.values()) for reasons in skipped.values())
    sys.stdout.write(f"{folder.out}: {made}; {left_out} skipped, by source and reason in {FACTS}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(real, sys.argv[1:], "python -m demo.real"))
