"""Two-stage retrieval (appendix A.1 of the paper): cosine similarities of all images and texts, then re-ranking by the fusion
encoder.

Each image is encoded once. Its patch states are kept on disk until the candidates are known, so memory holds only the image
embeddings and the text states. The keys and values of an image are projected once for all texts that the image is scored with, in
both directions. The images are split among the ranks. Every rank encodes all texts, which is cheap compared with scoring the
pairs.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from batches.base import to_device
from batches.images import Grid, stack_views
from batches.texts import Text
from metrics.retrieval import NO_MATCH, RECALL_AT, ranks_of_first_match
from models.config import RankingScore
from models.core.vision import Concepts
from models.inference.reranking import ORDER_NOTES, AligningModel, TextBank, score_pairs
from tasks.evaluation import Metric
from tasks.inference import device_of, progress
from utils import distributed
from utils.errors import UserError

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
    """The candidates by cosine, and how the matching head judges the best of them.

    Attributes:
        cosine: the candidates, sorted by cosine.
        logits: the logits of "not matched" and "matched" for the first k texts of each image, (I, k, 2), and for the first k
            images of each text, (T, k, 2); None if candidates were not re-ranked.
        temperature: temperature of the contrastive loss.
        matching_weight: weight of the log-odds of the matching head in the sum with the cosine.
    """

    cosine: Stage
    logits: tuple[np.ndarray, np.ndarray] | None
    temperature: float
    matching_weight: float = 1.0

    def by(self, score: RankingScore) -> Stage:
        """Returns the candidates with their scores. With scores other than the cosine, there are k candidates per query."""
        if score == "cosine":
            return self.cosine
        if score == "matching":
            return self._judged(lambda logits, _: logits[..., 1])
        weight, share = self.matching_weight, 1 / self.temperature
        return self._judged(lambda logits, cosine: weight * (logits[..., 1] - logits[..., 0]) + share * cosine)

    def log_odds(self) -> Stage:
        """Returns the re-ranked candidates with the log-odds of the matching head."""
        return self._judged(lambda logits, _: logits[..., 1] - logits[..., 0])

    def best_score(self, image_of_text: np.ndarray) -> RankingScore:
        """Returns the score with the best R@1, averaged over both directions; of equally good scores, the simplest."""

        def recall(score: RankingScore) -> float:
            return sum(float((ranks < 1).mean()) for ranks in self.by(score).ranks(image_of_text))

        return max(get_args(RankingScore), key=recall)

    def _judged(self, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Stage:
        assert self.logits is not None, "the candidates were not re-ranked"
        stages = []
        for candidates, logits in zip((self.cosine.texts, self.cosine.images), self.logits, strict=True):
            first = candidates.first(logits.shape[1])
            stages.append(Candidates(first.ids, combine(logits, first.scores)))
        return Stage(*stages)


class TwoStageRetrieval:
    """Ranks the texts of each image and the images of each text.

    Args:
        model: the model, in evaluation mode.
        text: converts texts to token ids.
        candidates: number of candidates that are re-ranked per query.
        batch_size: number of images in a forward pass, and in memory during re-ranking.
        reranks: False if no candidates are re-ranked.
        matching_weight: see :class:`Rankings`.
    """

    def __init__(
        self,
        model: AligningModel,
        text: TextEncoding,
        *,
        candidates: int,
        batch_size: int,
        reranks: bool = True,
        matching_weight: float = 1.0,
    ):
        self.model, self.text, self.candidates, self.batch_size = model, text, candidates, batch_size
        self.reranks, self.matching_weight = reranks, matching_weight
        self.device = device_of(model)

    def rank(self, image_count: int, read: Callable[[range], Iterator[list[Tensor]]], texts: Sequence[str]) -> Rankings:
        """Ranks all images for each text, and all texts for each image. Returns the same result on every rank.

        Args:
            image_count: I, the number of images.
            read: function that gets a range of image indices and yields lists of batch size with their pixels, (3, S, S) or (F,
                3, S, S), in order.
            texts: T cleaned texts.
        """
        with tempfile.TemporaryFile() as states:
            image_embed, grids = self._encode_images(image_count, read, states)
            bank, text_embed = self._encode_texts(texts)
            cosine = Stage(self._nearest(image_embed, text_embed), self._nearest(text_embed, image_embed))
            k = self.candidates
            first = Stage(cosine.texts.first(k), cosine.images.first(k))
            logits = self._logits(states, grids, bank, first) if self.reranks else None
            return Rankings(cosine, logits, self.model.contrastive.temperature.item(), self.matching_weight)

    def _encode_images(
        self, count: int, read: Callable[[range], Iterator[list[Tensor]]], states: IO[bytes]
    ) -> tuple[Tensor, list[Grid]]:
        """Returns the embeddings of all images (I, E) and, if images keep their aspect ratio, the grids of this rank's images.
        Appends the states (1 + P, D) of each of this rank's images to the file ``states``, as float32."""
        share = distributed.share_of(count)
        local, grids = [np.zeros((0, self.model.config.embed_dim), dtype=np.float32)], list[Grid]()
        for pixels in progress(read(share), "encoding images", -(-len(share) // self.batch_size)):
            concepts = self.model.vision(stack_views(pixels, self.model.config.vision.image_size).to(self.device))
            local.append(self.model.contrastive.embed_image(concepts).cpu().numpy())
            if self.reranks:
                _append(states, concepts.states())
                grids += concepts.grids or ()
        return torch.from_numpy(np.concatenate(distributed.gather_objects(np.concatenate(local)))), grids

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

    def _logits(
        self, states: IO[bytes], grids: list[Grid], bank: TextBank, stage: Stage
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns :attr:`Rankings.logits` of the candidates of ``stage``. A pair in both directions is scored once. ``states`` is
        the file that :meth:`_encode_images` wrote, and ``grids`` is what it returned."""
        texts, images = stage.texts.ids, stage.images.ids
        text_count = len(images)
        # A pair is encoded as one integer, image * text_count + text, so that sorting groups the pairs of an image.
        pairs = np.unique(np.concatenate([_pairs(texts, text_count), _pairs(images, text_count, flipped=True)]))
        share = distributed.share_of(len(texts))
        first, last = np.searchsorted(pairs, [share.start * text_count, share.stop * text_count])
        local = pairs[first:last]  # the pairs of this rank's images
        ends = np.searchsorted(local // text_count, np.arange(share.start + 1, share.stop))
        texts_of_image = np.split(local % text_count, ends)
        scores = [np.zeros((0, 2), dtype=np.float32)]
        blocks = range(0, len(share), self.batch_size)
        image_bytes = states.tell() // max(1, len(share))
        states.seek(0)
        for start in progress(blocks, "re-ranking", len(blocks)):
            size = min(self.batch_size, len(share) - start)
            values = torch.frombuffer(bytearray(states.read(size * image_bytes)), dtype=torch.float32)
            tokens = values.view(size, -1, self.model.vision.width).to(self.device)
            candidates = [torch.from_numpy(ids) for ids in texts_of_image[start : start + self.batch_size]]
            concepts = Concepts.of_states(tokens, tuple(grids[start : start + size]) or None)
            logits = score_pairs(self.model.fusion, self.model.matching_head, concepts, candidates, bank)
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
        by_image = score_of_pair[np.searchsorted(pairs, _pairs(texts, text_count))].reshape(*texts.shape, 2)
        by_text = score_of_pair[np.searchsorted(pairs, _pairs(images, text_count, flipped=True))].reshape(
            *images.shape, 2
        )
        return by_image, by_text


def _append(file: IO[bytes], states: Tensor) -> None:
    """Appends states to a temporary file, as float32.

    Raises:
        UserError: if the disk is full.
    """
    size = file.tell()
    try:
        file.write(states.float().cpu().numpy().tobytes())
        file.flush()
    except OSError as error:
        raise UserError(
            f"cannot hold more than {size / 1e9:.1f} GB of image states ({error.strerror})",
            where=tempfile.gettempdir(),
            remedy="set TMPDIR to a larger disk",
        ) from None


def ranking_rule(score: RankingScore, candidates: int, *, chosen: bool) -> str:
    """Describes for a table how candidates are ranked. ``chosen``: whether ``score: auto`` chose the score."""
    rule = "ranked by cosine" if score == "cosine" else f"the {candidates} best by cosine re-ranked{ORDER_NOTES[score]}"
    return f"{rule}, as chosen on validation records" if chosen else rule


def rank_in_words(rank: np.integer, candidates: int) -> int | str:
    """Returns a rank from 0 as a rank from 1, or says that the true match is not among the candidates."""
    return f"not among the {candidates} candidates" if rank == NO_MATCH else int(rank) + 1


def reranking_notes(
    metrics: Sequence[Metric], reranked: str, cosine: str, *, chosen: RankingScore | None = None
) -> tuple[str, ...]:
    """Returns a sentence for the user if the recall after re-ranking is lower than by cosine, and no sentence otherwise.

    Args:
        metrics: the metrics of an evaluation. The names of recalls contain "R@1".
        reranked, cosine: ends of the names of the recalls after re-ranking and by cosine.
        chosen: the score that ``evaluation.score: auto`` chose; None if the config names a score.
    """
    values = {metric.name: metric.value for metric in metrics if " R@1" in metric.name}
    pairs = [
        (value, values.get(name.removesuffix(cosine) + reranked))
        for name, value in values.items()
        if name.endswith(cosine)
    ]
    compared = [(before, after) for before, after in pairs if after is not None]
    if not compared:
        return ()
    before, after = (sum(each) / len(each) for each in zip(*compared, strict=True))
    if after >= before:
        return ()
    remedy = "Set evaluation.score to auto or cosine, or train longer."
    if chosen is not None:
        remedy = f"On validation records, {chosen} was the best score."
    return (
        f"Re-ranking makes the ranking worse: R@1 is {after:.1%}, and {before:.1%} by cosine, averaged over both directions. "
        f"{remedy}",
    )


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
