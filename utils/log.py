"""Set-up of the standard ``logging``: every rank logs to a file; on the screen, rank 0 shows all, the others their warnings."""

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
    """Prints lines above a progress bar, which they would otherwise break."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone, or a full disk: the log file has the line
            tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.handlers.WatchedFileHandler):
    """Opens the file again if it was deleted or renamed. Lines that a full disk refuses are only on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


def keep_error(error: Exception) -> None:
    """Write an error that ends this process into its log file, with the traceback unless it is a user's; the screen gets it
    elsewhere."""
    text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).rstrip()
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "the run ends: %s", (text,), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _FileHandler):
            handler.handle(record)


def _thread_failed(error: threading.ExceptHookArgs) -> None:
    """One line on the screen for a thread that ends with an exception; whoever waits for it reports what that means."""
    name = "a thread" if error.thread is None else f"the thread {error.thread.name}"
    logging.getLogger(__name__).warning("%s ended with %s: %s", name, error.exc_type.__name__, error.exc_value)


def set_up(log_file: Path | None = None) -> None:
    """Configure the root logger of this process, which appends to ``log_file``.

    Raises:
        UserError: if that file cannot be written.
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
