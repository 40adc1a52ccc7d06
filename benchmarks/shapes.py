"""Measures what linear classifiers read from a run's vision encoder: ``python -m benchmarks.shapes RUN``.

The encoder is frozen, and linear classifiers are fitted to the mean of the patch states of each object in the demo's scenes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import print_line, write_results
from demo.scenes.compose import Scene, compose_scene
from demo.scenes.draw import draw_scene
from demo.scenes.vocabulary import COLOURS, SHAPES
from models.config import VisionConfig
from models.core.vision import VisionEncoder
from utils.commands import call
from utils.errors import UserError
from utils.flags import Positive
from x2vlm import load

MAX_OBJECTS = 5
NOTHING = -100
"""Label of the shape and colour of an absent object."""


Encode = Callable[[Tensor], Tensor]
"""Returns the patch states (N, P, D) of pixels (N, 3, H, W) uint8."""


@dataclass(frozen=True)
class Scenes:
    """N scenes with up to M objects.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        patches: weight of each patch in the mean of an object's patches, (N, M, P) float32.
        shapes: (N, M) int64.
        colours: (N, M) int64.
    """

    pixels: Tensor
    patches: Tensor
    shapes: Tensor
    colours: Tensor


def square_side(config: VisionConfig) -> int:
    """Returns the height and width of the model's images in pixels.

    Raises:
        UserError: if the images are not square.
    """
    if not isinstance(config.image_size, int):
        raise UserError(
            f"model.vision.image_size={config.image_size} is not square", remedy="give one number of pixels"
        )
    return config.image_size


@functools.lru_cache(maxsize=4)
def scenes_of(split: str, count: int, patch_size: int, size: int = 64) -> Scenes:
    """Returns the first scenes of a split, with ``size`` pixels on each side."""
    parts = [_arrays_of(compose_scene(0, split, index, size), patch_size) for index in range(count)]
    return Scenes(*(torch.from_numpy(np.stack(part)) for part in zip(*parts, strict=True)))


def _arrays_of(scene: Scene, patch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = scene.height // patch_size, scene.width // patch_size
    patches = np.zeros((MAX_OBJECTS, rows, columns), dtype=np.float32)
    shapes, colours = (np.full(MAX_OBJECTS, NOTHING) for _ in range(2))
    for index, thing in enumerate(scene.objects):
        x, y, w, h = thing.box
        within = np.s_[y // patch_size : (y + h - 1) // patch_size + 1, x // patch_size : (x + w - 1) // patch_size + 1]
        patches[index][within] = 1 / patches[index][within].size
        shapes[index], colours[index] = SHAPES.index(thing.shape), list(COLOURS).index(thing.colour)
    return draw_scene(scene).transpose(2, 0, 1), patches.reshape(MAX_OBJECTS, -1), shapes, colours


@torch.no_grad()
def object_states(encode: Encode, scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean patch state of each of N objects as (N, D), and the objects' shapes and colours as (N,) int64."""
    batches = torch.arange(len(scenes.pixels)).split(100)
    states = torch.cat([scenes.patches[rows] @ encode(scenes.pixels[rows]) for rows in batches])
    there = scenes.shapes != NOTHING
    return states[there], scenes.shapes[there], scenes.colours[there]


def by_depth(vision: VisionEncoder) -> dict[str, Encode]:
    """Returns an encoder for the patch states after each block, before the last norm, and one for the states after it."""

    def after(block: nn.Module) -> Encode:
        def encode(pixels: Tensor) -> Tensor:
            states: list[Tensor] = []
            with block.register_forward_hook(lambda module, inputs, output: states.append(output)):
                length = vision.patches(pixels).shape[1]
            return states[0][:, -length:]  # without [CLS]

        return encode

    blocks = {f"block {number}": after(block) for number, block in enumerate(vision.vision_backbone.blocks, start=1)}
    return {**blocks, "last norm": vision.patches}


def linear_accuracy(training: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor) -> float:
    """Fits a linear classifier to states (N, D) with a small L2 penalty, and returns its accuracy on held-out states."""
    mean, deviation = training.mean(dim=0), training.std(dim=0) + 1e-5
    training, held_out = ((states - mean) / deviation for states in (training, held_out))
    classifier = nn.Linear(training.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=200)

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(classifier(training), labels) + 1e-3 * classifier.weight.square().sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return float((classifier(held_out).argmax(dim=1) == held_out_labels).float().mean())


def probe(
    encode: Encode, patch_size: int, scenes: int, held_out: int, seed: int, size: int = 64
) -> tuple[float, float]:
    """Returns the fractions of objects in validation scenes whose shape, and whose colour, is classified correctly.

    Args:
        encode: the vision encoder, which is not trained.
        patch_size: side of its patches in pixels.
        scenes: number of training scenes.
        held_out: number of validation scenes.
        seed: seed of the classifiers' weights.
        size: height and width of the scenes in pixels.
    """
    states, *labels = object_states(encode, scenes_of("train", scenes, patch_size, size))
    unseen, *unseen_labels = object_states(encode, scenes_of("val", held_out, patch_size, size))
    torch.manual_seed(seed)
    shape, colour = (
        linear_accuracy(states, each, unseen, theirs) for each, theirs in zip(labels, unseen_labels, strict=True)
    )
    return shape, colour


def main(
    runs: list[Path],
    /,
    *,
    scenes: Positive = 6000,
    held_out: Positive = 500,
    seed: int = 0,
    depths: bool = False,
    json_: Path | None = None,
) -> int:
    """Measures how well the shapes and colours of objects can be read from a run's vision encoder.

    Linear classifiers are fitted to the mean patch states of the objects in training scenes of the demo. For each run, the
    benchmark prints the fractions of objects in validation scenes whose shape and colour they classify correctly. The last line
    has the chance levels.

    Args:
        runs: folders of runs on the demo's scenes.
        scenes: number of training scenes.
        held_out: number of validation scenes.
        seed: seed of the classifiers' weights.
        depths: also read the states after each block.
        json_: also write the results to a JSON file.

    Examples:
        python -m benchmarks.shapes runs/demo/pretrain-seed0
    """
    rows = []
    print_line(f"{'run':30}{'shape':>8}{'colour':>8}")
    for run in runs:
        network = load(run).network
        vision, size = network.vision, square_side(network.config.vision)
        for depth, encode in by_depth(vision).items() if depths else [("last norm", vision.patches)]:
            shape, colour = probe(encode, vision.patch_size, scenes, held_out, seed, size)
            rows.append({"run": str(run), "depth": depth, "shape": shape, "colour": colour})
            print_line(f"{f'{run} {depth}' if depths else str(run):30}{shape:8.1%}{colour:8.1%}")
            write_results(json_, rows)
    print_line(f"{'chance':30}{1 / len(SHAPES):8.1%}{1 / len(COLOURS):8.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.shapes"))
