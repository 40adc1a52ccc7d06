"""Code shared by the commands that use a trained model."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from utils.commands import FLAGS
from utils.errors import UserError
from utils.flags import File, Positive, named

if TYPE_CHECKING:
    from x2vlm.model import Model

MAX_DRAWN = 48
"""Maximum number of results that --save draws."""
MAX_REPORTED = 5
"""Maximum number of broken images that are named."""


@FLAGS
@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Options for running a model.

    Attributes:
        device: cpu, cuda, cuda:1 (default: a GPU if there is one).
        precision: precision of the computation.
        batch_size: number of images in a forward pass.
        config: config that the weights were trained with, if the file is not in its run's folder.
        tokenizer: folder of a tokenizer to use instead of the model's.
        task: folder of a task of your own, if it is no longer where the run was trained.
    """

    device: Annotated[str | None, named("DEVICE")] = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: Positive = 32
    config: File | None = None
    tokenizer: Annotated[str | None, named("FOLDER")] = None
    task: Annotated[str | None, named("FOLDER")] = None

    def load(self, source: str, answers: str | None = None) -> Model:
        """Loads the model ``source`` with these options."""
        from x2vlm.loading import load

        model = load(
            source,
            device=self.device,
            precision=self.precision,
            config=self.config,
            tokenizer=self.tokenizer,
            answers=answers,
            task=self.task,
        )
        model.batch_size = self.batch_size
        return model


def check_save(path: Path, images: Sequence[str]) -> None:
    """Checks the path of a figure before anything is computed, and creates its folder.

    Raises:
        UserError: if the path is not a PNG, is one of the images, or is a folder.
    """
    if path.suffix.lower() != ".png":
        raise UserError("figures are written as PNG", where=f"--save {path}", remedy="use a name that ends with .png")
    # Path.resolve would raise an error for a loop of symbolic links.
    target = Path(os.path.realpath(path))
    for image in (Path(os.path.realpath(name)) for name in images):
        # An existing file in a folder of images counts as one of the images.
        if target == image or (target.exists() and image.is_dir() and target.is_relative_to(image)):
            raise UserError("this is one of the images", where=f"--save {path}", remedy="use another name")
    if path.is_dir():
        raise UserError("is a folder", where=f"--save {path}", remedy="use another name")
    path.parent.mkdir(parents=True, exist_ok=True)


def report_broken(broken: Sequence[str], count: int) -> int:
    """Reports the images that could not be read, and returns the exit status."""
    if not broken:
        return 0
    for line in broken[:MAX_REPORTED]:
        sys.stderr.write(f"not read: {line}\n")
    if len(broken) > MAX_REPORTED:
        sys.stderr.write(f"not read: … and {len(broken) - MAX_REPORTED:,} more\n")
    if len(broken) == count:
        raise UserError("no image could be read")
    sys.stderr.write(f"error: {len(broken):,} of {count:,} images could not be read\n")
    return 1
