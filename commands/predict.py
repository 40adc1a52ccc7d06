"""``run.py predict CALL``: runs a trained model on images, and prints, saves or draws the results."""

from __future__ import annotations

import glob
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter

from commands.models import MAX_DRAWN, ModelFlags, check_save, report_broken
from tasks.kinds import TASK_FILE
from utils.commands import STANDARD_INPUT
from utils.errors import UserError
from utils.flags import (
    SEVERAL,
    File,
    Fraction,
    ModelName,
    OutputFile,
    named,
    non_blank,
    read_by,
    unknown,
)
from utils.printing import printed, printed_json
from utils.progress import progress_bar
from utils.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from x2vlm.calls import CALLS

if TYPE_CHECKING:
    from models.config import AnswerDecoding
    from tasks.drawing import Panel
    from x2vlm.boxes import TypedBox
    from x2vlm.inputs import View
    from x2vlm.matching import Match
    from x2vlm.model import Box, Judgement, Model
    from x2vlm.scoring import BoxScores


TEXTS = {name: call.text for name, call in CALLS.items() if call.text}
"""Description of --text for each call that takes this option."""

CALL_NAMES = [name for name, call in CALLS.items() if call.text is not None]
"""The calls that the command offers."""


if TYPE_CHECKING:
    CallName = str
else:
    # A task of the user's own may declare other calls; shells complete these names.
    CallName = Annotated[Literal[tuple(CALL_NAMES)] | str, Parameter(show_choices=False)]


class Result(NamedTuple):
    """A model's result for an image or a group of images: lines to print, values for JSON, and panels to draw."""

    lines: list[str]
    values: dict[str, Any]
    panels: Callable[[], list[Panel]]


