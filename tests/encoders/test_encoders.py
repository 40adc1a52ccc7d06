"""The cells of docs/encoders.md: the quick ones of each encoder; all of them are slow."""

from __future__ import annotations

import pytest

from tests.encoders import text, vision
from tests.encoders.page import refusals_on_the_page

QUICK = {"load", "load, states", "states", "resize", "freeze", "pooling", "eps", "word table"}


def cells(rows, checks):
    for row in rows:
        for cell in checks:
            marks = () if cell in QUICK else (pytest.mark.slow,)
            yield pytest.param(row, cell, marks=marks, id=f"{row.title}-{row.library}-{cell}")


@pytest.mark.parametrize(("row", "cell"), cells(vision.ROWS, vision.CELLS))
def test_a_cell_of_a_vision_backbone(row, cell):
    assert vision.check(row, cell) == refusals_on_the_page().get((row.title, row.library, cell))


@pytest.mark.parametrize(("row", "cell"), cells(text.ROWS, text.CELLS))
def test_a_cell_of_a_text_encoder(row, cell):
    assert text.check(row, cell) == refusals_on_the_page().get((row.title, row.library, cell))
