"""``python -m demo.scenes``: draw the scenes data set."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

from demo.folder import FolderFlags, Seed, fill_folder
from demo.scenes.build import FACTS, build
from utils.commands import call
from utils.flags import WrongValueError, read_by, whole_number


def _size(text: str) -> tuple[int, int]:
    side = whole_number(32, 1024)
    width, cross, height = text.lower().partition("x")
    try:
        return side(width), side(height if cross else width)
    except WrongValueError:
        fact = f"{text!r} is not a size from 32 to 1,024"
        raise WrongValueError(f"{fact}; use 64, or 96x64 for width x height") from None


Size = Annotated[tuple[int, int], read_by(_size, n_tokens=1, accepts_keys=False, metavar="SIZE", show_default="64")]
Split = Annotated[int, read_by(whole_number(1, 10_000))]


def scenes(
    *,
    output: FolderFlags,
    seed: Seed = 0,
    train: Annotated[int, read_by(whole_number(1, 1_000_000))] = 6000,
    val: Split = 200,
    test: Split = 200,
    size: Size = (64, 64),
    long: bool = False,
) -> int:
    """Draw the scenes data set.

    Args:
        seed: seed of the content of the scenes.
        train: number of training scenes.
        val: number of validation scenes.
        test: number of test scenes.
        size: size of an image in pixels: 64, or 96x64 for width x height.
        long: also write a long description of each scene (long_caption in the records for pre-training).

    Examples:
        python -m demo.scenes --out data/scenes
    """
    started = time.monotonic()

    def summary(facts: dict[str, Any]) -> str:
        arguments = facts["arguments"]
        width, height = arguments["size"]
        return (
            f"{arguments['train']} train, {arguments['val']} val, {arguments['test']} test scenes of {width}x{height} "
            f"pixels; {sum(facts['objects'].values())} objects, {sum(facts['relations'].values())} relational "
            f"phrases, {sum(facts['sentences'].values())} statements about two pictures, "
            f"{sum(sum(grains.values()) for grains in facts['referring'].values())} referring phrases, "
            f"{sum(facts['questions'].values())} questions, {facts['vocabulary']} word pieces; "
            f"{time.monotonic() - started:.0f} s"
        )

    return fill_folder(output, FACTS, build, summary, seed=seed, train=train, val=val, test=test, size=size, long=long)


if __name__ == "__main__":
    sys.exit(call(scenes, sys.argv[1:], "python -m demo.scenes"))
