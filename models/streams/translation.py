"""The stream of texts and their translations."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from models.flops import ModelCost, lengths
from models.fusion import FusionEncoder, FusionPass
from models.memory import CrossMemory
from models.multigrained import MaskedWords, MultiGrainedModel
from models.packing import PackedTexts
from models.streams.base import AlignedStream, Encoded, Passes, Views, fuse_by_loss, word_flops
from utils.batch import Text, TranslationBatch, Work


class TranslationStream(AlignedStream):
    """Texts and their translations: cross-view language modelling (CCLM, arXiv:2206.00621), two views of one meaning.

    As released, the first text stands where an image does in the contrastive and the matching loss, and both are projected by
    the text's projection; masked words of the first are predicted with the help of the second.
    """

    has_images = False

    def texts_to_encode(self, batch: TranslationBatch, wanted: Collection[str]) -> dict[str, Text]:
        return {**super().texts_to_encode(batch, wanted), "translation": batch.other} if wanted else {}

    def views(self, model: MultiGrainedModel, batch: TranslationBatch, encoded: Encoded) -> Views:
        return encoded.texts.get("plain"), encoded.texts["translation"]

    def losses(
        self, model: MultiGrainedModel, batch: TranslationBatch, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        texts, translation = encoded.texts, encoded.texts["translation"]
        alignment = self.align(model, batch, self.views(model, batch, encoded), wanted)
        words = MaskedWords.of(batch.text) if "mlm" in wanted else None
        passes: Passes = {}
        if alignment.negatives is not None:
            memory = text_memory(model.fusion, texts["plain"])
            passes["matching"] = model.matching_passes(translation, memory, alignment.negatives)
        if words is not None:
            passes["mlm"] = [FusionPass(texts["masked"], text_memory(model.fusion, translation), words.queries)]
        return self.common_losses(model, alignment, words, fuse_by_loss(model.fusion, passes))

    def work(self, cost: ModelCost, batch: TranslationBatch, wanted: Collection[str]) -> Work:
        first, second = lengths(batch.text.mask, batch.valid), lengths(batch.other.mask, batch.valid)
        tokens, cost = int(first.sum() + second.sum()), cost.of_texts
        flops = cost.text.run(second) + sum(cost.text.run(first) for _ in super().texts_to_encode(batch, wanted))
        if "contrastive" in wanted:
            flops += cost.align(0, 2 * len(first))
        if "matching" in wanted:
            flops += cost.fusion.project(int(first.sum())) + cost.match(second, first)
        if "mlm" in wanted:
            flops += cost.fusion.project(int(second.sum())) + word_flops(cost, batch, first, second)
        return Work(len(first), 0, tokens, flops)


def text_memory(fusion: FusionEncoder, texts: PackedTexts) -> CrossMemory:
    """The memory of texts that other texts attend to."""
    return fusion.memory(texts.padded(), texts.packing.mask)
