"""Multi-grained pre-training: aligning and localization of images, regions, videos and their texts (section 3.3, eqs. 1-6)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Generator
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from models import losses
from models.align import AligningModel, Rows
from models.encoded import Concepts, Encoded
from models.fusion import At, Look, Part
from models.heads import WordHead, mlp_head, predict_box
from models.layers import gather_positions
from models.layout import Layout
from models.pretrain_work import pretrain_work
from models.xvlm import AligningConfig, ContrastiveConfig
from utils.batch import (
    IGNORE,
    ImageTextBatch,
    Losses,
    MaskedText,
    PretrainBatch,
    RegionBatch,
    Term,
    Text,
    TextBatch,
    TextPairBatch,
    VideoTextBatch,
    Work,
)
from utils.config import Config
from utils.errors import UserError

Identical = Literal["ignore", "negative"]


class IdenticalTexts(Config):
    """What two equal texts of a batch are to each other, by stream."""

    images: Identical = "negative"
    videos: Identical = "negative"
    pairs: Identical = "negative"
    regions: Identical = Field("ignore", description="regions often share a text ('a man'); ignore: no negatives")


class PretrainContrastiveConfig(ContrastiveConfig):
    """Also what equal texts of a batch are to each other."""

    identical_texts: IdenticalTexts = IdenticalTexts()

    @field_validator("identical_texts", mode="before")
    @classmethod
    def _one_word_for_all(cls, value: Any) -> Any:
        return dict.fromkeys(IdenticalTexts.model_fields, value) if isinstance(value, str) else value


class PretrainModelConfig(AligningConfig):
    """The model of pre-training."""

    contrastive: PretrainContrastiveConfig = PretrainContrastiveConfig()
    word_table: Literal["tied", "own"] = Field(
        "tied",
        description="of the word head: tied to the word embeddings, as in BERT; own: a table apart, as released for XLM-R",
    )


class LossWeights(Config):
    """Factors of the terms of equation 6, which has them all equal."""

    contrastive: float = Field(1.0, ge=0)
    matching: float = Field(1.0, ge=0)
    mlm: float = Field(1.0, ge=0)
    l1: float = Field(1.0, ge=0)
    giou: float = Field(1.0, ge=0)
    whole_image_boxes: bool = Field(False, description="learn boxes from whole-image rows too, (0.5, 0.5, 1, 1)")


class StreamWeights(Config):
    """Factor of each stream's losses; None: the run does not have the stream."""

    images: float | None = 1.0
    regions: float | None = 1.0
    texts: float | None = None
    pairs: float | None = None
    videos: float | None = None


_StreamLosses = Generator[list[Part], list[Encoded], dict[str, Tensor]]
"""A stream's losses: asks the fusion once, for all that it needs, and goes on with what comes back."""


