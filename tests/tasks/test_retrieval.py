"""Retrieval metrics: both stages are compared with scoring every pair separately, and with chance."""

from __future__ import annotations

from copy import copy

import numpy as np
import pytest
import torch

from dataset.formats.captioned import CaptionedImages
from dataset.media.views import EvaluationView
from dataset.text.processors import PlainTextProcessor, clean_caption
from metrics.retrieval import chance_recalls
from tasks import two_stage
from tasks.config import RetrievalConfig
from tasks.evaluation import Evaluation
from tasks.inference import evaluating
from tasks.retrieval import RetrievalTask
from tests.messages import OneLine, naming
from tests.tasks.painted import ROOT, SIZE
from utils.config import load_config
from utils.errors import UserError


@pytest.fixture(scope="module")
def retrieval(overrides) -> RetrievalTask:
    """A model whose scores are so far apart that the order of summation does not matter."""
    task = RetrievalTask.build(
        load_config(ROOT / "configs/demo/retrieval.yaml", overrides("retrieval"), RetrievalConfig)
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return task


@pytest.fixture(scope="module")
def items(retrieval) -> CaptionedImages:
    """All 7 images of the test split, with 13 captions."""
    return retrieval.held_out.test["test"]


def evaluated(
    task: RetrievalTask,
    items: CaptionedImages,
    candidates: int,
    batch_size: int,
    score: str = "matching",
    weight: float = 1.0,
) -> Evaluation:
    changes = {"candidates": candidates, "batch_size": batch_size, "score": score, "matching_weight": weight}
    sizes = task.config.evaluation.model_copy(update=changes)
    other = copy(task)
    other.config = task.config.model_copy(update={"evaluation": sizes})
    return other.evaluate(items)


@pytest.fixture(scope="module")
def every_pair(every_score) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and matching logits (I, T), with each image and each caption processed separately."""
    cosines, logits = every_score
    return cosines, logits[..., 1]


@pytest.fixture(scope="module")
def every_score(retrieval, items) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (I, T) and both logits (I, T, 2)."""
    model = retrieval.model
    processor = PlainTextProcessor(retrieval.tokenizer, retrieval.config.data.text)
    view = EvaluationView(SIZE, 10**6)
    shape = len(items.images), len(items.captions)
    cosines, logits = np.zeros(shape), np.zeros((*shape, 2))
    with evaluating(model, "fp32"):
        for i, t in np.ndindex(shape):
            concepts = model.vision(view(items.images[i])[None])
            text = model.text([processor.encode_plain([clean_caption(items.captions[t], 40)])])[0]
            cosines[i, t] = model.contrastive.embed_image(concepts)[0] @ model.contrastive.embed_text(text)[0]
            cls = model.fusion.cls(text, model.fusion.project_concepts(concepts))
            logits[i, t] = model.matching_head(cls)[0]
    for scores in (cosines, logits[..., 1]):
        assert np.diff(np.sort(scores.ravel())).min() > 1e-6, "with ties, this test would be random"
    return cosines, logits


def recalls_of(cosines: np.ndarray, logits: np.ndarray, owner: np.ndarray, candidates: int) -> dict[str, float]:
    """Recalls after re-ranking, computed pair by pair: of each query's best candidates by cosine, the ones with the best logits
    are first."""
    found: dict[str, float] = {}
    for direction, near, exact, is_true in (
        ("image to text", cosines, logits, lambda image, text: owner[text] == image),
        ("text to image", cosines.T, logits.T, lambda text, image: owner[text] == image),
    ):
        for k in (1, 5, 10):
            hits = 0
            for query in range(len(near)):
                chosen = sorted(range(near.shape[1]), key=lambda column: -near[query, column])[:candidates]
                ranked = sorted(chosen, key=lambda column: -exact[query, column])
                hits += any(is_true(query, candidate) for candidate in ranked[:k])
            found[f"{direction} R@{k}"] = hits / len(near)
        found[f"{direction} mean"] = sum(found[f"{direction} R@{k}"] for k in (1, 5, 10)) / 3
    found["mean recall"] = (found["image to text mean"] + found["text to image mean"]) / 2
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("candidates", [1, 3, 6, 100])
def test_recalls_equal_scoring_every_pair_separately(retrieval, items, every_pair, candidates, batch_size):
    cosines, logits = every_pair
    with evaluating(retrieval.model, "fp32"):
        found = evaluated(retrieval, items, candidates, batch_size)
    for name, value in recalls_of(cosines, logits, items.image_of_caption, candidates).items():
        assert found[name].value == pytest.approx(value), name
    # With cosines only, there are at least ten candidates if the split has them, even if fewer are re-ranked.
    for name, value in recalls_of(cosines, cosines, items.image_of_caption, 100).items():
        assert found[f"{name} (cosine)"].value == pytest.approx(value), name


@pytest.mark.parametrize(("candidates", "weight"), [(3, 1.0), (6, 1.0), (100, 1.0), (100, 0.3)])
def test_the_sum_adds_the_cosine_over_the_temperature_to_the_matching_margin(
    retrieval, items, every_score, candidates, weight
):
    cosines, logits = every_score
    summed = weight * (logits[..., 1] - logits[..., 0]) + cosines / retrieval.model.contrastive.temperature.item()
    with evaluating(retrieval.model, "fp32"):
        found = evaluated(retrieval, items, candidates, 3, "sum", weight)
    expected = recalls_of(cosines, summed, items.image_of_caption, candidates)
    assert expected != recalls_of(cosines, logits[..., 1], items.image_of_caption, candidates)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value), name


