"""The real trainer on two gloo ranks is compared with one process: accumulation, counts over ranks, and a NaN on one rank
only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from batches import BatchSize
from tests.engine.toy import Points, ToyTask, points, trainer
from tests.ranks import on_two_ranks
from utils import distributed
from utils.errors import UserError


class NumberedLoader:
    """Micro-batches by index, assigned to ranks like in the real loader."""

    examples_per_batch = records_per_batch = 4
    epoch_size = 1000
    micro_batch = BatchSize("data.batch_size", 4)

    def __init__(self, poison: int | None = None):
        self.poison = poison
        self.stream_sizes = {"points": 1000}

    def check_ranks(self, ranks: int) -> None:
        """Accepts any number of ranks."""

    def batches(self, consumed: int, count: int) -> Iterator[Points]:
        step = distributed.world_size()
        for number in range(consumed + distributed.rank(), consumed + count * step, step):
            batch = points(number)
            if number == self.poison:
                batch = Points(batch.x, torch.full_like(batch.y, torch.nan), batch.valid, batch.records)
            yield batch


class Run:
    """A picklable job that trains on every rank and returns the weights and the log."""

    def __init__(self, folder: Path, steps: int = 3, poison: int | None = None, skips: int = 0, **options: int):
        self.folder, self.steps, self.poison, self.skips, self.options = folder, steps, poison, skips, options

    def __call__(self) -> dict:
        task = ToyTask()
        task.loader = NumberedLoader(self.poison)
        options = {**self.options, "max_skipped_steps": self.skips, "peak_tflops": 0.5}
        run = trainer(self.folder, task, steps=self.steps, **options)
        message = ""
        try:
            run.fit()
        except UserError as error:
            message = str(error)
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["points/square"] for line in lines]
        weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
        return {"weights": weights, "losses": losses, "message": message, "skipped": run.tally.skipped, "lines": lines}


def rows_of_steps(lines: list[dict]) -> list[float]:
    """Valid rows over all ranks for every step after the first, computed from the logged rate and time."""
    times = [line["elapsed_s"] for line in lines]
    return [
        line["samples_per_s"] * (end - start) for line, start, end in zip(lines[1:], times, times[1:], strict=False)
    ]


@pytest.mark.parametrize(
    ("alone", "both"), [({"accumulate": 4}, {"accumulate": 2}), ({"global_batch": 16}, {"global_batch": 16})]
)
def test_two_ranks_that_accumulate_follow_one_process_that_accumulates_more(tmp_path, alone, both):
    """2 ranks x 2 micro-batches and 1 rank x 4 micro-batches have the same rows in each step, with uneven numbers of valid
    rows."""
    (tmp_path / "out").mkdir()
    alone = Run(tmp_path / "alone", **alone)()
    for found in on_two_ranks(Run(tmp_path / "both", **both), tmp_path / "out"):
        assert rows_of_steps(found["lines"]) == pytest.approx(rows_of_steps(alone["lines"]))
        for line in found["lines"][1:]:
            assert line["utilisation"] == pytest.approx(line["tflops_per_s"] / 2 / 0.5), "per device, and there are two"
        torch.testing.assert_close(found["weights"], alone["weights"], atol=1e-6, rtol=1e-5)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)


def test_a_step_with_a_nan_on_one_rank_is_skipped_on_both(tmp_path):
    (tmp_path / "out").mkdir()
    first, second = on_two_ranks(Run(tmp_path / "run", steps=3, poison=3, skips=1), tmp_path / "out")
    assert first["skipped"] == second["skipped"] == 1
    assert first["weights"].isfinite().all()
    assert torch.equal(first["weights"], second["weights"])


def test_the_records_of_the_rank_with_the_nan_are_named(tmp_path):
    (tmp_path / "out").mkdir()
    for found in on_two_ranks(Run(tmp_path / "run", poison=3), tmp_path / "out"):
        assert "step 2" in found["message"]
        assert "points:3:0" in found["message"]
        assert "rank-1.pt" in found["message"]
