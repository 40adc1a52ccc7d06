"""``run.py index FOLDER``: embed the images of a folder, so that they can be searched by a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

from commands.models import ModelFlags, report_broken
from utils.printing import counted


def index(folder: Path, /, *, model: str, out: Path, running: ModelFlags = ModelFlags()) -> int:
    """Embed every image in a folder and the folders in it, each content once. Videos are skipped.

    If it is run again, the command embeds the images that are new or have changed, and drops images that are gone. If it was
    interrupted, it continues.

    Args:
        folder: folder of the images.
        model: a run's folder, a weight file, hub:owner/name, or an export.
        out: folder of the index.

    Examples:
        python run.py index photos --model runs/demo/pretrain-seed0 --out photos.index
        python run.py search photos.index "a dog on a lawn" --locate --save hits.png

    Returns:
        0 all images were read; 1 some could not be: broken.jsonl in the folder of the index names them; 2 nothing could be done
    """
    encoder = running.load(model)
    from x2vlm.search.encoding import Encoder
    from x2vlm.search.making import make

    made = make(Encoder(encoder), folder, out)
    copies = f", and {counted(made.copies, 'copy', 'copies')} of them" if made.copies else ""
    sys.stdout.write(f"{out}: {counted(made.images, 'image', 'images')}{copies}; {made.embedded:,} embedded now\n")
    return report_broken([reason for _, reason in made.broken], made.images + made.copies + len(made.broken))
