"""A trained model and its methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from dataset.config import TextDataConfig, TextLimits
from dataset.tasks.captioning import prompt_tokens
from dataset.tasks.nlvr import LABELS
from dataset.text.processors import TextProcessor, decode_to_text
from models.config import AnswerDecoding, GroundingModelConfig
from models.core.losses import at_least_float32
from models.core.packing import PackedTexts
from models.inference.answer_ranking import AnswerTree, rank_answers
from models.pretraining.model import PretrainModel
from models.tasks.captioning import CaptioningModel, CaptionTokens
from models.tasks.nlvr import NLVRModel
from models.tasks.retrieval import RetrievalModel
from models.tasks.video_qa import VideoQAModel
from models.tasks.vqa import VQAModel
from utils.errors import UserError
from x2vlm.base import LoadedModel, as_texts, check_unicode
from x2vlm.boxes import Box, in_pixels
from x2vlm.inputs import Image, View, as_list
from x2vlm.matching import probabilities

if TYPE_CHECKING:
    from x2vlm.attention import WordMap
    from x2vlm.saving import SavedFormat
    from x2vlm.scoring import BoxScores
    from x2vlm.search.index import ImageIndex

N = TypeVar("N")


@dataclass(frozen=True)
class Judgement:
    """A judgement of a statement. ``label`` is true or false, or contradiction, entailment or neutral; ``score`` is the
    probability of this label."""

    label: str
    score: float


class Model(LoadedModel):
    """A trained model, as returned by :func:`x2vlm.load`.

    Each method takes one image or a list of images (paths, Pillow images, arrays or tensors), or videos if the model is a video
    model, and returns a list with one entry per image. If the model was not trained for a method, calling the method raises a
    :class:`x2vlm.UserError` that names the tasks whose models support it. Results are deterministic, even if the config uses
    sampling.
    """

    def caption(self, images: Image | Sequence[Image]) -> list[str]:
        """Returns a caption for each image."""
        network = self._network("caption", CaptioningModel)
        processor = TextProcessor(self.tokenizer, TextDataConfig(max_tokens=self.text.limits.max_tokens))
        prompt = prompt_tokens(processor, self.settings.data.prompt)
        tokens = CaptionTokens(tuple(prompt), processor.sep_id, processor.mask_id, processor.pad_id)
        decoding, rng = self.settings.evaluation.decoding, np.random.default_rng(0)

        def generate(images: Sequence[Image]) -> list[str]:
            keys_values = network.project_images(self.pixels(self.views(images)))
            uniforms = torch.from_numpy(rng.random((len(images), decoding.max_length))).float().to(keys_values.device)
            captions = network.generate(keys_values, tokens, decoding, uniforms)
            return [decode_to_text(self.tokenizer, ids) for ids in captions.tokens.tolist()]

        return self.run(as_list(images), generate)

    def answer(
        self,
        images: Image | Sequence[Image],
        questions: str | Sequence[str],
        candidates: Sequence[str] | None = None,
        decode: AnswerDecoding | None = None,
    ) -> list[str]:
        """Returns the likeliest answer to each question about its image.

        A single image is paired with all questions, and a single question with all images.

        Args:
            images: see :class:`Model`.
            questions: one question for each image.
            candidates: the answers to choose from; if None, the candidate answers that were loaded with the model.
            decode: "rank" chooses among the candidates, and "beam" generates a free-form answer. If None, "rank" is used if
                ``candidates`` are given, otherwise the value of ``evaluation.decode`` in the model's config.
        """
        network = cast("VQAModel | VideoQAModel", self._network("answer", VQAModel, VideoQAModel))
        pairs = _pairs("answer", as_list(images), as_texts(questions))
        answers = self.answers if candidates is None else as_texts(candidates)
        if candidates is not None and not answers:
            raise UserError("candidates is empty", where="answer", remedy="pass at least one, or omit it")
        if isinstance(network, VideoQAModel):
            if decode == "beam":
                raise UserError("this model chooses among its classes", where="answer", remedy="omit decode")
            return self._classified(network, pairs, answers)
        config = self.settings.evaluation
        decode = decode or ("rank" if candidates is not None else config.decode)
        if decode == "beam":
            if candidates is not None:
                raise UserError(
                    "decode='beam' does not choose among candidates", where="answer", remedy="omit candidates or decode"
                )
            return self.run(pairs, partial(self._generated, network))
        if not answers:
            raise UserError(
                "the model has no list of answers",
                where="answer",
                remedy="pass candidates=, or answers= to load(), or decode='beam'",
            )
        tree = self._answer_tree(answers)

        def choose(pairs: Sequence[tuple[Image, str]]) -> list[str]:
            count = min(config.candidates, len(answers))
            best = rank_answers(network.decoder, self._fused(network, pairs), tree, count, config.ranking).ids[:, 0]
            return [answers[index] for index in best.tolist()]

        return self.run(pairs, choose)

    def locate(
        self,
        images: Image | Sequence[Image],
        phrases: str | Sequence[str] | Sequence[Sequence[str]],
        boxes: Literal["one", "all"] = "one",
        threshold: float | None = None,
    ) -> list[list[Box]]:
        """Locates the phrases of each image.

        Args:
            images: see :class:`Model`.
            phrases: a list of phrases for each image; for a single image, a plain list or a single phrase is also accepted.
            boxes: "one" returns the best box of each phrase, and "all" returns all boxes whose score is at least ``threshold``,
                so that a phrase can have several boxes or none. If the model has no box-set head (``model.box_set``), "all" finds
                regions of the image whose content matches the phrase, and the box head predicts a box from each region
                (docs/finetuning.md).
            threshold: minimum score of a box; if None, ``evaluation.threshold`` in the config of a model with a box-set head, and
                0.5 for other models.

        Returns:
            The boxes of each image, in the order of its phrases.
        """
        self.require("locate")
        if boxes not in ("one", "all"):
            raise UserError(f"boxes is {boxes!r}", where="locate", remedy="pass 'one' or 'all'")
        if boxes == "all":
            threshold = self._threshold() if threshold is None else threshold
            if not (isinstance(threshold, int | float) and 0 < threshold <= 1):
                raise UserError(
                    f"threshold is {threshold!r}, which is not a probability",
                    where="locate",
                    remedy="pass a number above 0 and at most 1",
                )
        elif threshold is not None:
            raise UserError("threshold applies only to boxes='all'", where="locate", remedy="omit it")
        listed = as_list(images)
        is_single = isinstance(phrases, str) or not isinstance(phrases, Iterable)
        groups: list[Any] = [phrases] if is_single else list(phrases)
        each = (
            [as_texts(groups)]
            if all(isinstance(group, str) for group in groups)
            else [as_texts(group) for group in groups]
        )
        if len(each) != len(listed):
            raise UserError(
                f"{len(listed)} images and {len(each)} lists of phrases",
                where="locate",
                remedy="pass a list for each image",
            )

        def find(pairs: Sequence[tuple[Image, Sequence[str]]]) -> list[list[Box]]:
            views, texts = self.views([image for image, _ in pairs]), [text for _, each in pairs for text in each]
            counts = [len(each) for _, each in pairs]
            if not texts:
                return [[] for _ in pairs]
            image_index = torch.arange(len(pairs)).repeat_interleave(torch.tensor(counts))
            found = iter(self._boxes(views, texts, image_index, threshold))
            return [[box for _ in range(count) for box in next(found)] for count in counts]

        return self.run(list(zip(listed, each, strict=True)), find)

    def score(
        self,
        images: Image | Sequence[Image],
        boxes: Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]],
        phrases: str | Sequence[str] | Sequence[Sequence[str]],
        unit: Literal["pixels", "fractions"] = "pixels",
    ) -> list[BoxScores]:
        """Scores boxes that another program, such as a detector, has found. Each image is encoded once.

        Args:
            images: see :class:`Model`.
            boxes: for each image, a list of its boxes as x, y, width and height; for a single image, one such list. Parts outside
                the image are cut off.
            phrases: for each image, a list of phrases, each of which is compared with all boxes of the image; for a single image,
                a plain list or a single phrase.
            unit: whether boxes are given in pixels of the displayed image, or as fractions of its width and height.

        Returns:
            The scores of each image.
        """
        from x2vlm.scoring import BoxScores, evidence

        return [BoxScores.of(found, self.calibration) for found in evidence(self, images, boxes, phrases, unit)]

    @property
    def has_box_sets(self) -> bool:
        """Whether the model has a box-set head, which predicts several boxes or none (``model.box_set``)."""
        config = self.settings.model
        return isinstance(config, GroundingModelConfig) and config.box_set is not None

    def match(self, images: Image | Sequence[Image], texts: str | Sequence[str]) -> np.ndarray:
        """Returns, for each image and text, the probability that they match, (images, texts) float32."""
        return probabilities(self.margins(images, texts)).astype(np.float32)

    def index(self, folder: str | Path, out: str | Path) -> ImageIndex:
        """Builds a searchable index of the images in a folder; videos are skipped. See :func:`x2vlm.search.making.index`."""
        from x2vlm.search.making import index

        return index(self, folder, out)

    def compare(
        self, images: Sequence[Image] | Sequence[Sequence[Image]], statements: str | Sequence[str]
    ) -> list[Judgement]:
        """Decides whether each statement is true of its images.

        Args:
            images: for each statement, a list of as many images as the model compares (two in NLVR2, the left one first). For a
                single statement, a plain list is also accepted.
            statements: one statement about each group of images.
        """
        network = self._network("compare", NLVRModel)
        listed = as_list(images)
        nested = bool(listed) and all(isinstance(group, list | tuple) for group in listed)
        pairs = _pairs("compare", [as_list(group) for group in listed] if nested else [listed], as_texts(statements))
        for group, statement in pairs:
            if len(group) != network.images:
                raise UserError(
                    f"{statement!r} has {len(group)} images, but the model compares {network.images}",
                    where="compare",
                    remedy=f"pass {network.images} images with each statement",
                )

        def judge(pairs: Sequence[tuple[list[Image], str]]) -> list[Judgement]:
            views = self.views([group[index] for index in range(network.images) for group, _ in pairs])
            logits = network.classify(self.pixels(views), self.tokens([statement for _, statement in pairs]))
            names, scores = LABELS[logits.shape[1]], at_least_float32(logits).softmax(dim=1).cpu()
            return [Judgement(names[int(row.argmax())], float(row.max())) for row in scores]

        return self.run(pairs, judge)

    def explain(self, image: Image, text: str, *, layer: int | None = None) -> list[WordMap]:
        """Returns where in an image the model looks for each word of a text; see :func:`x2vlm.attention.word_maps`."""
        from x2vlm.attention import word_maps

        self._network("explain", PretrainModel, RetrievalModel)
        texts = as_texts(text)
        if len(texts) != 1:
            raise UserError(f"{len(texts)} texts were given", where="explain", remedy="pass exactly one")
        (text,) = texts
        return word_maps(self, image, text, layer)

    def save(self, folder: str | Path, format: SavedFormat = "x2vlm") -> Path:
        """Writes the model to a folder that can be loaded on any machine; see :func:`x2vlm.saving.save`."""
        from x2vlm.saving import save

        return save(self, Path(folder), format)

    def push_to_hub(self, name: str, format: SavedFormat = "x2vlm", *, private: bool = False) -> str:
        """Saves the model and uploads it with its card; see :func:`x2vlm.saving.push_to_hub`."""
        from x2vlm.saving import push_to_hub

        return push_to_hub(self, name, format, private=private)

    def _network(self, call: str, *kinds: type[N]) -> N:
        """Returns the network, after checking that the model supports a call. ``kinds`` are the classes that support it."""
        self.require(call)
        assert isinstance(self.network, kinds)
        return self.network

    def _boxes(
        self,
        views: Sequence[View],
        texts: Sequence[str],
        image_index: Tensor,
        threshold: float | None,
    ) -> list[list[Box]]:
        """Returns the boxes of each text in image ``image_index`` whose score is at least ``threshold``, or the best box if
        ``threshold`` is None."""
        packed, states = self.encoded(texts), self.check_finite(self.runtime.image_states(self.pixels(views)))
        self.check_finite(packed.states)
        index = image_index.to(packed.states.device)
        found: Sequence[Sequence[tuple[list[float], float | None]]]
        if threshold is None:
            found = [[each] for each in zip(*self.runtime.locate(states, packed, index), strict=True)]
        else:
            found = self.runtime.locate_all(states, packed, index, threshold)
        sizes = [views[index].size for index in image_index.tolist()]
        return [
            [in_pixels(text, box, score, size) for box, score in scored]
            for text, scored, size in zip(texts, found, sizes, strict=True)
        ]

    def _threshold(self) -> float:
        """Returns the default minimum score when all boxes of a phrase are requested.

        Raises:
            UserError: if the model predicts one box per phrase and cannot score regions.
        """
        if self.settings.task == "grounding" and not self.has_box_sets:
            raise UserError(
                f"{self.origin} predicts one box per phrase",
                where="locate",
                remedy="train it with model.box_set, or load a model trained with task pretrain",
            )
        return self.settings.evaluation.threshold

    def _fused(self, network: VQAModel, pairs: Sequence[tuple[Image, str]]) -> PackedTexts:
        """Fuses questions with their images."""
        text = self.tokens([question for _, question in pairs], questions=True)
        pixels, image_of_question = self.distinct([image for image, _ in pairs])
        return network.fuse_questions(pixels, text, image_of_question)

    def _generated(self, network: VQAModel, pairs: Sequence[tuple[Image, str]]) -> list[str]:
        """Returns the answers that beam search generates."""
        fused, config = self._fused(network, pairs), self.settings.evaluation.beam
        generated = network.generate(fused, self.text.cls_id, self.text.sep_id, config)
        return [decode_to_text(self.tokenizer, ids) for ids in generated.tokens.tolist()]

    def _classified(
        self, network: VideoQAModel, pairs: Sequence[tuple[Image, str]], answers: Sequence[str] | None
    ) -> list[str]:
        """Returns, for each question, the likeliest of ``answers`` according to the classifier ``network``. Each answer
        must be one of the classifier's classes."""
        classes = self.answers
        if classes is None or answers is None:
            raise UserError(
                "the model's classes have no names",
                where="answer",
                remedy="pass answers= to load(): a JSON list of the names",
            )
        if unknown := [answer for answer in answers if answer not in classes]:
            raise UserError(
                f"{unknown[0]!r} is not one of the model's {len(classes)} classes", where="answer", remedy="remove it"
            )
        indices = torch.tensor([classes.index(answer) for answer in answers])

        def reply(pairs: Sequence[tuple[Image, str]]) -> list[str]:
            text = self.tokens([question for _, question in pairs], questions=True)
            pixels, video_of_question = self.distinct([video for video, _ in pairs])
            logits = network.classify(pixels, text, video_of_question).cpu()
            return [answers[index] for index in logits[:, indices].argmax(dim=1).tolist()]

        return self.run(pairs, reply)

    def _answer_tree(self, answers: Sequence[str]) -> AnswerTree:
        for answer in answers:
            check_unicode(answer)
        limits = TextLimits(max_tokens=self.settings.data.max_answer_tokens)
        tokens = [
            [self.text.cls_id, *self.text.pieces(answer)[0][: limits.max_tokens - 2], self.text.sep_id]
            for answer in answers
        ]
        if empty := [answer for answer, ids in zip(answers, tokens, strict=True) if len(ids) < 3]:
            raise UserError(
                f"the tokenizer returns no tokens for the candidate {empty[0]!r}", where="answer", remedy="remove it"
            )
        return AnswerTree(tokens)


def _pairs(call: str, images: list[N], texts: list[str]) -> list[tuple[N, str]]:
    """Pairs each text with its image. A single image is paired with all texts, and a single text with all images."""
    count = max(len(images), len(texts))
    if {len(images), len(texts)} - {1, count}:
        raise UserError(
            f"{len(images)} images and {len(texts)} texts",
            where=call,
            remedy="pass as many images as texts, or a single image or text",
        )
    return list(
        zip(images * (count // len(images) if images else 1), texts * (count // max(1, len(texts))), strict=True)
    )
