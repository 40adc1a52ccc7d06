"""A run that is killed and resumed repeats the uninterrupted one to the last digit."""

from __future__ import annotations

import signal
import time

import pytest

from tests.engine.runs import curve, final_weights, finish, start


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_overrides):
    output = tmp_path_factory.mktemp("runs") / "whole"
    table = finish(output, tiny_overrides)
    return output, table


def test_a_killed_run_repeats_the_uninterrupted_one(uninterrupted, tiny_overrides, tmp_path):
    whole, _ = uninterrupted
    output = tmp_path / "killed"
    process = start(output, tiny_overrides)
    deadline = time.monotonic() + 120
    while not (output / "checkpoints" / "step-00000003").exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(output, [*tiny_overrides, "data.workers=1"], resume=True)
    assert curve(output) == curve(whole)
    assert final_weights(output) == final_weights(whole)


def test_a_run_folder_holds_what_it_should(uninterrupted):
    whole, table = uninterrupted
    names = {path.name for path in whole.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "log.txt", "tensorboard", "checkpoints"} <= names
    assert {"evaluation.json", "predictions.png"} <= names
    assert [line["step"] for line in curve(whole)] == list(range(1, 9))
    for row in ("image to text R@1", "text to image R@1", "object box", "relation box", "masked word", "chance"):
        assert row in table


def test_a_folder_with_a_run_is_not_overwritten(uninterrupted, tiny_overrides):
    whole, _ = uninterrupted
    process = start(whole, tiny_overrides)
    _, err = process.communicate()
    assert process.returncode == 2
    assert err == f"error: {whole} already holds a run; add --resume to go on with it, or give another --output\n"


def test_resuming_with_another_config_is_refused(uninterrupted, tiny_overrides):
    whole, _ = uninterrupted
    process = start(whole, [*tiny_overrides, "seed=7"], resume=True)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "this run had another config: seed was 0, is now 7; give another --output" in err
