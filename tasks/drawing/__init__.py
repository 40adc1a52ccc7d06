"""Draws sheets (``predictions.png``) that show examples with their predictions."""

from tasks.config import PANELS
from tasks.drawing.boxes import BOX_LEGEND, Box, PairOfBoxes, colours, pair_of_boxes
from tasks.drawing.images import SIDE, ImageReader, readable_panels, spread
from tasks.drawing.sheet import DrawnImage, Line, Panel, Sheet, draw_sheet

__all__ = [
    "BOX_LEGEND",
    "PANELS",
    "SIDE",
    "Box",
    "DrawnImage",
    "ImageReader",
    "Line",
    "PairOfBoxes",
    "Panel",
    "Sheet",
    "colours",
    "draw_sheet",
    "pair_of_boxes",
    "readable_panels",
    "spread",
]
