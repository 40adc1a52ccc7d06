"""Multi-grained pre-training: aligning and localization of images, regions, videos and their texts (section 3.3, eqs. 1-6)."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from models import losses
from models.align import AligningModel, Rows
from models.encoded import Concepts, Encoded
from models.fusion import Look
from models.heads import WordHead, mlp_head, predict_box
from models.layers import gather_positions
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
        self.word_head = WordHead(width, vocabulary, self.fusion.layer_config.eps, own_table=own_table)
        if self.streams.regions is None:
            self.box_head.requires_grad_(False)

    def forward(self, batch: PretrainBatch) -> Losses:
        """All losses of a micro-batch, as sums; divide each by its count (:meth:`counts`), over ranks and micro-batches."""
        self.contrastive.clamp_temperature()
        terms: Losses = {}
        seen = self._encode_pixels(batch)
        matched = {stream: stream not in batch.unmatched for stream in ("images", "videos", "regions")}
        if batch.images is not None:
            found = self._pair_losses(batch.images, seen["images"], "images", matched["images"])
            terms |= self._weighted("images", found)
        if batch.videos is not None:
            found = self._pair_losses(batch.videos, seen["videos"], "videos", matched["videos"])
            terms |= self._weighted("videos", found)
        if batch.regions is not None:
            found = self._region_losses(batch.regions, seen["regions"], matched["regions"])
            terms |= self._weighted("regions", found)
        if batch.texts is not None:
            terms |= self._weighted("texts", {"mlm": self._text_loss(batch.texts)})
        if batch.pairs is not None:
            terms |= self._weighted("pairs", self._translation_losses(batch.pairs))
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
        return predict_box(self.box_head, self.fusion(text, [look], cls_only=True))

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

    def _pair_losses(
        self, batch: ImageTextBatch | VideoTextBatch, seen: Concepts, stream: str, matching: bool
    ) -> dict[str, Tensor]:
        """Those of images, or of videos, with their texts."""
        text, masked = self._encode_texts(batch.text)
        loss, negatives = self.align(seen, text, self._rows(batch, stream))
        sums = {"contrastive": loss, "matching": self._no_matching()}
        memory = self.fusion.remember(seen)
        rows = torch.arange(len(batch.valid), device=batch.valid.device)
        if matching:
            looks = [Look(memory, rows.repeat(2), 2), Look(memory, negatives.image, None)]
            joined = Encoded.concat([text, text.rows(negatives.text), text])
            matched, wrong_text, wrong_image = self.fusion(joined, looks, cls_only=True).split([len(rows)] * 3)
            sums["matching"] = self.matching_loss(matched, wrong_text, wrong_image, negatives.found)
        masked = self.fusion(masked, [Look(memory, rows, 1)])
        sums["mlm"] = self._word_loss(masked, batch.text)
        return sums

    def _no_matching(self) -> Tensor:
        """Zero, on which the matching head hangs: DDP waits for the gradient of every parameter, also where a step has no
        matching loss."""
        return 0 * torch.stack([parameter.sum() for parameter in self.matching_head.parameters()]).sum()

    def _region_losses(self, batch: RegionBatch, images: Concepts, matching: bool) -> dict[str, Tensor]:
        regions = self.vision.regions(images, batch.patch_mask, batch.image_index)
        text, masked = self._encode_texts(batch.text)
        loss, negatives = self.align(regions, text, self._rows(batch, "regions"))
        sums = {"contrastive": loss, "matching": self._no_matching()}
        memory = self.fusion.remember(_with_whole_images(regions, images))
        count = len(batch.valid)
        rows = torch.arange(count, device=batch.valid.device)
        # The box is found in the whole image: those rows of the memory come after the regions' own.
        whole_rows = count + batch.image_index
        if matching:
            own = torch.cat([rows, rows, whole_rows])
            looks = [Look(memory, own, 3 * batch.max_rows_per_image), Look(memory, negatives.image, None)]
            joined = Encoded.concat([text, text.rows(negatives.text), text, text])
            matched, wrong_text, located, wrong_image = self.fusion(joined, looks, cls_only=True).split([count] * 4)
            sums["matching"] = self.matching_loss(matched, wrong_text, wrong_image, negatives.found)
        else:
            located = self.fusion(text, [Look(memory, whole_rows, batch.max_rows_per_image)], cls_only=True)
        masked = self.fusion(masked, [Look(memory, rows, batch.max_rows_per_image)])
        sums["mlm"] = self._word_loss(masked, batch.text)
        predicted, counts = predict_box(self.box_head, located), self._boxes_that_count(batch)
        sums["l1"] = losses.box_l1(predicted, batch.boxes_cxcywh, counts)
        sums["giou"] = losses.box_giou(predicted, batch.boxes_cxcywh, counts)
        return sums

    def _text_loss(self, batch: TextBatch) -> Tensor:
        """Masked words without an image: the fusion layers run without their cross-attention (as released)."""
        masked = self.text(batch.text.masked_ids, batch.text.mask)
        return self._word_loss(self.fusion(masked), batch.text)

    def _translation_losses(self, batch: TextPairBatch) -> dict[str, Tensor]:
        """Cross-view language modelling (CCLM, arXiv:2206.00621): a text and its translation as two views of one meaning.

        As released, the first text stands where an image does in the contrastive and the matching loss, and both are projected
        by the text's projection; masked words of the first are found with the help of the second.
        """
        (first, masked), second = self._encode_texts(batch.text), self.text(batch.other.ids, batch.other.mask)
        loss, negatives = self.align_texts(first, second, self._rows(batch, "pairs"))
        memory = self.fusion.remember_text(first)
        rows = torch.arange(len(batch.valid), device=batch.valid.device)
        looks = [Look(memory, rows.repeat(2), 2), Look(memory, negatives.image, None)]
        joined = Encoded.concat([second, second.rows(negatives.text), second])
        matched, wrong_text, wrong_image = self.fusion(joined, looks, cls_only=True).split([len(rows)] * 3)
        masked = self.fusion(masked, [Look(self.fusion.remember_text(second), rows, 1)])
        return {
            "contrastive": loss,
            "matching": self.matching_loss(matched, wrong_text, wrong_image, negatives.found),
            "mlm": self._word_loss(masked, batch.text),
        }

    def _encode_texts(self, text: MaskedText) -> tuple[Encoded, Encoded]:
        """The texts and their masked copies, in one call."""
        both = self.text(torch.cat([text.ids, text.masked_ids]), text.mask.repeat(2, 1))
        plain, masked = both.split([len(text.ids)] * 2)
        return plain, masked

    def _word_loss(self, fused: Encoded, text: MaskedText) -> Tensor:
        states = gather_positions(fused.states, text.positions).flatten(0, 1)
        labels = text.labels.flatten()
        if not labels.is_cuda:
            # Counting the used positions would make a GPU wait; on a CPU it saves the unused rows of the largest product.
            used = (labels != IGNORE).nonzero().squeeze(1)
            states, labels = states.index_select(0, used), labels.index_select(0, used)
        return losses.masked_words(self.word_head(states, self.text.word_embeddings), labels)

    def _boxes_that_count(self, batch: RegionBatch) -> Tensor:
        return batch.valid if self.weights.whole_image_boxes else batch.valid & ~batch.is_image

    def _rows(self, batch: ImageTextBatch | VideoTextBatch | RegionBatch | TextPairBatch, stream: str) -> Rows:
        return Rows(batch.valid, batch.text.key, getattr(self.config.contrastive.identical_texts, stream))


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
