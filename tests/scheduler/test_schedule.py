"""Schedules compared with the released ones (golden `misc/schedules.json`)."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from scheduler import ScheduleConfig, build_schedule
from tests.messages import naming
from utils.errors import UserError

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "misc" / "schedules.json").read_text())


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN)
def test_linear_equals_the_released_schedule(case):
    arguments = case["args"]
    total = arguments.get("num_training_steps") or arguments["epochs"] * arguments["step_per_epoch"]
    config = ScheduleConfig(warmup_steps=arguments["num_warmup_steps"], min_rate=arguments.get("min_rate", 0.0))
    schedule = build_schedule(config, total)
    for step, expected in enumerate(case["lr_multiplier_at_step"]):
        assert schedule(step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_every_schedule_peaks_at_one_after_warmup_and_never_rises_again(kind):
    schedule = build_schedule(ScheduleConfig(kind=kind, warmup_steps=10), 100)
    rates = [schedule(step) for step in range(100)]
    assert max(rates) == rates[10] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


def test_cosine_ends_at_its_minimum():
    assert build_schedule(ScheduleConfig(kind="cosine", min_rate=0.1), 50)(50) == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_is_rejected():
    build_schedule(ScheduleConfig(warmup_steps=10), 10)
    with pytest.raises(UserError, match=naming("schedule.warmup_steps", "11", "10")):
        build_schedule(ScheduleConfig(warmup_steps=11), 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "constant", "min_rate": 0.1}, "does not decay"), ({"min_rate": 1}, "less than 1")],
)
def test_a_minimum_rate_without_effect_is_rejected(options, message):
    with pytest.raises(ValidationError, match=message):
        ScheduleConfig(**options)
