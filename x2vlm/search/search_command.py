"""``python run.py search I TEXT``: the images of an index that a sentence is about, and where in them it is true."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, one_line_errors
from utils.flags import positive, positive_real, sentence
from x2vlm.command import MOST_DRAWN, add_model, check_save, counted, loaded, printed
from x2vlm.search import CACHE_GB

if TYPE_CHECKING:
    from x2vlm.search.index import Hit, ImageIndex

EXAMPLES = """examples:
  python run.py search photos.index "a dog on a lawn"
  python run.py search photos.index "a dog on a lawn" --locate --save hits.png
  python run.py search photos.index "a dog" "a cat" --top 3 --json

Each line has the numbers that the first one names, and the path, the best first: by the probability that the text is
about the image; where the model's run has evaluation.score: sum, by the sum of its log-odds and the cosine over the
temperature. With --locate also the probability that the text is about what the box shows, and the box.

exit status: 0 the index was searched; 2 it could not be"""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py search``."""
    parser = argparse.ArgumentParser(
        prog="run.py search",
        description="Find images by a sentence: by cosine, then by the matching head; and the box where the sentence is true.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("index", type=Path, metavar="I", help="folder of the index")
    flag("texts", type=sentence, nargs="+", metavar="TEXT", help="a sentence; each is searched by itself")
    flag("--top", type=positive, default=10, metavar="N", help="hits (default: %(default)s)")
    flag(
        "--rerank",
        type=int,
        default=64,
        metavar="K",
        help="best images by cosine that are matched with the text (default: %(default)s; 0: none)",
    )
    phrase = "find the box in each hit where the text is true, or PHRASE is; needs a model of task pretrain"
    flag("--locate", type=sentence, nargs="?", const=True, default=False, metavar="PHRASE", help=phrase)
    flag("--save", type=Path, metavar="PNG", help=f"draw the hits, the first {MOST_DRAWN} at most")
    flag("--json", action="store_true", help="a JSON object in a line for each hit")
    flag(
        "--cache-gb",
        type=positive_real,
        default=CACHE_GB,
        metavar="GB",
        help="of the disk for images that were re-ranked (default: %(default)g)",
    )
    add_model(parser, required=False)
    arguments = parser.parse_args(argv)
    if arguments.rerank < 0:
        parser.error(f"--rerank {arguments.rerank} is less than 0")
    return arguments


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Search, and print a line for each hit; returns the exit status."""
    flags = arguments_of(argv)
    from x2vlm.search.files import read_about

    about = read_about(flags.index)
    if flags.save is not None:
        check_save(flags.save, [about.folder])
    from x2vlm.search.index import ImageIndex

    model = loaded(flags, flags.model or about.model)
    index = ImageIndex(flags.index, model, cache_gb=flags.cache_gb)
    if not len(index):
        raise UserError(f"{flags.index} has no image")
    found = [
        (text, index.search(text, top=flags.top, rerank=flags.rerank, locate=flags.locate)) for text in flags.texts
    ]
    if not any(hits for _, hits in found):
        raise UserError(f"{flags.index}: the images have gone or changed; bring it up to date with python run.py index")
    for text, hits in found:
        if not flags.json:
            names = f"  ({', '.join(hits[0].numbers())})" if hits else ""
            sys.stdout.write(f"{printed(text)}{names}\n")
        for hit in hits:
            sys.stdout.write(f"{json.dumps(_values(text, hit)) if flags.json else printed(_line(hit))}\n")
    if flags.save is not None:
        drawn = min(MOST_DRAWN, sum(len(hits) for _, hits in found))
        sys.stderr.write(f"drawn: {_draw(index, found, flags.save)}, {counted(drawn, 'hit', 'hits')}\n")
    return 0


def _line(hit: Hit) -> str:
    box = ""
    if hit.box is not None:
        box = f"  {hit.box.score:.3f} at {hit.box.x:.0f}, {hit.box.y:.0f}, {hit.box.width:.0f} x {hit.box.height:.0f}"
    copies = f"  (+ {counted(len(hit.copies), 'copy', 'copies')})" if hit.copies else ""
    return f"  {'  '.join(hit.numbers().values())}  {hit.path}{box}{copies}"


def _values(text: str, hit: Hit) -> dict[str, Any]:
    box = None if hit.box is None else {name: value for name, value in asdict(hit.box).items() if name != "phrase"}
    numbers = {"cosine": hit.cosine, "score": hit.score, "sum": hit.sum}
    rounded = {name: None if number is None else round(number, 4) for name, number in numbers.items()}
    return {"text": text, "path": str(hit.path), **rounded, "copies": list(map(str, hit.copies)), "box": box}


def _draw(index: ImageIndex, found: Sequence[tuple[str, Sequence[Hit]]], path: Path) -> Path:
    """Draw the hits, the best first, each with its box if it has one; under its text, where there are several."""
    from x2vlm import figures
    from x2vlm.search.figures import panels_of

    title = found[0][0] if len(found) == 1 else ""
    panels = [panel for text, hits in found for panel in panels_of(index, hits, "" if title else text)]
    hits = [hit for _, of_text in found for hit in of_text]
    explained = {
        "sum: log-odds of image, plus the cosine over the temperature": any(hit.sum is not None for hit in hits),
        "image: probability that the text is about it": any(hit.score is not None for hit in hits),
        "at a phrase: probability that it is about what its box shows": any(hit.box is not None for hit in hits),
    }
    legend = " · ".join(text for text, is_drawn in explained.items() if is_drawn)
    return figures.draw(panels[:MOST_DRAWN], path, title, legend)
