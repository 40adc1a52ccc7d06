"""Question answering: an answer decoder on the question, fused with the image (section 4.3, appendix A.1)."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from models.blocks import BlockConfig, BlockStack, Sequences, init_bert_weights
from models.flops import StackCost, head_macs, lengths
from models.fusion import FusionPass
from models.heads import WordHead
from models.hub_text import HubTextEncoder
from models.losses import at_least_float32
from models.memory import Attended, CrossMemory
from models.packing import PackedTexts
from models.text import Embeddings, TextArchitecture, TextEncoder
from models.xvlm import XVLM, ModelConfig
from utils.batch import IGNORE, Losses, QuestionBatch, Term, Text, Work
from utils.config import Config
from utils.errors import UserError


class DecoderConfig(Config):
    """Depth and words of the answer decoder; its blocks have the fusion's sizes."""

    layers: int | None = Field(
        None,
        ge=1,
        description="as many as the fusion has, whose weights they start from, or half as many; null: as many",
    )
    word_table: Literal["own", "shared"] = Field(
        "own",
        description="own: a table of the decoder's, as released for VQA, and as the released xGQA script writes it: choose it to "
        "load such a file. shared: the text encoder's table, which saves 192M parameters with XLM-R and starts pre-trained",
    )


class VQAModelConfig(ModelConfig):
    """The shared model and an answer decoder."""

    decoder: DecoderConfig = DecoderConfig()

    @model_validator(mode="after")
    def _layers_have_a_source(self) -> VQAModelConfig:
        fused, layers = self.fusion.layers, self.decoder_layers
        if layers != fused and 2 * layers != fused:
            raise ValueError(f"decoder.layers is {layers}, neither all nor half of the {fused} fusion layers")
        return self

    @property
    def decoder_layers(self) -> int:
        """How many layers the decoder has."""
        return self.decoder.layers or self.fusion.layers


class AnswerDecoder(BlockStack):
    """BERT as a left-to-right language model that attends to questions, with its own embeddings and word head."""

    def __init__(
        self, config: VQAModelConfig, arch: TextArchitecture, block: BlockConfig, text: TextEncoder | None = None
    ):
        """``arch``: of the text encoder; ``block``: the sizes of the fusion's blocks; ``text``: whose words are shared.

        Beside XLM-R the decoder is still BERT (as released): 512 positions, two token types, and the fusion's eps.
        """
        super().__init__(config.decoder_layers, block, block.width)
        if arch.width != block.width:
            raise UserError(
                f"model.fusion.width: {block.width}, but words are embedded in {arch.width} dimensions, and the answer decoder "
                "reads words off states of the fusion's width; give the fusion the text encoder's width"
            )
        self.shared = () if text is None else (text,)  # in a tuple, so that it does not count as a part of the decoder
        if text is not None or arch.family != "bert":
            like_bert = {"family": "bert", "max_positions": 512, "token_types": 2, "eps": block.eps}
            arch = arch.model_copy(update=like_bert)
        assert arch.vocab_size is not None
        self.embeddings = Embeddings(arch, config.text.dropout, own_words=not self.shared)
        self.word_head = WordHead(block.width, arch.vocab_size, block.eps)
        for part in (self.embeddings, self.word_head):
            part.apply(partial(init_bert_weights, std=arch.init_std))

    def questions_memory(self, questions: PackedTexts) -> CrossMemory:
        """The memory of fused questions, which answers attend to."""
        return self.memory(questions.padded(), questions.packing.mask)

    def decode(self, ids: Tensor, mask: Tensor, memory: CrossMemory, positions: Tensor | None = None) -> Tensor:
        """States (A, L, D) of answers.

        Args:
            ids: (A, L) int64.
            mask: (A or 1, L, L) bool, which tokens each token attends to.
            memory: of the questions, A / S rows; answer a attends to question a // S.
            positions: (A, L) int64, from 0; None: in order.
        """
        if positions is not None:
            positions = positions + self.embeddings.arch.first_position
        embedded = self.embeddings(ids, positions, self.words)
        sequences = Sequences.with_masks(len(ids), mask, embedded)
        states: Tensor = self(embedded.flatten(0, 1), sequences, [Attended((memory,), len(ids))])
        return states.view(*ids.shape, -1)

    def logits(self, states: Tensor) -> Tensor:
        """Logits of the next token, (..., V), at least float32."""
        return at_least_float32(self.word_head(states, self.words))

    @property
    def words(self) -> Tensor:
        """The (V, D) table of words."""
        if self.shared:
            return self.shared[0].word_embeddings
        assert self.embeddings.word_embeddings is not None
        return self.embeddings.word_embeddings.weight


