"""All tasks on images that keep their aspect ratio."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from batches.images import NativeImages
from batches.pretraining import PretrainBatch
from dataset.records.boxes import patch_mask
from demo.folder import FolderFlags
from demo.scenes.build import scenes
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tasks.run import run_script
from tests.conftest import tiny_run
from tests.tasks.painted import KINDS, ROOT, measured
from tests.tasks.test_finetune import start
from utils.config import load_config

NATIVE = "model.vision.image_size={max_patches: 12, patch_size: 8}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Scenes with sides between 32 and 128 pixels."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    scenes(output=FolderFlags(out=out), seed=0, train=40, val=8, test=8, aspect=4)
    return out


@pytest.fixture(scope="module")
def overrides(folder) -> Callable[[str], list[str]]:
    """Returns a function that returns the overrides for a short run of a task."""

    def of(task: str) -> list[str]:
        tiny = [*tiny_run(folder), NATIVE, "model.text.dropout=0", "model.vision.drop_path=0"]
        if task == "pretrain":
            return tiny
        prefix = {"grounding": "refer"}.get(task, task)
        file, (train, val, test) = (
            "questions" if task == "vqa" else "annotations",
            (f"{folder}/{prefix}_{split}.jsonl" for split in ("train", "val", "test")),
        )
        return [
            *(each for each in tiny if each.startswith(("model.", "train.", "schedule."))),
            "init.checkpoint=null",
            "data.workers=0",
            "data.batch_size=4",
            "train.steps=2",
            "train.validate_every=2",
            f"data.train=[{{questions: {train}}}]" if task == "vqa" else f"data.train.{file}={train}",
            f"evaluation.validation.{file}={val}",
            f"evaluation.test.test.{file}={test}",
            *([f"evaluation.answers={folder}/vqa_answers.json"] if task == "vqa" else []),
        ]

    return of


@pytest.fixture(scope="module")
def task(overrides) -> PretrainTask:
    return PretrainTask.build(load_config(ROOT / "configs/demo/pretrain.yaml", overrides("pretrain"), PretrainConfig))


@pytest.fixture
def batch(task) -> PretrainBatch:
    batch: PretrainBatch = next(task.train_loader().batches(consumed=0, count=1))
    return batch


def test_a_region_has_the_patches_that_its_box_touches_in_the_grid_of_its_image(batch):
    regions = batch.regions
    assert isinstance(regions.pixels, NativeImages) and len({*regions.pixels.grids}) > 1
    assert regions.patch_mask.shape == (8, 12)
    for mask, index, box in zip(regions.patch_mask, regions.image_index, regions.boxes_cxcywh, strict=True):
        rows, columns = regions.pixels.grids[index]
        cx, cy, w, h = box.tolist()
        pixels = ((cx - w / 2) * columns * 8, (cy - h / 2) * rows * 8, w * columns * 8, h * rows * 8)
        expected = patch_mask(pixels, (rows * 8, columns * 8), 8)
        assert torch.equal(mask, F.pad(expected, (0, 12 - rows * columns)))


def test_padding_changes_no_loss_and_no_gradient(task, batch):
    def padded(images: NativeImages) -> NativeImages:
        return replace(images, patches=F.pad(images.patches, (0, 0, 0, 0, 0, 0, 0, 5)))

    more = replace(
        batch,
        images=replace(batch.images, pixels=padded(batch.images.pixels)),
        regions=replace(
            batch.regions, pixels=padded(batch.regions.pixels), patch_mask=F.pad(batch.regions.patch_mask, (0, 5))
        ),
    )
    model = task.model.double()

    def outcome(batch: PretrainBatch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        model.zero_grad()
        torch.manual_seed(0)
        losses = {name: term.total for name, term in model(batch).items()}
        sum(losses.values()).backward()
        return losses, {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    (losses, gradients), (other_losses, other_gradients) = outcome(batch), outcome(more)
    assert len(losses) == 8
    torch.testing.assert_close(losses, other_losses)
    torch.testing.assert_close(gradients, other_gradients)
    model.float()


def test_a_worker_process_gives_the_same_batches(overrides, batch):
    config = load_config(
        ROOT / "configs/demo/pretrain.yaml", [*overrides("pretrain"), "data.workers=1"], PretrainConfig
    )
    other = next(PretrainTask.build(config).train_loader().batches(consumed=0, count=1))
    assert other.regions.pixels.grids == batch.regions.pixels.grids
    assert torch.equal(other.regions.pixels.patches, batch.regions.pixels.patches)


def test_a_pre_training_run_ends_with_an_evaluation(overrides, tmp_path):
    arguments = ["--config", str(ROOT / "configs/demo/pretrain.yaml"), "--output", str(tmp_path / "run")]
    assert run_script([*arguments, *overrides("pretrain")], "pretrain") == 0
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluation["held-out"]
    assert (tmp_path / "run/predictions.png").is_file()


@pytest.mark.parametrize("name", KINDS)
def test_a_task_predicts_the_same_for_images_together_and_alone(name, overrides, tmp_path):
    evaluation = start(name, tmp_path / "run", overrides(name))
    assert evaluation
    schema, kind, *_ = KINDS[name]
    predictions: list[Any] = []
    for size in (1, 8):
        more = [*overrides(name), f"evaluation.batch_size={size}", f"init.checkpoint={tmp_path / 'run'}"]
        config = load_config(ROOT / f"configs/demo/{name}.yaml", more, schema)
        torch.manual_seed(0)
        predictions.append(measured(kind.build(config)).values())
    assert predictions[0] == pytest.approx(predictions[1], abs=1e-6)
    assert json.dumps(predictions[0])
