"""Question answering as a task: its metrics, the files for the evaluation server, and the learning rates of the decoder."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dataset.media.sources import ImageSource
from dataset.tasks.questions import Question
from engine.run_folder import RunFolder
from tasks import vqa
from tasks.answer_list import answer_list
from tasks.config import VQAConfig
from tasks.image_blind import IMAGE_BLIND, ImageBlindBaseline, unbeaten_baselines
from tasks.inference import evaluating
from tasks.vqa import VQATask, chance_accuracy, group_equal_images
from tests.conftest import tiny_run
from tests.messages import OneLine, naming
from utils.commands import call
from utils.config import load_config
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def overrides(scenes_folder) -> list[str]:
    return [
        *[each for each in tiny_run(scenes_folder) if each.startswith(("model.", "train.", "schedule."))],
        "init.checkpoint=null",
        "data.workers=0",
        f"data.train=[{{questions: {scenes_folder}/vqa_train.jsonl}}]",
        f"evaluation.answers={scenes_folder}/vqa_answers.json",
        f"evaluation.validation.questions={scenes_folder}/vqa_val.jsonl",
        f"evaluation.test.test.questions={scenes_folder}/vqa_test.jsonl",
    ]


def config_of(overrides: list[str], *more: str) -> VQAConfig:
    return load_config(ROOT / "configs/demo/vqa.yaml", [*overrides, *more], VQAConfig)


@pytest.fixture(scope="module")
def task(overrides) -> VQATask:
    return VQATask.build(config_of(overrides))


def randomise(task: VQATask) -> None:
    """Sets weights that are large enough for outputs to differ."""
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.5)


def predicting(task: VQATask, answers: list[str], monkeypatch) -> None:
    monkeypatch.setattr(task, "_predict", lambda items: answers[: len(items)])


def test_right_answers_score_one_and_chance_is_a_random_candidate(task, monkeypatch):
    items = task.held_out.test["test"]
    predicting(task, [item.answers[0] for item in items], monkeypatch)
    found = task.evaluate(items)
    for kind in ("", "yes/no: ", "number: ", "other: "):
        assert found[f"{kind}accuracy"].value == 1
        assert found[f"{kind}accuracy"].chance == pytest.approx(1 / len(task.candidates))
    assert (
        sum(found[f"{kind} questions"].value for kind in ("yes/no", "number", "other"))
        == found["questions"].value
        == len(items)
    )


def test_the_image_blind_baseline_gives_the_most_frequent_answer_to_each_wording(task, monkeypatch):
    items = list(task.held_out.test["test"])
    predicting(task, ["yes"] * len(items), monkeypatch)
    found = task.evaluate(task.held_out.test["test"])
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in task.training.items:
        counts[question.question][question.answers[0]] += 1
    known = [item for item in items if item.answer_type == "yes/no" and item.question in counts]
    assert known
    for item in known:
        answer = task.image_blind.answer(item)
        assert counts[item.question][answer] == max(counts[item.question].values())
    right = [task.image_blind.answer(item) == item.answers[0] for item in items if item.answer_type == "yes/no"]
    assert found[f"yes/no: {IMAGE_BLIND}"].value == pytest.approx(np.mean(right))
    assert IMAGE_BLIND in found.table()


def test_unknown_wordings_and_types_get_the_most_frequent_answer_of_a_larger_group():
    def asked(text: str, answer: str, kind: str) -> Question:
        return Question(0, text, ImageSource("a.jsonl:1", path=Path("a.png")), (answer,), kind)

    training = [asked("Is it red?", "no", "yes/no"), asked("is it blue?", "yes", "yes/no")]
    training += [asked("is it blue?", "yes", "yes/no"), *[asked("how many?", "2", "number")] * 3]
    held_out = [asked("is it red?", "", "yes/no"), asked("is it new?", "", "yes/no"), asked("what?", "", "other")]
    blind = ImageBlindBaseline(training, [held_out])
    assert [blind.answer(question) for question in held_out] == ["no", "yes", "2"]


def test_a_model_not_above_the_image_blind_baseline_causes_a_warning():
    values = {"questions": 800, "accuracy": 0.7, IMAGE_BLIND: 0.5}
    values |= {"yes/no: accuracy": 0.52, f"yes/no: {IMAGE_BLIND}": 0.51, "yes/no questions": 400}
    (sentence,) = unbeaten_baselines(values)
    assert sentence == OneLine("yes/no: accuracy 52.0%", "baseline of 51.0%")
    assert not unbeaten_baselines(values | {"yes/no: accuracy": 0.6})
    assert not unbeaten_baselines({"accuracy": 0.1, "questions": 5})


def test_the_chance_level_averages_the_score_of_each_candidate():
    answers = [["red"] * 10, ["red"] * 5 + ["blue"] * 5, ["x"] * 10]
    np.testing.assert_allclose(chance_accuracy(["red", "blue", "green", "pink"], answers), [1 / 4, 2 / 4, 0])


def test_a_split_with_few_answers_is_scored_by_exact_match_with_a_message(task, monkeypatch):
    """By VQA v2's rule no answer could be correct, because it needs three matching annotators in addition to the excluded one."""
    items = [replace(item, answers=item.answers[:1]) for item in task.held_out.test["test"]]
    predicting(task, [items[0].answers[0]] * len(items), monkeypatch)
    found = task.evaluate(items)
    right = np.mean([item.answers == items[0].answers for item in items])
    assert found["accuracy"].value == pytest.approx(right)
    assert found["accuracy"].chance == pytest.approx(1 / len(task.candidates))
    assert found.table("test").endswith("one of the answers)")
    whole = task.evaluate(task.held_out.test["test"])
    assert whole.table("test").endswith("; soft accuracy of VQA v2)")
    assert whole["accuracy"].as_json()["rule"] == "soft accuracy of VQA v2"


