"""``python -m demo.clips --out DIR``: clips of drawn scenes in which the order of the frames matters.

In each clip one object of a scene moves across it, to the left, to the right, up or down, and the others stay. No single frame
tells which way, and neither do all frames without their order: a clip played backwards is as likely a clip as itself. A clip is a
JSON list of base64 JPEGs, the released form of a video, and what a clip shows is a pure function of (seed, split, index).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from dataset.prepare.folders import SPLITS, LineParser, claim_folder, close_folder, whole_number, write_records
from demo.scenes.compose import Scene, compose_scene, stream
from demo.scenes.describe import PAIR, Mention
from demo.scenes.draw import draw_scene
from demo.scenes.wording import noun_phrase
from utils.errors import UserError, one_line_errors
from utils.files import write_text
from utils.progress import progress_bar

Direction = Literal["left", "right", "up", "down"]
DIRECTIONS: tuple[Direction, ...] = ("left", "right", "up", "down")

FACTS = "clips.json"
ANSWERS = "answers.json"
TASKS = ("retrieval", "questions")
OWNED = (*(f"{task}_{split}.jsonl" for task in TASKS for split in SPLITS), ANSWERS, "frames")

CLIP_STREAM = 100
"""Of random numbers, apart from those of the scenes' own texts."""

OBJECTS = 2
"""Of a scene, at most: a moving object should not hide many others."""

LEAST_WAY = 0.5
"""Of the way that an object could go, at least; the rest is drawn."""

MAKING = 1
"""Goes up when the same arguments give other pictures or texts."""


@dataclass(frozen=True)
class Clip:
    """``frames`` scenes that differ in the place of object ``mover``."""

    frames: tuple[Scene, ...]
    mover: int
    direction: Direction


def compose_clip(seed: int, split: str, index: int, size: int = 64, frames: int = 4) -> Clip:
    """One clip; the order in which clips are asked for does not matter."""
    whole = compose_scene(seed, split, index, size)
    scene = replace(whole, objects=whole.objects[:OBJECTS])
    rng = stream(seed, split, index, CLIP_STREAM)
    mover, direction = int(rng.integers(len(scene.objects))), DIRECTIONS[rng.integers(len(DIRECTIONS))]
    axis = 0 if direction in ("left", "right") else 1
    box = scene.objects[mover].box
    room = (scene.width, scene.height)[axis] - box[axis + 2]
    way = round(room * float(rng.uniform(LEAST_WAY, 1.0)))
    low = int(rng.integers(room - way + 1))
    places = [low + round(way * frame / (frames - 1)) for frame in range(frames)]
    if direction in ("left", "up"):
        places.reverse()
    return Clip(tuple(_moved(scene, mover, axis, place) for place in places), mover, direction)


def _moved(scene: Scene, mover: int, axis: int, place: int) -> Scene:
    """The moving object is drawn last: nothing hides it."""
    thing = scene.objects[mover]
    box = [*thing.box]
    box[axis] = place
    still = [other for number, other in enumerate(scene.objects) if number != mover]
    x, y, w, h = box
    return replace(scene, objects=(*still, replace(thing, box=(x, y, w, h))))


def caption(clip: Clip) -> str:
    """ "the red star moves to the left and the blue square stays"."""
    *still, moving = (noun_phrase(clip.frames[0], Mention(n, PAIR), definite=True) for n in _places(clip))
    return " and ".join([f"{moving} moves {_way(clip.direction)}", *(f"{name} stays" for name in still)])


def question(clip: Clip) -> str:
    """ "which way does the red star move?"."""
    moving = noun_phrase(clip.frames[0], Mention(len(clip.frames[0].objects) - 1, PAIR), definite=True)
    return f"which way does {moving} move?"


def _places(clip: Clip) -> range:
    return range(len(clip.frames[0].objects))


def _way(direction: Direction) -> str:
    return f"to the {direction}" if direction in ("left", "right") else direction


