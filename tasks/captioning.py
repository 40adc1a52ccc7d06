"""The image captioning task: fine-tuning, generation, and evaluation of the generated captions."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batches.texts import Text
from dataset.config import CaptionedSplitConfig
from dataset.formats.captioned import CaptionedImages, read_captioned_images
from dataset.media.sources import ImageSource, VideoSource
from dataset.media.views import EvaluationView
from dataset.tasks.captioning import CaptioningBatches, prompt_tokens
from dataset.text.processors import TextProcessor, decode_to_text
from metrics.bootstrap import Scores
from metrics.captions import caption_metrics, caption_scores, tokenize, tokenize_references
from metrics.captions.cider import CiderD, DocumentFrequencies
from metrics.captions.frequencies import read_document_frequencies
from metrics.captions.java import check_java_metrics, java_metrics
from models.checkpoints import LoadReport
from models.tasks.captioning import CaptioningModel, CaptionTokens
from models.tasks.self_critical import Reward, SelfCriticalModel
from tasks.base import Parts
from tasks.config import CaptioningConfig
from tasks.drawing import DrawnImage, ImageReader, Line, Panel
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import HeldOut
from tasks.inference import require_finite
from tasks.media import MediaTask
from utils.errors import UserError

END = "</s>"
"""Word that marks the end of a caption when the self-critical reward is computed. It never occurs in a tokenized caption."""

logger = logging.getLogger(__name__)

PRETRAINING_PREFIXES = ("box_head.", "bbox_head.")
"""Name prefixes of parameters that exist in pre-training but not in captioning, in our weights and in the authors' weights."""