@pytest.mark.parametrize("score", ["cosine", "matching", "sum"])
def test_auto_ranks_a_split_by_the_score_that_is_best_on_validation_pairs(retrieval, items, monkeypatch, score):
    measured = []
    monkeypatch.setattr(two_stage.Rankings, "best_score", lambda self, owner: (measured.append(len(owner)), score)[1])
    with evaluating(retrieval.model, "fp32"):
        found = evaluated(retrieval, items, 3, 3, "auto")
        expected = evaluated(retrieval, items, 3, 3, score)
    assert measured == [len(retrieval.held_out.validation.captions)]
    with evaluating(retrieval.model, "fp32"):
        again = evaluated(retrieval, retrieval.held_out.validation, 3, 3, "auto")
    assert again.chosen_score == score and len(measured) == 2
    assert found.values() == expected.values() and found.chosen_score == score
    assert OneLine("chosen", "validation") in found.table().splitlines()
    assert ("mean recall (cosine)" in found.values()) == (score != "cosine")


def test_the_best_score_has_the_best_recall_and_is_the_simplest_of_equals(every_score, items):
    cosines, logits = every_score
    owner = items.image_of_caption
    order, texts = np.argsort(-cosines, axis=1), np.argsort(-cosines.T, axis=1)
    cosine = two_stage.Stage(
        two_stage.Candidates(order, np.take_along_axis(cosines, order, 1)),
        two_stage.Candidates(texts, np.take_along_axis(cosines.T, texts, 1)),
    )

    def ranked_with(logits: np.ndarray) -> str:
        both = (
            np.take_along_axis(logits, order[..., None], 1),
            np.take_along_axis(logits.transpose(1, 0, 2), texts[..., None], 1),
        )
        return two_stage.Rankings(cosine, both, 0.07).best_score(owner)

    right = np.zeros_like(logits)
    right[owner, np.arange(len(owner)), 1] = 50
    assert ranked_with(right) == "matching"
    assert ranked_with(np.zeros_like(logits)) == "cosine"


def test_in_half_precision_the_first_stage_compares_cosines_in_full_precision(retrieval, items):
    """In bfloat16, cosines near 1 are rounded to multiples of 1/256, and candidates would be a matter of chance."""
    ours = two_stage.TwoStageRetrieval(retrieval.model, retrieval.text, candidates=3, batch_size=3)
    steps = 1 - torch.arange(13) / 2000
    keys = torch.stack([steps, (1 - steps**2).sqrt()], dim=1)
    with evaluating(retrieval.model, "bf16"):
        nearest = ours._nearest(torch.tensor([[1.0, 0.0]]), keys)
        found = evaluated(retrieval, items, 3, 3)
    assert nearest.ids.tolist() == [list(range(10))]
    assert nearest.scores.dtype == np.float32
    assert 0 <= found["mean recall"].value <= 1


