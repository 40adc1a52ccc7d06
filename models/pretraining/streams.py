"""The streams of pre-training and their losses (section 3.3 of the paper). A stream is one type of training data, such as
image-text pairs or videos. The ``losses`` methods compute the same losses as :mod:`models.reference`.
``python -m tests.models.test_region_text`` lists the functions through which the text of a region goes, in order.

To add a loss, add its weight to :class:`LossWeights`, declare and compute the loss in a stream in this module, and add it to
:mod:`models.reference`. ``docs/architecture.md`` contains a worked example.
:mod:`models.pretraining.flops` counts the FLOPs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from batches import LONG
from batches.base import IGNORE
from batches.pretraining import HardNegatives, ImageTextBatch, RegionBatch, TextBatch, TranslationBatch, VideoTextBatch
from batches.texts import Text
from models.config import LossWeights
from models.core.contrastive import ContrastiveHead
from models.core.fusion import FusionEncoder, FusionPass
from models.core.heads import BoxHead, WordHead, masked_positions
from models.core.hub_text import HubTextEncoder
from models.core.keys_values import KeysValues
from models.core.losses import EmbeddedPairs, SameGroup, box_giou, box_l1, masked_words
from models.core.matching import MatchingHead, matching_count
from models.core.packing import PackedTexts
from models.core.text import TextEncoder
from models.core.vision import Concepts, VisionEncoder


class Modules(Protocol):
    """The encoders and heads that streams use. :class:`models.pretraining.model.PretrainModel` has these attributes."""

    vision: VisionEncoder
    text: TextEncoder | HubTextEncoder
    fusion: FusionEncoder
    contrastive: ContrastiveHead
    matching_head: MatchingHead
    word_head: WordHead
    box_head: BoxHead


B = TypeVar("B", bound=ImageTextBatch | VideoTextBatch | RegionBatch | TranslationBatch | TextBatch)
"""Type of a stream's batches."""


@dataclass(frozen=True)
class Loss(Generic[B]):
    """A stream's declaration of a loss. :meth:`Stream.losses` computes the loss.

    Attributes:
        name: name of the loss.
        weight: weight of the loss in all streams. In equation 6, it is multiplied by the factor of the stream
            (:attr:`Stream.weights`).
        trains: names of the modules and parameters that the loss trains. The name of a module stands for all parameters in it.
            ``*`` matches one component of a name, such as the index of a block.
        count: function that returns the number by which the loss of a batch is divided (the number of valid pairs, words or
            boxes), as a scalar tensor.
    """

    name: str
    weight: float
    trains: tuple[str, ...]
    count: Callable[[B], Tensor]


@dataclass(frozen=True)
class Encoded(Generic[B]):
    """A micro-batch of a stream, with its encoded texts and images.

    Attributes:
        batch: the micro-batch.
        texts: the encoded texts, by the names from :meth:`Stream.texts_to_encode`.
        images: the encoded images or videos; None if the stream has no images.
        concepts: the visual concept of each text: in region streams the regions, in others the ``images``; None if the stream has
            no images.
    """

    batch: B
    texts: Mapping[str, PackedTexts]
    images: Concepts | None
    concepts: Concepts | None


class Stream(ABC, Generic[B]):
    """One type of training data, with its losses.

    Attributes:
        name: name of the stream.
        images_of: name of the stream whose images this stream uses: for long captions, the stream of the short captions, and for
            others, the stream itself. The images are encoded once for both streams.
        same_group: how the losses treat pairs with equal texts, by default "ignore" for regions and "negative" for other streams
            (:class:`models.config.IdenticalTexts`).
        declared: all losses of the stream.
        weights: the weight of each loss in equation 6, which is :attr:`Loss.weight` times the factor of the stream; losses with
            weight 0 are omitted.
    """

    encoders: ClassVar[tuple[str, ...]] = ("vision.backbone", "text")
    """The image and text encoders that the losses of the stream train, named as in :attr:`Loss.trains`."""
    has_images: ClassVar[bool] = True
    """False if the batches of the stream have no images or videos."""

    def __init__(self, name: str, factor: float, weights: LossWeights, same_group: SameGroup):
        """``factor`` multiplies all losses of this stream; ``weights`` are the settings of all streams."""
        self.name, self.images_of, self.same_group = name, name.removeprefix(LONG), same_group
        self.declared = self.declare(weights)
        self.weights = {loss.name: factor * loss.weight for loss in self.declared if factor * loss.weight}

    @abstractmethod
    def declare(self, weights: LossWeights) -> list[Loss[B]]:
        """Declares all losses of the stream."""

    @abstractmethod
    def texts_to_encode(self, batch: B, requested: Collection[str]) -> dict[str, Text]:
        """The texts that must be encoded for the ``requested`` losses, by name: "plain", "masked", "hard_negatives" and, for
        translations, "translation"."""

    def concepts(self, vision: VisionEncoder, batch: B, images: Concepts) -> Concepts:
        """See :attr:`Encoded.concepts`."""
        return images

    @abstractmethod
    def losses(self, model: Modules, encoded: Encoded[B], requested: Collection[str]) -> dict[str, Tensor]:
        """Computes the ``requested`` losses of a micro-batch, each as a sum over the examples that :attr:`Loss.count` counts.

        Args:
            model: the encoders and heads.
            encoded: the micro-batch with its encoded texts and images.
            requested: names of the losses to compute in this step, at least one.
        """

    def trained_by(self, requested: Collection[str]) -> list[str]:
        """The modules and parameters that the ``requested`` losses train, named as in :attr:`Loss.trains`."""
        return [module for loss in self.declared if loss.name in requested for module in loss.trains]


