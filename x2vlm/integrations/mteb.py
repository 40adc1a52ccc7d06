"""X²-VLM as models for mteb (github.com/embeddings-benchmark/mteb) and its tasks with images and texts (MIEB, arXiv:2504.10471).

    import mteb

    from x2vlm.integrations.mteb import X2VLMEncoder, X2VLMReranker

    mteb.evaluate(X2VLMEncoder("runs/demo/pretrain-seed0"), tasks)

:class:`X2VLMEncoder` compares embeddings, and supports all tasks with images and texts. :class:`X2VLMReranker` also scores
candidates with the matching head, in retrieval and re-ranking between images and texts.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.text.loading import token_ids_digest
from models.core.vision import Concepts
from utils.errors import UserError
from utils.extras import install_command
from x2vlm.base import LoadedModel, Matcher
from x2vlm.inputs import Image
from x2vlm.integrations.inputs import as_model, column, embed_texts, embedding_width, have_words
from x2vlm.matching import sums
from x2vlm.runtime import TorchRuntime

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType
except ImportError:
    raise UserError(f"x2vlm.integrations.mteb needs mteb, which is not installed: {install_command('mteb')}") from None

NO_WORDS = "unknown"
"""The model's input for a text without words. The score of such a text is then set below all others."""

Ranking = dict[str, dict[str, float]]
"""For each query, the scores of its documents, by name."""


class X2VLMEncoder(AbsEncoder):
    """Embeds texts and images; their cosines are the scores. For an input with a text and an image, the embedding is the sum of
    the two embeddings, as for CLIP in mteb. The embedding of a text without words is zero.

    Args:
        model: a model trained with task ``pretrain`` or ``retrieval``, or a source that :func:`x2vlm.load` accepts.
    """

    def __init__(self, model: LoadedModel | str | Path):
        self.model = as_model(model)
        self.mteb_model_meta = _meta(self.model, "", "dense")

    def encode(self, inputs: Any, **options: Any) -> Tensor:
        """Returns the embeddings of a data loader of mteb, (N, E) float32; see ``mteb.EncoderProtocol``."""
        embeddings = [self._embed(batch) for batch in inputs]
        if not embeddings:
            raise UserError("no inputs were given", where="mteb", remedy="pass at least one batch")
        return torch.from_numpy(np.concatenate(embeddings))

    def _embed(self, batch: Mapping[str, Any]) -> np.ndarray:
        given = {name: column(batch[name], f"mteb: {name}") for name in ("text", "image") if name in batch}
        if not given:
            raise UserError(
                f"x2vlm accepts inputs with a text or an image, but this input has {', '.join(batch)}", where="mteb"
            )
        if len({len(values) for values in given.values()}) > 1:
            raise UserError(
                f"a batch has {len(given['text'])} texts and {len(given['image'])} images",
                where="mteb",
                remedy="pass one text with each image",
            )
        embed = {"text": partial(embed_texts, self.model), "image": self.model.embed_images}
        return np.sum([embed[name](values) for name, values in given.items()], axis=0)


