"""Sets up the standard ``logging`` module. Every rank logs to a file; on the screen, rank 0 shows everything, and the other ranks
only warnings."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
import threading
import traceback
from pathlib import Path

from tqdm import tqdm

from utils import distributed
from utils.errors import UserError
from utils.files import check_regular


class _ScreenHandler(logging.Handler):
    """Prints lines above the progress bar, so that they do not break it."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(
            OSError
        ):  # the terminal is closed or the disk is full; the line is still in the log file
            tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.handlers.WatchedFileHandler):
    """Reopens the log file if it was deleted or renamed. If the disk is full, lines appear only on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


def keep_error(error: Exception) -> None:
    """Write an error that ends this process to its log file, with a traceback unless it is a user error. The error is printed on
    the screen elsewhere."""
    text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).rstrip()
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "the run ended with an error: %s", (text,), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _FileHandler):
            handler.handle(record)


def _thread_failed(error: threading.ExceptHookArgs) -> None:
    """Log one line for a thread that ended with an exception; the code that waits for the thread reports the consequences."""
    name = "a thread" if error.thread is None else f"the thread {error.thread.name}"
    logging.getLogger(__name__).warning("%s ended with %s: %s", name, error.exc_type.__name__, error.exc_value)


def set_up(log_file: Path | None = None) -> None:
    """Configure the root logger of this process to append to ``log_file``.

    Raises:
        UserError: if the file cannot be written.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    rank = distributed.rank()
    screen = _ScreenHandler()
    screen.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    screen.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    root.addHandler(screen)
    if log_file is not None:
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            check_regular(log_file)
            file = _FileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{log_file} cannot be written: {error.strerror}; give another --output") from None
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    root.setLevel(logging.INFO)
    threading.excepthook = _thread_failed
    for chatty in ("httpx", "urllib3", "filelock", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
