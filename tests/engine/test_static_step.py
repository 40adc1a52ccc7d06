"""Requirements of a GPU, also tested without a GPU: no device syncs, no graph breaks, no changing shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from batches.losses import Work
from batches.pretraining import PretrainBatch
from benchmarks.synthetic import pretrain_batch
from engine.steps import trainer_of
from models.core import packing
from optim.setup import compile_encoders
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.devices import BOUNDS, CUDA, ON_ACCELERATORS, ON_REAL_DEVICES, moved
from tests.pretend.tensor import NAME, recorded_waits
from utils.config import load_config


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Raises an error inside the context if the host waits for the device."""
    if device.type == NAME:
        with recorded_waits() as waits:
            yield
        assert not waits
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.fixture
def task(tiny_overrides) -> PretrainTask:
    return PretrainTask.build(
        load_config("configs/demo/pretrain.yaml", [*tiny_overrides, "train.compile=true"], PretrainConfig)
    )


def batches(task: PretrainTask, count: int) -> list[PretrainBatch]:
    maker = PretrainTask.training_data(task.config, task.tokenizer, task.model, task.plan)
    return [maker.make(number) for number in range(count)]


def shapes(part: Any) -> dict[str, object]:
    """The shapes of all tensors of a batch or of a part of a batch."""
    found: dict[str, object] = {}
    for name, value in vars(part).items():
        if isinstance(value, torch.Tensor):
            found[name] = tuple(value.shape)
        elif is_dataclass(value):
            found |= {f"{name}.{inner}": shape for inner, shape in shapes(value).items()}
    return found


def backward(task: PretrainTask, batch: PretrainBatch) -> None:
    task.model.zero_grad()
    torch.stack([term.weight * term.total for term in task.model(batch).values()]).sum().backward()


@ON_ACCELERATORS
def test_forward_and_backward_never_wait_for_the_device(task, device):
    (batch,) = batches(task, 1)
    task.model.to(device)
    batch = moved(batch, device)
    if device.type == "cuda":
        backward(task, batch)  # loads kernels and builds tables
    with no_waiting(device):
        backward(task, batch)
        task.model.counts(batch)


ALL = [
    "data.videos={files: [x], batch_size: 3}",
    "data.texts={files: [x], batch_size: 5}",
    "data.translations={files: [x], batch_size: 3}",
    "model.vision.video.frames=2",
]


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["train.precision=bf16", "train.recompute=[vision,text,fusion]"],
        ["train.clip_grad_norm=null", "train.accumulate=2"],
        ["model.vision.drop_path=0.2", "model.text.drop_path=0.2", "model.fusion.drop_path=0.2"],
    ],
    ids=["fp32", "bf16 and recompute", "accumulated", "drop path"],
)
@pytest.mark.parametrize("static", [False, True])
@ON_ACCELERATORS
def test_a_step_of_the_trainer_never_waits_for_the_device(given, static, tiny_overrides, device):
    """Covers all streams, steps with all matching losses and without any, clipping, the optimiser, and what is logged about the
    step."""
    config = load_config("configs/demo/pretrain.yaml", [*tiny_overrides, *ALL, *given], PretrainConfig)
    model = PretrainTask.build_model(config, 200)
    model.work = lambda batch: Work()  # counted from batches on the host, even on a GPU
    trainer = trainer_of(model, config.train, config.optim, device)
    made = [pretrain_batch(config.data, model.vision, 200, seed=seed, static=static).pin_memory() for seed in (0, 1)]
    for batches_of_step in (made, [replace(batch, unmatched=("images", "videos")) for batch in made]):
        step = batches_of_step[: config.train.accumulate]
        trainer.train_step(step)  # the optimiser creates its states, and tables are built
        with no_waiting(device):
            reported = trainer.train_step(step)
        assert not reported.read().not_finite


def test_texts_without_token_counts_do_not_wait_for_the_device(task, pretend):
    """On the CPU, the tokens are counted."""
    (batch,) = batches(task, 1)
    uncounted = replace(batch, images=replace(batch.images, text=replace(batch.images.text, token_count=None)))
    task.model.to(pretend)
    uncounted = moved(uncounted, pretend)
    with no_waiting(pretend):
        task.model(uncounted)


