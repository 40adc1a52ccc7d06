"""The image-text and video-text retrieval task: fine-tuning with contrastive and matching losses, evaluated by recall after
re-ranking."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import numpy as np
from torch import Tensor

from batches.texts import Text
from dataset.config import CaptionedSplitConfig
from dataset.formats.captioned import CaptionedImages, ImageCaption, read_captioned_images
from dataset.media.sources import ImageSource, VideoSource
from dataset.media.views import EvaluationView
from dataset.tasks.finetune import cleaned, in_batches
from dataset.tasks.retrieval import RetrievalBatches
from engine.run_folder import RunFolder
from metrics.bootstrap import Scores
from metrics.retrieval import chance_recalls, recall_scores, retrieval_recalls
from models.config import RankingScore
from models.inference.reranking import log_odds
from models.tasks.retrieval import RetrievalModel, Teacher
from tasks.base import video_frames
from tasks.config import RetrievalConfig
from tasks.drawing import DrawnImage, ImageReader, Line, Panel, spread
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import location_of
from tasks.media import MediaTask
from tasks.two_stage import Candidates, Rankings, Stage, TwoStageRetrieval, ranking_rule, reranking_notes
from utils import accelerator

logger = logging.getLogger(__name__)

KEPT, SHOWN = 10, 5
"""Number of nearest images or texts per query in ``predictions_<split>.json``, and in drawings. There are fewer if fewer
candidates are re-ranked."""
LOST = 0.05
"""Share of the present phrases that may be called absent."""
QUERY_SIDE, CANDIDATE_SIDE = 280, 150
"""Size in pixels of a query image, and of a retrieved image."""


class RetrievalTask(MediaTask[RetrievalConfig, RetrievalModel, RetrievalBatches]):
    """Model, data and evaluation of a retrieval run."""

    network = RetrievalModel
    batches = RetrievalBatches
    measure = "mean recall"
    _chosen: RankingScore | None = None
    legend = "the five nearest, best first, with scores · frame and tick: right · cross: wrong"

    def __init__(self, config: RetrievalConfig, *parts: Any):
        super().__init__(config, *parts)
        if config.loss.distillation and self.plan is not None:
            logger.info("loss.distillation: the teacher is the model of init.checkpoint")
            teacher = self.starting_model(accelerator.best_device()).eval().requires_grad_(False)
            self.model.teacher = Teacher(teacher, config.loss.distillation)

    @staticmethod
    def read_split(config: RetrievalConfig, split: CaptionedSplitConfig, key: str) -> CaptionedImages:
        return read_captioned_images(split, key, 0.0)

    @staticmethod
    def sources(items: CaptionedImages) -> Sequence[ImageSource | VideoSource]:
        return items.images

    def evaluate(self, items: CaptionedImages) -> Evaluation:
        """Computes the recalls by the score of the config and by cosine. The chance level is the recall of a random ranking."""
        config = self.config.evaluation
        medium = "image" if video_frames(self.config) is None else "video"
        score, rankings = self._ranked(items)
        metrics = [count(f"{medium}s", len(items.images)), count("captions", len(items.captions))]
        chance = chance_recalls(items.captions_per_image, len(items.captions), medium)
        rule = ranking_rule(score, config.candidates, chosen=config.score == "auto")
        stages: dict[str, tuple[Stage, str | None]] = {"": (rankings.by(score), rule)}
        if score != "cosine":
            stages[" (cosine)"] = (rankings.cosine, None)
        for suffix, (stage, stage_rule) in stages.items():
            ranks = stage.ranks(items.image_of_caption)
            scores = recall_scores(*ranks, items.image_of_caption, medium)
            metrics += [
                Metric(f"{name}{suffix}", value, chance[name], rule=stage_rule, scores=scores[name])
                for name, value in retrieval_recalls(*ranks, medium).items()
            ]
        chosen = score if config.score == "auto" else None
        notes = reranking_notes(metrics, "", " (cosine)", chosen=chosen)
        return Evaluation(tuple(metrics), Nearest(items, rankings.by(score)), chosen_score=chosen, notes=notes)

    def evaluate_absent(self, items: CaptionedImages, earlier: CaptionedImages) -> Evaluation:
        """Pairs each caption with an image of ``earlier``. A pair is recognised if its matching probability is lower than that of
        95% of the captions with their own images."""
        captions = [items[caption] for caption in range(len(items))]
        count_of_images = len(earlier.images)
        foreign = [
            replace(each, source=earlier.images[number % count_of_images]) for number, each in enumerate(captions)
        ]
        own, other = (
            self.outputs(pairs, _view_and_caption, self._matched, "matching") for pairs in (captions, foreign)
        )
        images = np.array([str(each.source.location) for each in foreign])
        recognised = Metric.mean_of(
            "recognised as absent",
            Scores(other < np.quantile(own, LOST), images),
            rule=f"at a loss of {LOST:.0%} of the present",
        )
        return Evaluation((count("captions", len(captions)), recognised))

    def _matched(self, images: list[Tensor], text: Text) -> Tensor:
        """Log-odds of the matching head for pairs of images or videos and captions, (N,)."""
        concepts, (texts,) = self.model.vision(self.stacked(images)), self.model.text([text])
        cls = self.model.fusion.cls(texts, self.model.fusion.project_concepts(concepts))
        return log_odds(self.model.matching_head(cls))

    def _ranked(self, items: CaptionedImages) -> tuple[RankingScore, Rankings]:
        """Ranks a split, and returns the score by which its candidates are sorted. With ``score: auto``, the score is chosen on
        the validation split, once for each set of weights."""
        score, validation = self.config.evaluation.score, self.held_out.validation
        if score != "auto":
            return score, self._rank(items, reranks=score != "cosine")
        assert validation is not None
        if self._chosen is None or items is validation:
            rankings = self._rank(validation, reranks=True)
            self._chosen = rankings.best_score(validation.image_of_caption)
        if items is validation:
            return self._chosen, rankings
        return self._chosen, self._rank(items, reranks=self._chosen != "cosine")

    def _rank(self, items: CaptionedImages, *, reranks: bool) -> Rankings:
        """Ranks the captions of a split for each image, and the images for each caption."""
        config = self.config.evaluation
        search = TwoStageRetrieval(
            self.model,
            self.text,
            candidates=config.candidates,
            batch_size=config.batch_size,
            reranks=reranks,
            matching_weight=config.matching_weight,
        )
        read = partial(_view_of, self.held_out.view, items.images)
        captions = [cleaned(caption, self.text.max_words) for caption in items.captions]
        return search.rank(len(items.images), partial(self._read, read, items.images), captions)

    def report(self, folder: RunFolder) -> str:
        self._chosen = None  # the weights have changed since the last validation
        return super().report(folder)

    def shown(self, predictions: Sequence[Mapping[str, Any]], count: int) -> list[int]:
        """Returns the indices of the predictions to draw: half of them with a text as the query, then half with an image."""
        assert isinstance(predictions, Nearest)
        texts = len(predictions.items.captions)
        images = spread(len(predictions) - texts, count // 2)
        return [*spread(texts, count - len(images)), *(texts + image for image in images)]

    def panel(self, items: CaptionedImages, number: int, prediction: Mapping[str, Any], read: ImageReader) -> Panel:
        nearest = prediction["nearest"][:SHOWN]
        if "text" not in prediction:
            lines = [Line(f"{_shown(text['score'])} · {text['caption']}", text["right"]) for text in nearest]
            image = read(items.images[number - len(items.captions)], side=QUERY_SIDE)
            return Panel((DrawnImage(image),), tuple(lines), beside=True)
        pictures = [
            DrawnImage(
                read(items.images[items.ids.index(image["image_id"])], side=CANDIDATE_SIDE, down=True),
                label=f"{position} · {_shown(image['score'])}",
                right=image["image_id"] == prediction["image_id"],
            )
            for position, image in enumerate(nearest, start=1)
        ]
        above = (Line(prediction["caption"], pictures[0].right),)
        ids = [image["image_id"] for image in prediction["nearest"]]
        right = prediction["image_id"]
        if right in ids[:SHOWN]:
            return Panel(tuple(pictures), (), above)
        where = f"has rank {ids.index(right) + 1}" if right in ids else f"is not among the {len(ids)} nearest"
        return Panel(tuple(pictures), (Line(f"the right result {where}", faint=True),), above)

    def _read(
        self, read: Callable[[int], Tensor], images: Sequence[ImageSource | VideoSource], share: range
    ) -> Iterator[list[Tensor]]:
        size, workers = self.config.evaluation.batch_size, self.config.data.workers
        return in_batches(read, share, size, workers, partial(location_of, images))


class Nearest(Sequence[Mapping[str, Any]]):
    """The predictions for a split: first the nearest images of each text, then the nearest texts of each image. A prediction is
    computed when it is accessed.

    Texts are identified by their index in the captions of the split, and images by their id.
    """

    def __init__(self, items: CaptionedImages, stage: Stage):
        self.items, self.stage = items, stage

    def __len__(self) -> int:
        return len(self.items.captions) + len(self.items.images)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        texts = len(self.items.captions)
        return self._of_text(number) if number < texts else self._of_image(number - texts)

    def _of_text(self, text: int) -> dict[str, Any]:
        items = self.items
        nearest = _best(self.stage.images, text)
        return {
            "text": text,
            "caption": items.captions[text],
            "image_id": items.ids[items.image_of_caption[text]],
            "nearest": [{"image_id": items.ids[image], "score": score} for image, score in nearest],
        }

    def _of_image(self, image: int) -> dict[str, Any]:
        items = self.items
        nearest = [
            {
                "text": text,
                "caption": items.captions[text],
                "score": score,
                "right": bool(items.image_of_caption[text] == image),
            }
            for text, score in _best(self.stage.texts, image)
        ]
        return {"image_id": items.ids[image], "nearest": nearest}


def _shown(score: float) -> str:
    """Formats a score for drawing, with a minus sign, because a hyphen would look like part of the separator."""
    return f"{score:.2f}".replace("-", "\N{MINUS SIGN}")


def _best(candidates: Candidates, query: int) -> list[tuple[int, float]]:
    """Returns the :data:`KEPT` best candidates of a query with their scores, best first."""
    scores = candidates.scores[query]
    order = np.argsort(-scores, kind="stable")[:KEPT]
    return [(int(candidates.ids[query, position]), round(float(scores[position]), 4)) for position in order]


def _view_and_caption(
    view: EvaluationView, max_words: int, items: Sequence[ImageCaption], index: int
) -> tuple[Tensor, str]:
    return view(items[index].source), cleaned(items[index].caption, max_words)


def _view_of(view: EvaluationView, images: Sequence[ImageSource | VideoSource], index: int) -> Tensor:
    return view(images[index])
