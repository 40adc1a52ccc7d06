"""The authors' numbers (golden case `pretrain`), through the real loading code."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from models.checkpoints.rename import published_to_ours
from models.encoded import Encoded
from models.fusion import Look
from models.negatives import allowed_negatives, negative_weights
from tests.models.golden import GOLDEN, arrays, load_case, pretrain_batch, region_order
from utils.batch import Losses

GIVEN = arrays(GOLDEN / "pretrain" / "inputs.npz")
EXPECTED = arrays(GOLDEN / "pretrain" / "expected.npz")


def assert_golden(actual: Tensor, expected: Tensor, mask: Tensor | None = None) -> None:
    error = (actual - expected).abs() / expected.abs().clamp(min=1)
    if mask is not None:
        error = error[mask]
    assert error.max() < 1e-5, f"off by {error.max():.2e}"


@pytest.fixture(scope="module")
def model():
    return load_case()


@pytest.fixture
def text(model) -> Encoded:
    return model.text(GIVEN["text_ids"], GIVEN["text_atts"].bool())


def region_concepts(model):
    images = model.vision(GIVEN["region_image"])
    return images, model.vision.regions(images, GIVEN["region_image_atts"][:, 1:].bool(), GIVEN["idx_to_group_img"])


def test_whole_images_equal_the_published_encoder(model):
    assert_golden(model.vision(GIVEN["image"]).tokens(), EXPECTED["vision_embeds"])


def test_regions_equal_the_published_encoder_in_one_pass(model):
    images, regions = region_concepts(model)
    assert_golden(regions.tokens(), EXPECTED["region_embeds"])
    assert_golden(images.tokens(), EXPECTED["region_fullimage_embeds_ungathered"])


def test_text_states_equal_the_published_ones(text):
    assert_golden(text.states, EXPECTED["text_embeds"], text.mask)


def test_text_without_image_skips_cross_attention(model, text):
    assert_golden(model.fusion(text).states, EXPECTED["text_embeds_12L_no_image"], text.mask)


@pytest.mark.parametrize("texts_per_image", [1, 3, None])
def test_fusion_equals_the_published_one_in_every_layout(model, text, texts_per_image):
    look = Look(model.fusion.remember(model.vision(GIVEN["image"])), torch.arange(len(text.mask)), texts_per_image)
    assert_golden(model.fusion(text, look).states, EXPECTED["fusion_embeds"], text.mask)


@pytest.mark.parametrize("texts_per_image", [7, None])
def test_fusion_sees_a_region_through_its_patch_mask(model, texts_per_image):
    _, regions = region_concepts(model)
    text = model.text(GIVEN["region_text_ids"], GIVEN["region_text_atts"].bool())
    look = Look(model.fusion.remember(regions), torch.arange(len(text.mask)), texts_per_image)
    assert_golden(model.fusion(text, look).states, EXPECTED["region_fusion_embeds"], text.mask)


def test_embeddings_similarity_and_sampling_weights(model, text):
    head = model.contrastive
    image_embed, text_embed = head.embed_image(model.vision(GIVEN["image"])), head.embed_text(text)
    assert_golden(image_embed, EXPECTED["image_feat"])
    assert_golden(text_embed, EXPECTED["text_feat"])
    similarity = head.similarity(image_embed, text_embed)
    assert_golden(similarity, EXPECTED["sim_over_temp"])
    allowed = allowed_negatives(torch.ones(len(similarity), dtype=torch.bool))
    assert_golden(negative_weights(similarity.t(), allowed), EXPECTED["hard_negative_weights_for_image"])
    assert_golden(negative_weights(similarity, allowed), EXPECTED["hard_negative_weights_for_text"])


def test_boxes_and_words(model, text):
    images = model.vision(GIVEN["region_image"])
    phrases = model.text(GIVEN["region_text_ids"], GIVEN["region_text_atts"].bool())
    boxes = model.predict_boxes(phrases, images, GIVEN["idx_to_group_img"], texts_per_image=len(phrases.mask))
    assert_golden(boxes, EXPECTED["region_pred_bbox"])
    masked = model.text(GIVEN["text_ids_masked"], GIVEN["text_atts"].bool())
    look = Look(model.fusion.remember(model.vision(GIVEN["image"])), torch.arange(len(masked.mask)), 1)
    logits = model.predict_words(model.fusion(masked, look), GIVEN["masked_pos"])
    assert_golden(logits, EXPECTED["image_mlm_logits"])


def whole_step(model) -> tuple[Losses, dict[str, Tensor]]:
    order = region_order(GIVEN)
    place = order.argsort()
    model.drawn = [
        GIVEN["image_neg_idx"],
        GIVEN["text_neg_idx"],
        place[GIVEN["region_image_neg_idx"]][order],
        place[GIVEN["region_text_neg_idx"]][order],
    ]
    batch = pretrain_batch(GIVEN)
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


def test_losses_and_the_gradient_of_every_parameter(model):
    model.zero_grad()
    terms, losses = whole_step(model)
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
    parameters = dict(model.named_parameters())
    checked = 0
    for name, norm in norms.items():
        ours = rename(name)
        if norm is None or norm < 1e-4:
            continue
        assert parameters[ours].grad is not None, ours
        assert abs(parameters[ours].grad.norm().item() - norm) < 1e-5 * max(1, norm), ours
        checked += 1
    assert checked > 0.9 * len(parameters) - len(model.text.encoder.layer) * 3 - len(model.fusion.layer) * 2
    for name, gradient in EXPECTED.items():
        if name.startswith("grad::"):
            assert_golden(parameters[rename(name.removeprefix("grad::"))].grad, gradient)


def test_boxes_of_whole_images_can_be_learned_too(model):
    batch = pretrain_batch(GIVEN)
    everything = torch.zeros_like(batch.regions.is_image)
    from dataclasses import replace

    model.drawn = [GIVEN["image_neg_idx"], GIVEN["text_neg_idx"], *[torch.arange(len(everything))] * 2]
    batch = replace(batch, regions=replace(batch.regions, is_image=everything))
    terms, counts = model(batch), model.counts(batch)
    for name in ("l1", "giou"):
        published = {"l1": "region_loss_bbox_isimage_none", "giou": "region_loss_giou_isimage_none"}[name]
        assert_golden(terms[f"regions/{name}"].total / counts[f"regions/{name}"], EXPECTED[published])


def test_text_only_masked_words(model):
    from utils.batch import IGNORE

    text = pretrain_batch(GIVEN).images.text
    from utils.batch import PretrainBatch, TextBatch

    model.streams = model.streams.model_copy(update={"texts": 1.0})
    batch = PretrainBatch(None, None, TextBatch(text, torch.ones(len(text.ids), dtype=torch.bool)))
    loss = model(batch)["texts/mlm"].total / model.counts(batch)["texts/mlm"]
    assert (text.labels != IGNORE).any()
    assert_golden(loss, EXPECTED["textonly_loss_mlm"])
