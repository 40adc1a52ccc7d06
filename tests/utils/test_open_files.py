"""The limit on open files is checked before a run starts, and named when it is reached."""

from __future__ import annotations

import errno
import resource

import pytest

from tests.messages import naming
from utils import open_files
from utils.errors import UserError


@pytest.fixture
def limits(monkeypatch):
    """Simulated soft and hard limits of this process."""
    limits = {"now": (1024, 64)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limits.update(now=new))
    return limits


def test_a_limit_that_is_too_low_is_rejected_with_the_required_number(limits):
    limits["now"] = (64, 64)
    with pytest.raises(UserError, match=naming("64 files", "ulimit -n", "data.workers=4", "96", "ulimit -n 4096")):
        open_files.check_limit(workers=4)
    open_files.check_limit(workers=0)


def test_the_limit_is_raised_as_far_as_the_system_allows(limits):
    limits["now"] = (64, 4096)
    open_files.check_limit(workers=16)
    assert open_files.limit() == 4096


def test_only_errors_caused_by_the_limit_are_attributed_to_it():
    assert "ulimit -n" in str(open_files.limit_error(OSError(errno.EMFILE, "Too many open files", "a.jsonl")))
    assert "ulimit -n" in str(open_files.limit_error(RuntimeError("received 0 items of ancdata")))
    assert open_files.limit_error(OSError(errno.ENOENT, "No such file", "a.jsonl")) is None
