"""Text encoders that are named by a Hugging Face name or folder. The BERT and RoBERTa families are built from our blocks; all
others are wrapped by an adapter."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batches.texts import Text
from models.config import BlockConfig, TextArchitecture, TextConfig
from models.core.hub import longest_module_list, model_class, part_config, set_gradient_checkpointing
from models.core.packing import PackedTexts, packings_of
from models.core.text import TextEncoder
from models.flops import counted_flops
from utils.errors import UserError
from utils.tensors import on_meta

logger = logging.getLogger(__name__)

BERT_FAMILY = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta"}
"""The family in :class:`~models.core.text.TextArchitecture` for each Hugging Face ``model_type``."""

_DROPOUT = ("hidden_dropout_prob", "dropout", "dropout_rate", "hidden_dropout", "embedding_dropout", "mlp_dropout")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
"""Names of our two dropout settings in Hugging Face configurations."""

_EPS = ("layer_norm_eps", "norm_eps")
"""Names of the setting for the epsilon of norms in Hugging Face configurations."""

_CAUSAL = ("clip_text_model", "clipseg_text_model", "owlvit_text_model", "owlv2_text_model")
"""Text encoders in transformers that read from left to right although they are not language models."""


class HubTextEncoder(nn.Module):
    """An adapter for Hugging Face encoders outside the BERT and RoBERTa families. It supports only padding masks. ``width``: see
    :class:`TextEncoder`."""

    def __init__(self, config: TextConfig, hub_config: Any, width: int | None = None):
        super().__init__()
        if config.drop_path:
            raise UserError(
                f"model.text.drop_path is {config.drop_path}, but only BERT and RoBERTa families support it",
                remedy="set it to 0",
            )
        self.model: Any = model_class(hub_config)._from_config(_with_dropout(hub_config, config))
        # Remove the pooler and the head, which are unused: DDP would wait for the gradients of their parameters.
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None
        if isinstance(getattr(self.model, "head", None), nn.Linear):  # SigLIP's head, on the pooled text
            self.model.head = nn.Identity()
        hidden: int = hub_config.hidden_size
        self.width: int = width or hidden
        self.projection = nn.Linear(hidden, self.width) if self.width != hidden else None
        heads = getattr(hub_config, "num_attention_heads", None) or max(1, hidden // 64)
        self.block_config = BlockConfig(
            width=hidden,
            heads=heads,
            intermediate=getattr(hub_config, "intermediate_size", None) or 4 * hidden,
            eps=next((getattr(hub_config, name) for name in _EPS if hasattr(hub_config, name)), 1e-12),
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            init_std=getattr(hub_config, "initializer_range", 0.02),
        )
        self._require_encoder()

    def _require_encoder(self) -> None:
        """Raises :class:`UserError` if the model does not return a state for each token, or if its tokens do not attend to later
        tokens."""
        from transformers.models.auto import modeling_auto

        config = self.model.config
        generates = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        fills_in = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        causal = (generates and not fills_in) or config.model_type in _CAUSAL
        if causal and not getattr(config, "use_bidirectional_attention", False):
            raise UserError(
                f"{config.model_type} reads from left to right, so a masked word does not see the words after it",
                where="model.text.encoder",
                remedy="choose an encoder such as BERT, ModernBERT or DeBERTa",
            )
        try:
            with torch.no_grad():
                found: object = tuple(self._without_content(4)().shape)
        except Exception as error:  # exceptions differ between models
            found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
        if found != (1, 4, self.block_config.width) or getattr(config, "is_decoder", False):
            raise UserError(
                f"{type(self.model).__name__} does not return a state for each token ({found})",
                where="model.text.encoder",
                remedy="choose an encoder such as BERT, ModernBERT or DeBERTa",
            )

    def _without_content(self, length: int) -> Callable[[], Tensor]:
        """Returns a function that runs a copy of the model on one text of ``length`` tokens. The copy is on the meta device, so
        nothing is computed."""
        model = on_meta(self.model, self.model)
        set_gradient_checkpointing(model, False, "text")
        model.warn_if_padding_and_no_attention_mask = lambda *inputs: None  # the model looks for padding in the ids
        ids = torch.ones(1, length, dtype=torch.long, device="meta")
        return lambda: model(input_ids=ids).last_hidden_state

    @property
    def blocks_to_shard(self) -> list[nn.Module]:
        """See :class:`optim.setup.EncoderBlocks`."""
        return longest_module_list(self.model)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See :class:`optim.setup.EncoderBlocks`.

        Raises:
            UserError: if the Hugging Face model does not support gradient checkpointing.
        """
        set_gradient_checkpointing(self.model, enabled, "text")

    def compile_blocks(self, **options: Any) -> None:
        """See :class:`optim.setup.EncoderBlocks`."""
        self.model.compile(dynamic=True, **options)

    def step_flops(self, length: int) -> int:
        """FLOPs of a training step for one text of ``length`` tokens, without :attr:`projection`."""
        return counted_flops(self._without_content(length))

    @property
    def longest_text(self) -> int | None:
        """Maximum number of tokens of a text; None if the architecture sets no limit."""
        positions: int | None = getattr(self.model.config, "max_position_embeddings", None)
        table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        # Like RoBERTa, some encoders start positions after the padding index.
        padding_index = getattr(table, "padding_idx", None)
        return positions if positions is None or padding_index is None else positions - padding_index - 1

    @property
    def word_embeddings(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def forward(self, texts: Sequence[Text]) -> list[PackedTexts]:
        """See :meth:`TextEncoder.forward`. All texts are padded to the longest text, as Hugging Face's layers require."""
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
            PackedTexts(packing.pack(batch_states[:, : packing.length]), packing)
            for packing, batch_states in zip(packings_of(texts), padded, strict=True)
        ]


