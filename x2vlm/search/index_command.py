"""``python run.py index FOLDER --model M --out I``: embed the images of a folder, so that they can be searched by a sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import one_line_errors
from x2vlm.command import add_model, counted, loaded, report_broken

EXAMPLES = """examples:
  python run.py index photos --model runs/demo/pretrain-seed0 --out photos.index
  python run.py search photos.index "a dog on a lawn" --locate --save hits.png

Given again, it embeds what is new or has changed, and drops what is gone. Interrupted, it goes on.

exit status: 0 all images were read; 1 some could not be: I/broken.jsonl names them; 2 nothing could be done"""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py index``."""
    parser = argparse.ArgumentParser(
        prog="run.py index",
        description="Embed every image in a folder and the folders in it, each content once. Videos are passed over.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the images")
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="I", help="folder of the index")
    return parser.parse_args(argv)


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Index the images, and print one line; returns the exit status."""
    flags = arguments_of(argv)
    model = loaded(flags, flags.model)
    from x2vlm.search.encoding import Encoder
    from x2vlm.search.making import make

    made = make(Encoder(model), flags.folder, flags.out)
    copies = f", and {counted(made.copies, 'copy', 'copies')} of them" if made.copies else ""
    sys.stdout.write(
        f"{flags.out}: {counted(made.images, 'image', 'images')}{copies}; {made.embedded:,} embedded now\n"
    )
    return report_broken([reason for _, reason in made.broken], made.images + made.copies + len(made.broken))
