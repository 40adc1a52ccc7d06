"""``python run.py predict CALL``: ask a trained model about images, and print, save or draw what it says."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.errors import UserError, one_line_errors
from utils.flags import positive
from utils.progress import progress_bar
from x2vlm.calls import IMAGE_SUFFIXES, VIDEO_SUFFIXES

if TYPE_CHECKING:
    from tasks.drawing import Panel
    from x2vlm.inputs import View
    from x2vlm.model import Box, Judgement, Model

STANDARD_INPUT = "-"
MOST_DRAWN = 48
"""Images that are drawn by --save, at most."""
MOST_TOLD = 5

TEXTS = {
    "answer": "a question; may be repeated, each is asked of every image",
    "locate": "a phrase; may be repeated, each is located in every image",
    "match": "a text; may be repeated, each is matched with every image",
    "compare": "a statement about the images, two at a time; may be repeated",
    "explain": "a text, whose words are looked for in every image",
}
"""What --text is in each call; captions need none."""

EXAMPLES = """examples:
  python run.py predict caption --model runs/demo/captioning-seed0 --image photos/
  python run.py predict answer --model runs/x --image dog.jpg --text "what is the dog doing?"
  python run.py predict locate --model weights/x2vlm_base_4m.th --image "photos/*.jpg" --text "the red car" --save boxes.png
  python run.py predict match --model runs/x --image dog.jpg --text "a dog" --text "a cat" --json
  find . -name "*.png" | python run.py predict caption --model runs/x --image -

