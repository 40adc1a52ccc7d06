"""Caption metrics of the standard COCO evaluation, without Java."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metrics.captions.bleu import corpus_bleu
from metrics.captions.cider import DocumentFrequencies, cider_d
from metrics.captions.ptb import tokenize
from metrics.captions.rouge import rouge_l

__all__ = ["caption_metrics", "caption_scores", "tokenize", "tokenize_references"]


def caption_metrics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], frequencies: DocumentFrequencies | None = None
) -> dict[str, float]:
    """``BLEU-1`` to ``BLEU-4`` and ``ROUGE-L`` in 0..1, and ``CIDEr`` in 0..10, as the standard evaluation gives them.

    Arguments and errors as of :func:`caption_scores`.
    """
    return caption_scores(candidates, references, frequencies)[0]


def caption_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]], frequencies: DocumentFrequencies | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The metrics of :func:`caption_metrics`, and of those that are means over images, the scores of the images, (I,).

    BLEU is of the corpus and no such mean. A score of CIDEr depends on the other images by the document frequencies alone.

    The order of images matters to no more than the few tokens that depend on the next caption; see
    :func:`metrics.captions.ptb.tokenize`. Papers report all times 100.

    Args:
        candidates: one caption per image, as generated.
        references: each image's captions, as annotated; at least one.
        frequencies: weights of CIDEr from another corpus; of the references themselves where None, as is standard.

    Raises:
        ValueError: no images, not as many candidates as images, or an image without references.
    """
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"{len(candidates)} candidates for {len(references)} images; each image needs one")
    for index, own in enumerate(references):
        if not own:
            raise ValueError(f"references[{index}] is empty; each image needs at least one reference")
    tokens, reference_tokens = tokenize(candidates), tokenize_references(references)
    results = {f"BLEU-{n}": score for n, score in enumerate(corpus_bleu(tokens, reference_tokens), start=1)}
    of_images = {
        "ROUGE-L": rouge_l(tokens, reference_tokens),
        "CIDEr": cider_d(tokens, reference_tokens, frequencies),
    }
    return results | {name: float(scores.mean()) for name, scores in of_images.items()}, of_images


def tokenize_references(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """:func:`tokenize` of all images' captions as one text, grouped by image again."""
    tokens = iter(tokenize([caption for own in references for caption in own]))
    return [[next(tokens) for _ in own] for own in references]
