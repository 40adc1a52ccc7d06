"""``run.py checkpoint`` describes weight files, converts them bit for bit, and compares two of them. Malicious files are reported
in one line."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.saving import write_checkpoint
from models.checkpoints.convert import same_bits
from models.checkpoints.files import read_weights
from models.checkpoints.recognise import recognise
from models.pretraining.model import PretrainModel
from run import main
from tasks import ROOT
from tests.messages import OneLine
from tests.models.golden import GOLDEN
from tests.models.published import published_state
from tests.models.test_golden_mappings import fine_tuned, multilingual_model, pretrain_config
from tests.models.test_recognise import bert, shapes, swin
from tools.checkpoint.starts import candidates, starts
from utils.weight_file import save_weights

TASKS = {
    "retrieval": "retrieval_base",
    "retrieval_video_more_frames": "retrieval_base_video",
    "nlvr": "nlvr_base",
    "grounding": "grounding_base",
    "captioning": "captioning_base",
    "vqa": "vqa_base",
    "videoqa": "videoqa_base",
}
GOLDEN_PRETRAIN = GOLDEN / "pretrain" / "model.safetensors"


def model_of(task: str) -> nn.Module:
    torch.manual_seed(0)
    config = pretrain_config("a")
    if task == "pretrain":
        return PretrainModel(config)
    return multilingual_model(config) if task == "cclm" else fine_tuned(task, config)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


def run(capsys, *argv: object) -> tuple[int, str, str]:
    status = main(["checkpoint", *map(str, argv)])
    message = capsys.readouterr()
    return status, message.out, message.err


def error_of(capsys, *argv: object) -> str:
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("error: ")
    return err


@pytest.fixture
def published(tmp_path) -> Path:
    """A file in the authors' format, which contains weights and other entries."""
    path = tmp_path / "x2vlm.th"
    state = read_weights(GOLDEN_PRETRAIN)
    torch.save({"model": state, "config": argparse.Namespace(lr=1), "epoch": 3}, path)
    return path


@pytest.mark.parametrize("task", [*TASKS, "pretrain", "cclm"])
def test_a_model_of_every_task_survives_the_round_trip_bit_for_bit(task, tmp_path, capsys):
    state = weights(model_of(task))
    save_weights(tmp_path / "a.safetensors", state)
    assert run(capsys, "convert", tmp_path / "a.safetensors", "--out", tmp_path / "b.th")[0] == 0
    assert run(capsys, "convert", tmp_path / "b.th", "--out", tmp_path / "c.safetensors")[0] == 0
    back = read_weights(tmp_path / "c.safetensors")
    assert back.keys() == state.keys()
    assert all(same_bits(back[name], state[name]) for name in state)
    assert run(capsys, "compare", tmp_path / "a.safetensors", tmp_path / "b.th")[0] == 0


@pytest.mark.parametrize("task", TASKS)
def test_our_weights_are_converted_to_the_authors_names(task, tmp_path, capsys):
    model = model_of(task)
    save_weights(tmp_path / "a.safetensors", model.state_dict())
    run(capsys, "convert", tmp_path / "a.safetensors", "--out", tmp_path / "b.pth")
    written = torch.load(tmp_path / "b.pth", weights_only=True)
    expected = published_state(model, TASKS[task])
    assert list(written) == ["model"]
    buffers = ("relative_position_index", "position_ids")
    assert {name for name in written["model"] if not name.endswith(buffers)} == expected.keys()
    assert all(same_bits(written["model"][name], expected[name]) for name in expected)


def test_a_published_file_survives_the_round_trip_bit_for_bit(published, tmp_path, capsys):
    status, out, _ = run(capsys, "convert", published, "--out", tmp_path / "ours.safetensors")
    assert status == 0 and out.rstrip() == OneLine("config, epoch")
    assert run(capsys, "convert", tmp_path / "ours.safetensors", "--out", tmp_path / "back.th")[0] == 0
    state, back = read_weights(published), read_weights(tmp_path / "back.th")
    assert back.keys() == state.keys()
    assert all(same_bits(back[name], state[name]) for name in state)