class CaptioningTask(MediaTask[CaptioningConfig, CaptioningModel, CaptioningBatches]):
    """Model, data and evaluation of a captioning run."""

    batches = CaptioningBatches
    measure = "CIDEr"
    legend = "black: generated · grey: the first reference caption"

    def __init__(self, config: CaptioningConfig, parts: Parts[CaptioningModel, CaptioningBatches], held_out: HeldOut):
        super().__init__(config, parts, held_out)
        try:
            check_java_metrics(config.evaluation.java_metrics)
        except UserError as error:
            raise UserError(f"{error}", where="evaluation.java_metrics") from None
        path = config.evaluation.document_frequencies
        key = "evaluation.document_frequencies"
        self.frequencies = None if path is None else read_document_frequencies(path, key)
        processor = TextProcessor(self.tokenizer, config.data.text)
        prompt = prompt_tokens(processor, config.data.prompt)
        self.tokens = CaptionTokens(tuple(prompt), processor.sep_id, processor.mask_id, processor.pad_id)
        self._check_lengths(len(prompt), config)
        if parts.training is not None and isinstance(self.model, SelfCriticalModel):
            self.model.set_reward(self._reward(parts.training.items.references()), self.tokens, config.self_critical)

    @staticmethod
    def build_model(config: CaptioningConfig, vocab_size: int | None) -> CaptioningModel:
        kind = SelfCriticalModel if config.train.objective == "self_critical" else CaptioningModel
        return kind(config.model, vocab_size, config.loss)

    @staticmethod
    def check_origin(config: CaptioningConfig, task: str | None, weights: Path, report: LoadReport) -> None:
        """Checks that self-critical training, which improves the captions of a model, starts from a captioning run."""
        if config.train.objective != "self_critical":
            return
        remedy = (
            "train.objective: self_critical is a second training stage; set init.checkpoint to a captioning run's "
            "folder"
        )
        if task not in (None, "captioning"):
            raise UserError(f"{weights} was written by a {task} run", where="init.checkpoint", remedy=remedy)
        if any(name.startswith(PRETRAINING_PREFIXES) for name in report.unused):
            logger.warning("init.checkpoint: %s has pre-training heads; %s", weights, remedy)

    @staticmethod
    def read_split(config: CaptioningConfig, split: CaptionedSplitConfig, key: str) -> CaptionedImages:
        return read_captioned_images(split, key, 0.0)

    @staticmethod
    def sources(items: CaptionedImages) -> Sequence[ImageSource | VideoSource]:
        return items.images

    def evaluate(self, items: CaptionedImages) -> Evaluation:
        """Computes the metrics of COCO's evaluation. The chance level is the result if each image is described by the next
        image's first caption. The intervals of CIDEr resample the scores of the images, while the document frequencies of the
        references stay fixed."""
        captions = self.captions(items)
        references = items.references()
        guessed = [captions_of_next[0] for captions_of_next in (*references[1:], references[0])]
        chance = caption_metrics(guessed, references, self.frequencies)
        metrics = [count("images", len(items.images)), count("captions", len(items.captions))]
        values, image_scores = caption_scores(captions, references, self.frequencies)
        for name, value in values.items():
            scores = (Scores(image_scores[name], items.ids),) if name in image_scores else ()
            metrics.append(Metric(name, value, chance[name], "score", scores=scores))
        if names := self.config.evaluation.java_metrics:
            by_name = java_metrics(tokenize(captions), tokenize_references(references), names)
            metrics += [Metric(name, value, unit="score") for name, value in by_name.items()]
        predictions = [
            {"image_id": _server_id(identity), "caption": caption}
            for identity, caption in zip(items.ids, captions, strict=True)
        ]
        return Evaluation(tuple(metrics), predictions)

    def panel(self, items: CaptionedImages, number: int, prediction: Mapping[str, Any], read: ImageReader) -> Panel:
        reference = items.captions[int(np.searchsorted(items.image_of_caption, number))]
        lines = (Line(prediction["caption"] or "(no caption)"), Line(f"reference: {reference}", faint=True))
        return Panel((DrawnImage(read(items.images[number])),), lines)

    def captions(self, items: CaptionedImages) -> list[str]:
        """Generates a caption for each image. Returns the same captions on every rank."""
        decoding = self.config.evaluation.decoding
        # Each image has its own random numbers, so that results do not depend on which rank processes it.
        uniforms = np.random.default_rng(self.config.seed).random((len(items.images), decoding.max_length))

        def generate(images: list[tuple[int, Tensor]], text: Text) -> Tensor:
            pixels = self.stacked([image for _, image in images])
            image_uniforms = torch.from_numpy(uniforms[[index for index, _ in images]]).float().to(text.ids.device)
            generated = self.model.generate(self.model.project_images(pixels), self.tokens, decoding, image_uniforms)
            require_finite(generated.score, "log-likelihoods of captions")
            return generated.tokens

        read = partial(_read, prompt=self.config.data.prompt)
        tokens = self.outputs(items.images, read, generate, "captioning")
        return [decode_to_text(self.tokenizer, ids) for ids in tokens.tolist()]

    def _reward(self, references: Sequence[tuple[str, ...]]) -> Reward:
        """Returns a function that computes the CIDEr-D reward of generated captions. Document frequencies are counted in
        ``references``, the training captions.

        The end of a caption counts as a word. Otherwise, a caption that stops after "a red" would look like a prefix of a good
        caption.
        """
        tokens = {
            captions: [f"{caption} {END}" for caption in tokenized]
            for captions, tokenized in zip(references, tokenize_references(references), strict=True)
        }
        cider = CiderD(DocumentFrequencies.of(tokens[captions] for captions in references))

        def reward(generated: Sequence[Sequence[int]], true: Sequence[tuple[str, ...]]) -> Sequence[float]:
            captions = [
                f"{caption} {END}" if self.tokens.end in ids else caption
                for caption, ids in zip(
                    tokenize([decode_to_text(self.tokenizer, ids) for ids in generated]), generated, strict=True
                )
            ]
            # Examples that do not count have no references, and their reward is ignored.
            return cider.scores(captions, [tokens.get(captions, [""]) for captions in true]).tolist()

        return reward

    def _check_lengths(self, prompt: int, config: CaptioningConfig) -> None:
        lengths = {"evaluation.decoding": config.evaluation.decoding.max_length}
        if config.train.objective == "self_critical":
            lengths["self_critical"] = config.self_critical.max_length
        beams, words = config.evaluation.decoding.beams, len(self.tokenizer)
        if beams > words:
            raise UserError(
                f"evaluation.decoding.beams is {beams}, but the tokenizer has only {words} entries", remedy="lower it"
            )
        longest = self.model.text.longest_text
        for section, length in lengths.items():
            if longest is not None and prompt + length > longest:
                raise UserError(
                    f"including the prompt, a caption could have {prompt + length} tokens, but model.text has positions "
                    f"for {longest}",
                    where=f"{section}.max_length",
                    remedy="lower it",
                )


def _read(
    view: EvaluationView, max_words: int, images: Sequence[ImageSource | VideoSource], index: int, *, prompt: str
) -> tuple[tuple[int, Tensor], str]:
    """Returns the index of an image or video with its pixels, (3, S, S) or (F, 3, S, S), and the prompt."""
    return (index, view(images[index])), prompt


def _server_id(identity: str) -> int | str:
    """Converts an image id to the integer that COCO's evaluation expects: "coco_391895", "391895" and
    "val2014/COCO_val2014_000000391895.jpg" become 391895. Other names are returned unchanged."""
    match = re.fullmatch(r"(?:coco_|(?:.*/)?COCO_\w+?_)?0*(\d+)(?:\.jpg)?", identity)
    return int(match[1]) if match else identity
