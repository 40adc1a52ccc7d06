"""TensorBoard events of a run: curves of the values that change, the config as text, and images.

A process draws them anew from ``metrics.jsonl`` when it starts. Where they cannot be written, the run goes on without them.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


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

    def add(self, name: str, value: float, step: int) -> None:
        """Draw the value, if it is no constant; infinity, which a curve has no place for, as NaN."""
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


class Events:
    """A file of events that takes the place of all that were written under ``name``. Nothing that goes wrong with it is an error:
    it is told once, and nothing more is written."""

    def __init__(self, folder: Path, name: str):
        self.folder = folder
        self._writer: SummaryWriter | None = None
        suffix = f".{re.sub(r'[^0-9A-Za-z_-]+', '-', name)}"
        try:
            # Imported here: the import takes a second, and only the rank that writes needs it.
            from torch.utils.tensorboard import SummaryWriter

            for earlier in folder.glob(f"events.*{suffix}"):
                earlier.unlink(missing_ok=True)
            self._writer = SummaryWriter(str(folder), filename_suffix=suffix)
        except Exception as error:
            self._give_up(error)

    def write(self, call: Callable[[SummaryWriter], object]) -> None:
        """Call ``call`` with the writer, if it still works."""
        if self._writer is None:
            return
        try:
            call(self._writer)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        self.write(lambda events: events.close())

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning(
            "%s: TensorBoard's events cannot be written (%s); the run goes on without them", self.folder, reason
        )


def show_config(folder: Path, text: str) -> None:
    """Show a config, YAML, as text."""
    events = Events(folder, "config")
    events.write(lambda events: events.add_text("config", f"```yaml\n{text}\n```", 0))
    events.close()