def test_a_split_without_answers_is_only_answered_for_the_server(overrides, scenes_folder, tmp_path):
    rows = [json.loads(line) for line in (scenes_folder / "vqa_test.jsonl").read_text().splitlines()]
    unanswered = tmp_path / "unanswered.jsonl"
    unanswered.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if "answer" not in k}) + "\n" for row in rows)
    )
    more = f"{{questions: {unanswered}, images: {scenes_folder}}}"
    task = VQATask.build(config_of(overrides, f"evaluation.test.server={more}"))
    folder = RunFolder(tmp_path)
    table = task.report(folder)
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert results["server"] == {"questions": {"value": len(rows), "unit": "count"}}
    assert "server: nothing to measure" in table
    assert f"{len(rows)} predictions in {tmp_path}/predictions_server.json" in table
    written = json.loads((tmp_path / "predictions_server.json").read_text())
    assert [row["question_id"] for row in written] == [row["question_id"] for row in rows]
    assert {row["answer"] for row in written} <= set(task.candidates)
    assert all(row.keys() == {"question_id", "answer"} for row in written)
    assert written == json.loads((tmp_path / "predictions_test.json").read_text()), (
        "with the same questions and weights"
    )


@pytest.mark.parametrize("fresh", [True, False])
def test_the_decoder_counts_as_newly_initialised_if_configured(overrides, scenes_folder, tmp_path, task, fresh):
    state = dict(task.model.state_dict())
    save_file(state, tmp_path / "model.safetensors")
    more = [f"init.checkpoint={tmp_path}/model.safetensors", f"optim.fresh_decoder={str(fresh).lower()}"]
    found = VQATask.build(config_of(overrides, *more)).fresh
    decoder = {name for name in state if name.startswith("decoder.")}
    assert found == (decoder if fresh else set())


