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
    """Computes ``BLEU-1`` to ``BLEU-4`` and ``ROUGE-L`` in 0..1, and ``CIDEr`` in 0..10, like the standard COCO evaluation.

    See :func:`caption_scores` for arguments and errors.
    """
    return caption_scores(candidates, references, frequencies)[0]


def caption_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]], frequencies: DocumentFrequencies | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Computes the metrics of :func:`caption_metrics`. For ROUGE-L and CIDEr, which are means over images, also returns the score
    of each image, (I,).

    BLEU is computed over the corpus and is not a mean over images. The CIDEr score of an image depends on other images only
    through the document frequencies (see :class:`~metrics.captions.cider.DocumentFrequencies`).

    The order of images affects only a few tokens, which depend on the next caption; see :func:`metrics.captions.ptb.tokenize`.
    Papers report all metrics times 100.

    Args:
        candidates: the generated caption of each image.
        references: the annotated captions of each image; at least one.
        frequencies: document frequencies of another corpus for CIDEr; if None, they are counted in the references, as in the
            standard evaluation.

    Raises:
        ValueError: if there are no images, the number of candidates differs from the number of images, or an image has no
            references.
    """
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"{len(candidates)} candidates for {len(references)} images; each image needs one candidate")
    for index, image_references in enumerate(references):
        if not image_references:
            raise ValueError(f"references[{index}] is empty; each image needs at least one reference")
    tokens, reference_tokens = tokenize(candidates), tokenize_references(references)
    results = {f"BLEU-{n}": score for n, score in enumerate(corpus_bleu(tokens, reference_tokens), start=1)}
    image_scores = {
        "ROUGE-L": rouge_l(tokens, reference_tokens),
        "CIDEr": cider_d(tokens, reference_tokens, frequencies),
    }
    return results | {name: float(scores.mean()) for name, scores in image_scores.items()}, image_scores


def tokenize_references(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """Tokenizes the captions of all images as one text (see :func:`tokenize`), and groups the tokenized captions by image."""
    tokens = iter(tokenize([caption for image_references in references for caption in image_references]))
    return [[next(tokens) for _ in image_references] for image_references in references]
