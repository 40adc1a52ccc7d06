"""What pre-training has learned, on held-out records: retrieval, boxes and masked words, each beside its chance level."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from dataset.held_out import HeldOutRecord, read_held_out, read_held_out_videos
from dataset.pretrain import DataConfig
from dataset.readers import Shards
from dataset.samplers import sample_rng
from dataset.streams.base import PictureStreamConfig
from dataset.streams.pairs import first_clips
from dataset.text import TextProcessor
from dataset.video import FrameSampler, check_backend
from metrics.grounding import accuracy_at_iou
from metrics.retrieval import recall_at
from models.multigrained import MaskedWords
from models.packing import PackedTexts
from models.pretrain import PretrainModel
from models.reranking import TextBank, score_pairs
from models.vision import Concepts
from tasks.pictures import Panel, Prediction, draw_predictions
from utils.batch import IGNORE, to_device
from utils.config import Config
from utils.errors import UserError

logger = logging.getLogger(__name__)


class EvaluationConfig(Config):
    """Held-out records; their first caption is the one that has to be found."""

    files: list[str] = Field([], description="records of pictures")
    region_files: list[str] = Field([], description="records of the boxes, if not those of `files`")
    video_files: list[str] = Field([], description="records of videos, read as those of data.videos")
    candidates: int = Field(16, ge=1, description="candidates that the fusion encoder re-ranks, each way")
    batch_size: int = Field(50, ge=1)
    limit: int | None = Field(None, ge=1, description="read so many records at most")
    panels: int = Field(12, ge=1, description="pictures in predictions.png: the first records with boxes")

    @model_validator(mode="after")
    def _has_files(self) -> EvaluationConfig:
        if not (self.files or self.region_files or self.video_files):
            raise ValueError("names no files; give files, region_files or video_files, or drop evaluation")
        return self


def check_files(config: EvaluationConfig, data: DataConfig) -> None:
    """Raise a :class:`UserError` before training if held-out files are missing or empty, or videos cannot be read."""
    for which in ("files", "region_files", "video_files"):
        if files := getattr(config, which):
            shards = Shards(files, key=f"evaluation.{which}", index_folder=data.cache_index)
            if which == "video_files":
                if data.videos is None:
                    raise UserError("evaluation.video_files: there is no data.videos to say how they are read; add it")
                clips = first_clips(shards, data.videos, data.videos.caption_key)
                check_backend(clips, data.videos.reading, "data.videos.reading")


class Evaluation:
    """Evaluates a model once; ``metrics()`` has ``<name>`` and ``<name>/chance`` entries, shares in 0..1."""

    def __init__(
        self, config: EvaluationConfig, data: DataConfig, model: PretrainModel, processor: TextProcessor, seed: int
    ):
        self.config, self.data, self.model, self.processor, self.seed = config, data, model, processor, seed
        self.device = next(model.parameters()).device
        self.records = self._read("files") if config.files else []
        self.with_boxes = self._read("region_files") if config.region_files else self.records
        self.videos = self._read_videos() if config.video_files else []

    def _read_videos(self) -> list[HeldOutRecord]:
        stream, vision = self.data.videos, self.model.config.vision
        assert stream is not None and vision.video is not None
        return read_held_out_videos(
            self.config.video_files,
            self.processor,
            stream,
            FrameSampler(vision.video.frames, stream.reading, self.data.max_pixels),
            image_size=vision.image_size,
            limit=self.config.limit,
            index_folder=self.data.cache_index,
        )

    def _read(self, which: str) -> list[HeldOutRecord]:
        """Records under the keys that training reads: those of the region stream for boxes, if there is one."""
        regions = self.data.regions if which == "region_files" or self.data.images is None else None
        stream = regions or self.data.images or PictureStreamConfig(files=[], batch_size=1)
        return read_held_out(
            getattr(self.config, which),
            self.processor,
            image_size=self.model.config.vision.image_size,
            keys=stream.keys(),
            caption_key=stream.caption_key,
            max_pixels=self.data.max_pixels,
            limit=self.config.limit,
            config_key=f"evaluation.{which}",
            index_folder=self.data.cache_index,
        )

    def metrics(self) -> dict[str, float]:
        """All metrics of the held-out records; the model is in evaluation mode."""
        videos = {name.replace("image", "video"): each for name, each in self._retrieval(self.videos).items()}
        if videos:
            videos["videos"] = videos.pop("records")
        return {**self._retrieval(self.records), **videos, **self._grounding(), **self._words()}

    def _retrieval(self, records: Sequence[HeldOutRecord]) -> dict[str, float]:
        captioned = [record for record in records if record.captions]
        if not captioned:
            return {}
        images = self._encode_images(captioned)
        text = self._encode_texts([record.captions[0] for record in captioned])
        head = self.model.contrastive
        cosine = (head.embed_image(images) @ head.embed_text(text).t()).cpu()
        scores = {"cosine": (cosine, cosine), "reranked": self._rerank(images, text, cosine)}
        same = np.eye(len(captioned), dtype=bool)
        results: dict[str, float] = {"records": len(captioned)}
        for name, (by_image, by_text) in scores.items():
            results[f"image to text R@1 ({name})"] = recall_at(by_image.numpy(), same, ks=(1,))[1]
            results[f"text to image R@1 ({name})"] = recall_at(by_text.t().numpy(), same, ks=(1,))[1]
        for name in list(results):
            if "R@1" in name:
                results[f"{name}/chance"] = 1 / len(captioned)
        return results

    def _rerank(self, images: Concepts, text: PackedTexts, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Matching scores of each image's best texts and each text's best images; pairs wanted both ways are scored once.

        Returns (N, N) scores for ranking texts by image and images by text; -inf where a pair was no candidate.
        """
        k = min(self.config.candidates, len(cosine))
        by_image = torch.zeros(cosine.shape, dtype=torch.bool).scatter_(1, cosine.topk(k, dim=1).indices, True)
        by_text = torch.zeros(cosine.shape, dtype=torch.bool).scatter_(0, cosine.topk(k, dim=0).indices, True)
        scores = torch.full(cosine.shape, -torch.inf)
        bank = TextBank.of([text])
        for start in range(0, len(cosine), self.config.batch_size):
            block = slice(start, start + self.config.batch_size)
            wanted = [row.nonzero().squeeze(1) for row in (by_image | by_text)[block]]
            part = Concepts(images.patches[block], images.mean[block])
            found = score_pairs(self.model.fusion, self.model.matching_head, part, wanted, bank)
            for image, (texts, logits) in enumerate(zip(wanted, found, strict=True), start=start):
                scores[image, texts] = logits.cpu()
        return scores.masked_fill(~by_image, -torch.inf), scores.masked_fill(~by_text, -torch.inf)

    def _grounding(self) -> dict[str, float]:
        records = [record for record in self.with_boxes if record.elements]
        if not records:
            return {}
        predicted = np.concatenate(self._predict_boxes(records))
        true = np.array([element.box for record in records for element in record.elements])
        grains = np.array([element.grain for record in records for element in record.elements])
        results: dict[str, float] = {}
        for grain in sorted(set(grains.tolist())):
            chosen = grains == grain
            mean_box = np.broadcast_to(true[chosen].mean(axis=0), true[chosen].shape)
            results[f"{grain} phrases"] = int(chosen.sum())
            results[f"{grain} box, IoU >= 0.5"] = accuracy_at_iou(predicted[chosen], true[chosen])
            results[f"{grain} box, IoU >= 0.5/chance"] = accuracy_at_iou(mean_box, true[chosen])
        return results

    def _predict_boxes(self, records: Sequence[HeldOutRecord]) -> list[np.ndarray]:
        """For each record the boxes of its elements, (E, 4) as centre and size."""
        boxes: list[np.ndarray] = []
        for block in _blocks(records, self.config.batch_size):
            counts = [len(record.elements) for record in block]
            text = self._encode_texts([element.caption for record in block for element in record.elements])
            index = torch.arange(len(block)).repeat_interleave(torch.tensor(counts)).to(self.device)
            found = self.model.predict_boxes(text, self._encode_images(block), index).cpu().numpy()
            boxes += np.split(found, np.cumsum(counts)[:-1])
        return boxes

    def _words(self) -> dict[str, float]:
        """Masked words of captions, seen with their picture; chance = always the most frequent masked word."""
        right, labels = 0, []
        captioned = [record for record in self.records if record.captions]
        for start, block in enumerate(_blocks(captioned, self.config.batch_size)):
            first = start * self.config.batch_size
            rngs = [sample_rng(self.seed, "held-out", 0, first + index) for index in range(len(block))]
            examples = [self.processor.encode(r.captions[0], rng) for r, rng in zip(block, rngs, strict=True)]
            text = to_device(self.processor.collate(examples), self.device)
            (masked,) = self.model.text([text.masked_copy()])
            words = MaskedWords.of(text)
            guesses = self.model.predict_words(masked, self._encode_images(block), words).argmax(dim=1)
            counts = words.labels != IGNORE
            right += int((guesses == words.labels)[counts].sum())
            labels += words.labels[counts].tolist()
        if not labels:
            return {}
        most_frequent = np.bincount(labels).max() / len(labels)
        return {
            "masked words": len(labels),
            "masked word": right / len(labels),
            "masked word/chance": float(most_frequent),
        }

    def _encode_images(self, records: Sequence[HeldOutRecord]) -> Concepts:
        parts = [
            self.model.vision(torch.stack([r.pixels for r in block]).to(self.device))
            for block in _blocks(records, self.config.batch_size)
        ]
        return Concepts(torch.cat([part.patches for part in parts]), torch.cat([part.mean for part in parts]))

    def _encode_texts(self, texts: Sequence[str]) -> PackedTexts:
        return self.model.text([to_device(self.processor.encode_plain(texts), self.device)])[0]

    def draw(self, path: Path) -> None:
        """Write the first held-out pictures with true and predicted boxes and their phrases."""
        records = [record for record in self.with_boxes if record.elements][: self.config.panels]
        if not records:
            return
        panels = []
        for record, boxes in zip(records, self._predict_boxes(records), strict=True):
            pairs = zip(record.elements, boxes, strict=True)
            found = [Prediction(element.caption, element.box, tuple(box.tolist())) for element, box in pairs]
            panels.append(Panel(record.pixels.permute(1, 2, 0).numpy(), found))
        draw_predictions(panels, path)


def _blocks(records: Sequence[HeldOutRecord], size: int) -> Iterator[Sequence[HeldOutRecord]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]
