"""Evaluates pre-training on held-out records: retrieval, boxes and masked words, each with a chance level."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from batches.base import IGNORE, to_device
from batches.images import stack_views
from dataset.config import DataConfig, ImageRecordsConfig
from dataset.media.video import FrameSampler, check_backend
from dataset.media.views import EvaluationView
from dataset.records.schema import ImageKeys, parse_region_record
from dataset.shards.readers import Shards
from dataset.shards.samplers import sample_rng
from dataset.tasks.held_out import Choose, HeldOutRecord, read_held_out, read_held_out_videos
from dataset.tasks.streams.pairs import first_clips
from dataset.text.processors import TextProcessor
from metrics.bootstrap import Scores
from metrics.grounding import accuracy_at_iou, iou
from models.config import RankingScore, VisionConfig
from models.core.heads import masked_positions
from models.core.packing import PackedTexts
from models.core.vision import Concepts
from models.pretraining.model import PretrainModel
from tasks.config import EvaluationConfig
from tasks.drawing import (
    BOX_LEGEND,
    DrawnImage,
    ImageReader,
    Line,
    Panel,
    Sheet,
    colours,
    draw_sheet,
    pair_of_boxes,
    readable_panels,
    spread,
)
from tasks.evaluation import Evaluation, Metric, count
from tasks.inference import device_of, require_finite
from tasks.two_stage import Rankings, TwoStageRetrieval, rank_in_words, ranking_rule, reranking_notes
from utils import distributed
from utils.errors import UserError

MAX_BOXES = 10
"""Maximum number of phrases that are drawn per image."""


def check_files(config: EvaluationConfig, data: DataConfig) -> None:
    """Raises a :class:`UserError` before training if held-out files are missing or empty, or videos cannot be read."""
    for files_key in ("files", "region_files", "video_files", "validation_files"):
        if files := getattr(config, files_key):
            shards = Shards(files, key=f"evaluation.{files_key}", index_folder=data.cache_index, remote=data.remote)
            if files_key == "video_files":
                if data.videos is None:
                    raise UserError(
                        "data.videos is missing, which determines how the files are read",
                        where="evaluation.video_files",
                        remedy="add it",
                    )
                clips = first_clips(shards, data.videos)
                check_backend(clips, data.videos.reading, "data.videos.reading")


@dataclass(frozen=True)
class HeldOutReader:
    """Reads the held-out records of a run.

    Attributes:
        config: the held-out files.
        data: the config's data section, whose settings are used to read the records.
        vision: config section with the image size and the number of video frames.
        processor: the text processor used in training.
        choose: function that gets the number of records and returns the indices of the records to read.
    """

    config: EvaluationConfig
    data: DataConfig
    vision: VisionConfig
    processor: TextProcessor
    choose: Choose = range

    def images(self, files_key: Literal["files", "region_files", "validation_files"]) -> list[HeldOutRecord]:
        """Reads the image records in one of the config's lists of files.

        Raises:
            UserError: for the first record that cannot be used.
        """
        stream = self.stream(files_key)
        return read_held_out(
            getattr(self.config, files_key),
            self.processor,
            image_size=self.vision.image_size,
            keys=ImageKeys.of(stream),
            caption_key=stream.caption_key,
            max_pixels=self.data.max_pixels,
            pixels=self.data.pixels,
            limit=self.config.limit,
            choose=self.choose,
            config_key=f"evaluation.{files_key}",
            index_folder=self.data.cache_index,
            remote=self.data.remote,
        )

    def videos(self) -> list[HeldOutRecord]:
        """Reads the video records.

        Raises:
            UserError: for the first record that cannot be used.
        """
        stream = self.data.videos
        assert stream is not None and self.vision.video is not None
        return read_held_out_videos(
            self.config.video_files,
            self.processor,
            stream,
            FrameSampler(self.vision.video.frames, stream.reading, self.data.max_pixels, self.data.pixels),
            image_size=self.vision.image_size,
            limit=self.config.limit,
            choose=self.choose,
            index_folder=self.data.cache_index,
            remote=self.data.remote,
        )

    def stream(self, files_key: str) -> ImageRecordsConfig:
        """Returns the stream config used to read the records: the region stream for boxes, if the run has one."""
        regions = self.data.regions if files_key == "region_files" or self.data.images is None else None
        return regions or self.data.images or ImageRecordsConfig(files=[], batch_size=1)


class PretrainEvaluator:
    """Evaluates a pre-trained model on held-out records, which are split among the ranks.

    Args:
        config: the held-out files.
        data: the config's data section, whose settings are used to read the records.
        model: the model, which must be in evaluation mode when :meth:`evaluate` or :meth:`draw` is called.
        processor: the text processor used in training.
        seed: seed for the choice of masked words.
        losses: names of the losses that trained the model. What depends on other losses is not evaluated.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        data: DataConfig,
        model: PretrainModel,
        processor: TextProcessor,
        seed: int,
        losses: Collection[str],
    ):
        self.config, self.data, self.model, self.processor, self.seed = config, data, model, processor, seed
        self.losses = losses
        self.device = device_of(model)
        self.predictions: dict[str, dict[str, Any]] = {}
        self.reader = HeldOutReader(config, data, model.config.vision, processor)
        self.records = self.reader.images("files") if config.files else []
        self.with_boxes = self.reader.images("region_files") if config.region_files else self.records
        self.videos = self.reader.videos() if config.video_files else []

    def evaluate(self) -> Evaluation:
        """Computes the metrics of everything that the model was trained for, and the predictions for the held-out records.
        Returns the same result on every rank."""
        self.predictions = {}
        metrics: list[Metric] = []
        score: RankingScore = "cosine"
        if "contrastive" in self.losses:
            score = self._ranking_score()
            metrics += self._retrieval(self.records, "image", "records", score)
            metrics += self._retrieval(self.records, "image", "records with a long caption", score, "long_captions")
            metrics += self._retrieval(self.videos, "video", "videos", score)
        chosen = score if self.config.score == "auto" else None
        notes = reranking_notes(metrics, " (reranked)", " (cosine)", chosen=chosen)
        if not {"l1", "giou"}.isdisjoint(self.losses):
            metrics += self._grounding()
        if "mlm" in self.losses:
            metrics += self._masked_words()
        return Evaluation(tuple(metrics), list(self.predictions.values()), chosen_score=chosen, notes=notes)

    def _ranking_score(self) -> RankingScore:
        """Returns the score by which candidates are sorted: the cosine if the matching head is not trained."""
        if "matching" not in self.losses:
            return "cosine"
        if self.config.score != "auto":
            return self.config.score
        records = [record for record in self.reader.images("validation_files") if record.captions]
        rankings = self.rank(records, [record.captions[0] for record in records])
        return rankings.best_score(np.arange(len(records)))

    def rank(self, records: Sequence[HeldOutRecord], captions: Sequence[str], *, reranks: bool = True) -> Rankings:
        """Ranks all captions for each record, and all records for each caption."""

        def read(share: range) -> Iterator[list[Tensor]]:
            for block in _blocks(records[share.start : share.stop], self.config.batch_size):
                yield [record.pixels for record in block]

        search = TwoStageRetrieval(
            self.model,
            self.processor,
            candidates=self.config.candidates,
            batch_size=self.config.batch_size,
            reranks=reranks,
            matching_weight=self.config.matching_weight,
        )
        return search.rank(len(records), read, captions)

    def _prediction(self, record: HeldOutRecord) -> dict[str, Any]:
        """Returns the prediction of a record. Each metric adds its results to it."""
        return self.predictions.setdefault(record.location, {"place": record.location})

    def _retrieval(
        self,
        records: Sequence[HeldOutRecord],
        medium: str,
        size: str,
        score: RankingScore,
        kind: Literal["captions", "long_captions"] = "captions",
    ) -> list[Metric]:
        """Computes the recall of each image's first caption among all captions, and of the image among all images. The chance
        level is the recall of a random ranking.

        Args:
            records: the held-out records. Records without a caption of this kind are skipped.
            medium: "image" or "video".
            size: name of the metric that counts the records.
            score: the score by which candidates are sorted. With scores other than the cosine, the recall by cosine is computed,
                too.
            kind: whether to rank short or long captions.
        """
        captioned = [record for record in records if getattr(record, kind)]
        if not captioned:
            return []
        captions: list[str] = [getattr(record, kind)[0] for record in captioned]
        text = "text" if kind == "captions" else "long text"

        rankings = self.rank(captioned, captions, reranks=score != "cosine")
        stages = {"cosine": rankings.cosine} | ({} if score == "cosine" else {"reranked": rankings.by(score)})
        chance, numbers = 1 / len(captioned), np.arange(len(captioned))
        metrics = [count(size, len(captioned))]
        chosen, last = self.config.score == "auto", list(stages)[-1]
        rule = ranking_rule(score, self.config.candidates, chosen=chosen) if chosen or score == "sum" else None
        for name, stage in stages.items():
            image_ranks, text_ranks = stage.ranks(numbers)
            for direction, ranks in ((f"{medium} to {text}", image_ranks), (f"{text} to {medium}", text_ranks)):
                scores, title = Scores(ranks < 1, numbers), f"{direction} R@1 ({name})"
                metrics.append(Metric.mean_of(title, scores, chance, rule=rule if name == last else None))
            for record, caption, image_rank, text_rank in zip(
                captioned, captions, image_ranks, text_ranks, strict=True
            ):
                ranks_by_direction = {
                    f"{medium} to {text}": rank_in_words(image_rank, stage.texts.ids.shape[1]),
                    f"{text} to {medium}": rank_in_words(text_rank, stage.images.ids.shape[1]),
                }
                prediction = self._prediction(record)
                prediction[kind.removesuffix("s")] = caption
                prediction.setdefault("ranks", {}).setdefault(name, {}).update(ranks_by_direction)
        return metrics

    def _grounding(self) -> list[Metric]:
        """Computes the accuracy of the boxes by grain (type of description). The chance level is the result if the mean box of
        the grain is always predicted."""
        records = [record for record in self.with_boxes if record.elements]
        if not records:
            return []
        share = distributed.share_of(len(records))
        by_rank = distributed.gather_objects(self._predict_boxes(records[share.start : share.stop]))
        predicted = np.concatenate([boxes for rank_boxes in by_rank for boxes in rank_boxes])
        true = np.array([element.box for record in records for element in record.elements])
        overlaps = iou(predicted, true)
        self._record_boxes(records, predicted, overlaps)
        images = np.repeat(np.arange(len(records)), [len(record.elements) for record in records])
        grains = np.array([element.grain for record in records for element in record.elements])
        metrics = []
        for grain in sorted(set(grains.tolist())):
            rows = grains == grain
            mean_box = np.broadcast_to(true[rows].mean(axis=0), true[rows].shape)
            scores, chance = Scores(overlaps[rows] >= 0.5, images[rows]), accuracy_at_iou(mean_box, true[rows])
            metrics.append(count(f"{grain} phrases", int(rows.sum())))
            metrics.append(Metric.mean_of(f"{grain} box, IoU >= 0.5", scores, chance))
        return metrics

    def _predict_boxes(self, records: Sequence[HeldOutRecord]) -> list[np.ndarray]:
        """Predicts the boxes of each record's elements, (E, 4) as centre and size."""
        boxes: list[np.ndarray] = []
        for block in _blocks(records, self.config.batch_size):
            counts = [len(record.elements) for record in block]
            text = self._encode_texts([element.caption for record in block for element in record.elements])
            index = torch.arange(len(block)).repeat_interleave(torch.tensor(counts)).to(self.device)
            predicted = self.model.predict_boxes(text, self._encode_images(block), index).cpu().numpy()
            boxes += np.split(predicted, np.cumsum(counts)[:-1])
        return boxes

    def _masked_words(self) -> list[Metric]:
        """Computes the accuracy of predicting masked words of captions from the caption and its image. The chance level is the
        result if the most frequent masked word is always predicted."""
        captioned = [record for record in self.records if record.captions]
        share = distributed.share_of(len(captioned))
        local: list[np.ndarray] = []  # for each batch, (3, W): record, word, and whether the prediction is correct
        for start in range(share.start, share.stop, self.config.batch_size):
            block = captioned[start : min(start + self.config.batch_size, share.stop)]
            rngs = [sample_rng(self.seed, "held-out", 0, start + index) for index in range(len(block))]
            examples = [self.processor.encode(r.captions[0], rng) for r, rng in zip(block, rngs, strict=True)]
            text = to_device(self.processor.collate(examples), self.device)
            (masked,) = self.model.text([text.masked_copy()])
            positions, labels = masked_positions(text)
            logits = self.model.predict_words(masked, self._encode_images(block), positions)
            best = logits.max(dim=1)  # NaN if any logit is NaN
            require_finite(best.values, "logits of masked words")
            predicted = best.indices
            record = start + positions.packing.text_index
            judged = torch.stack([record, labels, predicted == labels]).cpu().numpy()
            local.append(judged[:, judged[1] != IGNORE])
        by_rank = distributed.gather_objects(local)
        joined = np.concatenate(
            [np.zeros((3, 0), np.int64), *(batch for rank_batches in by_rank for batch in rank_batches)], axis=1
        )
        records, labels, right = joined
        if not labels.size:
            return []
        most_frequent = float(np.bincount(labels).max()) / labels.size
        return [
            count("masked words", labels.size),
            Metric.mean_of("masked word", Scores(right, records), most_frequent),
        ]

    def _encode_images(self, records: Sequence[HeldOutRecord]) -> Concepts:
        pixels = stack_views([record.pixels for record in records], self.model.config.vision.image_size)
        return self.model.vision(pixels.to(self.device))

    def _encode_texts(self, texts: Sequence[str]) -> PackedTexts:
        return self.model.text([to_device(self.processor.encode_plain(texts), self.device)])[0]

    def _record_boxes(self, records: Sequence[HeldOutRecord], predicted: np.ndarray, overlaps: np.ndarray) -> None:
        """Adds the boxes to the predictions, as x, y, width, height in pixels."""
        boxes, ious = iter(predicted.tolist()), iter(overlaps.tolist())
        for record in records:
            assert record.size is not None
            self._prediction(record)["boxes"] = [
                {
                    "phrase": element.caption,
                    "grain": element.grain,
                    "predicted": _in_pixels(next(boxes), record.size),
                    "true": _in_pixels(element.box, record.size),
                    "iou": round(next(ious), 4),
                }
                for element in record.elements
            ]

    def draw(self, path: Path) -> np.ndarray | None:
        """Writes a sheet of images with ground-truth and predicted boxes and their phrases. Returns the sheet, or None if the
        records have no boxes. Call :meth:`evaluate` first."""
        numbers = [
            n for n, record in enumerate(self.with_boxes) if "boxes" in self.predictions.get(record.location, {})
        ]
        shown = [numbers[index] for index in spread(len(numbers), self.config.panels)]
        files_key = "region_files" if self.config.region_files else "files"
        shards = Shards(
            getattr(self.config, files_key),
            key=f"evaluation.{files_key}",
            index_folder=self.data.cache_index,
            remote=self.data.remote,
        )
        panels, broken = readable_panels(
            (partial(self._panel, shards, files_key, number) for number in shown), path.name
        )
        if not panels:
            return None
        title = f"held-out: {len(panels)} of {len(numbers):,} images with boxes, evenly spaced over the files{broken}"
        return draw_sheet(Sheet(title, BOX_LEGEND, panels), path)

    def _panel(self, shards: Shards, files_key: str, number: int) -> Panel:
        """Decodes an image again and draws it with the boxes of at most :data:`MAX_BOXES` phrases."""
        record, stream = self.with_boxes[number], self.reader.stream(files_key)
        source = parse_region_record(shards.read(number), ImageKeys.of(stream), stream.caption_key).image
        view = EvaluationView(self.model.config.vision.image_size, self.data.max_pixels, pixels=self.data.pixels)
        pixels = ImageReader(view)(source, size=record.size)
        boxes = self.predictions[record.location]["boxes"]
        chosen = [boxes[index] for index in spread(len(boxes), MAX_BOXES)]
        pairs, lines = [], []
        for number, (box, colour) in enumerate(zip(chosen, colours(len(chosen)), strict=True), start=1):
            label = str(number) if len(chosen) > 1 else ""
            pairs.append(pair_of_boxes(box, record.size, colour, label))
            lines.append(Line(f"IoU {box['iou']:.2f} · {box['phrase']}", box["iou"] >= 0.5, (colour, label)))
        if more := len(boxes) - len(chosen):
            lines.append(Line(f"and {more} more phrases", faint=True))
        return Panel((DrawnImage(pixels, tuple(pairs)),), tuple(lines))


def _in_pixels(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    (cx, cy, w, h), (width, height) = box, size
    return [round(value, 2) for value in ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)]


def _blocks(records: Sequence[HeldOutRecord], size: int) -> Iterator[Sequence[HeldOutRecord]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]
