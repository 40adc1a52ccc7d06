"""The cells of docs/encoders.md. Compiling, exporting and training all encoders takes minutes, so these tests cover a few
encoders, and ``make encoders`` covers all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.config import VisionConfig
from tasks.config import PretrainConfig
from tests.encoders import text, vision
from tests.encoders.cells import refusal
from tests.encoders.page import HEAD, PAGE, refusals_on_the_page
from utils.config import load_config

ROOT = Path(__file__).parents[2]
QUICK = {"load", "load, states", "states", "resize", "freeze", "pooling", "eps", "word table", "long texts"}


LONG = {"compile", "ONNX", "learns"}
SAMPLE = {"DINOv3", "ConvNeXt", "SigLIP 2, NaFlex", "DeBERTa-v3"}
"""Families for which the slow cells are tested here too, except for compilation."""


def cells(rows, checks):
    chosen = []
    for row in rows:
        for cell in checks:
            if cell in LONG and (row.title not in SAMPLE or cell == "compile"):
                continue
            marks = () if cell in QUICK else (pytest.mark.night,)
            chosen.append(pytest.param(row, cell, marks=marks, id=f"{row.title}-{row.library}-{cell}"))
    return chosen


@pytest.mark.parametrize(("row", "cell"), cells(vision.ROWS, vision.CELLS))
def test_a_vision_backbone_passes_each_cell_or_is_rejected_as_documented(row, cell):
    assert refusal(vision.CELLS[cell], row) == refusals_on_the_page().get((row.title, row.library, cell))


@pytest.mark.parametrize(("row", "cell"), cells(text.ROWS, text.CELLS))
def test_a_text_encoder_passes_each_cell_or_is_rejected_as_documented(row, cell):
    assert refusal(text.CELLS[cell], row) == refusals_on_the_page().get((row.title, row.library, cell))


def test_the_config_on_the_page_keeps_no_key_of_the_previous_backbone(tmp_path):
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.yaml").write_text(block)
    for folder in ("pretrain", "presets"):
        (tmp_path / folder).symlink_to(ROOT / "configs" / folder)
    config = load_config(tmp_path / "own/config.yaml", [], PretrainConfig)
    kept = {"drop_path": config.model.vision.drop_path, "image_size": config.model.vision.image_size}
    assert config.model.vision == VisionConfig(backbone="vit_base_patch16_dinov3", **kept)
    assert config.model.text.arch is None and config.init.vision == "timm:vit_base_patch16_dinov3.lvd1689m"


def test_the_text_of_the_page_is_in_the_module_that_writes_it():
    assert Path(PAGE).read_text(encoding="utf-8").startswith(HEAD)
