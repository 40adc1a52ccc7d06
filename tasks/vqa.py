"""Question answering as a task: fine-tuning on weighted answers, soft accuracy of the likeliest candidate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.finetune import EvaluationView, cleaned_question
from dataset.text import PlainTextProcessor, TextLimits
from dataset.vqa import (
    Question,
    QuestionsConfig,
    VQABatches,
    VQADataConfig,
    read_candidates,
    read_questions,
)
from engine.checkpoint import Checkpoint
from metrics.vqa import normalize_answer, soft_accuracy
from models.answer_ranking import AnswerTree, Ranking, rank_answers
from models.vqa import VQAModel, VQAModelConfig
from optim import OptimConfig
from tasks.common import FineTuneConfig, FineTuneTask, HeldOutConfig
from utils.batch import Text
from utils.errors import UserError


class VQAOptimConfig(OptimConfig):
    """Also whether the decoder counts as fresh."""

    fresh_decoder: bool = Field(
        True,
        description="the answer decoder trains at lr * lr_mult though it starts as a copy (released: large_lr_for_dec)",
    )


class VQAEvaluationConfig(HeldOutConfig[QuestionsConfig]):
    """Splits without answers are answered for the evaluation server and not measured."""

    answers: str = Field(description="JSON list of the candidate answers")
    candidates: int = Field(
        128, ge=1, description="k: candidates with the likeliest first tokens, which are scored in full"
    )
    ranking: Ranking = Field(
        "likelihood", description="likelihood: of the whole answer; released: its first token counted twice"
    )


class VQAConfig(FineTuneConfig):
    """A question answering run."""

    task: Literal["vqa"] = "vqa"
    model: VQAModelConfig
    data: VQADataConfig
    optim: VQAOptimConfig
    evaluation: VQAEvaluationConfig


class VQATask(FineTuneTask[VQAConfig, VQAModel]):
    """Model, data and measures of a question answering run."""

    measure = "accuracy"
    make_batches = VQABatches

    commonest: dict[str, str] | None = None
    """The most frequent training answer by type of answer; None where an evaluation finds no training data."""

    def __init__(self, config: VQAConfig, checkpoint: Checkpoint | None = None, *, trains: bool = True):
        self.candidates = read_candidates(config.evaluation.answers, "evaluation.answers")
        super().__init__(config, checkpoint, trains=trains)
        self.tree = self._tree()
        if not trains:
            self.look_for_training_data()

    @staticmethod
    def build_model(config: VQAConfig, vocab_size: int | None) -> VQAModel:
        return VQAModel(config.model, vocab_size)

    @staticmethod
    def read_split(split: QuestionsConfig, key: str) -> list[Question]:
        return read_questions(split, key, 0.0, answered=False)

    def batches(self) -> VQABatches:
        batches = super().batches()
        assert isinstance(batches, VQABatches)
        self.commonest = most_frequent_answers(batches.items)
        return batches

    def measures(self, items: list[Question]) -> dict[str, float]:
        """Soft accuracies, overall and by type of answer. Chance: a candidate drawn at random. Beside them, what the most
        frequent training answer (of the type) gives everywhere."""
        predicted = [self.candidates[place] for place in self._predict(items)]
        self.predictions = [
            {"question_id": item.question_id, "answer": answer} for item, answer in zip(items, predicted, strict=True)
        ]
        results: dict[str, float] = {"questions": len(items)}
        if not all(item.answers for item in items):
            return results
        answers = [item.answers for item in items]
        found, chance = accuracies(predicted, answers), chance_accuracy(self.candidates, answers)
        for name, chosen in by_answer_type([item.answer_type for item in items]).items():
            prefix = f"{name}: " if name else ""
            results[f"{prefix}accuracy"] = float(found[chosen].mean())
            results[f"{prefix}accuracy/chance"] = float(chance[chosen].mean())
            if self.commonest is not None:
                guess = self.commonest.get(name, self.commonest[""])
                always = [soft_accuracy(guess, answers[row]) for row in np.flatnonzero(chosen)]
                results[f'{prefix}always "{guess}"'] = float(np.mean(always))
            if name:
                results[f"{name} questions"] = int(chosen.sum())
        return results

    def _load(self, checkpoint: Checkpoint | None) -> set[str]:
        fresh = super()._load(checkpoint)
        if self.config.optim.fresh_decoder:
            fresh |= {name for name, _ in self.model.named_parameters() if name.startswith("decoder.")}
        return fresh

    def _check_lengths(self) -> None:
        super()._check_lengths()
        most, longest = self.config.data.max_answer_tokens, self.model.decoder.embeddings.arch.longest_text
        if most > longest:
            raise UserError(
                f"data.max_answer_tokens is {most}, but the decoder has positions for {longest} tokens; lower it"
            )

    def _tree(self) -> AnswerTree:
        limits = TextLimits(max_tokens=self.config.data.max_answer_tokens)
        text = PlainTextProcessor(self.tokenizer, limits).encode_plain(self.candidates)
        rows = [row[: int(length)].tolist() for row, length in zip(text.ids, text.mask.sum(dim=1), strict=True)]
        for answer, row in zip(self.candidates, rows, strict=True):
            if len(row) < 3:
                raise UserError(f"evaluation.answers: the tokenizer makes nothing of the answer {answer!r}; remove it")
        return AnswerTree(rows)

    def _predict(self, items: list[Question]) -> np.ndarray:
        """The place in the list of every question's answer."""
        config = self.config.evaluation

        def answer(pictures: list[Tensor], text: Text) -> Tensor:
            rows = picture_of_each(pictures)
            pixels = torch.stack([pictures[place] for place in np.unique(rows, return_index=True)[1]])
            device = text.ids.device
            asked = self.model.fuse_questions(pixels.to(device), text, torch.from_numpy(rows).to(device))
            return rank_answers(self.model.decoder, asked, self.tree, config.candidates, config.ranking).ids[:, 0]

        return self.outputs(items, _read, answer, "answering")


