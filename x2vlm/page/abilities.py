"""What a page can ask of a model: from files and a text to lines and a picture. Nothing here knows of the page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.drawing import Panel, Sheet, draw_sheet
from utils.errors import UserError
from x2vlm import figures

if TYPE_CHECKING:
    from x2vlm.model import Model
    from x2vlm.search.index import ImageIndex

MOST_TEXTS = 8
"""Lines of a text box that are read."""
MOST_CHARACTERS = 2000
HITS = 12


class Answer(NamedTuple):
    """What is shown: lines of text, and a picture (H, W, 3) uint8 or None."""

    lines: list[str]
    picture: np.ndarray | None = None


class Ability(NamedTuple):
    """Something that a model can be asked on the page.

    Attributes:
        name: of its tab.
        files: images (or videos) that it takes.
        text: the label of its text box; "": it has none.
        example: a text to begin with.
        ask: files and text -> what is shown.
    """

    name: str
    files: int
    text: str
    example: str
    ask: Callable[[Sequence[str], str], Answer]


def abilities_of(model: Model, index: ImageIndex | None = None) -> list[Ability]:
    """What a model can be asked, in the order of :data:`~x2vlm.calls.CALLS`; with an ``index``, to search it first."""
    asks: dict[str, tuple[str, str, Callable[[Sequence[str], str], Answer]]] = {
        "caption": ("", "", lambda files, text: _caption(model, files)),
        "answer": ("questions, one a line", "what is this?", lambda files, text: _answer(model, files, text)),
        "locate": ("phrases, one a line", "the dog", lambda files, text: _locate(model, files, text)),
        "match": ("sentences, one a line", "a dog on a lawn", lambda files, text: _match(model, files, text)),
        "compare": (
            "a statement about the images",
            "both images show a dog",
            lambda files, text: _compare(model, files, text),
        ),
        "explain": ("a sentence", "a dog on a lawn", lambda files, text: _explain(model, files, text)),
    }
    found = []
    if index is not None:
        found.append(Ability("search", 0, "a sentence", "a dog on a lawn", lambda files, text: _search(index, text)))
    for name, (label, example, ask) in asks.items():
        if model.takes(name):
            files = int(getattr(model.network, "images", 1)) if name == "compare" else 1
            found.append(Ability(name, files, label, example, ask))
    return found


def lines_of(text: str) -> list[str]:
    """The lines of a text box that are not empty.

    Raises:
        UserError: there is none, or too much.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"the text has {len(text):,} characters; give at most {MOST_CHARACTERS:,}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError("give a text")
    if len(lines) > MOST_TEXTS:
        raise UserError(f"{len(lines)} lines were given; give at most {MOST_TEXTS}")
    return lines


def drawn(panels: Sequence[Panel], title: str = "") -> np.ndarray:
    """Panels as a picture, (H, W, 3) uint8."""
    with tempfile.TemporaryDirectory() as folder:
        return draw_sheet(Sheet(title, "", panels), Path(folder, "sheet.png"))


def _caption(model: Model, files: Sequence[str]) -> Answer:
    return Answer(model.caption(files[0]))


def _answer(model: Model, files: Sequence[str], text: str) -> Answer:
    questions = lines_of(text)
    return Answer(
        [f"{question}  {answer}" for question, answer in zip(questions, model.answer(files[0], questions), strict=True)]
    )


def _locate(model: Model, files: Sequence[str], text: str) -> Answer:
    [boxes] = model.locate(files[0], [lines_of(text)])
    lines = [
        f"{box.phrase}: {box.x:.0f}, {box.y:.0f}, {box.width:.0f} x {box.height:.0f}"
        + ("" if box.score is None else f", {box.score:.2f}")
        for box in boxes
    ]
    return Answer(lines, drawn([figures.located(model.read, files[0], boxes)]))


def _match(model: Model, files: Sequence[str], text: str) -> Answer:
    texts = lines_of(text)
    scores = model.match(files[0], texts)[0].tolist()
    best = sorted(zip(scores, texts, strict=True), key=lambda one: -one[0])
    return Answer([f"{score:.3f}  {each}" for score, each in best])


def _compare(model: Model, files: Sequence[str], text: str) -> Answer:
    statements = lines_of(text)
    judged = model.compare([list(files)] * len(statements), statements)
    lines = [f"{one.label} ({one.score:.2f}): {text}" for one, text in zip(judged, statements, strict=True)]
    return Answer(lines)


def _explain(model: Model, files: Sequence[str], text: str) -> Answer:
    [sentence, *_] = lines_of(text)
    maps = model.explain(files[0], sentence)
    lines = ["Where the model looks for each word, on one scale."]
    return Answer(lines, drawn(figures.explained(model.read, files[0], maps, sentence)))


def _search(index: ImageIndex, text: str) -> Answer:
    from x2vlm.search.figures import panels_of

    [sentence, *_] = lines_of(text)
    hits = index.search(sentence, top=HITS)
    return Answer([f"{hit.score:.3f}  {hit.path.name}" for hit in hits], drawn(panels_of(index, hits), sentence))
