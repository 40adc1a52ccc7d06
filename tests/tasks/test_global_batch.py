"""`train.global_batch` in runs of tasks: impossible values are rejected before anything is loaded, and the log describes the
contrastive loss."""

import json
import logging
import math
import shutil

import pytest

from tasks.config import PretrainConfig
from tasks.nlvr import NLVRTask
from tasks.pretrain import PretrainTask
from tasks.run import run_script
from tests.messages import naming
from tests.tasks.painted import ROOT, task_of
from utils import distributed
from utils.config import load_config
from utils.errors import UserError

LOGGED = (
    "contrastive loss: {} of train.global_batch = {}, so it has fewer negatives; "
    "set model.contrastive.chunks to combine several micro-batches"
)


@pytest.mark.parametrize(
    ("task", "batch", "ranks", "fragments"),
    [
        ("retrieval", 12, 1, "4 examples (micro-batch 4 x 1 ranks)"),
        ("retrieval", 2400, 300, "1,200 examples (micro-batch 4 x 300 ranks)"),
        ("retrieval", 4, 1, ""),
        ("retrieval", 8, 2, ""),
        ("retrieval", None, 1, ""),
        ("retrieval, chunks 2", 32, 2, "16 examples (2 chunks x micro-batch 4 x 2 ranks)"),
        ("retrieval, chunks 3", 24, 2, ""),
        ("nlvr", 12, 1, ""),  # has no contrastive loss
    ],
)
def test_fewer_negatives_than_the_global_batch_are_reported(
    overrides, caplog, monkeypatch, task, batch, ranks, fragments
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    task, _, chunks = task.partition(", chunks ")
    given = [*overrides(task), *([f"model.contrastive.chunks={chunks}"] if chunks else [])]
    given += [f"train.global_batch={'null' if batch is None else batch}"]
    task_of(task, lambda _: given)
    lines = [message for message in caplog.messages if message.startswith("contrastive loss")]
    assert lines == ([LOGGED.format(fragments, f"{batch:,}")] if fragments else [])


def test_pre_training_reports_it_too_and_derives_its_accumulation(tiny_overrides, caplog):
    caplog.set_level(logging.INFO)
    given = [*tiny_overrides, "train.global_batch=8", "data.matching_steps=3"]
    task = PretrainTask.build(load_config(ROOT / "configs/demo/pretrain.yaml", given, PretrainConfig))
    assert LOGGED.format("4 examples (micro-batch 4 x 1 ranks)", 8) in caplog.messages
    assert task.train_loader().maker.numbers_per_step == 2


def test_chunks_that_do_not_divide_are_rejected_before_anything_is_loaded(overrides, tmp_path):
    command = ["--config", str(ROOT / "configs/demo/retrieval.yaml"), "--output", str(tmp_path / "run")]
    given = ["train.accumulate=6", "model.contrastive.chunks=4"]
    with pytest.raises(UserError, match=naming("model.contrastive.chunks = 4", "6 micro-batches")):
        run_script([*command, *overrides("retrieval"), *given], "retrieval")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_in_chunks_resumes_exactly_and_has_more_negatives(tiny_overrides, tmp_path):
    def losses(name: str, *given: str, resume: bool = False) -> list[float]:
        command = ["--config", str(ROOT / "configs/demo/pretrain.yaml"), "--output", str(tmp_path / name)]
        run_script([*command, *(["--resume"] if resume else []), *tiny_overrides, *every, *given], "pretrain")
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [line["images/contrastive"] for line in lines]

    every = ["train.accumulate=4", "train.log_every=1", "train.deterministic=true", "train.checkpoint_every=2"]
    chunked = "model.contrastive.chunks=4"
    straight, apart = losses("straight", chunked, "train.steps=4"), losses("apart", "train.steps=4")
    assert straight[0] > apart[0] + 0.5 * math.log(4), "about the logarithm of the number of examples"
    losses("resumed", chunked, "train.steps=4")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step-00000004")
    assert losses("resumed", chunked, "train.steps=4", resume=True) == straight


def test_an_impossible_global_batch_is_rejected_before_anything_is_loaded(overrides, tmp_path, monkeypatch):
    """An evaluation makes no training steps, so it accepts any global batch."""
    built = []
    monkeypatch.setattr(NLVRTask, "build", lambda *_, **options: built.append(options) or 1 / 0)
    command = ["--config", str(ROOT / "configs/demo/nlvr.yaml"), "--output", str(tmp_path / "run"), *overrides("nlvr")]
    with pytest.raises(UserError, match=r"^train.global_batch = 6: .*data.batch_size to 3 or 6"):
        run_script([*command, "train.global_batch=6"], "nlvr")
    assert not built and not (tmp_path / "run").exists()
    weights = tmp_path / "x"
    weights.touch()
    with pytest.raises(ZeroDivisionError):
        run_script([*command, "--evaluate", f"init.checkpoint={weights}", "train.global_batch=6"], "nlvr")
    assert built == [{"trains": False, "plan": None}]
