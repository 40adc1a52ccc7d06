"""X²-VLM as models for sentence-transformers (sbert.net).

    from x2vlm.integrations.sentence_transformers import cross_encoder, encoder

    encoder("runs/demo/pretrain-seed0").encode(["a dog on a sofa", "a red bicycle"])  # or a list of images
    cross_encoder("runs/demo/pretrain-seed0").rank("a dog on a sofa", photos)

Texts are strings, or dictionaries with the key ``text``; images are Pillow images, paths, arrays, tensors, or dictionaries with
the key ``image``. Saved models can be loaded with :func:`encoder` and :func:`cross_encoder` or, if x2vlm is installed, by
sentence-transformers itself with ``trust_remote_code=True``.
"""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from batches.images import Pixels
from batches.texts import Text
from engine.config import PrecisionName
from models.inference.reranking import TextBank
from utils.errors import UserError
from utils.extras import install_command
from utils.files import expanded
from utils.suffixes import IMAGE_SUFFIXES
from x2vlm.base import LoadedModel
from x2vlm.integrations.inputs import as_model, embedding_width
from x2vlm.runtime import TorchRuntime
from x2vlm.saving import card, save
from x2vlm.weights import HUB

try:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modality import infer_modality
    from sentence_transformers.base.modality_types import Modality
    from sentence_transformers.base.modules import InputModule
except ImportError:
    raise UserError(
        "x2vlm.integrations.sentence_transformers needs sentence-transformers, which is not installed: "
        f"{install_command('sentence')}"
    ) from None

MODALITIES: tuple[Modality, ...] = ("text", "image")
MODULES = "modules.json"
"""A file that every folder saved by sentence-transformers contains."""


def encoder(
    source: LoadedModel | str | Path, *, device: str | None = None, precision: PrecisionName = "fp32"
) -> SentenceTransformer:
    """Returns a SentenceTransformer that embeds texts and images, (N, E) of length 1.

    Args:
        source: a source that :func:`x2vlm.load` accepts, a model trained with task ``pretrain`` or ``retrieval``, or a folder
            that the returned SentenceTransformer saved.
        device: the device of the model, such as "cuda:1". If None, a GPU is used if there is one; an export runs on the CPU.
        precision: "fp32", "bf16" or "fp16".
    """
    module = Embedder(_model_in(source, device, precision))
    wrapped = SentenceTransformer(modules=[module], device=str(module.model.runtime.device))
    wrapped._model_card_text = _card(module.model, "encoder")  # type: ignore[assignment]  # the default card is about texts
    return wrapped


def cross_encoder(
    source: LoadedModel | str | Path, *, device: str | None = None, precision: PrecisionName = "fp32"
) -> CrossEncoder:
    """Returns a CrossEncoder whose score is the matching head's probability that a text is about an image. Each pair consists of
    a text and an image, in any order. The arguments are those of :func:`encoder`."""
    module = PairScorer(_model_in(source, device, precision))
    wrapped = CrossEncoder(modules=[module], device=str(module.model.runtime.device))
    wrapped._model_card_text = _card(module.model, "cross_encoder")
    return wrapped


class _X2VLMModule(InputModule):
    """A model as a module of sentence-transformers. Its parameters move to other devices together with the whole model."""

    save_in_root = False

    def __init__(self, model: LoadedModel):
        super().__init__()
        self.model = model
        if isinstance(model.runtime, TorchRuntime):
            self.network = model.runtime.network  # registers the parameters of the network

    @property
    def modalities(self) -> list[Modality]:
        return [*MODALITIES]

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        """Writes the folder that :meth:`x2vlm.Model.save` writes, or a copy of an export."""
        if isinstance(self.model.runtime, TorchRuntime):
            save(self.model, Path(output_path))
        else:
            shutil.copytree(expanded(self.model.origin), output_path, dirs_exist_ok=True)

    @classmethod
    def load(  # type: ignore[override]  # sentence-transformers passes all arguments by name
        cls, model_name_or_path: str, subfolder: str = "", **options: Any
    ) -> Self:
        """Reads a folder written by :meth:`save`; called by sentence-transformers."""
        given = ("token", "cache_folder", "revision", "local_files_only")
        known = {name: options[name] for name in given if name in options}
        return cls(as_model(str(cls.load_dir_path(model_name_or_path, subfolder=subfolder, **known))))

    @abstractmethod
    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]: ...

    def _tokens(self, texts: Sequence[str], prompt: str | None) -> dict[str, Tensor]:
        text = self.model.tokens([(prompt or "") + each for each in texts])
        return {"ids": text.ids, "mask": text.mask}

    def _pixels(self, images: Sequence[Any]) -> dict[str, Pixels]:
        return {"pixels": self.model.pixels(self.model.views(images))}


