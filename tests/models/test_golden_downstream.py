"""The authors' results for retrieval, visual reasoning and grounding, through the real loading code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from batches.grounding import GroundingBatch
from batches.losses import Losses
from batches.nlvr import StatementBatch
from batches.retrieval import RetrievalBatch
from batches.texts import Text
from metrics.retrieval import ranks_of_first_match, retrieval_recalls
from models.core.matching import allowed_negatives, negative_weights
from models.core.packing import PackedTexts
from models.inference.reranking import TextBank, score_each, score_pairs
from models.tasks.grounding import GroundingModel
from models.tasks.nlvr import NLVRModel
from models.tasks.retrieval import RetrievalModel
from tests.devices import copied_to, moved
from tests.models.golden import GOLDEN, arrays, assert_golden, load_model, manifest, with_drawn_negatives


def case(name: str, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs of a case on the device, and the expected outputs."""
    return moved(arrays(GOLDEN / name / "inputs.npz"), device), arrays(GOLDEN / name / "expected.npz")


def text_of(given: dict[str, Tensor], rows: int | None = None) -> Text:
    return Text(given["text_ids"][:rows], given["text_atts"][:rows].bool())


def means(model, batch) -> dict[str, Tensor]:
    terms: Losses = model(batch)
    counts = model.counts(batch)
    return {name: term.total / counts[name] for name, term in terms.items()}


@pytest.fixture(scope="module")
def loaded():
    return load_model("retrieval", with_drawn_negatives(RetrievalModel))


@pytest.fixture
def retrieval(loaded, device):
    return copied_to(device, loaded)


def retrieval_batch(given: dict[str, Tensor], group: Tensor) -> RetrievalBatch:
    rows = len(given["image"])
    valid = torch.ones(rows, dtype=torch.bool, device=group.device)
    return RetrievalBatch(given["image"], text_of(given, rows), group, valid)


def test_retrieval_losses_equal_the_published_ones(retrieval, device):
    given, expected = case("retrieval", device)
    retrieval.matching_head.drawn = [given["train_image_neg_idx"], given["train_text_neg_idx"]]
    losses = means(retrieval, retrieval_batch(given, given["train_idx"]))
    assert_golden(losses["contrastive"], expected["loss_itc_idx"])
    assert_golden(losses["matching"], expected["loss_itm"])


def test_retrieval_loss_without_groups_equals_the_published_one(retrieval, device):
    given, expected = case("retrieval", device)
    retrieval.matching_head.drawn = [given["train_image_neg_idx"], given["train_text_neg_idx"]]
    losses = means(retrieval, retrieval_batch(given, torch.arange(5, device=device)))
    assert_golden(losses["contrastive"], expected["loss_itc_noidx"])


def test_captions_of_one_image_are_never_negatives(retrieval, device):
    given, expected = case("retrieval", device)
    valid = torch.ones(5, dtype=torch.bool, device=device)
    head = retrieval.contrastive
    with torch.no_grad():
        text = text_of(given, 5)
        similarity = head.similarity(
            head.embed_image(retrieval.vision(given["image"])), head.embed_text(*retrieval.text([text]))
        )
    allowed = allowed_negatives(valid, given["train_idx"], "positive")
    assert_golden(negative_weights(similarity.t(), allowed), expected["hard_negative_weights_for_image"])
    assert_golden(negative_weights(similarity, allowed), expected["hard_negative_weights_for_text"])


@torch.no_grad()
def test_retrieval_embeddings_equal_the_published_ones(retrieval, device):
    given, expected = case("retrieval", device)
    text = text_of(given)
    image_embed = retrieval.contrastive.embed_image(retrieval.vision(given["image"]))
    text_embed = retrieval.contrastive.embed_text(*retrieval.text([text]))
    assert_golden(image_embed, expected["image_feat"])
    assert_golden(text_embed, expected["text_feat"])
    assert_golden(image_embed @ text_embed.t(), expected["sims"])


@pytest.mark.parametrize("tokens_per_call", [8192, 20, 1])
@torch.no_grad()
def test_reranking_scores_every_pair_as_published_in_any_batches(retrieval, tokens_per_call, device):
    given, expected = case("retrieval", device)
    text, images = text_of(given), retrieval.vision(given["image"])
    bank = TextBank.of(retrieval.text([Text(text.ids[part], text.mask[part]) for part in (slice(3), slice(3, None))]))
    requested = [torch.randperm(8, generator=torch.Generator().manual_seed(image)) for image in range(5)]
    scores = score_pairs(
        retrieval.fusion, retrieval.matching_head, images, requested, bank, tokens_per_call=tokens_per_call
    )
    for image, (texts, found) in enumerate(zip(requested, scores, strict=True)):
        assert_golden(found[:, 1], expected["itm_score_all_pairs"][image, texts])


