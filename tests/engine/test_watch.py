"""Warnings about slow ranks, a loss that jumps, and falling throughput. Normal runs cause no warnings."""

from __future__ import annotations

import json
import logging
import random
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from engine.watch import PATIENCE, RankTimes, Watch
from tests.engine.toy import ToyTask, trainer
from tests.messages import OneLine
from tests.ranks import on_two_ranks
from utils import distributed

FROZEN = ("vision",)


def feed(watch: Watch, losses: list[float], speed: list[float] | None = None, times=None, frozen=FROZEN) -> dict:
    """Feeds lines of ten steps each, with a loss and samples/s, at 1 s per step. Returns the fields added to the last line."""
    found: dict = {}
    for number, loss in enumerate(losses):
        for _ in range(10):
            watch.losses.append(loss)
        rates = {"samples_per_s": speed[number]} if speed else {}
        watch.step = getattr(watch, "step", 0) + 10
        found = watch.line(watch.step, dict(times or {}), rates, frozen, elapsed_s=float(watch.step))
    return found


@pytest.fixture
def reported(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def noisy(level: float, count: int = 30, share: float = 0.03) -> list[float]:
    generator = random.Random(0)
    return [level * (1 + generator.gauss(0, share)) for _ in range(count)]


def test_a_loss_that_jumps_is_reported_once_with_its_steps(reported):
    feed(Watch(), [*noisy(4.0), 9.0, 9.1, 9.2, *noisy(4.0, 5)])
    (line,) = reported()
    assert line == OneLine("301 to 310", "9", "3.953")


def test_a_noisy_falling_or_slightly_higher_loss_is_not_reported(reported):
    feed(Watch(), noisy(4.0, 300))
    feed(Watch(), [8.0 * 0.98**n for n in range(100)])
    feed(Watch(), [*noisy(4.0, share=0.001), 4.5])
    feed(Watch(), [*noisy(0.003), 0.007, *noisy(0.003), 0.02])  # a few wrong examples
    feed(Watch(), [4.0] * 5 + [40.0])  # too few lines so far
    assert reported() == []


def test_ten_lines_are_enough_to_know_the_level(reported):
    feed(Watch(), [*noisy(4.0, 9), 40.0])
    assert reported() == []
    feed(Watch(), [*noisy(4.0, 10), 40.0])
    assert len(reported()) == 1


def test_a_lasting_level_becomes_the_new_level(reported):
    watch = Watch()
    feed(watch, [*noisy(4.0), *noisy(9.0)])
    assert len(reported()) == 1
    feed(watch, [18.0])
    assert len(reported()) == 2


def test_throughput_that_stays_low_is_reported_once(reported):
    watch = Watch()
    feed(watch, [1.0] * 35, [*noisy(100.0), 50.0, 99.0, 50.0, 50.0, 98.0])
    assert reported() == [], "one or two low lines must not cause a warning"
    feed(watch, [1.0] * 6, [50.0, 51.0, 49.0, 50.0, 50.0, 50.0])
    (line,) = reported()
    assert line == OneLine("step 380", "49 samples/s", "98.8")


def test_the_baseline_is_reset_when_other_encoders_train(reported):
    watch = Watch()
    feed(watch, noisy(4.0), noisy(100.0))
    feed(watch, noisy(9.0, 5), noisy(40.0, 5), frozen=())
    assert reported() == []


def times(*own: float, data: float = 0.0) -> dict[str, float]:
    each = {f"ranks/{rank}/own_s": seconds for rank, seconds in enumerate(own)}
    return each | {f"ranks/{rank}/data_s": data for rank in range(len(own))}


def test_a_rank_that_is_slow_several_times_in_a_row_is_named(reported):
    watch = Watch()
    for _ in range(PATIENCE - 1):
        feed(watch, [1.0], times=times(0.2, 0.2, 0.5, 0.3, data=0.1))
    feed(watch, [1.0], times=times(0.2, 0.2, 0.2, 0.2))
    assert reported() == []
    for _ in range(PATIENCE):
        found = feed(watch, [1.0], times=times(0.2, 0.2, 0.5, 0.3, data=0.1))
    assert found == pytest.approx(
        {"ranks/slowest": 2, "ranks/slowest_s": 0.5, "ranks/slowest_data_s": 0.1, "ranks/median_s": 0.2}
    )
    (line,) = reported()
    assert line == OneLine("rank 2", "0.5 s", "0.1 s")
    assert line == OneLine("0.2 s")
    for _ in range(PATIENCE):
        feed(watch, [1.0], times=times(0.2, 0.2, 0.5, 0.3))
    assert len(reported()) == 2, "reported again after twice the number of lines"


def test_with_a_line_per_step_ranks_are_still_judged_by_ten_steps(reported):
    """One slow step in ten does not make a rank slow, whether or not it is the last of them. Nine do."""

    def slow_in(steps: set[int]) -> list[str]:
        watch = Watch()
        for step in range(1, 10 * PATIENCE + 1):
            watch.losses.append(1.0)
            own = times(0.2, 0.2, 0.5 if step % 10 in steps else 0.2)
            watch.line(step, own, {}, FROZEN, elapsed_s=float(step))
        return reported()

    assert slow_in({0}) == []
    (line,) = slow_in(set(range(1, 10)))
    assert "rank 2 is slow: it takes 0.47 s" in line


def test_alternating_or_insignificant_slow_ranks_are_not_reported(reported):
    watch = Watch()
    for number in range(20):
        feed(watch, [1.0], times=times(*(0.9 if rank == number % 3 else 0.2 for rank in range(3))))
        feed(watch, [1.0], times=times(0.02, 0.01, 0.01))  # in a step of 1 s
        feed(watch, [1.0], times=times(0.25, 0.2, 0.2))
    assert reported() == []


def test_a_single_rank_logs_nothing_about_ranks(tmp_path):
    trainer(tmp_path).fit()
    assert "ranks/" not in (tmp_path / "metrics.jsonl").read_text()
    assert RankTimes(torch.device("cpu"), 1, 10).values_to_sum(5) == {}


class SlowRank:
    """A picklable job in which rank 1 sleeps in each forward pass before ranks exchange features, or waits for data."""

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
def test_the_slower_of_two_ranks_is_named_although_the_other_waits_as_long(tmp_path, where):
    (tmp_path / "out").mkdir()
    first, second = on_two_ranks(SlowRank(tmp_path / "run", where), tmp_path / "out")
    for line in first["lines"][1:]:
        assert line["ranks/slowest"] == 1
        assert line["ranks/slowest_s"] >= 0.03
        assert (line["ranks/slowest_data_s"] >= 0.03) == (where == "data")
        assert line["ranks/median_s"] < line["ranks/slowest_s"] / 2, (
            "the time that rank 0 waits for rank 1 must not count as its own"
        )
    assert any("rank 1 is slow" in message for message in first["messages"])
    assert second["messages"] == [], "only rank 0 reports it"


def test_on_a_device_times_are_added_once_their_events_completed(monkeypatch):
    class Event:
        """An event that has completed when the device has reached it. Each event is recorded one second after the previous
        one."""

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
        ranks.data_waits_s.append(0.0)
        with distributed.recording_waits(ranks.waiting_for_ranks):
            ranks.begin_forward()
            with distributed._around_waits():
                pass
            ranks.end_forward()  # three seconds, during one of which this rank waits
            with distributed._around_waits():
                pass  # as in a validation pass, which is not part of a training forward pass
        assert distributed._around_waits is nullcontext

    def own_s(number: int) -> float:
        return ranks.values_to_sum(number)["ranks/0/own_s"]

    step()
    assert ranks.values_to_sum(1) == {}, "without a line of metrics, no times are returned"
    step()
    Event.device_at = 6  # the first step and the beginning of the second have completed
    assert own_s(2) == pytest.approx(2.0 / 2, abs=0.1)
    Event.device_at = 100
    step()
    assert own_s(4) == pytest.approx((2.0 + 2.0) / 1, abs=0.1)
    assert len(ranks._spans) == 0