def test_an_image_is_encoded_once_for_consecutive_questions_about_it(overrides, monkeypatch):
    task = VQATask.build(config_of(overrides, "evaluation.batch_size=10"))
    randomise(task)
    items, seen, states = task.held_out.test["test"][:20], [], []
    encode, ask = task.model.vision.forward, task.model.fuse_questions
    monkeypatch.setattr(task.model.vision, "forward", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    monkeypatch.setattr(task.model, "fuse_questions", lambda *given: states.append(ask(*given)) or states[-1])
    with evaluating(task.model, "fp32"):
        task._predict(items)
        shared = [row[mask] for part in states for row, mask in zip(part.padded(), part.packing.mask, strict=True)]
        assert sum(seen) < len(items)
        monkeypatch.setattr(vqa, "group_equal_images", lambda images: np.arange(len(images)))
        states.clear()
        task._predict(items)
    apart = [row[mask] for part in states for row, mask in zip(part.padded(), part.packing.mask, strict=True)]
    for one, other in zip(shared, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(shared[0], shared[8], atol=1e-2) or shared[0].shape != shared[8].shape


def test_an_image_that_is_repeated_later_is_encoded_again():
    pictures = [torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), torch.ones(3, 2, 2), torch.zeros(3, 2, 2)]
    assert group_equal_images(pictures).tolist() == [0, 0, 1, 2]


def test_the_ranking_and_the_number_of_candidates_affect_the_answers(overrides):
    """All answers are from the same weights. With one candidate, the likeliest first token decides, and the ranking "released"
    counts that token twice."""
    answers = {}
    for ranking, candidates in (("likelihood", 20), ("likelihood", 1), ("released", 20), ("released", 1)):
        task = VQATask.build(
            config_of(overrides, f"evaluation.ranking={ranking}", f"evaluation.candidates={candidates}")
        )
        randomise(task)
        with evaluating(task.model, "fp32"):
            answers[ranking, candidates] = task._predict(task.held_out.test["test"][:30])
    assert answers["likelihood", 1] == answers["released", 1]
    assert answers["likelihood", 20] != answers["likelihood", 1]
    assert answers["likelihood", 20] != answers["released", 20]


def test_impossible_settings_are_reported_before_training(overrides, tmp_path):
    with pytest.raises(UserError, match=naming("data.max_answer_tokens", "200", "64")):
        VQATask.build(config_of(overrides, "data.max_answer_tokens=200"))
    with pytest.raises(UserError, match=naming("evaluation.beam.max_length", "201", "64")):
        VQATask.build(config_of(overrides, "evaluation.beam.max_length=200"))
    beam = config_of(overrides, "evaluation.beam={beams: 5}").evaluation.beam
    assert (beam.beams, beam.max_length, beam.min_length, beam.no_repeat_ngram) == (5, 10, 1, 0)
    with pytest.raises(UserError, match=naming("evaluation.beam.sampling")):
        config_of(overrides, "evaluation.beam={beams: 1, sampling: {}}")
    with pytest.raises(UserError, match=naming("evaluation.answers", "gone.json")):
        VQATask.build(config_of(overrides, f"evaluation.answers={tmp_path}/gone.json"))
    (tmp_path / "bare.json").write_text(json.dumps(["yes", "\u200b"]))
    with pytest.raises(UserError, match=naming("evaluation.answers", "tokenizer")):
        VQATask.build(config_of(overrides, f"evaluation.answers={tmp_path}/bare.json"))


def test_a_candidate_list_is_built_from_the_training_answers(overrides, scenes_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "lists" / "answers.json"
    config = ["--config", str(ROOT / "configs/demo/vqa.yaml"), *overrides, f"evaluation.answers={out}"]
    assert call(answer_list, ["--at-least", "1", *config], "python -m tasks.answer_list") == 0
    assert json.loads(out.read_text()) == json.loads((scenes_folder / "vqa_answers.json").read_text())
    assert OneLine("100.0%") in capsys.readouterr().out.splitlines()
    assert call(answer_list, ["--at-least", "100000", *config], "python -m tasks.answer_list") == 2
    assert capsys.readouterr().err == OneLine("error: --at-least 100000")