def predict(
    call: CallName,
    /,
    *,
    model: ModelName,
    image: Annotated[list[File], SEVERAL],
    text: Annotated[tuple[Annotated[str, read_by(non_blank)], ...], named("TEXT")] = (),
    box: Annotated[tuple[str, ...], named("X,Y,WIDTH,HEIGHT")] = (),
    answers: File | None = None,
    decode: Annotated[Literal["rank", "beam"] | None, Parameter(show_choices=False)] = None,
    layer: int | None = None,
    all_: bool = False,
    threshold: Fraction | None = None,
    save: OutputFile | None = None,
    json_: bool = False,
    running: ModelFlags = ModelFlags(),
) -> int:
    """Run a trained model on your images: captions, answers, boxes, matches, comparisons, attention maps.

    Args:
        call: what to compute: caption, answer, locate, score, match, compare, explain, or a call of a task of your own.
        model: a run's folder, a weight file, hub:owner/name, or an export.
        image: images, videos, folders or patterns; - reads paths from standard input.
        text: for answer, a question; for locate and score, a phrase; for match, a text; for compare, a statement about each
            pair of images; for explain, a text; a map is computed for each of its words. May be repeated; each text is used
            with every image.
        box: for score, a box in pixels; may be repeated.
        answers: for answer, a JSON list of the candidate answers (default: the answers saved with the run).
        decode: for answer, rank to choose one of the candidates, or beam to generate an answer (default: the run's
            evaluation.decode).
        all_: for locate, return all boxes of each phrase (several or none) instead of the best one.
        threshold: for locate --all, the minimum probability of a box (default: the run's evaluation.threshold, or 0.5).
        layer: for explain, the index of a block of the fusion encoder, from 0.
        save: draw the first 48 results as a PNG.
        json_: print a JSON object for each image, one per line.

    Examples:
        python run.py predict caption --model runs/demo/captioning-seed0 --image photos/
        python run.py predict answer --model runs/x --image dog.jpg --text "what is the dog doing?"
        python run.py predict locate --model weights/x2vlm_base_4m.th --image "photos/*.jpg" --text "the red car" --save boxes.png
        python run.py predict score --model runs/x --image dog.jpg --box 20,30,64,48 --text "a dog" --text "a cat"
        python run.py predict match --model runs/x --image dog.jpg --text "a dog" --text "a cat" --json
        find . -name "*.png" | python run.py predict caption --model runs/x --image -

    Returns:
        0 all images were read; 1 some could not be read and are listed at the end; 2 nothing was computed
    """
    if call not in CALL_NAMES and running.task is None and not (Path(model) / TASK_FILE).is_file():
        raise UserError(
            unknown(call, CALL_NAMES), where="CALL", remedy="for a call of a task of your own, pass --task FOLDER"
        )
    if call != "caption" and not text:
        raise UserError(
            f"{call} needs --text: {TEXTS.get(call, 'a text; may be repeated, and each is used with every image')}"
        )
    if call == "caption" and text:
        raise UserError("caption does not take --text", remedy="remove the flag")
    if decode is not None and call != "answer":
        raise UserError(f"{call} does not answer questions", where=f"--decode {decode}", remedy="remove the flag")
    if decode == "beam" and answers is not None:
        raise UserError(
            "with --decode beam, answers are generated, not chosen",
            where=f"--answers {answers}",
            remedy="pass only one of the two",
        )
    if all_ and call != "locate":
        raise UserError(f"{call} does not find boxes", where="--all", remedy="remove the flag")
    if bool(box) != (call == "score"):
        raise UserError("score needs --box" if call == "score" else f"{call} does not take --box")
    if threshold is not None and not all_:
        raise UserError("needs locate --all", where="--threshold", remedy="remove the flag, or add --all")
    from x2vlm.boxes import parse_box

    boxes = [parse_box(each) for each in box]
    names = [path for pattern in image for path in expand_pattern(pattern)]
    if save is not None:
        check_save(save, names)
    loaded = running.load(model, answers)
    if call not in CALL_NAMES and call not in loaded.calls:
        raise UserError(unknown(call, [*CALL_NAMES, *loaded.calls]), where="CALL")
    paths = [path for name in names for path in expand_folder(name, videos=loaded.read.videos is not None)]
    panels: list[Panel] = []
    broken: list[str] = []
    drawn = 0
    with progress_bar(total=len(paths), desc=call, leave=False) as bar:
        for groups in _groups(loaded, paths, call, broken):
            for result in _results(loaded, groups, call, list(text), boxes, layer, decode, all_, threshold):
                bar.write(printed_json(result.values) if json_ else "\n".join(map(printed, result.lines)))
                if save is not None and drawn < MAX_DRAWN:
                    panels += result.panels()
                    drawn += 1
            bar.update(sum(map(len, groups)))
    if panels and save is not None:
        from x2vlm.figures import draw

        sys.stderr.write(f"drawn: {draw(panels, save, f'{call}, by {model}')}\n")
    return report_broken(broken, len(paths))


def expand_pattern(pattern: str) -> list[str]:
    """Returns the files and folders that match a value of --image.

    Raises:
        UserError: if nothing matches.
    """
    if pattern == STANDARD_INPUT:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # file names may contain any bytes
        listed = [line for line in (line.rstrip("\n") for line in sys.stdin) if line]
        if not listed:
            raise UserError("--image -: no path on standard input", remedy="write one path per line")
        return listed
    path = str(Path(pattern).expanduser())
    found = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    if not found:
        raise UserError("no such file, and no file matches it as a pattern", where=f"--image {pattern}")
    return found


def expand_folder(name: str, *, videos: bool) -> list[str]:
    """Returns a file, or the images in a folder and its subfolders. If the model takes ``videos``, returns the video files or,
    without video files, the folder itself, which must then contain the frames of one video.

    Raises:
        UserError: if the folder contains no image.
    """
    if not Path(name).is_dir():
        return [name]
    wanted = VIDEO_SUFFIXES if videos else IMAGE_SUFFIXES
    files = [str(file) for file in sorted(Path(name).rglob("*")) if file.suffix.lower() in wanted]
    if not files and not videos:
        raise UserError("there is no image in this folder", where=f"--image {name}")
    return files or [name]


