"""The base class of models: reads images, tokenizes texts, runs the network, computes embeddings and matches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from batches.base import to_device
from batches.images import Pixels, stack_views
from batches.texts import Text
from dataset.media.video import FrameSampler
from dataset.text.processors import PlainTextProcessor, clean_caption, clean_question
from models.core.packing import PackedTexts
from models.core.vision import Concepts
from models.core.xvlm import XVLM
from models.inference.reranking import TextBank
from utils.errors import UserError
from utils.flags import unknown
from utils.printing import counted, is_unicode
from x2vlm.calls import CALLS, EXPORTED
from x2vlm.inputs import Image, Reader, View, as_list
from x2vlm.runtime import Runtime, TorchRuntime
from x2vlm.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from metrics.calibration import ModelCalibration

T = TypeVar("T")

logger = logging.getLogger(__name__)


class LoadedModel:
    """A network with its tokenizer and settings, ready to run.

    Attributes:
        runtime: runs the network.
        tokenizer: tokenizes the texts.
        settings: the settings that the model needs in addition to its weights.
        answers: the candidate answers for question answering; if None, pass candidates to each call.
        origin: the source from which the model was loaded.
        batch_size: number of images or image-text pairs in a forward pass.
        calls: the calls that a task of the user's own declares; see :meth:`call`.
        calibration: converts the scores of boxes to probabilities; None if the model is not calibrated (``run.py calibrate``).
        read: turns an image into a :class:`~x2vlm.inputs.View`, which all calls accept in place of an image.
    """

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: PreTrainedTokenizerFast,
        settings: Settings,
        *,
        answers: Sequence[str] | None = None,
        origin: str = "",
        batch_size: int = 32,
        calls: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
        calibration: ModelCalibration | None = None,
    ):
        self.runtime, self.tokenizer, self.settings = runtime, tokenizer, settings
        self.answers = None if answers is None else list(answers)
        self.origin, self.batch_size, self.calls, self.calibration = origin, batch_size, calls, calibration
        data, vision = settings.data, settings.model.vision
        videos = None if vision.video is None else FrameSampler(vision.video.frames, data.video, data.max_pixels)
        self.read = Reader(vision.image_size, data.max_pixels, videos)
        self.text = PlainTextProcessor(tokenizer, data.text)
        self._reported: set[str] = set()

    def __repr__(self) -> str:
        parameters = self.runtime.parameters / 1e6
        return (
            f"Model({self.origin!r}: task {self.settings.task}, {parameters:.1f} M parameters, {self.runtime.device})"
        )

    @property
    def network(self) -> XVLM:
        """Returns the torch module.

        Raises:
            UserError: the model was exported, and has no torch module.
        """
        if not isinstance(self.runtime, TorchRuntime):
            raise UserError(
                f"{self.origin} is an export to ONNX without a torch module",
                remedy="load the model from which it was exported",
            )
        return self.runtime.network

    def takes(self, call: str) -> bool:
        """Returns True if the model was trained for a call and, if the model is an export, the export supports the call."""
        is_available = isinstance(self.runtime, TorchRuntime) or call in EXPORTED
        return is_available and self.settings.task in CALLS[call].tasks

    def run(self, items: Sequence[Any], forward: Callable[[Sequence[Any]], Sequence[T]]) -> list[T]:
        """Runs ``forward`` on all items, one batch at a time, and returns the results in order.

        Raises:
            UserError: the list of items is empty, or a result is NaN or infinite.
        """
        if not items:
            raise UserError("no images or texts were given", remedy="pass at least one")
        size = self.batch_size
        with self.runtime.running():
            return [
                self.check_finite(result)
                for start in range(0, len(items), size)
                for result in forward(items[start : start + size])
            ]

    def check_finite(self, result: T) -> T:
        """Checks that a result of the network is finite, and returns it. Results other than arrays and tensors are not checked.

        Raises:
            UserError: the result is NaN or infinite.
        """
        is_finite = True
        if isinstance(result, Concepts):
            is_finite = bool(result.patches.isfinite().all())
        elif isinstance(result, Tensor):
            is_finite = bool(result.isfinite().all())
        elif isinstance(result, np.ndarray):
            is_finite = bool(np.isfinite(result).all())
        if not is_finite:
            raise UserError(
                "the model's results are NaN or infinite for this input",
                where=self.origin,
                remedy="use precision fp32, or different weights",
            )
        return result

    def views(self, images: Sequence[Image]) -> list[View]:
        """Returns the views of images. If an image occurs several times in a row, it is read only once."""
        views: list[View] = []
        for index, image in enumerate(images):
            views.append(views[-1] if index and image is images[index - 1] else self.read(image))
        return views

    def distinct(self, images: Sequence[Image]) -> tuple[Pixels, Tensor]:
        """Returns the pixels of images, in which successive copies of an image are merged, and, for each of the N images, the
        index of its pixels, (N,) int64."""
        views = self.views(images)
        is_new = [index == 0 or view is not views[index - 1] for index, view in enumerate(views)]
        pixels = self.pixels([view for view, new in zip(views, is_new, strict=True) if new])
        return pixels, torch.tensor(is_new, device=pixels.device).cumsum(0) - 1

    def pixels(self, views: Sequence[View]) -> Pixels:
        """Returns the pixels of views, (N, 3, S, S) or (N, F, 3, S, S) uint8, on the network's device."""
        size = self.settings.model.vision.image_size
        return stack_views([view.pixels for view in views], size).to(self.runtime.device)

    def tokens(self, texts: Sequence[str], *, questions: bool = False) -> Text:
        """Returns the token ids of texts, cleaned as in training. Truncated texts and unknown words are logged, each once.

        Raises:
            UserError: a text is empty after cleaning.
        """
        cleaned = [self.cleaned(text, question=questions) for text in texts]
        pieces, limit = [self.text.pieces(text)[0] for text in cleaned], self.text.limits.max_tokens
        if long := self._new([text for text, ids in zip(cleaned, pieces, strict=True) if len(ids) > limit - 2]):
            texts_are = counted(len(long), "text is", "texts are")
            logger.warning("%s truncated to %d tokens, for example %.60r", texts_are, limit, long[0])
        affected = [text for text, ids in zip(cleaned, pieces, strict=True) if self.text.unk_id in ids]
        if unknown := self._new([word for text in affected for word in self.text.unknown(text)]):
            words_are = counted(len(unknown), "word is", "words are")
            logger.warning("%s unknown to the tokenizer, for example %.60r", words_are, unknown[0])
        return to_device(self.text.encode_plain(cleaned), self.runtime.device)

    def _new(self, texts: Sequence[str]) -> list[str]:
        """Returns the texts that have not been reported before, and marks them as reported."""
        new = [text for text in dict.fromkeys(texts) if text not in self._reported]
        self._reported.update(new)
        return new

    def encoded(self, texts: Sequence[str]) -> PackedTexts:
        """Returns the states of the text encoder."""
        return self.runtime.text_states(self.tokens(texts))

    def cleaned(self, text: str, *, question: bool = False) -> str:
        """Cleans a text as in training: lower case, without punctuation, truncated to the maximum number of words.

        Raises:
            UserError: the text is empty after cleaning, or is not valid Unicode.
        """
        try:
            cleaned = (clean_question if question else clean_caption)(text, self.text.max_words)
        except ValueError:
            cleaned = ""
        check_unicode(text)
        if not cleaned.strip():
            raise UserError(
                f"the text {text!r} contains no words (punctuation does not count)", remedy="write at least one"
            )
        return cleaned

    def margins(self, images: Image | Sequence[Image], texts: str | Sequence[str]) -> np.ndarray:
        """Returns, for each image and text, the log-odds that they match, (images, texts) float32. :meth:`match` returns
        probabilities."""
        self.require("match")
        matcher = Matcher(self, as_texts(texts))
        all_texts = torch.arange(matcher.count)

        def score(images: Sequence[Image]) -> list[np.ndarray]:
            states = self.runtime.image_states(self.pixels(self.views(images)))
            return matcher.margins(states, [all_texts] * len(images))

        return np.stack(self.run(as_list(images), score)).astype(np.float32)

    def embed_images(self, images: Image | Sequence[Image]) -> np.ndarray:
        """Returns embeddings of images, (images, E) float32 of length 1. Their products with text embeddings are cosines."""
        self.require("embed_images")

        def embed(images: Sequence[Image]) -> list[np.ndarray]:
            return list(self.runtime.image_embeddings(self.pixels(self.views(images))).cpu().numpy())

        return np.stack(self.run(as_list(images), embed))

    def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
        """Returns embeddings of texts, (texts, E) float32 of length 1."""
        self.require("embed_texts")

        def embed(texts: Sequence[str]) -> list[np.ndarray]:
            return list(self.runtime.text_embeddings(self.tokens(texts)).cpu().numpy())

        return np.stack(self.run(as_texts(texts), embed))

    def call(self, name: str, images: Image | Sequence[Image], texts: str | Sequence[str]) -> list[list[Any]]:
        """Runs a call that the model's task declares; see :class:`tasks.kinds.TaskKind`. Every text is combined with every
        image.

        Returns:
            For each image, a list with the result for each text.

        Raises:
            UserError: the task does not declare the call.
        """
        if name not in self.calls:
            hint = unknown(name, list(self.calls)) if self.calls else "use the methods of the model"
            raise UserError(f"{self.origin} is a model for the task {self.settings.task}", where=name, remedy=hint)
        results: list[list[Any]] = self.calls[name](self, as_list(images), as_texts(texts))
        return results

    def require(self, call: str) -> None:
        """Checks that the model supports a call.

        Raises:
            UserError: the model was not trained for the call, or is an export that does not support the call.
        """
        if self.takes(call):
            return
        if self.settings.task in CALLS[call].tasks:
            raise UserError(
                f"{self.origin} is an export to ONNX, which does not support this call",
                where=call,
                remedy="load the model from which it was exported",
            )
        raise UserError(
            f"{self.origin} is a model for the task {self.settings.task}, which was not trained for this call",
            where=call,
            remedy=f"load a model for the task {' or '.join(CALLS[call].tasks)}",
        )


