"""The stream of texts and their translations."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor

from models.contrastive import EmbeddedExamples
from models.flops import ModelCost, lengths
from models.fusion import FusionEncoder, FusionQueue
from models.memory import CrossMemory
from models.multigrained import MultiGrainedModel
from models.packing import PackedTexts
from models.streams.base import AlignedStream, Encoded, aligns, word_flops
from utils.batch import Text, TranslationBatch, Work


class TranslationStream(AlignedStream[TranslationBatch]):
    """Texts and their translations: cross-view language modelling (CCLM, arXiv:2206.00621), two views of one meaning.

    As released, the first text stands where an image does in the contrastive and the matching loss, and both are projected by
    the text's projection; masked words of the first are predicted with the help of the second.
    """

    has_images = False

    def texts_to_encode(self, batch: TranslationBatch, wanted: Collection[str]) -> dict[str, Text]:
        return {**super().texts_to_encode(batch, wanted), "translation": batch.other} if wanted else {}

    def losses(
        self, model: MultiGrainedModel, batch: TranslationBatch, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        texts, translation = encoded.texts, encoded.texts["translation"]
        queue = FusionQueue(model.fusion)
        started: dict[str, Callable[[], Tensor]] = {}
        if aligns(wanted):
            embedded = self.embed(model, batch, encoded)
        if "contrastive" in wanted:
            started["contrastive"] = model.contrastive.start_loss(embedded)  # eq. 1
        if "matching" in wanted:
            first = text_memory(model.fusion, texts["plain"])
            started["matching"] = model.start_matching(queue, translation, first, embedded)  # eq. 2
        if "mlm" in wanted:
            second = text_memory(model.fusion, translation)
            started["mlm"] = model.start_mlm(queue, texts["masked"], second, batch.text)  # eq. 3
        queue.run()
        return {loss: finish() for loss, finish in started.items()}

    def embed(self, model: MultiGrainedModel, batch: TranslationBatch, encoded: Encoded) -> EmbeddedExamples:
        return model.embed_pairs(encoded.texts["plain"], encoded.texts["translation"], self.examples(batch))

    def work(self, cost: ModelCost, batch: TranslationBatch, wanted: Collection[str]) -> Work:
        first, second = lengths(batch.text.mask, batch.valid), lengths(batch.other.mask, batch.valid)
        tokens, cost = int(first.sum() + second.sum()), cost.of_texts
        flops = cost.text.run(second) + sum(cost.text.run(first) for _ in super().texts_to_encode(batch, wanted))
        if "contrastive" in wanted:
            flops += cost.align(0, 2 * len(first))
        if "matching" in wanted:
            flops += cost.fusion.project(int(first.sum())) + cost.match(second, first)
        if "mlm" in wanted:
            flops += cost.fusion.project(int(second.sum())) + word_flops(cost, batch.text, batch.valid, first, second)
        return Work(len(first), 0, tokens, flops)


def text_memory(fusion: FusionEncoder, texts: PackedTexts) -> CrossMemory:
    """The memory of texts that other texts attend to."""
    return fusion.memory(texts.padded(), texts.packing.mask)
