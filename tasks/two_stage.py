"""Two-stage retrieval (appendix A.1 of the paper): cosine similarities of all images and texts, then re-ranking by the fusion
encoder.

Each image is encoded once. Its patch states are kept on disk until the candidates are known, so memory holds only the image
embeddings and the text states. The keys and values of an image are projected once for all texts that the image is scored with, in
both directions. The images are split among the ranks. Every rank encodes all texts, which is cheap compared with scoring the
pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from batches.base import to_device
from batches.texts import Text
from metrics.retrieval import RECALL_AT, ranks_of_first_match
from models.config import RerankingScore
from models.core.vision import Concepts
from models.inference.reranking import AligningModel, TextBank, matching_margin, score_pairs
from tasks.inference import device_of, progress
from utils import distributed
from utils.spool import TensorSpool

logger = logging.getLogger(__name__)


class TextEncoding(Protocol):
    """Converts cleaned texts to token ids, like the processors of :mod:`dataset.text.processors`."""

    def encode_plain(self, texts: Sequence[str]) -> Text: ...


@dataclass(frozen=True)
class Candidates:
    """The k best candidates for each of Q queries, sorted by cosine: ``ids`` (Q, k), and ``scores`` (Q, k) float32."""

    ids: np.ndarray
    scores: np.ndarray

    def first(self, count: int) -> Candidates:
        """Returns the best ``count`` candidates of each query."""
        return Candidates(self.ids[:, :count], self.scores[:, :count])


@dataclass(frozen=True)
class Stage:
    """The candidates in both directions, all scored by the same method: texts for each of I images, and images for each of T
    texts."""

    texts: Candidates
    images: Candidates

    def ranks(self, image_of_text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rank of each image's best true text, (I,), and of each text's true image, (T,).

        Args:
            image_of_text: (T,) int64, index of each text's true image.
        """
        right_texts = image_of_text[self.texts.ids] == np.arange(len(self.texts.ids))[:, None]
        right_images = self.images.ids == image_of_text[:, None]
        return (
            ranks_of_first_match(self.texts.scores, right_texts),
            ranks_of_first_match(self.images.scores, right_images),
        )


@dataclass(frozen=True)
class Rankings:
    """Candidates ranked by cosine, and re-ranked by the fusion encoder."""

    cosine: Stage
    reranked: Stage


