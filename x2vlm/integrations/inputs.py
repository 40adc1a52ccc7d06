"""Loads models, and handles texts without words. All integrations use this module."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.config import AligningConfig
from utils.errors import UserError
from x2vlm.base import LoadedModel, as_texts, check_unicode
from x2vlm.loading import load

logger = logging.getLogger(__name__)


def as_model(model: LoadedModel | str | Path, **options: object) -> LoadedModel:
    """Returns a model that compares images with texts. ``model`` is a model, or ``model`` and ``options`` are the arguments of
    :func:`x2vlm.load`.

    Raises:
        UserError: the model was trained with a different task, or is a video model.
    """
    loaded = model if isinstance(model, LoadedModel) else load(model, **options)  # type: ignore[arg-type]
    for call in ("match", "embed_images", "embed_texts"):
        loaded.require(call)
    if loaded.read.videos is not None:
        raise UserError(f"{loaded.origin} is a video model", remedy="pass an image model")
    return loaded


def embedding_width(model: LoadedModel) -> int:
    """Returns the size E of the embeddings."""
    assert isinstance(model.settings.model, AligningConfig)
    return model.settings.model.embed_dim


def column(values: Any, name: str) -> list[Any]:
    """Returns the values of a column of a batch as a list.

    Raises:
        UserError: the column is not a list, or a value is None.
    """
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise UserError(f"{name} is {values!r:.60}, not a list", remedy="pass a list with a value for each row")
    listed = list(values)
    if missing := [index for index, value in enumerate(listed) if value is None]:
        raise UserError(f"{name} {missing[0]} of {len(listed)} is None", remedy="pass a value, or remove the row")
    return listed


def have_words(model: LoadedModel, texts: Sequence[str]) -> list[bool]:
    """Returns, for each text, whether it still has a word after cleaning as in training. Texts without words are logged.

    Raises:
        UserError: a text is not valid Unicode.
    """
    found = [_has_words(model, text) for text in texts]
    if not all(found):
        logger.warning(
            "%d of %d texts have no words, such as %.60r", found.count(False), len(texts), texts[found.index(False)]
        )
    return found


def embed_texts(model: LoadedModel, texts: Sequence[str]) -> np.ndarray:
    """Returns embeddings of texts, (texts, E) float32 of length 1, or zeros for a text without words."""
    texts = as_texts(texts)
    kept = have_words(model, texts)
    embeddings: np.ndarray = np.zeros((len(texts), embedding_width(model)), np.float32)
    if any(kept):
        embeddings[kept] = model.embed_texts([text for text, has_words in zip(texts, kept, strict=True) if has_words])
    return embeddings


def _has_words(model: LoadedModel, text: str) -> bool:
    check_unicode(text)
    try:
        model.cleaned(text)
    except UserError:
        return False
    return True
