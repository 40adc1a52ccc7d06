"""The plans of `run.py plan`, without a GPU."""

import json
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from commands.plan import plan as command
from engine.config import ShardingConfig
from run import main
from tasks import TASKS
from tasks.binding import bind_run
from tests.devices import CUDA
from tests.messages import OneLine, naming
from tests.models.test_flops import FINE_TUNING
from tests.tools.fake_gpu import CONTEXT, ROW, FakeGPU
from tools.plan import synthetic
from tools.plan.planner import Planner
from tools.plan.synthetic import SYNTHETIC, batch_sizes, scaled, synthetic_batch
from tools.plan.table import Plan, as_table
from tools.steps import real as real_steps
from tools.steps.real import RealSteps
from utils.commands import parse_arguments
from utils.config import load_config
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent
BASE = "configs/pretrain/base_4m.yaml"
SMALL = [
    "model.vision.width=64",
    "model.vision.depth=1",
    "model.vision.heads=2",
    "model.vision.image_size=64",
    "model.vision.patch_size=16",
    "model.text.arch={family: bert, vocab_size: 300, width: 64, layers: 1, heads: 2, intermediate: 128, max_positions: 64}",
    "model.fusion={layers: 1, width: 64, heads: 2, intermediate: 128}",
]
"""A few layers, because an estimate makes a step of each of them, at any width."""

ALONE = "data.regions=null"
"""Images without regions, which need half of the FLOPs."""

FEW = [ALONE, "data.images.batch_size=8"]
"""Micro-batches of pre-training for a search with real steps."""

MEMORY = ["--memory", "0.9"]


def planner_of(words: list[str]) -> Planner:
    """The planner for a command line."""
    _, given = parse_arguments(command, words, "run.py plan")
    flags = given.arguments["flags"]
    return Planner(bind_run(flags.config, given.arguments.get("overrides", ()), flags.task), flags)


def on_gpu(*flags: str) -> Plan:
    """A plan of pre-training on a simulated GPU."""
    return planner_of(["--config", BASE, *flags, *SMALL, *FEW]).plan()


def by_hand(planner: Planner, examples: int, ranks: int) -> dict[str, int]:
    """Every example takes 10 MB."""
    return {"activations": 10**7 * examples}


def sized_by_hand(*flags: str) -> Planner:
    """A planner for which every example takes 10 MB."""
    planner = planner_of([*flags, *SMALL])
    planner._memory = partial(by_hand, planner)
    return planner


def test_the_streams_of_a_micro_batch_keep_their_proportions():
    bound = bind_run(BASE, [])
    sizes = batch_sizes(scaled(bound.config, 64))
    assert sizes == {"data.images.batch_size": 64, "data.regions.batch_size": 64, "data.regions.max_images": 25}


@pytest.mark.slow
def test_a_plan_of_pre_training_fits_and_reaches_the_published_batch():
    flags = [BASE, "--gpus", "2", "--memory", "1.9", "--utilisation", "0.5", "train.peak_tflops=100"]
    plan = planner_of(["--config", *flags, *SMALL]).plan()
    assert plan.global_batch == plan.requested_batch == 1024
    size, largest = (each.sizes["data.images.batch_size"] for each in (plan.chosen, plan.largest))
    assert size * plan.chosen.accumulation * 2 == 1024
    assert size <= largest < 1024
    assert 0.9 * 1.9e9 < sum(plan.largest.memory.values()) <= 1.9e9
    assert plan.largest.memory["outside torch's allocator"] == 1_700_000_000
    assert plan.chosen.step_s == pytest.approx(plan.chosen.tflop_per_gpu / 50)
    assert plan.steps == 500_000
    text = as_table(plan)
    for part in ("1 GB for NCCL's buffers", "2 GPUs of 1.9 GB, bf16; estimated", "1,024 examples per step"):
        assert part in text
    assert "50% of 100 TFLOP/s (train.peak_tflops, --utilisation)" in text


@pytest.mark.parametrize("fixed", ["train.global_batch=1024", "train.global_batch=null"])
def test_a_run_with_the_keys_of_a_plan_makes_its_global_batch(fixed):
    """If the config has no global batch, the plan gives the accumulation instead."""
    plan = sized_by_hand("--config", BASE, "--gpus", "2", "--memory", "1.9", "--global-batch", "1024", fixed).plan()
    overrides = [f"{key}={value}" for key, value in plan.overrides.items()]
    assert as_table(plan).endswith(f"run with: {' '.join(overrides)}")
    config = load_config(BASE, [fixed, *overrides], bind_run(BASE, []).source.load().config)
    assert config.plan(2).accumulation == plan.chosen.accumulation > 1
    assert config.data.micro_batch.size * 2 * plan.chosen.accumulation == 1024