class PairStream(Stream[B]):
    """Pairs of a text and an image, a video, a region or, for translations, another text. All of them have the contrastive, the
    matching and the masked language modelling loss. Subclasses say what a text attends to in the fusion encoder
    (:meth:`attended`)."""

    contrastive_parts: ClassVar[tuple[str, ...]] = ("contrastive",)
    """The parameters of the contrastive head that the contrastive loss trains."""
    matched_text: ClassVar[str] = "plain"
    """The text that the matching loss compares with its image, by its name in :meth:`texts_to_encode`."""

    def declare(self, weights: LossWeights) -> list[Loss[B]]:
        return [
            Loss(
                "contrastive",
                weights.contrastive,
                trains=(*self.encoders, *self.contrastive_parts),
                count=lambda batch: batch.valid.sum(),
            ),
            Loss(
                "matching",
                weights.matching,
                trains=(*self.encoders, "fusion", "matching_head"),
                count=lambda batch: matching_count(batch.valid, batch.text.text_id, self.same_group),
            ),
            Loss(
                "mlm",
                weights.mlm,
                trains=(*self.encoders, "fusion", "word_head"),
                count=lambda batch: (batch.text.labels != IGNORE).sum(),
            ),
        ]

    def texts_to_encode(self, batch: B, requested: Collection[str]) -> dict[str, Text]:
        texts = {}
        if any(loss != "mlm" for loss in requested):
            texts["plain"] = batch.text.plain()
        if needs_embeddings(requested) and (hard := hard_negatives_in(batch)) is not None:
            texts["hard_negatives"] = hard.text
        if "mlm" in requested:
            texts["masked"] = batch.text.masked_copy()
        return texts

    def losses(self, model: Modules, encoded: Encoded[B], requested: Collection[str]) -> dict[str, Tensor]:
        """See :meth:`Stream.losses`.

        First, the contrastive loss starts to gather the embeddings of all ranks, which overlaps with the fusion. Then the texts
        of the other losses are fused with what they attend to in one call of the fusion encoder, and the losses are computed
        from their fused states. These are the passes of the region stream; other streams have no box losses::

            loss      texts            attend to                    states needed
            l1, giou  plain            the whole image              [CLS]              } one call of attention
            mlm       masked           their region                 masked positions   } in each block, since the
            matching  plain            their region                 [CLS]              } keys and values of a region
            matching  negative texts   the region of the pair       [CLS]              } and of its image are the same
            matching  plain            the negative pair's region   [CLS]                another call

        Only neighbours can share a call, because a call takes a slice of the concatenated texts. For this reason, the matching
        loss is last.
        """
        batch, texts = encoded.batch, encoded.texts
        if needs_embeddings(requested):
            pairs = self.embed(model, encoded)
        if "contrastive" in requested:
            finish_contrastive = model.contrastive.start_loss(pairs)

        attended = self.attended(model, encoded, requested) if self.needs_fusion(requested) else {}
        passes: dict[str, list[FusionPass]] = {}
        if predicts_boxes(requested):
            passes["boxes"] = [FusionPass.cls(texts["plain"], attended["boxes"])]
        if "mlm" in requested:
            positions, labels = masked_positions(batch.text)
            passes["mlm"] = [FusionPass(texts["masked"], attended["mlm"], positions)]
        if "matching" in requested:
            passes["matching"], has_negatives = model.matching_head.pair_with_negatives(
                texts[self.matched_text],
                attended["matching"],
                pairs,
                model.contrastive,
                texts.get("hard_negatives"),
            )
        fused = fused_by_name(model.fusion, passes) if passes else {}

        totals: dict[str, Tensor] = {}
        if "contrastive" in requested:
            totals["contrastive"] = finish_contrastive()  # eq. 1
        if predicts_boxes(requested):
            totals |= self.box_losses(batch, model.box_head(*fused["boxes"]))  # eqs. 4 and 5
        if "mlm" in requested:
            logits = model.word_head(*fused["mlm"], model.text.word_embeddings)
            totals["mlm"] = masked_words(logits, labels)  # eq. 3
        if "matching" in requested:
            totals["matching"] = model.matching_head.loss(fused["matching"], has_negatives)  # eq. 2
        return {loss: total for loss, total in totals.items() if loss in requested}

    def needs_fusion(self, requested: Collection[str]) -> bool:
        """True if any of the ``requested`` losses trains the fusion encoder, and so needs fused texts."""
        return "fusion" in self.trained_by(requested)

    @abstractmethod
    def attended(self, model: Modules, encoded: Encoded[B], requested: Collection[str]) -> dict[str, KeysValues]:
        """Returns the keys and values that texts attend to in the fusion encoder, one row per text, under the names "matching",
        "mlm" and, for the box losses of region streams, "boxes"."""

    def box_losses(self, batch: B, boxes: Tensor) -> dict[str, Tensor]:
        """Returns the losses of the predicted ``boxes`` (N, 4), by name. Only streams that declare such losses have this
        method."""
        raise NotImplementedError

    def embed(self, model: Modules, encoded: Encoded[B]) -> EmbeddedPairs:
        """Embeds the pairs for the contrastive and the matching loss."""
        assert encoded.concepts is not None
        batch, texts, hard = encoded.batch, encoded.texts, hard_negatives_in(encoded.batch)
        return model.contrastive.embed_pairs(
            encoded.concepts,
            texts["plain"],
            batch.valid,
            group=batch.text.text_id,
            same_group=self.same_group,
            hard_negatives=texts.get("hard_negatives"),
            hard_valid=None if hard is None else hard.valid,
        )


