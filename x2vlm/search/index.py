"""An index of images. A search has two stages: all images are compared with the text by cosine, and the matching head then
re-ranks the best images."""

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

from batches.images import Grid
from models.config import AligningConfig
from models.core.vision import Concepts
from utils.block_cache import BlockCache
from utils.errors import UserError
from utils.files import cache_folder
from utils.image_size import NativeSize
from x2vlm.base import Matcher
from x2vlm.boxes import Box, in_pixels
from x2vlm.matching import formatted_scores, probabilities, sums
from x2vlm.search import CACHE_GB
from x2vlm.search.files import IndexedImage, check_digests, image_of, open_embeddings, read_lines, read_metadata

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel

logger = logging.getLogger(__name__)

BLOCK = 1 << 17
"""Number of images that are compared at a time, which bounds the memory for scores."""


@dataclass(frozen=True)
class Hit:
    """An image found by a search.

    Attributes:
        path: path of the image.
        copies: files with the same content.
        cosine: cosine between image and text.
        score: the probability that the text is about the whole image; None if the hit was not re-ranked.
        sum: the ranking score if the model's config has ``evaluation.score: sum`` (see :func:`x2vlm.matching.sums`). It is None
            if the config has a different score, or if the hit was not re-ranked.
        box: the box that the text describes, with the probability that the text is about the content of the box; None if no box
            was requested.
        content: hash of the file's content.
    """

    path: Path
    copies: tuple[Path, ...]
    cosine: float
    score: float | None = None
    sum: float | None = None
    box: Box | None = None
    content: str = ""

    def formatted_scores(self) -> dict[str, str]:
        """Returns the sum, the probability and the cosine of the hit, formatted for printing, by name. Values that are None are
        omitted."""
        return formatted_scores(self.score, self.cosine, self.sum)


def check_model(model: LoadedModel) -> int:
    """Checks that a model can compare images with texts, and returns the size of its embeddings.

    Raises:
        UserError: the model was trained with a different task, or is a video model.
    """
    if not model.takes("match"):
        raise UserError(
            f"{model.origin} is a model for the task {model.settings.task}, which cannot compare texts with images",
            remedy="load a model for the task pretrain or retrieval",
        )
    if model.read.videos is not None:
        raise UserError(f"{model.origin} is a video model, but an index contains images", remedy="pass an image model")
    assert isinstance(model.settings.model, AligningConfig)
    return model.settings.model.embed_dim


