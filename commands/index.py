"""``run.py index FOLDER``: embeds the images in a folder, so that they can be searched with a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

from commands.models import ModelFlags, report_broken
from utils.flags import ModelName, OutputFolder
from utils.printing import counted


def index(folder: Path, /, *, model: ModelName, out: OutputFolder, running: ModelFlags = ModelFlags()) -> int:
    """Embed every image in a folder and its subfolders. Identical files are embedded only once, and videos are skipped.

    To update an index, run the command again: it embeds images that are new or have changed, and drops images that have been
    removed. If the command is interrupted, run it again to continue.

    Args:
        folder: folder of the images.
        model: a run's folder, a weight file, hub:owner/name, or an export.
        out: folder of the index.

    Examples:
        python run.py index photos --model runs/demo/pretrain-seed0 --out photos.index
        python run.py search photos.index "a dog on a lawn" --locate --save hits.png

    Returns:
        0 all images were read; 1 some images could not be read, and are listed in broken.jsonl in the index folder; 2 nothing was
        indexed
    """
    loaded = running.load(model)
    from x2vlm.search.making import build_index

    result = build_index(loaded, folder, out)
    copies = f", and {counted(result.copies, 'copy', 'copies')} of them" if result.copies else ""
    sys.stdout.write(f"{out}: {counted(result.images, 'image', 'images')}{copies}; {result.embedded:,} embedded now\n")
    return report_broken(
        [broken.detail for broken in result.broken], result.images + result.copies + len(result.broken)
    )
