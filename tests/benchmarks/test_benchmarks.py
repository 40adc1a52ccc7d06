"""Every benchmark runs to its end. The models are small and there is one round, so the ratios carry no information."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import (
    data,
    export,
    gpu,
    pretrain_step,
    rerank,
    start_time,
    step_config,
    step_memory,
    word_maps,
)
from engine import trainer
from tests.messages import OneLine
from utils.commands import call, parse_arguments

SMALLER = (
    "model.text.arch={family: bert, width: 32, layers: 1, heads: 2, intermediate: 64, max_positions: 64}",
    "model.vision.width=32",
    "model.vision.depth=1",
    "model.vision.heads=2",
    "model.fusion.layers=1",
)
"""A model that can be traced in seconds."""


def test_re_ranking_gives_the_same_scores_as_the_naive_implementation_and_prints_its_ratio(capsys):
    assert call(rerank.main, ["--small", "--rounds", "1"], "rerank") == 0
    assert re.fullmatch(r"ratio: \d+\.\d\d", capsys.readouterr().out.splitlines()[-1])


def test_the_start_time_of_the_help_is_measured_and_its_ratio_printed(capsys):
    assert call(start_time.main, ["--rounds", "1"], "start_time") == 0
    assert re.fullmatch(r"ratio: \d+\.\d\d", capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_an_export_is_timed_against_torch(capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}: pip install -r requirements-dev.txt")
    assert call(export.main, ["--small", "--rounds", "1"], "export") == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("small, 2 threads") and len(rows) == 6
    assert all(re.search(r" [\d.]+ +[\d.]+ +\d+\.\d\d   \d+\.\d\d to \d+\.\d\d$", row) for row in rows)


@pytest.mark.slow
def test_the_data_pipeline_is_timed_by_stage_and_the_ratio_is_printed(capsys):
    assert call(data.main, ["--small", "--rounds", "1"], "data") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    stages = [line[:20].strip() for line in lines]
    assert {"read", "decode", "resize", "RandAugment", "tokenise and mask", "collate"} <= set(stages)
    loaders = [line.partition(": ")[0] for line in lines if "images/s/core, " in line]
    assert loaders == [
        "loader of base_4m, 0 workers",
        "loader of base_4m, 2 workers",
        "loader of base_1b_stage2, videos as lists, 2 workers",
        "loader of base_1b_stage2, videos as files, 2 workers",
    ]
    of_videos = next(line for line in lines if line.startswith("retrieval/msrvtt_base "))
    assert re.search(r"(enough|too slow) \(lists\) +[\d,]+ (enough|too slow) \(files\)$", of_videos)
    assert any(line.startswith("pretrain/base_4m ") for line in lines), "what each config needs"
    assert re.fullmatch(r"ratio: \d+\.\d\d", last)


@pytest.mark.parametrize("benchmark", [data, gpu, pretrain_step, rerank])
def test_zero_rounds_are_rejected_in_one_line(benchmark, capsys):
    assert call(benchmark.main, ["--small", "--rounds", "0"], "a benchmark") == 2
    assert OneLine("--rounds", "'0'") in capsys.readouterr().err.splitlines()


@pytest.mark.night
def test_the_planned_memory_of_a_step_is_within_15_percent_of_its_peak(capsys):
    """A tiny model in fp32 and a medium one in bf16, with optimiser states, each in a separate process."""
    assert call(step_memory.main, ["--small"], "step_memory") == 0
    *cases, last = capsys.readouterr().out.splitlines()
    assert len(cases) == 2
    assert 0.85 < float(last.removeprefix("ratio: ")) < 1.15


def test_a_pre_training_step_is_compared_with_the_bare_backbone(capsys):
    assert call(pretrain_step.main, ["--small", "--rounds", "1"], "pretrain_step") == 0
    *_, memory, fastest, last = capsys.readouterr().out.splitlines()
    assert re.search(r"memory.* \d+\.\d\d GiB$", memory)
    assert re.search(r"fastest.* \d+\.\d\d$", fastest)
    assert re.fullmatch(r"ratio: \d+\.\d\d", last)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--step-images-per-s", "-4"], ("--step-images-per-s", "'-4'")),
        (["--step-images-per-s", "nan"], ("--step-images-per-s", "nan")),
        (["--quality", "500"], ("--quality", "500", "1", "100")),
    ],
)
def test_an_impossible_rate_or_quality_is_rejected(wrong, message, capsys):
    assert call(data.main, ["--small", *wrong], "data") == 2
    assert OneLine(*message) in capsys.readouterr().err.splitlines()


STREAMS = {
    "regions": ["data.images=null"],
    "videos": ["data.images=null", "data.regions=null", "data.videos={files: [x], batch_size: 3}"],
    "texts": ["data.regions=null", "data.texts={files: [x], batch_size: 3}"],
    "translations": ["data.translations={files: [x], batch_size: 3, text: {max_tokens: 40, max_masks: 16}}"],
    "all": [
        "data.videos={files: [x], batch_size: 3}",
        "data.texts={files: [x], batch_size: 5}",
        "data.translations={files: [x], batch_size: 3}",
    ],
}
STEPS = {
    "regions": "6 regions of 2 images",
    "videos": "3 pairs of video and text of 2 frames",
    "texts": "4 pairs of image and text, 3 texts alone",
    "translations": "4 pairs of image and text, 6 regions of 2 images, 3 pairs of texts",
    "all": "4 pairs of image and text, 6 regions of 2 images, 3 pairs of video and text of 2 frames, 5 texts alone, "
    "3 pairs of texts",
}


PEAK = "train.peak_tflops=0.1"


def mixed(streams: str) -> list[str]:
    """Overrides that add these streams to the demo's config."""
    frames = ["model.vision.video.frames=2"] if streams in ("videos", "all") else []
    return [*STREAMS[streams], *frames]


