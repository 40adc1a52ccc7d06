"""Runs with low-rank adapters: resumed byte for byte, reported, passed on with merged weights, extracted, and merged again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.messages import OneLine, naming

pytest.importorskip("peft", reason="adapters need the package peft")

from engine.checkpoint import list_checkpoints
from models.checkpoints.files import read_weights
from optim.lora import has_adapters, is_adapter
from run import main
from tests.tasks.painted import KINDS
from tests.tasks.test_finetune import start
from utils.errors import UserError
from utils.weight_file import read_metadata, save_weights
from x2vlm import load

LORA = "optim.lora={rank: 2, lr: 0.01}"


@pytest.fixture(scope="module")
def base(tmp_path_factory, overrides):
    """A run whose weights other runs start from."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    start("retrieval", folder, overrides("retrieval"))
    return folder


@pytest.fixture(scope="module")
def options(overrides, base):
    return [*overrides("retrieval"), f"init.checkpoint={base}", LORA]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, options):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    start("retrieval", folder, options)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [[], ["optim.ema.decay=0.5"], ["optim.freeze.vision=2"]], ids=["plain", "ema", "unfreeze"]
)
def test_a_killed_run_repeats_itself_byte_for_byte(options, extra, tmp_path):
    """With ``optim.freeze.vision=2``, the vision encoder has no adapters, because it is named there."""
    run = tmp_path / "run"
    report = start("retrieval", run, [*options, *extra])
    killed = shutil.copytree(run, tmp_path / "killed")
    for checkpoint in list_checkpoints(killed / "checkpoints"):
        if checkpoint.step > 3:
            shutil.rmtree(checkpoint.folder)
    assert start("retrieval", killed, [*options, *extra], "--resume") == report
    for file in ("best.safetensors", "checkpoints/step-00000006/model.safetensors"):
        assert (killed / file).read_bytes() == (run / file).read_bytes(), file


def test_only_adapters_and_heads_change_and_other_weights_stay(uninterrupted, base):
    before, after = (
        load_file(base / "best.safetensors"),
        load_file(uninterrupted / "checkpoints/step-00000006/model.safetensors"),
    )
    for name, tensor in after.items():
        plain = name.replace(".base_layer.", ".")
        if is_adapter(name):
            assert plain not in before and tensor.any(), name
        elif name.startswith(("vision.", "text.", "fusion.")):
            assert torch.equal(tensor, before[plain]), name
    assert not torch.equal(after["matching_head.0.weight"], before["matching_head.0.weight"])


def test_every_reader_of_the_file_gets_merged_weights(uninterrupted, overrides, options, tmp_path):
    merged = read_weights(uninterrupted / "best.safetensors")
    assert not has_adapters(merged)
    loaded = load(uninterrupted).network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in merged.items())
    evaluated = [*overrides("retrieval"), f"init.checkpoint={uninterrupted}"]
    again = start("retrieval", tmp_path / "evaluated", evaluated, "--evaluate")
    report = json.loads((uninterrupted / "evaluation.json").read_text())
    assert again["test"]["mean recall"]["value"] == pytest.approx(report["test"]["mean recall"]["value"])
    assert start("retrieval", uninterrupted, options, "--evaluate", "--resume")["test"] == report["test"]


def test_another_run_starts_from_the_merged_weights(uninterrupted, overrides, tmp_path):
    start("grounding", tmp_path / "next", [*overrides("grounding"), f"init.checkpoint={uninterrupted}"])
    assert not has_adapters(load_file(tmp_path / "next/best.safetensors"))


def checkpoint(capsys, *words: object) -> tuple[int, str]:
    status = main(["checkpoint", *map(str, words)])
    message = capsys.readouterr()
    return status, message.out + message.err


def test_adapters_can_be_extracted_and_merged_again(uninterrupted, base, tmp_path, capsys):
    status, message = checkpoint(capsys, "inspect", uninterrupted, "--no-configs")
    message = " ".join(message.split())
    assert status == 0 and OneLine("rank 2", "merged") in message.splitlines() and "fusion 1 layer" in message
    assert checkpoint(capsys, "adapters", uninterrupted, "--out", tmp_path / "small")[0] == 0
    small = tmp_path / "small/adapters.safetensors"
    assert small.stat().st_size < 0.5 * (uninterrupted / "best.safetensors").stat().st_size
    with pytest.raises(UserError, match="contains only adapters"):
        load(tmp_path / "small")
    status, message = checkpoint(capsys, "inspect", tmp_path / "small")
    assert status == 0 and "kind       ours, adapters without the weights" in message and "starts" not in message
    with pytest.raises(UserError, match=naming("adapters", "weights")):
        read_weights(small)
    status, message = checkpoint(capsys, "merge", tmp_path / "small", "--base", base, "--out", tmp_path / "merged")
    assert status == 0, message
    assert all(
        torch.equal(tensor, load(tmp_path / "merged").network.state_dict()[name])
        for name, tensor in read_weights(uninterrupted / "best.safetensors").items()
    )


