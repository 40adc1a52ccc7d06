"""The harness alternates between the alternatives, and reports medians of ratios within a round."""

from __future__ import annotations

import json

import pytest

from benchmarks import harness
from benchmarks.harness import Comparison, Rounds
from benchmarks.ranks import on_two_ranks
from tests.messages import OneLine
from utils.errors import UserError


def recording(calls: list[str], name: str, values: list[float]):
    """Returns a measurement that records its name and returns the next value."""
    remaining = iter(values)
    return lambda: calls.append(name) or next(remaining)


def test_alternatives_alternate_and_the_round_that_warms_up_is_discarded():
    calls: list[str] = []
    alternatives = {"a": recording(calls, "a", [9, 1, 2]), "b": recording(calls, "b", [9, 3, 4])}
    assert list(Rounds(rounds=2).measured(alternatives)) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert calls == ["b", "a", "a", "b", "b", "a"]


def test_without_a_warm_up_every_measurement_counts():
    calls: list[str] = []
    alternatives = {"a": recording(calls, "a", [1]), "b": recording(calls, "b", [2])}
    assert list(Rounds(rounds=1).measured(alternatives, warm_up=False)) == [{"a": 1, "b": 2}]


def test_the_ratio_is_the_median_of_the_ratios_within_rounds():
    compared = Comparison([{"a": 1, "b": 2}, {"a": 30, "b": 10}, {"a": 4, "b": 4}])
    assert compared.ratios == [0.5, 3, 1] and compared.ratio == 1
    assert compared.median("a") == 4 and compared.median("b") == 4


def test_each_round_and_the_ratio_are_printed_and_written(tmp_path, capsys):
    flags = Rounds(rounds=1, json=tmp_path / "found.json")
    compared = flags.compare({"ours": lambda: 3.0, "theirs": lambda: 0.5})
    assert flags.conclude(compared.ratio, compared.rounds, flops=2) == 0
    assert capsys.readouterr().out == "ours 3.00 s, theirs 500.00 ms, ratio 6.000\nratio: 6.00\n"
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"ratio": 6.0, "rounds": [{"ours": 3.0, "theirs": 0.5}], "flops": 2}


def test_no_round_starts_after_the_time_limit(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(harness.time, "monotonic", lambda: now[0])

    def slow() -> float:
        now[0] += 40
        return 1.0

    assert len(list(Rounds(rounds=9, minutes=1).measured({"a": slow}))) == 1
    assert OneLine("1 of 9 rounds", "--minutes 1") in capsys.readouterr().err.splitlines()


def fails() -> None:
    raise ValueError("out of luck")


@pytest.mark.slow
def test_a_rank_that_fails_is_reported_with_its_last_line():
    with pytest.raises(UserError, match="out of luck"):
        on_two_ranks(fails)
