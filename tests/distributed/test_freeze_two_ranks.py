"""``optim.freeze`` on two gloo ranks: compared with one process, and resumed before, at and after the unfreezing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.test_trainer_two_ranks import NumberedLoader
from tests.engine.frozen import as_of_step, lines, part_of, pretraining, result, same, toy
from tests.engine.toy import ToyTask
from tests.ranks import on_two_ranks
from utils import distributed

pytestmark = pytest.mark.night


class Points:
    """A picklable job that trains the toy on every rank, and returns weights, losses, and the number of values that a step
    reduces."""

    def __init__(self, folder: Path, accumulate: int, **freeze: bool | int):
        self.folder, self.accumulate, self.freeze = folder, accumulate, freeze

    def __call__(self) -> dict:
        task = ToyTask()
        task.loader = NumberedLoader()
        run = toy(self.folder, self.freeze, task=task, accumulate=self.accumulate)
        reduced = []
        run.after_phase = lambda phase: (
            reduced.append(reduced_by(run.parallel.wrapped)) if phase == "optimiser" else None
        )
        run.fit()
        weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
        return {"weights": weights, "losses": [line["loss"] for line in lines(self.folder)], "reduced": reduced}


def reduced_by(model: torch.nn.Module) -> int:
    """The number of values that a step exchanges between ranks."""
    if not isinstance(model, DistributedDataParallel):
        return 0
    return model._get_ddp_logging_data()["total_parameter_size_bytes"] // 4


@pytest.mark.parametrize(
    "freeze", [{"vision": True}, {"vision": 3, "text": 1}, {"vision": 2, "text": 2, "fusion": True}]
)
def test_two_ranks_follow_one_process_through_an_unfreezing(tmp_path, freeze):
    """If gradients were reduced twice or not at all, the weights would differ."""
    (tmp_path / "out").mkdir()
    alone = Points(tmp_path / "alone", 4, **freeze)()
    first, second = on_two_ranks(Points(tmp_path / "both", 2, **freeze), tmp_path / "out")
    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], alone["weights"], atol=1e-5, rtol=1e-4)
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for step, numbers in enumerate(first["reduced"]):
        frozen = sum(step < (6 if until is True else until) for until in freeze.values())
        assert numbers == 40 - 12 * frozen, "the gradients of a frozen part must not be exchanged"


class Pretraining:
    """A picklable job that pre-trains the demo on every rank, or resumes, and returns whether the ranks have equal weights."""

    def __init__(self, folder: Path, tiny: list[str], override: str = "optim.freeze={vision: 3, text: 2}"):
        self.folder, self.tiny, self.override = folder, tiny, override

    def __call__(self) -> bool:
        run = pretraining(self.folder, self.tiny, self.override)
        run.fit()
        weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
        return all(torch.equal(weights, other) for other in distributed.gather_objects(weights))


@pytest.mark.night
def test_two_ranks_resume_before_at_and_after_an_unfreezing(tmp_path, tiny_overrides):
    (tmp_path / "out").mkdir()
    whole = tmp_path / "whole"
    assert on_two_ranks(Pretraining(whole, tiny_overrides), tmp_path / "out") == [True, True]
    for step in (1, 2, 3, 4):
        folder = as_of_step(step, whole, tmp_path / f"resumed-{step}")
        assert on_two_ranks(Pretraining(folder, tiny_overrides), tmp_path / "out") == [True, True]
        assert same(result(folder), result(whole)), f"resumed after {step} steps"
    names = [name for group in result(whole)["optimizer"][0]["param_groups"] for name in group["names"]]
    assert {"vision", "text"} < set(map(part_of, names))


@pytest.mark.night
def test_two_ranks_resume_with_adapters(tmp_path, tiny_overrides):
    pytest.importorskip("peft", reason="adapters need the package peft")
    (tmp_path / "out").mkdir()
    whole, lora = tmp_path / "whole", "optim.lora={rank: 2, targets: [text, fusion]}"
    assert on_two_ranks(Pretraining(whole, tiny_overrides, lora), tmp_path / "out") == [True, True]
    folder = as_of_step(3, whole, tmp_path / "resumed")
    assert on_two_ranks(Pretraining(folder, tiny_overrides, lora), tmp_path / "out") == [True, True]
    assert same(result(folder), result(whole))
