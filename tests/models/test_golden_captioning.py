"""The authors' results for captioning, through the real loading code: losses, and captions by greedy and beam search."""

from __future__ import annotations

import pytest
import torch

from batches.base import IGNORE
from batches.captioning import CaptioningBatch, LeftToRightText
from models.checkpoints.files import read_weights
from models.checkpoints.loading import load_published
from models.config import CaptioningLossConfig, DecodingConfig
from models.tasks.captioning import CaptioningModel, CaptionTokens
from tests.devices import BOUNDS, copied_to, moved
from tests.models.golden import GOLDEN, arrays, assert_golden, load_model, manifest, model_config

FACTS = manifest("captioning")
SPECIAL = FACTS["special_ids"]
TOKENS = CaptionTokens(tuple(FACTS["prompt_ids"]), SPECIAL["sep"], SPECIAL["mask"], SPECIAL["pad"])


@pytest.fixture(scope="module")
def loaded():
    model = load_model("captioning", CaptioningModel)
    model.loss = CaptioningLossConfig(label_smoothing=FACTS["config"]["label_smoothing"])
    return model


@pytest.fixture
def model(loaded, device):
    return copied_to(device, loaded)


def batch(kind: str) -> CaptioningBatch:
    """The rows of the case. Unused positions have a weight of zero there, and no label here."""
    given = arrays(GOLDEN / "captioning/inputs.npz")
    labels = given[f"{kind}_masked_ids"].masked_fill(given[f"{kind}_masked_weight"] == 0, IGNORE)
    text = LeftToRightText(
        ids=given[f"{kind}_ids"],
        mask=given[f"{kind}_atts"].bool(),
        positions=given[f"{kind}_pos_ids"],
        mask_indices=given[f"{kind}_masked_pos"],
        labels=labels,
    )
    return CaptioningBatch(given["image"], text, ((),) * 3, torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["fgfree", "plain"])
@torch.no_grad()
def test_captioning_loss_equals_the_published_one(model, kind, device):
    given, expected = moved(batch(kind), device), arrays(GOLDEN / "captioning/expected.npz")
    logits = model.logits(given.text, model.project_images(given.pixels))
    # In float64, our logits differ from the authors' float32 logits by up to 3.4e-5, which is their rounding error. The loss is
    # closer.
    bound = max(5e-5, BOUNDS[device.type])
    torch.testing.assert_close(logits.cpu(), expected[f"{kind}_logits"], rtol=bound, atol=bound)
    loss = model(given)["words"].total / model.counts(given)["words"]
    assert_golden(loss, expected[f"{kind}_loss"])


def test_masks_are_put_into_captions_as_published():
    given = arrays(GOLDEN / "captioning/inputs.npz")
    expected = batch("fgfree").text
    texts, message = [], []
    for ids, positions, places, labels in zip(
        expected.ids, expected.positions, given["fgfree_masked_pos"], expected.labels, strict=True
    ):
        masks = places[labels != IGNORE].tolist()
        real = [position for position in range(len(ids)) if position not in masks]
        real = real[: next((at for at, position in enumerate(real) if ids[position] == SPECIAL["pad"]), len(real))]
        texts.append([int(ids[position]) for position in real])
        message.append([int(positions[position]) for position in masks])
    ours = LeftToRightText.of(texts, message, SPECIAL["mask"], SPECIAL["pad"])
    for row, text in enumerate(texts):
        length = len(text) + len(message[row])
        assert torch.equal(ours.ids[row, :length], expected.ids[row, :length])
        assert torch.equal(ours.positions[row, :length], expected.positions[row, :length])
        assert torch.equal(ours.mask[row, :length, :length], expected.mask[row, :length, :length])
        assert torch.equal(ours.labels[row], expected.labels[row])
        used = expected.labels[row] != IGNORE
        assert torch.equal(ours.mask_indices[row][used], given["fgfree_masked_pos"][row][used])


@pytest.mark.parametrize("name", ["greedy", "beam3", "beam3_min2_nofb", "beam3_lp1", "greedy_bs1"])
@torch.no_grad()
def test_generated_words_equal_the_published_ones(model, name, device):
    facts = FACTS["generation"][name]
    given = facts["args"]
    pixels = arrays(GOLDEN / "captioning/inputs.npz")["image"][: facts["n_images"]].to(device)
    expected = arrays(GOLDEN / "captioning/expected.npz")[f"gen_{name}"]
    # The length in the released code includes the prompt and grows with the batch.
    longest = given["max_length"] + facts["n_images"] - len(TOKENS.prompt)
    config = DecodingConfig(
        beams=given["num_beams"],
        min_length=given["min_length"],
        max_length=longest,
        length_penalty=given["length_penalty"],
        no_repeat_ngram=3 if given.get("forbid_duplicate_ngrams", True) else 0,
    )
    found = model.generate(model.project_images(pixels), TOKENS, config)
    for row in range(facts["n_images"]):
        words = [word for word in found.tokens[row].tolist() if word != IGNORE]
        requested = [word for word in expected[row].tolist() if word not in (SPECIAL["pad"], SPECIAL["sep"])]
        assert words == requested
        assert bool(found.ended[row]) == (SPECIAL["sep"] in expected[row].tolist())


def test_a_pretraining_checkpoint_fills_the_whole_model():
    """Captioning has no parameters that pre-training lacks, and the additional parameters of pre-training are unused."""
    state = read_weights(GOLDEN / "pretrain" / "model.safetensors")
    model = CaptioningModel(model_config(manifest("pretrain")))
    report = load_published(model, state, "golden")
    assert report.fresh == []
    assert {name.split(".")[0] for name in report.unused} <= {
        "vision_proj",
        "text_proj",
        "temp",
        "itm_head",
        "bbox_head",
        "absolute_frame_pos_embed",
    }
    assert torch.equal(model.word_head.bias, state["text_encoder.cls.predictions.bias"])
