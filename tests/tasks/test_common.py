"""Code shared by tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tasks.config import PretrainConfig
from tasks.inference import evaluating
from tasks.pretrain import PretrainTask
from tests.messages import naming
from tests.tasks.painted import KINDS, ROOT, measured, task_of
from utils.config import load_config
from utils.errors import UserError


class Backend:
    """A compiler backend that compiles nothing. It counts the graphs that it gets and how often they run."""

    compiled = 0
    runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*arguments: Any) -> Any:
            self.runs += 1
            return graph.forward(*arguments)

        return run


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class Model(nn.Module):
    """A module and a method that can be compiled separately."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Double(), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))

    def last(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(x)


@pytest.fixture
def compiled():
    """A model after a training step, compiled in the two ways that our models are."""
    torch._dynamo.reset()
    backend = Backend()
    model = Model()
    model.first.compile(backend=backend)
    model.last = torch.compile(model.last, backend=backend)
    model(torch.ones(2, 3)).sum().backward()
    yield model, backend
    torch._dynamo.reset()


def test_evaluation_compiles_nothing_and_training_reuses_its_compiled_code(compiled):
    model, backend = compiled
    before = backend.compiled, backend.runs
    assert before == (2, 2)
    for precision in ("fp32", "bf16"):
        with evaluating(model, precision):
            for rows in range(1, 6):
                assert not model(torch.ones(rows, 3)).requires_grad
    assert (backend.compiled, backend.runs) == before
    model(torch.ones(2, 3)).sum().backward()
    assert (backend.compiled, backend.runs) == (2, 4)


def test_a_failed_evaluation_leaves_a_model_that_trains_compiled(compiled):
    model, backend = compiled
    with pytest.raises(KeyError), evaluating(model, "fp32"):
        raise KeyError
    assert model.training
    model(torch.ones(2, 3)).sum().backward()
    assert (backend.compiled, backend.runs) == (2, 4)


def ruin(model: nn.Module, part: str) -> None:
    """Sets the parameters of a part to NaN."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter.fill_(torch.nan)


@pytest.mark.parametrize("name", KINDS)
def test_evaluating_nan_weights_is_an_error(name, overrides):
    task = task_of(name, overrides)
    ruin(task.model, "fusion.")
    with pytest.raises(UserError, match=naming("NaN")):
        measured(task)


@pytest.mark.parametrize("part", ["contrastive.", "matching_head.", "box_head.", "word_head."])
def test_an_evaluation_of_pre_training_notices_any_head_that_is_nan(part, tiny_overrides):
    task = PretrainTask.build(load_config(ROOT / "configs/demo/pretrain.yaml", tiny_overrides, PretrainConfig))
    assert any(name.startswith(part) for name, _ in task.model.named_parameters())
    ruin(task.model, part)
    with evaluating(task.model, "fp32"), pytest.raises(UserError, match="are NaN or infinite"):
        task.evaluator().evaluate()