class ImageTextStream(PairStream[ImageTextBatch | VideoTextBatch]):
    """Whole images with their texts."""

    def attended(
        self, model: Modules, encoded: Encoded[ImageTextBatch | VideoTextBatch], requested: Collection[str]
    ) -> dict[str, KeysValues]:
        assert encoded.images is not None
        whole_image = model.fusion.project_concepts(encoded.images)
        return {"matching": whole_image, "mlm": whole_image}


class VideoTextStream(ImageTextStream):
    """Videos with their texts. The vision encoder turns each video into one visual concept, so the losses work as for images."""

    encoders = ("vision.backbone", "vision.frame_positions", "text")


class RegionTextStream(PairStream[RegionBatch]):
    """Regions, objects and whole images with their texts (section 3.2 of the paper). A text is aligned with the patches of its
    region, and its box is predicted from the whole image.

    Attributes:
        whole_image_boxes: True if box losses are also computed for texts about whole images.
    """

    def __init__(self, name: str, factor: float, weights: LossWeights, same_group: SameGroup):
        self.whole_image_boxes = weights.whole_image_boxes
        super().__init__(name, factor, weights, same_group)

    def declare(self, weights: LossWeights) -> list[Loss[RegionBatch]]:
        trains = (*self.encoders, "fusion", "box_head")
        return [
            *super().declare(weights),
            Loss("l1", weights.l1, trains, count=lambda batch: self.has_box(batch).sum()),
            Loss("giou", weights.giou, trains, count=lambda batch: self.has_box(batch).sum()),
        ]

    def concepts(self, vision: VisionEncoder, batch: RegionBatch, images: Concepts) -> Concepts:
        return vision.regions(images, batch.patch_mask, batch.image_index)

    def attended(
        self, model: Modules, encoded: Encoded[RegionBatch], requested: Collection[str]
    ) -> dict[str, KeysValues]:
        """See :meth:`PairStream.attended`. A text is matched with its region, and its box is predicted from the whole image. Both
        results are the same keys and values with different biases, so that passes of all losses share a call of attention
        (:meth:`PairStream.losses`)."""
        assert encoded.concepts is not None and encoded.images is not None
        region, whole_image = model.fusion.project_regions(encoded.concepts, encoded.images)
        return {"matching": region, "mlm": region, "boxes": whole_image}

    def box_losses(self, batch: RegionBatch, boxes: Tensor) -> dict[str, Tensor]:
        target, has_box = batch.boxes_cxcywh, self.has_box(batch)
        return {"l1": box_l1(boxes, target, has_box), "giou": box_giou(boxes, target, has_box)}

    def has_box(self, batch: RegionBatch) -> Tensor:
        """The texts for which box losses are computed, (R,) bool."""
        one_box = batch.valid & ~batch.several_boxes
        return one_box if self.whole_image_boxes else one_box & ~batch.is_image


