"""The visual question answering task: fine-tuning on weighted answers, evaluated by the accuracy of the most likely candidate."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from batches.texts import Text
from dataset.media.views import EvaluationView
from dataset.tasks.finetune import cleaned_question
from dataset.tasks.questions import Question, QuestionTable
from dataset.tasks.vqa import (
    QuestionsConfig,
    VQABatches,
    VQADataConfig,
    frequent_answers,
    read_candidates,
    read_questions,
)
from dataset.text.processors import PlainTextProcessor, TextLimits, decode_to_text
from metrics.bootstrap import Scores
from metrics.vqa import SOFT, accuracy_type, exact_match, normalize_answer, soft_accuracy
from models.core.packing import PackedTexts
from models.inference.answer_ranking import AnswerTree, Ranking, rank_answers
from models.tasks.vqa import AnswerBeamConfig, AnswerDecoding, VQAModel, VQAModelConfig
from optim import OptimConfig
from tasks.base import ANSWERS, Parts
from tasks.drawing import DrawnImage, ImageReader, Line, Panel
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import FineTuneConfig, FineTuneTask, HeldOut, HeldOutConfig, data_options, name_of
from tasks.image_blind import IMAGE_BLIND, ImageBlindBaseline
from tasks.inference import require_finite
from tasks.kinds import TaskKind
from utils.errors import UserError
from utils.files import write_text
from utils.inputs import InputFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class VQAOptimConfig(OptimConfig):
    """Config section ``optim`` with a switch for the learning rate of the answer decoder."""

    fresh_decoder: bool = Field(
        True,
        description="train the answer decoder with lr * lr_mult, although it starts as a copy of the fusion encoder "
        "(large_lr_for_dec in the authors' code)",
    )


class VQAEvaluationConfig(HeldOutConfig[QuestionsConfig]):
    """Held-out splits. For splits without answers, predictions are written for the evaluation server but not scored."""

    answers: InputFile | None = Field(
        None, description="file with a JSON list of the candidate answers; null: the answers of the training questions"
    )
    candidates: int = Field(
        128,
        ge=1,
        description="number k of candidates that are scored in full, chosen by the likelihood of their first token",
    )
    ranking: Ranking = Field(
        "likelihood",
        description="score of a candidate. likelihood: likelihood of the whole answer; released: the likelihood with the first "
        "token counted twice",
    )
    decode: AnswerDecoding = Field(
        "rank",
        description="rank: answer with the best candidate (as in the authors' code); beam: generate a free-form answer with "
        "beam search",
    )
    beam: AnswerBeamConfig = Field(AnswerBeamConfig(), description="settings of the beam search, for decode: beam")


class VQAConfig(FineTuneConfig):
    """A question answering run."""

    task: Literal["vqa"] = Field("vqa", description="task of the config")
    model: VQAModelConfig
    data: VQADataConfig
    optim: VQAOptimConfig
    evaluation: VQAEvaluationConfig


class VQATask(FineTuneTask[VQAConfig, VQAModel, VQABatches]):
    """Model, data and evaluation of a question answering run.

    Attributes:
        candidates: the answers that can be predicted.
        image_blind: baseline that answers from the wording alone; None in an evaluation without training data.
    """

    measure = "accuracy"
    reads_training_data_to_evaluate = True

    def __init__(self, config: VQAConfig, parts: Parts[VQAModel, VQABatches], held_out: HeldOut):
        super().__init__(config, parts, held_out)
        self._check_answer_length()
        self.answer_text = PlainTextProcessor(self.tokenizer, TextLimits(max_tokens=config.data.max_answer_tokens))
        self.candidates = _candidates(config, parts.training)
        self.tree = self._tree()
        training = parts.training
        self.image_blind = None if training is None else ImageBlindBaseline(training.items, held_out.by_key().values())
        if config.optim.fresh_decoder:
            self.fresh |= {name for name, _ in self.model.named_parameters() if name.startswith("decoder.")}

    def keep_inputs(self, folder: Path) -> None:
        super().keep_inputs(folder)
        write_text(folder / ANSWERS, json.dumps(self.candidates, ensure_ascii=False) + "\n")

    @staticmethod
    def build_model(config: VQAConfig, vocab_size: int | None) -> VQAModel:
        return VQAModel(config.model, vocab_size)

    @staticmethod
    def training_data(config: VQAConfig, tokenizer: PreTrainedTokenizerFast, model: VQAModel) -> VQABatches:
        return VQABatches(config.data, **data_options(config, tokenizer))

    @staticmethod
    def read_split(config: VQAConfig, split: QuestionsConfig, key: str) -> QuestionTable:
        return QuestionTable(read_questions(split, key, 0.0, answered=False))

    def evaluate(self, items: QuestionTable) -> Evaluation:
        """Computes the accuracy, overall and by answer type, each with its image-blind baseline. The chance level is the accuracy
        of a random candidate, even if answers are generated freely. For a split without answers, predictions are written but not
        scored."""
        predicted = self._predict(items)
        questions = list(items)
        predictions = [
            {"question_id": question.question_id, "answer": answer}
            for question, answer in zip(questions, predicted, strict=True)
        ]
        metrics = [count("questions", len(questions))]
        answers = [question.answers for question in questions]
        if not all(answers):
            return Evaluation(tuple(metrics), predictions)
        rule, score = accuracy_type(answers), _score_of(answers)
        if self.config.evaluation.decode == "beam":
            rule += "; answers generated by beam search"
        accuracy = np.array([score(answer, true) for answer, true in zip(predicted, answers, strict=True)])
        chance = chance_accuracy(self.candidates, answers, score)
        blind = self.image_blind
        guessed = None if blind is None else self.image_blind_scores(blind, questions)
        images = np.array([name_of(question.source) for question in questions])
        for kind, rows in by_answer_type([question.answer_type for question in questions]).items():
            prefix = f"{kind}: " if kind else ""
            scores = Scores(accuracy[rows], images[rows])
            metrics.append(Metric.mean_of(f"{prefix}accuracy", scores, float(chance[rows].mean()), rule=rule))
            if guessed is not None:
                metrics.append(Metric.mean_of(f"{prefix}{IMAGE_BLIND}", Scores(guessed[rows], images[rows]), rule=rule))
            if kind:
                metrics.append(count(f"{kind} questions", int(rows.sum())))
        return Evaluation(tuple(metrics), predictions)

    @staticmethod
    def image_blind_scores(blind: ImageBlindBaseline, questions: Sequence[Question]) -> np.ndarray:
        """Returns the accuracy of the baseline's answer to each question (N,). All questions must have answers."""
        score = _score_of([question.answers for question in questions])
        return np.array([score(blind.answer(question), question.answers) for question in questions])

    def panel(self, items: QuestionTable, number: int, prediction: Mapping[str, Any], read: ImageReader) -> Panel:
        question, answer = items[number], prediction["answer"]
        score = _score_of([question.answers])
        return question_panel(question, answer, score(answer, question.answers) if question.answers else None, read)

    def _check_answer_length(self) -> None:
        longest = self.model.decoder.embeddings.arch.longest_text
        lengths = {
            "data.max_answer_tokens": self.config.data.max_answer_tokens,
            "evaluation.beam.max_length": 1 + self.config.evaluation.beam.max_length,  # including [CLS]
        }
        for key, length in lengths.items():
            if length > longest:
                raise UserError(
                    f"{key}: answers have up to {length} tokens with [CLS], but the decoder only has positions for "
                    f"{longest}; lower it"
                )

    def _tree(self) -> AnswerTree:
        text = self.answer_text.encode_plain(self.candidates)
        tokens = [ids[: int(length)].tolist() for ids, length in zip(text.ids, text.mask.sum(dim=1), strict=True)]
        for answer, ids in zip(self.candidates, tokens, strict=True):
            if len(ids) < 3:
                raise UserError(
                    f"evaluation.answers: the tokenizer produces no tokens for the answer {answer!r}; remove it"
                )
        return AnswerTree(tokens)

    def _predict(self, items: QuestionTable) -> list[str]:
        """Answers every question."""
        config = self.config.evaluation

        def fused(images: list[Tensor], text: Text) -> PackedTexts:
            image_of_question = group_equal_images(images)
            pixels = torch.stack([images[index] for index in np.unique(image_of_question, return_index=True)[1]])
            device = text.ids.device
            index = torch.from_numpy(image_of_question).to(device)
            return self.model.fuse_questions(pixels.to(device), text, index)

        def choose(images: list[Tensor], text: Text) -> Tensor:
            questions = fused(images, text)
            ranked = rank_answers(self.model.decoder, questions, self.tree, config.candidates, config.ranking)
            require_finite(ranked.probabilities, "probabilities of answers")
            return ranked.ids[:, 0]

        def write(images: list[Tensor], text: Text) -> Tensor:
            generated = self.model.generate(fused(images, text), self.text.cls_id, self.text.sep_id, config.beam)
            require_finite(generated.score, "log-likelihoods of answers")
            return generated.tokens

        if config.decode == "rank":
            return [self.candidates[index] for index in self.outputs(items, _read, choose, "answering")]
        return [decode_to_text(self.tokenizer, ids) for ids in self.outputs(items, _read, write, "answering").tolist()]


