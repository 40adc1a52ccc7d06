"""``optim.freeze`` in the training loop: frozen parts, unfreezing, and runs that resume before, at and after an unfreezing."""

from __future__ import annotations

import gc
import logging
import math
import re
import weakref

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine import trainer
from engine.parallel.ddp import DataParallel
from engine.run_folder import RunFolder
from engine.watch import Watch
from optim import groups
from tasks.config import PretrainConfig
from tests.engine.frozen import (
    Encoders,
    as_of_step,
    checkpoints,
    lines,
    part_of,
    pretraining,
    result,
    same,
    toy,
    weights,
)
from tests.engine.toy import Line, points
from tests.messages import OneLine, naming
from utils.config import load_config
from utils.errors import UserError

CHOICES = [("vision",), ("text",), ("fusion",), ("vision", "text"), ("vision", "text", "fusion")]
PLAIN = [
    "model.text.dropout=0",
    "model.text.attention_dropout=0",
    "model.vision.drop_path=0",
    "model.fusion.drop_path=0",
]


def frozen(*parts: str) -> str:
    return f"optim.freeze={{{', '.join(f'{part}: true' for part in parts)}}}"


@pytest.mark.parametrize("parts", CHOICES)
def test_frozen_encoders_keep_their_weights_without_gradients_or_states(tmp_path, tiny_overrides, parts):
    run = pretraining(tmp_path, tiny_overrides, frozen(*parts))
    before = weights(run.model)
    run.fit()
    for name, parameter in run.model.named_parameters():
        is_frozen = part_of(name) in parts
        assert torch.equal(parameter, before[name]) == is_frozen, name
        assert (parameter.grad is None) == is_frozen, name
        assert (parameter not in run.trained.optimizer.state) == is_frozen, name
    names = {name for group in run.trained.optimizer.param_groups for name in group["names"]}
    assert names == {name for name in before if part_of(name) not in parts}


def test_throughput_warnings_know_what_is_frozen_in_each_step(tmp_path, monkeypatch):
    reported = []
    line = Watch.line

    def recording(self, step, times, rates, frozen, elapsed_s):
        reported.append((step, frozen))
        return line(self, step, times, rates, frozen, elapsed_s)

    monkeypatch.setattr(Watch, "line", recording)
    toy(tmp_path, {"vision": 2, "text": 4}).fit()
    both, text = ("vision", "text"), ("text",)
    assert reported == [(1, both), (2, both), (3, text), (4, text), (5, ()), (6, ())]


@pytest.mark.parametrize("parts", CHOICES)
def test_freezing_equals_a_learning_rate_of_zero(tmp_path, tiny_overrides, monkeypatch, parts):
    """Clipping is disabled, because its norm would include the gradients of all parts, and so is dropout, because a frozen
    encoder does not use it."""
    overrides = [*PLAIN, "train.clip_grad_norm=null"]
    with sdpa_kernel(SDPBackend.MATH):  # attention uses different kernels with and without gradients
        run = pretraining(tmp_path / "frozen", tiny_overrides, *overrides, frozen(*parts))
        run.fit()
        rate = groups.learning_rate
        monkeypatch.setattr(
            groups, "learning_rate", lambda name, *rest: 0.0 if part_of(name) in parts else rate(name, *rest)
        )
        still = pretraining(tmp_path / "still", tiny_overrides, *overrides)
        still.fit()
    assert all(parameter.grad is not None for parameter in still.model.parameters())
    assert same(weights(run.model), weights(still.model))
    losses = [
        [{name: value for name, value in line.items() if name == "loss" or "/" in name[3:]} for line in lines(folder)]
        for folder in (tmp_path / "frozen", tmp_path / "still")
    ]
    of_rates = [[{k: v for k, v in line.items() if not k.startswith("lr/")} for line in each] for each in losses]
    assert of_rates[0] == of_rates[1]
    assert len(of_rates[0]) == 6 and "images/mlm" in of_rates[0][0]


