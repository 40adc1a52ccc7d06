"""What the commands that use a trained model have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from utils.commands import FLAGS
from utils.errors import UserError
from utils.flags import Positive

if TYPE_CHECKING:
    from x2vlm.model import Model

MOST_DRAWN = 48
"""Results that are drawn by --save, at most."""
MOST_TOLD = 5


@FLAGS
@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """How a model runs.

    Attributes:
        device: cpu, cuda, cuda:1 (default: a GPU if there is one).
        precision: of the computation.
        batch_size: images of a forward pass.
        config: config of the weights, where the file does not lie in its run's folder.
        tokenizer: tokenizer, if other than the model's own.
    """

    device: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: Positive = 32
    config: str | None = None
    tokenizer: str | None = None

    def load(self, source: str, answers: str | None = None) -> Model:
        """The model ``source``, as these flags say."""
        from x2vlm.loading import load

        model = load(
            source,
            device=self.device,
            precision=self.precision,
            config=self.config,
            tokenizer=self.tokenizer,
            answers=answers,
        )
        model.batch_size = self.batch_size
        return model


def check_save(path: Path, images: Sequence[str]) -> None:
    """Check the file of a figure before anything is computed, and make its folder.

    Raises:
        UserError: it is not a PNG, is one of the images, or cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--save {path}: a figure is a PNG; give a name that ends with .png")
    # Not Path.resolve, which raises where symbolic links are a loop.
    target = Path(os.path.realpath(path))
    for image in (Path(os.path.realpath(name)) for name in images):
        # What lies in a folder of images, and is there already, is one of them.
        if target == image or (target.exists() and image.is_dir() and target.is_relative_to(image)):
            raise UserError(f"--save {path}: this is one of the images; give another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--save {path}: its folder cannot be made: {error.strerror}") from None
    if not os.access(path if path.exists() else path.parent, os.W_OK) or path.is_dir():
        raise UserError(f"--save {path}: cannot be written; give another name")


def report_broken(broken: Sequence[str], count: int) -> int:
    """Tell what could not be read; returns the exit status."""
    if not broken:
        return 0
    for line in broken[:MOST_TOLD]:
        sys.stderr.write(f"not read: {line}\n")
    if len(broken) > MOST_TOLD:
        sys.stderr.write(f"not read: … and {len(broken) - MOST_TOLD:,} more\n")
    if len(broken) == count:
        raise UserError("no image could be read")
    sys.stderr.write(f"error: {len(broken):,} of {count:,} images could not be read\n")
    return 1