class TranslationStream(PairStream[TranslationBatch]):
    """Texts and their translations: cross-view language modelling (CCLM, arXiv:2206.00621).

    As in the authors' code, the first text replaces the image in the contrastive and the matching loss, and the embeddings of
    both texts are computed by the text projection. Masked words of the first text are predicted with the help of the translation.
    """

    encoders = ("text",)
    contrastive_parts = ("contrastive.text_proj", "contrastive.temperature", "contrastive.bias")
    matched_text = "translation"
    has_images = False

    def texts_to_encode(self, batch: TranslationBatch, requested: Collection[str]) -> dict[str, Text]:
        return {**super().texts_to_encode(batch, requested), "translation": batch.other}

    def attended(
        self, model: Modules, encoded: Encoded[TranslationBatch], requested: Collection[str]
    ) -> dict[str, KeysValues]:
        attended_text = {"matching": "plain", "mlm": "translation"}
        return {
            loss: model.fusion.project_texts(encoded.texts[text])
            for loss, text in attended_text.items()
            if loss in requested
        }

    def embed(self, model: Modules, encoded: Encoded[TranslationBatch]) -> EmbeddedPairs:
        batch, texts = encoded.batch, encoded.texts
        return model.contrastive.embed_pairs(
            texts["plain"], texts["translation"], batch.valid, batch.text.text_id, self.same_group
        )


class TextStream(Stream[TextBatch]):
    """Texts without images. The fusion encoder predicts masked words without cross-attention (as in the authors' code)."""

    encoders = ("text",)
    has_images = False

    def declare(self, weights: LossWeights) -> list[Loss[TextBatch]]:
        fusion = ("fusion.layer.*.attention", "fusion.layer.*.intermediate", "fusion.layer.*.output")
        return [
            Loss(
                "mlm",
                weights.mlm,
                trains=(*self.encoders, *fusion, "word_head"),
                count=lambda batch: (batch.text.labels != IGNORE).sum(),
            )
        ]

    def texts_to_encode(self, batch: TextBatch, requested: Collection[str]) -> dict[str, Text]:
        return {"masked": batch.text.masked_copy()}

    def losses(self, model: Modules, encoded: Encoded[TextBatch], requested: Collection[str]) -> dict[str, Tensor]:
        positions, labels = masked_positions(encoded.batch.text)
        (fused,) = model.fusion.fuse([FusionPass(encoded.texts["masked"], None, positions)])
        return {"mlm": masked_words(model.word_head(fused, model.text.word_embeddings), labels)}  # eq. 3


def hard_negatives_in(batch: Any) -> HardNegatives | None:
    """The hard negative texts in a batch; None if its stream has none."""
    hard: HardNegatives | None = getattr(batch, "hard_negatives", None)
    return hard


def fused_by_name(fusion: FusionEncoder, passes: Mapping[str, Sequence[FusionPass]]) -> dict[str, list[Tensor]]:
    """Fuses the texts of all losses in one call. ``passes`` and the fused states of each pass are keyed by loss."""
    states = iter(fusion.fuse([each for passes_of_loss in passes.values() for each in passes_of_loss]))
    return {loss: [next(states) for _ in passes_of_loss] for loss, passes_of_loss in passes.items()}


def needs_embeddings(requested: Collection[str]) -> bool:
    """True if any of the losses needs embeddings. (The matching loss samples negatives by the similarity of embeddings.)"""
    return "contrastive" in requested or "matching" in requested


def predicts_boxes(requested: Collection[str]) -> bool:
    """True if any of the losses needs the predicted box."""
    return "l1" in requested or "giou" in requested


STREAMS: dict[str, type[Stream[Any]]] = {
    "images": ImageTextStream,
    "videos": VideoTextStream,
    "regions": RegionTextStream,
    "texts": TextStream,
    "translations": TranslationStream,
    "long_images": ImageTextStream,
    "long_regions": RegionTextStream,
}
"""Streams by their names in configs, batches and losses. ``long_images`` and ``long_regions`` contain long captions of the images
in ``images`` and ``regions``. Negatives are always sampled in the order of this dictionary, so that runs are
reproducible."""