def test_static_batches_have_one_shape_except_for_a_few_token_counts(task):
    made = batches(task, 6)
    assert all(shapes(batch) == shapes(made[0]) for batch in made)
    for stream in ("images", "regions"):
        texts = [getattr(batch, stream).text for batch in made]
        max_tokens = texts[0].ids.numel()
        assert all(text.mask.sum() <= text.token_count <= text.mask.sum() + -(-max_tokens // 16) for text in texts)
        assert all((text.labels != -100).sum() <= text.masked_count for text in texts)
        assert len({text.token_count for text in texts}) <= 16


def test_static_batches_have_the_losses_of_other_batches(task, tiny_overrides):
    other = PretrainTask.build(load_config("configs/demo/pretrain.yaml", tiny_overrides, PretrainConfig))
    task.model.eval()
    found = []
    for maker in (task, other):
        torch.manual_seed(0)
        found.append({name: term.total.item() for name, term in task.model(batches(maker, 1)[0]).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-5)


@pytest.mark.slow
@ON_REAL_DEVICES
def test_encoders_compile_without_graph_breaks_and_stop_recompiling(task, monkeypatch, device):
    """Backbone and text encoder are compiled once, and the fusion encoder once for each stream. It is compiled again for steps
    without matching losses, and if two sizes were equal by chance."""
    monkeypatch.setattr(packing, "on_host", lambda tensor: False)  # as on a GPU
    made = batches(task, 6)
    assert len({tuple(counts(batch)) for batch in made}) > 1
    made = [moved(batch, device) for batch in made]
    task.model.to(device).eval()
    torch.manual_seed(0)
    expected = {name: term.total.item() for name, term in task.model(made[0]).items()}
    torch._dynamo.reset()
    try:
        counter = CompileCounter()
        compile_encoders(task.model, fullgraph=True, backend=counter)
        torch.manual_seed(0)
        assert {name: term.total.item() for name, term in task.model(made[0]).items()} == pytest.approx(expected)
        assert counter.frame_count == 4, "vision, text, fusion of images, fusion of regions"
        mixed = [each for batch in made for each in (batch, replace(batch, unmatched=("images", "regions")))]
        for batch in mixed:
            backward(task, batch)
        assert counter.frame_count <= 4 + 2 + 2
        with torch._dynamo.config.patch(error_on_recompile=True):
            for batch in mixed:
                backward(task, batch)
    finally:
        torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("device", [CUDA], indirect=True)
def test_encoders_compiled_by_inductor_keep_losses_and_gradients(task, device):
    task.model.to(device).eval()
    made, found = [moved(batch, device) for batch in batches(task, 2)], []
    trained = list(task.model.named_parameters())
    torch._dynamo.reset()
    try:
        for compiled in (False, True):
            if compiled:
                compile_encoders(task.model)
            for number, batch in enumerate(made):
                torch.manual_seed(number)
                backward(task, batch)
                torch.manual_seed(number)
                losses = {name: term.total.detach() for name, term in task.model(batch).items()}
                found.append(losses | {name: each.grad for name, each in trained if each.grad is not None})
        for expected, actual in zip(found[:2], found[2:], strict=True):
            assert actual.keys() == expected.keys()
            for name, value in expected.items():
                scale = value.abs().max().clamp(min=1)
                torch.testing.assert_close(actual[name] / scale, value / scale, rtol=0, atol=BOUNDS["cuda"], msg=name)
    finally:
        torch._dynamo.reset()


def test_the_recompile_limit_is_high_enough_for_all_forms_of_a_step(task):
    compile_encoders(task.model, backend="eager")
    assert torch._dynamo.config.recompile_limit >= 64


def counts(batch: PretrainBatch) -> list[int]:
    return [
        number for part in (batch.images, batch.regions) for number in (part.text.token_count, part.text.masked_count)
    ]
