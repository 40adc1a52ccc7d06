"""Image captioning by left-to-right masked language modelling (X²-VLM, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from models import losses
from models.flops import frames_of, lengths
from models.fusion import At, ImageMemory, Look, Part
from models.generation import DecodingConfig, Generated, generate
from models.heads import WordHead
from models.layers import Extend
from models.text import TextEncoder
from models.xvlm import XVLM, ModelConfig
from utils.batch import IGNORE, CaptioningBatch, LeftToRightText, Losses, Term, Work
from utils.config import Config
from utils.errors import UserError


class CaptioningLossConfig(Config):
    """The likelihood of captions."""

    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target that goes to all other words")


@dataclass(frozen=True)
class CaptionTokens:
    """Token ids that generation needs: the ``prompt`` with its [CLS], the ``end`` ([SEP]), ``mask`` ([MASK]) and ``pad``."""

    prompt: tuple[int, ...]
    end: int
    mask: int
    pad: int


class CaptioningModel(XVLM):
    """Text encoder and fusion encoder as one decoder: every token sees the image and what is before it."""

    def __init__(self, config: ModelConfig, vocab_size: int | None = None, loss: CaptioningLossConfig | None = None):
        super().__init__(config, vocab_size)
        if not isinstance(self.text, TextEncoder):
            raise UserError(
                f"model.text.encoder: {config.text.encoder!r} takes no mask for each token, as captioning needs; use an "
                "encoder of the BERT or RoBERTa families"
            )
        self.loss = loss or CaptioningLossConfig()
        vocabulary, embedded = self.text.word_embeddings.shape
        if embedded != self.text.width:
            raise UserError(
                f"model.fusion.width: {self.text.width}, but words are embedded in {embedded} dimensions, and captioning reads "
                "words off the fusion's states; give the fusion the text encoder's width"
            )
        self.word_head = WordHead(embedded, vocabulary, self.fusion.layer_config.eps)

    def forward(self, batch: CaptioningBatch) -> Losses:
        """The words' loss of a micro-batch, as a sum."""
        memory = self.remember(batch.pixels)
        logits = self.logits(batch.text, memory, torch.arange(len(batch.pixels), device=batch.pixels.device))
        labels = batch.text.labels.masked_fill(~batch.valid.unsqueeze(1), IGNORE)
        starts = batch.text.ids[:, :1].expand_as(labels)
        smoothing = self.loss.label_smoothing
        total = losses.smoothed_words(logits.flatten(0, 1), labels.flatten(), smoothing, starts.flatten())
        return {"words": Term(total, 1.0)}

    def counts(self, batch: CaptioningBatch) -> dict[str, Tensor]:
        """What the loss is divided by: the words to be said in rows that count."""
        return {"words": (batch.text.labels.ne(IGNORE) & batch.valid.unsqueeze(1)).sum()}

    def work(self, batch: CaptioningBatch) -> Work:
        """See :class:`engine.task.TaskModel`. The [MASK]s before what has to be said are tokens too."""
        assert isinstance(self.text, TextEncoder)
        tokens = lengths(batch.text.ids != self.text.arch.pad_id, batch.valid)
        predicted = lengths(batch.text.labels != IGNORE, batch.valid)
        fused = self.cost.fuse_pairs(tokens, frames_of(batch.pixels), wanted=predicted)
        return fused + Work(flops=self.cost.head("word_head", int(predicted.sum())))

    def remember(self, pixels: Tensor) -> ImageMemory:
        """Keys and values of (N, 3, H, W) images in every fusion layer."""
        return self.fusion.remember(self.vision(pixels))

    def logits(self, text: LeftToRightText, memory: ImageMemory, images: Tensor, texts_per_image: int = 1) -> Tensor:
        """Logits (N, M, V) at the [MASK]s of N texts that look at ``images`` (N,), at most ``texts_per_image`` at one."""
        look, said = Look(memory, images, texts_per_image), At.all(text.places)
        states = self.fuse(text.ids, text.mask, text.positions, look, said)
        return self.word_head(states, self.text.word_embeddings)

    def generate(
        self, memory: ImageMemory, tokens: CaptionTokens, config: DecodingConfig, chances: Tensor | None = None
    ) -> Generated:
        """A caption for each image of ``memory``; see :func:`~models.generation.generate`."""
        device = self.word_head.bias.device
        prompt = torch.tensor(tokens.prompt, device=device).expand(memory.images, -1)
        return generate(CaptionDecoder(self, memory, tokens.mask), prompt, tokens.end, config, chances)

    def fuse(
        self,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        look: Look,
        at: At | None = None,
        extend: Callable[[int], Extend] | None = None,
    ) -> Tensor:
        """States of texts that look at images, (N, L, D), or (N, M, D) of those ``at`` M places; ``extend``: of each layer, the
        text encoder's first."""
        assert isinstance(self.text, TextEncoder)
        below = len(self.text.encoder.layer)
        text = self.text(ids, mask, positions, extend)
        above = None if extend is None else lambda layer: extend(below + layer)
        return self.fusion.fuse([Part(text, look, at)], above)[0].states


class CaptionDecoder:
    """The model as a :class:`~models.generation.Decoder`.

    The keys and values of what was said are kept. A step runs the last word and a [MASK] after it, at which the next word is
    predicted; the [MASK] is forgotten.
    """

    def __init__(self, model: CaptioningModel, memory: ImageMemory, mask_id: int):
        self.model, self.memory, self.mask_id = model, memory, mask_id
        self.length = 0
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def start(self, prompt: Tensor) -> Tensor:
        return self._say(prompt)

    def step(self, words: Tensor, rows: Tensor) -> Tensor:
        self.kept = {
            layer: (keys.index_select(0, rows), values.index_select(0, rows))
            for layer, (keys, values) in self.kept.items()
        }
        return self._say(words.unsqueeze(1))

    def _say(self, new: Tensor) -> Tensor:
        """Logits (N, V) of the word after ``new`` (N, L), which follows what was said."""
        count, before = len(new), self.length
        ids = torch.cat([new, new.new_full((count, 1), self.mask_id)], dim=1)
        self.length += new.shape[1]
        total = self.length + 1
        positions = torch.arange(before, total, device=new.device).expand(count, -1)
        mask = torch.ones(total - before, total, dtype=torch.bool, device=new.device).tril(before)
        each = count // self.memory.images
        images = torch.arange(self.memory.images, device=new.device).repeat_interleave(each)
        states = self.model.fuse(ids, mask.unsqueeze(0), positions, Look(self.memory, images, each), extend=self._keep)
        return self.model.word_head(states[:, -1], self.model.text.word_embeddings)

    def _keep(self, layer: int) -> Extend:
        def extend(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            if layer in self.kept:
                old_keys, old_values = self.kept[layer]
                keys, values = torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)
            self.kept[layer] = keys[:, :, :-1], values[:, :, :-1]
            return keys, values

        return extend