class X2VLMReranker:
    """Finds images by texts, or texts by images, in two stages (appendix A.1 of the paper): the best candidates by cosine are
    ranked by the matching head or, if the config of the model says so, by the sum of its log-odds and the cosine. If the task
    provides candidates, all of them are ranked in this way.

    Args:
        model: see :class:`X2VLMEncoder`.
        candidates: number of candidates per query that are re-ranked if the task does not provide candidates.
        cache_gb: maximum memory, in GB, for the states of images; later searches in the same images reuse these states.
    """

    def __init__(self, model: LoadedModel | str | Path, *, candidates: int = 256, cache_gb: float = 2.0):
        if candidates < 1:
            raise UserError(f"candidates is {candidates}", remedy="pass at least 1")
        self.model = as_model(model)
        self.candidates, self.cache_gb = candidates, cache_gb
        self.mteb_model_meta = _meta(self.model, f"-reranker-{candidates}", "cross-encoder")
        self._documents: _Items | None = None

    def index(self, corpus: Any, *, task_metadata: Any, **options: Any) -> None:
        """Stores the documents in which :meth:`search` searches; see ``mteb.SearchProtocol``."""
        self._documents = _Items(self.model, corpus, task_metadata, PromptType.document, self.cache_gb)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> Ranking:
        """Returns the scores of the documents of each query. The score of a re-ranked document is its log-odds, or the sum; all
        other documents have lower scores, in the order of their cosines.

        Args:
            queries: an mteb data set with the columns ``id`` and ``text`` or ``image``.
            task_metadata: description of the task.
            top_k: number of documents to return per query if the task does not provide candidates.
            top_ranked: the candidates of each query.
            options: other settings of ``mteb.SearchProtocol``, which are ignored.

        Raises:
            UserError: the task does not compare texts with images.
        """
        documents = self._documents
        if documents is None:
            raise UserError("search needs documents", where="mteb", remedy="call index first")
        query_items = _Items(self.model, queries, task_metadata, PromptType.query, 0.0)
        if query_items.are_images == documents.are_images:
            kind = "images" if query_items.are_images else "texts"
            raise UserError(
                f"{task_metadata.name} compares {kind} with {kind}, but the matching head compares texts with images",
                remedy="use X2VLMEncoder",
            )
        if top_ranked is None:
            found = _nearest(query_items, documents, top_k)
            chosen = [rows[: self.candidates] for rows in found]
        else:
            found = chosen = [documents.rows_of(top_ranked.get(query) or ()) for query in query_items.names]
        scores = self._score(query_items, documents, chosen)
        results: Ranking = {}
        for query, rows, query_scores in zip(query_items.names, found, scores, strict=True):
            lowest = float(query_scores.min(initial=0.0))
            below = [lowest - distance for distance in range(1, 1 + len(rows) - len(query_scores))]
            names = [documents.names[row] for row in rows.tolist()]
            results[query] = dict(zip(names, [*query_scores.tolist(), *below], strict=True))
        return results

    def _score(self, queries: _Items, documents: _Items, chosen: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the scores of the chosen documents for each query. Each image is encoded once and scored with all its texts."""
        images, texts = (queries, documents) if queries.are_images else (documents, queries)
        pairs = np.array([(query, row) for query, rows in enumerate(chosen) for row in rows.tolist()], np.int64)
        scores = np.empty(len(pairs))
        if len(pairs):
            image_rows, text_rows = pairs.T if queries.are_images else pairs.T[::-1]
            used, text_index = np.unique(text_rows, return_inverse=True)
            matcher = Matcher(self.model, [texts.texts[row] for row in used.tolist()])
            order = np.argsort(image_rows, kind="stable")
            rows, starts = np.unique(image_rows[order], return_index=True)
            groups = np.split(order, starts[1:])
            for start in range(0, len(rows), self.model.batch_size):
                batch = slice(start, start + self.model.batch_size)
                states = images.states(rows[batch].tolist())
                columns = [torch.from_numpy(text_index[group]) for group in groups[batch]]
                for group, margins in zip(groups[batch], matcher.margins(states, columns), strict=True):
                    scores[group] = margins
            score = self.model.settings.evaluation.score
            if score != "matching":
                cosines = np.einsum("pe,pe->p", images.embeddings[image_rows], texts.embeddings[text_rows])
                scores = cosines if score == "cosine" else sums(self.model, scores, cosines)
            scores[~texts.has_words[text_rows]] = scores.min() - 1
        return np.split(scores, np.cumsum([len(rows) for rows in chosen])[:-1])


class _Items:
    """The images or texts of an mteb data set. Images are read when they are needed.

    Attributes:
        names: the values of the column ``id``.
        row_of: the row index of each name.
        are_images: True for images, False for texts.
        texts: the texts with their titles and instructions, or :data:`NO_WORDS` for a text without words; empty for images.
        has_words: (N,) bool, True if text n has words.
    """

    def __init__(self, model: LoadedModel, rows: Any, task: Any, side: PromptType, cache_gb: float):
        kinds = task.get_modalities(side)
        if kinds not in (["image"], ["text"]):
            raise UserError(
                f"{task.name} has {' and '.join(kinds)} in a {side.value}, but the matching head compares texts with "
                "images",
                remedy="use X2VLMEncoder",
            )
        self.model, self.rows = model, rows
        if missing := [name for name in ("id", *kinds) if name not in rows.column_names]:
            raise UserError(
                f"{task.name} has no column {missing[0]!r} in its {side.value} rows, only "
                f"{', '.join(rows.column_names)}",
                where="mteb",
                remedy="load the task again",
            )
        self.are_images = kinds == ["image"]
        self.names = [str(name) for name in rows["id"]]
        if not self.names:
            raise UserError(f"{task.name} has no {side.value} rows", where="mteb", remedy="load the task again")
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise UserError(
                f"{task.name} has two {side.value} rows with the id {twice[0]!r}",
                where="mteb",
                remedy="load the task again",
            )
        self.row_of = {name: row for row, name in enumerate(self.names)}
        texts = [] if self.are_images else list(_texts(rows))
        self.has_words = np.array(have_words(model, texts), bool)
        self.texts = [text if read else NO_WORDS for text, read in zip(texts, self.has_words, strict=True)]
        self._states: dict[int, Concepts] = {}
        self._embeddings: np.ndarray | None = None
        count, width = model.runtime.state_shape
        self._kept = int(cache_gb * 1e9 / (4 * count * width))

    def rows_of(self, names: Sequence[str]) -> np.ndarray:
        """Returns the rows (N,) int64 of names.

        Raises:
            UserError: a name is unknown.
        """
        if unknown := [name for name in names if name not in self.row_of]:
            raise UserError(
                f"the task ranks the document {unknown[0]!r}, which is not in its corpus",
                where="mteb",
                remedy="load the task again",
            )
        return np.array([self.row_of[name] for name in names], np.int64)

    @property
    def embeddings(self) -> np.ndarray:
        """Returns the embeddings (N, E) of all items."""
        if self._embeddings is None:
            size = 8 * self.model.batch_size
            parts = [range(start, min(start + size, len(self.names))) for start in range(0, len(self.names), size)]
            if self.are_images:
                self._embeddings = np.concatenate(
                    [self.model.embed_images([self._image(row) for row in part]) for part in parts]
                )
            else:
                part_embeddings = [self.model.embed_texts([self.texts[row] for row in part]) for part in parts]
                self._embeddings = np.concatenate(part_embeddings) * self.has_words[:, None]
        return self._embeddings

    def states(self, rows: Sequence[int]) -> Concepts:
        """Returns the states of images. The states of the first images are cached, as far as ``cache_gb`` allows."""
        new = [row for row in rows if row not in self._states]
        fresh: dict[int, Concepts] = {}
        if new:
            views = self.model.views([self._image(row) for row in new])
            with self.model.runtime.running():
                fresh = dict(zip(new, self.model.runtime.image_states(self.model.pixels(views)).each(), strict=True))
        found = Concepts.cat([fresh[row] if row in fresh else self._states[row] for row in rows])
        for row, states in fresh.items():
            if len(self._states) < self._kept:
                self._states[row] = states
        return found

    def _image(self, row: int) -> Image:
        image: Image | None = self.rows[row]["image"]
        if image is None:
            raise UserError(f"the image of {self.names[row]!r} is None", where="mteb", remedy="remove the row")
        return image


def _texts(rows: Any) -> Iterator[str]:
    """Yields the texts of a data set. Titles precede the texts of documents, and instructions follow the texts of queries.

    Raises:
        UserError: a text is None, or is not a string, such as a conversation.
    """
    columns = {name: rows[name] for name in ("title", "text", "instruction") if name in rows.column_names}
    columns["text"] = column(columns["text"], "mteb: text")
    for values in zip(*columns.values(), strict=True):
        given = [value for value in values if value is not None]
        if odd := [value for value in given if not isinstance(value, str)]:
            raise UserError(
                f"{odd[0]!r:.60} is not a string",
                where="mteb",
                remedy="pass texts as strings, or use X2VLMEncoder for conversations",
            )
        yield " ".join(value.strip() for value in given if value)


def _nearest(queries: _Items, documents: _Items, count: int) -> list[np.ndarray]:
    """Returns the rows of the ``count`` documents nearest to each query by cosine, best first."""
    found = []
    for start in range(0, len(queries.names), 1024):
        cosines = torch.from_numpy(queries.embeddings[start : start + 1024] @ documents.embeddings.T)
        found += list(cosines.topk(min(count, len(documents.names)), dim=1).indices.numpy())
    return found


def _meta(model: LoadedModel, ending: str, kind: str) -> ModelMeta:
    """Returns the metadata that mteb shows in its tables. mteb finds cached results by the name, which ends with ``ending``, and
    by the revision, which is a hash of the weights and of the settings that affect results."""
    precision = model.runtime.precision if isinstance(model.runtime, TorchRuntime) else "onnx"
    settings = f"{precision} {token_ids_digest(model.tokenizer)} {model.settings.model_dump_json()}"
    digest = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", Path(model.origin).name).strip("-.") or "model"
    return ModelMeta.create_empty(
        {
            "name": f"x2vlm/{name}{ending}",
            "revision": f"{model.runtime.weights[:16]}-{digest}",
            "n_parameters": model.runtime.parameters,
            "max_tokens": model.text.limits.max_tokens,
            "embed_dim": embedding_width(model),
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["PyTorch"],
            "modalities": ["text", "image"],
            "model_type": [kind],
            "use_instructions": False,
        }
    )
