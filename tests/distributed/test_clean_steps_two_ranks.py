"""Pre-training with videos and clean sets on two gloo ranks: both ranks skip the matching loss in the same steps."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from engine.run_folder import RunFolder
from engine.trainer import Trainer
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.conftest import tiny_run
from tests.dataset.media.test_video import encoded
from tests.ranks import on_two_ranks
from utils.config import load_config

ROOT = Path(__file__).parent.parent.parent


class Run:
    """A picklable job that trains on every rank and returns the weights and the log."""

    def __init__(self, folder: Path, overrides: list[str]):
        self.folder, self.overrides = folder, overrides

    def __call__(self) -> dict:
        config = load_config(ROOT / "configs/demo/pretrain.yaml", self.overrides, PretrainConfig)
        folder = RunFolder.open(self.folder, config, False)
        task = PretrainTask.build(config)
        Trainer(
            task,
            task.plan,
            train=config.train,
            optim=config.optim,
            schedule=config.schedule,
            seed=0,
            folder=folder,
            device=torch.device("cpu"),
        ).fit()
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        weights = torch.cat([p.detach().flatten() for p in task.model.parameters()])
        return {"weights": weights, "matching": [line["videos/matching"] for line in lines]}


def test_steps_without_matching_keep_two_ranks_together(tmp_path, scenes_folder):
    rows = [{"video": [encoded(n), encoded(n + 1)], "caption": f"a small red star {n}"} for n in range(8)]
    videos, good = tmp_path / "videos.jsonl", tmp_path / "good.jsonl"
    for path in (videos, good):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        *tiny_run(scenes_folder),
        "model.vision.video.frames=2",
        f"data.videos={{files: [{videos}], batch_size: 3, clean: {{files: [{good}], probability: 0.5}}}}",
        "data.matching_steps=6",
    ]
    (tmp_path / "out").mkdir()
    first, second = on_two_ranks(Run(tmp_path / "run", overrides), tmp_path / "out")
    assert torch.equal(first["weights"], second["weights"])
    assert first["matching"] == second["matching"]
    on = [loss > 0 for loss in first["matching"]]
    assert any(on[:6]) and not all(on[:6])
    assert not any(on[6:])
