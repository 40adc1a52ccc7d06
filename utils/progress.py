"""Progress bars: redrawn in place on a screen, printed every 30 seconds in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_ON_A_SCREEN, SECONDS_IN_A_FILE = 0.5, 30.0


def progress_bar(items: Iterable[Any] | None = None, *, total: int, quiet: bool = False, **options: Any) -> tqdm[Any]:
    """A progress bar with remaining time, over ``items`` or updated by hand; hidden if ``quiet``. ``options``: tqdm's."""
    seconds = SECONDS_ON_A_SCREEN if sys.stderr.isatty() else SECONDS_IN_A_FILE
    return tqdm(items, total=total, disable=quiet, mininterval=seconds, dynamic_ncols=True, **options)
