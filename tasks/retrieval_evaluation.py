"""Retrieval in two stages (appendix A.1): cosine similarities of all images and texts, then the fusion encoder re-ranks.

Each image is encoded once. Its patches wait on disk until the candidates are known, so that of the images only embeddings
stay in memory (of the texts, all states do), and its keys and values are projected once for all texts that it is scored
with, in both directions. Every rank takes its share of the images; texts are encoded by each, which costs little beside the
pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dataset.captioned import CaptionedImages
from dataset.finetune import EvaluationView, cleaned, in_batches
from dataset.records import ImageSource
from dataset.text import PlainTextProcessor
from dataset.video import VideoSource
from metrics.retrieval import RECALL_AT, chance_recalls, ranks_of_first_match, retrieval_recalls
from models.align import AligningModel
from models.reranking import TextBank, score_pairs
from models.vision import Concepts
from tasks.common import progress
from utils import distributed
from utils.batch import to_device
from utils.spool import TensorSpool

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidates:
    """The best ``ids`` (Q, k) of each query by cosine, best first, and their ``scores`` (Q, k) float32."""

    ids: np.ndarray
    scores: np.ndarray

    def first(self, count: int) -> Candidates:
        """The best ``count`` of each query."""
        return Candidates(self.ids[:, :count], self.scores[:, :count])


class RetrievalEvaluation:
    """Measures a model on captioned images.

    Args:
        model: in evaluation mode.
        text: processor of the captions.
        view: of the pictures.
        candidates: how many of each query are re-ranked.
        batch_size: images in one forward pass, and in memory while they are re-ranked.
        workers: processes that read pictures.
    """

    def __init__(
        self,
        model: AligningModel,
        text: PlainTextProcessor,
        view: EvaluationView,
        *,
        candidates: int,
        batch_size: int,
        workers: int,
    ):
        self.model, self.text, self.view = model, text, view
        self.candidates, self.batch_size, self.workers = candidates, batch_size, workers
        self.device = next(model.parameters()).device

    def metrics(self, items: CaptionedImages) -> dict[str, float]:
        """Recalls after re-ranking and by cosine alone, each beside its chance level; the same on every rank."""
        truth = items.image_of_caption
        with TensorSpool() as patches:
            image_embed = self._encode_images(items, patches)
            bank, text_embed = self._encode_texts(items)
            texts = self._nearest(image_embed, text_embed)
            images = self._nearest(text_embed, image_embed)
            k = self.candidates
            reranked = self._rerank(patches, bank, texts.first(k), images.first(k))
        results: dict[str, float] = {"images": len(items.images), "captions": len(items.captions)}
        for suffix, (by_image, by_text) in (("", reranked), (" (cosine)", (texts, images))):
            of_image = truth[by_image.ids] == np.arange(len(items.images))[:, None]
            of_text = by_text.ids == truth[:, None]
            recalls = retrieval_recalls(
                ranks_of_first_match(by_image.scores, of_image), ranks_of_first_match(by_text.scores, of_text)
            )
            chance = chance_recalls(items.captions_per_image, len(items.captions))
            for name, value in recalls.items():
                results[name + suffix] = value
                results[f"{name}{suffix}/chance"] = chance[name]
        return results

    def _encode_images(self, items: CaptionedImages, patches: TensorSpool) -> Tensor:
        """Embeddings of all images (I, E); tokens of this rank's own go to ``patches``."""
        share = distributed.share_of(len(items.images))
        batches = in_batches(partial(_view_of, self.view, items.images), share, self.batch_size, self.workers)
        found = [np.zeros((0, self.model.config.embed_dim), dtype=np.float32)]
        for pixels in progress(batches, "encoding images", -(-len(share) // self.batch_size)):
            concepts = self.model.vision(torch.stack(pixels).to(self.device))
            found.append(self.model.contrastive.embed_image(concepts).cpu().numpy())
            patches.append(concepts.tokens().float())
        return torch.from_numpy(np.concatenate(distributed.gather_objects(np.concatenate(found))))

    def _encode_texts(self, items: CaptionedImages) -> tuple[TextBank, Tensor]:
        """States and embeddings (T, E) of all captions; those of similar length go through together."""
        captions = [
            cleaned(caption, self.text.max_words, items.images[image].place)
            for caption, image in zip(items.captions, items.image_of_caption.tolist(), strict=True)
        ]
        order = np.argsort([len(caption) for caption in captions], kind="stable")
        size = 8 * self.batch_size
        states, embeds = [], []
        for start in progress(range(0, len(order), size), "encoding texts", -(-len(order) // size)):
            text = self.text.encode_plain([captions[place] for place in order[start : start + size]])
            (encoded,) = self.model.text([to_device(text, self.device)])
            embeds.append(self.model.contrastive.embed_text(encoded).cpu())
            states.append(encoded)
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        return TextBank.of(states).reordered(back), torch.cat(embeds)[back]

    def _nearest(self, queries: Tensor, keys: Tensor) -> Candidates:
        """The candidates of each query by cosine; at least as many as the recalls look at."""
        count = min(max(self.candidates, *RECALL_AT), len(keys))
        ids, scores = [], []
        keys = keys.to(self.device)
        # In full precision whatever the evaluation's: rounded to 8 bits, near cosines tie.
        with torch.autocast(self.device.type, enabled=False):
            for part in queries.split(1024):
                best = (part.to(self.device) @ keys.t()).topk(count, dim=1)
                ids.append(best.indices.cpu().numpy())
                scores.append(best.values.cpu().numpy())
        return Candidates(np.concatenate(ids), np.concatenate(scores))

    def _rerank(
        self, patches: TensorSpool, bank: TextBank, texts: Candidates, images: Candidates
    ) -> tuple[Candidates, Candidates]:
        """Both candidate sets with matching logits for scores; a pair that is wanted both ways is scored once."""
        total = len(images.ids)
        wanted = np.unique(np.concatenate([_pairs(texts.ids, total), _pairs(images.ids, total, flipped=True)]))
        share = distributed.share_of(len(texts.ids))
        own = wanted[np.searchsorted(wanted, share.start * total) : np.searchsorted(wanted, share.stop * total)]
        lists = np.split(own % total, np.searchsorted(own // total, np.arange(share.start + 1, share.stop)))
        found = [np.zeros(0, dtype=np.float32)]
        blocks = range(0, len(share), self.batch_size)
        for start in progress(blocks, "re-ranking", len(blocks)):
            tokens = patches.read(start, start + self.batch_size).to(self.device)
            part = [torch.from_numpy(texts) for texts in lists[start : start + self.batch_size]]
            concepts = Concepts(tokens[:, 1:], tokens[:, 0])
            scores = score_pairs(self.model.fusion, self.model.matching_head, concepts, part, bank)
            found += [each.cpu().numpy() for each in scores]
        # In order of image, then text, as `wanted` is.
        logits = np.concatenate(distributed.gather_objects(np.concatenate(found)))
        logger.info(
            "re-ranked %d pairs for %d images and %d texts; apart they would have been %d",
            len(wanted),
            len(texts.ids),
            total,
            texts.ids.size + images.ids.size,
        )
        by_image = logits[np.searchsorted(wanted, _pairs(texts.ids, total))].reshape(texts.ids.shape)
        by_text = logits[np.searchsorted(wanted, _pairs(images.ids, total, flipped=True))].reshape(images.ids.shape)
        return Candidates(texts.ids, by_image), Candidates(images.ids, by_text)


def _view_of(view: EvaluationView, images: Sequence[ImageSource | VideoSource], index: int) -> Tensor:
    return view(images[index])


def _pairs(ids: np.ndarray, texts: int, flipped: bool = False) -> np.ndarray:
    """Each (query, candidate) as one number, image * ``texts`` + text; ``flipped``: the queries are texts."""
    queries = np.arange(len(ids))[:, None]
    pairs = ids * texts + queries if flipped else queries * texts + ids
    return pairs.ravel()
