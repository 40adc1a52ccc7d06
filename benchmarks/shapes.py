"""Tests whether a vision encoder from scratch learns to distinguish shapes: ``python -m benchmarks.shapes``.

The vision encoder of ``configs/presets/tiny.yaml`` is trained from scratch to classify the shape and the colour of each object in
the demo's scenes from the mean of the object's patches, with a linear patch embedding and with a convolutional stem. Scenes of
the validation split are held out. The accuracy is an upper bound on what region descriptions can teach the encoder.

``python -m benchmarks.shapes RUN...`` measures instead what the vision encoders of finished runs know: it freezes them and fits
linear classifiers on the same means.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo.scenes.compose import Scene, compose_scene
from demo.scenes.draw import draw_scene
from demo.scenes.vocabulary import COLOURS, SHAPES
from models.config import VisionConfig
from models.core.vision import VisionEncoder
from utils.commands import call
from utils.config_files import read_config
from utils.flags import Positive
from utils.progress import progress_bar
from x2vlm import load

Stem = Literal["linear", "convolutions"]
MAX_OBJECTS = 5
NOTHING = -100
"""Label of the shape and colour of an absent object."""


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


def scenes_of(split: str, count: int, patch_size: int) -> Scenes:
    """Returns the first scenes of a split."""
    parts = [_arrays_of(compose_scene(0, split, index), patch_size) for index in range(count)]
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


class ObjectClassifier(nn.Module):
    """Classifies the shape and the colour of objects."""

    def __init__(self, stem: Stem):
        super().__init__()
        values = read_config("configs/presets/tiny.yaml").values["model"]["vision"]
        self.vision = VisionEncoder(VisionConfig(**{**values, "stem": stem}))
        self.head = nn.Linear(self.vision.width, len(SHAPES) + len(COLOURS))

    def forward(self, scenes: Scenes, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (B, M, classes) of the shapes, and of the colours, of the objects in the scenes at the indices
        ``rows``."""
        states = self.vision.patches(scenes.pixels[rows])
        shapes, colours = self.head(scenes.patches[rows] @ states).split([len(SHAPES), len(COLOURS)], dim=2)
        return shapes, colours


def train(stem: Stem, training: Scenes, steps: int, batch_size: int, seed: int) -> ObjectClassifier:
    """Trains for ``steps`` steps with the demo's learning rate, warm-up and decay."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    classifier = ObjectClassifier(stem)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1.5e-3, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = max(1, steps // 6)
    for step in progress_bar(range(1, steps + 1), total=steps, desc=stem, unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(step / warmup, (steps - step + 1) / (steps - warmup + 1))
        rows = torch.from_numpy(rng.integers(0, len(training.pixels), batch_size))
        shapes, colours = classifier(training, rows)
        loss = F.cross_entropy(shapes.flatten(0, 1), training.shapes[rows].flatten(), ignore_index=NOTHING)
        loss += F.cross_entropy(colours.flatten(0, 1), training.colours[rows].flatten(), ignore_index=NOTHING)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
    return classifier.eval()


@torch.no_grad()
def accuracies(classifier: ObjectClassifier, held_out: Scenes) -> tuple[float, float]:
    """Returns the fractions of objects whose shape, and whose colour, is classified correctly."""
    right = []
    for rows in torch.arange(len(held_out.pixels)).split(100):
        there = held_out.shapes[rows] != NOTHING
        shapes, colours = (logits.argmax(dim=2) for logits in classifier(held_out, rows))
        both = torch.stack([shapes == held_out.shapes[rows], colours == held_out.colours[rows]])
        right.append(both[:, there])
    shape, colour = torch.cat(right, dim=1).float().mean(dim=1).tolist()
    return shape, colour


@torch.no_grad()
def object_states(vision: VisionEncoder, scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean patch state of each of N objects as (N, D), and the objects' shapes and colours as (N,) int64."""
    batches = torch.arange(len(scenes.pixels)).split(100)
    states = torch.cat([scenes.patches[rows] @ vision.patches(scenes.pixels[rows]) for rows in batches])
    there = scenes.shapes != NOTHING
    return states[there], scenes.shapes[there], scenes.colours[there]


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


def probe(runs: Sequence[Path], scenes: int, held_out: int, seed: int) -> Iterator[str]:
    """Yields a table row for each finished run."""
    for run in runs:
        vision = load(run).network.vision
        states, *labels = object_states(vision, scenes_of("train", scenes, vision.patch_size))
        unseen, *unseen_labels = object_states(vision, scenes_of("val", held_out, vision.patch_size))
        torch.manual_seed(seed)
        shape, colour = (
            linear_accuracy(states, each, unseen, theirs) for each, theirs in zip(labels, unseen_labels, strict=True)
        )
        yield f"{run!s:30}{shape:8.1%}{colour:8.1%}\n"


def shapes(
    runs: list[Path] | None = None,
    /,
    *,
    steps: Positive = 900,
    batch_size: Positive = 64,
    scenes: Positive = 6000,
    held_out: Positive = 500,
    seed: int = 0,
) -> int:
    """Trains the tiny vision encoder to classify shapes and colours, with both stems, and prints the accuracies.

    Args:
        runs: folders of runs on the demo's scenes; if given, their vision encoders are probed instead.
        steps: number of training steps.
        batch_size: number of scenes per step.
        scenes: number of training scenes.
        held_out: number of validation scenes.
        seed: seed of the weights and of the order of scenes.
    """
    if runs:
        sys.stdout.write(f"{'run':30}{'shape':>8}{'colour':>8}\n")
        sys.stdout.writelines(probe(runs, scenes, held_out, seed))
        return 0
    patch_size = ObjectClassifier("linear").vision.patch_size
    training, validation = scenes_of("train", scenes, patch_size), scenes_of("val", held_out, patch_size)
    sys.stdout.write(f"{'stem':14}{'shape':>8}{'colour':>8}{'ms/step':>9}\n")
    for stem in get_args(Stem):
        started = time.process_time()
        classifier = train(stem, training, steps, batch_size, seed)
        spent_ms = 1000 * (time.process_time() - started) / steps
        shape, colour = accuracies(classifier, validation)
        sys.stdout.write(f"{stem:14}{shape:8.1%}{colour:8.1%}{spent_ms:9.0f}\n")
    sys.stdout.write(
        f"(chance: {1 / len(SHAPES):.1%} and {1 / len(COLOURS):.1%}; {steps} steps of {batch_size} scenes)\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(call(shapes, sys.argv[1:], "python -m benchmarks.shapes"))
