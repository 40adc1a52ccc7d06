"""What `run.py plan` tells, without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import measured
from engine.measured import Measured
from tasks.kinds import kind_of
from tasks.plan import Planner, main, parse, published_gpus, scaled
from tasks.plan_table import as_table
from tests.devices import CUDA
from tests.engine.fake_gpu import CONTEXT, ROW, FakeGPU
from tests.models.test_flops import FINE_TUNING, MODEL
from utils.config import load_config
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent
BASE = "configs/pretrain/base_4m.yaml"
SMALL = [each.replace("image_size=32", "image_size=64") for each in MODEL]


def planned(config: str, *flags: str):
    return Planner(parse(["--config", config, *flags, *SMALL])).plan()


@pytest.mark.parametrize(
    ("name", "gpus"),
    [("pretrain/base_4m", 8), ("pretrain/base_1b", 32), ("pretrain/large_1b", 64), ("presets/base", None)],
)
def test_a_config_says_in_its_command_for_how_many_gpus_it_is(name, gpus):
    assert published_gpus(ROOT / f"configs/{name}.yaml") == gpus


def test_the_streams_of_a_micro_batch_keep_their_proportion():
    schema, kind = kind_of(Path(BASE), [])
    sizes = kind.batch_sizes(scaled(load_config(BASE, [], schema), kind, 64))
    assert sizes == {"data.images.batch_size": 64, "data.regions.batch_size": 64, "data.regions.max_images": 25}


def test_a_plan_of_pre_training_fits_and_reaches_the_published_batch():
    plan = planned(BASE, "--gpus", "2", "--memory", "2", "--peak-tflops", "100", "--utilisation", "0.5")
    assert plan.global_batch == 1024
    chosen = plan.chosen.overrides
    assert chosen["data.images.batch_size"] * chosen["train.accumulate"] * 2 == 1024
    assert chosen["data.images.batch_size"] <= plan.largest.overrides["data.images.batch_size"]
    assert 0.9 * 2e9 < sum(plan.largest.memory.values()) <= 2e9
    assert plan.largest.memory["outside torch's allocator"] == 1_700_000_000
    assert plan.chosen.step_s == pytest.approx(plan.chosen.tflop_per_gpu / 50)
    assert plan.steps == 500_000
    text = as_table(plan)
    for part in (
        "1 GB for NCCL's buffers",
        "2 GPUs of 2 GB, bf16; estimated",
        "1,024 rows a step",
        "50% of 100 TFLOP/s",
        "train.accumulate=",
    ):
        assert part in text


@pytest.mark.parametrize("task", FINE_TUNING)
def test_every_fine_tuning_task_can_be_planned(task):
    decoder = ["model.decoder.layers=2"] if task == "vqa" else []
    plan = planned(f"configs/{FINE_TUNING[task]}.yaml", "--memory", "1", "--gpu", "a100", "--records", "1000", *decoder)
    assert plan.largest.overrides["data.batch_size"] > 1
    assert plan.chosen.step_s > 0
    assert plan.steps >= 1


@pytest.mark.parametrize(("asked", "taken"), [("1018", 1020), ("1024", 1024)])
def test_more_rows_a_step_than_asked_are_told_of(asked, taken):
    """On two GPUs at most some 240 rows fit; 509 is a prime."""
    plan = planned(BASE, "--gpus", "2", "--memory", "2.45", "--global-batch", asked)
    assert (plan.global_batch, plan.asked_batch) == (taken, int(asked))
    notes = [line for line in as_table(plan).splitlines() if line.startswith("note: ")]
    said = "note: 1,020 rows a step for 1,018, which equal micro-batches of about this size do not make exactly"
    assert notes == ([said] if taken != int(asked) else [])


def test_without_a_name_a_gpu_is_assumed_and_without_records_there_is_no_end():
    plan = planned("configs/nlvr/nlvr2_base_4m.yaml", "--memory", "1")
    assert plan.steps is None
    assert (
        plan.chosen.step_s == planned("configs/nlvr/nlvr2_base_4m.yaml", "--memory", "1", "--gpu", "h100").chosen.step_s
    )
    assert "35% of h100's 989.4 TFLOP/s (--gpu, --utilisation)" in as_table(plan)


def test_recomputed_and_compiled_encoders_are_planned_and_what_is_left_out_of_them_is_said():
    given = [BASE, "--memory", "2"]
    plain = planned(*given)
    plan = planned(*given, "train.recompute=[vision,text,fusion]", "train.compile=true")
    assert plan.largest.overrides["data.images.batch_size"] > 1.5 * plain.largest.overrides["data.images.batch_size"]
    said = [
        "no time for what train.recompute computes anew (vision, text, fusion)",
        "without what train.compile changes",
    ]
    assert all(each in as_table(plan) and each not in as_table(plain) for each in said)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", BASE, "--memory", "0.05"], "--memory 0.05: a micro-batch of one row needs 0."),
        (["--config", BASE], "--memory: there is no GPU here to ask"),
        (["--config", BASE, "--memory", "1", "--gpu", "v100"], "bf16, which a v100 has not; use train.precision=fp16"),
        (["--config", "configs/none.yaml", "--memory", "1"], "configs/none.yaml: no such config file"),
        (["--config", BASE, "--memory", "1", "task=null"], "task is None, none of pretrain, retrieval, nlvr"),
        (["--config", "configs/pretrain/none.yaml", "--memory", "1"], "no such config file"),
        (
            ["--config", "configs/captioning/coco_base_4m.yaml", "--memory", "1", "train.objective=self_critical"],
            "train.objective is self_critical",
        ),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to ask")
def test_what_cannot_be_planned_is_one_line(flags, message):
    with pytest.raises(UserError) as error:
        Planner(parse([*flags, *SMALL])).plan()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_more_than_the_peak_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["--config", BASE, "--utilisation", "3"])
    assert "'3' is more than 1, all there is" in capsys.readouterr().err


def test_run_plans_and_prints_json():
    command = [sys.executable, "run.py", "plan", "--config", BASE, "--memory", "1", "--estimate", "--json", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    plan = json.loads(done.stdout)
    assert plan["measured_on"] is None
    assert plan["chosen"]["overrides"]["train.accumulate"] >= 1


def test_a_mistake_ends_with_a_line_and_status_2(capsys):
    assert main(["--config", BASE, "--memory", "1", "optim.lrr=1"]) == 2
    assert capsys.readouterr().err.startswith("error: command line: optim.lrr is not a field of OptimConfig")


def test_a_task_that_contradicts_the_config_is_refused():
    with pytest.raises(UserError, match=r"base_4m.yaml: this is a config of task pretrain; leave out --task vqa$"):
        planned(BASE, "--memory", "80", "--task", "vqa")


def test_the_time_of_a_step_is_measured_by_taking_it():
    schema, kind = kind_of(Path(BASE), [])
    config = scaled(load_config(BASE, [*SMALL, "train.precision=fp32"], schema), kind, 4)
    run = Measured(lambda: kind.build_model(config, None), config.train, config.optim, torch.device("cpu"))
    assert 0 < run.seconds(lambda model: kind.synthetic_batch(config, model)) < 60
    assert run.trainer.step == 8


@pytest.fixture
def gpu(monkeypatch) -> FakeGPU:
    fake = FakeGPU()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fake.install(monkeypatch, lambda batch: len(batch.images.pixels))
    monkeypatch.setattr(measured, "WARM_UP", 1)
    monkeypatch.setattr(measured, "TIMED", 1)
    return fake


@pytest.mark.parametrize(
    ("device", "flags", "peak", "said"),
    [
        ("NVIDIA A100-SXM4-80GB", [], 312, "this a100's 312 TFLOP/s (--gpu, --utilisation)"),
        ("NVIDIA A100-SXM4-80GB", ["--gpu", "l4"], 121, "l4's 121 TFLOP/s (--gpu, --utilisation)"),
        ("NVIDIA A100-SXM4-80GB", ["--peak-tflops", "7"], 7, "7 TFLOP/s (--utilisation)"),
        ("NVIDIA A100-SXM4-80GB", ["train.peak_tflops=9"], 9, "9 TFLOP/s (--utilisation)"),
        ("another GPU", [], 989.4, "h100's 989.4 TFLOP/s (the GPU here is not known; --gpu, --utilisation)"),
        ("another GPU", ["--gpu", "l4"], 121, "l4's 121 TFLOP/s (--gpu, --utilisation)"),
        ("Tesla V100-SXM2-16GB", ["--peak-tflops", "7"], 7, "7 TFLOP/s (--utilisation)"),
        ("Tesla V100-SXM2-16GB", ["train.precision=fp16"], 125, "this v100's 125 TFLOP/s (--gpu, --utilisation)"),
    ],
)
def test_an_estimate_is_of_the_gpu_at_hand_unless_another_is_named(gpu, monkeypatch, device, flags, peak, said):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: device)
    plan = planned(BASE, "--estimate", "--memory", "2", *flags)
    assert plan.measured_on is None
    assert f"assumed: 35% of {said}" in as_table(plan).splitlines()
    assert plan.chosen.step_s == pytest.approx(plan.chosen.tflop_per_gpu / (0.35 * peak))


def test_an_estimate_in_a_precision_that_the_gpu_at_hand_has_not_is_refused(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "Tesla V100-SXM2-16GB")
    with pytest.raises(
        UserError, match=r"bf16, which a v100 has not; use train.precision=fp16, or name another --gpu$"
    ):
        planned(BASE, "--estimate", "--memory", "2")


SMALL_BUFFERS = 4_000
"""Of NCCL, on a GPU of 80,000 bytes."""


def test_where_there_is_a_gpu_the_plan_is_measured_on_it(gpu):
    """A step takes 10 bytes a row, CUDA 500 of the 620 that are given: 12 rows fit."""
    plan = planned(BASE, "--memory", "620e-9", "--global-batch", "4", "train.precision=fp32")
    assert plan.measured_on == "a pretended GPU"
    assert plan.largest.overrides["data.images.batch_size"] == 12
    assert sum(plan.largest.memory.values()) == 620
    assert sum(plan.chosen.memory.values()) == 4 * ROW + CONTEXT
    assert plan.chosen.memory["outside torch's allocator"] == CONTEXT
    assert plan.chosen.step_s > 0


def test_several_gpus_leave_memory_for_the_buffers_through_which_they_talk(gpu, monkeypatch):
    monkeypatch.setattr("tasks.plan.NCCL", SMALL_BUFFERS)
    plan = planned(BASE, "--gpus", "2", "--memory", "4540e-9", "--global-batch", "4", "train.precision=fp32")
    assert gpu.cap == pytest.approx(4540 - CONTEXT - SMALL_BUFFERS)
    assert plan.largest.overrides["data.images.batch_size"] == 4
    assert plan.largest.memory["outside torch's allocator"] == CONTEXT + SMALL_BUFFERS
    assert "GB for NCCL's buffers" in as_table(plan)


def test_a_model_whose_weights_do_not_fit_is_told_of_in_a_line(gpu, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("engine.measured.trainer_of", full)
    with pytest.raises(UserError, match="not even the weights fit"):
        planned(BASE, "--memory", "620e-9")


def test_recorded_graphs_are_not_planned_with_accumulation():
    flags = ["--config", BASE, "--memory", "2", "--global-batch", "1000000", "train.compile=reduce-overhead", *SMALL]
    planner = Planner(parse(flags))
    planner._memory = lambda rows: {"activations": 10**7 * rows}
    with pytest.raises(UserError, match="reduce-overhead takes one micro-batch a step, and 200 rows fit of 1,000,000"):
        planner.plan()


@pytest.mark.parametrize("device", [CUDA], indirect=True)
def test_on_a_gpu_the_plan_is_measured(device):
    plan = planned(BASE, "--memory", "4")
    assert plan.measured_on
    assert sum(plan.largest.memory.values()) <= 4e9
    assert plan.chosen.step_s > 0
