"""Compares questions that share images with questions on separate images: ``python -m benchmarks.shared_images``."""

from __future__ import annotations

import sys
from functools import partial

import torch

from batches.questions import QuestionBatch
from batches.texts import Text
from benchmarks.harness import Rounds, print_line, seconds_of
from models.tasks.vqa import VQAModel
from tasks.config import VQAConfig
from utils.commands import call
from utils.config import load_config
from utils.errors import UserError
from utils.flags import Positive

SMALL = (
    "model.vision.width=64",
    "model.vision.depth=1",
    "model.vision.heads=2",
    "model.vision.image_size=32",
    "model.text.arch={family: bert, vocab_size: 300, width: 64, layers: 1, heads: 2, intermediate: 128, max_positions: 64}",
    "model.decoder.layers=1",
    "model.fusion={layers: 1, width: 64, heads: 2, intermediate: 128}",
)


def text(count: int, tokens: int) -> Text:
    """Returns ``count`` texts of ``tokens`` tokens."""
    return Text(torch.randint(1, 300, (count, tokens)), torch.ones(count, tokens, dtype=torch.bool), count * tokens)


def batch(size: int, questions: int, per_image: int) -> QuestionBatch:
    """Returns a batch of ``questions`` questions, ``per_image`` about each image of ``size`` pixels."""
    return QuestionBatch(
        pixels=torch.randn(questions // per_image, 3, size, size),
        text=text(questions, 10),
        answers=text(2 * questions, 3),
        question_of_answer=torch.arange(2 * questions) // 2,
        weights=torch.full((2 * questions,), 0.5),
        valid=torch.ones(questions, dtype=torch.bool),
        image_of_question=torch.arange(questions) // per_image if per_image > 1 else None,
    )


def passes(model: VQAModel, given: QuestionBatch) -> None:
    """Runs a forward and a backward pass."""
    model.zero_grad()
    model(given)["answers"].total.backward()


def main(
    *,
    flags: Rounds = Rounds(),
    questions: Positive = 32,
    per_image_: Positive = 4,
    size_: Positive = 384,
    small: bool = False,
) -> int:
    """Compares questions that share images with questions on separate images.

    Forward and backward passes of VQA fine-tuning with the base model alternate in one process: 32 questions about 32 images, and
    32 questions about 32 / K images (data.questions_per_example=K). A question has ten tokens and two answers of three tokens
    each. VQA v2 has 5.4 questions per image on average. The last line is the median ratio of the times: with shared images over
    without.

    Args:
        questions: number of questions per step.
        per_image_: number of questions per shared image.
        size_: side of an image in pixels.
        small: smoke test with a small model.

    Examples:
        python -m benchmarks.shared_images
    """
    if questions % per_image_:
        raise UserError(
            f"--questions {questions} is not a multiple of --per-image {per_image_}", remedy="change one of them"
        )
    size = 32 if small else size_
    arch = "model.text.arch={family: bert, vocab_size: 30522}"
    overrides = [f"model.vision.image_size={size}", *(SMALL if small else [arch])]
    config = load_config("configs/vqa/vqa2_base_4m.yaml", overrides, VQAConfig)
    torch.manual_seed(0)
    model = VQAModel(config.model)
    batches = {"shared": batch(size, questions, per_image_), "separate": batch(size, questions, 1)}
    compared = flags.compare(
        {name: partial(seconds_of, partial(passes, model, given)) for name, given in batches.items()}
    )
    shared, separate = (model.work(given) for given in batches.values())
    flops = shared.flops / separate.flops
    print_line(
        f"{questions} questions, {separate.images} and {shared.images} images of {size} px, ratio of FLOPs {flops:.2f}"
    )
    return flags.conclude(compared.ratio, compared.rounds, flops=flops)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.shared_images"))
