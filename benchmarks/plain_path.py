"""The losses of pre-training by the algebra of the released code, as a baseline: :mod:`models.reference`, with texts padded to
one length.

Each stream is encoded by itself, and so are masked texts; a region takes a copy of its image's patches; each pass through the
fusion is a call of its own, projects the keys and values of its rows anew, and computes every state of every block; words are
predicted at all the padded places of masked tokens. Attention is fused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch.nn import functional as F

from models.pretrain import PretrainModel
from models.reference import reference_losses
from models.text import TextEncoder
from utils.batch import Losses, MaskedText, PretrainBatch, Term, Text, TextPairBatch


class Padding(NamedTuple):
    """Tokens to which texts are padded, and those of texts and their translations."""

    texts: int
    translations: int


PADDED = Padding(40, 64)
"""As released."""


def why_not_plain(model: PretrainModel) -> str | None:
    """The reason why a model's losses are not written out here; None: they are."""
    if not isinstance(model.text, TextEncoder):
        return "model.text.encoder is none of BERT's or RoBERTa's family"
    dropped = [name for name in ("text", "fusion") if getattr(model.config, name).drop_path]
    return f"model.{dropped[0]}.drop_path is set" if dropped else None


def plain_losses(model: PretrainModel, batch: PretrainBatch, padded: Padding = PADDED) -> Losses:
    """The losses that ``model(batch)`` gives. Hard negatives are sampled in the same order."""
    assert not batch.unmatched, "every stream has its matching loss"
    assert isinstance(model.text, TextEncoder)
    pad_id, parts = model.text.arch.pad_id, {}
    for name, part in batch.streams().items():
        length = padded.translations if isinstance(part, TextPairBatch) else padded.texts
        parts[name] = replace(part, text=_masked_to(length, part.text, pad_id))
        if isinstance(part, TextPairBatch):
            parts[name] = replace(parts[name], other=_text_to(length, part.other, pad_id))
    totals = reference_losses(model, replace(batch, **parts))
    weights = {
        f"{name}/{loss}": weight for name, stream in model.streams.items() for loss, weight in stream.weights.items()
    }
    return {name: Term(total, weights[name]) for name, total in totals.items() if name in weights}


def _text_to(length: int, text: Text, pad_id: int) -> Text:
    """Texts padded to ``length`` tokens, or to the longest if that is more."""
    more = (0, max(0, length - text.ids.shape[1]))
    return replace(text, ids=F.pad(text.ids, more, value=pad_id), mask=F.pad(text.mask, more))


def _masked_to(length: int, text: MaskedText, pad_id: int) -> MaskedText:
    """Texts with masked copies, both padded as in :func:`_text_to`."""
    plain, masked = (_text_to(length, each, pad_id) for each in (text.plain(), text.masked_copy()))
    return replace(text, ids=plain.ids, masked_ids=masked.ids, mask=plain.mask)