@pytest.mark.parametrize(("flags", "total"), [([], 128 * 3), (["train.accumulate=2"], 128 * 3 * 2)])
def test_without_a_global_batch_it_follows_from_the_sizes_in_the_config(flags, total):
    flags = ["--config", BASE, "--gpus", "3", *MEMORY, "train.global_batch=null", *flags, *SMALL]
    assert planner_of(flags).global_batch == total


@pytest.mark.night
@pytest.mark.parametrize("task", FINE_TUNING)
def test_every_fine_tuning_task_can_be_planned(task):
    decoder = ["model.decoder.layers=1"] if task == "vqa" else []
    config = f"configs/{FINE_TUNING[task]}.yaml"
    planner = planner_of(["--config", config, *MEMORY, "--gpu", "a100", *SMALL, *decoder])
    two, four = (planner._setting(examples, 3, 1) for examples in (2, 4))
    assert two.sizes == {"data.batch_size": 2}
    assert two.memory["weights"] == four.memory["weights"]
    assert two.memory["activations"] < four.memory["activations"]
    assert 0 < two.step_s < four.step_s


def test_every_task_has_a_synthetic_batch_and_a_task_without_one_is_rejected(monkeypatch):
    assert TASKS.keys() == SYNTHETIC.keys()
    monkeypatch.setattr(synthetic, "SYNTHETIC", {})
    with pytest.raises(UserError, match=naming("task = pretrain", "train.steps=5")):
        planner_of(["--config", BASE, *MEMORY, *SMALL])


@pytest.mark.parametrize(("asked", "taken"), [(1018, 1020), (1024, 1024)])
def test_more_examples_per_step_than_requested_are_noted(asked, taken):
    """255 examples fit on each of two GPUs, and 509 is a prime number."""
    plan = sized_by_hand("--config", BASE, "--gpus", "2", "--memory", "2.55", "--global-batch", f"{asked}").plan()
    assert (plan.global_batch, plan.requested_batch, plan.overrides["train.global_batch"]) == (taken, asked, taken)
    notes = [line for line in as_table(plan).splitlines() if line.startswith("note: ")]
    message = (
        "1,020 examples per step instead of 1,018, which cannot be divided into equal micro-batches of about this size"
    )
    assert notes == ([f"note: {message}"] if taken != asked else [])


def test_without_a_name_a_gpu_is_assumed_and_epochs_need_the_records():
    given = ["--config", "configs/nlvr/nlvr2_base_4m.yaml", *MEMORY]
    plan = sized_by_hand(*given).plan()
    assert plan.chosen.step_s == pytest.approx(plan.chosen.tflop_per_gpu / (0.35 * 989.4))
    assert "35% of h100's 989.4 TFLOP/s (--gpu, --utilisation)" in as_table(plan)
    assert plan.steps is None
    assert "in epochs: pass --records" in as_table(plan)
    assert sized_by_hand(*given, "--records", "800", "train.epochs=3").plan().steps == 30