def test_a_tensor_under_two_names_that_no_model_ties_is_kept_twice(published, tmp_path, capsys):
    state = torch.load(published, weights_only=False)["model"]
    torch.save({"model": state | {"ema.weight": state["itm_head.0.weight"]}}, published)
    out = tmp_path / "ours.safetensors"
    assert run(capsys, "convert", published, "--out", out)[0] == 0
    assert run(capsys, "compare", published, out)[0] == 0
    assert same_bits(read_weights(out)["ema.weight"], state["itm_head.0.weight"])


@pytest.mark.slow
def test_bfloat16_and_the_prefix_of_a_wrapped_model_are_kept(tmp_path, capsys):
    state = {name: tensor.bfloat16() for name, tensor in weights(model_of("nlvr")).items()}
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "a.safetensors")
    assert "without the prefix module." in run(capsys, "inspect", tmp_path / "a.safetensors")[1]
    run(capsys, "convert", tmp_path / "a.safetensors", "--out", tmp_path / "b.bin")
    assert read_weights(tmp_path / "b.bin")["cls_head.0.weight"].dtype == torch.bfloat16
    assert run(capsys, "compare", tmp_path / "a.safetensors", tmp_path / "b.bin")[0] == 0


def test_a_file_is_never_overwritten_without_a_flag_or_half_written(published, tmp_path, capsys, monkeypatch):
    out = tmp_path / "ours.safetensors"
    out.write_text("mine")
    assert OneLine("another name", "--overwrite") in error_of(capsys, "convert", published, "--out", out).splitlines()
    assert out.read_text() == "mine"
    assert run(capsys, "convert", published, "--out", out, "--overwrite")[0] == 0
    before = (tmp_path / "x2vlm.th").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(published))

    monkeypatch.setattr(torch, "save", full)
    assert "No space left" in error_of(capsys, "convert", out, "--out", published, "--overwrite")
    assert published.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_a_file_that_cannot_be_converted_is_reported_with_the_remedy(published, tmp_path, capsys):
    def message(source: object, out: str = "o.safetensors", *flags: str) -> str:
        return error_of(capsys, "convert", source, "--out", tmp_path / out, *flags)

    assert OneLine("end with .safetensors") in message(published, "o.th").splitlines()
    assert "does not exist" in message(published, "gone/o.safetensors")
    assert OneLine("--form ours") in message(published, "o.th", "--form", "published").splitlines()
    names = {f"encoder.layer.0.{n}": torch.ones(2) for n in ("output.dense.bias", "output.dense.weight")}
    save_file({"embeddings.word_embeddings.weight": torch.ones(5, 2), **names}, tmp_path / "bert.safetensors")
    assert OneLine("BERT's", "X²-VLM", "init.text") in message(tmp_path / "bert.safetensors", "o.th").splitlines()
    save_weights(tmp_path / "hub.safetensors", weights(model_of("nlvr")) | {"text.model.x": torch.ones(1)})
    assert OneLine("text.model.x") in message(tmp_path / "hub.safetensors", "o.th").splitlines()
    assert sorted(path.name for path in tmp_path.glob("o.*")) == []


CONFIG = """base: {base}
model:
  embed_dim: 16
  vision: {{image_size: 48, patch_size: 8, stem: linear, width: 24, depth: 3, heads: 4, layer_scale: 0.1, positions: backbone}}
  text: {{arch: {{family: bert, width: 24, layers: {layers}, heads: 4, intermediate: 48, max_positions: 48}}}}
  fusion: {{layers: 2}}
"""


def test_convert_compares_with_a_config(published, tmp_path, capsys):
    config, out = tmp_path / "config.yaml", tmp_path / "o.safetensors"
    config.write_text(CONFIG.format(base=ROOT / "configs/demo/retrieval.yaml", layers=1))
    assert (
        OneLine("4", "1 + 2") in error_of(capsys, "convert", published, "--out", out, "--config", config).splitlines()
    )
    config.write_text(CONFIG.format(base=ROOT / "configs/demo/retrieval.yaml", layers=2))
    assert run(capsys, "convert", published, "--out", out, "--config", config)[0] == 0
    config.write_text(CONFIG.format(base=ROOT / "configs/demo/nlvr.yaml", layers=2).replace("  embed_dim: 16\n", ""))
    assert (
        OneLine("6 parameters")
        in error_of(capsys, "convert", out, "--out", tmp_path / "o.th", "--config", config).splitlines()
    )
    assert not (tmp_path / "o.th").exists()