class Matcher:
    """Applies the matching head to a list of texts, which are encoded once.

    Raises:
        UserError: the list of texts is empty, or a text is empty after cleaning.
    """

    def __init__(self, model: LoadedModel, texts: Sequence[str]):
        if not texts:
            raise UserError("no texts were given", remedy="pass at least one")
        self.model, self.count = model, len(texts)
        size = 8 * model.batch_size
        with model.runtime.running():
            self.bank = TextBank.of(
                [model.encoded(texts[start : start + size]) for start in range(0, len(texts), size)]
            )

    def margins(self, images: Concepts, chosen: Sequence[Tensor]) -> list[np.ndarray]:
        """Returns, for each of N images, the float64 log-odds that each of the chosen texts is about the
        image. ``chosen`` contains, for each image, the indices of its texts (int64, on the CPU).

        Raises:
            UserError: the log-odds are NaN or infinite.
        """
        with self.model.runtime.running():
            found = self.model.runtime.margins(images, chosen, self.bank)
        return [self.model.check_finite(margins.double().cpu().numpy()) for margins in found]

    def scores(self, views: Sequence[View], chosen: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns the log-odds that texts are about images, (images, texts) float64, with NaN for pairs that are not chosen.
        ``chosen`` contains, for each image, the indices of its texts.
        """
        model, found = self.model, np.full((len(views), self.count), np.nan)
        for start in range(0, len(views), model.batch_size):
            batch = slice(start, start + model.batch_size)
            with model.runtime.running():
                states = model.runtime.image_states(model.pixels(list(views[batch])))
            columns = [torch.tensor(each) for each in chosen[batch]]
            for row, margins in enumerate(self.margins(states, columns), start):
                found[row, chosen[row]] = margins
        return found


def check_unicode(text: str) -> None:
    """Raises :class:`UserError` if a text contains half of a surrogate pair, which no tokenizer accepts."""
    if not is_unicode(text):
        raise UserError(f"the text {text!r} is not valid Unicode", remedy="check the encoding of its source")


def as_texts(texts: Any) -> list[str]:
    """Returns texts as a list; a single text becomes a list of one."""
    listed = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str | bytes) else [texts]
    if odd := [text for text in listed if not isinstance(text, str)]:
        if isinstance(odd[0], list | tuple):
            raise UserError(
                f"{odd[0]!r:.60} is a {type(odd[0]).__name__}, not a string", remedy="pass one flat list of texts"
            )
        raise UserError(f"{odd[0]!r} is not a string", remedy="pass texts as strings")
    return listed
