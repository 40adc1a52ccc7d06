"""Set-up of the standard ``logging``: every rank logs to a file; on the screen, rank 0 shows all, the others their warnings."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from utils import distributed
from utils.errors import UserError


class _ScreenHandler(logging.Handler):
    """Prints lines above a progress bar, which they would otherwise break."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """Drops lines that cannot be written, on a full disk say: the screen has them."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


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
            file = _FileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{log_file} cannot be written: {error.strerror}; give another --output") from None
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "urllib3", "filelock", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