def test_older_models_exist_in_one_format_only(tmp_path, capsys):
    state = {name: torch.zeros(4, 4) for name in swin(shapes("nlvr_base"))}
    torch.save({"model": state}, tmp_path / "xvlm.th")
    message = error_of(capsys, "convert", tmp_path / "xvlm.th", "--out", tmp_path / "o.safetensors")
    assert OneLine("X-VLM", "Swin", "X²-VLM") in message.splitlines()


def test_inspect_shows_kind_sizes_resolution_vocabulary_and_other_entries(published, capsys):
    status, out, _ = run(capsys, "inspect", published, "--no-configs")
    assert status == 0
    text = " ".join(out.split())
    for fact in (
        "kind X²-VLM, pre-trained",
        "vision 3 layers of width 24, 4 heads, text 2 layers of width 24, fusion 2 layers of width 24",
        "images 32 px, patches of 8 px",
        "vocabulary 120: of an unknown tokenizer",
        "a PyTorch file, weights in `model`; it also contains config, epoch",
        "intact yes, by the checksums of its archive",
    ):
        assert fact in text


def test_inspect_shows_a_run_with_its_task_and_checkpoints(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("task: entailment\n")
    state = weights(model_of("nlvr"))
    for step in (10, 20):
        write_checkpoint(tmp_path / "checkpoints", step, state, {})
    newest = tmp_path / "checkpoints/step-00000020/model.safetensors"
    status, out, _ = run(capsys, "inspect", tmp_path, "--no-configs")
    text = " ".join(out.split())
    assert status == 0 and out.startswith(str(newest))
    assert f"run {tmp_path}, task entailment step-00000010: intact step-00000020: intact" in text
    assert "kind ours, fine-tuned: nlvr" in text and OneLine("sizes", "hashes", "manifest") in text.splitlines()
    changed = bytearray(newest.read_bytes())
    changed[-1] ^= 1
    newest.write_bytes(changed)
    status, out, _ = run(capsys, "inspect", tmp_path, newest.parent, "--no-configs")
    assert status == 1
    assert out.startswith(str(tmp_path / "checkpoints/step-00000010")) and "is damaged: its checksum" in " ".join(
        out.split()
    )


def test_inspect_shows_that_weights_are_an_average(tmp_path, capsys):
    save_weights(tmp_path / "x.safetensors", weights(model_of("nlvr")), {"ema": {"decay": 0.9999, "warmup": True}})
    _, out, _ = run(capsys, "inspect", tmp_path / "x.safetensors", "--no-configs")
    assert OneLine("decay 0.9999", "warmup True") in " ".join(out.split()).splitlines()


def test_inspect_reports_files_that_it_does_not_recognise(tmp_path, capsys):
    save_file({"conv1.weight": torch.ones(2, 3), "a\nb": torch.ones(1)}, tmp_path / "x.safetensors")
    status, out, _ = run(capsys, "inspect", tmp_path / "x.safetensors")
    assert status == 0
    assert "not recognised" in out and "conv1.weight 2x3" in out and r"a\nb 1" in out


def test_a_damaged_file_is_reported_in_one_line_and_the_others_are_inspected(published, tmp_path, capsys):
    cut = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(100)}, cut)
    cut.write_bytes(cut.read_bytes()[:-9])
    assert OneLine("damaged", "fetch it again") in error_of(capsys, "inspect", cut).splitlines()
    status, out, err = run(capsys, "inspect", cut, published, "--no-configs")
    assert status == 2 and err.count("\n") == 1 and "X²-VLM" in out
    assert OneLine("no such file") in error_of(capsys, "inspect", tmp_path / "gone").splitlines()
    content = bytearray(published.read_bytes())
    content[len(content) // 2] ^= 255
    published.write_bytes(content)
    status, out, err = run(capsys, "inspect", published, "--no-configs")
    assert (status == 1 and "does not match" in out) or (status == 2 and err.count("\n") == 1)


class Trap:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("command", ["inspect", "convert", "compare"])
def test_no_code_in_a_file_is_executed(command, tmp_path, capsys):
    torch.save({"model": {"a": torch.ones(1)}, "hook": Trap(tmp_path / "trapped")}, tmp_path / "x.pth")
    more = {"inspect": (), "convert": ("--out", tmp_path / "o.safetensors"), "compare": (tmp_path / "x.pth",)}[command]
    assert OneLine("never run") in error_of(capsys, command, tmp_path / "x.pth", *more).splitlines()
    assert not (tmp_path / "trapped").exists()


def test_a_small_file_that_expands_to_terabytes_is_rejected(tmp_path, capsys):
    torch.save({"model": {"a": torch.ones(1).expand(10**6, 10**6)}}, tmp_path / "x.pth")
    assert OneLine("'a'", "repeated") in error_of(capsys, "inspect", tmp_path / "x.pth").splitlines()
    one = torch.ones(10**5)
    torch.save({str(n): one for n in range(50)}, tmp_path / "y.pth")
    assert "its tensors take 20,000,000 bytes" in error_of(capsys, "inspect", tmp_path / "y.pth")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "z.pth")
    assert "is torch.sparse_coo on cpu" in error_of(capsys, "inspect", tmp_path / "z.pth")