def test_re_ranking_matters_in_this_test(every_pair, items):
    """Otherwise this test would pass without the fusion encoder or without the candidates."""
    cosines, logits = every_pair
    tables = [recalls_of(cosines, logits, items.image_of_caption, k) for k in (1, 3, 6, 100)]
    tables.append(recalls_of(cosines, cosines, items.image_of_caption, 100))
    assert len({tuple(each.values()) for each in tables}) == 5


@pytest.mark.parametrize("candidates", [1, 3, 6, 100])
def test_a_pair_needed_in_both_directions_is_scored_once(retrieval, items, every_pair, candidates, monkeypatch):
    cosines, _ = every_pair
    scored: list[int] = []
    encoded: list[int] = []
    score_pairs = two_stage.score_pairs

    def counting(fusion, head, images, texts, bank):
        scored.extend(len(each) for each in texts)
        assert all(len(set(each.tolist())) == len(each) for each in texts)
        return score_pairs(fusion, head, images, texts, bank)

    monkeypatch.setattr(two_stage, "score_pairs", counting)
    hook = retrieval.model.vision.register_forward_hook(lambda module, inputs, output: encoded.append(len(inputs[0])))
    with evaluating(retrieval.model, "fp32"):
        evaluated(retrieval, items, candidates, 3)
    hook.remove()
    by_image = {(i, int(t)) for i, row in enumerate(cosines) for t in np.argsort(-row)[:candidates]}
    by_text = {(int(i), t) for t, row in enumerate(cosines.T) for i in np.argsort(-row)[:candidates]}
    assert by_image & by_text
    assert scored == [sum(1 for pair in by_image | by_text if pair[0] == image) for image in range(7)]
    assert encoded == [3, 3, 1], "each image must be encoded once"


def test_the_chance_level_is_the_recall_of_a_random_order():
    """Compares with 20,000 random orders of 13 captions of five images. Three standard errors are below 0.011."""
    owner = np.repeat(np.arange(5), [1, 2, 3, 1, 6])
    rng = np.random.default_rng(0)
    hits = np.zeros((2, 3))
    trials = 20_000
    for _ in range(trials):
        texts, images = owner[rng.permutation(13)], rng.permutation(5)
        for column, k in enumerate((1, 5, 10)):
            hits[0, column] += len(set(texts[:k])) / 5
            hits[1, column] += np.isin(owner, images[:k]).mean()
    found = chance_recalls(np.bincount(owner), 13)
    for direction, row in zip(("image to text", "text to image"), hits / trials, strict=True):
        for k, value in zip((1, 5, 10), row, strict=True):
            assert found[f"{direction} R@{k}"] == pytest.approx(value, abs=0.011)
        assert found[f"{direction} mean"] == pytest.approx(row.mean(), abs=0.011)
    assert found["mean recall"] == pytest.approx(hits.mean() / trials, abs=0.011)


def test_chance_levels_have_the_names_of_the_metrics_and_reach_one_with_few_captions():
    found = chance_recalls(np.array([1, 1, 2]), 4)
    assert found["image to text R@1"] == pytest.approx((1 / 4 + 1 / 4 + 2 / 4) / 3)
    assert found["text to image R@1"] == pytest.approx(1 / 3)
    assert found["image to text R@5"] == found["image to text R@10"] == found["text to image R@5"] == 1
    assert found.keys() == recalls_of(np.eye(3), np.eye(3), np.arange(3), 3).keys()


def test_a_full_disk_is_reported_with_its_remedy():
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(UserError, match=naming("image states", "TMPDIR")):
        two_stage._append(file, torch.ones(1, 3, 4))
