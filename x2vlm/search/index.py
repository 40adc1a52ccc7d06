"""An index of images, and the two stages of a search: cosine over all of them, then the matching head on the best."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from utils.block_cache import BlockCache
from utils.errors import UserError
from utils.files import cache_folder
from x2vlm.boxes import Box, in_pixels
from x2vlm.matching import numbers, probabilities, sums
from x2vlm.search import CACHE_GB
from x2vlm.search.encoding import Encoder
from x2vlm.search.files import IndexedImage, check_digests, image_of, open_embeddings, read_about, read_lines

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel

logger = logging.getLogger(__name__)

BLOCK = 1 << 17
"""Images that are compared at a time, so that memory holds no score of each."""


@dataclass(frozen=True)
class Hit:
    """An image that a search found.

    Attributes:
        path: of the image.
        copies: files with the same content.
        cosine: of image and text.
        score: the probability that the text is about the whole image; None: it was not re-ranked.
        sum: what ranks hits where the config of the model's run has ``evaluation.score: sum`` (:func:`x2vlm.matching.sums`);
            None: it has not, or the hit was not re-ranked.
        box: where the text is true, with the probability that it is about what the box shows; None: it was not asked for.
        content: hash of the file's content.
    """

    path: Path
    copies: tuple[Path, ...]
    cosine: float
    score: float | None = None
    sum: float | None = None
    box: Box | None = None
    content: str = ""

    def numbers(self) -> dict[str, str]:
        """Those of sum, probability and cosine that the hit has, to be printed, by their names."""
        return numbers(self.score, self.cosine, self.sum)


def nearest_rows(embeddings: np.ndarray, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows (k,) of embeddings (N, E) that have the greatest products with ``query`` (E,), and these (k,), the greatest first;
    k = ``count``, if there are as many."""
    vector, best, rows = torch.from_numpy(query), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for start in range(0, len(embeddings), BLOCK):
        scores = torch.mv(torch.from_numpy(embeddings[start : start + BLOCK]), vector)
        found = scores.topk(min(count, len(scores)))
        best, rows = torch.cat([best, found.values]), torch.cat([rows, found.indices + start])
    order = best.argsort(descending=True, stable=True)[:count]
    return rows[order].numpy(), best[order].numpy()


