"""Operations that stay in float32 when training and evaluating in bf16, according to torch's own lists for CUDA's autocast."""

from __future__ import annotations

import pytest
import torch

from benchmarks.synthetic import pretrain_batch
from engine.steps import trainer_of
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.engine.test_static_step import ALL
from tests.pretend.autocast import lists_of_torch
from tests.pretend.tensor import Computed, recorded_operations
from tests.pretend.test_runs import run
from tests.tasks.conftest import data, overrides, settings_of_a_process  # noqa: F401 (fixtures)
from tests.tasks.painted import KINDS
from utils.config import load_config

KERNELS = {
    "softmax": ("_softmax", "_safe_softmax"),
    "log_softmax": ("_log_softmax",),
    "layer_norm": ("native_layer_norm",),
    "nll_loss": ("nll_loss_forward",),
    "norm": ("linalg_vector_norm",),
}
"""Operations that torch uses to compute some functions of the lists."""
NOT_LISTED = ("mean", "log_sigmoid_forward", "sigmoid", "logcumsumexp", "var", "std")
"""Reductions and parts of losses that autocast leaves in the precision of their operand, so that our code must handle it."""

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
EXACT = {
    ("models/core/contrastive.py", "ContrastiveHead.similarity"): "near cosines are divided by a small temperature",
    ("models/core/losses.py", "_compare"): "the same",
    ("models/core/losses.py", "_pairwise_sigmoid"): "the same",
    ("models/core/vision.py", "VisionEncoder.regions"): "means of patches",
    ("tasks/two_stage.py", "TwoStageRetrieval._nearest"): "near cosines would tie",
}
"""Where products are in float32, and the reason."""
ATTENTION = ("Attention.attend", "TimmBackbone.states")
"""Torch has no kernel for this case and computes attention with float32 products."""


def in_float32(device: torch.device) -> set[str]:
    """Kernels whose operands are in float32 because of CUDA's autocast or our code."""
    lists = lists_of_torch(device)
    named = {name for name, *_ in (*lists.torch_fp32, *lists.nn_fp32)}
    return {kernel for name in named for kernel in KERNELS.get(name, (name,))} | set(NOT_LISTED)


def check(operations: list[Computed], device: torch.device) -> set[tuple[str, str]]:
    """Checks the precision of all operations, and returns the locations of float32 products."""
    exact, requested, seen = set(), in_float32(device), set()
    for name, dtypes, location in operations:
        kernel = name.removeprefix("aten::").split(".")[0]
        if kernel in requested and dtypes:
            assert set(dtypes) == {torch.float32}, (name, dtypes, location)
            seen.add(kernel)
        if kernel in PRODUCTS and location.function not in ATTENTION:
            if location in EXACT:
                exact.add(tuple(location))
            expected = torch.float32 if location in EXACT else torch.bfloat16
            assert set(dtypes) == {expected}, (name, dtypes, location)
    assert seen >= {"native_layer_norm", "sum"}
    return exact


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_step_of_all_streams_has_products_in_bf16_and_the_rest_in_float32(loss, tiny_overrides, pretend):
    given = [*tiny_overrides, *ALL, "train.precision=bf16", f"model.contrastive.loss={loss}"]
    config = load_config("configs/demo/pretrain.yaml", given, PretrainConfig)
    model = PretrainTask.build_model(config, 200)
    trainer = trainer_of(model, config.train, config.optim, pretend)
    batch = pretrain_batch(config.data, model.vision, 200, seed=0, static=False)
    with recorded_operations() as operations:
        trainer.train_step([batch])
    locations = {
        ("models/core/contrastive.py", "ContrastiveHead.similarity"),
        ("models/core/vision.py", "VisionEncoder.regions"),
    }
    locations.add(("models/core/losses.py", "_compare" if loss == "softmax" else "_pairwise_sigmoid"))
    assert check(operations, pretend) == locations


@pytest.mark.slow
@pytest.mark.parametrize("task", KINDS)
def test_a_task_has_products_in_bf16_and_the_rest_in_float32(task, overrides, pretend, tmp_path):  # noqa: F811
    options = [*overrides(task), "train.precision=bf16", "evaluation.precision=bf16", "train.steps=2"]
    with recorded_operations() as operations:
        run(task, tmp_path / "run", options)
    exact = check(operations, pretend)
    assert (("tasks/two_stage.py", "TwoStageRetrieval._nearest") in exact) == (task == "retrieval")
