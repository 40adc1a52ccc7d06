"""The sides of the duel with open_clip, and what is concluded from their results."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks import duel
from benchmarks.duel_sides import CHANGES, DATA, PRETRAINED, OpenClipSide, OurSide, Rate, check_sides
from models.core.losses import EmbeddedPairs
from tests.messages import OneLine
from utils.commands import call
from utils.errors import UserError

RATE = Rate(1e-3, 0.2)
SCENES, REAL = DATA["scenes"], DATA["real"]
open_clip_loss = pytest.importorskip("open_clip.loss", reason="open_clip is not installed")


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    assert [RATE.at(progress) for progress in (0.1, 0.2, 0.6)] == pytest.approx([5e-4, 1e-3, 5e-4])
    assert 0 < RATE.at(0.0) == RATE.at(1.0) < 1e-8


@pytest.fixture
def open_clip(tiny_overrides, tmp_path):
    """Builds a small side of open_clip with some changes."""
    return lambda *changes: OpenClipSide("open_clip", SCENES, tiny_overrides, RATE, 0, tmp_path, changes)


@pytest.fixture
def contrastive(tiny_overrides, tmp_path) -> OurSide:
    return OurSide("contrastive", SCENES, tiny_overrides, RATE, 0, tmp_path)


def test_both_losses_are_equal(contrastive):
    head = contrastive.model.contrastive.double()
    image, text = F.normalize(torch.randn(2, 6, 8, dtype=torch.float64), dim=2)
    valid, group = torch.ones(6, dtype=torch.bool), torch.arange(6)
    ours = head.start_loss(EmbeddedPairs(image, text, valid, group, "negative"))() / 6
    theirs = open_clip_loss.ClipLoss()(image, text, 1 / head.temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("change", [None, *sorted(CHANGES - PRETRAINED)])
def test_a_side_learns_its_first_batch(open_clip, change):
    changed = open_clip(*filter(None, [change]))
    batch = changed.batches.make(0)
    changed.batches.make = lambda number: batch
    losses = []
    changed.loss = lambda *arguments: (losses.append(open_clip_loss.ClipLoss()(*arguments)), losses[-1])[1]
    for _ in range(12):
        changed.step(0.2)
    assert losses[-1] < losses[0]
    assert not [name for name, each in changed.model.named_parameters() if each.requires_grad and each.grad is None]


def test_both_kinds_of_sides_get_the_same_batches(contrastive, open_clip):
    ours, theirs = (side.batches.make(0).images for side in (contrastive, open_clip()))
    assert torch.equal(ours.pixels, theirs.pixels) and torch.equal(ours.text.plain().ids, theirs.text.plain().ids)


def test_a_change_is_only_made_to_the_weights_that_have_it():
    for change, data in (("locked text encoder", "scenes"), ("stem of convolutions", "real")):
        with pytest.raises(UserError, match=f"'open_clip \\+ {change}' is not a side with these records"):
            check_sides([f"open_clip + {change}"], DATA[data])


def test_a_side_of_open_clip_does_not_hold_our_model(open_clip):
    assert not hasattr(open_clip().task, "model")


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
        f"evaluation={{files: [{scenes_folder}/val.jsonl]}}",
        "data.images.batch_size=4",
        f"data.cache_index={scenes_folder}/index",
        "train.precision=fp32",
    ]


LOCKED = {
    "locked image encoder": ("visual.trunk.",),
    "locked text encoder": ("text.transformer.",),
    "image encoder locked except for its last block": ("visual.trunk.patch_embed.", "visual.trunk.blocks.0."),
}


@pytest.mark.parametrize("locked", LOCKED)
def test_both_start_from_the_same_pretrained_encoders(pretrained, tmp_path, monkeypatch, locked):
    monkeypatch.setattr("open_clip.timm_model.timm.create_model", partial(timm.create_model, depth=3))
    ours = OurSide("contrastive", REAL, pretrained, RATE, 0, tmp_path)
    theirs = OpenClipSide("open_clip", REAL, pretrained, RATE, 0, tmp_path, [locked])
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
    changed = {
        name
        for (name, each), old in zip(clip.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(each, old)
    }
    assert not [name for name in changed if name.startswith(LOCKED[locked])]
    assert "visual.head.proj.weight" in changed
    assert ("visual.trunk.blocks.1.attn.qkv.weight" in changed) == (locked != "locked image encoder")
    assert ("text.transformer.encoder.layer.0.output.dense.weight" in changed) == (locked != "locked text encoder")


def test_encoders_are_unfrozen_after_the_same_share_of_the_time_as_of_the_steps(pretrained, tmp_path):
    words = [*pretrained, "optim.freeze={text: 850}", "train.steps=1000"]
    side = OurSide("contrastive", REAL, words, RATE, 0, tmp_path)
    for progress, trains in ((0.0, False), (0.8, False), (0.9, True)):
        side.step(progress)
        assert any(each.requires_grad for each in side.model.text.parameters()) == trains


def results(rank: int, lr: float, test_rank: int | None = None, warm_up: float = duel.FIRST_WARM_UP) -> dict:
    """The results of a side that finds the first of two pairs at once, and the second at ``rank``, by default on both splits."""
    val, test = (
        {"ranks": {"cosine": [[0, each], [0, each]]}, "others": {}}
        for each in (rank, rank if test_rank is None else test_rank)
    )
    curve = [{"cpu_s": 60.0, "image to text": 0.5, "text to image": 0.5}]
    return {
        "rate": {"lr": lr, "warm_up": warm_up},
        "steps": 10,
        "wall_s": 30.0,
        "curve": curve,
        "val": val,
        "test": test,
    }


SETTING = duel.Setting(4.0, 0)


def write_run(path: Path, sides: dict, **setting: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"setting": asdict(SETTING) | setting, "sides": sides}))


def test_the_rate_with_the_best_validation_is_chosen_whatever_the_test_split_says(tmp_path):
    (tmp_path / "grid").mkdir()
    for lr, rank, test_rank in ((1e-3, 1, 0), (2e-3, 0, 1), (4e-3, 2, 0)):
        write_run(tmp_path / "grid" / f"lr{lr}.json", {"open_clip": results(rank, lr, test_rank)})
    chosen = duel.chosen_rates(tmp_path, ("open_clip",), SETTING)
    assert chosen == {"open_clip": Rate(2e-3, duel.FIRST_WARM_UP)}
    assert duel.edges(tmp_path, "open_clip", chosen["open_clip"], SETTING) == " (warm-up on an edge of the grid)"
    write_run(tmp_path / "grid" / "everything.json", {"everything": results(0, 8e-3)})
    rates = duel.chosen_rates(tmp_path, ("contrastive, words", "open_clip"), SETTING)
    assert rates == {"contrastive, words": Rate(8e-3, duel.FIRST_WARM_UP), **chosen}
    both = results(0, 1e-3)
    both["val"]["ranks"]["sum"], both["test"]["ranks"]["sum"] = [[1, 1]] * 2, [[0, 0]] * 2
    both["test"]["ranks"]["cosine"] = [[0, 1]] * 2
    assert duel.best_score(both) == ("cosine", 1.0) and duel.hits_of(both).tolist() == [1, 0]


def test_a_duel_without_a_grid_says_what_to_run(tmp_path, capsys):
    assert call(duel.main, ["run", "--output", str(tmp_path)], "duel") == 2
    assert capsys.readouterr().err == OneLine("no learning rate", "benchmarks.duel grid")


def test_a_grid_of_other_data_is_not_used(tmp_path, capsys):
    write_run(tmp_path / "grid" / "a.json", {"open_clip": results(0, 1e-3)}, data="real")
    assert call(duel.main, ["run", "--sides", "open_clip", "--output", str(tmp_path)], "duel") == 2
    assert capsys.readouterr().err == OneLine("a.json was made with data real, not scenes", "another --output")


def test_an_unknown_side_is_an_error(capsys, tmp_path, tiny_overrides):
    words = ["grid", *tiny_overrides, "--sides", "open_clip + our weather", "--output", str(tmp_path)]
    assert call(duel.main, words, "duel") == 2
    assert capsys.readouterr().err == OneLine("open_clip + our weather", "stem of convolutions")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--lr", "5e-4"], "one learning rate and one warm-up"),
        (["run", "--lr", "5e-4,1e-3", "--warm-up", "0.1"], "one learning rate and one warm-up"),
        (["run", "--lr", "5e-4", "--warm-up", "1"], "--warm-up 1 is not a share"),
        (["run", "--data", "real", "--shapes", "10"], "--shapes reads shapes from drawn scenes"),
        (["run", "--lr", "0", "--warm-up", "0.1"], "--lr 0 is not a learning rate"),
        (["grid", "--sides", "theirs"], "'theirs' is not a side"),
        (["run", "--sides", "opencl"], "'opencl' is not a side"),
        (["table"], "has no runs"),
    ],
)
def test_wrong_flags_are_one_line(words, message, tmp_path, capsys):
    assert call(duel.main, [*words, "--output", str(tmp_path)], "duel") == 2
    assert capsys.readouterr().err == OneLine(message)


def test_the_table_has_a_row_for_each_side_and_the_paired_difference(tmp_path, capsys):
    sides = {"open_clip": results(1, 1e-3), "contrastive": results(0, 2e-3)}
    for seed in range(2):
        write_run(tmp_path / "4min" / f"seed{seed}.json", sides, seed=seed)
    assert call(duel.main, ["table", "--output", str(tmp_path)], "duel") == 0
    printed = capsys.readouterr().out
    assert "| open_clip | 0.001 | 0.17 | 10 | 30 | 50.0 / 50.0 |" in printed
    assert "contrastive minus open_clip: +50.0 points [0.0, 100.0], by seed +50.0, +50.0" in printed
    assert "not in all runs: everything" in printed
    assert (tmp_path / "duel.png").stat().st_size > 1000
    write_run(tmp_path / "4min" / "seed1.json", sides | {"open_clip": results(1, 2e-3)}, seed=1)
    assert call(duel.main, ["table", "--output", str(tmp_path)], "duel") == 2
    assert capsys.readouterr().err == OneLine("seed1.json: open_clip was trained with lr 0.002", "not 0.001")


@pytest.mark.slow
def test_a_duel_runs_from_the_grid_to_the_table(tiny_overrides, scenes_folder, tmp_path, capsys):
    words = [*tiny_overrides, "--minutes", "0.01", "--records", str(scenes_folder), "--output", str(tmp_path)]
    words += ["--sides", "open_clip;everything", "--shapes", "20", "model.vision.image_size=64"]
    assert call(duel.main, ["grid", *words, "--lr", "1e-3", "--warm-up", "0.1"], "duel") == 0
    assert call(duel.main, ["run", *words, "--seeds", "0"], "duel") == 0
    assert call(duel.main, ["run", *words, "--seeds", "0"], "duel") == 0
    assert "seed0.json is complete" in capsys.readouterr().out
    assert call(duel.main, ["run", *words, "optim.eps=1e-5", "--seeds", "0"], "duel") == 2
    assert capsys.readouterr().err == OneLine("was made with overrides", "optim.eps=1e-5", "choose another --output")
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


@pytest.mark.night
def test_the_memory_of_a_side_is_that_of_its_own_process(tiny_overrides, tmp_path, capsys):
    words = ["memory", *tiny_overrides, "--sides", "open_clip", "--output", str(tmp_path)]
    assert call(duel.main, words, "duel") == 0
    assert 0.2 < float(capsys.readouterr().out.split()[-2]) < 2
