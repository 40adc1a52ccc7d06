"""Errors that a user sees as one line instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import ParamSpec

from utils.processes import MISTAKE, PEER_LOST

P = ParamSpec("P")

SILENCE_S = 3.0
"""Seconds that a rank other than 0 waits before it prints its error."""


PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "tokenizers",
    "safetensors",
    "pydantic",
    "ruamel",
    "numpy",
    "scipy",
    "PIL",
    "simplejpeg",
    "tqdm",
    "tensorboard",
    "av",
    "cyclopts",
)
"""What the packages of requirements.txt are imported as."""


class UserError(Exception):
    """A mistake in the user's input (a config, a file, a flag). The message has fact, value, place and remedy; ``status`` is the
    exit status of a command that it ends."""

    status = MISTAKE


class PeerLostError(UserError):
    """Another rank is gone: no mistake, and the run may go on without it."""

    status = PEER_LOST


class NotRegularError(OSError):
    """A FIFO, a folder or a device is where a regular file has to be."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(errno.EINVAL, reason, os.fspath(path))


_OF_SURROUNDINGS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENOSPC,
    errno.EDQUOT,
)


def of_surroundings(error: OSError) -> UserError | None:
    """The error of a file that may not be read or written, in one line; None if it does not name a file, or has another cause."""
    if isinstance(error, NotRegularError):
        return UserError(f"{error.filename}: {error.strerror}; remove it, or give another path")
    if error.errno not in _OF_SURROUNDINGS or not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    # The target of a move is named second; the first is a temporary file.
    name = os.fsdecode(error.filename2 if error.filename2 is not None else error.filename)
    remedy = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the path and its permissions"
    return UserError(f"{name}: {error.strerror}; {remedy}")


def of_full_disk(error: Exception) -> UserError | None:
    """The error in one line if a disk is full, or a quota is used up, and ``error`` does not name the file; else None.

    Writing a file that is already open raises an OSError without a name, and libraries that write files make errors of their own
    of it.
    """
    codes = (errno.ENOSPC, errno.EDQUOT)
    code = getattr(error, "errno", None)
    reason = next((os.strerror(full) for full in codes if code == full or os.strerror(full) in str(error)), None)
    if reason is None:
        return None
    return UserError(
        f"the output of this command, a file or what it prints, cannot be written: {reason}; make room on the disk of its output"
    )


def _drop_output() -> None:
    """Print nothing more to standard output: at its end, Python would try again to write what is left, and print the error."""
    with contextlib.suppress(OSError, ValueError):  # not a file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Wrap a command's ``main``: it prints a :class:`UserError`, a file error :func:`of_surroundings`, or the error
    :func:`of_full_disk` to stderr as one line and returns its exit status, which is 2 but for :class:`PeerLostError`."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            status = main(*args, **kwargs)
            sys.stdout.flush()
            return status
        except UserError as error:
            return report(error)
        except BrokenPipeError:  # the reader of the output, such as head, has what it wants
            _drop_output()
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            return 130
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in PACKAGES:
                raise
            sys.stderr.write(
                f"error: the package {error.name} is not installed for {sys.executable}; run `make setup`, and `. "
                ".venv/bin/activate` in this shell\n"
            )
            return 2
        except Exception as error:
            told = of_surroundings(error) if isinstance(error, OSError) else None
            if (told := told or of_full_disk(error)) is None:
                raise
            _drop_output()
            return report(told)

    return wrapped


def report(error: UserError) -> int:
    """Print an error as one line to stderr, on rank 0 at once; returns its exit status."""
    if os.environ.get("RANK", "0") != "0":
        # Most mistakes stop all ranks alike, and the launcher ends the others as soon as one has stopped: so rank 0 reports
        # the error alone. An error of this rank alone is still reported.
        time.sleep(SILENCE_S)
    sys.stderr.write(f"error: {error}\n")
    return error.status
