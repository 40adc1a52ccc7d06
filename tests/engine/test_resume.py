"""A run as a user starts it: the contents of its folder and the requests it rejects. On a GPU, a killed and resumed run
reproduces the uninterrupted one.

On the CPU, ``tests/faults`` kills and resumes runs.
"""

from __future__ import annotations

import functools
import signal
import time

import pytest

from tests.devices import CUDA
from tests.engine.runs import curve, final_weights, finish, start
from tests.messages import OneLine


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, tiny_overrides):
    """The folder and the metrics of an uninterrupted run on a device."""

    @functools.cache
    def run(device: str, precision: str):
        output = tmp_path_factory.mktemp("runs") / "whole"
        return output, finish(output, [*tiny_overrides, f"train.precision={precision}"], device=device)

    return run


@pytest.fixture
def uninterrupted(whole_run):
    return whole_run("cpu", "fp32")


ON_GPU = [pytest.param("cuda", name, marks=CUDA.marks) for name in ("fp32", "bf16")]


@pytest.mark.parametrize(("device", "precision"), ON_GPU)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(whole_run, tiny_overrides, tmp_path, device, precision):
    whole, _ = whole_run(device, precision)
    output, overrides = tmp_path / "killed", [*tiny_overrides, f"train.precision={precision}"]
    process = start(output, overrides, device=device)
    deadline = time.monotonic() + 120
    while not (output / "checkpoints" / "step-00000003").exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(output, [*overrides, "data.workers=1"], resume=True, device=device)
    assert curve(output) == curve(whole)
    assert final_weights(output) == final_weights(whole)


def test_a_run_folder_has_the_documented_contents(uninterrupted):
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
    assert err == OneLine(f"error: {whole}", "--resume", "--output")


def test_resuming_with_another_config_is_rejected(uninterrupted, tiny_overrides):
    whole, _ = uninterrupted
    process = start(whole, [*tiny_overrides, "seed=7"], resume=True)
    _, err = process.communicate()
    assert process.returncode == 2
    assert OneLine("seed", "0", "7", "--output") in err.splitlines()
