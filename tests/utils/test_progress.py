"""Progress bars that are written to a file."""

from __future__ import annotations

import itertools
import re
import sys

import pytest
from tqdm import tqdm

from utils.progress import progress_bar


@pytest.fixture
def clock(monkeypatch) -> None:
    """A clock that advances by ten seconds each time it is read."""
    now = itertools.count(0.0, 10.0)
    monkeypatch.setattr("tqdm.std.time", lambda: next(now))


def test_a_line_is_written_for_each_interval_and_at_the_end(clock, capsys):
    bar = progress_bar(total=40, unit="step")
    for step in range(40):
        bar.update(1)
        bar.set_postfix_str(f"loss {step}")
    bar.close()
    bar.close()
    text = capsys.readouterr().err
    assert "\r" not in text and text.endswith("\n")
    lines = text.splitlines()
    assert 2 < len(lines) < 25
    assert all(re.match(r"\d+% \d+/40 \[\d\d:\d\d", line) for line in lines)
    assert lines[-1].startswith("100% 40/40") and lines[-1].endswith("loss 39]")
    assert len(set(lines)) == len(lines)


def test_a_bar_that_does_not_stay_leaves_only_its_intervals(clock, capsys):
    for _ in progress_bar(range(40), total=40, desc="locating", leave=False):
        pass
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert lines and all(line.startswith("locating: ") for line in lines)
    assert "\r" not in text


def test_a_log_line_does_not_repeat_the_bar(clock, capsys):
    bar = progress_bar(total=10)
    bar.update(1)
    tqdm.write("a line of the log", file=sys.stderr)
    assert capsys.readouterr().err == "a line of the log\n"
    bar.close()


def test_a_short_or_quiet_bar_writes_nothing_in_between(capsys):
    for _ in progress_bar(range(3), total=3, desc="short", leave=False):
        pass
    for _ in progress_bar(range(3), total=3, desc="quiet", quiet=True):
        pass
    assert capsys.readouterr().err == ""
