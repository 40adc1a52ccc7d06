"""Training steps outside a run: the document's code, and losses and steps that equal those of a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_run
from tests.messages import naming
from utils.errors import UserError
from x2vlm import Training

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/demo/pretrain.yaml"
STILL = ["train.precision=fp32", "model.vision.drop_path=0", "model.text.dropout=0", "model.text.attention_dropout=0"]


@pytest.fixture
def training(scenes_folder) -> Training:
    return Training(CONFIG, [*tiny_run(scenes_folder), *STILL], device="cpu")


def test_the_document_runs(scenes_folder, capsys):
    page = (ROOT / "docs/using.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import Training" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    size = int(next(each for each in tiny_run(scenes_folder) if "image_size" in each).partition("=")[2])
    code = code.replace('"configs/demo/pretrain.yaml"', f'"{CONFIG}"').replace("64, 64", f"{size}, {size}")
    code = code.replace('["train.precision=fp32"]', repr([*tiny_run(scenes_folder), *STILL]))
    exec(code, {})
    losses = [float(line) for line in capsys.readouterr().out.splitlines()[:3]]
    assert losses[2] < losses[0]


def test_losses_have_the_names_and_values_of_a_step_and_gradients(training):
    batch = training.batch(0)
    losses = training.losses(batch)
    losses["loss"].backward()
    assert training.model.vision.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    values = training.step(batch)
    assert losses.keys() == values.keys() - {"grad_norm"}
    for name in ("images/contrastive", "regions/contrastive", "images/mlm", "regions/l1", "regions/giou"):
        assert losses[name].item() == pytest.approx(values[name], rel=1e-5), name


def test_accumulated_micro_batches_equal_their_mean(training):
    """With equally many boxes in both, a loss of the step is the mean of the losses of its micro-batches."""
    batch = training.batch(1)
    alone = training.losses(batch)["images/mlm"].item()
    assert training.step(batch, batch)["images/mlm"] == pytest.approx(alone, rel=1e-5)


def test_batches_depend_only_on_their_index(training):
    first, again = training.batch(3), training.batch(3)
    assert torch.equal(first.images.pixels, again.images.pixels) and first.records == again.records


def test_own_pairs_are_trained_without_data(scenes_folder):
    training = Training(CONFIG, [*tiny_run(scenes_folder), *STILL], data=False, device="cpu")
    size = training.config.model.vision.image_size
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    pairs = training.pairs(pixels, ["a red star", "a blue circle", "two hearts"])
    assert {"images/contrastive", "images/matching", "images/mlm", "loss"} == training.losses(pairs).keys()
    before = training.step(pairs)["images/contrastive"]
    for _ in range(5):
        after = training.step(pairs)["images/contrastive"]
    assert after < before
    with pytest.raises(UserError, match=naming("batch", "omit data=False")):
        training.batch(0)
    with pytest.raises(UserError, match=naming("(3, 3,", "2 texts", f"(2, 3, {size}, {size})")):
        training.pairs(pixels, ["a", "b"])


def test_inputs_of_another_kind_are_reported_in_one_line(training):
    size = training.config.model.vision.image_size
    pixels = torch.zeros((2, 3, size, size), dtype=torch.uint8)
    for call in (
        lambda: training.step(),
        lambda: training.step(pixels),
        lambda: training.losses({}),
        lambda: training.batch(-1),
        lambda: training.pairs(pixels[:0], []),
        lambda: training.pairs(pixels, ["", "a star"]),
        lambda: training.pairs(pixels, [1, 2]),
        lambda: training.pairs(list(pixels), ["a", "b"]),
        lambda: Training(CONFIG, "train.steps=3"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value)
