"""Baseline: the pre-training losses, computed as in the authors' code (:mod:`models.reference`), with texts padded to one length.

The baseline encodes each stream and each set of masked texts separately, and copies the patches of an image for each region. Each
fusion pass is a separate call, which projects the keys and values of each example and computes all states of all blocks. Words
are predicted at all masked positions, including padding. Attention is fused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch.nn import functional as F

from batches import LONG
from batches.losses import Losses
from batches.pretraining import LongTexts, PretrainBatch, TranslationBatch
from batches.texts import MaskedText, Text
from models.core.text import TextEncoder
from models.pretraining.model import PretrainModel
from models.reference import reference_losses


class Padding(NamedTuple):
    """Number of tokens after padding, for texts and for texts with translations."""

    texts: int
    translations: int


RELEASED_PADDING = Padding(40, 64)
"""The padding of the released configs."""


def why_not_plain(model: PretrainModel) -> str | None:
    """Returns the reason why this module does not support a model, or None if it does."""
    if not isinstance(model.text, TextEncoder):
        return "model.text.encoder is not of the BERT or RoBERTa family"
    dropped = [name for name in ("text", "fusion") if getattr(model.config, name).drop_path]
    return f"model.{dropped[0]}.drop_path is set" if dropped else None


def plain_losses(model: PretrainModel, batch: PretrainBatch, padded: Padding = RELEASED_PADDING) -> Losses:
    """Computes the same losses as ``model(batch)``, and samples hard negatives in the same order."""
    assert not batch.unmatched, "a stream without matching loss is not supported"
    assert isinstance(model.text, TextEncoder)
    pad_id, parts = model.text.arch.pad_id, {}
    for name, part in batch.by_stream().items():
        length = padded.translations if isinstance(part, TranslationBatch) else padded.texts
        parts[name] = replace(part, text=_masked_to(length, part.text, pad_id))
        if isinstance(part, TranslationBatch):
            parts[name] = replace(parts[name], other=_text_to(length, part.other, pad_id))
    for name in [name for name in parts if name.startswith(LONG)]:
        long = parts.pop(name)
        of = name.removeprefix(LONG)
        parts[of] = replace(parts[of], long=LongTexts(long.text, long.valid))
    _, losses = reference_losses(model, replace(batch, **parts))
    return losses


def _text_to(length: int, text: Text, pad_id: int) -> Text:
    """Pads texts to ``length`` tokens. Longer batches are unchanged."""
    more = (0, max(0, length - text.ids.shape[1]))
    return replace(text, ids=F.pad(text.ids, more, value=pad_id), mask=F.pad(text.mask, more))


def _masked_to(length: int, text: MaskedText, pad_id: int) -> MaskedText:
    """Pads texts and their masked copies to ``length`` tokens. Longer batches are unchanged."""
    plain, masked = (_text_to(length, version, pad_id) for version in (text.plain(), text.masked_copy()))
    return replace(text, ids=plain.ids, masked_ids=masked.ids, mask=plain.mask)