def assert_is_split(line: str, utilisation: str = r"[\d.]+%$") -> None:
    assert re.search(r"\(data [\d.]+, forward [\d.]+, backward [\d.]+, optimiser [\d.]+, communication 0\.0\)", line)
    assert re.search(r"[\d.]+ TFLOP/s, utilisation " + utilisation, line)


@pytest.mark.slow
def test_the_time_of_each_way_is_split_into_phases(capsys):
    """Overrides that follow ``--ways`` on the command line apply to the config."""
    flags = ["--small", "--rounds", "1", "--ways", "plain,eager", PEAK, "data.images.batch_size=2"]
    assert call(gpu.main, flags, "gpu") == 0
    step, plain, eager, which, last = capsys.readouterr().out.splitlines()
    assert step == OneLine("2 pairs", "6 regions", "2 images")
    for way, line in {"plain": plain, "eager": eager}.items():
        assert line.startswith(f"{way}: ")
        assert_is_split(line)
    assert re.fullmatch(r"ratio: \d+\.\d\d", last)
    assert which in (OneLine("fastest: plain", "to plain"), OneLine("fastest: eager", "to plain"))


def test_each_way_is_timed_on_the_pretend_device(pretend, capsys):
    flags = ["--small", "--rounds", "2", "--warm-up", "1", "--ways", "plain,eager", *SMALLER]
    assert call(gpu.main, flags, "gpu") == 0
    _, plain, eager, _, _ = capsys.readouterr().out.splitlines()
    assert_is_split(plain, "unknown")
    assert_is_split(eager, "unknown")


@pytest.mark.parametrize("streams", STREAMS)
def test_all_streams_of_a_config_are_measured(streams, capsys):
    flags = ["--small", "--rounds", "1", "--ways", "plain,eager", PEAK]
    assert call(gpu.main, [*flags, *SMALLER, *mixed(streams)], "gpu") == 0
    step, plain, eager, _, _ = capsys.readouterr().out.splitlines()
    assert step == f"a step: {STEPS[streams]}"
    assert_is_split(plain)
    assert_is_split(eager)


