"""A run with both encoders from Hugging Face folders. After training, its weights are used without these folders."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

import x2vlm
from models.core.vision import VisionEncoder
from tests.encoders import vision
from tests.ranks import run_alone

pytestmark = pytest.mark.slow


def test_a_run_keeps_the_files_that_its_encoders_need(overrides, tmp_path):
    row = next(row for row in vision.ROWS if row.backbone == "dinov2")
    source = tmp_path / "dinov2"
    small = row.config(source)
    torch.manual_seed(0)
    weights = VisionEncoder(small)
    weights.backbone.save_pretrained(source)
    options = [
        *overrides("retrieval"),
        f"model.vision.backbone=hf:{source}",
        *("model.vision.patch_size=null", "model.vision.stem=linear", "model.vision.positions=backbone"),
        *("model.vision.image_size=56", "model.vision.pixel_mean=null", "model.vision.pixel_std=null"),
        *("model.vision.width=null", "model.vision.depth=null", "model.vision.heads=null", f"init.vision={source}"),
        *("model.vision.layer_scale=backbone", "optim.freeze.vision=true", "train.steps=2"),
    ]
    status, reported = run_alone(tmp_path, "retrieval", "--output", str(tmp_path / "run"), *options)
    assert status == 0, reported[-3000:]
    shutil.rmtree(source)
    model = x2vlm.load(tmp_path / "run", device="cpu")
    image = Image.new("RGB", (80, 60), "red")
    assert model.network.vision.pixel_mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    own = dict(weights.backbone.named_parameters())
    for name, parameter in model.network.vision.backbone.named_parameters():
        assert torch.equal(parameter, own[name]), name
    saved = model.save(tmp_path / "saved")
    shutil.rmtree(tmp_path / "run")
    again = x2vlm.load(saved, device="cpu")
    assert (again.embed_images([image]) == model.embed_images([image])).all()