@pytest.mark.night
def test_checkpointed_and_compiled_encoders_are_planned_and_omissions_are_listed():
    deep = ["--config", BASE, *MEMORY, *SMALL, ALONE, "model.vision.depth=3"]
    plain = planner_of(deep)
    less = planner_of([*deep, "train.recompute=[vision,text,fusion]", "train.compile=true"])
    assert less._memory(64, 1)["activations"] < 0.7 * plain._memory(64, 1)["activations"]
    added = sorted(set(less._assumptions()) - set(plain._assumptions()))
    assert added == [OneLine("excluding", "vision, text, fusion"), OneLine("memory", "train.compile")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", BASE, "--memory", "0.05", "data.images.batch_size=1"], ("--memory 0.05",)),
        (["--config", BASE], ("--memory GB", "no GPU")),
        (["--config", BASE, "--memory", "1", "--gpu", "v100"], ("v100", "bf16", "train.precision=fp16")),
        (["--config", "configs/none.yaml", "--memory", "1"], ("configs/none.yaml",)),
        (["--config", BASE, "--memory", "1", "task=null"], ("task is None", "pretrain, retrieval, nlvr")),
        (
            ["--config", BASE, "--memory", "80", "--gpus", "3", "data.images.order=blocks", "data.images.lanes=8"],
            ("data.images.lanes = 8", "3 ranks", "1, 2, 4 or 8"),
        ),
        (["--config", BASE, "--memory", "80", "--task", "vqa"], ("task pretrain", "vqa", "--task pretrain")),
        (
            ["--config", "configs/captioning/coco_base_4m.yaml", "--memory", "1", "train.objective=self_critical"],
            ("train.objective = self_critical",),
        ),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_impossible_plan_is_rejected_in_one_line(flags, message):
    smaller = FEW if BASE in flags else []
    with pytest.raises(UserError) as error:
        planner_of([*smaller, *flags, *SMALL]).plan()
    assert str(error.value) == OneLine(*message)
    assert "\n" not in str(error.value)


def test_more_than_the_peak_is_rejected(capsys):
    assert main(["plan", "--config", BASE, "--utilisation", "3"]) == 2
    assert OneLine("'3'", "1") in capsys.readouterr().err.splitlines()


def test_run_plans_and_prints_json(monkeypatch, capsys):
    monkeypatch.setattr(Planner, "_memory", by_hand)
    flags = ["--config", BASE, *MEMORY, "--estimate", "--json", *SMALL, *FEW]
    monkeypatch.setattr(sys, "argv", ["run.py", "plan", *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    assert ended.value.code == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["measured_on"] is None
    assert plan["overrides"]["train.global_batch"] == 1024


def test_mistakes_are_reported_in_one_line_with_status_2(capsys):
    assert main(["plan", "--config", BASE, "--memory", "1", "optim.lrr=1"]) == 2
    assert capsys.readouterr().err == OneLine("error", "optim.lrr")


def test_the_time_of_a_step_is_measured_by_running_it():
    bound = bind_run(BASE, [*SMALL, "train.precision=fp32"])
    kind = bound.source.load().task
    config = scaled(bound.config, 4)
    run = RealSteps(kind.build_model(config, None), config.train, config.optim, torch.device("cpu"))
    assert 0 < run.seconds(lambda model: synthetic_batch(config, model)) < 60
    assert run.trainer.step == 8


@pytest.fixture
def gpu(monkeypatch) -> FakeGPU:
    fake = FakeGPU()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fake.install(monkeypatch, lambda batch: len(batch.images.pixels))
    monkeypatch.setattr(real_steps, "WARM_UP", 1)
    monkeypatch.setattr(real_steps, "TIMED", 1)
    return fake


@pytest.mark.parametrize(
    ("device", "flags", "peak", "fragments"),
    [
        ("NVIDIA A100-SXM4-80GB", [], 312, "this a100's 312 TFLOP/s (--gpu, --utilisation)"),
        ("NVIDIA A100-SXM4-80GB", ["--gpu", "l4"], 121, "l4's 121 TFLOP/s (--gpu, --utilisation)"),
        ("NVIDIA A100-SXM4-80GB", ["train.peak_tflops=9"], 9, "9 TFLOP/s (train.peak_tflops, --utilisation)"),
        ("another GPU", [], 989.4, "h100's 989.4 TFLOP/s (--gpu, --utilisation)"),
        ("another GPU", ["--gpu", "l4"], 121, "l4's 121 TFLOP/s (--gpu, --utilisation)"),
        ("Tesla V100-SXM2-16GB", ["train.peak_tflops=7"], 7, "7 TFLOP/s (train.peak_tflops, --utilisation)"),
        ("Tesla V100-SXM2-16GB", ["train.precision=fp16"], 125, "this v100's 125 TFLOP/s (--gpu, --utilisation)"),
    ],
)
def test_an_estimate_is_for_the_available_gpu_unless_another_is_named(gpu, monkeypatch, device, flags, peak, fragments):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: device)
    planner = planner_of(["--config", BASE, "--estimate", "--memory", "2", *flags, *SMALL])
    assert not planner.target.measures
    assert f"35% of {fragments}" in planner.target.assumptions()
    assert planner._seconds(1, 1e12) == pytest.approx(1 / (0.35 * peak))


def test_an_estimate_in_a_precision_that_the_available_gpu_lacks_is_rejected(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "Tesla V100-SXM2-16GB")
    with pytest.raises(UserError, match=naming("v100", "bf16", "train.precision=fp16", "--gpu")):
        on_gpu("--estimate", "--memory", "2")


SMALL_BUFFERS = 4_000
"""Bytes of NCCL's buffers, on a GPU of 80,000 bytes."""


@pytest.mark.night
def test_the_plan_is_measured_on_an_available_gpu(gpu):
    """A step takes 10 bytes per example, and CUDA takes 500 of the 620 available bytes, so 12 examples fit."""
    plan = on_gpu("--memory", "620e-9", "--global-batch", "4", "train.precision=fp32")
    assert plan.measured_on == "a pretended GPU"
    assert plan.largest.sizes["data.images.batch_size"] == 12
    assert sum(plan.largest.memory.values()) == 620
    assert sum(plan.chosen.memory.values()) == 4 * ROW + CONTEXT
    assert plan.chosen.memory["outside torch's allocator"] == CONTEXT
    assert plan.chosen.step_s > 0
    assert not any("TFLOP/s" in each or "CUDA" in each for each in plan.assumptions)


@pytest.mark.slow
def test_on_several_gpus_memory_is_left_for_communication_buffers(gpu, monkeypatch):
    monkeypatch.setattr("tools.plan.target.NCCL", SMALL_BUFFERS)
    plan = on_gpu(
        "--gpus", "2", "--memory", "4540e-9", "--global-batch", "4", "train.precision=fp32", "train.parallel=ddp"
    )
    assert gpu.cap == pytest.approx(4540 - CONTEXT - SMALL_BUFFERS)
    assert plan.largest.sizes["data.images.batch_size"] == 4
    assert plan.largest.memory["outside torch's allocator"] == CONTEXT + SMALL_BUFFERS
    assert "GB for NCCL's buffers" in as_table(plan)


def test_more_memory_than_this_gpu_has_is_only_estimated(gpu):
    with pytest.raises(UserError, match=naming("--memory 1", "0.0 GB", "--estimate")):
        on_gpu("--memory", "1")


def test_a_model_whose_weights_do_not_fit_is_rejected_in_one_line(gpu, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("tools.steps.real.trainer_of", full)
    with pytest.raises(UserError, match=naming("weights fit")):
        on_gpu("--memory", "620e-9")


def test_plans_with_recorded_graphs_have_no_accumulation():
    flags = ["--config", BASE, "--memory", "2", "--global-batch", "1000000", "train.compile=reduce-overhead"]
    planner = sized_by_hand(*flags)
    refused = "allows only one micro-batch per step, but only 200 of the 1,000,000 examples per GPU fit"
    with pytest.raises(UserError, match=f"train.compile = reduce-overhead {refused}"):
        planner.plan()


@pytest.mark.parametrize("device", [CUDA], indirect=True)
def test_on_a_gpu_the_plan_is_measured(device):
    plan = on_gpu("--memory", "4")
    assert plan.measured_on
    assert sum(plan.largest.memory.values()) <= 4e9
    assert plan.chosen.step_s > 0


@pytest.mark.night
def test_a_vision_encoder_of_seven_billion_parameters_fits_eight_gpus_only_if_sharded(tmp_path):
    bases = [str(ROOT / "configs" / name) for name in ("pretrain/base_4m.yaml", "presets/other_vision.yaml")]
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"base": bases, "model": {"vision": {"backbone": "vit_7b_patch16_dinov3"}}}))
    given = ["--config", str(config), "--task", "pretrain", "--gpus", "8", "--estimate", "--memory", "80"]
    with pytest.raises(UserError, match=naming("--memory 80", "one example", "train.parallel=fsdp")):
        planner_of([*given, "train.parallel=ddp"]).plan()
    planner = planner_of(given)
    assert planner._mesh(8) == ShardingConfig(shard=8, replicate=1)
    assert planner._cost(8, 8) < 80e9


