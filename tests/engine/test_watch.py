"""Warnings of slow ranks, of a loss that jumps, and of falling throughput; none where all is as before."""

from __future__ import annotations

import json
import logging
import random
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from engine.rank_times import RankTimes
from engine.watch import PATIENCE, Watch
from tests.engine.toy import ToyTask, trainer
from tests.messages import OneLine
from tests.ranks import on_two_ranks
from utils import distributed

FROZEN = ("vision",)


def feed(watch: Watch, losses: list[float], speed: list[float] | None = None, times=None, frozen=FROZEN) -> dict:
    """Lines of ten steps each, with a loss and samples/s; 1 s a step. Returns what the last line gets."""
    found: dict = {}
    for number, loss in enumerate(losses):
        for _ in range(10):
            watch.add(loss)
        rates = {"samples_per_s": speed[number]} if speed else {}
        watch.step = getattr(watch, "step", 0) + 10
        found = watch.line(watch.step, dict(times or {}), rates, frozen, elapsed_s=float(watch.step))
    return found


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def noisy(level: float, count: int = 30, share: float = 0.03) -> list[float]:
    generator = random.Random(0)
    return [level * (1 + generator.gauss(0, share)) for _ in range(count)]


def test_a_loss_that_jumps_is_told_once_with_its_steps(told):
    feed(Watch(), [*noisy(4.0), 9.0, 9.1, 9.2, *noisy(4.0, 5)])
    (line,) = told()
    assert line == OneLine("301 to 310", "9", "3.953")


def test_a_loss_that_is_noisy_falls_or_is_only_a_little_higher_is_not_told(told):
    feed(Watch(), noisy(4.0, 300))
    feed(Watch(), [8.0 * 0.98**n for n in range(100)])
    feed(Watch(), [*noisy(4.0, share=0.001), 4.5])
    feed(Watch(), [*noisy(0.003), 0.007, *noisy(0.003), 0.02])  # a few wrong examples
    feed(Watch(), [4.0] * 5 + [40.0])  # too little is known yet
    assert told() == []


def test_ten_lines_are_enough_to_know_the_level(told):
    feed(Watch(), [*noisy(4.0, 9), 40.0])
    assert told() == []
    feed(Watch(), [*noisy(4.0, 10), 40.0])
    assert len(told()) == 1


def test_a_level_that_lasts_is_the_level(told):
    watch = Watch()
    feed(watch, [*noisy(4.0), *noisy(9.0)])
    assert len(told()) == 1
    feed(watch, [18.0])
    assert len(told()) == 2


def test_throughput_that_stays_low_is_told_once(told):
    watch = Watch()
    feed(watch, [1.0] * 35, [*noisy(100.0), 50.0, 99.0, 50.0, 50.0, 98.0])
    assert told() == [], "a line or two may be low"
    feed(watch, [1.0] * 6, [50.0, 51.0, 49.0, 50.0, 50.0, 50.0])
    (line,) = told()
    assert line == OneLine("step 380", "49 samples/s", "98.8")


def test_where_other_encoders_train_all_begins_anew(told):
    watch = Watch()
    feed(watch, noisy(4.0), noisy(100.0))
    feed(watch, noisy(9.0, 5), noisy(40.0, 5), frozen=())
    assert told() == []


def times(*own: float, data: float = 0.0) -> dict[str, float]:
    each = {f"ranks/{rank}/own_s": seconds for rank, seconds in enumerate(own)}
    return each | {f"ranks/{rank}/data_s": data for rank in range(len(own))}


def test_a_rank_that_is_slow_several_times_in_a_row_is_named(told):
    watch = Watch()
    for _ in range(PATIENCE - 1):
        feed(watch, [1.0], times=times(0.2, 0.2, 0.5, 0.3, data=0.1))
    feed(watch, [1.0], times=times(0.2, 0.2, 0.2, 0.2))
    assert told() == []
    for _ in range(PATIENCE):
        found = feed(watch, [1.0], times=times(0.2, 0.2, 0.5, 0.3, data=0.1))
    assert found == pytest.approx(
        {"ranks/slowest": 2, "ranks/slowest_s": 0.5, "ranks/slowest_data_s": 0.1, "ranks/median_s": 0.2}
    )
    (line,) = told()
    assert line == OneLine("rank 2", "0.5 s", "0.1 s")
    assert line == OneLine("0.2 s")
    for _ in range(PATIENCE):
        feed(watch, [1.0], times=times(0.2, 0.2, 0.5, 0.3))
    assert len(told()) == 2, "told again after twice as many"