class PretrainModel(AligningModel):
    """:class:`AligningModel` with every pre-training head. ``forward(batch)`` gives all losses of all streams in one call."""

    def __init__(
        self,
        config: PretrainModelConfig,
        vocab_size: int | None = None,
        weights: LossWeights | None = None,
        streams: StreamWeights | None = None,
    ):
        super().__init__(config, vocab_size)
        self.config: PretrainModelConfig = config
        self.weights = weights or LossWeights()
        self.streams = streams or StreamWeights()
        width = self.text.width
        self.box_head = mlp_head(width, 4)
        vocabulary, embedded = self.text.word_embeddings.shape
        own_table = config.word_table == "own"
        if embedded != width and not own_table:
            raise UserError(
                f"model.word_table: tied, but words are embedded in {embedded} dimensions and model.fusion has {width}; "
                "set it to `own`"
            )
        if self.streams.pairs is not None and self.vision.width != width:
            raise UserError(
                f"data.pairs: the fusion looks at texts as it looks at images, but images have width {self.vision.width} "
                f"and texts {width}; give model.vision and model.fusion one width, or drop data.pairs"
            )
        # The word head belongs to the text encoder's family: XLM-R's eps is 1e-5, that of its fusion encoder 1e-12.
        self.word_head = WordHead(width, vocabulary, self.text.layer_config.eps, own_table=own_table)
        if self.streams.regions is None:
            self.box_head.requires_grad_(False)

    def forward(self, batch: PretrainBatch) -> Losses:
        """All losses of a micro-batch, as sums; divide each by its count (:meth:`counts`), over ranks and micro-batches."""
        self.contrastive.clamp_temperature()
        seen, texts = self._encode_pixels(batch), self._encode_texts(batch)
        streams: dict[str, _StreamLosses] = {}
        if batch.images is not None:
            streams["images"] = self._pair_losses(batch.images, "images", seen, texts, batch.unmatched)
        if batch.videos is not None:
            streams["videos"] = self._pair_losses(batch.videos, "videos", seen, texts, batch.unmatched)
        if batch.regions is not None:
            streams["regions"] = self._region_losses(batch.regions, seen, texts, batch.unmatched)
        if batch.texts is not None:
            streams["texts"] = self._text_loss(batch.texts, texts["texts"])
        if batch.pairs is not None:
            streams["pairs"] = self._translation_losses(batch.pairs, texts["pairs"])
        terms: Losses = {}
        for stream, sums in self._fuse_together(streams).items():
            terms |= self._weighted(stream, sums)
        return terms

    def counts(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """What each loss of ``forward`` is divided by: its valid rows or tokens in this micro-batch. Needs no forward."""
        counts: dict[str, Tensor] = {}
        for stream in ("images", "videos", "regions", "texts", "pairs"):
            part: ImageTextBatch | VideoTextBatch | RegionBatch | TextBatch | TextPairBatch | None = getattr(
                batch, stream
            )
            if part is None:
                continue
            counts[f"{stream}/mlm"] = (part.text.labels != IGNORE).sum()
            if isinstance(part, TextBatch):
                continue
            counts[f"{stream}/contrastive"] = part.valid.sum()
            counts[f"{stream}/matching"] = self.matching_count(self._rows(part, stream))
            if stream in batch.unmatched:
                counts[f"{stream}/matching"] = torch.zeros_like(counts[f"{stream}/matching"])
            if isinstance(part, RegionBatch):
                counts[f"{stream}/l1"] = counts[f"{stream}/giou"] = self._boxes_that_count(part).sum()
        return counts

    def work(self, batch: PretrainBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        return pretrain_work(self, batch)

    def predict_boxes(
        self, text: Encoded, images: Concepts, image_index: Tensor, texts_per_image: int | None
    ) -> Tensor:
        """Eq. 4: the box of each text in its whole image, (N, 4) in 0..1 as centre and size.

        Args:
            text: N text states, not fused.
            images: whole images; text i looks at image ``image_index[i]``, at most ``texts_per_image`` at one (None: any).
        """
        look = Look(self.fusion.remember(images), image_index, texts_per_image)
        return predict_box(self.box_head, self.fusion(text, look, cls_only=True))

    def predict_words(self, fused: Encoded, positions: Tensor) -> Tensor:
        """Logits (N, M, V) at ``positions`` (N, M) (eq. 3)."""
        return self.word_head(gather_positions(fused.states, positions), self.text.word_embeddings)

    def _weighted(self, stream: str, sums: dict[str, Tensor]) -> Losses:
        factor = getattr(self.streams, stream)
        assert factor is not None, f"the batch has {stream}, the run does not"
        return {f"{stream}/{name}": Term(total, factor * getattr(self.weights, name)) for name, total in sums.items()}

    def _encode_pixels(self, batch: PretrainBatch) -> dict[str, Concepts]:
        """Whole images and videos of each stream that has any, from one backbone pass over all pictures and frames."""
        given = {"images": batch.images, "regions": batch.regions, "videos": batch.videos}
        pixels = {stream: part.pixels for stream, part in given.items() if part is not None}
        if not pixels:
            return {}
        patches = self.vision.patches(torch.cat([each.flatten(0, -4) for each in pixels.values()]))
        ends = itertools.accumulate(each.shape[:-3].numel() for each in pixels.values())
        seen, start = {}, 0
        for (stream, each), end in zip(pixels.items(), ends, strict=True):
            own, start = patches[start:end], end
            is_video = each.dim() == 5
            seen[stream] = self.vision.video(own.unflatten(0, each.shape[:2])) if is_video else Concepts.whole(own)
        return seen

    def _encode_texts(self, batch: PretrainBatch) -> dict[str, list[Encoded]]:
        """The texts of each stream, their masked copies, and translations, from one pass of the text encoder."""
        given: dict[str, list[Text]] = {}
        for stream in ("images", "videos", "regions", "texts", "pairs"):
            part = getattr(batch, stream)
            if part is not None:
                copies = [part.text.with_masks()]
                plain = [] if stream == "texts" else [part.text.plain()]
                given[stream] = [*plain, *copies, *([part.other] if stream == "pairs" else [])]
        encoded = iter(self.text.encode([text for texts in given.values() for text in texts]))
        return {stream: list(itertools.islice(encoded, len(texts))) for stream, texts in given.items()}

    def _fuse_together(self, streams: dict[str, _StreamLosses]) -> dict[str, dict[str, Tensor]]:
        """Run each stream's losses up to its question to the fusion, answer all questions in one pass, and run on to the end."""
        parts = {stream: next(steps) for stream, steps in streams.items()}
        fused = iter(self.fusion.fuse([part for own in parts.values() for part in own]))
        sums = {}
        for stream, steps in streams.items():
            try:
                steps.send(list(itertools.islice(fused, len(parts[stream]))))
            except StopIteration as end:
                sums[stream] = end.value
        return sums

    def _pair_losses(
        self,
        batch: ImageTextBatch | VideoTextBatch,
        stream: str,
        seen: dict[str, Concepts],
        texts: dict[str, list[Encoded]],
        unmatched: Collection[str],
    ) -> _StreamLosses:
        """Those of images, or of videos, with their texts."""
        text, masked = texts[stream]
        contrastive, negatives = self.align(seen[stream], text, self._rows(batch, stream))
        memory = self.fusion.remember(seen[stream])
        rows = torch.arange(len(batch.valid), device=batch.valid.device)
        parts = [Part(masked, Look(memory, rows, 1), _masked_words(batch.text))]
        if stream not in unmatched:
            parts += self.matching_parts(text, memory, 1, negatives)
        words, *pairs = yield parts
        sums = {
            "contrastive": contrastive(),
            "matching": self.matching_loss(pairs, negatives.found) if pairs else self._no_matching(),
            "mlm": self._word_loss(words, batch.text),
        }
        return sums

    def _no_matching(self) -> Tensor:
        """Zero, on which the matching head hangs: DDP waits for the gradient of every parameter, also where a step has no
        matching loss."""
        return 0 * torch.stack([parameter.sum() for parameter in self.matching_head.parameters()]).sum()

    def _region_losses(
        self,
        batch: RegionBatch,
        seen: dict[str, Concepts],
        texts: dict[str, list[Encoded]],
        unmatched: Collection[str],
    ) -> _StreamLosses:
        images, (text, masked) = seen["regions"], texts["regions"]
        regions = self.vision.regions(images, batch.patch_mask, batch.image_index)
        contrastive, negatives = self.align(regions, text, self._rows(batch, "regions"))
        memory = self.fusion.remember(_with_whole_images(regions, images))
        count, most = len(batch.valid), batch.max_rows_per_image
        rows = torch.arange(count, device=batch.valid.device)
        # The box is found in the whole image: those rows of the memory come after the regions' own.
        parts = [
            Part(masked, Look(memory, rows, most), _masked_words(batch.text)),
            Part(text, Look(memory, count + batch.image_index, most), At.cls(rows)),
        ]
        if "regions" not in unmatched:
            parts += self.matching_parts(text, memory, most, negatives)
        words, located, *pairs = yield parts
        sums = {
            "contrastive": contrastive(),
            "matching": self.matching_loss(pairs, negatives.found) if pairs else self._no_matching(),
            "mlm": self._word_loss(words, batch.text),
        }
        predicted, counts = predict_box(self.box_head, located), self._boxes_that_count(batch)
        sums["l1"] = losses.box_l1(predicted, batch.boxes_cxcywh, counts)
        sums["giou"] = losses.box_giou(predicted, batch.boxes_cxcywh, counts)
        return sums

    def _text_loss(self, batch: TextBatch, texts: list[Encoded]) -> _StreamLosses:
        """Masked words without an image: the fusion layers run without their cross-attention (as released)."""
        (words,) = yield [Part(texts[0], None, _masked_words(batch.text))]
        return {"mlm": self._word_loss(words, batch.text)}

    def _translation_losses(self, batch: TextPairBatch, texts: list[Encoded]) -> _StreamLosses:
        """Cross-view language modelling (CCLM, arXiv:2206.00621): a text and its translation as two views of one meaning.

        As released, the first text stands where an image does in the contrastive and the matching loss, and both are projected
        by the text's projection; masked words of the first are found with the help of the second.
        """
        first, masked, second = texts
        contrastive, negatives = self.align_texts(first, second, self._rows(batch, "pairs"))
        memory = self.fusion.remember_text(first)
        rows = torch.arange(len(batch.valid), device=batch.valid.device)
        masked_part = Part(masked, Look(self.fusion.remember_text(second), rows, 1), _masked_words(batch.text))
        words, *pairs = yield [masked_part, *self.matching_parts(second, memory, 1, negatives)]
        return {
            "contrastive": contrastive(),
            "matching": self.matching_loss(pairs, negatives.found),
            "mlm": self._word_loss(words, batch.text),
        }

    def _word_loss(self, fused: Encoded, text: MaskedText) -> Tensor:
        """``fused`` (N, M, D): the states of the masked tokens; logits are computed for those that are used."""
        layout = Layout.packed(fused.mask, fused.tokens)
        logits = self.word_head(layout.to_rows(fused.states), self.text.word_embeddings)
        return losses.masked_words(logits, layout.labels(text.labels, fused.mask))

    def _boxes_that_count(self, batch: RegionBatch) -> Tensor:
        return batch.valid if self.weights.whole_image_boxes else batch.valid & ~batch.is_image

    def _rows(self, batch: ImageTextBatch | VideoTextBatch | RegionBatch | TextPairBatch, stream: str) -> Rows:
        return Rows(batch.valid, batch.text.key, getattr(self.config.contrastive.identical_texts, stream))


def _masked_words(text: MaskedText) -> At:
    """What masked language modelling wants of the fusion."""
    return At(text.positions, text.labels != IGNORE, text.masked)


def _with_whole_images(regions: Concepts, images: Concepts) -> Concepts:
    """The rows of ``regions`` followed by one row for each whole image, all on the same patches."""
    assert regions.patch_mask is not None and regions.image_index is not None
    count, patches = len(images.patches), regions.patch_mask.shape[1]
    whole = regions.patch_mask.new_ones(count, patches)
    index = torch.arange(count, device=whole.device)
    return Concepts(
        patches=images.patches,
        concept=torch.cat([regions.concept, images.concept]),
        patch_mask=torch.cat([regions.patch_mask, whole]),
        image_index=torch.cat([regions.image_index, index]),
    )
