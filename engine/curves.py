"""TensorBoard events of a run: curves of the values that change, the config as text, and images.

A resumed run adds to them. Curves after its checkpoint are purged by their step; the text and images are in files of their own,
which are replaced.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass
class _Constant:
    """A value that has not changed: as it is logged, and the steps at which it was logged first and last.

    An earlier process may have gone on, to values that are purged: ``went_on``. If they differed, it has ``drawn`` this value,
    at these steps, which are not purged.
    """

    value: float | None
    first: int
    last: int
    went_on: bool = False
    drawn: set[int] | None = None


class Curves:
    """Draws values as curves, but for constants: a curve begins once its value differs from the first one, and then has that
    one too.

    Args:
        folder: of the events.
        purge_step: events of an earlier process from this step on do not count.
    """

    def __init__(self, folder: Path, purge_step: int):
        # Imported here: the import takes a second, and only the rank that writes needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(folder), purge_step=purge_step)
        self._constants: dict[str, _Constant] = {}
        self._varies: set[str] = set()

    def replay(self, name: str, value: float | None, step: int, *, purged: bool) -> None:
        """Learn what an earlier process has drawn: every value that it logged, in order.

        ``purged``: the value was logged after the step at which this process resumes.
        """
        constant = self._constants.get(name)
        if not purged:
            if self._changes(name, value, step):
                self._varies.add(name)
        elif constant is not None and name not in self._varies and constant.drawn is None:
            if value != constant.value:
                constant.drawn = {constant.first} if constant.went_on else {constant.first, constant.last}
            constant.went_on = True

    def add(self, name: str, value: float, step: int) -> None:
        """Draw the value, if it is no constant."""
        constant = self._constants.get(name)
        if not self._changes(name, value if math.isfinite(value) else None, step):
            return
        if name not in self._varies and constant is not None:
            self._varies.add(name)
            for earlier in sorted({constant.first, constant.last} - (constant.drawn or set())):
                self._events.add_scalar(name, math.nan if constant.value is None else constant.value, earlier)
            # A process that resumes must be able to rely on these: it will not draw them again.
            self._events.flush()
        self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _changes(self, name: str, value: float | None, step: int) -> bool:
        """Whether the value has ever differed from the first one."""
        constant = self._constants.setdefault(name, _Constant(value, step, step))
        if name in self._varies or value != constant.value:
            return True
        constant.last = step
        return False


def show_config(folder: Path, text: str) -> None:
    """Show a config, YAML, as text."""
    with replaced_events(folder, "config") as events:
        events.add_text("config", f"```yaml\n{text}\n```", 0)


@contextmanager
def replaced_events(folder: Path, name: str) -> Iterator[SummaryWriter]:
    """A writer of events that take the place of all that were written under ``name``."""
    from torch.utils.tensorboard import SummaryWriter

    suffix = f".{re.sub(r'[^0-9A-Za-z_-]+', '-', name)}"
    earlier = list(folder.glob(f"events.*{suffix}"))
    events = SummaryWriter(str(folder), filename_suffix=suffix)
    try:
        yield events
    finally:
        events.close()
    for path in earlier:
        path.unlink(missing_ok=True)