def test_the_gradient_norm_covers_only_the_parts_that_train(tmp_path, tiny_overrides):
    run = pretraining(tmp_path, tiny_overrides, frozen("vision"), "train.clip_grad_norm=1e9")
    run.fit()
    squares = [each.grad.square().sum() for name, each in run.model.named_parameters() if part_of(name) != "vision"]
    assert lines(tmp_path)[-1]["grad_norm"] == pytest.approx(torch.stack(squares).sum().sqrt().item(), rel=1e-5)


def test_an_unfrozen_encoder_starts_with_fresh_states_at_the_current_rate(tmp_path):
    run = toy(tmp_path, {"vision": 3, "text": 1, "fusion": True})
    start = weights(run.model)
    for step in range(6):
        before = weights(run.model)
        run.train_step([points(step)])
        since = {"vision": 3, "text": 1, "fusion": math.inf, "fit": 0}
        for name, parameter in run.model.named_parameters():
            assert torch.equal(parameter, start[name]) == (step < since[part_of(name)])
            if step >= since[part_of(name)]:
                assert run.trained.optimizer.state[parameter]["step"] == step + 1 - since[part_of(name)]
            if step == since[part_of(name)]:
                rate = 0.1 * run.trained.schedule(step)
                decay = 0.0 if name.endswith("bias") else 0.01
                alone = before[name].requires_grad_()
                alone.grad = parameter.grad
                torch.optim.AdamW([alone], lr=rate, betas=(0.9, 0.98), weight_decay=decay).step()
                torch.testing.assert_close(parameter, alone)
                assert not torch.equal(parameter, start[name])


