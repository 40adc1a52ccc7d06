"""The text encoder: BERT and RoBERTa families on our own layers, any other Hugging Face encoder through an adapter."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.encoded import Encoded
from models.layers import (
    Asking,
    Extend,
    Layer,
    LayerConfig,
    SelfLook,
    attention_mask,
    init_bert_weights,
    query_dtype,
    run_layer,
    uneven_heads,
)
from models.layout import Layout, join, text_layout
from utils.batch import Text
from utils.config import Config
from utils.errors import UserError

logger = logging.getLogger(__name__)

BERT_FAMILY = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta"}
"""Hugging Face ``model_type`` -> our family."""


class TextArchitecture(Config):
    """Sizes of a BERT or RoBERTa encoder."""

    family: Literal["bert", "roberta"] = "bert"
    vocab_size: int | None = Field(None, ge=1, description="None: the tokenizer's")
    width: int = Field(768, ge=1)
    layers: int = Field(12, ge=1)
    heads: int = Field(12, ge=1)
    intermediate: int = Field(3072, ge=1)
    max_positions: int = Field(512, ge=1)
    token_types: int = Field(2, ge=1)
    eps: float = Field(1e-12, gt=0)
    pad_id: int = Field(0, ge=0)
    init_std: float = Field(
        0.02,
        gt=0,
        description="of random weights, in the fusion encoder too; 0.02 suits a width of 768, a narrow one needs more",
    )

    @property
    def first_position(self) -> int:
        """The number of the first token's position; RoBERTa's positions start after ``pad_id``."""
        return self.pad_id + 1 if self.family == "roberta" else 0

    @property
    def longest_text(self) -> int:
        """Tokens that have a position."""
        return self.max_positions - self.first_position

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TextArchitecture:
        uneven = uneven_heads(self.width, self.heads)
        if uneven:
            raise ValueError(uneven)
        return self


class TextConfig(Config):
    """Which text encoder."""

    encoder: str = Field(
        "bert-base-uncased", description="Hugging Face name or folder: the tokenizer, and the sizes too"
    )
    arch: TextArchitecture | None = Field(None, description="sizes, where they are not those of `encoder`")
    dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="stochastic depth of the layers, rising linearly from 0; replaces their dropout"
    )

    @property
    def knows_vocabulary(self) -> bool:
        """Whether the number of words is given, so that no tokenizer has to be asked."""
        return self.arch is None or self.arch.vocab_size is not None


class Embeddings(nn.Module):
    """Word, position and type embeddings, under BERT's key names. RoBERTa counts positions from ``pad_id + 1`` on tokens.

    Without ``own_words`` the table of words is handed in at each call.
    """

    def __init__(self, arch: TextArchitecture, dropout: float, *, own_words: bool = True):
        super().__init__()
        assert arch.vocab_size is not None
        self.arch = arch
        self.word_embeddings = nn.Embedding(arch.vocab_size, arch.width, padding_idx=arch.pad_id) if own_words else None
        padded = arch.pad_id if arch.family == "roberta" else None
        self.position_embeddings = nn.Embedding(arch.max_positions, arch.width, padding_idx=padded)
        self.token_type_embeddings = nn.Embedding(arch.token_types, arch.width)
        self.LayerNorm = nn.LayerNorm(arch.width, eps=arch.eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, positions: Tensor | None = None, words: Tensor | None = None) -> Tensor:
        """``ids`` (N, L); ``positions`` (N, L) rows of the table, where they are not those of the tokens in order; ``words``
        (V, D), read where there is no own table."""
        if positions is None:
            positions = self.positions(ids)
        types = self.token_type_embeddings.weight[0]
        if self.word_embeddings is not None:
            embedded = self.word_embeddings(ids)
        else:
            assert words is not None
            embedded = F.embedding(ids, words, padding_idx=self.arch.pad_id)
        return self.dropout(self.LayerNorm(embedded + types + self.position_embeddings(positions)))

    def positions(self, ids: Tensor) -> Tensor:
        if self.arch.family == "roberta":
            real = ids.ne(self.arch.pad_id)
            return real.cumsum(dim=1) * real + self.arch.pad_id
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


class LayerStack(nn.Module):
    """Layers under the key ``layer.N``."""

    def __init__(self, layers: int, config: LayerConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config.at_depth(index, layers)) for index in range(layers))
        self.recompute = False

    def forward(self, rows: Tensor, asking: Asking, extend: Callable[[int], Extend] | None = None) -> Tensor:
        """``rows`` (T, D) -> (T, D)."""
        for number, layer in enumerate(self.layer):
            rows = run_layer(layer, self.recompute, rows, asking, None, extend(number) if extend else None)
        return rows


class TextEncoder(nn.Module):
    """BERT or RoBERTa, without a pooler.

    Accepts masks per query, (N, L, L), beside padding masks, (N, L). ``width``: of its states, which are projected to it
    where the encoder's own width is another.
    """

    def __init__(self, config: TextConfig, arch: TextArchitecture, width: int | None = None):
        super().__init__()
        self.arch = arch
        self.width = width or arch.width
        self.layer_config = layer_config(config, arch)
        self.embeddings = Embeddings(arch, config.dropout)
        self.encoder = LayerStack(arch.layers, self.layer_config)
        self.projection = nn.Linear(arch.width, self.width) if self.width != arch.width else None
        self.apply(partial(init_bert_weights, std=arch.init_std))

    @property
    def layers(self) -> nn.Module:
        """What is most of the work, for ``torch.compile``."""
        return self.encoder

    def recompute(self, wanted: bool) -> None:
        """See :meth:`models.xvlm.XVLM.recompute`."""
        self.encoder.recompute = wanted

    @property
    def longest_text(self) -> int:
        """See :attr:`TextArchitecture.longest_text`."""
        return self.arch.longest_text

    @property
    def word_embeddings(self) -> Tensor:
        """The (V, D) table, which the word head shares; D is the encoder's own width."""
        assert self.embeddings.word_embeddings is not None
        return self.embeddings.word_embeddings.weight

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor | None = None,
        extend: Callable[[int], Extend] | None = None,
    ) -> Encoded:
        """``ids`` (N, L) int64, ``mask`` (N, L) bool, or (N, L, K) per query -> states (N, L, D).

        ``positions`` (N, L) counted from 0, where they are not the places of the tokens; ``extend``: of each layer by its
        number, see :class:`~models.layers.Attention`.
        """
        return self._encode([Text(ids, mask)], positions, extend)[0]

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """The same for several batches of texts, each padded to a length of its own, in one pass."""
        return self._encode(texts)

    def _encode(
        self,
        texts: Sequence[Text],
        positions: Tensor | None = None,
        extend: Callable[[int], Extend] | None = None,
    ) -> list[Encoded]:
        layouts = [text_layout(text.ids.shape, text.mask, text.tokens) for text in texts]
        rows = self._embed(texts, positions, layouts)
        masks = [attention_mask(text.mask, query_dtype(rows)) for text in texts]
        looks = [SelfLook(own, own, mask) for own, mask in zip(layouts, masks, strict=True)]
        rows = self.encoder(rows, Asking(tuple(looks)), extend)
        if self.projection is not None:
            rows = self.projection(rows)
        parts = rows.split([layout.rows for layout in layouts])
        return [
            Encoded(layout.to_slots(part), text.mask, text.tokens)
            for text, layout, part in zip(texts, layouts, parts, strict=True)
        ]

    def _embed(self, texts: Sequence[Text], positions: Tensor | None, layouts: Sequence[Layout]) -> Tensor:
        """(T, D), looked up for all texts at once: the gradient of a lookup is a table as large as the vocabulary's."""
        tokens, places = [], []
        for text, layout in zip(texts, layouts, strict=True):
            given = self.embeddings.positions(text.ids) if positions is None else positions + self.arch.first_position
            both = torch.stack([text.ids, given.expand_as(text.ids)], dim=2)
            token, place = layout.to_rows(both).unbind(dim=1)
            tokens.append(token)
            places.append(place)
        return self.embeddings(join(tokens), join(places))


