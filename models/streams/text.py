"""The stream of texts alone."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

from torch import Tensor, nn

from models.flops import ModelCost, lengths
from models.fusion import FusionQueue
from models.multigrained import MultiGrainedModel
from models.streams.base import Encoded, Stream, word_flops
from utils.batch import IGNORE, Text, TextBatch, Work


class TextStream(Stream[TextBatch]):
    """Texts alone: masked words, with the fusion's cross-attention left out (as released)."""

    all_losses = ("mlm",)
    has_images = False

    def texts_to_encode(self, batch: TextBatch, wanted: Collection[str]) -> dict[str, Text]:
        return {"masked": batch.text.masked_copy()} if wanted else {}

    def losses(
        self, model: MultiGrainedModel, batch: TextBatch, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        queue = FusionQueue(model.fusion)
        words = model.start_mlm(queue, encoded.texts["masked"], None, batch.text)
        queue.run()
        return {"mlm": words()}

    def counts(self, batch: TextBatch) -> dict[str, Tensor]:
        return {"mlm": (batch.text.labels != IGNORE).sum()}

    def work(self, cost: ModelCost, batch: TextBatch, wanted: Collection[str]) -> Work:
        tokens = lengths(batch.text.mask, batch.valid)
        flops = cost.text.run(tokens) + word_flops(cost.of_texts, batch.text, batch.valid, tokens, None)
        return Work(len(tokens), 0, int(tokens.sum()), flops)

    def trained(self, model: MultiGrainedModel, losses: Collection[str]) -> Iterator[nn.Parameter]:
        yield from itertools.chain(model.text.parameters(), model.word_head.parameters())
        for block in model.fusion.blocks:
            for part in (block.attention, block.intermediate, block.output):
                yield from part.parameters()