def test_parts_that_trained_before_keep_their_states(tmp_path):
    """The head's states after the unfreezing follow from its states before and its gradient."""
    run = toy(tmp_path, {"vision": 2})
    for step in range(3):
        if step == 2:
            kept = run.trained.optimizer.state[run.model.fit.weight]["exp_avg"].clone()
        run.train_step([points(step)])
    expected = 0.9 * kept + 0.1 * run.model.fit.weight.grad
    torch.testing.assert_close(run.trained.optimizer.state[run.model.fit.weight]["exp_avg"], expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_unfreezing_works_with_mixed_precision_and_accumulation(tmp_path, precision):
    run = toy(tmp_path, {"vision": 2, "fusion": 3}, precision=precision, accumulate=2)
    before = weights(run.model)
    run.fit()
    written = lines(tmp_path)
    assert len(written) == 6 and run.tally.skipped == 0
    assert all(math.isfinite(line["loss"]) for line in written)
    assert not any(torch.equal(each, before[name]) for name, each in run.model.named_parameters())


def test_learning_rates_are_logged_for_the_parts_that_train_in_a_step(tmp_path):
    """The line may be written after the unfreezing of the next step, and still describes its own step."""
    run = toy(tmp_path, {"vision": 3, "text": 3, "fusion": 3}, Weightless())
    run.fit()
    names = [{name for name in line if name.startswith("lr/")} for line in lines(tmp_path)]
    assert names == [{"lr/lr=0.1,decay=0"}] * 3 + [{"lr/lr=0.1,decay=0", "lr/lr=0.1,decay=0.01"}] * 3


class Weightless(Encoders):
    """A model whose head only has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.fit.weight.requires_grad_(False)


STEPS = {"vision": 3, "text": 2}
FREEZE = "optim.freeze={vision: 3, text: 2}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_overrides):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    pretraining(folder, tiny_overrides, FREEZE).fit()
    return folder


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_resuming_before_at_and_after_an_unfreezing_repeats_the_uninterrupted_run(
    uninterrupted, tiny_overrides, tmp_path, step
):
    folder = as_of_step(step, uninterrupted, tmp_path / "resumed")
    run = pretraining(folder, tiny_overrides, FREEZE)
    assert run.step == step
    assert run.trained.frozen == tuple(part for part, until in STEPS.items() if step <= until)
    run.fit()
    assert same(result(folder), result(uninterrupted))


def test_the_uninterrupted_run_depends_on_the_step_of_the_unfreezing(uninterrupted, tiny_overrides, tmp_path):
    """Otherwise the comparison above would be meaningless."""
    pretraining(tmp_path / "other", tiny_overrides, "optim.freeze={vision: 4, text: 2}").fit()
    first, second = lines(uninterrupted), lines(tmp_path / "other")
    assert [one == other for one, other in zip(first, second, strict=True)] == [True] * 3 + [False] * 3


def test_a_checkpoint_has_all_weights_and_states_of_the_parts_that_train(uninterrupted):
    sizes = []
    for step, checkpoint in checkpoints(uninterrupted).items():
        state = checkpoint.training_state()["optimizer"]
        names = {name for group in state["param_groups"] for name in group["names"]}
        assert {part_of(name) for name in names} & {"vision", "text"} == {
            p for p, until in STEPS.items() if step > until
        }
        tensors = checkpoint.states_folder / "tensors.safetensors"
        assert {name.rpartition("/")[0] for name in load_file(tensors)} == names
        sizes.append(tensors.stat().st_size)
        assert checkpoint.model_file.stat().st_size == checkpoints(uninterrupted)[6].model_file.stat().st_size
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01) and sizes[1] < sizes[2] < sizes[3]


@pytest.mark.parametrize(("before", "now"), [("3", "true"), ("1", "true"), ("true", "1")])
def test_another_freeze_is_another_config(tiny_overrides, tmp_path, before, now):
    """In Python, 1 == True."""
    first, second = (
        load_config("configs/demo/pretrain.yaml", [*tiny_overrides, f"optim.freeze.vision={value}"], PretrainConfig)
        for value in (before, now)
    )
    RunFolder.open(tmp_path, first, resume=False)
    (tmp_path / "metrics.jsonl").touch()
    RunFolder.open(tmp_path, first, resume=True)
    reported = (
        f"different config: optim.freeze.vision was {before.title()} and is now {now.title()}; use another --output"
    )
    with pytest.raises(UserError, match=reported):
        RunFolder.open(tmp_path, second, resume=True)


def test_freezing_and_unfreezing_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        toy(tmp_path, {"vision": 2, "text": True}).fit()
    message = [record.getMessage() for record in caplog.records if record.name == "engine.trained"]
    assert message == [
        OneLine("vision (12 parameters", "first 2 steps", "text (12 parameters", "16 of 40"),
        "step 3: vision trains from now on",
        OneLine("text (12 parameters", "28 of 40"),
    ]


def test_random_weights_that_never_train_cause_a_warning(tmp_path, tiny_overrides, caplog):
    pretraining(tmp_path / "first", tiny_overrides, "optim.freeze={text: 3, fusion: 3}").fit()
    assert not warnings(caplog)
    pretraining(tmp_path / "random", tiny_overrides, "optim.freeze={vision: true, text: 3}")
    (line,) = warnings(caplog)
    assert line == OneLine("optim.freeze", "random", "keys of init") and re.search(r"\d+ tensors.* vision\.\w", line)
    caplog.clear()
    pretraining(
        tmp_path / "loaded", tiny_overrides, "optim.freeze.vision=true", f"init.checkpoint={tmp_path / 'first'}"
    )
    assert not warnings(caplog)


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "freeze" in r.getMessage()]


def test_a_run_in_which_nothing_would_train_is_rejected(tmp_path):
    freeze = {"vision": True, "text": 2, "fusion": True}
    with pytest.raises(UserError, match=naming("optim.freeze", "fewer parts")):
        toy(tmp_path, freeze, Encoders(headless=True))


def test_a_part_that_can_never_train_is_rejected(tmp_path):
    with pytest.raises(UserError, match=naming("optim.freeze.text", "remove")):
        toy(tmp_path, {"text": True}, Line())


def test_an_unfreezing_after_the_end_is_rejected_before_anything_is_loaded(tmp_path, tiny_overrides):
    with pytest.raises(UserError, match=naming("optim.freeze.vision", "6 steps")):
        toy(tmp_path, {"vision": 6})
    overrides = [*tiny_overrides, "optim.freeze.vision=8"]
    with pytest.raises(UserError, match=naming("optim.freeze.vision", "8 steps")):
        load_config("configs/demo/pretrain.yaml", overrides, PretrainConfig).plan(1)


def test_the_ddp_wrapper_is_replaced_at_an_unfreezing(tmp_path, monkeypatch):
    """The hooks of the old wrapper would exchange gradients in addition to the hooks of the new one."""

    class Wrapper(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.itself = model, self  # a reference cycle, which reference counting does not free

        def forward(self, batch):
            return self.model(batch)

    monkeypatch.setattr(DataParallel, "update_trainable", lambda self: setattr(self, "wrapped", Wrapper(self.model)))
    run = toy(tmp_path, {"vision": 1})
    old = weakref.ref(run.parallel.wrapped)
    gc.disable()
    try:
        run.train_step([points(0)])
        assert old() is run.parallel.wrapped
        run.train_step([points(1)])
        assert old() is None and isinstance(run.parallel.wrapped, Wrapper)
    finally:
        gc.enable()


def test_unfreezing_works_with_gradient_checkpointing(uninterrupted, tiny_overrides, tmp_path):
    pretraining(tmp_path / "run", tiny_overrides, FREEZE, "train.recompute=[vision,text,fusion]").fit()
    for one, other in zip(lines(tmp_path / "run"), lines(uninterrupted), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_unfreezing_works_with_compiled_encoders(tiny_overrides, tmp_path, monkeypatch):
    """Uses a fast compiler backend, and compares with the same batches without compilation. Dropout is disabled, because encoders
    that are not compiled may process short and long texts in separate calls, which draw other random numbers."""
    overrides = [*tiny_overrides, "model.text.dropout=0", "model.vision.drop_path=0", FREEZE, "train.compile=true"]
    counter, compiled, module_compile = CompileCounterWithBackend("eager"), torch.compile, torch.nn.Module.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled(function, backend=counter))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: module_compile(self, backend=counter))
    torch._dynamo.reset()
    try:
        run = pretraining(tmp_path / "run", overrides)
        counts = []
        run.after_phase = lambda phase: counts.append(counter.frame_count) if phase == "optimiser" else None
        run.fit()
    finally:
        torch._dynamo.reset()
    assert counts[1] < counts[2] < counts[3], "encoders must be compiled again at both unfreezings"
    monkeypatch.setattr(trainer, "compile_encoders", lambda *_, **__: None)
    pretraining(tmp_path / "plain", overrides).fit()
    for one, other in zip(lines(tmp_path / "run"), lines(tmp_path / "plain"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_frozen_blocks_with_a_cache_equal_frozen_blocks_without_and_resume(tmp_path, tiny_overrides):
    """The cached states are computed in batches with other images, so they are equal up to rounding."""
    freeze, deeper = "optim.freeze={vision: 2, vision_blocks: 1}", "model.vision.depth=2"
    plain = pretraining(tmp_path / "plain", tiny_overrides, deeper, freeze)
    before = weights(plain.model)
    plain.fit()
    cache = f"optim.freeze.cache={{folder: {tmp_path / 'features'}}}"
    uninterrupted = tmp_path / "whole"
    run = pretraining(uninterrupted, tiny_overrides, deeper, freeze, cache)
    run.fit()
    after = weights(run.model)
    for name, value in weights(plain.model).items():
        torch.testing.assert_close(after[name], value, atol=1e-4, rtol=1e-3)
        first = name.startswith(("vision.backbone.patch_embed", "vision.backbone.blocks.0."))
        if first or name.startswith("vision.backbone.blocks.1."):
            assert torch.equal(value, before[name]) == first, name
    assert any((tmp_path / "features").rglob("*"))
    for step in (1, 2, 4):
        again = as_of_step(step, uninterrupted, tmp_path / f"resumed-{step}")
        pretraining(again, tiny_overrides, deeper, freeze, cache).fit()
        assert same(result(again), result(uninterrupted)), f"resumed after {step} steps"