@pytest.mark.night
def test_states_that_do_not_fit_on_a_gpu_are_sharded():
    """A word table of 100,000 words is most of the model."""
    words = "model.text.arch.vocab_size=100000"
    given = ["--config", BASE, "--gpus", "8", "--estimate", *SMALL, words, *FEW]
    with pytest.raises(UserError, match=naming("--memory 1.8", "train.parallel=fsdp")):
        planner_of([*given, "--memory", "1.8", "train.parallel=ddp"]).plan()
    large = planner_of([*given, "--memory", "4", "train.parallel=ddp"]).plan().chosen.memory
    planner = planner_of([*given, "--memory", "4"])
    planner.needed = 3e9  # bytes
    plan = planner.plan()
    shared = plan.chosen.memory
    for held in ("weights", "optimiser"):
        assert shared[held] == pytest.approx(large[held] / 8, rel=1e-3)
    # The peak is in the forward pass, during which a rank has gathered nearly all weights.
    assert large["gradients"] / 8 <= shared["gradients"] < large["gradients"] / 7
    assert shared["gathered temporarily"] == pytest.approx(large["weights"], rel=0.02)
    assert "gathered temporarily" not in large
    assert OneLine("fsdp, since", "3.0 of 4.0 GB", "8 GPUs") in plan.assumptions


def test_without_a_gpu_the_missing_memory_is_reported_before_the_models_are_imported():
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: False; from run import main\n"
        "assert main(['plan', '--config', 'configs/demo/pretrain.yaml']) == 2\n"
        "assert not {'timm', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == OneLine("error: --memory", "no GPU", "--memory GB")
