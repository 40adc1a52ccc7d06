"""Answers written by beam search: the cache, the likelihood, and the search for the best answer."""

from __future__ import annotations

import itertools

import pytest
import torch

from batches.base import IGNORE
from models.config import AnswerBeamConfig, DecodingConfig
from models.core.packing import PackedTexts, Packing
from models.inference.answer_ranking import AnswerTree, rank_answers
from models.tasks.vqa import AnswerGenerator, left_to_right
from tests.models.test_golden_vqa import naive_scores, small_model

CLS, SEP, WORDS = 2, 3, range(5, 9)


def fused_questions() -> PackedTexts:
    packing = Packing.of(torch.tensor([6, 2, 4]), 6)
    return PackedTexts(packing.pack(torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(1))), packing)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@torch.no_grad()
def test_a_step_returns_the_logits_for_the_whole_answer_so_far(family):
    model = small_model(family=family, pad_id=1 if family == "roberta" else 0)
    questions = model.decoder.project_texts(fused_questions())
    ids = torch.randint(5, 40, (6, 4), generator=torch.Generator().manual_seed(2))
    generator = AnswerGenerator(model.decoder, questions)
    found = [generator.start(ids[::2, :1])]  # two hypotheses per question from the first step on
    sources = torch.arange(3).repeat_interleave(2)
    for position in range(1, 4):
        found.append(generator.step(ids[:, position], sources))
        sources = torch.arange(6)
    ids[1::2, 0] = ids[::2, 0]
    states = model.decoder.decode(ids, left_to_right(torch.ones_like(ids).bool()), questions)
    expected = model.decoder.logits(states)
    torch.testing.assert_close(found[0], expected[::2, 0], atol=1e-5, rtol=1e-5)
    for position in range(1, 4):
        torch.testing.assert_close(found[position], expected[:, position], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_with_enough_hypotheses_it_writes_the_likeliest_of_all_short_answers(monkeypatch):
    """Only a few words and the end token are possible here, so that all answers can be enumerated."""
    model = small_model(seed=3)
    allowed = torch.full((40,), -torch.inf)
    allowed[[SEP, *WORDS]] = 0
    logits = model.decoder.logits
    monkeypatch.setattr(model.decoder, "logits", lambda states: logits(states) + allowed)
    listed = [[CLS, *words, SEP] for size in (1, 2, 3) for words in itertools.product(WORDS, repeat=size)]
    questions = fused_questions()
    config = DecodingConfig(beams=40, max_length=4, min_length=1, no_repeat_ngram=0)
    written = model.generate(questions, CLS, SEP, config)
    assert written.ended.any()
    for row in range(3):
        scores, _ = naive_scores(
            model, questions.select(torch.tensor([row]), length=int(questions.packing.lengths[row])), listed
        )
        tokens = [token for token in written.tokens[row].tolist() if token != IGNORE]
        if written.ended[row]:
            assert [CLS, *tokens, SEP] == listed[int(scores.argmax())]
            assert written.score[row].item() == pytest.approx(scores.max().item(), abs=1e-4)
        else:
            assert written.score[row].item() > scores.max().item()


@torch.no_grad()
def test_written_answers_and_ranked_candidates_have_the_same_likelihood():
    model = small_model(seed=3)
    questions = fused_questions()
    written = model.generate(questions, CLS, SEP, AnswerBeamConfig())
    for row, ids in enumerate(written.tokens.tolist()):
        if written.ended[row] and ids[0] != IGNORE:
            alone = questions.select(torch.tensor([row]), length=int(questions.packing.lengths[row]))
            answer = [CLS, *(token for token in ids if token != IGNORE), SEP]
            scores, _ = naive_scores(model, alone, [answer])
            assert written.score[row].item() == pytest.approx(scores.item(), abs=1e-4)
            other = [CLS, 30, 31, SEP]
            best = rank_answers(model.decoder, alone, AnswerTree([answer, other]), 2, "likelihood")
            assert best.ids[0, 0] == 0
