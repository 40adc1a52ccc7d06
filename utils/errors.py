"""The one kind of error that a user sees as a line instead of a traceback."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

SILENCE_S = 3.0
"""How long a rank other than 0 waits before it tells its error."""


class UserError(Exception):
    """A mistake in what the user gave (a config, a file, a flag): fact, value, place and remedy in its message."""


def one_line_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Wrap a command's ``main`` so that a :class:`UserError` prints its message to stderr and returns exit status 2."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            if os.environ.get("RANK", "0") != "0":
                # Most mistakes stop every rank alike, and the launcher ends the others as soon as one has stopped: rank 0
                # tells them once. What only this rank met is still told.
                time.sleep(SILENCE_S)
            sys.stderr.write(f"error: {error}\n")
            return 2

    return wrapped
