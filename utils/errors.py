"""The one kind of error that a user sees as a line instead of a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in what the user gave (a config, a file, a flag): fact, value, place and remedy in its message."""


def one_line_errors(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a command's ``main`` so that a :class:`UserError` prints its message to stderr and returns exit status 2."""

    @functools.wraps(main)
    def wrapped() -> int:
        try:
            return main()
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2

    return wrapped