_DROPOUT = ("hidden_dropout_prob", "dropout", "dropout_rate", "hidden_dropout", "embedding_dropout", "mlp_dropout")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
"""What configurations of the library call the two."""


class HubTextEncoder(nn.Module):
    """Any other Hugging Face encoder, through ``AutoModel``: padding masks only. ``width``: see :class:`TextEncoder`."""

    def __init__(self, config: TextConfig, hub_config: Any, width: int | None = None):
        super().__init__()
        if config.drop_path:
            raise UserError("model.text.drop_path: only for the BERT and RoBERTa families; set it to 0")
        from transformers import AutoModel

        self.model = AutoModel.from_config(_with_dropout(hub_config, config))
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # nothing uses it, and DDP waits for the gradient of every parameter
        own: int = hub_config.hidden_size
        self.width: int = width or own
        self.projection = nn.Linear(own, self.width) if self.width != own else None
        heads = getattr(hub_config, "num_attention_heads", None) or max(1, own // 64)
        self.layer_config = LayerConfig(
            width=own,
            heads=heads,
            intermediate=getattr(hub_config, "intermediate_size", None) or 4 * own,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )

    @property
    def layers(self) -> nn.Module:
        """What is most of the work, for ``torch.compile``."""
        return self.model

    def recompute(self, wanted: bool) -> None:
        """See :meth:`models.xvlm.XVLM.recompute`.

        Raises:
            UserError: if the library's model cannot.
        """
        if not wanted:
            return
        try:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"train.recompute: {error}; leave out `text`") from None

    @property
    def longest_text(self) -> int | None:
        """Tokens that have a position; None where the architecture sets no bound."""
        positions: int | None = getattr(self.model.config, "max_position_embeddings", None)
        table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        before = getattr(table, "padding_idx", None)  # as RoBERTa, some count from the number after it
        return positions if positions is None or before is None else positions - before - 1

    @property
    def word_embeddings(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """See :meth:`TextEncoder.forward`.

        Raises:
            UserError: for a mask per query, which the library's encoders refuse.
        """
        if mask.dim() != 2:
            raise UserError("this text encoder takes no mask per query; use one of the BERT or RoBERTa families")
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return Encoded(states if self.projection is None else self.projection(states), mask)

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """The same for several batches of texts, each padded to a length of its own, in one pass."""
        longest = max(text.ids.shape[1] for text in texts)
        ids, mask = (
            torch.cat([F.pad(part, (0, longest - part.shape[1])) for part in parts])
            for parts in ([text.ids for text in texts], [text.mask for text in texts])
        )
        states = self(ids, mask).states.split([len(text.ids) for text in texts])
        return [
            Encoded(own[:, : text.ids.shape[1]], text.mask, text.tokens)
            for own, text in zip(states, texts, strict=True)
        ]


def _with_dropout(hub_config: Any, config: TextConfig) -> Any:
    """A copy of a Hugging Face configuration with the run's dropout, whatever its names are; those that it lacks are logged."""
    found = copy.deepcopy(hub_config)
    wanted = {
        "dropout": (_DROPOUT, config.dropout),
        "attention_dropout": (_ATTENTION_DROPOUT, config.attention_dropout),
    }
    for key, (names, value) in wanted.items():
        there = [name for name in names if hasattr(found, name)]
        for name in there:
            setattr(found, name, value)
        if not there:
            logger.warning("model.text.%s: %s has no such setting; it keeps its own", key, type(found).__name__)
    return found


def layer_config(config: TextConfig, arch: TextArchitecture) -> LayerConfig:
    """The layer sizes of an architecture with the run's dropout."""
    return LayerConfig(
        width=arch.width,
        heads=arch.heads,
        intermediate=arch.intermediate,
        eps=arch.eps,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        drop_path=config.drop_path,
        init_std=arch.init_std,
    )


def build_text_encoder(
    config: TextConfig, vocab_size: int | None, width: int | None = None
) -> TextEncoder | HubTextEncoder:
    """The encoder that ``config`` names; ``vocab_size`` is the tokenizer's, for architectures that leave it open; ``width``
    that of the states, None: the encoder's own.

    Raises:
        UserError: if ``encoder`` has no Hugging Face configuration and ``arch`` is not given.
    """
    arch = config.arch
    if arch is None:
        hub_config = hub_config_of(config.encoder)
        if not is_bert_family(hub_config):
            known = getattr(hub_config, "vocab_size", None)
            if vocab_size is not None and known is not None and vocab_size > known:
                raise UserError(f"model.text: the tokenizer has {vocab_size} entries, the embedding only {known}")
            return HubTextEncoder(config, hub_config, width)
        arch = architecture_of(hub_config)
    if arch.vocab_size is None:
        if vocab_size is None:
            raise UserError("model.text.arch.vocab_size is missing and there is no tokenizer to ask")
        arch = arch.model_copy(update={"vocab_size": vocab_size})
    if vocab_size is not None and vocab_size > (arch.vocab_size or 0):
        raise UserError(f"model.text: the tokenizer has {vocab_size} entries, the embedding only {arch.vocab_size}")
    return TextEncoder(config, arch, width)


def architecture_of(hub_config: Any) -> TextArchitecture:
    """Our sizes from a Hugging Face configuration of the BERT or RoBERTa families."""
    return TextArchitecture(
        family=BERT_FAMILY[hub_config.model_type],
        vocab_size=hub_config.vocab_size,
        width=hub_config.hidden_size,
        layers=hub_config.num_hidden_layers,
        heads=hub_config.num_attention_heads,
        intermediate=hub_config.intermediate_size,
        max_positions=hub_config.max_position_embeddings,
        token_types=hub_config.type_vocab_size,
        eps=hub_config.layer_norm_eps,
        pad_id=hub_config.pad_token_id or 0,
        init_std=hub_config.initializer_range,
    )


def is_bert_family(hub_config: Any) -> bool:
    """Whether a Hugging Face configuration is one of the encoders that run on our own layers."""
    return hub_config.model_type in BERT_FAMILY


def hub_config_of(encoder: str) -> Any:
    """The Hugging Face configuration of a name or folder.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(Path(encoder).expanduser()) if encoder.startswith("~") else encoder)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"model.text.encoder: no configuration for {encoder!r}, and model.text.arch is not given: {reason}"
        ) from None