def nearest_rows(embeddings: np.ndarray, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows (k,) of the embeddings (N, E) with the largest products with ``query`` (E,), and the products (k,) in
    descending order; k = min(``count``, N)."""
    vector, best, rows = torch.from_numpy(query), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for start in range(0, len(embeddings), BLOCK):
        scores = torch.mv(torch.from_numpy(embeddings[start : start + BLOCK]), vector)
        found = scores.topk(min(count, len(scores)))
        best, rows = torch.cat([best, found.values]), torch.cat([rows, found.indices + start])
    order = best.argsort(descending=True, stable=True)[:count]
    return rows[order].numpy(), best[order].numpy()


class ImageIndex:
    """An index built by :meth:`x2vlm.Model.index` or ``run.py index``.

    Args:
        folder: folder of the index.
        model: the model that built the index.
        cache_gb: maximum size, in GB, of the disk cache for the vision encoder's output on re-ranked images.
        cache: folder of the disk cache; if None, a folder in the user's cache folder.

    Raises:
        UserError: the model cannot compare images with texts, or the index does not exist, is unfinished or damaged, or was built
            by a different model.
    """

    def __init__(
        self,
        folder: str | Path,
        model: LoadedModel,
        *,
        cache_gb: float = CACHE_GB,
        cache: str | Path | None = None,
    ):
        check_model(model)
        self.folder, self.model = Path(folder), model
        self.metadata = read_metadata(self.folder)
        if not self.metadata.made:
            raise UserError("the index is not finished", where=folder, remedy="continue with python run.py index")
        self._weights = model.runtime.weights  # hashed only once
        if self._weights != self.metadata.weights:
            raise UserError(
                f"{folder} was built by {self.metadata.model}, whose weights or settings differ from {model.origin}",
                remedy="rebuild the index",
            )
        check_digests(self.folder, self.metadata)
        self._list = self.metadata.images_in(self.folder)
        self._lines = read_lines(self._list)
        self.embeddings = open_embeddings(self.folder, self.metadata, self._count_rows())
        caches = Path(cache) if cache is not None else cache_folder()
        self._cache = (
            None
            if caches is None
            else BlockCache(caches / "images", int(cache_gb * 1e9), "pass a different folder with cache=")
        )

    def __len__(self) -> int:
        """Returns the number of distinct images."""
        return len(self.embeddings)

    def _count_rows(self) -> int:
        """Returns the number of images that are not copies. In the list, the row of an image is its line number, and the
        copies follow the images."""
        low, high = 0, len(self._lines)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._image(middle).row == middle else (low, middle)
        return low

    def _image(self, line: int) -> IndexedImage:
        return image_of(self._lines[line], self._list)

    def search(self, text: str, *, top: int = 10, rerank: int = 64, locate: bool | str = False) -> list[Hit]:
        """Returns the images that the text most likely describes, best first: by the matching head's probability, or by the sum
        if the hits have one (see :class:`Hit`). Hits that were not re-ranked follow, sorted by their cosines. If the model's
        config has ``evaluation.score: cosine``, no hits are re-ranked.

        Args:
            text: a sentence.
            top: maximum number of hits.
            rerank: how many of the best images by cosine the matching head re-ranks; 0 to skip re-ranking.
            locate: whether to find, in each hit, the box that the text describes; if it is a phrase, the box of the phrase is
                found.

        Raises:
            UserError: the text is not a string or is empty after cleaning, or the model has no box head.
        """
        if not isinstance(text, str):
            raise UserError(f"text is {text!r}", where="search", remedy="pass a single text as a string")
        if locate:
            self.model.require("locate")
        score = self.model.settings.evaluation.score
        rerank = 0 if score == "cosine" else rerank
        rows, cosines = self.nearest(text, max(top, rerank))
        found = self._available(dict(zip(rows.tolist(), cosines.tolist(), strict=True)))
        judged = [found[row] for row in rows[:rerank].tolist() if row in found]
        ranking = margins = np.array(list(self._margins(text, judged)), np.float64)
        judgements = zip(judged, probabilities(margins).tolist(), strict=True)
        hits = [replace(hit, score=probability) for hit, probability in judgements]
        if score == "sum":
            ranking = sums(self.model, margins, np.array([hit.cosine for hit in hits]))
            hits = [replace(hit, sum=each) for hit, each in zip(hits, ranking.tolist(), strict=True)]
        ranked = [hits[index] for index in np.argsort(-ranking, kind="stable")]
        best = [*ranked, *list(found.values())[len(ranked) :]][:top]
        if not locate:
            return best
        boxes = self._boxes(locate if isinstance(locate, str) else text, best)
        return [replace(hit, box=box) for hit, box in zip(best, boxes, strict=True)]

    def nearest(self, text: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows (k,) of the images nearest to a text by cosine, and their cosines (k,); k = min(``count``, images)."""
        return nearest_rows(self.embeddings, self.model.embed_texts(text)[0], count)

    def _available(self, cosines: dict[int, float]) -> dict[int, Hit]:
        """Returns the hits for the rows whose files still exist and are unchanged. A warning says how many rows were skipped."""
        hits = {}
        for row, cosine in cosines.items():
            paths = [path for path in map(self._unchanged, [self._image(row), *self._copies.get(row, ())]) if path]
            if paths:
                hits[row] = Hit(paths[0], tuple(paths[1:]), cosine, content=self._image(row).content)
        if gone := len(cosines) - len(hits):
            logger.warning(
                "%s: %d of the nearest %d images are missing or have changed, and are skipped; update with python "
                "run.py index",
                self.folder,
                gone,
                len(cosines),
            )
        return hits

    def _unchanged(self, image: IndexedImage) -> Path | None:
        """Returns the path of a file if its size and modification time have not changed since it was indexed, otherwise None."""
        path = Path(self.metadata.folder) / image.path
        try:
            status = path.stat()
        except OSError:
            return None
        return path if (status.st_size, status.st_mtime_ns) == (image.bytes, image.changed_ns) else None

    def _margins(self, text: str, hits: Sequence[Hit]) -> Iterator[float]:
        """Yields the log-odds that the text is about each image."""
        if not hits:
            return
        matcher, only = Matcher(self.model, [text]), torch.zeros(1, dtype=torch.int64)
        for part in self._batches(hits):
            for margins in matcher.margins(self._states(part), [only] * len(part)):
                yield from margins.tolist()

    def _boxes(self, text: str, hits: Sequence[Hit]) -> Iterator[Box]:
        """Yields, for each image, the box that the text describes."""
        runtime = self.model.runtime
        for part in self._batches(hits):
            with runtime.running():
                packed = self.model.encoded([text] * len(part))
                boxes, scores = runtime.locate(
                    self._states(part), packed, torch.arange(len(part), device=runtime.device)
                )
            for hit, box, score in zip(part, boxes, scores, strict=True):
                yield in_pixels(text, box, score, self.model.read(hit.path).size)

    def _batches(self, hits: Sequence[Hit]) -> Iterator[Sequence[Hit]]:
        size = self.model.batch_size
        return (hits[start : start + size] for start in range(0, len(hits), size))

    def _states(self, hits: Sequence[Hit]) -> Concepts:
        """Returns the mean patch and the patches of images on the network's device."""
        device = self.model.runtime.device
        tokens, grids = zip(*(self._tokens(hit) for hit in hits), strict=True)
        return Concepts.of_states(torch.stack(tokens).to(device), None if None in grids else grids)

    def _tokens(self, hit: Hit) -> tuple[Tensor, Grid | None]:
        """Returns the mean patch and the patches of an image, (1 + P, D) float32, and its rows and columns of patches if images
        keep their aspect ratio.

        The fusion encoder's keys and values are recomputed from these tokens, because caching keys and values would take twice as
        much disk space for every layer.
        """
        model, shape = self.model, self.model.runtime.state_shape
        native = isinstance(model.settings.model.vision.image_size, NativeSize)
        size = 4 * (shape[0] * shape[1] + 2 * native)  # the grid follows the states

        def encode() -> bytes:
            with model.runtime.running():
                states = model.check_finite(model.runtime.image_states(model.pixels([model.read(hit.path)])))
            grid = np.array(states.grids or (), np.float32)
            content: bytes = states.states().float().cpu().numpy().tobytes() + grid.tobytes()
            return content

        name = hashlib.blake2b(f"{self._weights} {hit.content}".encode(), digest_size=20).hexdigest()
        content = encode() if self._cache is None else self._cache.get(name, size, encode)
        numbers = torch.frombuffer(bytearray(content), dtype=torch.float32)
        tokens = numbers[: shape[0] * shape[1]].view(shape)
        return tokens, (int(numbers[-2]), int(numbers[-1])) if native else None

    @cached_property
    def _copies(self) -> dict[int, list[IndexedImage]]:
        """Returns the copies of each image, for images that have copies."""
        found: dict[int, list[IndexedImage]] = {}
        for line in range(len(self), len(self._lines)):
            copy = self._image(line)
            found.setdefault(copy.row, []).append(copy)
        return found
