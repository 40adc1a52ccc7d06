"""Text encoders by Hugging Face name or folder: ours for the BERT and RoBERTa families, an adapter for any other."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import BlockConfig
from models.packing import PackedTexts, packings_of
from models.text import TextArchitecture, TextConfig, TextEncoder
from utils.batch import Text
from utils.errors import UserError

logger = logging.getLogger(__name__)

BERT_FAMILY = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta"}
"""Hugging Face ``model_type`` -> our family."""

_DROPOUT = ("hidden_dropout_prob", "dropout", "dropout_rate", "hidden_dropout", "embedding_dropout", "mlp_dropout")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
"""Names of the two settings in the library's configurations."""


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
        self.block_config = BlockConfig(
            width=own,
            heads=heads,
            intermediate=getattr(hub_config, "intermediate_size", None) or 4 * own,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )

    def set_recompute(self, wanted: bool) -> None:
        """See :meth:`models.xvlm.XVLM.set_recompute`.

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

    def forward(self, texts: Sequence[Text]) -> list[PackedTexts]:
        """See :meth:`TextEncoder.forward`; the library's layers pad all texts to the longest."""
        longest = max(text.ids.shape[1] for text in texts)
        ids, mask = (
            torch.cat([F.pad(part, (0, longest - part.shape[1])) for part in parts])
            for parts in ([text.ids for text in texts], [text.mask for text in texts])
        )
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if self.projection is not None:
            states = self.projection(states)
        padded = states.split([len(text.ids) for text in texts])
        return [
            PackedTexts(packing.pack(own[:, : packing.length]), packing)
            for packing, own in zip(packings_of(texts), padded, strict=True)
        ]


def _with_dropout(hub_config: Any, config: TextConfig) -> Any:
    """A copy of a Hugging Face configuration with the run's dropout, whatever its names are; those that it lacks are logged."""
    changed = copy.deepcopy(hub_config)
    wanted = {
        "dropout": (_DROPOUT, config.dropout),
        "attention_dropout": (_ATTENTION_DROPOUT, config.attention_dropout),
    }
    for key, (names, value) in wanted.items():
        present = [name for name in names if hasattr(changed, name)]
        for name in present:
            setattr(changed, name, value)
        if not present:
            logger.warning("model.text.%s: %s has no such setting; it keeps its own", key, type(changed).__name__)
    return changed


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
