"""Reads files of document frequencies for CIDEr."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from metrics.captions.cider import DocumentFrequencies
from utils.errors import UserError
from utils.files import expanded, path_remedy, read_json
from utils.pickles import read_plain_pickle

TABLE, IMAGES = "document_frequency", "ref_len"
"""Keys in the pickles that are in common use, such as ``coco-train-df.p``. ``ref_len`` is the number of images, not its
logarithm."""


def read_document_frequencies(path: str, key: str) -> DocumentFrequencies:
    """Reads document frequencies from a ``.json`` file or a pickle. Code in the pickle is never run.

    The file contains ``{"ref_len": number of images, "document_frequency": {"a dog": number of images with this n-gram, …}}``.

    Args:
        path: the file.
        key: the config key that contains the path, for error messages.

    Raises:
        UserError: if the file does not exist, is damaged, or is not a table of document frequencies.
    """
    content = _read_json(path, key) if path.endswith(".json") else read_plain_pickle(path, key)
    table = content.get(TABLE) if isinstance(content, Mapping) else None
    images = content.get(IMAGES) if isinstance(content, Mapping) else None
    if not isinstance(table, Mapping) or not isinstance(images, Real) or images < 1:
        raise UserError(
            f"{path} is not a table of document frequencies: it needs {TABLE!r} (n-gram: images) and {IMAGES!r}",
            where=key,
        )
    counts = {tuple(ngram.split(" ")) if isinstance(ngram, str) else ngram: count for ngram, count in table.items()}
    for ngram, count in counts.items():
        if not isinstance(ngram, tuple) or not isinstance(count, Real):
            raise UserError(
                f"{path}: {ngram!r:.60}: {count!r:.60} is not an n-gram (words in a tuple) and its count",
                where=key,
                remedy="use the published file of document frequencies",
            )
    return DocumentFrequencies(counts, float(images))


def _read_json(path: str, key: str) -> Any:
    try:
        return read_json(expanded(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", where=key, remedy=path_remedy(path)) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}", where=key) from None
