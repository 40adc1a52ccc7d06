"""TensorBoard events of a run: curves of the values that change, the config as text, and images.

A process draws them anew from ``metrics.jsonl`` when it starts. Where they cannot be written, the run goes on without them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.outlet import Outlet

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class ScalarSink(Protocol):
    """Where the values of a run go, beside its files: all get the same ones, under the same names."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """The values of a step; the steps do not fall."""

    def flush(self) -> None:
        """Write what is held back."""

    def close(self) -> None: ...


@dataclass
class _Constant:
    """A value that has not changed yet: as it is logged, and the steps at which it was logged first and last."""

    value: float
    first: int
    last: int


class Curves:
    """Draws values as curves, but for constants: a curve begins once its value differs from the first one, and then has that
    one too. Takes the place of the curves of an earlier process.

    Args:
        folder: of the events.
    """

    def __init__(self, folder: Path):
        self._events = Events(folder, "curves")
        self._constants: dict[str, _Constant] = {}
        self._varies: set[str] = set()

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Draw the values that are no constants; infinity, which a curve has no place for, as NaN."""
        for name, value in values.items():
            self._add(name, value, step)

    def _add(self, name: str, value: float, step: int) -> None:
        value = value if math.isfinite(value) else math.nan
        constant = self._constants.setdefault(name, _Constant(value, step, step))
        if name not in self._varies:
            if value == constant.value or (math.isnan(value) and math.isnan(constant.value)):
                constant.last = step
                return
            self._varies.add(name)
            for earlier in sorted({constant.first, constant.last}):
                self._draw(name, constant.value, earlier)
        self._draw(name, value, step)

    def flush(self) -> None:
        self._events.write(lambda events: events.flush())

    def close(self) -> None:
        self._events.close()

    def _draw(self, name: str, value: float, step: int) -> None:
        self._events.write(lambda events: events.add_scalar(name, value, step))


class Events(Outlet["SummaryWriter"]):
    """A file of events that takes the place of all that were written under ``name``."""

    def __init__(self, folder: Path, name: str):
        suffix = f".{re.sub(r'[^0-9A-Za-z_-]+', '-', name)}"
        super().__init__(f"{folder}: TensorBoard's events", partial(_opened, folder, suffix))

    def close(self) -> None:
        self.write(lambda events: events.close())


def _opened(folder: Path, suffix: str) -> SummaryWriter:
    # Imported here: the import takes a second, and only the rank that writes needs it.
    from torch.utils.tensorboard import SummaryWriter

    for earlier in folder.glob(f"events.*{suffix}"):
        earlier.unlink(missing_ok=True)
    return SummaryWriter(str(folder), filename_suffix=suffix)


def show_config(folder: Path, text: str) -> None:
    """Show a config, YAML, as text."""
    events = Events(folder, "config")
    events.write(lambda events: events.add_text("config", f"```yaml\n{text}\n```", 0))
    events.close()
