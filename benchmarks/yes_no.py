"""Effect of the initial weights on learning yes/no questions with a tiny model: ``python -m benchmarks.yes_no``, after ``make
scenes``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from batches.texts import Text
from dataset.config import TextLimits
from dataset.text.loading import load_tokenizer
from dataset.text.processors import PlainTextProcessor
from models.core.vision import Concepts
from models.tasks.vqa import VQAModel
from tasks.config import VQAConfig
from utils.commands import call
from utils.config import load_config
from utils.flags import SEVERAL

COLOURS = ("red", "blue", "green", "yellow", "purple")
SHAPES = ("star", "circle", "square", "triangle", "cross")
OBJECTS, PATCHES, BACKGROUND, PLACES = 3, 10, 60, 16
HELD_OUT = 200
"""Number of held-out images. Each image has one question with the answer yes, and one with the answer no."""


@dataclass(frozen=True)
class Scenes:
    """N images with two questions each.

    Attributes:
        patches: patch states of the images, (N, P, D).
        questions: colour index * number of shapes + shape index, (2N,) int64.
        answers: 1 = yes, (2N,) int64.
    """

    patches: Tensor
    questions: Tensor
    answers: Tensor


class SceneMaker:
    """Draws symbolic scenes. The codes of colours, shapes, positions and background do not depend on the seed of the scenes."""

    def __init__(self, width: int):
        codes = torch.Generator().manual_seed(1)
        sizes = len(COLOURS), len(SHAPES), PLACES, BACKGROUND
        self.colours, self.shapes, self.places, self.background = (
            torch.randn(count, width, generator=codes) for count in sizes
        )

    def draw(self, count: int, rng: np.random.Generator) -> Scenes:
        """Draws ``count`` scenes."""
        kinds = len(COLOURS) * len(SHAPES)
        objects = rng.integers(kinds, size=(count, OBJECTS))
        absent = rng.random((count, kinds))
        np.put_along_axis(absent, objects, -1, axis=1)
        asked = np.stack([objects[np.arange(count), rng.integers(OBJECTS, size=count)], absent.argmax(axis=1)], axis=1)
        places = torch.from_numpy(rng.integers(PLACES, size=objects.shape))
        kind = torch.from_numpy(objects)
        codes = self.colours[kind // len(SHAPES)] + self.shapes[kind % len(SHAPES)] + self.places[places]
        patches = codes.div(3**0.5).repeat_interleave(PATCHES, dim=1)
        patches = torch.cat([patches, self.background.expand(count, -1, -1)], dim=1)
        return Scenes(patches, torch.from_numpy(asked).flatten(), torch.tensor([1, 0]).repeat(count))


class Learner:
    """The demo's VQA model without its vision encoder."""

    def __init__(self, init_std: float, seed: int):
        overrides = [f"model.text.arch.init_std={init_std}", "init.checkpoint=null"]
        config = load_config("configs/demo/vqa.yaml", overrides, VQAConfig)
        tokenizer = load_tokenizer(config.model.text.encoder)
        texts = PlainTextProcessor(tokenizer, TextLimits(max_tokens=40))
        self.questions = texts.encode_plain([f"is there a {colour} {shape}?" for colour in COLOURS for shape in SHAPES])
        self.answers = texts.encode_plain(["no", "yes"]).ids
        torch.manual_seed(seed)
        self.model = VQAModel(config.model, len(tokenizer))
        self.model.vision.requires_grad_(False)
        self.maker = SceneMaker(self.model.vision.width)

    def logits(self, scenes: Scenes) -> Tensor:
        """Returns the logits (2N, V) of the first word of each answer."""
        fusion, decoder, count = self.model.fusion, self.model.decoder, len(scenes.questions)
        image_of_question = torch.arange(len(scenes.patches)).repeat_interleave(2)
        concepts = Concepts(scenes.patches, scenes.patches.mean(dim=1))
        keys_values = fusion.project_concepts(concepts).select(image_of_question)
        asked = Text(self.questions.ids[scenes.questions], self.questions.mask[scenes.questions])
        (questions,) = self.model.text([asked])
        start, mask = self.answers[:1, :1].expand(count, 1), torch.ones(1, 1, 1, dtype=torch.bool)
        states = decoder.decode(start, mask, decoder.project_texts(fusion.tokens(questions, keys_values)))
        return decoder.logits(states[:, 0])

    def learn(self, steps: int, images: int, seed: int) -> float:
        """Trains on ``images`` scenes per step with a linear schedule. Returns the fraction of held-out questions that are
        answered correctly."""
        rng = np.random.default_rng(seed)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad], lr=1e-3, betas=(0.9, 0.98)
        )
        rise = lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rise)
        for _ in range(steps):
            scenes = self.maker.draw(images, rng)
            loss = F.cross_entropy(self.logits(scenes), self.answers[scenes.answers, 1])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        held_out = self.maker.draw(HELD_OUT, np.random.default_rng(99))
        with torch.no_grad():
            said_yes = self.logits(held_out)[:, self.answers[:, 1]].argmax(dim=1)
        return float((said_yes == held_out.answers).float().mean())


def main(
    *,
    init_std_: Annotated[tuple[float, ...], SEVERAL] = (0.02, 0.04, 0.08),
    seeds: Annotated[tuple[int, ...], SEVERAL] = (0, 1, 2),
    steps: int = 600,
    images: int = 24,
) -> int:
    """Effect of the initial weights on learning yes/no questions with a tiny model; run make scenes first.

    The text encoder, the fusion encoder and the answer decoder of configs/demo/vqa.yaml are trained from scratch to answer
    questions such as "is there a red star?". Images are symbolic and need no vision encoder: each object consists of ten patches
    with the same fixed code of its colour, its shape and a position, among sixty patches of background. The benchmark therefore
    shows how the scale of the initial weights affects text-dependent attention, without the minutes that a vision encoder would
    take. Questions are balanced: half of the answers are yes, and no question is more likely to be true than another.

    Args:
        init_std_: standard deviations of the initial weights.
        seeds: seeds of the runs.
        steps: number of steps per run.
        images: number of images per step, with two questions each.

    Examples:
        python -m benchmarks.yes_no
    """
    for init_std in init_std_:
        found = []
        for seed in seeds:
            found.append(Learner(init_std, seed).learn(steps, images, seed))
        shown = ", ".join(f"{100 * accuracy:.1f}" for accuracy in found)
        sys.stdout.write(f"init_std {init_std:g}: {shown}% of held-out questions correct (seeds {seeds})\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.yes_no"))
