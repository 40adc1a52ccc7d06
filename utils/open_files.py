"""Checks and raises the limit on the number of files that a process may have open, and recognises errors caused by the limit."""

from __future__ import annotations

import contextlib
import errno
import os

from utils.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BASE_FILES = 48
"""Number of files that a training process needs without data workers, for logs, libraries, connections to other ranks, and some
shards."""
PER_WORKER = 12
"""Number of files that a training process needs per data worker, for two pipes and for the shared memory of a batch's tensors."""

_REMEDY = "raise the limit in the shell or the job script, for example with `ulimit -n 4096`, or lower data.workers"


def limit() -> int:
    """Returns the number of files that this process may have open."""
    return 1 << 20 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def check_limit(workers: int) -> None:
    """Raises this process's limit as far as the system allows.

    Args:
        workers: number of data workers of this rank.

    Raises:
        UserError: if the limit is too low for the run.
    """
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            with contextlib.suppress(OSError, ValueError):  # the real limit of macOS is lower than the one it reports
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = BASE_FILES + PER_WORKER * workers
    if limit() < needed:
        raise UserError(
            f"a process may have {limit()} files open (ulimit -n), but this run with data.workers={workers} "
            f"needs {needed}",
            remedy=_REMEDY,
        )


def limit_error(error: BaseException) -> UserError | None:
    """Returns a one-line error if ``error`` was caused by the limit on open files, otherwise None."""
    reached = getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or any(
        part in str(error) for part in (os.strerror(errno.EMFILE), "items of ancdata")
    )
    return UserError(f"too many open files: the limit is {limit()} (ulimit -n)", remedy=_REMEDY) if reached else None
