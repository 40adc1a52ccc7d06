"""X²-VLM as a model and a processor for transformers, for models trained with task ``pretrain``, ``retrieval`` or ``grounding``.

This module becomes the last section of the modelling file that :mod:`x2vlm.integrations.transformers.writing` writes. Training
does not use it. Axes: N images, M texts, L tokens, K = 1 + P states of an image (the mean patch, then its patches), D width, E
embedding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from transformers import BatchFeature, PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import ModelOutput

from dataset.config import TextLimits
from dataset.media.augment import resize
from dataset.media.encoded import rgb_of
from dataset.text.processors import PlainTextProcessor, clean_caption
from models.config import AligningConfig
from models.core.contrastive import ContrastiveHead
from models.core.fusion import FusionEncoder
from models.core.heads import BoxHead
from models.core.hub_text import HubTextEncoder, build_text_encoder
from models.core.losses import at_least_float32
from models.core.matching import MatchingHead
from models.core.vision import Concepts, VisionEncoder
from models.reference import Padded, add_and_norm, attend, encode
from utils.printing import is_unicode

HEADS = ("contrastive", "matching", "box")
ALLOWED_OPTIONS: dict[str, Sequence[Any]] = {
    "return_tensors": ("pt", None),
    "padding": (True, "longest"),
    "truncation": (True, None),
}
"""Options of the processor, each with its allowed values, which describe what the processor always does."""


class X2VLMConfig(PretrainedConfig):
    """The sizes of an X²-VLM.

    Args:
        model: the section ``model`` of the config with which the model was trained.
        heads: the heads of the model, from :data:`HEADS`.
        encoder_configs: configurations of encoders from transformers, for ``vision`` and ``text``.
    """

    model_type = "x2vlm"

    def __init__(
        self,
        model: Mapping[str, Any] | None = None,
        heads: Sequence[str] = HEADS,
        encoder_configs: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ):
        self.model = dict(model or {})
        self.heads = list(heads)
        self.encoder_configs = dict(encoder_configs or {})
        super().__init__(**options)


@dataclass
class X2VLMOutput(ModelOutput):
    """Results of an X²-VLM for N images and M texts.

    Attributes:
        image_embeds: (N, E), embeddings of images, of length 1.
        text_embeds: (M, E), embeddings of texts, of length 1.
        logits_per_image: (N, M), cosines divided by the temperature.
        logits_per_text: (M, N), the transpose of ``logits_per_image``.
        matching_logits: (N, M), the log-odds of the matching head that text m is about image n.
        boxes: (N, M, 4), the box of text m in image n: centre and size, relative to the image.
        vision_states: (N, K, D), states that can be passed to a later call instead of pixels.
    """

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    matching_logits: Tensor | None = None
    boxes: Tensor | None = None
    vision_states: Tensor | None = None


class X2VLMModel(PreTrainedModel):
    """The encoders of X²-VLM and its contrastive, matching and box heads (section 3 of arXiv:2211.12402)."""

    config_class = X2VLMConfig
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012  # declared in the same way as in transformers

    def __init__(self, config: X2VLMConfig):
        super().__init__(config)
        with _encoder_folders(config.encoder_configs) as folders:
            sizes = AligningConfig.model_validate(_with_folders(config.model, folders))
            self.vision = VisionEncoder(sizes.vision)
            self.text = build_text_encoder(sizes.text, None, sizes.fusion.width)
        self.fusion = FusionEncoder(sizes.fusion, self.text.block_config, self.vision.width)
        self.contrastive = self.matching_head = self.box_head = None
        if "contrastive" in config.heads:
            self.contrastive = ContrastiveHead(sizes, self.vision.width, self.text.width)
        if "matching" in config.heads:
            self.matching_head = MatchingHead(self.text.width)
        if "box" in config.heads:
            self.box_head = BoxHead(self.text.width)
        for module in self.modules():
            # transformers does not initialise buffers that are not in the weight file.
            module._non_persistent_buffers_set.clear()
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The modules initialise themselves."""

    def get_vision_states(self, pixel_values: Tensor) -> Tensor:
        """Returns the states (N, K, D) of images (N, 3, S, S), either float, normalised as by the processor, or uint8."""
        pixels = pixel_values if pixel_values.dtype == torch.uint8 else pixel_values.to(self.dtype)
        states: Tensor = self.vision(pixels).states()
        return states

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Returns the embeddings (N, E) of images (N, 3, S, S), of length 1."""
        return self._embedded(self.get_vision_states(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Returns the embeddings (M, E) of texts (M, L), of length 1."""
        return self._head.embed_text(Padded(*self._text_states(input_ids, attention_mask)))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        vision_states: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> X2VLMOutput | tuple[Tensor, ...]:
        """Compares all images with all texts.

        Args:
            pixel_values: (N, 3, S, S), as the processor returns them; not needed with ``vision_states``.
            input_ids: (M, L).
            attention_mask: (M, L), 1 = token, 0 = padding; if None, there is no padding.
            vision_states: (N, K, D), from :meth:`get_vision_states` or an earlier call.
            return_dict: if False, a tuple is returned.
        """
        if vision_states is None:
            if pixel_values is None:
                raise ValueError("neither pixel_values nor vision_states is given; pass one of them")
            vision_states = self.get_vision_states(pixel_values)
        found: dict[str, Tensor] = {"vision_states": vision_states}
        if self.contrastive is not None:
            found["image_embeds"] = self._embedded(vision_states)
        if input_ids is not None:
            states, mask = self._text_states(input_ids, attention_mask)
            if self.contrastive is not None:
                found["text_embeds"] = self.contrastive.embed_text(Padded(states, mask))
                cosines = found["image_embeds"] @ found["text_embeds"].T
                found["logits_per_image"] = cosines / self.contrastive.temperature
                found["logits_per_text"] = found["logits_per_image"].T
            cls = self._fused_cls(states, mask, vision_states)
            if self.matching_head is not None:
                logits = at_least_float32(self.matching_head(cls))
                found["matching_logits"] = logits[..., 1] - logits[..., 0]
            if self.box_head is not None:
                found["boxes"] = self.box_head(cls)
        output = X2VLMOutput(**found)
        return output.to_tuple() if return_dict is False else output

    @property
    def _head(self) -> ContrastiveHead:
        if self.contrastive is None:
            raise ValueError("this model has no contrastive head and therefore no embeddings")
        return self.contrastive

    def _embedded(self, vision_states: Tensor) -> Tensor:
        return self._head.embed_image(Concepts(vision_states[:, 1:], vision_states[:, 0]))

    def _text_states(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the states (M, L, D) of texts and their mask (M, L) bool."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not isinstance(self.text, HubTextEncoder):
            return encode(self.text, input_ids, mask.bool()).states, mask.bool()
        states: Tensor = self.text.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        return states if self.text.projection is None else self.text.projection(states), mask.bool()

    def _fused_cls(self, text_states: Tensor, text_mask: Tensor, vision_states: Tensor) -> Tensor:
        """Returns the fused states (N, M, D) of [CLS] of all texts with all images."""
        images, texts, width = len(vision_states), len(text_states), text_states.shape[2]
        states, mask = text_states.repeat(images, 1, 1), text_mask.repeat(images, 1)
        for block in self.fusion.blocks:
            queries = states[:, :1] if block is self.fusion.blocks[-1] else states
            states = attend(block.attention, queries, Padded(states, mask))
            assert block.crossattention is not None
            # The queries of all texts are concatenated, so that the keys of an image are needed only once.
            by_image = states.reshape(images, -1, width)
            states = attend(block.crossattention, by_image, Padded(vision_states)).reshape(images * texts, -1, width)
            states = add_and_norm(block.output, F.gelu(block.intermediate.dense(states)), states)
        return states.reshape(images, texts, width)


class X2VLMProcessor(ProcessorMixin):
    """Converts images and texts to the inputs of an X²-VLM, as in training.

    Args:
        tokenizer: tokenizer of the model.
        image_size: height and width of ``pixel_values``.
        pixel_mean, pixel_std: mean and standard deviation of each colour, which normalise pixels in 0..1.
        max_tokens, max_words: maximum lengths to which texts are truncated.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        image_size: Sequence[int] = (224, 224),
        pixel_mean: Sequence[float] = (0.0, 0.0, 0.0),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        max_tokens: int = 30,
        max_words: int | None = None,
        **options: Any,
    ):
        super().__init__(tokenizer=tokenizer)
        self.image_size = (image_size[0], image_size[1])
        self.pixel_mean, self.pixel_std = list(pixel_mean), list(pixel_std)
        self.max_tokens, self.max_words = max_tokens, max_words

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Returns ``pixel_values`` (N, 3, S, S) float32 of images, and ``input_ids`` and ``attention_mask`` (M, L) of texts.

        Args:
            images: an image or a list of images: Pillow images, paths, or uint8 arrays (H, W, 3).
            text: a text, or a list of texts.
            options: only ``return_tensors="pt"``, ``padding=True`` and ``truncation=True`` are allowed; they describe what the
                processor always does.

        Raises:
            ValueError: nothing is given, a text has no words or is not valid Unicode, an image is None or has no pixels, or an
                option has a different value.
        """
        for name, value in options.items():
            if value not in ALLOWED_OPTIONS.get(name, ()):
                raise ValueError(f"{name} = {value!r} is not supported; omit it")
        data: dict[str, Tensor] = {}
        if images is not None:
            listed = list(images) if isinstance(images, list | tuple) else [images]
            if not listed:
                raise ValueError("the list of images is empty")
            data["pixel_values"] = torch.stack([self._pixels(image) for image in listed])
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if not texts or any(not isinstance(each, str) for each in texts):
                raise ValueError("text is neither a string nor a list of strings")
            if wrong := [each for each in texts if not is_unicode(each)]:
                raise ValueError(f"the text {wrong[0]!r} is not valid Unicode; check the encoding of its source")
            limits = TextLimits(max_tokens=self.max_tokens, max_words=self.max_words)
            words = PlainTextProcessor(self.tokenizer, limits)
            cleaned = [clean_caption(each, words.max_words) for each in texts]
            encoded = words.encode_plain(cleaned)
            data |= {"input_ids": encoded.ids, "attention_mask": encoded.mask.long()}
        if not data:
            raise ValueError("neither images nor text is given; pass one of them")
        return BatchFeature(data)

    def _pixels(self, image: Any) -> Tensor:
        """Returns the pixels of an image, normalised as in the vision encoder."""
        if image is None:
            raise ValueError("an image is None; pass a Pillow image, a path or an array")
        if isinstance(image, str | Path):
            image = Image.open(image)
        elif not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image))
        if not image.width or not image.height:
            raise ValueError(
                f"an image has {image.width} x {image.height} pixels; pass an image with at least one pixel"
            )
        shown = rgb_of(ImageOps.exif_transpose(image), on_white=True)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (self.pixel_mean, self.pixel_std))
        return (resize(shown, self.image_size).float() / 255 - mean) / std


@contextmanager
def _encoder_folders(configs: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Path]]:
    """Context manager that creates folders with the configurations of encoders, from which the encoders are built."""
    with tempfile.TemporaryDirectory() as name:
        folders = {part: Path(name, part) for part in configs}
        for part, folder in folders.items():
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(configs[part]), encoding="utf-8")
        yield folders


def _with_folders(model: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    """Returns the section ``model`` in which the encoders refer to these folders."""
    result = {part: dict(value) if isinstance(value, Mapping) else value for part, value in model.items()}
    if "vision" in folders:
        result["vision"]["backbone"] = f"hf:{folders['vision']}"
    if "text" in folders:
        result["text"]["encoder"] = str(folders["text"])
    return result
