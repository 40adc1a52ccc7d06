"""The limit on open files of a process, and what to say when it is reached."""

from __future__ import annotations

import contextlib
import errno
import os

from utils.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

OWN = 48
"""Files that a training process needs besides those of its workers: logs, libraries, connections to other ranks, some shards."""
PER_WORKER = 12
"""Files that a training process needs for each of its workers: two pipes, and shared memory for the tensors of a batch."""

_REMEDY = "raise the limit in the shell or the job's script, such as `ulimit -n 4096`, or lower data.workers"


def limit() -> int:
    """The number of files that this process may have open."""
    return 1 << 20 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def check_limit(workers: int) -> None:
    """Raise this process's limit as far as the system allows.

    Args:
        workers: data worker processes of this rank.

    Raises:
        UserError: if the limit is too low for the run.
    """
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit than the one it reports
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = OWN + PER_WORKER * workers
    if limit() < needed:
        raise UserError(
            f"a process may have {limit()} files open (ulimit -n), and this run with data.workers={workers} needs {needed}; "
            f"{_REMEDY}"
        )


def too_many(error: BaseException) -> UserError | None:
    """The error in one line if the cause of ``error`` is the limit on open files; else None."""
    told = getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or any(
        part in str(error) for part in (os.strerror(errno.EMFILE), "items of ancdata")
    )
    return UserError(f"too many open files: the limit is {limit()} (ulimit -n); {_REMEDY}") if told else None