def _score_of(answers: Sequence[Sequence[str]]) -> Callable[[str, Sequence[str]], float]:
    """Returns the function that scores a prediction against the annotators' answers, for a split with these answers."""
    return soft_accuracy if accuracy_type(answers) == SOFT else exact_match


def _candidates(config: VQAConfig, training: VQABatches | None) -> list[str]:
    if config.evaluation.answers is not None:
        return read_candidates(config.evaluation.answers, "evaluation.answers")
    if training is None:
        raise UserError(
            "evaluation.answers is null, so the candidates are the answers of the training questions, but these "
            "cannot be read; set it to a list of answers, or pass the files of data.train"
        )
    return frequent_answers(training.items, str.strip, at_least=1)


def question_panel(question: Question, answer: str, score: float | None, read: ImageReader) -> Panel:
    """Draws an image or video with a question, the predicted ``answer`` and the annotators' answers. The prediction is marked as
    right if ``score`` is at least 0.5; ``score`` is None without annotators' answers."""
    counts = Counter(question.answers).most_common()
    given = ", ".join(text if times == 1 else f"{text} ×{times}" for text, times in counts) or "none given"
    points = f" ({100 * score:.0f}%)" if score is not None and 0 < score < 1 else ""
    lines = (
        Line(question.question),
        Line(f"predicted: {answer}{points}", None if score is None else score >= 0.5),
        Line(f"answers: {given}", faint=True),
    )
    return Panel((DrawnImage(read(question.source)),), lines)


