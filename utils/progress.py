"""Progress bars. In a terminal, they are redrawn in place; in a file, they print a line every 30 seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

SECONDS_ON_A_SCREEN, SECONDS_IN_A_FILE = 0.5, 30.0
LINE = "{percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
COUNT = "{n_fmt} [{elapsed}, {rate_fmt}{postfix}]"
"""The format if the total is unknown."""


def progress_bar(
    items: Iterable[Any] | None = None, *, total: int | None, quiet: bool = False, **options: Any
) -> tqdm[Any]:
    """Creates a progress bar that shows the remaining time.

    Args:
        items: items over which the bar iterates; if None, the caller updates the bar.
        total: number of items; None if unknown.
        quiet: hide the bar.
        options: other arguments of tqdm.
    """
    if sys.stderr.isatty():
        return tqdm(items, total=total, disable=quiet, mininterval=SECONDS_ON_A_SCREEN, dynamic_ncols=True, **options)
    return LineBar(
        items,
        total=total,
        disable=quiet,
        mininterval=SECONDS_IN_A_FILE,
        maxinterval=SECONDS_IN_A_FILE,
        miniters=1,  # otherwise tqdm skips lines when steps become slower
        delay=SECONDS_IN_A_FILE,
        bar_format=("{desc}: " if options.get("desc") else "") + (LINE if total is not None else COUNT),
        **options,
    )


class LineBar(tqdm):
    """A progress bar for files. It prints a line at the end of each interval, and the final state unless ``leave`` is False."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def print_line(text: str) -> None:
            if text:
                file.write(f"{text.strip()}\n")
                file.flush()

        return print_line

    def clear(self, nolock: bool = False) -> None:
        """Does nothing, since lines in a file cannot be cleared."""

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        """Prints a line, unless tqdm wants to redraw the bar after a log line (``nolock``)."""
        if not nolock:
            super().refresh(nolock, lock_args)

    def moveto(self, n: int) -> None:
        """Does nothing, since a file has no cursor."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Sets the end of the next line, without printing a line."""
        super().set_postfix_str(s, refresh=False)

    def close(self) -> None:
        if not self.disable and self.leave and self.n > self.initial:
            self._ema_dt = lambda: None  # show the average rate instead of the recent rate
            self.display(pos=0)
        self.leave, self.delay = False, float("inf")  # there is nothing for tqdm to clear
        super().close()
