"""Progress bars: redrawn in place on a screen; in a file, a line every 30 seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

SECONDS_ON_A_SCREEN, SECONDS_IN_A_FILE = 0.5, 30.0
LINE = "{percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(items: Iterable[Any] | None = None, *, total: int, quiet: bool = False, **options: Any) -> tqdm[Any]:
    """A progress bar with remaining time, over ``items`` or updated by hand; hidden if ``quiet``. ``options``: tqdm's."""
    if sys.stderr.isatty():
        return tqdm(items, total=total, disable=quiet, mininterval=SECONDS_ON_A_SCREEN, dynamic_ncols=True, **options)
    return LineBar(
        items,
        total=total,
        disable=quiet,
        mininterval=SECONDS_IN_A_FILE,
        maxinterval=SECONDS_IN_A_FILE,
        miniters=1,  # else tqdm skips lines when the steps get slower
        delay=SECONDS_IN_A_FILE,
        bar_format=("{desc}: " if options.get("desc") else "") + LINE,
        **options,
    )


class LineBar(tqdm):
    """A progress bar for a file: nothing before the first interval ends, then a line an interval, and the last state at the end,
    unless ``leave`` is false."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def print_line(text: str) -> None:
            if text:
                file.write(f"{text.strip()}\n")
                file.flush()

        return print_line

    def clear(self, nolock: bool = False) -> None:
        """Nothing: lines in a file stay."""

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        """Print a line; not with ``nolock``, by which tqdm restores a bar after a line of the log."""
        if not nolock:
            super().refresh(nolock, lock_args)

    def moveto(self, n: int) -> None:
        """Nothing: a file has no cursor."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Set what the next line ends with; that alone makes no line."""
        super().set_postfix_str(s, refresh=False)

    def close(self) -> None:
        if not self.disable and self.leave and self.n > self.initial:
            self._ema_dt = lambda: None  # the rate of the whole, not of the last steps
            self.display(pos=0)
        self.leave, self.delay = False, float("inf")  # tqdm has nothing to clear
        super().close()