def _groups(model: Model, paths: Sequence[str], call: str, broken: list[str]) -> Iterator[list[list[View]]]:
    """Yields the views of images in batches of groups. A group has a single image or, for "compare", as many images as the
    model compares. A group with an image that cannot be read is skipped, and the reason is added to ``broken``.

    Raises:
        UserError: if the number of images is not a multiple of the group size.
    """
    size = getattr(model.network, "images", 1) if call == "compare" and model.takes(call) else 1
    if len(paths) % size:
        raise UserError(
            f"compare takes {size} images at a time, but --image names {len(paths)}",
            remedy=f"pass a multiple of {size}",
        )
    groups: list[list[View]] = []
    for start in range(0, len(paths), size):
        try:
            groups.append([model.read(path) for path in paths[start : start + size]])
        except UserError as error:
            others = f"; skipped with it: {', '.join(paths[start : start + size])}" if size > 1 else ""
            broken.append(f"{error}{others}")
        if len(groups) == model.batch_size:
            yield groups
            groups = []
    if groups:
        yield groups


def _results(
    model: Model,
    groups: list[list[View]],
    call: str,
    texts: list[str],
    boxes: Sequence[TypedBox],
    layer: int | None,
    decode: AnswerDecoding | None,
    all_boxes: bool,
    threshold: float | None,
) -> Iterator[Result]:
    """Yields the model's result for each group."""
    views = [group[0] for group in groups]
    if call == "caption":
        for view, caption in zip(views, model.caption(views), strict=True):
            yield _lines(model, view, [caption], {"caption": caption})
    elif call == "answer":
        answers = iter(model.answer([view for view in views for _ in texts], texts * len(views), decode=decode))
        for view in views:
            replies = [{"question": text, "answer": next(answers)} for text in texts]
            lines = [f"{reply['question']}  {reply['answer']}" for reply in replies]
            yield _lines(model, view, lines, {"answers": replies})
    elif call == "match":
        from x2vlm.matching import matches

        for view, row in zip(views, matches(model, views, texts), strict=True):
            yield _matched(model, view, texts, row)
    elif call == "locate":
        located = model.locate(views, [texts] * len(views), boxes="all" if all_boxes else "one", threshold=threshold)
        for view, found in zip(views, located, strict=True):
            yield _located(model, view, found, texts)
    elif call == "score":
        for view, scores in zip(views, model.score(views, [boxes] * len(views), [texts] * len(views)), strict=True):
            yield _scored(model, view, boxes, scores)
    elif call == "compare":
        for text in texts:
            for group, judgement in zip(groups, model.compare(groups, [text] * len(groups)), strict=True):
                yield _compared(model, group, text, judgement)
    elif call == "explain":
        for view in views:
            for text in texts:
                yield _explained(model, view, text, layer)
    else:
        for view, results in zip(views, model.call(call, views, texts), strict=True):
            by_text = dict(zip(texts, results, strict=True))
            lines = [
                f"{result if isinstance(result, str) else printed_json(result)}  {text}"
                for text, result in by_text.items()
            ]
            yield _lines(model, view, lines, {"image": view.name, call: by_text})


def _lines(model: Model, view: View, lines: list[str], values: dict[str, Any]) -> Result:
    """Returns a result that consists of lines of text about an image."""
    from x2vlm import figures

    return Result(
        [view.name, *(f"  {line}" for line in lines)],
        {"image": view.name, **values},
        lambda: [figures.described(model.read, view.name, lines)],
    )


