"""The authors' results (golden case `pretrain`), through the real loading code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from batches.base import IGNORE
from batches.losses import Losses
from batches.pretraining import PretrainBatch, TextBatch
from models.checkpoints.rename import published_to_ours
from models.config import LossWeights
from models.core.heads import masked_positions
from models.core.matching import allowed_negatives, negative_weights
from models.core.packing import PackedTexts
from models.pretraining.streams import TextStream
from tests.devices import BOUNDS, copied_to, moved
from tests.models.golden import (
    GOLDEN,
    arrays,
    assert_golden,
    encoded,
    everything,
    fused,
    fused_together,
    load_case,
    masked_text,
    pretrain_batch,
    region_order,
)

GIVEN = arrays(GOLDEN / "pretrain" / "inputs.npz")
EXPECTED = arrays(GOLDEN / "pretrain" / "expected.npz")


@pytest.fixture(scope="module")
def loaded():
    return load_case()


@pytest.fixture
def model(loaded, device):
    return copied_to(device, loaded)


@pytest.fixture
def given(device) -> dict[str, Tensor]:
    return moved(GIVEN, device)


@pytest.fixture
def text(model, given) -> PackedTexts:
    return encoded(model, given["text_ids"], given["text_atts"])


def region_concepts(model, given):
    images = model.vision(given["region_image"])
    return images, model.vision.regions(images, given["region_image_atts"][:, 1:].bool(), given["idx_to_group_img"])


def test_whole_images_equal_the_published_encoder(model, given):
    assert_golden(model.vision(given["image"]).states(), EXPECTED["vision_embeds"])


def test_regions_equal_the_published_encoder_in_one_pass(model, given):
    images, regions = region_concepts(model, given)
    assert_golden(regions.states(), EXPECTED["region_embeds"])
    assert_golden(images.states(), EXPECTED["region_fullimage_embeds_ungathered"])


def test_text_states_equal_the_published_ones(text):
    assert_golden(text.padded(), EXPECTED["text_embeds"], text.packing.mask)


def test_text_without_image_skips_cross_attention(model, text):
    assert_golden(fused(model, text), EXPECTED["text_embeds_12L_no_image"], text.packing.mask)


def test_fusion_equals_the_published_one(model, text, given):
    memory = model.fusion.project_concepts(model.vision(given["image"]))
    assert_golden(fused(model, text, memory), EXPECTED["fusion_embeds"], text.packing.mask)


def test_fusion_equals_the_published_one_with_texts_and_images_in_another_order(model, text, given, device):
    memory = model.fusion.project_concepts(model.vision(given["image"]))
    order = torch.arange(text.packing.count, device=device).flip(0)
    states = fused(model, text.select(order), memory.select(order))
    assert_golden(states, EXPECTED["fusion_embeds"][order.cpu()], text.packing.mask[order])


@pytest.mark.parametrize("times", [1, 2, 3])
def test_fusion_equals_the_published_one_with_several_texts_per_image_and_several_passes(
    model, text, given, times, device
):
    memory = model.fusion.project_concepts(model.vision(given["image"]))
    rows = torch.arange(text.packing.count, device=device)
    repeated = text.select(rows.repeat_interleave(times))
    passes = [(repeated, seen) for seen in (memory, memory, memory.select(rows), memory)]
    expected = EXPECTED["fusion_embeds"].repeat_interleave(times, dim=0)
    for states in fused_together(model.fusion, passes):
        assert_golden(repeated.packing.pad(states), expected, repeated.packing.mask)


@pytest.mark.parametrize("beside_whole_images", [False, True])
def test_fusion_attends_to_a_region_with_its_patch_mask(model, beside_whole_images, given):
    images, regions = region_concepts(model, given)
    text = encoded(model, given["region_text_ids"], given["region_text_atts"])
    of_regions, of_images = model.fusion.project_regions(regions, images)
    passes = [(text, of_regions)]
    if beside_whole_images:
        passes = [(text, of_images), *passes]
    states = text.packing.pad(fused_together(model.fusion, passes)[-1])
    assert_golden(states, EXPECTED["region_fusion_embeds"], text.packing.mask)


def test_embeddings_similarities_and_sampling_weights_equal_the_published_ones(model, text, given, device):
    head = model.contrastive
    image_embed, text_embed = head.embed_image(model.vision(given["image"])), head.embed_text(text)
    assert_golden(image_embed, EXPECTED["image_feat"])
    assert_golden(text_embed, EXPECTED["text_feat"])
    similarity = head.similarity(image_embed, text_embed)
    assert_golden(similarity, EXPECTED["sim_over_temp"])
    allowed = allowed_negatives(
        torch.ones(len(similarity), dtype=torch.bool, device=device), torch.zeros(1), "negative"
    )
    assert_golden(negative_weights(similarity.t(), allowed), EXPECTED["hard_negative_weights_for_image"])
    assert_golden(negative_weights(similarity, allowed), EXPECTED["hard_negative_weights_for_text"])


def test_boxes_and_word_logits_equal_the_published_ones(model, given, device):
    images = model.vision(given["region_image"])
    phrases = encoded(model, given["region_text_ids"], given["region_text_atts"])
    boxes = model.predict_boxes(phrases, images, given["idx_to_group_img"])
    assert_golden(boxes, EXPECTED["region_pred_bbox"])
    text = masked_text(GIVEN)
    used = text.labels != IGNORE
    text = moved(replace(text, masked_count=int(used.sum())), device)
    masked, (positions, labels) = encoded(model, text.masked_ids, text.mask), masked_positions(text)
    logits = model.predict_words(masked, model.vision(given["image"]), positions)
    assert torch.equal(labels, text.labels[used.to(device)])
    assert_golden(logits, EXPECTED["image_mlm_logits"][used])


def whole_step(model, device) -> tuple[Losses, dict[str, Tensor]]:
    order = region_order(GIVEN)
    inverse = order.argsort()
    drawn = [
        GIVEN["image_neg_idx"],
        GIVEN["text_neg_idx"],
        inverse[GIVEN["region_image_neg_idx"]][order],
        inverse[GIVEN["region_text_neg_idx"]][order],
    ]
    model.matching_head.drawn = [each.to(device) for each in drawn]
    batch = moved(pretrain_batch(GIVEN), device)
    terms = model(batch)
    counts = model.counts(batch)
    return terms, {name: term.total / counts[name] for name, term in terms.items()}


PUBLISHED_LOSSES = {
    "images/contrastive": "image_loss_itc",
    "images/matching": "image_loss_itm",
    "images/mlm": "image_loss_mlm",
    "regions/contrastive": "region_loss_itc",
    "regions/matching": "region_loss_itm",
    "regions/mlm": "region_loss_mlm",
    "regions/l1": "region_loss_bbox",
    "regions/giou": "region_loss_giou",
}


def test_losses_and_the_gradient_of_every_parameter_equal_the_published_ones(model, device):
    terms, losses = whole_step(model, device)
    assert set(losses) == set(PUBLISHED_LOSSES)
    for name, published in PUBLISHED_LOSSES.items():
        assert_golden(losses[name], EXPECTED[published])
    total = sum(terms[name].weight * loss for name, loss in losses.items())
    assert_golden(total, EXPECTED["total_image_plus_region_loss"])
    total.backward()
    assert_gradients(model)


def assert_gradients(model) -> None:
    norms = json.loads((GOLDEN / "pretrain" / "grad_norms.json").read_text())["per_param"]
    rename = published_to_ours(len(model.text.encoder.layer))
    parameters, bound = dict(model.named_parameters()), BOUNDS[model.matching_head[0].weight.device.type]
    checked = 0
    for name, norm in norms.items():
        ours = rename(name)
        if norm is None or norm < 1e-4:
            continue
        assert parameters[ours].grad is not None, ours
        assert abs(parameters[ours].grad.norm().item() - norm) < bound * max(1, norm), ours
        checked += 1
    assert checked > 0.9 * len(parameters) - len(model.text.encoder.layer) * 3 - len(model.fusion.layer) * 2
    for name, gradient in EXPECTED.items():
        if name.startswith("grad::"):
            assert_golden(parameters[rename(name.removeprefix("grad::"))].grad, gradient)


def test_boxes_of_whole_images_can_be_trained_too(model, given, device):
    batch = moved(pretrain_batch(GIVEN), device)
    regions = torch.zeros_like(batch.regions.is_image)
    model.matching_head.drawn = [
        given["image_neg_idx"],
        given["text_neg_idx"],
        *[torch.arange(len(regions), device=device)] * 2,
    ]
    batch = replace(batch, regions=replace(batch.regions, is_image=regions))
    terms, counts = model(batch), model.counts(batch)
    for name in ("l1", "giou"):
        published = {"l1": "region_loss_bbox_isimage_none", "giou": "region_loss_giou_isimage_none"}[name]
        assert_golden(terms[f"regions/{name}"].total / counts[f"regions/{name}"], EXPECTED[published])


def test_masked_words_of_texts_without_images_equal_the_published_ones(model, monkeypatch, device):
    text = masked_text(GIVEN)
    monkeypatch.setitem(model.streams, "texts", TextStream("texts", 1.0, LossWeights(), "negative"))
    batch = moved(PretrainBatch(None, None, TextBatch(text, everything(text.ids))), device)
    loss = model(batch)["texts/mlm"].total / model.counts(batch)["texts/mlm"]
    assert (text.labels != IGNORE).any()
    assert_golden(loss, EXPECTED["textonly_loss_mlm"])
