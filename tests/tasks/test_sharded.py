"""Fine-tuning with FSDP2: validations and the evaluation use the whole model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks import run
from tests.ranks import on_each_of_two

pytestmark = pytest.mark.slow


def as_rank(rank: int, arguments: list[str]) -> None:
    assert run.main(arguments) == 0


@pytest.mark.parametrize("task", ["retrieval", "vqa", "captioning"])
def test_a_sharded_run_has_the_metrics_of_ddp(task, overrides, tmp_path):
    """Generation and re-ranking call the blocks a different number of times on each rank."""
    found: dict[str, Any] = {}
    for parallel in ("ddp", "fsdp"):
        folder = tmp_path / parallel
        given = ["--config", f"configs/demo/{task}.yaml", "--output", str(folder), *overrides(task)]
        sizes = ["train.steps=4", "model.text.dropout=0", "model.vision.drop_path=0", "optim.ema={decay: 0.5}"]
        on_each_of_two(as_rank, [task, *given, *sizes, f"train.parallel={parallel}"])
        lines = (folder / "validation.jsonl").read_text().splitlines()
        results = json.loads((folder / "evaluation.json").read_text())["test"]
        found[parallel] = (
            [json.loads(line) for line in lines],
            {name: metric["value"] for name, metric in results.items()},
            sorted(path.name for path in folder.iterdir() if "collectives" not in path.name),
        )
    for sharded, whole in zip(found["fsdp"][0], found["ddp"][0], strict=True):
        assert sharded == pytest.approx(whole, abs=1e-4)
    assert found["fsdp"][1] == pytest.approx(found["ddp"][1], abs=1e-4)
    assert found["fsdp"][2] == found["ddp"][2]