def test_frozen_parts_come_from_the_base_instead_of_the_adapter_file(options, base, tmp_path, capsys):
    run = tmp_path / "run"
    start("retrieval", run, [*options, "optim.freeze.text=true"])
    assert checkpoint(capsys, "adapters", run, "--out", tmp_path / "small")[0] == 0
    assert not any(name.startswith("text.") for name in load_file(tmp_path / "small/adapters.safetensors"))
    status, message = checkpoint(capsys, "merge", tmp_path / "small", "--base", base, "--out", tmp_path / "merged")
    assert status == 0, message
    again, expected = (read_weights(path) for path in (tmp_path / "merged/model.safetensors", run / "best.safetensors"))
    assert again.keys() == expected.keys() and all(torch.equal(again[name], expected[name]) for name in again)


def test_a_run_can_be_evaluated_without_the_package(uninterrupted, options, monkeypatch):
    expected = json.loads((uninterrupted / "evaluation.json").read_text())["test"]
    monkeypatch.setattr("optim.lora.find_spec", lambda name: None)
    assert start("retrieval", uninterrupted, options, "--evaluate", "--resume")["test"] == expected


def test_mistakes_are_reported_in_one_line(uninterrupted, base, tmp_path, capsys, overrides):
    assert "contains no adapters" in checkpoint(capsys, "adapters", base, "--out", tmp_path / "x")[1]
    assert checkpoint(capsys, "adapters", uninterrupted, "--out", tmp_path / "small")[0] == 0
    message = checkpoint(capsys, "merge", tmp_path / "small", "--base", "nowhere", "--out", tmp_path / "z")[1]
    assert OneLine("--base nowhere") in message.splitlines()
    assert "already exists" in checkpoint(capsys, "adapters", uninterrupted, "--out", tmp_path / "small")[1]
    small = tmp_path / "small/adapters.safetensors"
    merging = ("merge", tmp_path / "small", "--base", base, "--out", tmp_path / "z")
    content = small.read_bytes()
    for cut in (len(content) // 2, 5):
        small.write_bytes(content[:cut])
        assert "adapters.safetensors: " in (message := checkpoint(capsys, *merging)[1]) and message.count("\n") == 1, (
            message
        )
    small.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged" in checkpoint(capsys, *merging)[1]
    small.write_bytes(content)
    (tmp_path / "small/config.yaml").rename(tmp_path / "away.yaml")
    assert "contains no config.yaml" in checkpoint(capsys, *merging)[1]
    (tmp_path / "away.yaml").rename(tmp_path / "small/config.yaml")
    other = tmp_path / "other"
    start("retrieval", other, [*overrides("retrieval"), "seed=1"])
    message = checkpoint(capsys, "merge", tmp_path / "small", "--base", other, "--out", tmp_path / "merged")[1]
    assert OneLine("trained on other weights") in message.splitlines() and not (tmp_path / "merged").exists()
    assert (
        "contains no adapters.safetensors"
        in checkpoint(capsys, "merge", base, "--base", base, "--out", tmp_path / "y")[1]
    )


def test_a_file_without_the_scale_of_its_adapters_is_rejected(uninterrupted, tmp_path):
    save_weights(tmp_path / "model.safetensors", load_file(uninterrupted / "best.safetensors"))
    with pytest.raises(UserError, match=naming("adapters", "lora", "null")):
        read_weights(tmp_path / "model.safetensors")
    tensors = load_file(uninterrupted / "best.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("lora_A.default.weight")))
    about = {"lora": read_metadata(uninterrupted / "best.safetensors")["lora"]}
    save_weights(tmp_path / "cut.safetensors", tensors, about)
    with pytest.raises(UserError, match=naming("part of an adapter")):
        read_weights(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("task", [task for task in KINDS if task != "retrieval"])
def test_the_other_tasks_train_with_adapters(task, overrides, tmp_path):
    report = start(task, tmp_path / task, [*overrides(task), LORA])
    assert report and has_adapters(load_file(tmp_path / task / "checkpoints/step-00000006/model.safetensors"))
