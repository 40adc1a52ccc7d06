"""The requests that a page can send to a model. A request consists of files and texts, and the answer consists of lines and
pictures. This module does not depend on the page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from tasks.drawing import Panel, Sheet, draw_sheet
from utils.errors import UserError
from utils.printing import counted, printed
from x2vlm import figures
from x2vlm.base import LoadedModel
from x2vlm.boxes import parse_box
from x2vlm.matching import formatted_scores, matches
from x2vlm.scoring import formatted_lines, most_probable
from x2vlm.search import figures as search_figures

if TYPE_CHECKING:
    from x2vlm.boxes import Box
    from x2vlm.model import Model
    from x2vlm.search.index import ImageIndex

MAX_LINES = 8
"""Maximum number of lines in a text box."""
MAX_CHARACTERS = 2000
"""Maximum number of characters in a text box."""
HITS = 12
"""Number of hits that a search shows."""
IMAGE_ONLY = ("locate", "score", "explain")
"""The names of the abilities that are available only for images, not for videos."""


class Picture(NamedTuple):
    """A picture to show, (H, W, 3) uint8, and its caption."""

    pixels: np.ndarray
    caption: str = ""


class Answer(NamedTuple):
    """An answer for display: lines of text, and pictures."""

    lines: list[str]
    pictures: Sequence[Picture] = ()


class TextBox(NamedTuple):
    """A text box: its label, its initial text, and the number of lines that it shows."""

    label: str
    example: str = ""
    lines: int = 3


class Ability(NamedTuple):
    """A request that the page offers for a model.

    Attributes:
        name: name of the tab.
        files: number of images or videos that the request takes.
        texts: the text boxes of the request.
        pictures: number of pictures in the answer: none, one or several.
        ask: function that takes the files and the texts, and returns the answer.
    """

    name: str
    files: int
    texts: Sequence[TextBox]
    pictures: Literal["none", "one", "many"]
    ask: Callable[[Sequence[str], Sequence[str]], Answer]


def abilities_of(model: Model, index: ImageIndex | None = None) -> list[Ability]:
    """Returns the abilities of a model, in the order of :data:`~x2vlm.calls.CALLS`. If an ``index`` is given, search comes
    first."""

    def box(label: str, example: str, lines: int = 3) -> TextBox:
        return TextBox(label, example if _knows_words(model, example) else "", lines)

    sentence, phrases = box("a sentence", "a dog on a lawn"), box("phrases, one per line", "the dog")
    known = [
        Ability("caption", 1, [], "none", lambda files, texts: _caption(model, files)),
        Ability(
            "answer",
            1,
            [box("questions, one per line", "what is this?")],
            "none",
            lambda files, texts: _answer(model, files, *texts),
        ),
        Ability("locate", 1, [phrases], "one", lambda files, texts: _locate(model, files, *texts)),
        Ability(
            "score",
            1,
            [phrases, TextBox("boxes in pixels, one per line: x, y, width, height")],
            "one",
            lambda files, texts: _score(model, files, *texts),
        ),
        Ability(
            "match",
            1,
            [box("sentences, one per line", "a dog on a lawn")],
            "none",
            lambda files, texts: _match(model, files, *texts),
        ),
        Ability(
            "compare",
            int(getattr(model.network, "images", 2)) if model.takes("compare") else 2,
            [box("statements about the images, one per line", "both images show a dog")],
            "none",
            lambda files, texts: _compare(model, files, *texts),
        ),
        Ability("explain", 1, [sentence], "many", lambda files, texts: _explain(model, files, *texts)),
    ]
    takes_videos = model.read.videos is not None
    found = [
        ability for ability in known if model.takes(ability.name) and not (takes_videos and ability.name in IMAGE_ONLY)
    ]
    return found if index is None else [_search_ability(index), *found]


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text box that are not empty.

    Raises:
        UserError: the text is empty or too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"the text has {len(text):,} characters", remedy=f"use at most {MAX_CHARACTERS:,}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError("enter a text")
    if len(lines) > MAX_LINES:
        raise UserError(f"{len(lines)} lines were given", remedy=f"use at most {MAX_LINES}")
    return lines


def drawn(panels: Sequence[Panel]) -> np.ndarray:
    """Draws panels as a picture, (H, W, 3) uint8."""
    with tempfile.TemporaryDirectory() as folder:
        return draw_sheet(Sheet("", "", panels), Path(folder, "sheet.png"))


def _caption(model: Model, files: Sequence[str]) -> Answer:
    return Answer(model.caption(files[0]))


def _answer(model: Model, files: Sequence[str], text: str) -> Answer:
    questions = lines_of(text)
    return Answer(
        [f"{question}  {answer}" for question, answer in zip(questions, model.answer(files[0], questions), strict=True)]
    )


def _locate(model: Model, files: Sequence[str], text: str) -> Answer:
    phrases = lines_of(text)
    [boxes] = model.locate(files[0], [phrases], boxes="all" if model.has_box_sets else "one")
    panel = replace(figures.located(model.read, files[0], boxes, phrases), above=())
    lines = []
    for phrase in phrases:
        phrase_lines = [f"{phrase}: {_described(box)}" for box in boxes if box.phrase == phrase]
        lines += phrase_lines or [f"{phrase}: no box"]
    return Answer(lines, [Picture(drawn([panel]))])


def _described(box: Box) -> str:
    location = f"{box.width:.0f} x {box.height:.0f} pixels at {box.x:.0f}, {box.y:.0f}"
    return location if box.score is None else f"{location}, probability {box.score:.2f}"


def _score(model: Model, files: Sequence[str], text: str, boxes_text: str) -> Answer:
    phrases, boxes = lines_of(text), [parse_box(line) for line in lines_of(boxes_text)]
    [scores] = model.score(files[0], boxes, phrases)
    panel = replace(figures.located(model.read, files[0], most_probable(boxes, scores), scores.phrases), above=())
    return Answer(formatted_lines(boxes, scores), [Picture(drawn([panel]))])


def _match(model: Model, files: Sequence[str], text: str) -> Answer:
    texts = lines_of(text)
    [row] = matches(model, [model.read(files[0])], texts)
    shown = [formatted_scores(each.probability, each.cosine, each.sum) for each in row]
    names = [", ".join(shown[0])] if len(shown[0]) > 1 else []
    return Answer([*names, *(f"{'  '.join(one.values())}  {each.text}" for one, each in zip(shown, row, strict=True))])


def _compare(model: Model, files: Sequence[str], text: str) -> Answer:
    statements = lines_of(text)
    judged = model.compare([list(files)] * len(statements), statements)
    lines = [f"{one.label} ({one.score:.2f}): {text}" for one, text in zip(judged, statements, strict=True)]
    return Answer(lines)


def _knows_words(model: LoadedModel, text: str) -> bool:
    """Returns True if a model's tokenizer knows the words of a text without splitting most of them. For example, the tokenizer of
    a model of drawn shapes does not know "dog"."""
    tokens = model.tokenizer.tokenize(text)
    return not model.text.unknown(text) and len(tokens) <= 1.5 * len(text.split())


def _explain(model: Model, files: Sequence[str], text: str) -> Answer:
    [sentence, *_] = lines_of(text)
    maps, picture = model.explain(files[0], sentence), model.read.picture(files[0])
    largest = max(float(each.weights.max()) for each in maps) or 1.0
    pictures = [Picture(figures.overlaid(picture, each.weights / largest), each.word) for each in maps]
    return Answer(
        ["Where the model looks for each word, from blue (low) to red (the highest value over all words)."], pictures
    )


def _search_ability(index: ImageIndex) -> Ability:
    """Returns the ability to search an index. Pre-trained models also find boxes."""
    example = "a dog on a lawn"
    texts = [TextBox("a sentence", example if _knows_words(index.model, example) else "", 1)]
    if index.model.takes("locate"):
        texts.append(TextBox("a phrase to find in each image (if empty, the sentence)", "", 1))
    return Ability("search", 0, texts, "many", lambda files, texts: _search(index, *texts))


def _search(index: ImageIndex, text: str, phrase: str | None = None) -> Answer:
    """Returns the hits, each with the box of ``phrase``. If ``phrase`` is empty, the box of the sentence is shown; if it is None,
    no boxes are shown. Boxes below :data:`x2vlm.search.figures.MIN_BOX_PROBABILITY` are not shown, and the last line says so."""
    [sentence, *_] = lines_of(text)
    locate = phrase is not None and (lines_of(phrase)[0] if phrase.strip() else True)
    hits = index.search(sentence, top=HITS, locate=locate)
    if not hits:
        return Answer(["all images have been removed or changed since they were indexed"])
    improbable = sum(search_figures.is_improbable(hit) for hit in hits)
    hits = [replace(hit, box=None) if search_figures.is_improbable(hit) else hit for hit in hits]
    named = [(hit, printed(hit.path.name, "utf-8")) for hit in hits]
    least = search_figures.MIN_BOX_PROBABILITY
    note = f"{improbable} of {counted(len(hits), 'box', 'boxes')} not drawn: probability below {least:.2f}"
    return Answer(
        [
            ", ".join(hits[0].formatted_scores()),
            *(
                f"{'  '.join(hit.formatted_scores().values())}  {name}{'' if hit.box is None else f'  {_described(hit.box)}'}"
                for hit, name in named
            ),
            *([note] if improbable else []),
        ],
        [
            Picture(figures.marked(index.model.read, hit.path, hit.box), f"{hit.score:.2f} · {name}")
            for hit, name in named
        ],
    )
