"""Set-up of the standard ``logging``: rank 0 logs to the screen and ``log.txt``, other ranks print warnings with their rank."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from utils import distributed


class _ScreenHandler(logging.Handler):
    """Prints lines above a progress bar, which they would otherwise break."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def set_up(log_file: Path | None = None) -> None:
    """Configure the root logger of this process; rank 0 appends to ``log_file``."""
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
