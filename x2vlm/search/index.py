"""An index of images, and the two stages of a search: cosine over all of them, then the matching head on the best."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dataset.shards.remote.cache import BlockCache
from utils.errors import UserError
from utils.files import cache_folder
from x2vlm.boxes import Box, in_pixels
from x2vlm.search import CACHE_GB
from x2vlm.search.encoding import Encoder
from x2vlm.search.files import IMAGES, IndexedImage, image_of, open_embeddings, read_about, read_lines

if TYPE_CHECKING:
    from x2vlm.model import Model

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
        box: where the text is true, with the probability that it is about what the box shows; None: it was not asked for.
    """

    path: Path
    copies: tuple[Path, ...]
    cosine: float
    score: float | None = None
    box: Box | None = None


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

    Raises:
        UserError: there is no index, it is damaged, or of another model.
    """

    def __init__(
        self, folder: str | Path, model: Model, *, cache_gb: float = CACHE_GB, cache: str | Path | None = None
    ):
        self.folder, self.model, self.encoder = Path(folder), model, Encoder(model)
        self.about = read_about(self.folder)
        self.weights = model.runtime.weights
        if self.weights != self.about.weights:
            raise UserError(
                f"{folder} was made by {self.about.model}, whose weights are not those of {model.origin}; index again"
            )
        self._lines = read_lines(self.folder / IMAGES)
        self.embeddings = open_embeddings(self.folder, self.about, self._count_rows())
        caches = Path(cache) if cache is not None else cache_folder()
        self._cache = None if caches is None else BlockCache(caches / "images", int(cache_gb * 1e9))

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
        return image_of(self._lines[line], self.folder / IMAGES)

    def search(self, text: str, *, top: int = 10, rerank: int = 64, locate: bool | str = False) -> list[Hit]:
        """The images that a text is most likely about, the best first: by the matching head's probability; those that were not
        re-ranked stand behind, by their cosines.

        Args:
            text: a sentence.
            top: hits.
            rerank: images, the best by cosine, that the matching head judges; 0: none.
            locate: find the box in each hit where the text is true, or where this phrase is.

        Raises:
            UserError: nothing is left of the text; the model locates nothing; an image is gone.
        """
        rows, cosines = self.nearest(text, max(top, rerank))
        found = {
            row: Hit(self._path(row), (), cosine) for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True)
        }
        scores = sorted(self._scores(text, rows[:rerank].tolist()), key=lambda scored: -scored[1])
        ranked = [(row, replace(found[row], score=score)) for row, score in scores]
        best = [*ranked, *list(found.items())[len(ranked) :]][:top]
        phrase = locate if isinstance(locate, str) else text
        boxes: Iterable[Box | None] = self._boxes(phrase, [row for row, _ in best]) if locate else [None] * len(best)
        return [
            replace(hit, copies=self._copies.get(row, ()), box=box) for (row, hit), box in zip(best, boxes, strict=True)
        ]

    def nearest(self, text: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (k,) of the images nearest to a text by cosine, and their cosines (k,); k = ``count``, if there are as many."""
        return nearest_rows(self.embeddings, self.model.embed_texts(text)[0], count)

    def _scores(self, text: str, rows: Sequence[int]) -> Iterator[tuple[int, float]]:
        """The rows, each with the probability that the text is about the image."""
        for part in self._batches(rows):
            yield from zip(part, self.encoder.match([self._tokens(row) for row in part], text).tolist(), strict=True)

    def _boxes(self, text: str, rows: Sequence[int]) -> Iterator[Box]:
        """Where in each image the text is true."""
        for part in self._batches(rows):
            boxes, scores = self.encoder.locate([self._tokens(row) for row in part], text)
            for row, box, score in zip(part, boxes, scores, strict=True):
                yield in_pixels(text, box, score, self.model.read(self._path(row)).size)

    def _batches(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        size = self.model.batch_size
        return (rows[start : start + size] for start in range(0, len(rows), size))

    def _tokens(self, row: int) -> Tensor:
        """The mean patch and the patches of an image, (1 + P, D) float32.

        Keys and values of the fusion are projected from them anew. On the disk these would take as much space for each layer,
        twice.
        """
        shape = self.encoder.token_shape
        size = 4 * shape[0] * shape[1]

        def encode() -> bytes:
            tokens: bytes = self.encoder.tokens(self._path(row)).numpy().tobytes()
            return tokens

        if self._cache is None:
            return torch.frombuffer(bytearray(encode()), dtype=torch.float32).view(shape)
        name = hashlib.blake2b(f"{self.weights} {self._image(row).content}".encode(), digest_size=20).hexdigest()
        return torch.frombuffer(bytearray(self._cache.get(name, size, encode)), dtype=torch.float32).view(shape)

    def _path(self, row: int) -> Path:
        return Path(self.about.folder) / self._image(row).path

    @cached_property
    def _copies(self) -> dict[int, tuple[Path, ...]]:
        """The copies of each image that has any."""
        found: dict[int, list[Path]] = {}
        for line in range(len(self), len(self._lines)):
            copy = self._image(line)
            found.setdefault(copy.row, []).append(Path(self.about.folder) / copy.path)
        return {row: tuple(paths) for row, paths in found.items()}
