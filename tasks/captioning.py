"""Image captioning as a task: fine-tuning, generation, and the metrics of what was generated."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from dataset.captioned import CaptionedImages, CaptionedSplitConfig, read_captioned_images
from dataset.captioning import CaptioningBatches, CaptioningDataConfig, prompt_tokens
from dataset.finetune import EvaluationView
from dataset.records import ImageSource
from dataset.text import TextProcessor
from dataset.video import VideoSource
from engine.checkpoint import Checkpoint
from engine.train_config import TrainConfig
from metrics.captions import caption_metrics, tokenize, tokenize_references
from metrics.captions.cider import CiderD, DocumentFrequencies
from metrics.captions.frequencies import read_document_frequencies
from metrics.captions.java import check_java_metrics, java_metrics
from models.captioning import CaptioningLossConfig, CaptioningModel, CaptionTokens
from models.checkpoints import LoadReport
from models.generation import DecodingConfig
from models.self_critical import Reward, SelfCriticalConfig, SelfCriticalModel
from models.text import TextEncoder
from tasks.media import MediaConfig, MediaEvaluationConfig, MediaTask
from utils.batch import IGNORE, Text
from utils.errors import UserError

END = "</s>"
"""The word that stands for a caption's end in the self-critical reward; no tokenized caption has it."""

logger = logging.getLogger(__name__)

OF_PRE_TRAINING = ("box_head.", "bbox_head.")
"""Our names and the published ones of what pre-training has and captioning has not."""


class CaptioningEvaluationConfig(MediaEvaluationConfig[CaptionedSplitConfig]):
    """Also how captions are generated."""

    decoding: DecodingConfig = DecodingConfig()
    document_frequencies: str | None = Field(
        None,
        description="CIDEr's weights of words from a file, JSON or the usual pickle; null: of the split's own references, as is "
        "standard. The self-critical reward counts them on the training captions",
    )
    java_metrics: list[Literal["METEOR", "SPICE"]] = Field(
        [], description="metrics that need the optional pycocoevalcap and Java"
    )


class CaptioningTrainConfig(TrainConfig):
    """Also what is learned."""

    objective: Literal["likelihood", "self_critical"] = Field(
        "likelihood",
        description="likelihood of the captions; or, as a second step from its weights, CIDEr-D of what the model says",
    )


class CaptioningConfig(MediaConfig):
    """A captioning run."""

    task: Literal["captioning"] = "captioning"
    loss: CaptioningLossConfig = CaptioningLossConfig()
    self_critical: SelfCriticalConfig = SelfCriticalConfig()
    data: CaptioningDataConfig
    train: CaptioningTrainConfig
    evaluation: CaptioningEvaluationConfig

    @model_validator(mode="after")
    def _has_something_to_judge(self) -> CaptioningConfig:
        if self.train.objective == "self_critical" and self.init.checkpoint is None:
            raise ValueError(
                "train.objective: self_critical is a second step; give init.checkpoint the folder of a captioning run"
            )
        return self


