"""Logs: to the screen and ``log.txt`` on rank 0, warnings with their rank elsewhere. Modules write with ``logging.getLogger``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from utils import distributed


class _ScreenHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def set_up(log_file: Path | None = None) -> None:
    """Configure the root logger of this process; ``log_file`` is appended to by rank 0."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    rank = distributed.rank()
    screen = _ScreenHandler()
    screen.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    root.addHandler(screen)
    if rank == 0 and log_file is not None:
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    for chatty in ("httpx", "urllib3", "filelock", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