class ImageIndex:
    """An index that :meth:`x2vlm.Model.index` or ``run.py index`` made.

    Args:
        folder: of the index.
        model: that made it.
        cache_gb: of the disk, at most, for what the vision encoder says of images that were re-ranked.
        cache: folder for it; None: in the user's cache folder.
        encoder: of the model, where there is one already.

    Raises:
        UserError: there is no index, it is not finished, damaged, or of another model.
    """

    def __init__(
        self,
        folder: str | Path,
        model: LoadedModel,
        *,
        cache_gb: float = CACHE_GB,
        cache: str | Path | None = None,
        encoder: Encoder | None = None,
    ):
        self.folder, self.model, self.encoder = Path(folder), model, encoder or Encoder(model)
        self.about = read_about(self.folder)
        if not self.about.made:
            raise UserError(f"{folder}: the index is not finished; python run.py index goes on with it")
        if self.encoder.weights != self.about.weights:
            raise UserError(
                f"{folder} was made by {self.about.model}, whose weights are not those of {model.origin}; index again"
            )
        check_digests(self.folder, self.about)
        self._list = self.about.images_in(self.folder)
        self._lines = read_lines(self._list)
        self.embeddings = open_embeddings(self.folder, self.about, self._count_rows())
        caches = Path(cache) if cache is not None else cache_folder()
        self._cache = (
            None
            if caches is None
            else BlockCache(caches / "images", int(cache_gb * 1e9), "cache= names another folder")
        )

    def __len__(self) -> int:
        """The number of different images."""
        return len(self.embeddings)

    def _count_rows(self) -> int:
        """The copies stand behind the images, each of which has the row of its line."""
        low, high = 0, len(self._lines)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._image(middle).row == middle else (low, middle)
        return low

    def _image(self, line: int) -> IndexedImage:
        return image_of(self._lines[line], self._list)

    def search(self, text: str, *, top: int = 10, rerank: int = 64, locate: bool | str = False) -> list[Hit]:
        """The images that a text is most likely about, the best first: by the matching head's probability, or by the sum if the
        hits have one (see :class:`Hit`); those not re-ranked stand behind, by their cosines.

        Args:
            text: a sentence.
            top: hits.
            rerank: images, the best by cosine, that the matching head judges; 0: none.
            locate: find the box in each hit where the text is true, or where this phrase is.

        Raises:
            UserError: nothing is left of the text; the model locates nothing.
        """
        rows, cosines = self.nearest(text, max(top, rerank))
        found = self._there(dict(zip(rows.tolist(), cosines.tolist(), strict=True)))
        judged = [found[row] for row in rows[:rerank].tolist() if row in found]
        ranking = margins = np.array(list(self._margins(text, judged)), np.float64)
        scores = probabilities(margins).tolist()
        hits = [replace(hit, score=score) for hit, score in zip(judged, scores, strict=True)]
        if self.model.settings.evaluation.score == "sum":
            ranking = sums(self.model, margins, np.array([hit.cosine for hit in hits]))
            hits = [replace(hit, sum=each) for hit, each in zip(hits, ranking.tolist(), strict=True)]
        ranked = [hits[index] for index in np.argsort(-ranking, kind="stable")]
        best = [*ranked, *list(found.values())[len(ranked) :]][:top]
        if not locate:
            return best
        boxes = self._boxes(locate if isinstance(locate, str) else text, best)
        return [replace(hit, box=box) for hit, box in zip(best, boxes, strict=True)]

    def nearest(self, text: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (k,) of the images nearest to a text by cosine, and their cosines (k,); k = ``count``, if there are as many."""
        return nearest_rows(self.embeddings, self.model.embed_texts(text)[0], count)

    def _there(self, cosines: dict[int, float]) -> dict[int, Hit]:
        """The hits in rows of which a file still is as it was when it was indexed; the others are told."""
        hits = {}
        for row, cosine in cosines.items():
            paths = [path for path in map(self._unchanged, [self._image(row), *self._copies.get(row, ())]) if path]
            if paths:
                hits[row] = Hit(paths[0], tuple(paths[1:]), cosine, content=self._image(row).content)
        if gone := len(cosines) - len(hits):
            logger.warning(
                "%s: %d of the nearest %d images have gone or changed and are left out; python run.py index updates the index",
                self.folder,
                gone,
                len(cosines),
            )
        return hits

    def _unchanged(self, image: IndexedImage) -> Path | None:
        """The path of a file that has the size and the time of its last change that it had when it was indexed."""
        path = Path(self.about.folder) / image.path
        try:
            status = path.stat()
        except OSError:
            return None
        return path if (status.st_size, status.st_mtime_ns) == (image.bytes, image.changed_ns) else None

    def _margins(self, text: str, hits: Sequence[Hit]) -> Iterator[float]:
        """The log-odds that the text is about each image."""
        for part in self._batches(hits):
            yield from self.encoder.margins([self._tokens(hit) for hit in part], text).tolist()

    def _boxes(self, text: str, hits: Sequence[Hit]) -> Iterator[Box]:
        """Where in each image the text is true."""
        for part in self._batches(hits):
            boxes, scores = self.encoder.locate([self._tokens(hit) for hit in part], text)
            for hit, box, score in zip(part, boxes, scores, strict=True):
                yield in_pixels(text, box, score, self.model.read(hit.path).size)

    def _batches(self, hits: Sequence[Hit]) -> Iterator[Sequence[Hit]]:
        size = self.model.batch_size
        return (hits[start : start + size] for start in range(0, len(hits), size))

    def _tokens(self, hit: Hit) -> Tensor:
        """The mean patch and the patches of an image, (1 + P, D) float32.

        Keys and values of the fusion are projected from them anew. On the disk these would take as much space for each layer,
        twice.
        """
        shape = self.encoder.token_shape
        size = 4 * shape[0] * shape[1]

        def encode() -> bytes:
            tokens: bytes = self.encoder.tokens(hit.path).numpy().tobytes()
            return tokens

        if self._cache is None:
            return torch.frombuffer(bytearray(encode()), dtype=torch.float32).view(shape)
        name = hashlib.blake2b(f"{self.encoder.weights} {hit.content}".encode(), digest_size=20).hexdigest()
        return torch.frombuffer(bytearray(self._cache.get(name, size, encode)), dtype=torch.float32).view(shape)

    @cached_property
    def _copies(self) -> dict[int, list[IndexedImage]]:
        """The copies of each image that has any."""
        found: dict[int, list[IndexedImage]] = {}
        for line in range(len(self), len(self._lines)):
            copy = self._image(line)
            found.setdefault(copy.row, []).append(copy)
        return found