def _with_dropout(hub_config: Any, config: TextConfig) -> Any:
    """Returns a copy of a Hugging Face configuration with the dropout rates of our config. Logs a warning for each dropout
    setting that the Hugging Face configuration lacks."""
    result = copy.deepcopy(hub_config)
    settings = {
        "dropout": (_DROPOUT, config.dropout),
        "attention_dropout": (_ATTENTION_DROPOUT, config.attention_dropout),
    }
    for key, (names, value) in settings.items():
        present = [name for name in names if hasattr(result, name)]
        for name in present:
            setattr(result, name, value)
        if not present:
            logger.warning("model.text.%s: %s has no such setting and keeps its default", key, type(result).__name__)
    return result


def build_text_encoder(
    config: TextConfig, vocab_size: int | None, width: int | None = None
) -> TextEncoder | HubTextEncoder:
    """Builds the encoder that ``config`` names, with random weights.

    Args:
        config: the encoder and its dropout.
        vocab_size: number of entries of the tokenizer; None if unknown. It is used if the architecture has no vocabulary size.
        width: width of the output states; if it differs from the encoder's hidden size, the states are projected; if None, they
            are not.

    Raises:
        UserError: if ``arch`` is null and ``encoder`` has no Hugging Face configuration, or if the vocabulary does not fit.
    """
    arch = config.arch
    if arch is None:
        hub_config = hub_config_of(config.encoder)
        if not is_bert_family(hub_config):
            _check_vocabulary(vocab_size, getattr(hub_config, "vocab_size", None))
            if config.max_positions is not None:
                if not hasattr(hub_config, "max_position_embeddings"):
                    raise UserError(
                        f"{config.encoder} sets no maximum length",
                        where="model.text.max_positions",
                        remedy="set it to null",
                    )
                if getattr(hub_config, "max_relative_positions", 1) < 1:  # for DeBERTa's relative position buckets
                    hub_config.max_relative_positions = hub_config.max_position_embeddings
                hub_config.max_position_embeddings = config.max_positions
            return HubTextEncoder(config, hub_config, width)
        arch = architecture_of(hub_config)
    if config.max_positions is not None:
        arch = arch.model_copy(update={"max_positions": config.max_positions + arch.first_position})
    if arch.vocab_size is None:
        if vocab_size is None:
            raise UserError("model.text.arch.vocab_size is null, and no tokenizer provides it", remedy="set it")
        arch = arch.model_copy(update={"vocab_size": vocab_size})
    _check_vocabulary(vocab_size, arch.vocab_size)
    return TextEncoder(config, arch, width)


def _check_vocabulary(vocab_size: int | None, embeddings: int | None) -> None:
    """Checks that every entry of the tokenizer has a word embedding. If either number is unknown (None), nothing is checked.

    Raises:
        UserError: if the tokenizer has more entries than the encoder has embeddings.
    """
    if vocab_size is not None and embeddings is not None and vocab_size > embeddings:
        raise UserError(
            f"the tokenizer has {vocab_size} entries, but the encoder only {embeddings} word embeddings",
            where="model.text",
            remedy="model.text.encoder must name an encoder with its own tokenizer",
        )


def architecture_of(hub_config: Any) -> TextArchitecture:
    """Converts a Hugging Face configuration of the BERT or RoBERTa family to the sizes of our text encoder."""
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
    """True if a Hugging Face configuration belongs to the BERT or RoBERTa family. Encoders of these families use our blocks."""
    return hub_config.model_type in BERT_FAMILY


def hub_config_of(encoder: str, key: str = "model.text.encoder") -> Any:
    """Returns the Hugging Face configuration of a text encoder; see :func:`models.core.hub.part_config`."""
    return part_config(encoder, "text", key)