def test_the_timed_steps_follow_the_config(monkeypatch, capsys):
    """Checks which config keys reach which way of computing a step. The trainer's tests check what the keys do."""
    asked, runners = [], []
    monkeypatch.setattr(trainer, "set_gradient_checkpointing", lambda model, parts: asked.append(parts))
    monkeypatch.setattr(trainer, "compile_encoders", lambda model, **options: asked.append(options))
    clock = SimpleNamespace(milliseconds=lambda: [1.0] * 4)
    monkeypatch.setattr(gpu.RealSteps, "clocked", lambda runner, *given: runners.append((runner, given[0])) or clock)
    given = ["train.recompute=[vision]", "train.precision=bf16", "train.clip_grad_norm=null", "optim.lr=0.5"]
    assert call(gpu.main, ["--small", "train.global_batch=8", *given], "gpu") == 0
    assert asked == [["vision"], ["vision"], {"mode": None}], "the released formulas recompute nothing"
    for runner, micro_batches in runners:
        own = runner.trainer
        assert (len(micro_batches), own.precision.name, own.config.clip_grad_norm) == (2, "bf16", None)
        assert own.trained.optimizer.param_groups[0]["peak_lr"] == 0.5
    assert capsys.readouterr().out.splitlines()[0] == OneLine("2 times 4")
    asked.clear()
    assert call(gpu.main, ["--small", "train.compile=reduce-overhead", "--ways", "eager,compiled"], "gpu") == 0
    assert asked == [{"mode": "reduce-overhead"}]


@pytest.mark.parametrize(
    ("way", "flags", "steps"),
    [
        ("eager", [], 8),
        ("compiled", [], 8),
        ("compiled", ["train.compile=max-autotune"], 12),
        ("eager", ["--small"], 1),
        ("compiled", ["--small"], 4),
        ("compiled", ["--small", "--warm-up", "2"], 2),
    ],
)
def test_each_batch_is_used_once_before_timing_starts(way, flags, steps, monkeypatch):
    taken = []
    clock = SimpleNamespace(milliseconds=lambda: taken.append("read") or [1.0] * 4)
    monkeypatch.setattr(gpu.RealSteps, "clocked", lambda *_: taken.append("step") or clock)
    monkeypatch.setattr(trainer, "compile_encoders", lambda *_, **__: None)
    _, given = parse_arguments(gpu.main, [*flags, "--ways", way], "gpu")
    given.apply_defaults()
    overrides, *timing = (given.arguments[name] for name in ("overrides", "rounds", "warm_up", "small"))
    small_config, small = step_config.SMALL
    config = step_config.config_for(small_config, [*small, *overrides])
    gpu.measure(way, config, gpu.Timing(*timing), torch.device("cpu"))
    assert taken == [*["step"] * steps, *["read"] * steps, *["step"] * timing[0], *["read"] * timing[0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--config", "nofile.yaml"], ("nofile.yaml",)),
        (["optim.lrr=1"], ("command line", "optim.lrr", "optim.lr")),
        (
            ["--config", "configs/vqa/vqa2_base_4m.yaml"],
            ("configs/vqa/vqa2_base_4m.yaml", "'vqa'", "configs/pretrain/base_4m.yaml"),
        ),
        (
            ["data.regions=null", "data.images=null"],
            ("command line and configs/pretrain/base_4m.yaml:8", "images, regions, videos, texts, translations"),
        ),
        (
            ["--ways", "plain", "model.text.drop_path=0.1"],
            ("--ways plain", "model.text.drop_path", "--ways eager,compiled"),
        ),
    ],
)
def test_a_config_that_cannot_be_measured_is_rejected_in_one_line(wrong, message, capsys):
    assert call(gpu.main, wrong, "gpu") == 2
    assert capsys.readouterr() == ("", OneLine("error:", *message))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["foo"], ("foo", "key=value")),
        (["--ways", "eager,fast"], ("--ways", "fast", "plain,eager,compiled")),
        (["--ways", "eager,eager"], ("--ways", "eager")),
        (["--rounds", "-4"], ("--rounds", "-4")),
        (["--small", "--config", "configs/demo/pretrain.yaml"], ("--small", "--config")),
    ],
)
def test_a_wrong_flag_of_the_gpu_benchmark_is_rejected(wrong, message, capsys):
    assert call(gpu.main, wrong, "gpu") == 2
    assert OneLine("error:", *message) in capsys.readouterr().err.splitlines()


