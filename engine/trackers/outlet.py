"""A writer whose failure does not stop the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

W = TypeVar("W")

logger = logging.getLogger(__name__)


class FailSafeWriter(Generic[W]):
    """Wraps a writer so that its failure does not stop the run. The first exception is logged as a warning, and nothing more is
    written.

    Args:
        what: description of what the writer writes, for the warning.
        open_writer: function that opens the writer.
    """

    def __init__(self, what: str, open_writer: Callable[[], W]):
        self.what = what
        self._writer: W | None = None
        try:
            self._writer = open_writer()
        except Exception as error:
            self._disable(error)

    def write(self, call: Callable[[W], object]) -> None:
        """Calls ``call`` with the writer, unless the writer has already failed."""
        if self._writer is None:
            return
        try:
            call(self._writer)
        except Exception as error:
            self._disable(error)

    def _disable(self, error: Exception) -> None:
        self._writer = None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("%s cannot be written (%s); the run continues without them", self.what, reason)