def by_answer_type(types: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns a mask of the questions, (N,) bool, for each answer type. The mask under "" selects all questions. If there is only
    one answer type, "" is the only key."""
    type_of = np.array(types)
    groups = {"": np.ones(len(type_of), dtype=bool)}
    if len(set(types)) > 1:
        groups |= {name: type_of == name for name in sorted({*types} - {""})}
    return groups


def group_equal_images(images: Sequence[Tensor]) -> np.ndarray:
    """Returns a group index for each image, (N,) int64, which is the same for adjacent equal images. Files list the questions
    about an image together, so the vision encoder, which is the most expensive module, can encode the image once for all of
    them."""
    is_new = [index > 0 and not torch.equal(image, images[index - 1]) for index, image in enumerate(images)]
    return np.cumsum(is_new)


def chance_accuracy(
    candidates: Sequence[str],
    answers: Sequence[Sequence[str]],
    score: Callable[[str, Sequence[str]], float] = soft_accuracy,
) -> np.ndarray:
    """Returns the expected accuracy of a random candidate for each question, (N,).

    Args:
        candidates: the candidate answers.
        answers: the annotators' answers to each question.
        score: function that scores a prediction against the answers.
    """
    by_normal_form: dict[str, list[str]] = {}
    for candidate in candidates:
        by_normal_form.setdefault(normalize_answer(candidate), []).append(candidate)
    sums = []
    for true in answers:
        # Only candidates with the same normalised form can agree with an annotator.
        agreeing = {candidate for answer in true for candidate in by_normal_form.get(normalize_answer(answer), ())}
        sums.append(sum(score(candidate, true) for candidate in sorted(agreeing)))
    return np.array(sums) / len(candidates)


def _read(view: EvaluationView, max_words: int, items: Sequence[Question], index: int) -> tuple[Tensor, str]:
    """Returns the image (3, S, S) and the cleaned question."""
    item = items[index]
    return view(item.source), cleaned_question(item.question, max_words, item.location)


TASK = TaskKind(VQAConfig, VQATask)