class CaptioningTask(MediaTask[CaptioningConfig, CaptioningModel]):
    """Model, data and measures of a captioning run."""

    measure = "CIDEr"
    make_batches = CaptioningBatches

    def __init__(self, config: CaptioningConfig, checkpoint: Checkpoint | None = None, *, trains: bool = True):
        try:
            check_java_metrics(config.evaluation.java_metrics)
        except UserError as error:
            raise UserError(f"evaluation.java_metrics: {error}") from None
        path = config.evaluation.document_frequencies
        key = "evaluation.document_frequencies"
        self.frequencies = None if path is None else read_document_frequencies(path, key)
        super().__init__(config, checkpoint, trains=trains)
        processor = TextProcessor(self.tokenizer, config.data.text)
        prompt = prompt_tokens(processor, config.data.prompt)
        self.tokens = CaptionTokens(tuple(prompt), processor.sep_id, processor.mask_id, processor.pad_id)
        self._check_room(len(prompt), config)
        if trains and isinstance(self.model, SelfCriticalModel):
            self.model.set_reward(self._reward(), self.tokens, config.self_critical)

    @staticmethod
    def build_model(config: CaptioningConfig, vocab_size: int | None) -> CaptioningModel:
        kind = SelfCriticalModel if config.train.objective == "self_critical" else CaptioningModel
        return kind(config.model, vocab_size, config.loss)

    def check_trained_for(self, task: str | None, weights: Path, report: LoadReport) -> None:
        """The self-critical step improves what a model already says."""
        if self.config.train.objective != "self_critical":
            return
        remedy = "train.objective: self_critical is a second step; give init.checkpoint the folder of a captioning run"
        if task not in (None, "captioning"):
            raise UserError(f"init.checkpoint: {weights} is of a run of task {task}; {remedy}")
        if any(name.startswith(OF_PRE_TRAINING) for name in report.unused):
            logger.warning("init.checkpoint: %s has heads of pre-training; %s", weights, remedy)

    def batches(self) -> CaptioningBatches:
        made = super().batches()
        assert isinstance(made, CaptioningBatches)
        self.training = made
        return made

    @staticmethod
    def read_split(split: CaptionedSplitConfig, key: str) -> CaptionedImages:
        return read_captioned_images(split, key, 0.0)

    @staticmethod
    def sources(items: CaptionedImages) -> Sequence[ImageSource | VideoSource]:
        return items.images

    def measures(self, items: CaptionedImages) -> dict[str, float]:
        captions = self.captions(items)
        references = items.references()
        # By chance: what somebody wrote under another picture.
        others = [written[0] for written in (*references[1:], references[0])]
        metrics: dict[str, float] = {"images": len(items.images), "captions": len(items.captions)}
        chance = caption_metrics(others, references, self.frequencies)
        for name, value in caption_metrics(captions, references, self.frequencies).items():
            metrics[name], metrics[f"{name}/chance"] = value, chance[name]
        if names := self.config.evaluation.java_metrics:
            metrics |= java_metrics(tokenize(captions), tokenize_references(references), names)
        self.predictions = [
            {"image_id": _server_id(identity), "caption": caption}
            for identity, caption in zip(items.ids, captions, strict=True)
        ]
        return metrics

    def captions(self, items: CaptionedImages) -> list[str]:
        """A generated caption for each image, the same on every rank."""
        decoding = self.config.evaluation.decoding
        # Each image has chances of its own, so that nothing depends on how the images are dealt out.
        chances = np.random.default_rng(self.config.seed).random((len(items.images), decoding.max_length))

        def say(pictures: list[tuple[int, Tensor]], text: Text) -> Tensor:
            pixels = torch.stack([picture for _, picture in pictures]).to(text.ids.device)
            own = torch.from_numpy(chances[[index for index, _ in pictures]]).float().to(pixels.device)
            return self.model.generate(self.model.images_memory(pixels), self.tokens, decoding, own).tokens

        read = partial(_read, prompt=self.config.data.prompt)
        words = self.outputs(items.images, read, say, "captioning")
        return [self._spelled(row) for row in words.tolist()]

    def _spelled(self, words: Sequence[int]) -> str:
        said = [word for word in words if word != IGNORE]
        return str(self.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=True))

    def _reward(self) -> Reward:
        """CIDEr-D against the references of the image; how telling a word is, is counted on the training captions.

        The end is a word like others: else nothing tells a caption that stops after "a red" from one that goes on.
        """
        written = self.training.references
        tokens = {
            own: [f"{caption} {END}" for caption in found]
            for own, found in zip(written, tokenize_references(written), strict=True)
        }
        cider = CiderD(DocumentFrequencies.of(tokens[own] for own in written))

        def reward(said: Sequence[Sequence[int]], references: Sequence[tuple[str, ...]]) -> Sequence[float]:
            captions = [
                f"{caption} {END}" if self.tokens.end in words else caption
                for caption, words in zip(tokenize([self._spelled(words) for words in said]), said, strict=True)
            ]
            # A row that does not count has no references; its reward is not looked at.
            return cider.scores(captions, [tokens.get(own, [""]) for own in references]).tolist()

        return reward

    def _check_room(self, prompt: int, config: CaptioningConfig) -> None:
        assert isinstance(self.model.text, TextEncoder)
        arch = self.model.text.arch
        wanted = {"evaluation.decoding": config.evaluation.decoding.max_length}
        if config.train.objective == "self_critical":
            wanted["self_critical"] = config.self_critical.max_length
        beams, words = config.evaluation.decoding.beams, len(self.tokenizer)
        if beams > words:
            raise UserError(
                f"evaluation.decoding.beams is {beams}, more than the {words} entries of the tokenizer; lower it"
            )
        for section, longest in wanted.items():
            if prompt + longest > arch.longest_text:
                raise UserError(
                    f"{section}.max_length: with the prompt, a caption could have {prompt + longest} tokens, but model.text has "
                    f"positions for {arch.longest_text}; lower it"
                )


def _read(
    view: EvaluationView, max_words: int, images: Sequence[ImageSource | VideoSource], index: int, *, prompt: str
) -> tuple[tuple[int, Tensor], str]:
    """The picture (3, S, S) or video (F, 3, S, S) with its number, and the prompt."""
    return (index, view(images[index])), prompt


def _server_id(identity: str) -> int | str:
    """COCO's evaluation takes numbers: "coco_391895", "391895" and "val2014/COCO_val2014_000000391895.jpg" are 391895; other
    names stay."""
    match = re.fullmatch(r"(?:coco_|(?:.*/)?COCO_\w+?_)?0*(\d+)(?:\.jpg)?", identity)
    return int(match[1]) if match else identity
