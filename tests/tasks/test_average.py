"""A run with weight averaging: the weights that it evaluates and passes on, and that it repeats itself when resumed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoint import find_weights, list_checkpoints
from tests.messages import OneLine
from tests.tasks.painted import KINDS
from tests.tasks.test_finetune import checksum, start, watched
from x2vlm import load

TASK = "grounding"
EMA = "optim.ema.decay=0.5"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, overrides):
    """A run without validation, so that the last weights are evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    start(TASK, folder, [*overrides(TASK), EMA, "evaluation.validation=null"], kind=watched(KINDS[TASK].task, []))
    return folder


def test_the_averaged_weights_are_evaluated_and_passed_on(uninterrupted, overrides, tmp_path):
    metrics = json.loads((uninterrupted / "evaluation.json").read_text())["test"]
    averaged, trained = (
        load_file(uninterrupted / f"checkpoints/step-00000006/{name}.safetensors") for name in ("model", "unaveraged")
    )
    assert checksum(averaged) != pytest.approx(checksum(trained), rel=1e-9)
    assert metrics["weights"]["value"] == pytest.approx(checksum(averaged), rel=1e-12)
    assert metrics["IoU >= 0.5"]["weights"] == OneLine("last weights", "step 6", "averaged")
    for source, expected in (
        (uninterrupted, averaged),
        (find_weights(uninterrupted).with_name("unaveraged.safetensors"), trained),
    ):
        loaded = load(source).network.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in expected.items())
        options = [*overrides(TASK), f"init.checkpoint={source}"]
        report = start(TASK, tmp_path / source.name, options, "--evaluate", kind=watched(KINDS[TASK].task, []))
        assert report["test"]["weights"]["value"] == pytest.approx(checksum(expected), rel=1e-12)


def test_a_killed_run_repeats_itself_byte_for_byte(uninterrupted, overrides, tmp_path):
    killed = shutil.copytree(uninterrupted, tmp_path / "killed")
    for checkpoint in list_checkpoints(killed / "checkpoints"):
        if checkpoint.step > 3:
            shutil.rmtree(checkpoint.folder)
    options = [*overrides(TASK), EMA, "evaluation.validation=null"]
    report = start(TASK, killed, options, "--resume", kind=watched(KINDS[TASK].task, []))
    assert report == json.loads((uninterrupted / "evaluation.json").read_text())
    for name in ("model", "unaveraged"):
        file = f"checkpoints/step-00000006/{name}.safetensors"
        assert (killed / file).read_bytes() == (uninterrupted / file).read_bytes(), name