def test_recalls_equal_the_published_ones():
    given, facts = arrays(GOLDEN / "retrieval" / "inputs.npz"), manifest("retrieval")["recall_eval"]
    image_of_text = torch.tensor([facts["txt2img"][str(text)] for text in range(8)])
    matches = (torch.arange(5).unsqueeze(1) == image_of_text).numpy()
    recalls = retrieval_recalls(
        ranks_of_first_match(given["eval_i2t"].numpy(), matches),
        ranks_of_first_match(given["eval_t2i"].numpy(), matches.T),
    )
    published = {
        "image to text R@1": "txt_r1",
        "image to text R@5": "txt_r5",
        "image to text R@10": "txt_r10",
        "image to text mean": "txt_r_mean",
        "text to image R@1": "img_r1",
        "text to image R@5": "img_r5",
        "text to image R@10": "img_r10",
        "text to image mean": "img_r_mean",
        "mean recall": "r_mean",
    }
    for ours, theirs in published.items():
        np.testing.assert_allclose(100 * recalls[ours], facts["result"][theirs])


@torch.no_grad()
def test_visual_reasoning_equals_the_published_results(device):
    given, expected = case("nlvr", device)
    model = load_model("nlvr", NLVRModel).to(device)
    batch = StatementBatch(
        given["image"], text_of(given), given["targets"], torch.ones(3, dtype=torch.bool, device=device)
    )
    assert_golden(model.classify(batch.pixels, batch.text), expected["logits"])
    assert_golden(means(model, batch)["classes"], expected["loss"])


@torch.no_grad()
def test_grounding_equals_the_published_results(device):
    given, expected = case("grounding", device)
    model = load_model("grounding", GroundingModel).to(device)
    valid = torch.ones(3, dtype=torch.bool, device=device)
    batch = GroundingBatch(given["image"], text_of(given), given["target_bbox"].unsqueeze(1), valid.unsqueeze(1), valid)
    assert_golden(model.locate(batch.pixels, batch.text), expected["coords"])
    losses = means(model, batch)
    assert_golden(losses["l1"], expected["loss_bbox"])
    assert_golden(losses["giou"], expected["loss_giou"])


@torch.no_grad()
def test_texts_in_a_bank_are_stored_without_padding(retrieval, device):
    given = case("retrieval", device)[0]
    text = text_of(given)
    (encoded,) = retrieval.text([text])
    order = torch.tensor([6, 0, 3])
    found, states = TextBank.of([encoded]).select(order), encoded.padded()
    assert found.packing.length == int(text.mask[order.to(device)].sum(dim=1).max())
    assert len(found.states) == int(text.mask[order.to(device)].sum())
    for row, source in enumerate(order):
        assert torch.equal(found.padded()[row][found.packing.mask[row]], states[source][text.mask[source]])


@torch.no_grad()
def test_a_reordered_bank_gives_the_same_texts_at_other_indices(retrieval, device):
    bank, order = TextBank.of(retrieval.text([text_of(case("retrieval", device)[0])])), torch.tensor([5, 2, 7])
    found, expected = bank.reordered(order).select(torch.tensor([2, 0])), bank.select(torch.tensor([7, 5]))
    assert torch.equal(found.states, expected.states)
    assert torch.equal(found.packing.lengths, expected.packing.lengths)


@torch.no_grad()
def test_regions_are_reranked_with_their_patch_masks(retrieval, device):
    given = case("retrieval", device)[0]
    (texts,), images = retrieval.text([text_of(given)]), retrieval.vision(given["image"])
    masks = torch.arange(images.patches.shape[1], device=device) < torch.tensor([[1], [5], [3]], device=device)
    regions = retrieval.vision.regions(images, masks, torch.tensor([4, 0, 0], device=device))
    requested = [torch.tensor(rows) for rows in ([3, 1], [0, 2, 7], [6])]
    rows_of_regions = retrieval.fusion.project_regions(regions, images)[0].split([1] * len(requested))

    def score(region: int, candidates: PackedTexts) -> torch.Tensor:
        return retrieval.matching_head(retrieval.fusion.cls(candidates, rows_of_regions[region]))[:, 1]

    found = score_each(score, requested, TextBank.of([texts]))
    tokens, seen = regions.states(), F.pad(masks, (1, 0), value=True)
    for region, (rows, scores) in enumerate(zip(requested, found, strict=True)):
        memory = retrieval.fusion.project(tokens[region : region + 1], seen[region : region + 1])
        cls = retrieval.fusion.cls(texts.select(rows.to(device)), memory)
        assert_golden(scores, retrieval.matching_head(cls)[:, 1])
