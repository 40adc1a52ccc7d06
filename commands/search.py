"""``run.py search I TEXT``: finds the images in an index that a sentence describes, and where in each image the sentence
applies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from commands.models import MAX_DRAWN, ModelFlags, check_save
from utils.errors import UserError
from utils.flags import ModelName, OutputFile, Positive, PositiveReal, alone_or, non_blank, read_by, whole_number
from utils.printing import counted, printed, printed_json
from x2vlm.search import CACHE_GB

if TYPE_CHECKING:
    from x2vlm.search.index import Hit, ImageIndex


def search(
    index: Path,
    texts: list[Annotated[str, read_by(non_blank)]],
    /,
    *,
    top: Positive = 10,
    rerank: Annotated[int, read_by(whole_number(0))] = 64,
    locate: Annotated[str | bool, alone_or(non_blank, "PHRASE")] = False,
    save: OutputFile | None = None,
    json_: bool = False,
    cache_gb: PositiveReal = CACHE_GB,
    model: ModelName | None = None,
    running: ModelFlags = ModelFlags(),
) -> int:
    """Find images with a sentence, first by cosine and then by the matching head, and optionally the box that the sentence
    describes.

    Each line contains the values named in the header, followed by the path. Hits are ranked by the probability that the text is
    about the image or, if the model's run has evaluation.score: sum, by the sum of the log-odds and the cosine divided by the
    temperature; with evaluation.score: cosine, they are not re-ranked. With --locate, a line also contains the probability that
    the text is about the content of the box, and the box.

    Args:
        index: folder of the index.
        texts: one or more sentences, each of which is searched for separately.
        top: maximum number of hits.
        rerank: number of images, the best by cosine, that the matching head compares with the text; 0 for none.
        locate: also find, in each hit, the box that the text describes or, if a phrase follows the option, the box that the
            phrase describes; needs a pre-trained model.
        save: draw the first 48 hits as a PNG.
        json_: print a JSON object for each hit, one per line.
        cache_gb: disk space for caching re-ranked images.
        model: a run's folder, a weight file, hub:owner/name, or an export (default: the model that built the index).

    Examples:
        python run.py search photos.index "a dog on a lawn"
        python run.py search photos.index "a dog on a lawn" --locate --save hits.png
        python run.py search photos.index "a dog" "a cat" --top 3 --json

    Returns:
        0 the index was searched; 2 it could not be searched
    """
    from x2vlm.search.files import read_metadata

    metadata = read_metadata(index)
    if save is not None:
        check_save(save, [metadata.folder])
    from x2vlm.search.index import ImageIndex

    loaded = running.load(model or metadata.model)
    opened = ImageIndex(index, loaded, cache_gb=cache_gb)
    if not len(opened):
        raise UserError(f"{index} contains no images")
    found = [(text, opened.search(text, top=top, rerank=rerank, locate=locate)) for text in texts]
    if not any(hits for _, hits in found):
        raise UserError(
            "the images have been removed or changed", where=index, remedy="update the index with python run.py index"
        )
    for text, hits in found:
        if not json_:
            names = f"  ({', '.join(hits[0].formatted_scores())})" if hits else ""
            sys.stdout.write(f"{printed(text)}{names}\n")
        for hit in hits:
            sys.stdout.write(f"{printed_json(_values(text, hit)) if json_ else printed(_line(hit))}\n")
    if save is not None:
        drawn = min(MAX_DRAWN, sum(len(hits) for _, hits in found))
        sys.stderr.write(f"drawn: {_draw(opened, found, save)}, {counted(drawn, 'hit', 'hits')}\n")
    return 0


def _line(hit: Hit) -> str:
    box = ""
    if hit.box is not None:
        box = f"  {hit.box.score:.3f} at {hit.box.x:.0f}, {hit.box.y:.0f}, {hit.box.width:.0f} x {hit.box.height:.0f}"
    copies = f"  (+ {counted(len(hit.copies), 'copy', 'copies')})" if hit.copies else ""
    return f"  {'  '.join(hit.formatted_scores().values())}  {hit.path}{box}{copies}"


def _values(text: str, hit: Hit) -> dict[str, Any]:
    box = None if hit.box is None else {name: value for name, value in asdict(hit.box).items() if name != "phrase"}
    scores = {"cosine": hit.cosine, "score": hit.score, "sum": hit.sum}
    rounded = {name: None if score is None else round(score, 4) for name, score in scores.items()}
    return {"text": text, "path": str(hit.path), **rounded, "copies": list(map(str, hit.copies)), "box": box}


def _draw(index: ImageIndex, found: Sequence[tuple[str, Sequence[Hit]]], path: Path) -> Path:
    """Draws the hits, best first, each with its box if it has one. If there are several texts, hits are grouped by text."""
    from x2vlm import figures
    from x2vlm.search.figures import panels_of

    title = found[0][0] if len(found) == 1 else ""
    panels = [panel for text, hits in found for panel in panels_of(index, hits, "" if title else text)]
    hits = [hit for _, text_hits in found for hit in text_hits]
    explained = {
        "sum: log-odds of image, plus the cosine over the temperature": any(hit.sum is not None for hit in hits),
        "image: probability that the text is about it": any(hit.score is not None for hit in hits),
        "at a phrase: probability that it is about the content of its box": any(hit.box is not None for hit in hits),
    }
    legend = " · ".join(text for text, is_drawn in explained.items() if is_drawn)
    return figures.draw(panels[:MAX_DRAWN], path, title, legend)