exit status: 0 all images were read; 1 some could not be, and are told at the end; 2 nothing could be done"""


class Said(NamedTuple):
    """What a model says of an image (of a group of images): lines to print, values for JSON, panels to draw."""

    lines: list[str]
    values: dict[str, Any]
    panels: Callable[[], list[Panel]]


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py predict``."""
    parser = argparse.ArgumentParser(
        prog="run.py predict",
        description="Ask a trained model about your images: captions, answers, boxes, matches, comparisons, where it looks.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("call", choices=["caption", *TEXTS], help="what is asked for")
    flag("--model", required=True, metavar="M", help="a run's folder, a weight file, or hub:owner/name")
    flag(
        "--image",
        required=True,
        action="append",
        nargs="+",
        metavar="F",
        help="images, videos, folders, patterns; - reads paths from standard input",
    )
    flag(
        "--text",
        action="append",
        default=[],
        metavar="T",
        help="; ".join(f"{name}: {is_}" for name, is_ in TEXTS.items()),
    )
    flag(
        "--answers",
        metavar="FILE",
        help="answer: JSON list of the candidate answers (default: those that the run keeps)",
    )
    flag("--layer", type=int, metavar="N", help="explain: block of the fusion encoder, from 0")
    flag("--save", type=Path, metavar="PNG", help=f"draw the first {MOST_DRAWN} results")
    flag("--json", action="store_true", help="a JSON object in a line for each image")
    flag("--device", metavar="D", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    flag("--precision", default="fp32", choices=["fp32", "bf16", "fp16"], help="default: %(default)s")
    flag("--batch-size", type=positive, default=32, metavar="N", help="images of a forward pass (default: %(default)s)")
    flag("--config", metavar="FILE", help="config of the weights, where the file does not lie in its run's folder")
    flag("--tokenizer", metavar="DIR", help="tokenizer, if other than the model's own")
    arguments = parser.parse_args(argv)
    if arguments.call in TEXTS and not arguments.text:
        parser.error(f"{arguments.call} needs --text: {TEXTS[arguments.call]}")
    if arguments.call == "caption" and arguments.text:
        parser.error("caption takes no --text")
    return arguments


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Ask the model about every image; returns the exit status."""
    flags = arguments_of(argv)
    named = [path for patterns in flags.image for pattern in patterns for path in named_by(pattern)]
    from x2vlm.loading import load

    model = load(
        flags.model,
        device=flags.device,
        precision=flags.precision,
        config=flags.config,
        tokenizer=flags.tokenizer,
        answers=flags.answers,
    )
    model.batch_size = flags.batch_size
    paths = list(
        dict.fromkeys(path for name in named for path in in_folder(name, videos=model.read.videos is not None))
    )
    panels: list[Panel] = []
    broken: list[str] = []
    with progress_bar(total=len(paths), desc=flags.call, leave=False) as bar:
        for groups in _groups(model, paths, flags.call, broken):
            for said in _ask(model, groups, flags):
                bar.write(json.dumps(said.values, ensure_ascii=False) if flags.json else "\n".join(said.lines))
                if flags.save is not None and len(panels) < MOST_DRAWN:
                    panels += said.panels()
            bar.update(sum(map(len, groups)))
    if panels:
        from x2vlm.figures import draw

        sys.stderr.write(f"drawn: {draw(panels, flags.save, f'{flags.call}, by {flags.model}')}\n")
    return _told(broken, len(paths))


def named_by(pattern: str) -> list[str]:
    """The files and folders that a word of --image names.

    Raises:
        UserError: there is none.
    """
    if pattern == STANDARD_INPUT:
        return [line for line in (line.rstrip("\n") for line in sys.stdin) if line]
    path = str(Path(pattern).expanduser())
    found = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    if not found:
        raise UserError(f"--image {pattern}: no such file, and no file fits it as a pattern")
    return found


def in_folder(name: str, *, videos: bool) -> list[str]:
    """A file; or the images in a folder and the folders in it. For a model of ``videos`` the video files, or where there are none
    the folder itself, which then holds the frames of one.

    Raises:
        UserError: there is none.
    """
    if not Path(name).is_dir():
        return [name]
    wanted = VIDEO_SUFFIXES if videos else IMAGE_SUFFIXES
    files = [str(file) for file in sorted(Path(name).rglob("*")) if file.suffix.lower() in wanted]
    if not files and not videos:
        raise UserError(f"--image {name}: no image is in this folder")
    return files or [name]


def _groups(model: Model, paths: Sequence[str], call: str, broken: list[str]) -> Iterator[list[list[View]]]:
    """The views of images, in batches: each in a group of its own, for "compare" in groups of as many as the model compares. A
    group with an image that cannot be read is left out, and noted in ``broken``.

    Raises:
        UserError: images are left over.
    """
    size = getattr(model.network, "images", 1) if call == "compare" else 1
    if len(paths) % size:
        raise UserError(f"compare takes {size} images at a time; {len(paths)} were given")
    groups: list[list[View]] = []
    for start in range(0, len(paths), size):
        try:
            groups.append([model.read(path) for path in paths[start : start + size]])
        except UserError as error:
            broken.append(str(error))
        if len(groups) == model.batch_size:
            yield groups
            groups = []
    if groups:
        yield groups


def _ask(model: Model, groups: list[list[View]], flags: argparse.Namespace) -> Iterator[Said]:
    """What the model says of each group."""
    views = [group[0] for group in groups]
    texts: list[str] = flags.text
    if flags.call == "caption":
        for view, caption in zip(views, model.caption(views), strict=True):
            yield _lines(model, view, [caption], {"caption": caption})
    elif flags.call == "answer":
        answers = iter(model.answer([view for view in views for _ in texts], texts * len(views)))
        for view in views:
            by_question = {text: next(answers) for text in texts}
            yield _lines(
                model, view, [f"{text}  {said}" for text, said in by_question.items()], {"answers": by_question}
            )
    elif flags.call == "match":
        for view, row in zip(views, model.match(views, texts).tolist(), strict=True):
            scores = {text: round(score, 4) for text, score in zip(texts, row, strict=True)}
            best_first = sorted(scores.items(), key=lambda entry: -entry[1])
            yield _lines(model, view, [f"{score:.3f}  {text}" for text, score in best_first], {"scores": scores})
    elif flags.call == "locate":
        for view, boxes in zip(views, model.locate(views, [texts] * len(views)), strict=True):
            yield _located(model, view, boxes)
    elif flags.call == "compare":
        for text in texts:
            for group, judgement in zip(groups, model.compare(groups, [text] * len(groups)), strict=True):
                yield _compared(model, group, text, judgement)
    else:
        for view in views:
            for text in texts:
                yield _explained(model, view, text, flags.layer)


def _lines(model: Model, view: View, lines: list[str], values: dict[str, Any]) -> Said:
    """An image with lines of text."""
    from x2vlm import figures

    return Said(
        [view.name, *(f"  {line}" for line in lines)],
        {"image": view.name, **values},
        lambda: [figures.described(model.read, view.name, lines)],
    )


def _located(model: Model, view: View, boxes: Sequence[Box]) -> Said:
    from x2vlm import figures

    lines = [
        f"  {box.x:.0f}, {box.y:.0f}, {box.width:.0f} x {box.height:.0f}"
        f"{'' if box.score is None else f'  {box.score:.3f}'}  {box.phrase}"
        for box in boxes
    ]
    values = {"image": view.name, "size": view.size, "boxes": [_rounded(asdict(box)) for box in boxes]}
    return Said([view.name, *lines], values, lambda: [figures.located(model.read, view.name, boxes)])


def _compared(model: Model, group: Sequence[View], text: str, judgement: Judgement) -> Said:
    from x2vlm import figures

    names = [view.name for view in group]
    lines = [", ".join(names), f"  {judgement.label} {judgement.score:.3f}  {text}"]
    values = {"images": names, "statement": text, **_rounded(asdict(judgement))}
    return Said(lines, values, lambda: [figures.compared(model.read, names, text, judgement)])


def _explained(model: Model, view: View, text: str, layer: int | None) -> Said:
    """Where the greatest weight of each word is, in pixels; the whole map in the figure and in JSON."""
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
    return Said([view.name, *lines], values, lambda: figures.explained(model.read, view.name, maps))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def _told(broken: Sequence[str], count: int) -> int:
    """Tell what could not be read; returns the exit status."""
    if not broken:
        return 0
    for line in broken[:MOST_TOLD]:
        sys.stderr.write(f"not read: {line}\n")
    if len(broken) > MOST_TOLD:
        sys.stderr.write(f"not read: … and {len(broken) - MOST_TOLD:,} more\n")
    sys.stderr.write(f"error: {len(broken):,} of {count:,} images could not be read\n")
    return 1