def test_the_small_check_keeps_the_users_flags(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu, "attempt", lambda *given: asked.append(given))
    words = ["--small", "--warm-up", "3", "--ways", "eager", "data.images.batch_size=2"]
    assert call(gpu.main, words, "gpu") == 2, "out of memory"
    ((_, config, timing, _),) = asked
    assert timing.warm_up == 3 and config.data.images.batch_size == 2


def test_a_way_that_runs_out_of_memory_does_not_stop_the_others(capsys, monkeypatch):
    speeds = {"eager": 2.0, "compiled": 3.0}

    def measure(way, *_):
        if way not in speeds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"way": way, "samples_per_s": speeds[way]}

    monkeypatch.setattr(gpu, "measure", measure)
    assert call(gpu.main, ["--small"], "gpu") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "plain: out of memory",
        OneLine("fastest: compiled", "to eager"),
        "ratio: 1.50",
    ]
    speeds.clear()
    assert call(gpu.main, ["--small"], "gpu") == 2
    assert capsys.readouterr().err == OneLine("data.images.batch_size=2", "memory")
    assert call(gpu.main, ["--small", "data.images=null"], "gpu") == 2
    assert capsys.readouterr().err == OneLine("data.regions.batch_size=3", "memory")


def test_the_plain_way_is_skipped_with_a_reason_if_it_lacks_a_feature(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "measure", lambda way, *_: {"way": way, "samples_per_s": 1.0})
    assert call(gpu.main, ["--small", "model.fusion.drop_path=0.1"], "gpu") == 0
    skipped, *_ = capsys.readouterr().out.splitlines()
    assert skipped == OneLine("model.fusion.drop_path", "plain")


def test_other_text_encoders_skip_the_plain_way_and_their_flops_are_counted(capsys, tmp_path):
    sizes = {"vocab_size": 300, "dim": 64, "hidden_dim": 64, "n_layers": 1, "n_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "distilbert", **sizes}))
    encoder = ["model.text.arch=null", f"model.text.encoder={tmp_path}", "model.fusion.heads=2"]
    flags = ["--small", "--rounds", "1", "--ways", "plain,eager", "model.word_table=own"]
    assert call(gpu.main, [*flags, *SMALLER[1:], *encoder], "gpu") == 0
    skipped, _, eager, _, _ = capsys.readouterr().out.splitlines()
    assert skipped == OneLine("model.text.encoder", "BERT or RoBERTa")
    assert "TFLOP/s" in eager and "FLOPs" not in eager


def test_losses_that_a_run_omits_in_some_steps_are_listed():
    def message(name: str) -> str:
        return step_config.describe_other_steps(step_config.config_for(Path(f"configs/pretrain/{name}.yaml"), []))

    assert message("base_4m") == ""
    assert message("base_1b_stage2") == (OneLine("data.videos.clean"))
    assert "which data.images.clean and data.matching_steps omit in" in message("base_1b")


def test_other_errors_of_a_way_are_raised(monkeypatch):
    monkeypatch.setattr(gpu, "measure", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        call(gpu.main, ["--small"], "gpu")


def test_a_map_points_at_a_box_within_half_a_patch():
    weights = np.zeros((4, 8))
    weights[1, 6] = 1  # the patch in columns 60 to 70 and rows 20 to 40 of an 80 x 80 image; its centre is (65, 30)
    assert word_maps.pointed_at(weights, (60, 20, 10, 20), (80, 80)) == (True, 20 / 80 * 40 / 80)
    assert word_maps.pointed_at(weights, (40, 20, 20, 20), (80, 80))[0]  # the box ends at 60, half a patch is 10
    assert not word_maps.pointed_at(weights, (40, 20, 19, 20), (80, 80))[0]
    assert word_maps.pointed_at(weights, (0, 0, 80, 80), (80, 80))[1] == 1
