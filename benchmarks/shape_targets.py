"""Trains the vision encoder of the demo to classify objects: ``python -m benchmarks.shape_targets``.

The classes are words of the demo's texts, but no text is involved. docs/ablations.md shows how many objects the encoder has to
see before shapes can be read from its patches, and how this depends on the question.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import print_line, write_results
from benchmarks.shapes import NOTHING, probe, scenes_of, square_side
from demo.scenes.vocabulary import COLOURS, SHAPES
from models.core.vision import VisionEncoder
from optim.groups import build_optimizer, parameter_groups
from optim.muon import matrices_in_blocks
from tasks.config import PretrainConfig
from utils.commands import call
from utils.config import load_config
from utils.flags import Positive, PositiveReal, read_by
from utils.progress import progress_bar

SCENES_PER_STEP = 32
TRAINING_SCENES, PROBED_SCENES, HELD_OUT_SCENES = 6000, 3000, 300
"""Scenes for training, for the linear classifiers, and for their accuracy."""
WARM_UP = 0.17
"""Share of the steps until the learning rate reaches its peak; it then falls linearly, as in benchmarks.duel."""

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Returns the loss of objects from their predictions (N, classes), shapes (N,) and colours (N,)."""


def _shape(predicted: Tensor, shapes: Tensor, colours: Tensor) -> Tensor:
    return F.cross_entropy(predicted, shapes)


def _both(predicted: Tensor, shapes: Tensor, colours: Tensor) -> Tensor:
    of_shapes, of_colours = predicted.split([len(SHAPES), len(COLOURS)], dim=1)
    return F.cross_entropy(of_shapes, shapes) + F.cross_entropy(of_colours, colours)


def _words(predicted: Tensor, shapes: Tensor, colours: Tensor) -> Tensor:
    return (F.cross_entropy(predicted, shapes) + F.cross_entropy(predicted, len(SHAPES) + colours)) / 2


def _pairs(predicted: Tensor, shapes: Tensor, colours: Tensor) -> Tensor:
    return F.cross_entropy(predicted, len(COLOURS) * shapes + colours)


OBJECTIVES: dict[str, tuple[int, Objective]] = {
    "shape": (len(SHAPES), _shape),
    "both": (len(SHAPES) + len(COLOURS), _both),
    "words": (len(SHAPES) + len(COLOURS), _words),
    "pairs": (len(SHAPES) * len(COLOURS), _pairs),
}
"""The number of classes and the loss of each objective: the shape alone; shape and colour, each with its own softmax; one
softmax over the words for all shapes and colours, with both words of the object as targets; one over all pairs ("red star")."""


def train(
    name: str, objects: int | None, steps: int, config: PretrainConfig, seed: int, every: int
) -> list[dict[str, float]]:
    """Trains the encoder, and returns what a linear classifier reads from its patches after every ``every`` steps.

    Args:
        name: name of the objective.
        objects: number of objects per step, drawn from the objects of 32 scenes; if None, all objects (about 100).
        steps: number of steps.
        config: a config with the vision encoder and the optimiser.
        seed: seed of the weights and of the scenes.
        every: number of steps between results.

    Raises:
        UserError: if the images are not square.
    """
    torch.manual_seed(seed)
    vision = VisionEncoder(config.model.vision)
    classes, objective = OBJECTIVES[name]
    head = nn.Linear(vision.width, classes)
    model = nn.ModuleDict({"vision": vision, "head": head})
    groups = parameter_groups(model.named_parameters(), config.optim, (), matrices=matrices_in_blocks(model))
    optimizer = build_optimizer(groups, config.optim)
    size = square_side(config.model.vision)
    scenes, rng = scenes_of("train", TRAINING_SCENES, vision.patch_size, size), torch.Generator().manual_seed(seed)
    results = []
    for step in progress_bar(range(steps), total=steps, desc=name, unit="step"):
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))
        rows = torch.randint(len(scenes.pixels), (SCENES_PER_STEP,), generator=rng)
        there = scenes.shapes[rows] != NOTHING
        states = (scenes.patches[rows] @ vision.patches(scenes.pixels[rows]))[there]
        chosen = torch.randperm(len(states), generator=rng)[:objects]
        shapes, colours = (each[rows][there][chosen] for each in (scenes.shapes, scenes.colours))
        loss = objective(head(states[chosen]), shapes, colours)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % every == 0:
            vision.eval()
            shape, colour = probe(vision.patches, vision.patch_size, PROBED_SCENES, HELD_OUT_SCENES, 0, size)
            vision.train()
            results.append({"steps": step + 1, "shape": shape, "colour": colour})
    return results


OVERRIDES = read_by(lambda text: tuple(filter(None, text.split(";"))), n_tokens=1)


def main(
    objectives: list[Literal["shape", "both", "words", "pairs"]],
    /,
    *,
    objects: Positive | None = None,
    steps: Positive = 900,
    every: Positive = 300,
    lr: PositiveReal = 5e-4,
    muon: PositiveReal | None = None,
    overrides: Annotated[tuple[str, ...], OVERRIDES] = (),
    seed: int = 0,
    json_: Path | None = None,
) -> int:
    """Trains the demo's vision encoder to classify objects, and prints how well shapes and colours can be read from its patches.

    Each step has 32 scenes. The benchmark prints the shares of objects in validation scenes whose shape and colour a linear
    classifier reads from frozen patches (benchmarks.shapes).

    Args:
        objectives: what the encoder predicts of each object: its shape; both shape and colour; its two words, with one softmax
            over all words; or its pair of shape and colour.
        objects: number of objects per step (default: all objects of the 32 scenes, about 100).
        steps: number of steps of each objective.
        every: number of steps between results.
        lr: peak learning rate.
        muon: train the matrices in the blocks with Muon, at a learning rate that is this factor times as high (default: AdamW).
        overrides: values of configs/demo/pretrain.yaml to override, separated by semicolons.
        seed: seed of the weights and of the scenes.
        json_: also write the results to a JSON file.

    Examples:
        python -m benchmarks.shape_targets shape both words pairs
        python -m benchmarks.shape_targets words --steps 300 --overrides "model.vision.patch_size=4"
    """
    torch.set_num_threads(1)
    optimiser = "null" if muon is None else f"{{lr_factor: {muon}}}"
    words = [f"optim.lr={lr}", f"optim.muon={optimiser}", *overrides]
    config = load_config("configs/demo/pretrain.yaml", words, PretrainConfig)
    rows = []
    print_line(f"{'objective':11}{'steps':>7}{'shape':>8}{'colour':>8}")
    for name in objectives:
        for found in train(name, objects, steps, config, seed, every):
            rows.append({"objective": name, "objects": objects, "overrides": words, **found})
            print_line(f"{name:11}{found['steps']:7}{found['shape']:8.1%}{found['colour']:8.1%}")
            write_results(json_, rows)
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.shape_targets"))