class VQAModel(XVLM):
    """The question is fused with the image; the decoder answers from the fused states of all its tokens.

    Raises:
        UserError: for a text encoder outside the BERT and RoBERTa families, whose sizes the decoder shares.
    """

    def __init__(self, config: VQAModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        if isinstance(self.text, HubTextEncoder):
            raise UserError("model.text.encoder: question answering needs one of the BERT or RoBERTa families")
        shared = self.text if config.decoder.word_table == "shared" else None
        self.decoder = AnswerDecoder(config, self.text.arch, self.fusion.config, shared)

    def forward(self, batch: QuestionBatch) -> Losses:
        """Token cross-entropies of a micro-batch, summed over each answer, times the answer's weight; their sum."""
        questions = self.decoder.questions_memory(self.fuse_questions(batch.pixels, batch.text))
        ids, mask, rows = batch.answers.ids, batch.answers.mask, batch.question_of_answer
        states = self.decoder.decode(ids[:, :-1], left_to_right(mask[:, :-1]), questions.select(rows))
        labels = ids[:, 1:].masked_fill(~mask[:, 1:], IGNORE)
        tokens = F.cross_entropy(
            self.decoder.logits(states).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        each = tokens.view_as(labels).sum(dim=1) * batch.weights
        return {"answers": Term(each.masked_fill(~batch.valid.index_select(0, rows), 0).sum(), 1.0)}

    def counts(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """The loss is divided by the valid questions (as released)."""
        return {"answers": batch.valid.sum()}

    @cached_property
    def decoder_cost(self) -> StackCost:
        """FLOPs of the decoder, with the words that it predicts from every state."""
        return StackCost.of(self.decoder, head_macs(self.decoder.word_head, self.decoder.words))

    def work(self, batch: QuestionBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        valid = batch.valid.index_select(0, batch.question_of_answer)
        questions, answers = lengths(batch.text.mask, batch.valid), lengths(batch.answers.mask, valid)
        question_of_each = lengths(batch.text.mask.index_select(0, batch.question_of_answer), valid)
        # The last token of an answer is predicted, and not read.
        flops = self.decoder_cost.project(int(questions.sum())) + self.decoder_cost.run(answers - 1, question_of_each)
        return self.cost.fuse_pairs(questions, queries=None) + Work(tokens=int(answers.sum()), flops=flops)

    def fuse_questions(self, pixels: Tensor, text: Text, image_of_question: Tensor | None = None) -> PackedTexts:
        """N questions, each fused with its image.

        ``pixels`` (I, 3, H, W); ``image_of_question`` (N,) int64, None: question n asks about image n.
        """
        memory, (questions,) = self.fusion.concept_memory(self.vision(pixels)), self.text([text])
        if image_of_question is not None:
            memory = memory.select(image_of_question)
        (fused,) = self.fusion.fuse([FusionPass(questions, memory)])
        return PackedTexts(fused, questions.packing)

    def copied_from(self) -> dict[str, str]:
        """Layers from the fusion's, and with BERT also embeddings and word head from the pre-trained ones (as released).

        Keys and values of the cross-attention are copied only where images are as wide as texts: elsewhere their shapes differ.
        Beside XLM-R, embeddings of the decoder's own and their word head start from random numbers (as released); where XLM-R's
        words are shared, the word head is copied, which the released code does not do.
        """
        assert isinstance(self.text, TextEncoder)
        like_text = self.text.arch.family == "bert"
        as_wide = self.vision.width == self.text.width
        sources = {}
        for name in self.decoder.state_dict():
            part, _, rest = name.partition(".")
            if part == "layer":
                number, _, inner = rest.partition(".")
                if as_wide or not inner.startswith(("crossattention.self.key.", "crossattention.self.value.")):
                    sources[f"decoder.{name}"] = f"fusion.layer.{self._fusion_layer(int(number))}.{inner}"
            elif part != "embeddings":
                if like_text or self.decoder.shared:
                    sources[f"decoder.{name}"] = name
            elif like_text and not self.decoder.shared:
                sources[f"decoder.{name}"] = f"text.{name}"
        return sources

    def _fusion_layer(self, layer: int) -> int:
        """The fusion layer from which a decoder layer starts. A decoder of half the depth takes those with an odd number in the
        stack of text and fusion layers, counted from 0 (as released: 13, 15, 17 of 12 + 6)."""
        if len(self.decoder.layer) == len(self.fusion.layer):
            return layer
        assert isinstance(self.text, TextEncoder)
        first_odd = 1 - len(self.text.encoder.layer) % 2
        return first_odd + 2 * layer


def left_to_right(mask: Tensor) -> Tensor:
    """Padding masks (N, L) as masks per query, (N, L, L): each token attends to itself and to those before it."""
    length = mask.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=mask.device).tril() & mask.unsqueeze(1)