def test_with_a_line_for_each_step_ranks_are_judged_by_ten_steps_too(told):
    """One slow step of ten makes no slow rank, whether or not it is the last; nine do."""

    def slow_in(steps: set[int]) -> list[str]:
        watch = Watch()
        for step in range(1, 10 * PATIENCE + 1):
            watch.add(1.0)
            own = times(0.2, 0.2, 0.5 if step % 10 in steps else 0.2)
            watch.line(step, own, {}, FROZEN, elapsed_s=float(step))
        return told()

    assert slow_in({0}) == []
    (line,) = slow_in(set(range(1, 10)))
    assert "rank 2 is slow: 0.47 s" in line


def test_ranks_that_change_places_or_hardly_matter_are_not_told(told):
    watch = Watch()
    for number in range(20):
        feed(watch, [1.0], times=times(*(0.9 if rank == number % 3 else 0.2 for rank in range(3))))
        feed(watch, [1.0], times=times(0.02, 0.01, 0.01))  # of a step of 1 s
        feed(watch, [1.0], times=times(0.25, 0.2, 0.2))
    assert told() == []


def test_one_rank_tells_nothing_of_ranks(tmp_path):
    trainer(tmp_path).fit()
    assert "ranks/" not in (tmp_path / "metrics.jsonl").read_text()
    names, news = RankTimes(torch.device("cpu"), 1, 10).news(False, 5, torch.zeros(1))
    assert names == ["asked"] and news.tolist() == [0.0]


class SlowRank:
    """A picklable job: rank 1 sleeps in each forward pass, before ranks exchange their features, or waits for data."""

    def __init__(self, folder: Path, where: str):
        self.folder, self.where = folder, where

    def __call__(self) -> dict:
        task = ToyTask()
        forward, batches, slow = task.model.forward, task.loader.batches, distributed.rank() == 1

        def slow_forward(batch):
            if slow and self.where == "forward":
                time.sleep(0.03)
            return forward(batch) if distributed.start_gather(batch.x)() is not None else {}

        def slow_batches(*arguments):
            for batch in batches(*arguments):
                time.sleep(0.03 if slow and self.where == "data" else 0.0)
                yield batch

        task.model.forward, task.loader.batches = slow_forward, slow_batches
        messages: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())
        logging.getLogger("engine.watch").addHandler(handler)
        trainer(self.folder, task, steps=50, log_every=10).fit()
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return {"lines": lines, "messages": messages}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "data"])
def test_of_two_ranks_the_slow_one_is_named_though_the_other_waits_as_long(tmp_path, where):
    (tmp_path / "out").mkdir()
    first, second = on_two_ranks(SlowRank(tmp_path / "run", where), tmp_path / "out")
    for line in first["lines"][1:]:
        assert line["ranks/slowest"] == 1
        assert line["ranks/slowest_s"] >= 0.03
        assert (line["ranks/slowest_data_s"] >= 0.03) == (where == "data")
        assert line["ranks/median_s"] < line["ranks/slowest_s"] / 2, "what rank 0 waits for rank 1 is not its own time"
    assert any("rank 1 is slow" in message for message in first["messages"])
    assert second["messages"] == [], "rank 0 tells it for all"


def test_on_a_device_times_are_added_once_they_are_over(monkeypatch):
    class Event:
        """An event that is over when the device has come so far; it is recorded a second after the one before."""

        recorded, device_at = 0, 0

        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            Event.recorded += 1
            self.at = Event.recorded

        def query(self) -> bool:
            return self.at <= Event.device_at

        def elapsed_time(self, later: Event) -> float:
            assert later.query()
            return 1000.0 * (later.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    ranks = RankTimes(torch.device("cuda"), 2, 9)

    def step() -> None:
        with ranks.waiting_for_data():
            pass
        with ranks.noting_waits():
            ranks.reached("work")
            with distributed._around_waits():
                pass
            ranks.reached("losses")  # three seconds, in one of which this rank waits
            ranks.reached("backward")
            ranks.reached("clip")
            with distributed._around_waits():
                pass  # as in a validation: no part of a forward pass of training
        assert distributed._around_waits is nullcontext

    def own_s(number: int) -> float:
        return ranks.news(False, number, torch.zeros(1))[1][1].item()

    step()
    assert ranks.news(True, 1, torch.zeros(1))[1].tolist() == [1.0], "no line of metrics, nothing of times"
    step()
    Event.device_at = 6  # the first step and the beginning of the second are over
    assert own_s(2) == pytest.approx(2.0 / 2, abs=0.1)
    Event.device_at = 100
    step()
    assert own_s(4) == pytest.approx((2.0 + 2.0) / 1, abs=0.1)
    assert len(ranks._spans) == 0