def _matched(model: Model, view: View, texts: Sequence[str], best_first: Sequence[Match]) -> Result:
    """Returns the result for an image and its texts. If each text has several scores, the first line names them."""
    from x2vlm import figures
    from x2vlm.matching import formatted_scores

    shown = [formatted_scores(each.probability, each.cosine, each.sum) for each in best_first]
    names = f"  ({', '.join(shown[0])})" if len(shown[0]) > 1 else ""
    lines = [f"{'  '.join(each.values())}  {match.text}" for each, match in zip(shown, best_first, strict=True)]
    by_text = {match.text: match for match in best_first}
    scores = []
    for text in texts:
        match = by_text[text]
        values = {"score": match.probability, "cosine": match.cosine, "sum": match.sum}
        scores.append(_rounded({"text": text, **{name: value for name, value in values.items() if value is not None}}))
    return Result(
        [f"{view.name}{names}", *(f"  {line}" for line in lines)],
        {"image": view.name, "scores": scores},
        lambda: [figures.described(model.read, view.name, lines)],
    )


def _located(model: Model, view: View, boxes: Sequence[Box], texts: Sequence[str]) -> Result:
    from x2vlm import figures
    from x2vlm.boxes import absent

    lines = []
    for text in dict.fromkeys(texts):
        text_lines = [
            f"  {box.x:.0f}, {box.y:.0f}, {box.width:.0f} x {box.height:.0f}"
            f"{'' if box.score is None else f'  {box.score:.3f}'}  {box.phrase}"
            for box in boxes
            if box.phrase == text
        ]
        lines += text_lines or [f"  no box  {text}"]
    values = {"image": view.name, "size": view.size, "boxes": [_rounded(asdict(box)) for box in boxes]}
    if missing := absent(texts, boxes):
        values["absent"] = missing
    return Result([view.name, *lines], values, lambda: [figures.located(model.read, view.name, boxes, texts)])


def _scored(model: Model, view: View, boxes: Sequence[TypedBox], scores: BoxScores) -> Result:
    """Returns a line for each box and phrase, and a line for each phrase with the probability that it is absent. The figure shows
    each box with its most probable phrase."""
    from x2vlm import figures
    from x2vlm.scoring import formatted_lines, most_probable

    entries: list[dict[str, Any]] = []
    for row, box in enumerate(boxes):
        for column, phrase in enumerate(scores.phrases):
            values = {name: float(table[row, column]) for name, table in scores.tables().items()}
            entries.append(_rounded({"box": list(box), "phrase": phrase, **values}))
    absent = _rounded(dict(zip(scores.phrases, scores.absent.tolist(), strict=True)))
    located = most_probable(boxes, scores)
    return Result(
        [view.name, *(f"  {line}" for line in formatted_lines(boxes, scores))],
        {"image": view.name, "scores": entries, "absent": absent},
        lambda: [figures.located(model.read, view.name, located, scores.phrases)],
    )


def _compared(model: Model, group: Sequence[View], text: str, judgement: Judgement) -> Result:
    from x2vlm import figures

    names = [view.name for view in group]
    lines = [", ".join(names), f"  {judgement.label} {judgement.score:.3f}  {text}"]
    values = {"images": names, "statement": text, **_rounded(asdict(judgement))}
    return Result(lines, values, lambda: [figures.compared(model.read, names, text, judgement)])


def _explained(model: Model, view: View, text: str, layer: int | None) -> Result:
    """Returns the position in pixels of the maximum weight of each word. The figure and the JSON contain the complete map."""
    from x2vlm import figures

    maps, (width, height) = model.explain(view, text, layer=layer), view.size
    lines = []
    for each in maps:
        rows, columns = each.weights.shape
        row, column = divmod(int(each.weights.argmax()), columns)
        x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
        lines.append(f"  {x:.0f}, {y:.0f}  {each.word}")
    values = {
        "image": view.name,
        "text": text,
        "words": [{"word": m.word, "weights": m.weights.tolist()} for m in maps],
    }
    return Result([view.name, *lines], values, lambda: figures.explained(model.read, view.name, maps, text))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
