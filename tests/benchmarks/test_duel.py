"""The sides of the duel with open_clip, and what is concluded from their results."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks import duel
from benchmarks.duel_sides import CHANGES, DATA, OpenClipSide, OurSide, Parts, Rate
from models.core.losses import EmbeddedPairs
from tests.messages import OneLine
from utils.commands import call

DEMO = "configs/demo/pretrain.yaml"
RATE = Rate(1e-3, 0.2)
open_clip_loss = pytest.importorskip("open_clip.loss", reason="open_clip is not installed")


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    assert [RATE.at(progress) for progress in (0.1, 0.2, 0.6)] == pytest.approx([5e-4, 1e-3, 5e-4])
    assert 0 < RATE.at(0.0) == RATE.at(1.0) < 1e-8


def side(tiny_overrides, parts: Parts) -> OpenClipSide:
    return OpenClipSide("open_clip", DEMO, RATE, 0, parts, tiny_overrides)


def test_both_losses_are_equal(tiny_overrides, tmp_path):
    head = OurSide("contrastive", DEMO, RATE, 0, tmp_path, tiny_overrides).model.contrastive.double()
    image, text = F.normalize(torch.randn(2, 6, 8, dtype=torch.float64), dim=2)
    valid, group = torch.ones(6, dtype=torch.bool), torch.arange(6)
    ours = head.start_loss(EmbeddedPairs(image, text, valid, group, "negative"))() / 6
    theirs = open_clip_loss.ClipLoss()(image, text, 1 / head.temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_with_all_parts_replaced_the_first_step_is_that_of_this_project(tiny_overrides, tmp_path):
    ours = OurSide("contrastive", DEMO, RATE, 0, tmp_path, tiny_overrides)
    theirs = side(tiny_overrides, Parts(vision=True, text=True))
    batch = ours.batches.make(0)
    assert torch.equal(batch.images.pixels, theirs.batches.make(0).images.pixels)
    loss = ours.model.eval()(batch)["images/contrastive"].total / batch.images.valid.sum()
    image, text = theirs.model.eval()(batch.images.pixels, batch.images.text.plain())
    torch.testing.assert_close(theirs.loss(image, text, theirs.model.logit_scale.exp()), loss)


FROM_SCRATCH = {name: change for name, change in CHANGES.items() if "locked" not in change}


@pytest.mark.parametrize("changes", [{}, *FROM_SCRATCH.values()], ids=["open_clip", *FROM_SCRATCH])
def test_a_side_learns_its_first_batch(tiny_overrides, changes):
    changed = side([*tiny_overrides, "data.cache_index=null"], Parts() | changes)
    batch = changed.batches.make(0)
    changed.batches.make = lambda number: batch
    losses = []
    changed.loss = lambda *arguments: (losses.append(open_clip_loss.ClipLoss()(*arguments)), losses[-1])[1]
    for _ in range(12):
        changed.step(0.2)
    assert losses[-1] < losses[0]
    assert not [name for name, each in changed.model.named_parameters() if each.requires_grad and each.grad is None]


@pytest.fixture
def pretrained(scenes_folder, tmp_path) -> list[str]:
    """Overrides of the config of real pictures: a DINOv2 of random weights, a small BERT, and scenes."""
    tokenizer = tmp_path / "text"
    shutil.copytree(scenes_folder / "tokenizer", tokenizer)
    words = len(AutoTokenizer.from_pretrained(str(tokenizer)))
    sizes = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 12, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=words, **sizes)).save_pretrained(tokenizer)
    vision = timm.create_model("vit_small_patch14_dinov2", img_size=56, depth=3)
    save_file(vision.state_dict(), tmp_path / "vision.safetensors")
    return [
        f"init.vision={tmp_path}/vision.safetensors",
        f"init.text={tokenizer}",
        f"model.text.encoder={tokenizer}",
        f"model.text.arch.vocab_size={words}",
        "model.text.arch.layers=1",
        "model.fusion.layers=1",
        "model.text.arch.intermediate=64",
        "model.vision.image_size=56",
        "model.vision.depth=2",
        "model.vision.patch_positions=false",  # they are added to the patches after the last block
        "optim.freeze={vision_blocks: 1}",
        f"data.images.files=[{scenes_folder}/train.jsonl]",
        "data.images.batch_size=4",
        f"data.cache_index={scenes_folder}/index",
        "train.precision=fp32",
    ]


def test_both_start_from_the_same_pretrained_encoders(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr("open_clip.timm_model.timm.create_model", partial(timm.create_model, depth=3))
    ours = OurSide("contrastive", DATA["real"].config, RATE, 0, tmp_path, pretrained)
    theirs = OpenClipSide("open_clip", DATA["real"].config, RATE, 0, Parts(locked=True), pretrained)
    batch = theirs.batches.make(0).images
    image, (text,) = ours.model.eval().vision(batch.pixels), ours.model.text([batch.text.plain()])
    clip = theirs.model.eval().clip
    pixels = (batch.pixels.float() / 255 - theirs.model.pixel_mean) / theirs.model.pixel_std
    torch.testing.assert_close(clip.visual.trunk(pixels), image.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        F.normalize(clip.encode_text(batch.text.ids)), ours.model.contrastive.embed_text(text), rtol=1e-4, atol=1e-4
    )
    before = copy.deepcopy(clip)
    theirs.model.train()
    theirs.step(0.2)
    same = {
        name: torch.equal(each, old)
        for (name, each), old in zip(clip.named_parameters(), before.parameters(), strict=True)
    }
    assert all(same[name] for name in same if name.startswith("visual.trunk."))
    assert not same["visual.head.proj.weight"] and not same["text.transformer.encoder.layer.0.output.dense.weight"]


def test_changes_are_added_to_each_other():
    parts = Parts() | CHANGES["mean of patches"] | CHANGES["LayerScale"]
    assert parts.image == {"pool_type": "avg", "ls_init_value": 0.1} and parts.texts == {"ls_init_value": 0.1}


def results(rank: int, lr: float, steps: int = 10) -> dict:
    """The results of a side that finds the first of two pairs at once, and the second at ``rank``."""
    split = {"ranks": {"cosine": [[0, rank], [0, rank]]}, "others": {}}
    curve = [{"cpu_s": 60.0, "image to text": 0.5, "text to image": 0.5}]
    times = {"steps": steps, "curve": curve}
    return {"rate": {"lr": lr, "warm_up": 0.17}, **times, "val": split, "test": split}


def test_the_rate_with_the_best_validation_is_chosen(tmp_path):
    (tmp_path / "grid").mkdir()
    for lr, rank in ((1e-3, 1), (2e-3, 0), (4e-3, 2)):
        text = json.dumps({"sides": {"open_clip": results(rank, lr)}})
        (tmp_path / "grid" / f"lr{lr}.json").write_text(text)
    assert duel.chosen_rates(tmp_path, ("open_clip",)) == {"open_clip": Rate(2e-3, 0.17)}


def test_a_duel_without_a_grid_says_what_to_run(tmp_path, capsys):
    assert call(duel.main, ["run", "--output", str(tmp_path)], "duel") == 2
    assert capsys.readouterr().err == OneLine("no learning rate", "benchmarks.duel grid")


def test_an_unknown_side_is_an_error(capsys, tmp_path):
    words = ["grid", "--sides", "open_clip + our weather", "--output", str(tmp_path)]
    assert call(duel.main, words, "duel") == 2
    assert capsys.readouterr().err == OneLine("open_clip + our weather", "our text encoder")


def test_a_difference_that_all_scenes_and_seeds_share_has_an_interval_without_width():
    assert duel.paired_interval(np.full((3, 8), 0.5), draws=20) == (0.5, 0.5)
    low, high = duel.paired_interval(np.random.default_rng(0).normal(0.1, 1, (3, 200)), draws=2000)
    assert low < 0.1 < high


def test_the_table_has_a_row_for_each_side_and_the_paired_difference(tmp_path, capsys):
    (tmp_path / "4min").mkdir()
    for seed in range(2):
        sides = {"open_clip": results(1, 1e-3), "contrastive": results(0, 2e-3)}
        text = json.dumps({"minutes": 4.0, "seed": seed, "sides": sides})
        (tmp_path / "4min" / f"seed{seed}.json").write_text(text)
    assert call(duel.main, ["table", "--output", str(tmp_path)], "duel") == 0
    printed = capsys.readouterr().out
    assert "| open_clip | 0.001 | 0.17 | 10 | 50.0 / 50.0 |" in printed
    assert "contrastive minus open_clip: +50.0 points [" in printed
    assert (tmp_path / "duel.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_duel_runs_from_the_grid_to_the_table(tiny_overrides, scenes_folder, tmp_path, capsys):
    words = [*tiny_overrides, "--minutes", "0.01", "--records", str(scenes_folder), "--output", str(tmp_path)]
    words += ["--sides", "open_clip;everything", "--shapes", "20", "model.vision.image_size=64"]
    assert call(duel.main, ["grid", *words, "--lr", "1e-3", "--warm-up", "0.1"], "duel") == 0
    assert call(duel.main, ["run", *words, "--seeds", "0"], "duel") == 0
    capsys.readouterr()
    assert call(duel.main, ["table", "--output", str(tmp_path)], "duel") == 0
    printed = capsys.readouterr().out
    assert "everything minus open_clip" in printed
    found = json.loads((tmp_path / "0.01min" / "seed0.json").read_text())["sides"]
    for name, result in found.items():
        assert 0.6 <= result["cpu_s"] < 3 and result["steps"] > 0, name
        assert len(result["test"]["ranks"]["cosine"][0]) == 8
    assert found["everything"]["test"]["others"].keys() >= {"masked word"}
    assert found["everything"]["test"]["ranks"].keys() == {"cosine", "matching", "sum"}
    assert found["open_clip"]["test"]["ranks"].keys() == {"cosine"}
    assert "| shape read from patches | colour read from patches |" in printed


@pytest.mark.slow
def test_the_memory_of_a_side_is_that_of_its_own_process(tiny_overrides, tmp_path, capsys):
    words = ["memory", *tiny_overrides, "--sides", "open_clip", "--output", str(tmp_path)]
    assert call(duel.main, words, "duel") == 0
    assert 0.2 < float(capsys.readouterr().out.split()[-2]) < 2