class Embedder(_X2VLMModule):
    """Embeds a batch of texts, or of images."""

    def get_embedding_dimension(self) -> int:
        """Returns the size E of the embeddings."""
        return embedding_width(self.model)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Returns the tokens of a batch of texts, or the pixels of a batch of images. sentence-transformers rejects mixed
        batches.

        Raises:
            UserError: there are no inputs, a text has no words, or an image cannot be read.
        """
        if not inputs:
            raise UserError("no images or texts were given", remedy="pass at least one")
        (kind, *_), contents = zip(*(_part(each) for each in inputs), strict=True)
        return self._tokens(contents, prompt) if kind == "text" else self._pixels(contents)

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding`` (N, E)."""
        runtime = self.model.runtime
        with runtime.running():
            if "pixels" in features:
                embeddings = runtime.image_embeddings(features["pixels"])
            else:
                embeddings = runtime.text_embeddings(Text(features["ids"], features["mask"]))
        return {**features, "sentence_embedding": self.model.check_finite(embeddings)}


class PairScorer(_X2VLMModule):
    """Scores pairs of a text and an image. A text or image that occurs in several pairs of a batch is encoded only once."""

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Returns the tokens of the texts in a batch, the pixels of its images, and the indices of the text and image of each
        pair.

        Raises:
            UserError: there are no pairs, or a pair is not a text and an image.
        """
        if not inputs:
            raise UserError("no pairs were given", remedy="pass at least one")
        pairs = [_pair(each) for each in inputs]
        texts, text_index = _distinct((text, text) for text, _ in pairs)
        images, image_index = _distinct(
            (image if isinstance(image, str | Path) else id(image), image) for _, image in pairs
        )
        index = {"text_index": text_index, "image_index": image_index}
        return {**self._tokens(texts, prompt), **self._pixels(images), **index}

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Adds ``scores`` (N, 1), the log-odds that the text of each pair is about its image."""
        runtime = self.model.runtime
        text_rows, image_rows = features["text_index"].cpu(), features["image_index"].cpu()
        groups = [(image_rows == image).nonzero()[:, 0] for image in range(len(features["pixels"]))]
        with runtime.running():
            bank = TextBank.of([runtime.text_states(Text(features["ids"], features["mask"]))])
            states = runtime.image_states(features["pixels"])
            margins = torch.cat(runtime.margins(states, [text_rows[group] for group in groups], bank))
        order = torch.cat(groups).argsort().to(margins.device)
        return {**features, "scores": self.model.check_finite(margins)[order].unsqueeze(1)}


def _part(given: Any) -> tuple[Modality, Any]:
    """Returns the modality of an input, and the text or image itself."""
    if isinstance(given, Path) or (isinstance(given, str) and Path(given).suffix.lower() in IMAGE_SUFFIXES):
        if not os.path.isfile(given):  # Path.is_file raises an error for a name that is too long
            raise UserError("no such image", where=given, remedy="pass the path of an existing image")
        return "image", given
    try:
        kind = infer_modality(given, supported_modalities=[*MODALITIES])
    except ValueError as error:
        raise UserError(f"{str(given)[:60]!r} is neither a text nor an image: {str(error).splitlines()[0]}") from None
    if kind not in MODALITIES or isinstance(given, tuple | list):
        raise UserError(
            f"{str(given)[:60]!r} is neither a text nor an image, but {kind}", remedy="pass a text or an image"
        )
    content = given[kind] if isinstance(given, dict) else given
    if kind == "text" and not isinstance(content, str):
        raise UserError(f"the text in {str(given)[:60]!r} is not a string", remedy="pass texts as strings")
    return kind, content


def _pair(given: Any) -> tuple[str, Any]:
    """Returns the text and the image of a pair."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise UserError(f"{str(given)[:60]!r} is not a pair", remedy="pass a text and an image")
    parts = dict(_part(each) for each in given)
    if set(parts) != set(MODALITIES):
        (kind,) = parts
        raise UserError(
            f"{str(given)[:60]!r} has two {kind}s, but the matching head compares a text with an image",
            remedy="pass one of each",
        )
    return parts["text"], parts["image"]


def _distinct(named: Iterable[tuple[Hashable, Any]]) -> tuple[list[Any], Tensor]:
    """Returns the values with distinct names and, for each name, the index of its value."""
    pairs = list(named)
    values = dict(pairs)
    index = {name: row for row, name in enumerate(values)}
    return list(values.values()), torch.tensor([index[name] for name, _ in pairs])


def _model_in(source: LoadedModel | str | Path, device: str | None, precision: PrecisionName) -> LoadedModel:
    """Loads a model. If the source is a folder saved by sentence-transformers, loads the model inside this folder."""
    if isinstance(source, LoadedModel):
        if device is not None or precision != "fp32":
            raise UserError(
                "device and precision do not apply to a model that is already loaded", remedy="pass them to x2vlm.load"
            )
        return as_model(source)
    if str(source).startswith(HUB):
        return as_model(source, device=device, precision=precision)
    folder = expanded(source)
    if (folder / MODULES).is_file():
        inside = (folder / f"0_{kind.__name__}" for kind in (Embedder, PairScorer))
        folder = next((each for each in inside if each.is_dir()), folder)
    return as_model(folder, device=device, precision=precision)


def _card(model: LoadedModel, function: str) -> str:
    """Returns the card of a saved model."""
    usage = f'from x2vlm.integrations.sentence_transformers import {function}\n\nmodel = {function}("{{source}}")'
    return card(model, Path(model.origin).name, "sentence-transformers", "path/of/this/folder", usage)
