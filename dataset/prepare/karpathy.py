"""``python -m dataset.prepare.karpathy --karpathy FILE --images DIR --out DIR``: COCO's captions as records for pre-training.

Made are ``train.jsonl`` (training and restval images), ``val.jsonl`` and ``test.jsonl`` of Karpathy's ``dataset_coco.json``.
Pre-train on the first, and measure on the second: neither has an image of the third, which retrieval and captioning are measured
on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.prepare.multilingual_coco import Captions, read_karpathy
from dataset.prepare.official import command_parser, write_splits
from utils.errors import one_line_errors


def records(captions: Captions, images: str) -> Iterator[dict[str, Any]]:
    """``image``, below the folder ``images``, and ``caption`` (a list) of each image of a split, in the order of the file."""
    for image, texts in captions.items():
        yield {"image": f"{images}/{image}", "caption": texts}


@one_line_errors
def main() -> int:
    """Make the records and print one line; exit status 2 for a mistake of the user."""
    parser = command_parser("karpathy", "Records of COCO in Karpathy's split.")
    parser.add_argument("--karpathy", type=Path, required=True, metavar="FILE", help="dataset_coco.json")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of train2014 and val2014")
    flags = parser.parse_args()
    images = os.path.relpath(flags.images, flags.out)  # records name images relative to their own folder
    arguments = {"karpathy": str(flags.karpathy.resolve()), "images": images}
    splits = {split: records(captions, images) for split, captions in read_karpathy(flags.karpathy).items()}
    write_splits("karpathy", flags, arguments, splits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