def test_unknown_header_values_are_ignored_and_a_damaged_header_is_reported_in_one_line(tmp_path, capsys):
    state = {name: tensor.clone() for name, tensor in weights(model_of("nlvr")).items()}
    for about in (json.dumps({"sha256": 3}), json.dumps({"published": {"absent": 3}})):
        save_file(state, tmp_path / "x.safetensors", metadata={"about": about})
        status, out, err = run(capsys, "inspect", tmp_path / "x.safetensors", "--no-configs")
        assert status in (0, 1) and err == "" and "ours, fine-tuned: nlvr" in out
    message = error_of(capsys, "convert", tmp_path / "x.safetensors", "--out", tmp_path / "x.th")
    assert OneLine("convert", "again") in message.splitlines()
    for about in ("{", "[" * 10**5, "3"):
        save_file(state, tmp_path / "x.safetensors", metadata={"about": about})
        status, _, err = run(capsys, "inspect", tmp_path / "x.safetensors", "--no-configs")
        assert status == 2 and OneLine("header", "JSON", "damaged") in err.splitlines() and err.count("\n") == 1


@pytest.mark.slow
def test_inspect_lists_the_configs_with_the_sizes_of_a_file():
    key, names = starts(recognise(shapes("pretrain_base")))
    of_size = {each.name for each in candidates() if "x2vlm_base" in str(each.init.get("checkpoint"))}
    large = {each.name for each in candidates() if "x2vlm_large" in str(each.init.get("checkpoint"))}
    assert key == "init.checkpoint" and len(of_size) > 10 and len(large) > 10
    assert of_size <= set(names) and not large & set(names)
    assert large <= set(starts(recognise(shapes("pretrain_large")))[1])
    beit = {n.removeprefix("vision_encoder."): s for n, s in shapes("pretrain_large").items() if "vision_encoder" in n}
    assert starts(recognise(beit)) == ("init.vision", ["pretrain/large_1b.yaml", "pretrain/large_4m.yaml"])
    assert starts(recognise(swin(shapes("pretrain_base"))))[1] == []
    multilingual = starts(recognise(shapes("pretrain_cclm_base")))[1]
    assert "retrieval/multi30k_base.yaml" in multilingual and "retrieval/coco_base_4m.yaml" not in multilingual
    text = {
        n.replace("text_encoder.bert.", ""): s for n, s in shapes("pretrain_base").items() if "text_encoder.bert" in n
    }
    text = {
        n: s
        for n, s in text.items()
        if "crossattention" not in n and not n.startswith(tuple(f"encoder.layer.{i}." for i in range(12, 18)))
    }
    assert starts(recognise(text)) == ("init.text", ["pretrain/base_1b.yaml", "pretrain/base_4m.yaml"])
    assert starts(recognise(bert(word=(9, 768))))[1] == []
