"""``python -m demo.clips``: clips of drawn scenes in which the order of the frames matters."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from PIL import Image

from dataset.prepare.folders import SPLITS, write_records
from dataset.prepare.output_folder import OutputFolder
from demo.folder import FolderFlags, Seed, is_complete, write_clip
from demo.scenes.compose import Scene, compose_scene, generator_for, one_of
from demo.scenes.describe import looks_of
from demo.scenes.draw import draw_scene
from utils.commands import call
from utils.files import write_text
from utils.flags import read_by, whole_number
from utils.progress import progress_bar

Count = Annotated[int, read_by(whole_number(1, 1_000_000))]

Direction = Literal["left", "right", "up", "down"]
DIRECTIONS: tuple[Direction, ...] = ("left", "right", "up", "down")

FACTS = "clips.json"
ANSWERS = "answers.json"
TASKS = ("retrieval", "questions")
OWNED = (*(f"{task}_{split}.jsonl" for task in TASKS for split in SPLITS), ANSWERS, "frames")
"""Files and folders that the command writes. Models for the clips use the scenes' tokenizer, which splits unknown words into
letters."""

CLIP_PURPOSE = 100
"""Purpose for :func:`demo.scenes.compose.generator_for`. It differs from the purposes that scenes use, so that a clip's random
numbers are independent of its scene's."""

MAX_OBJECTS = 2
"""Maximum number of objects in a clip, so that a moving object does not hide many others."""

MIN_DISTANCE = 0.5
"""Minimum distance that an object moves, as a fraction of the available distance."""

DATA_VERSION = 1
"""Version number, increased when the same arguments give different images or texts."""


@dataclass(frozen=True)
class Clip:
    """A clip, whose ``frames`` are scenes that differ only in the position of the last object. The last object is drawn on top,
    so that nothing hides it."""

    frames: tuple[Scene, ...]
    direction: Direction


def compose_clip(seed: int, split: str, index: int, size: int = 64, frames: int = 4) -> Clip:
    """Composes a clip. The result does not depend on the order of calls."""
    scene = compose_scene(seed, split, index, size)
    objects = list(scene.objects[:MAX_OBJECTS])
    rng = generator_for(seed, split, index, CLIP_PURPOSE)
    moving = objects.pop(int(rng.integers(len(objects))))
    direction = one_of(rng, DIRECTIONS)
    axis = 0 if direction in ("left", "right") else 1
    room = size - moving.box[axis + 2]
    distance = round(room * float(rng.uniform(MIN_DISTANCE, 1.0)))
    low = int(rng.integers(room - distance + 1))
    offsets = [low + round(distance * frame / (frames - 1)) for frame in range(frames)]
    if direction in ("left", "up"):
        offsets.reverse()
    x, y, w, h = moving.box
    boxes = [(offset, y, w, h) if axis == 0 else (x, offset, w, h) for offset in offsets]
    return Clip(
        tuple(replace(scene, objects=(*objects, replace(moving, box=box))) for box in boxes),
        direction,
    )


def caption(clip: Clip) -> str:
    """Returns a caption such as "the red star moves to the left and the blue square stays"."""
    *still, moving = _names(clip)
    direction = f"to the {clip.direction}" if clip.direction in ("left", "right") else clip.direction
    return " and ".join([f"{moving} moves {direction}", *(f"{name} stays" for name in still)])


def question(clip: Clip) -> str:
    """Returns a question such as "which way does the red star move?"."""
    return f"which way does {_names(clip)[-1]} move?"


def _names(clip: Clip) -> list[str]:
    named = frozenset({"colour", "shape"})
    return [f"the {looks_of(obj, named).name()}" for obj in clip.frames[0].objects]


def clips(
    *,
    output: FolderFlags,
    seed: Seed = 0,
    train: Count = 2000,
    val: Count = 200,
    test: Count = 200,
    size: Annotated[int, read_by(whole_number(32, 1024))] = 64,
    frames: Annotated[int, read_by(whole_number(2, 100))] = 4,
) -> int:
    """Draw clips of scenes in which the order of the frames matters.

    In each clip, one object of a scene moves to the left, to the right, up or down, and the other objects stay. The direction
    cannot be inferred from a single frame, or from the frames without their order, because a reversed clip is equally likely.
    A clip is a JSON list of base64 JPEGs, the released format of videos, and its content is a pure function of (seed, split,
    index).

    Args:
        seed: seed of the content of the clips.
        train: number of training clips.
        val: number of validation clips.
        test: number of test clips.
        size: side of a frame in pixels.
        frames: number of frames per clip.

    Examples:
        python -m demo.clips --out data/clips
    """
    counts = {"train": train, "val": val, "test": test}
    arguments = {"seed": seed, **counts, "size": size, "frames": frames, "making": DATA_VERSION}
    folder = OutputFolder(output.out, FACTS, arguments, OWNED, output.overwrite)
    if is_complete(folder):
        return 0
    with folder, progress_bar(total=sum(counts.values()), desc="drawing clips", unit="clip") as bar:
        directions = {}
        for split, count in counts.items():
            captioned, questions = [], []
            for index in range(count):
                clip = compose_clip(seed, split, index, size, frames)
                name = f"{split}/{index:06d}"
                video = write_clip(folder.out, name, (Image.fromarray(draw_scene(scene)) for scene in clip.frames))
                captioned.append({"video": video, "caption": caption(clip), "image_id": name})
                questions.append({"video": video, "question": question(clip), "answer": clip.direction, "id": index})
                bar.update()
            write_records(folder.out / f"retrieval_{split}.jsonl", captioned)
            write_records(folder.out / f"questions_{split}.jsonl", questions)
            directions[split] = Counter(record["answer"] for record in questions)
        write_text(folder.out / ANSWERS, json.dumps(list(DIRECTIONS)) + "\n")
        folder.close({"directions": directions})
    sys.stdout.write(f"{folder.out}: {train} train, {val} val, {test} test clips of {frames} frames\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(clips, sys.argv[1:], "python -m demo.clips"))
