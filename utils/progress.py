"""Progress bars. In a terminal, they are redrawn in place; in a file, they print a line every 30 seconds."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
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
        file=_LineFile(),
        mininterval=SECONDS_IN_A_FILE,
        maxinterval=SECONDS_IN_A_FILE,
        miniters=1,  # otherwise tqdm skips lines when steps become slower
        delay=SECONDS_IN_A_FILE,
        bar_format=("{desc}: " if options.get("desc") else "") + (LINE if total is not None else COUNT),
        **options,
    )


class _LineFile:
    """Replaces standard error for tqdm: writes lines instead of redrawing a line in place."""

    def write(self, text: str) -> None:
        # tqdm also writes characters and escape sequences that move the cursor.
        if line := re.sub(r"\x1b\[[A-Z]", "", text).strip():
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


class LineBar(tqdm):
    """A progress bar for files. It prints a line at the end of each interval, and the final state unless ``leave`` is False."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Sets the end of the next line, without printing a line."""
        super().set_postfix_str(s, refresh=False)

    def close(self) -> None:
        if not self.disable:
            self.leave, self.delay = self.leave and self.n > self.initial, 0
        super().close()
