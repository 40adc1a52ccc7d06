"""The cells of docs/encoders.md. Compiling, exporting and learning take minutes for all encoders: here they are checked for some,
and for all by ``make encoders``."""

from __future__ import annotations

import pytest

from tests.encoders import text, vision
from tests.encoders.cells import refusal
from tests.encoders.page import refusals_on_the_page

QUICK = {"load", "load, states", "states", "resize", "freeze", "pooling", "eps", "word table"}


LONG = {"compile", "ONNX", "learns"}
SAMPLE = {"DINOv3", "ConvNeXt", "SigLIP 2, NaFlex", "DeBERTa-v3"}
"""Families for which the long cells are checked here, too, except that nothing is compiled."""


def cells(rows, checks):
    chosen = []
    for row in rows:
        for cell in checks:
            if cell in LONG and (row.title not in SAMPLE or cell == "compile"):
                continue
            marks = () if cell in QUICK else (pytest.mark.slow,)
            chosen.append(pytest.param(row, cell, marks=marks, id=f"{row.title}-{row.library}-{cell}"))
    return chosen


@pytest.mark.parametrize(("row", "cell"), cells(vision.ROWS, vision.CELLS))
def test_a_cell_of_a_vision_backbone(row, cell):
    assert refusal(vision.CELLS[cell], row) == refusals_on_the_page().get((row.title, row.library, cell))


@pytest.mark.parametrize(("row", "cell"), cells(text.ROWS, text.CELLS))
def test_a_cell_of_a_text_encoder(row, cell):
    assert refusal(text.CELLS[cell], row) == refusals_on_the_page().get((row.title, row.library, cell))
