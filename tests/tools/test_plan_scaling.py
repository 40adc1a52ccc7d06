"""The section of `run.py plan --nodes` that compares other numbers of GPUs."""

from __future__ import annotations

import json

import pytest

from run import main
from tests.messages import OneLine
from tests.tools.test_plan import ALONE, BASE, SMALL, planner_of, sized_by_hand
from tools.plan.planner import Planner
from tools.plan.rows import aligned
from tools.plan.table import Plan, as_table
from tools.steps.fake import trainable
from utils.printing import bytes_of
from utils.tensors import tensor_bytes

FOUR_NODES = ["--config", BASE, "--memory", "1.9", "--nodes", "4", "--gpus", "8"]
"""Micro-batches of up to 190 examples of 10 MB each (see ``sized_by_hand``)."""


def rows_of(plan: Plan) -> dict[str, list[str]]:
    """The cells of the rows about GPUs, by their number."""
    lines = as_table(plan).splitlines()
    title = next(index for index, line in enumerate(lines) if line.startswith("GPUs "))
    table = lines[title + 1 : lines.index("", title)]
    return {line.split()[0]: line.split() for line in table}


def test_the_global_batch_is_divided_among_any_number_of_gpus():
    plan = sized_by_hand(*FOUR_NODES, "--global-batch", "8192").plan()
    found = {scale.ranks: (scale.nodes, scale.micro_batch, scale.accumulation) for scale in plan.scaling}
    assert found == {8: (1, 128, 8), 32: (4, 128, 2), 64: (8, 128, 1), 512: (64, 16, 1)}
    assert {scale.global_batch for scale in plan.scaling} == {8192}
    assert [scale.negatives for scale in plan.scaling] == [8 * 128 - 1, 32 * 128 - 1, 8191, 8191]
    assert [scale.memory for scale in plan.scaling] == [10**7 * size for size in (128, 128, 128, 16)]
    assert (plan.chosen.accumulation, plan.gpus) == (2, 32)
    assert plan.scaling[1].memory == sum(plan.chosen.memory.values())
    assert plan.scaling[1].step_s == plan.chosen.step_s
    assert as_table(plan).startswith(f"{BASE}: 4 nodes with 8 GPUs of 1.9 GB, bf16")


def test_each_rank_sends_the_bytes_of_the_formula_at_the_given_bandwidth():
    planner = sized_by_hand(*FOUR_NODES, "--network", "10", ALONE)
    plan = planner.plan()
    gradients = tensor_bytes(trainable(planner.meta_model))
    last = plan.scaling[-1]
    assert last.sent["gradients"] == pytest.approx(2 * 511 / 512 * gradients)
    assert last.sent["embeddings"] == pytest.approx(511 / 512 * 1024 * 2 * 256 * 4)
    assert last.sent["gradients of embeddings"] == last.sent["embeddings"]
    assert last.sent["keys"] == pytest.approx(511 * 2 * 16)
    assert last.network_s == pytest.approx(sum(last.sent.values()) / 1e10)
    assert last.network_share == pytest.approx(last.network_s / (last.network_s + last.step_s))
    assert (plan.scaling[0].nodes, plan.scaling[0].network_s) == (1, None), (
        "8 GPUs must not send anything to other nodes"
    )
    text = as_table(plan)
    assert "within a node" in text
    assert OneLine("32 GPUs", "gradients") in text.splitlines()
    assert OneLine("10 GB/s", "--network") in text.splitlines()


def test_gradient_caching_multiplies_negatives_and_sends_the_same():
    plain = sized_by_hand(*FOUR_NODES, "--global-batch", "8192").plan()
    cached = sized_by_hand(*FOUR_NODES, "--global-batch", "8192", "model.contrastive.chunks=2").plan()
    assert cached.refused.keys() == {64, 512}, "their accumulation must be 1"
    for before, after in zip(plain.scaling, cached.scaling, strict=False):
        assert after.negatives + 1 == 2 * (before.negatives + 1)
        assert after.sent == before.sent
    assert OneLine("model.contrastive.chunks: 2") in cached.assumptions


def test_without_a_bandwidth_there_is_no_time_on_the_network():
    plan = sized_by_hand(*FOUR_NODES).plan()
    assert {(scale.network_s, scale.network_share) for scale in plan.scaling} == {(None, None)}
    assert "on the network" not in as_table(plan).split("assumed")[0]
    assert OneLine("--network", "GB/S") in as_table(plan).splitlines()


def test_a_task_without_a_contrastive_loss_has_no_negatives():
    flags = ["--config", "configs/nlvr/nlvr2_base_4m.yaml", "--memory", "1.9", "--nodes", "1", "--gpus", "8"]
    plan = sized_by_hand(*flags).plan()
    assert [(scale.ranks, scale.negatives) for scale in plan.scaling] == [(8, 0), (64, 0), (512, 0)]
    assert all(scale.sent.keys() == {"gradients", "counts and losses"} for scale in plan.scaling)
    assert rows_of(plan)["8"][5] == "none"


def test_impossible_gpu_counts_are_listed_with_the_reason():
    blocks = ["data.images.order=blocks", "data.images.lanes=64", ALONE]
    plan = sized_by_hand(*FOUR_NODES, *blocks).plan()
    assert [scale.ranks for scale in plan.scaling] == [8, 32, 64]
    assert OneLine("512 ranks", "lanes") in plan.refused[512].splitlines()
    assert f"\n512 GPUs: {plan.refused[512]}\n" in as_table(plan)


def test_several_gpus_need_more_memory_for_the_same_micro_batch():
    """The embeddings of all ranks take 8 kB for each of 8 examples of each rank."""
    flags = ["--config", BASE, "--memory", "1", *SMALL, ALONE, "model.vision.image_size=16", "model.embed_dim=1024"]
    planner = planner_of(flags)
    eight, sixteen = (planner._memory(8, ranks)["activations"] for ranks in (8, 16))
    assert sixteen - eight >= 8 * 8 * 8 * 1024


def test_without_nodes_other_gpu_counts_are_not_shown():
    plan = sized_by_hand("--config", BASE, "--memory", "1.9", "--gpus", "8").plan()
    assert (plan.scaling, plan.refused, plan.nodes) == ([], {}, None)
    assert "on the network" not in as_table(plan)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes", "4"], ("--nodes 4", "--gpus")),
        (["--network", "4", "--gpus", "8"], ("--network 4", "--nodes N")),
        (["--network", "0"], ("--network", "0")),
        (["--nodes", "2:4", "--gpus", "8"], ("--nodes", "2:4")),
    ],
)
def test_incompatible_flags_are_rejected_in_one_line(flags, message, capsys):
    assert main(["plan", *flags]) == 2
    assert capsys.readouterr().err == OneLine("error:", *message)


def test_the_json_output_has_the_scaling(monkeypatch, capsys):
    monkeypatch.setattr(Planner, "_memory", lambda self, examples, ranks: {"activations": 10**7 * examples})
    assert main(["plan", *FOUR_NODES, "--network", "10", "--json", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [scale["ranks"] for scale in found["scaling"]] == [8, 32, 64, 512]
    assert 0 < found["scaling"][1]["network_share"] < 1
    assert found["nodes"] == 4


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (31_700, "31.7 kB"),
        (999_600, "1,000 kB"),
        (4.06e6, "4.06 MB"),
        (1.97e9, "1.97 GB"),
        (2.5e12, "2,500 GB"),
    ],
)
def test_bytes_are_shown_in_a_suitable_unit(size, text):
    assert bytes_of(size) == text


def test_columns_are_aligned():
    assert aligned([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc   d"]