def encode_frames(clip: Clip) -> list[str]:
    """The frames as base64 JPEGs."""
    encoded = []
    for scene in clip.frames:
        content = io.BytesIO()
        Image.fromarray(draw_scene(scene)).save(content, "JPEG", quality=92)
        encoded.append(base64.b64encode(content.getvalue()).decode("ascii"))
    return encoded


def build(
    out: Path,
    *,
    seed: int = 0,
    train: int = 2000,
    val: int = 200,
    test: int = 200,
    size: int = 64,
    frames: int = 4,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Make ``out/retrieval_{split}.jsonl``, ``out/questions_{split}.jsonl``, ``out/answers.json``, ``out/frames/`` and, last,
    ``out/clips.json``, whose content is given back. The scenes' tokenizer spells the words that are new.

    A folder that is complete and was made with the same arguments is left as it is.

    Raises:
        UserError: the folder was made with other arguments, holds files of another origin, or cannot be written.
    """
    counts = {"train": train, "val": val, "test": test}
    arguments = {"seed": seed, **counts, "size": size, "frames": frames, "making": MAKING}
    facts: dict[str, Any] = {"arguments": arguments, "directions": {}}
    if not claim_folder(out, FACTS, arguments, OWNED, overwrite=overwrite):
        return facts
    try:
        with progress_bar(total=sum(counts.values()), quiet=not progress, desc="drawing clips", unit="clip") as bar:
            for split, count in counts.items():
                made = []
                (out / "frames" / split).mkdir(parents=True, exist_ok=True)
                for record in _records(out, seed, split, count, size, frames):
                    made.append(record)
                    bar.update()
                pairs = [{name: record[name] for name in ("video", "caption", "image_id")} for record in made]
                asked = [{name: record[name] for name in ("video", "question", "answer", "id")} for record in made]
                write_records(out / f"retrieval_{split}.jsonl", pairs)
                write_records(out / f"questions_{split}.jsonl", asked)
                facts["directions"][split] = dict(Counter(record["answer"] for record in made))
        write_text(out / ANSWERS, json.dumps(list(DIRECTIONS)) + "\n")
        close_folder(out, FACTS, facts)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    return facts


def _records(out: Path, seed: int, split: str, count: int, size: int, frames: int) -> Iterator[dict[str, Any]]:
    for index in range(count):
        clip = compose_clip(seed, split, index, size, frames)
        name = f"{split}/{index:06d}"
        write_text(out / f"frames/{name}.json", json.dumps(encode_frames(clip)))
        yield {
            "video": f"frames/{name}.json",
            "caption": caption(clip),
            "image_id": name,
            "id": index,
            "question": question(clip),
            "answer": clip.direction,
        }


def _parser() -> LineParser:
    parser = LineParser(prog="python -m demo.clips", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill; made if missing")
    parser.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=0)
    for split, count in (("train", 2000), ("val", 200), ("test", 200)):
        parser.add_argument(f"--{split}", type=whole_number(1, 1_000_000), default=count, metavar="N", help="clips")
    parser.add_argument("--size", type=whole_number(32, 1024), default=64, metavar="PIXELS", help="side of a frame")
    parser.add_argument("--frames", type=whole_number(2, 100), default=4, metavar="N", help="frames of a clip")
    parser.add_argument("--overwrite", action="store_true", help="replace what other arguments made in DIR")
    return parser


@one_line_errors
def main() -> int:
    """Draw the clips and print one line of facts; exit status 2 for a mistake of the user."""
    flags = vars(_parser().parse_args())
    facts = build(flags["out"], **{name: value for name, value in flags.items() if name != "out"}, progress=True)
    if not facts["directions"]:
        sys.stdout.write(f"{flags['out']} is already complete with these arguments; nothing to do\n")
        return 0
    said = ", ".join(f"{flags[split]} {split}" for split in SPLITS)
    sys.stdout.write(f"{flags['out']}: {said} clips of {flags['frames']} frames\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
