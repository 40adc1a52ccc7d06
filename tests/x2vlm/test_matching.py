"""The texts of an image are ordered by the score that the model's run configured: the matching probability, or the matching
head's log-odds plus the cosine."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from engine.run_files import CONFIG_FILE
from run import main
from tasks.evaluation import Evaluation, Metric, write_evaluations
from x2vlm import Model
from x2vlm.matching import matches
from x2vlm.runtime import TorchRuntime
from x2vlm.settings import settings_of_run

TEXTS = ["a star", "a red circle", "two squares", "a blue cross", "nothing"]


def ranking_by(score: str, plain: Model, weight: float = 1.0) -> Model:
    evaluation = plain.settings.evaluation.model_copy(update={"score": score, "matching_weight": weight})
    settings = plain.settings.model_copy(update={"evaluation": evaluation})
    return Model(TorchRuntime(plain.network), plain.tokenizer, settings, origin=score)


@pytest.fixture
def summing(model) -> Model:
    return ranking_by("sum", model("pretrain"))


def test_texts_are_ordered_by_the_cosine(model, data):
    chosen, image = ranking_by("cosine", model("pretrain")), data / "images/4.png"
    cosines = (chosen.embed_images(image) @ chosen.embed_texts(TEXTS).T)[0]
    [row] = matches(chosen, [chosen.read(image)], TEXTS)
    assert [each.text for each in row] == [TEXTS[index] for index in np.argsort(-cosines)]
    assert all(each.cosine is not None and each.sum is None for each in row)


@pytest.mark.parametrize("chosen", ["cosine", "sum", None])
def test_the_score_that_a_run_chose_is_read_from_its_evaluation(model, tmp_path, caplog, chosen):
    folder = ranking_by("sum", model("pretrain")).save(tmp_path / "saved")
    config = folder / CONFIG_FILE
    config.write_text(config.read_text().replace("score: sum", "score: auto"))
    if chosen is not None:
        write_evaluations(folder, {"held-out": Evaluation((Metric("R@1", 0.5),), chosen_score=chosen)})
    settings, _ = settings_of_run(config)
    assert settings.evaluation.score == (chosen or "matching")
    assert ("evaluation.score is auto" in caplog.text) == (chosen is None)


def test_texts_are_ordered_by_the_matching_probability(model, data):
    plain, image = model("pretrain"), data / "images/4.png"
    [row] = matches(plain, [plain.read(image)], TEXTS)
    expected = dict(zip(TEXTS, plain.match(image, TEXTS)[0].tolist(), strict=True))
    assert {each.text: each.probability for each in row} == pytest.approx(expected)
    assert [each.text for each in row] == sorted(TEXTS, key=lambda text: -expected[text])
    assert all(each.cosine is None and each.sum is None for each in row)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_texts_are_ordered_by_log_odds_and_cosine(model, data, weight):
    summing = ranking_by("sum", model("pretrain"), weight)
    images = [data / f"images/{number}.png" for number in (3, 4)]
    probabilities = summing.match(images, TEXTS)
    cosines = summing.embed_images(images) @ summing.embed_texts(TEXTS).T
    both = weight * summing.margins(images, TEXTS) + cosines / summing.network.contrastive.temperature.item()
    found = matches(summing, summing.views(images), TEXTS)
    for row, expected, cosine in zip(found, both, cosines, strict=True):
        order = np.argsort(-expected)
        assert [each.text for each in row] == [TEXTS[index] for index in order]
        np.testing.assert_allclose([each.sum for each in row], expected[order], rtol=1e-5)
        np.testing.assert_allclose([each.cosine for each in row], cosine[order], atol=1e-5)
    assert any(
        np.argsort(-expected).tolist() != np.argsort(-row).tolist()
        for expected, row in zip(both, probabilities, strict=True)
    )


@pytest.mark.parametrize("score", ["matching", "sum"])
def test_confident_matches_are_distinguished(model, summing, data, score):
    """From a margin of 17 on, the float32 probability is 1. All log-odds computed from it would be equal, and the texts would
    stay in their order."""
    chosen = summing if score == "sum" else model("pretrain")
    head, image = chosen.network.matching_head, data / "images/4.png"
    with torch.no_grad():
        bias = dict(head.named_parameters())[[name for name, _ in head.named_parameters() if name.endswith("bias")][-1]]
        kept = bias.clone()
        bias += torch.tensor([-40.0, 40.0])
    try:
        margins = chosen.margins(image, TEXTS)[0].astype(np.float64)
        [row] = matches(chosen, [chosen.read(image)], TEXTS)
    finally:
        with torch.no_grad():
            bias.copy_(kept)
    assert margins.min() > 17 and (chosen.match(image, TEXTS) < 1).all()
    ranking = margins
    if score == "sum":
        cosines = (chosen.embed_images(image) @ chosen.embed_texts(TEXTS).T)[0]
        ranking = margins + cosines / chosen.network.contrastive.temperature.item()
        np.testing.assert_allclose([each.sum for each in row], np.sort(ranking)[::-1], rtol=1e-6)
    assert [each.text for each in row] == [TEXTS[index] for index in np.argsort(-ranking)]


def test_the_command_names_the_scores_if_there_are_several(summing, data, tmp_path, capsys):
    folder = summing.save(tmp_path / "saved")
    assert "score: sum" in (folder / CONFIG_FILE).read_text()
    argv = [
        "predict",
        "match",
        "--model",
        str(folder),
        "--image",
        str(data / "images/4.png"),
        "--text",
        "a star",
        "--text",
        "a red circle",
    ]
    assert main(argv) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("4.png  (sum, probability, cosine)") and len(lines) == 2
    assert float(lines[0].split()[0]) >= float(lines[1].split()[0])
    assert main([*argv, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert [set(one) for one in scores] == [{"text", "score", "cosine", "sum"}] * 2
    assert [one["text"] for one in scores] == ["a star", "a red circle"]