class TwoStageRetrieval:
    """Ranks the texts of each image and the images of each text.

    Args:
        model: the model, in evaluation mode.
        text: converts texts to token ids.
        candidates: number of candidates that are re-ranked per query.
        batch_size: number of images in a forward pass, and in memory during re-ranking.
        score: which score re-ranks the pairs.
    """

    def __init__(
        self,
        model: AligningModel,
        text: TextEncoding,
        *,
        candidates: int,
        batch_size: int,
        score: RerankingScore = "matching",
    ):
        self.model, self.text, self.candidates, self.batch_size = model, text, candidates, batch_size
        self.score = score
        self.device = device_of(model)

    def rank(self, image_count: int, read: Callable[[range], Iterator[list[Tensor]]], texts: Sequence[str]) -> Rankings:
        """Ranks all images for each text, and all texts for each image. Returns the same result on every rank.

        Args:
            image_count: I, the number of images.
            read: function that gets a range of image indices and yields lists of batch size with their pixels, (3, S, S) or (F,
                3, S, S), in order.
            texts: T cleaned texts.
        """
        with TensorSpool() as patches:
            image_embed = self._encode_images(image_count, read, patches)
            bank, text_embed = self._encode_texts(texts)
            cosine = Stage(self._nearest(image_embed, text_embed), self._nearest(text_embed, image_embed))
            k = self.candidates
            return Rankings(cosine, self._rerank(patches, bank, Stage(cosine.texts.first(k), cosine.images.first(k))))

    def _encode_images(
        self, count: int, read: Callable[[range], Iterator[list[Tensor]]], patches: TensorSpool
    ) -> Tensor:
        """Returns the embeddings of all images (I, E), and appends the tokens of this rank's images to ``patches``."""
        share = distributed.share_of(count)
        local = [np.zeros((0, self.model.config.embed_dim), dtype=np.float32)]
        for pixels in progress(read(share), "encoding images", -(-len(share) // self.batch_size)):
            concepts = self.model.vision(torch.stack(pixels).to(self.device))
            local.append(self.model.contrastive.embed_image(concepts).cpu().numpy())
            patches.append(concepts.states().float())
        return torch.from_numpy(np.concatenate(distributed.gather_objects(np.concatenate(local))))

    def _encode_texts(self, texts: Sequence[str]) -> tuple[TextBank, Tensor]:
        """Returns the states and embeddings (T, E) of all texts. Texts of similar length are batched together."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        size = 8 * self.batch_size
        states, embeds = [], []
        for start in progress(range(0, len(order), size), "encoding texts", -(-len(order) // size)):
            text = self.text.encode_plain([texts[index] for index in order[start : start + size]])
            (encoded,) = self.model.text([to_device(text, self.device)])
            embeds.append(self.model.contrastive.embed_text(encoded).cpu())
            states.append(encoded)
        original_order = torch.from_numpy(np.argsort(order, kind="stable"))
        return TextBank.of(states).reordered(original_order), torch.cat(embeds)[original_order]

    def _nearest(self, queries: Tensor, keys: Tensor) -> Candidates:
        """Returns the candidates of each query by cosine, and at least as many as are needed to compute the recalls."""
        count = min(max(self.candidates, *RECALL_AT), len(keys))
        ids, scores = [], []
        keys = keys.to(self.device)
        # Always in full precision, because similar cosines would be tied if they were rounded to 8 bits.
        with torch.autocast(self.device.type, enabled=False):
            for block in queries.split(1024):
                best = (block.to(self.device) @ keys.t()).topk(count, dim=1)
                ids.append(best.indices.cpu().numpy())
                scores.append(best.values.cpu().numpy())
        return Candidates(np.concatenate(ids), np.concatenate(scores))

    def _rerank(self, patches: TensorSpool, bank: TextBank, stage: Stage) -> Stage:
        """Scores the candidates of ``stage`` with the fusion encoder. A pair that occurs in both directions is scored once."""
        head = self.model.matching_head if self.score == "matching" else matching_margin(self.model.matching_head)
        texts, images = stage.texts.ids, stage.images.ids
        text_count = len(images)
        # A pair is encoded as one integer, image * text_count + text, so that sorting groups the pairs of an image.
        pairs = np.unique(np.concatenate([_pairs(texts, text_count), _pairs(images, text_count, flipped=True)]))
        share = distributed.share_of(len(texts))
        first, last = np.searchsorted(pairs, [share.start * text_count, share.stop * text_count])
        local = pairs[first:last]  # the pairs of this rank's images
        ends = np.searchsorted(local // text_count, np.arange(share.start + 1, share.stop))
        texts_of_image = np.split(local % text_count, ends)
        scores = [np.zeros(0, dtype=np.float32)]
        blocks = range(0, len(share), self.batch_size)
        for start in progress(blocks, "re-ranking", len(blocks)):
            tokens = patches.read(start, start + self.batch_size).to(self.device)
            candidates = [torch.from_numpy(ids) for ids in texts_of_image[start : start + self.batch_size]]
            concepts = Concepts(tokens[:, 1:], tokens[:, 0])
            logits = score_pairs(self.model.fusion, head, concepts, candidates, bank)
            scores += [image_logits.cpu().numpy() for image_logits in logits]
        # The shares of the ranks are ascending, so the concatenated scores are in the order of `pairs`.
        score_of_pair = np.concatenate(distributed.gather_objects(np.concatenate(scores)))
        logger.info(
            "re-ranked %d pairs for %d images and %d texts, instead of %d with separate directions",
            len(pairs),
            len(texts),
            text_count,
            texts.size + images.size,
        )
        # Each direction looks up the scores of its candidates by the encoded pair.
        by_image = score_of_pair[np.searchsorted(pairs, _pairs(texts, text_count))].reshape(texts.shape)
        by_text = score_of_pair[np.searchsorted(pairs, _pairs(images, text_count, flipped=True))].reshape(images.shape)
        if self.score == "sum":
            temperature = self.model.contrastive.temperature.item()
            by_image, by_text = by_image + stage.texts.scores / temperature, by_text + stage.images.scores / temperature
        return Stage(Candidates(texts, by_image), Candidates(images, by_text))


def _pairs(ids: np.ndarray, texts: int, flipped: bool = False) -> np.ndarray:
    """Encodes each (query, candidate) pair as one integer, image * ``texts`` + text.

    Args:
        ids: (Q, k) candidates of each query.
        texts: number of texts.
        flipped: True if the queries are texts.
    """
    queries = np.arange(len(ids))[:, None]
    pairs = ids * texts + queries if flipped else queries * texts + ids
    return pairs.ravel()
