"""Errors that are reported to users as one line instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import ParamSpec

from utils.processes import PEER_LOST, USER_ERROR
from utils.rank_reports import report_status

P = ParamSpec("P")

SILENCE_S = 8.0
"""Seconds that a rank other than 0 waits before it prints its error. On a busy machine, rank 0 may start several seconds
later."""


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
    "faster_coco_eval",
    "PIL",
    "simplejpeg",
    "tqdm",
    "tensorboard",
    "av",
    "cyclopts",
    "jinja2",
    "altair",
    "vl_convert",
)
"""Import names of the packages in requirements.txt."""


class UserError(Exception):
    """An error in the user's input (a config, a file or a flag), which is shown as one line: ``where: what; remedy``.

    Attributes:
        what: the problem, with the value.
        where: the config key, the flag, the file, or the file and line; "" if the problem names it.
        remedy: what to do; "" if the problem says it.
        status: the exit status of the command.
    """

    status = USER_ERROR

    def __init__(self, what: str, *, where: object = "", remedy: str = ""):
        super().__init__(what)
        self.what, self.where, self.remedy = what, str(where), remedy

    def __str__(self) -> str:
        return f"{self.where}: " * bool(self.where) + self.what + f"; {self.remedy}" * bool(self.remedy)


class PeerLostError(UserError):
    """Another rank was lost. The user has made no error, and the run may continue without the lost rank."""

    status = PEER_LOST


def reason_of(error: BaseException) -> str:
    """Returns the reason of an error of the operating system, or the first line of another error."""
    return getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), type(error).__name__)


class NotRegularError(OSError):
    """A path that must be a regular file is a FIFO, a folder or a device."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(errno.EINVAL, reason, os.fspath(path))


_FILE_ACCESS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EBUSY,
    errno.EIO,
)


def file_access_error(error: OSError) -> UserError | None:
    """Converts an error about an inaccessible file to a one-line error. Returns None if ``error`` does not name a file, or has a
    different cause."""
    if isinstance(error, NotRegularError):
        return UserError(f"{error.strerror}", where=error.filename, remedy="remove it, or use another path")
    if error.errno not in _FILE_ACCESS or not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    # When moving a file fails, the second name is the target, and the first is a temporary file.
    name = os.fsdecode(error.filename2 if error.filename2 is not None else error.filename)
    remedies = {
        errno.ENOSPC: "make room there",
        errno.EDQUOT: "make room there",
        errno.EFBIG: "raise the limit on file sizes",
    }
    remedy = remedies.get(error.errno or 0, "check the path and its permissions")
    return UserError(f"{error.strerror}", where=name, remedy=remedy)


def full_disk_error(error: Exception) -> UserError | None:
    """Converts an error that was caused by a full disk or an exceeded quota to a one-line error. Returns None for other causes.

    Such an error does not always name the file: writing to an open file raises an OSError without a file name, and libraries that
    write files convert it to other types of errors.
    """
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    code = getattr(error, "errno", None)
    reason = next((os.strerror(full) for full in codes if code == full or os.strerror(full) in str(error)), None)
    if reason is None:
        return None
    remedy = "raise the limit on file sizes" if reason == os.strerror(errno.EFBIG) else "make room on the output's disk"
    return UserError(
        f"the output of this command (a file or standard output) cannot be written: {reason}", remedy=remedy
    )


def encoding_error(error: UnicodeEncodeError) -> UserError | None:
    """Converts an error about a text that UTF-8 cannot represent to a one-line error. Such a text is an argument or a file name
    that is not valid UTF-8, or comes from a JSON file with half of a surrogate pair. Returns None for other causes."""
    if error.reason != "surrogates not allowed":
        return None
    shown = error.object[max(0, error.start - 40) : error.end + 20]
    return UserError(f"{shown!r} is not valid UTF-8", remedy="correct the text, or rename the file")


def _escape_output() -> None:
    """Makes standard output escape characters that its encoding cannot represent, such as undecodable bytes in file names."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Discards further standard output. Otherwise, Python would try to flush it at exit and print another error."""
    with contextlib.suppress(OSError, ValueError):  # stdout may not be a file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Wraps a command's ``main`` so that a :class:`UserError`, or an error that :func:`file_access_error`,
    :func:`full_disk_error` or :func:`encoding_error` recognises, is printed to stderr as one line. The wrapped function then
    returns the error's exit status, which is 2 except for :class:`PeerLostError`. Characters that standard output cannot
    represent are escaped."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        _escape_output()
        try:
            status = main(*args, **kwargs)
            sys.stdout.flush()
            return status
        except UserError as error:
            return report(error)
        except BrokenPipeError:  # the reader of the output, such as head, has stopped reading
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
            converted = file_access_error(error) if isinstance(error, OSError) else None
            converted = encoding_error(error) if isinstance(error, UnicodeEncodeError) else converted
            if (converted := converted or full_disk_error(error)) is None:
                raise
            _drop_output()
            return report(converted)

    return wrapped


def report(error: UserError) -> int:
    """Prints an error to stderr as one line, on ranks other than 0 after a delay. Returns the exit status of the error."""
    report_status(error.status)
    if os.environ.get("RANK", "0") != "0":
        # Most errors occur on all ranks, and the launcher stops all other ranks once a rank has exited, so usually only rank 0
        # prints the error. An error that occurs only on this rank is printed after the delay.
        time.sleep(SILENCE_S)
    sys.stderr.write(f"error: {error}\n")
    return error.status
