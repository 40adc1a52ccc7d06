"""Sets up Python's ``logging``. Every rank logs to a file. On the screen, rank 0 shows all messages, and the other ranks show
only warnings."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from utils import distributed
from utils.errors import PeerLostError, UserError, file_access_error
from utils.events import Event, EventLines, Failed, LostRank, is_event_or_warning
from utils.files import check_regular


class _ScreenHandler(logging.Handler):
    """Prints lines above the progress bar, so that they do not break it."""

    def emit(self, record: logging.LogRecord) -> None:
        # If the terminal is closed or the disk is full, the line is still in the log file.
        with contextlib.suppress(OSError):
            tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.handlers.WatchedFileHandler):
    """Reopens the log file if it was deleted or renamed. If the disk is full, lines appear only on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


@contextlib.contextmanager
def errors_logged() -> Iterator[None]:
    """Context in which an error that ends this process is also written to the log file and to the events of the run, with a
    traceback unless it is a user error. The caller prints the error on the screen.

    Raises:
        UserError: in place of an error that :func:`~utils.errors.file_access_error` recognises.
    """
    try:
        yield
    except Exception as error:
        user_error = file_access_error(error) if isinstance(error, OSError) else None
        _log_error(user_error or error)
        if user_error is not None:
            raise user_error from error
        raise


def _log_error(error: Exception) -> None:
    event: Event
    if isinstance(error, PeerLostError):
        event = LostRank(message=str(error))
    elif isinstance(error, UserError):
        event = Failed(message=str(error))
    else:
        event = Failed(
            message="".join(traceback.format_exception_only(error)).strip(),
            traceback="".join(traceback.format_exception(error)).rstrip(),
        )
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, event, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _FileHandler):
            handler.handle(record)


def _thread_failed(error: threading.ExceptHookArgs) -> None:
    """Logs one line for a thread that ended with an exception. The code that waits for the thread reports the consequences."""
    name = "a thread" if error.thread is None else f"the thread {error.thread.name}"
    logging.getLogger(__name__).warning("%s ended with %s: %s", name, error.exc_type.__name__, error.exc_value)


def set_up(log_file: Path | None = None, events_file: Path | None = None) -> None:
    """Configures the root logger of this process.

    Args:
        log_file: file to which all messages are appended; None for no file.
        events_file: file to which events and warnings are appended as JSON lines (see :mod:`utils.events`); None for no file.

    Raises:
        UserError: if a file cannot be written.
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
        root.addHandler(_appending(log_file, logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")))
    if events_file is not None:
        events = _appending(events_file, EventLines())
        events.addFilter(is_event_or_warning)
        root.addHandler(events)
    root.setLevel(logging.INFO)
    threading.excepthook = _thread_failed
    for chatty in ("httpx", "urllib3", "filelock", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _appending(path: Path, formatter: logging.Formatter) -> _FileHandler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_regular(path)
        if path.exists() and path.stat().st_size:
            with path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # an earlier process was killed while it wrote its last line
                    file.write(b"\n")
        handler = _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", remedy="use another --output") from None
    handler.setFormatter(formatter)
    return handler
