"""Question answering: an answer decoder attends to the question fused with the image (section 4.3 of the paper, appendix A.1)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from batches.base import IGNORE
from batches.images import Pixels
from batches.losses import Losses, Term, Work
from batches.questions import QuestionBatch
from batches.texts import Text
from models.config import BeamConfig, BlockConfig, TextArchitecture, VQAModelConfig
from models.core.blocks import BlockStack, attention_bias, init_bert_weights, linear_dtype
from models.core.generation import CachedDecoder, Generated, beam_search
from models.core.heads import WordHead
from models.core.hub_text import HubTextEncoder
from models.core.keys_values import KeysValues, KVCache
from models.core.losses import at_least_float32
from models.core.packing import PackedTexts, Packing
from models.core.text import Embeddings, TextEncoder
from models.core.xvlm import XVLM
from models.flops import images_of, lengths
from utils.errors import UserError


class AnswerDecoder(BlockStack):
    """A left-to-right language model with BERT's architecture that attends to questions, with embeddings and a word head."""

    def __init__(
        self, config: VQAModelConfig, arch: TextArchitecture, block: BlockConfig, text: TextEncoder | None = None
    ):
        """Builds the decoder with random weights.

        Even if the text encoder is XLM-R, the decoder has BERT's architecture (as in the authors' code), with 512 positions, two
        token types, and the eps of the fusion encoder.

        Args:
            config: config of the model.
            arch: sizes of the text encoder.
            block: sizes of the fusion blocks.
            text: the text encoder whose word table the decoder shares; if None, the decoder has a separate table.
        """
        super().__init__(config.decoder_layers, block, block.width)
        if arch.width != block.width:
            raise UserError(
                f"model.fusion.width is {block.width}, but the answer decoder predicts words from states of this "
                f"width with word embeddings of width {arch.width}",
                remedy=f"set model.fusion.width to {arch.width}",
            )
        # The text encoder is in a tuple, so that it does not become a submodule of the decoder.
        self.shared = () if text is None else (text,)
        if text is not None or arch.family != "bert":
            bert_sizes = {"family": "bert", "max_positions": 512, "token_types": 2, "eps": block.eps}
            arch = arch.model_copy(update=bert_sizes)
        assert arch.vocab_size is not None
        self.embeddings = Embeddings(arch, config.text.dropout, with_words=not self.shared)
        self.word_head = WordHead(block.width, arch.vocab_size, block.eps)
        for module in (self.embeddings, self.word_head):
            module.apply(partial(init_bert_weights, std=arch.init_std))

    def decode(
        self,
        ids: Tensor,
        mask: Tensor,
        questions: KeysValues,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """States (A, L, D) of answers.

        Args:
            ids: (A, L) int64.
            mask: (A, L, K) or (1, L, K) bool, True = attend; K includes the tokens in the cache.
            questions: keys and values of A / S fused questions; answer a attends to question ``a // S``.
            positions: (A, L) int64, counted from 0; if None, the tokens are numbered in order.
            cache: keys and values of earlier tokens; the keys and values of ``ids`` are appended.
        """
        if positions is not None:
            positions = positions + self.embeddings.arch.first_position
        embedded = self.embeddings(ids, positions, self.words)
        bias = attention_bias(mask, linear_dtype(embedded))
        packing = Packing.equal_lengths(len(ids), ids.shape[1], ids.device)
        states: Tensor = self(embedded.flatten(0, 1), packing, bias, [questions], cache=cache)
        return states.view(*ids.shape, -1)

    def logits(self, states: Tensor) -> Tensor:
        """Returns the logits (..., V) of the next token, in float32 or higher precision."""
        return at_least_float32(self.word_head(states, self.words))

    @property
    def words(self) -> Tensor:
        """The word table (V, D)."""
        if self.shared:
            return self.shared[0].word_embeddings
        assert self.embeddings.word_embeddings is not None
        return self.embeddings.word_embeddings.weight


class VQAModel(XVLM):
    """Answers questions about images. The fusion encoder fuses question and image, and the decoder generates or ranks answers
    from the fused states of all tokens of the question.

    Raises:
        UserError: for a text encoder outside the BERT and RoBERTa families, whose sizes the decoder shares.
    """

    def __init__(self, config: VQAModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        if isinstance(self.text, HubTextEncoder):
            encoder = config.text.encoder
            raise UserError(
                f"{encoder!r} is not of the BERT or RoBERTa families, which question answering needs",
                where="model.text.encoder",
            )
        shared = self.text if config.decoder.word_table == "shared" else None
        self.decoder = AnswerDecoder(config, self.text.arch, self.fusion.config, shared)

    def forward(self, batch: QuestionBatch) -> Losses:
        """Returns the cross-entropy of all answer tokens in a micro-batch, summed with the answers' weights."""
        fused = self.fuse_questions(batch.pixels, batch.text, batch.image_of_question)
        questions = self.decoder.project_texts(fused)
        ids, mask, question_index = batch.answers.ids, batch.answers.mask, batch.question_of_answer
        states = self.decoder.decode(ids[:, :-1], left_to_right(mask[:, :-1]), questions.select(question_index))
        labels = ids[:, 1:].masked_fill(~mask[:, 1:], IGNORE)
        per_token = F.cross_entropy(
            self.decoder.logits(states).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        per_answer = per_token.view_as(labels).sum(dim=1) * batch.weights
        valid = batch.valid.index_select(0, question_index)
        return {"answers": Term(per_answer.masked_fill(~valid, 0).sum(), 1.0)}

    def counts(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """Returns the number by which the loss is divided: the number of valid questions (as in the authors' code)."""
        return {"answers": batch.valid.sum()}

    def work(self, batch: QuestionBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        valid = batch.valid.index_select(0, batch.question_of_answer)
        questions, answers = lengths(batch.text.mask, batch.valid), lengths(batch.answers.mask, valid)
        question_of_answer = lengths(batch.text.mask.index_select(0, batch.question_of_answer), valid)
        # The decoder predicts the last token of an answer and does not read it.
        decoder = self.cost.decoder
        assert decoder is not None
        flops = decoder.project(int(questions.sum())) + decoder.run(answers - 1, question_of_answer)
        fused = self.cost.fuse_pairs(questions, queries=None, images=images_of(batch))
        return fused + Work(tokens=int(answers.sum()), flops=flops)

    def fuse_questions(self, pixels: Pixels, text: Text, image_of_question: Tensor | None = None) -> PackedTexts:
        """Fuses N questions with their images. For the arguments, see :meth:`models.core.xvlm.XVLM.encode`."""
        return self.fusion.tokens(*self.encode(pixels, text, image_of_question))

    def generate(self, fused: PackedTexts, start: int, end: int, config: BeamConfig) -> Generated:
        """Generates an answer to each of N fused questions; see :func:`~models.core.generation.beam_search`.

        Args:
            fused: the questions, as returned by :meth:`fuse_questions`.
            start, end: ids of [CLS] and [SEP].
            config: settings of the beam search.
        """
        prompt = torch.full((fused.packing.count, 1), start, device=fused.states.device)
        return beam_search(AnswerGenerator(self.decoder, self.decoder.project_texts(fused)), prompt, end, config)

    def copied_from(self) -> dict[str, str]:
        """See :meth:`models.core.xvlm.XVLM.copied_from`. The decoder's layers start from the fusion layers, as in the
        authors' code.

        If the decoder has a separate word table, its embeddings and word head start from the pre-trained weights if the text
        encoder is BERT, and from random weights if it is XLM-R (as in the authors' code). If the word table is shared, only the
        word head is copied; the authors' code does not have this option. The key and value projections of the cross-attention are
        copied only if images and texts have the same width, because their shapes would differ otherwise.
        """
        assert isinstance(self.text, TextEncoder)
        is_bert = self.text.arch.family == "bert"
        equal_width = self.vision.width == self.text.width
        sources = {}
        for name in self.decoder.state_dict():
            module, _, rest = name.partition(".")
            if module == "layer":
                index, _, inner = rest.partition(".")
                if equal_width or not inner.startswith(("crossattention.self.key.", "crossattention.self.value.")):
                    sources[f"decoder.{name}"] = f"fusion.layer.{self._fusion_layer(int(index))}.{inner}"
            elif module != "embeddings":
                if is_bert or self.decoder.shared:
                    sources[f"decoder.{name}"] = name
            elif is_bert and not self.decoder.shared:
                sources[f"decoder.{name}"] = f"text.{name}"
        return sources

    def _fusion_layer(self, layer: int) -> int:
        """The index of the fusion layer from which a decoder layer starts. A decoder of half the depth starts from the layers
        with an odd index in the stack of text and fusion layers, counted from 0 (in the authors' code: 13, 15 and 17 of 12 + 6
        layers)."""
        if len(self.decoder.layer) == len(self.fusion.layer):
            return layer
        assert isinstance(self.text, TextEncoder)
        first_odd = 1 - len(self.text.encoder.layer) % 2
        return first_odd + 2 * layer


class AnswerGenerator(CachedDecoder):
    """Predicts the next token of an answer. ``questions`` contains the keys and values of the fused questions."""

    def __init__(self, decoder: AnswerDecoder, questions: KeysValues):
        super().__init__()
        self.decoder, self.questions = decoder, questions

    def append(self, tokens: Tensor) -> Tensor:
        count, past = len(tokens), self.length
        self.length += tokens.shape[1]
        positions = torch.arange(past, self.length, device=tokens.device).expand(count, -1)
        mask = torch.ones(1, tokens.shape[1], self.length, dtype=torch.bool, device=tokens.device).tril(past)
        states = self.decoder.decode(tokens, mask, self.questions, positions, self.cache)
        return self.decoder.logits(states[:, -1])


def left_to_right(mask: Tensor) -> Tensor:
    """Turns padding masks (N, L) into causal masks (N, L, L), with which a token attends to itself and to the tokens before
    it."""
    length = mask.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=mask.device).tril() & mask.unsqueeze(1)