def by_answer_type(types: Sequence[str]) -> dict[str, np.ndarray]:
    """Which questions, (N,) bool: all under "", and where there are several types of answer, those of each."""
    given = np.array(types)
    groups = {"": np.ones(len(given), dtype=bool)}
    if len(set(types)) > 1:
        groups |= {name: given == name for name in sorted({*types} - {""})}
    return groups


def picture_of_each(pictures: Sequence[Tensor]) -> np.ndarray:
    """A number for each picture, the same for equal neighbours: files list the questions of a picture together, and the vision
    encoder costs most, so that it sees a picture once for all of them."""
    new = [place > 0 and not torch.equal(picture, pictures[place - 1]) for place, picture in enumerate(pictures)]
    return np.cumsum(new)


def most_frequent_answers(questions: Sequence[Question]) -> dict[str, str]:
    """The answer of most annotators to most questions, for each type of answer, and over all under ""."""
    counts: dict[str, Counter[str]] = {"": Counter()}
    for question in questions:
        answer = question.most_frequent()
        for kind in {"", question.answer_type}:
            counts.setdefault(kind, Counter())[answer] += 1
    return {kind: found.most_common(1)[0][0] for kind, found in counts.items()}


def accuracies(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """The soft accuracy of each prediction, (N,) in 0..1."""
    return np.array([soft_accuracy(each, given) for each, given in zip(predicted, answers, strict=True)])


def chance_accuracy(candidates: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """The expected accuracy of each question for a candidate drawn at random, (N,)."""
    listed, sums = set(candidates), []
    for given in answers:
        # No other candidate can agree with an annotator.
        agreeing = listed.intersection({*given, *map(normalize_answer, given)})
        sums.append(sum(soft_accuracy(candidate, given) for candidate in sorted(agreeing)))
    return np.array(sums) / len(candidates)


def _read(view: EvaluationView, max_words: int, items: Sequence[Question], index: int) -> tuple[Tensor, str]:
    """The picture (3, S, S) and the cleaned question."""
    item = items[index]
    return view(item.picture), cleaned_question(item.question, max_words, item.place)
