"""Image captioning by left-to-right masked language modelling (X²-VLM, section 4.3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batches.base import IGNORE
from batches.captioning import CaptioningBatch, LeftToRightText
from batches.images import Pixels
from batches.losses import Losses, Term, Work
from models.config import CaptioningLossConfig, DecodingConfig, ModelConfig
from models.core import losses
from models.core.blocks import attention_bias, linear_dtype
from models.core.generation import CachedDecoder, Generated, generate
from models.core.heads import WordHead
from models.core.keys_values import KeysValues, KVCache
from models.core.packing import Packing, select_rows
from models.core.text import TextEncoder
from models.core.xvlm import XVLM
from models.flops import frames_of, lengths
from utils.accelerator import send
from utils.errors import UserError


@dataclass(frozen=True)
class CaptionTokens:
    """Token ids for generation: ``prompt`` (including [CLS]), ``end`` ([SEP]), ``mask`` ([MASK]) and ``pad``."""

    prompt: tuple[int, ...]
    end: int
    mask: int
    pad: int


class CaptioningModel(XVLM):
    """Generates captions. The text encoder and the fusion encoder are used as one decoder, in which every token attends to the
    image, to itself and to earlier tokens."""

    def __init__(self, config: ModelConfig, vocab_size: int | None = None, loss: CaptioningLossConfig | None = None):
        super().__init__(config, vocab_size)
        if not isinstance(self.text, TextEncoder):
            raise UserError(
                f"{config.text.encoder!r} does not support a mask per token, which captioning needs",
                where="model.text.encoder",
                remedy="use an encoder of the BERT or RoBERTa families",
            )
        self.loss = loss or CaptioningLossConfig()
        vocabulary, embedding_width = self.text.word_embeddings.shape
        if embedding_width != self.text.width:
            raise UserError(
                f"model.fusion.width is {self.text.width}, but captioning predicts words from the fusion encoder's "
                f"states with word embeddings of width {embedding_width}",
                remedy=f"set model.fusion.width to {embedding_width}",
            )
        # Use the eps of the text encoder, like the word head of the pre-training model from which training starts.
        self.word_head = WordHead(embedding_width, vocabulary, self.text.block_config.eps)

    def forward(self, batch: CaptioningBatch) -> Losses:
        """Returns the loss of the words in a micro-batch, as a sum."""
        logits = self.logits(batch.text, self.project_images(batch.pixels))
        labels = batch.text.labels.masked_fill(~batch.valid.unsqueeze(1), IGNORE)
        starts = batch.text.ids[:, :1].expand_as(labels)
        smoothing = self.loss.label_smoothing
        total = losses.smoothed_words(logits.flatten(0, 1), labels.flatten(), smoothing, starts.flatten())
        return {"words": Term(total, 1.0)}

    def counts(self, batch: CaptioningBatch) -> dict[str, Tensor]:
        """Returns the number by which the loss is divided: the number of predicted tokens in valid examples."""
        return {"words": (batch.text.labels.ne(IGNORE) & batch.valid.unsqueeze(1)).sum()}

    def work(self, batch: CaptioningBatch) -> Work:
        """See :class:`engine.task.TaskModel`. The [MASK] tokens that are inserted before predicted tokens are counted, too, and
        the last block computes the states of all tokens."""
        assert isinstance(self.text, TextEncoder)
        tokens = lengths(batch.text.ids != self.text.arch.pad_id, batch.valid)
        predicted = lengths(batch.text.labels != IGNORE, batch.valid)
        fused = self.cost.fuse_pairs(tokens, frames_of(batch.pixels), queries=None)
        return fused + Work(flops=self.cost.head("word_head", int(predicted.sum())))

    def project_images(self, pixels: Pixels) -> KeysValues:
        """Projects images (I, 3, H, W) to the keys and values that captions attend to."""
        return self.fusion.project_concepts(self.vision(pixels))

    def logits(self, text: LeftToRightText, images: KeysValues) -> Tensor:
        """Returns the logits (N, U, V) at the [MASK] tokens of N texts. ``images`` has N / S rows, and text n attends to row
        ``n // S``."""
        states = self.decode(text.ids, text.mask, text.positions, images)
        return self.word_head(gather_positions(states, text.mask_indices), self.text.word_embeddings)

    def generate(
        self, images: KeysValues, tokens: CaptionTokens, config: DecodingConfig, uniforms: Tensor | None = None
    ) -> Generated:
        """Generates a caption for each image; see :func:`~models.core.generation.generate`."""
        prompt = send(torch.tensor(tokens.prompt), images.device).expand(len(images), -1)
        return generate(CaptionDecoder(self, images, tokens.mask), prompt, tokens.end, config, uniforms)

    def decode(
        self, ids: Tensor, mask: Tensor, positions: Tensor, images: KeysValues, cache: KVCache | None = None
    ) -> Tensor:
        """States (N, L, D) of texts after the text encoder and the fusion encoder, which together form one decoder.

        Args:
            ids: (N, L) int64.
            mask: (N, L, K) or (1, L, K) bool, True = attend; K includes the tokens in the cache.
            positions: (N, L) int64, counted from 0.
            images: keys and values of N / S images; text n attends to image ``n // S``.
            cache: keys and values of earlier tokens; the keys and values of ``ids`` are appended.
        """
        assert isinstance(self.text, TextEncoder)
        bias = attention_bias(mask, linear_dtype(self.word_head.bias))
        states = self.text.decode(ids, positions, bias, cache)
        packing = Packing.equal_lengths(len(ids), ids.shape[1], ids.device)
        return self.fusion(states, packing, bias, [images], cache=cache).view(*ids.shape, -1)


class CaptionDecoder(CachedDecoder):
    """Predicts the next word of a caption.

    Each step processes the last word and a [MASK] after it, and predicts the next word at the [MASK]. The cache keeps the keys
    and values of words, but not of the [MASK].
    """

    def __init__(self, model: CaptioningModel, images: KeysValues, mask_id: int):
        super().__init__()
        self.model, self.images, self.mask_id = model, images, mask_id

    def append(self, tokens: Tensor) -> Tensor:
        count, past = len(tokens), self.length
        ids = torch.cat([tokens, tokens.new_full((count, 1), self.mask_id)], dim=1)
        self.length += tokens.shape[1]
        total = self.length + 1
        positions = torch.arange(past, total, device=tokens.device).expand(count, -1)
        mask = torch.ones(1, total - past, total, dtype=torch.bool, device=tokens.device).tril(past)
        states = self.model.decode(ids, mask, positions, self.images, self.cache)
        self.cache.crop(self.length)
        return self.model.word_head(states[:, -1], self.model.text.word_embeddings)


def gather_positions(states: Tensor, positions: Tensor) -> Tensor:
    """Returns the rows of ``states`` (N, L, D) at ``positions`` (N, U), as (N, U, D)."""
    count, length, _ = states.shape
    flat = positions + torch.arange(count, device=positions.device).unsqueeze(1) * length
    return select_rows(states.flatten(0, 1), flat)
