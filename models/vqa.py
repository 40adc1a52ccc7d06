"""Question answering: an answer decoder on the question, fused with the image (section 4.3, appendix A.1)."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from models.encoded import Encoded
from models.flops import StackCost, head_macs, lengths
from models.fusion import FusionConfig, FusionEncoder, ImageMemory, Look
from models.heads import WordHead
from models.layers import LayerConfig, init_bert_weights
from models.text import Embeddings, HubTextEncoder, TextArchitecture, TextEncoder
from models.xvlm import XVLM, ModelConfig
from utils.batch import IGNORE, Losses, QuestionBatch, Term, Text, Work
from utils.config import Config
from utils.errors import UserError


class DecoderConfig(Config):
    """Depth of the answer decoder, whose layers are of the fusion's sizes, and its words."""

    layers: int | None = Field(
        None,
        ge=1,
        description="as many as the fusion has, or half as many; null: as many. Theirs are what they start from",
    )
    word_table: Literal["own", "shared"] = Field(
        "own",
        description="own: embeddings like the text encoder's, apart from them; shared: the text encoder's table, with positions "
        "and types as BERT has them (released for XLM-R)",
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


class AnswerDecoder(FusionEncoder):
    """BERT as a left-to-right language model whose layers look at question states, with its own embeddings and word head.

    The layers are those of a fusion encoder: they look at questions as these look at images, whose keys and values are
    projected once and shared by all answers of a question.
    """

    def __init__(
        self, config: VQAModelConfig, arch: TextArchitecture, layer: LayerConfig, text: TextEncoder | None = None
    ):
        """``arch``: of the text encoder; ``layer``: the sizes of the fusion's layers; ``text``: whose words are shared."""
        depth = FusionConfig(layers=config.decoder_layers, drop_path=config.fusion.drop_path)
        super().__init__(depth, layer, layer.width)
        if arch.width != layer.width:
            raise UserError(
                f"model.fusion.width: {layer.width}, but words are embedded in {arch.width} dimensions, and the answer decoder "
                "reads words off states of the fusion's width; give the fusion the text encoder's width"
            )
        self.shared = () if text is None else (text,)  # in a tuple, so that it does not count as a part of the decoder
        if text is not None:
            like_bert = {"family": "bert", "max_positions": 512, "token_types": 2, "eps": layer.eps}
            arch = arch.model_copy(update=like_bert)
        assert arch.vocab_size is not None
        self.embeddings = Embeddings(arch, config.text.dropout, own_words=not self.shared)
        self.word_head = WordHead(layer.width, arch.vocab_size, layer.eps)
        for part in (self.embeddings, self.word_head):
            part.apply(partial(init_bert_weights, std=arch.init_std))

    def decode(self, ids: Tensor, mask: Tensor, memory: ImageMemory, rows: Tensor, answers_per_question: int) -> Tensor:
        """States (A, L, D) of answers, each token of which sees those before it and its question.

        Args:
            ids: (A, L) int64.
            mask: (A, L) bool, True = token.
            memory: of the questions (:meth:`~models.fusion.FusionEncoder.remember_text`).
            rows: (A,) int64, the question of each answer.
            answers_per_question: no question has more.
        """
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        text = Encoded(self.embed(ids), causal & mask.unsqueeze(1))
        return self(text, Look(memory, rows, answers_per_question)).states

    def logits(self, states: Tensor) -> Tensor:
        """Of the next token, (..., V) float32."""
        return self.word_head(states, self.words).float()

    def embed(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Of tokens (N, L), at ``positions`` (N, L) where they are not in order."""
        return self.embeddings(ids, positions, self.words)

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
        self.decoder = AnswerDecoder(config, self.text.arch, self.fusion.layer_config, shared)

    def forward(self, batch: QuestionBatch) -> Losses:
        """Token cross-entropies of a micro-batch, summed over each answer, times the answer's weight; their sum."""
        memory = self.decoder.remember_text(self.ask(batch.pixels, batch.text))
        ids, mask, rows = batch.answers.ids, batch.answers.mask, batch.question_of_answer
        states = self.decoder.decode(ids[:, :-1], mask[:, :-1], memory, rows, batch.answers_per_question)
        labels = ids[:, 1:].masked_fill(~mask[:, 1:], IGNORE)
        tokens = F.cross_entropy(
            self.decoder.logits(states).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        each = tokens.view_as(labels).sum(dim=1) * batch.weights
        return {"answers": Term(each.masked_fill(~batch.valid.index_select(0, rows), 0).sum(), 1.0)}

    def counts(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """What the loss is divided by: the valid questions (as released)."""
        return {"answers": batch.valid.sum()}

    @cached_property
    def decoder_cost(self) -> StackCost:
        """Of the decoder, with the words that it predicts from every state."""
        return StackCost.of(self.decoder, head_macs(self.decoder.word_head, self.decoder.words))

    def work(self, batch: QuestionBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        valid = batch.valid.index_select(0, batch.question_of_answer)
        questions, answers = lengths(batch.text.mask, batch.valid), lengths(batch.answers.mask, valid)
        asked = lengths(batch.text.mask.index_select(0, batch.question_of_answer), valid)
        # The last token of an answer is predicted, and not read.
        flops = self.decoder_cost.project(int(questions.sum())) + self.decoder_cost.run(answers - 1, asked)
        return self.cost.fuse_pairs(questions, wanted=None) + Work(tokens=int(answers.sum()), flops=flops)

    def ask(
        self, pixels: Tensor, text: Text, image_of_question: Tensor | None = None, questions_per_image: int = 1
    ) -> Encoded:
        """States (N, L, D) of questions, each fused with its image.

        ``pixels`` (I, 3, H, W); ``image_of_question`` (N,) int64, None: question n asks about image n;
        ``questions_per_image``: no image has more.
        """
        rows = torch.arange(len(pixels), device=pixels.device) if image_of_question is None else image_of_question
        look = Look(self.fusion.remember(self.vision(pixels)), rows, questions_per_image)
        return self.fusion(self.text.encode([text])[0], look)

    def copied_from(self) -> dict[str, str]:
        """As released: embeddings (where they are its own) and word head from the pre-trained ones, layers from the fusion's, of
        which a decoder of half their depth takes every second one, the last included. Keys and values of the cross-attention
        only where images are as wide as texts: elsewhere their shapes differ."""
        step = len(self.fusion.layer) // len(self.decoder.layer)
        as_wide = self.vision.width == self.text.width
        sources = {}
        for name in self.decoder.state_dict():
            part, _, rest = name.partition(".")
            if part == "layer":
                number, _, inner = rest.partition(".")
                if as_wide or not inner.startswith(("crossattention.self.key.", "crossattention.self.value.")):
                    sources[f"decoder.{name}"] = f"fusion.layer.{(int(number) + 1) * step - 1}.{inner}"
            elif part != "embeddings":
                sources[f"decoder.{name}"] = name
            elif not self.decoder.shared:
                sources[f"decoder.{name}"] = f"text.{name}"
        return sources
