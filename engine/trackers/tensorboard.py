"""Shows a run in TensorBoard: curves of the values that change, texts and images.

When a run resumes, its curves are redrawn from ``metrics.jsonl``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.trackers.outlet import FailSafeWriter

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass
class _Constant:
    """A value that has not changed so far, with the first and last steps at which it was logged."""

    value: float
    first: int
    last: int


class TensorBoard:
    """Writes event files to a folder: one for the curves, one for each text and one for each image. Each file replaces the
    corresponding file of a previous process.

    No curve is drawn for a constant value. Once the value changes, its curve is drawn, including the earlier steps.

    TensorBoard reads the files in the order of their creation, and follows only the last file while it grows. Texts must
    therefore be written before the first value, and images after the last value.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._curves: _EventFile | None = None
        self._constants: dict[str, _Constant] = {}
        self._varies: set[str] = set()

    def add_text(self, name: str, markdown: str) -> None:
        file = _EventFile(self.folder, name)
        file.write(lambda events: events.add_text(name, markdown, 0))
        file.close()

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Draws the values that are not constant. Infinity, which a curve cannot show, is drawn as NaN."""
        for name, value in values.items():
            self._add(name, value if math.isfinite(value) else math.nan, step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows an image (H, W, 3), uint8."""
        file = _EventFile(self.folder, name)
        file.write(lambda events: events.add_image(name, image, step, dataformats="HWC"))
        file.close()

    def flush(self) -> None:
        if self._curves is not None:
            self._curves.write(lambda events: events.flush())

    def close(self) -> None:
        if self._curves is not None:
            self._curves.close()

    def _add(self, name: str, value: float, step: int) -> None:
        constant = self._constants.setdefault(name, _Constant(value, step, step))
        if name not in self._varies:
            if value == constant.value or (math.isnan(value) and math.isnan(constant.value)):
                constant.last = step
                return
            self._varies.add(name)
            for first_or_last in sorted({constant.first, constant.last}):
                self._draw(name, constant.value, first_or_last)
        self._draw(name, value, step)

    def _draw(self, name: str, value: float, step: int) -> None:
        if self._curves is None:
            self._curves = _EventFile(self.folder, "curves")
        self._curves.write(lambda events: events.add_scalar(name, value, step))


class _EventFile(FailSafeWriter["SummaryWriter"]):
    """An event file that replaces all previous files with the same ``name``."""

    def __init__(self, folder: Path, name: str):
        suffix = f".{re.sub(r'[^0-9A-Za-z_-]+', '-', name)}"
        super().__init__(f"{folder}: TensorBoard's events", partial(_opened, folder, suffix))

    def close(self) -> None:
        self.write(lambda events: events.close())


def _opened(folder: Path, suffix: str) -> SummaryWriter:
    # Imported here: the import takes a second, and only the rank that writes needs it.
    from torch.utils.tensorboard import SummaryWriter

    for file in folder.glob(f"events.*{suffix}"):
        file.unlink(missing_ok=True)
    return SummaryWriter(str(folder), filename_suffix=suffix)
