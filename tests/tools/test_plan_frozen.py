"""The plan and the doctor for runs with frozen encoders, and with weight averaging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.binding import bind_run
from tasks.kinds import find_task
from tests.messages import OneLine
from tests.tools.test_plan import BASE, FEW, MEMORY, SMALL, planner_of
from tools.doctor.memory import needed_bytes
from tools.doctor.subject import Subject
from tools.plan.planner import Planner
from tools.plan.synthetic import scaled, synthetic_batch
from tools.steps.fake import FakeSteps, StepMemory
from tools.steps.real import RealSteps
from utils.tensors import tensor_bytes

DEEP = [*SMALL, "model.vision.depth=4", *FEW]
"""A vision encoder that takes most of the memory and of the FLOPs."""


def planner(*overrides: str) -> Planner:
    return planner_of(["--config", BASE, *MEMORY, "--gpu", "a100", "--estimate", *DEEP, *overrides])


def memory(*overrides: str) -> StepMemory:
    """The memory of a step on four images."""
    bound = bind_run(BASE, [*DEEP, *overrides])
    kind = bound.source.load().task
    config = scaled(bound.config, 4)
    steps = FakeSteps(kind.build_model(config, None), config.train, config.optim, as_on_gpu=True)
    return steps.memory(lambda model: synthetic_batch(config, model), gradients_stay=True)


def vision_bytes() -> int:
    return tensor_bytes(planner().meta_model.vision.parameters())


@pytest.mark.night
def test_a_frozen_encoder_only_takes_memory_for_its_weights():
    plain, frozen = memory(), memory("optim.freeze.vision=true")
    vision = vision_bytes()
    assert frozen.weights == plain.weights
    assert plain.gradients - frozen.gradients == vision
    assert plain.optimiser - frozen.optimiser == pytest.approx(2 * vision, rel=1e-3)
    assert frozen.activations < 0.7 * plain.activations


@pytest.mark.night
def test_a_frozen_fusion_keeps_the_activations_that_gradients_pass_through():
    text, fusion = memory("optim.freeze={text: true, vision: true}"), memory("optim.freeze.fusion=true")
    assert text.activations < 0.7 * fusion.activations


@pytest.mark.night
def test_checkpointing_a_frozen_part_does_not_change_the_memory():
    frozen = "optim.freeze={vision: true, text: true}"
    assert memory(frozen, "train.recompute=[vision,text]") == memory(frozen)
    assert memory("train.recompute=[vision,text]") != memory()


@pytest.mark.night
def test_the_plan_has_the_flops_and_the_time_of_a_step_with_a_frozen_encoder():
    plain, frozen = planner()._setting(4, 1, 1), planner("optim.freeze.vision=true")._setting(4, 1, 1)
    spared = (
        4 * (planner().meta_model.cost.vision.image / 2) / 1e12
    )  # at least, because the backward pass is half of a step or more
    assert plain.tflop_per_gpu - frozen.tflop_per_gpu >= spared > 0.2 * plain.tflop_per_gpu
    assert frozen.step_s / plain.step_s == pytest.approx(frozen.tflop_per_gpu / plain.tflop_per_gpu)
    assert sum(frozen.memory.values()) < sum(plain.memory.values())


@pytest.mark.night
def test_an_encoder_that_is_unfrozen_later_is_planned_as_trained_with_a_note():
    plain, unfreezing = planner(), planner("optim.freeze={vision: 1000, text: 2000}")
    assert unfreezing._setting(4, 1, 1) == plain._setting(4, 1, 1)
    added = [line for line in unfreezing._assumptions() if line not in plain._assumptions()]
    assert added == [OneLine("2,000", "optim.freeze", "vision, text")]
    assert planner("optim.freeze.vision=true")._assumptions() == plain._assumptions()


def test_measured_steps_have_frozen_encoders():
    bound = bind_run(BASE, [*DEEP, "train.precision=fp32", "optim.freeze.vision=true"])
    kind = bound.source.load().task
    config = scaled(bound.config, 2)
    run = RealSteps(kind.build_model(config, None), config.train, config.optim, torch.device("cpu"))
    assert run.seconds(lambda model: synthetic_batch(config, model)) > 0
    vision = set(run.trainer.model.vision.parameters())
    assert not vision & run.trainer.trained.optimizer.state.keys()
    assert all(parameter.grad is None for parameter in vision)


@pytest.mark.parametrize(("freeze", "spared"), [("true", 2), ("1000", 0)])
def test_the_doctor_counts_checkpoints_without_states_of_parts_that_never_train(freeze, spared):
    """A checkpoint after an unfreezing has the states of all parts."""
    kind = find_task("pretrain").load().task
    sizes = {}
    for value in ("false", freeze):
        config = bind_run(BASE, [*DEEP, f"optim.freeze.vision={value}"]).config
        subject = Subject(config, kind, 1, output=Path(), device=torch.device("cpu"), out=Path())
        subject.build_model()
        sizes[value] = needed_bytes(subject.fake_steps.trainer.model, keep=3, has_best=True)
    one, best, total = (plain - frozen for plain, frozen in zip(sizes["false"], sizes[freeze], strict=True))
    assert (one, best, total) == (spared * vision_bytes(), 0, 4 * spared * vision_bytes())


@pytest.mark.night
def test_the_plan_and_the_doctor_count_the_average_of_the_weights():
    plain, averaging = planner()._setting(4, 1, 1), planner("optim.ema={}")._setting(4, 1, 1)
    assert averaging.memory["average"] == averaging.memory["gradients"] > 0
    assert "average" not in plain.memory
    frozen = planner("optim.ema={}", "optim.freeze.vision=true")._setting(4, 1, 1)
    assert averaging.memory["average"] - frozen.memory["average"] == vision_bytes()
    model = planner().meta_model
    without, with_average = (needed_bytes(model, keep=3, has_best=True, has_average=each) for each in (False, True))
    assert with_average[0] - without[0] == tensor_bytes([*model.parameters(), *model.buffers()])


@pytest.mark.night
def test_adapters_have_gradients_and_states_instead_of_the_weights():
    pytest.importorskip("peft", reason="adapters need the package peft")
    plain, adapted = (planner(*lora).plan().largest for lora in ([], ["optim.lora={rank: 2}"]))
    assert adapted.memory["gradients"] < 0.2 * plain.memory["gradients"]
    assert adapted.memory["optimiser"] == pytest.approx(2 * adapted.memory["gradients"], rel=1e-2)
    assert adapted.memory["weights"] > plain.memory["weights"]
    assert (
        adapted.tflop_per_gpu / adapted.sizes["data.images.batch_size"]
        < plain.tflop_per_gpu / plain.sizes["data.images.batch_size"]
    )


@pytest.mark.slow
def test_muon_has_one_state_for_a_matrix_instead_of_two():
    plain, muon = memory(), memory("optim.muon={}")
    assert muon.weights == plain.weights
    assert 0.5 * plain.optimiser < muon.optimiser < 0.95 * plain.optimiser
