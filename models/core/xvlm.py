"""The encoders that all tasks share: the vision encoder, the text encoder and the fusion encoder (section 3 of the paper)."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from torch import Tensor, nn

from batches.images import Pixels
from batches.texts import Text
from models.config import ModelConfig
from models.core.fusion import FusionEncoder
from models.core.hub_text import build_text_encoder
from models.core.keys_values import KeysValues
from models.core.packing import PackedTexts
from models.core.vision import VisionEncoder
from models.flops import ModelCost


class XVLM(nn.Module):
    """The encoders of X²-VLM (section 3 of the paper). The model of each task adds its heads and ``forward(batch)``."""

    def __init__(self, config: ModelConfig, vocab_size: int | None = None):
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.text = build_text_encoder(config.text, vocab_size, config.fusion.width)
        self.fusion = FusionEncoder(config.fusion, self.text.block_config, self.vision.width)

    def encode(
        self, pixels: Pixels | None, text: Text, image_of_text: Tensor | None = None
    ) -> tuple[PackedTexts, KeysValues | None]:
        """Encodes N texts, and projects the images that they attend to into keys and values.

        Args:
            pixels: (I, 3, H, W), or (I, F, 3, H, W) for videos; if None, the texts do not attend to images.
            text: N texts.
            image_of_text: (N,) int64, the index of each text's image; if None, text n is about image n.
        """
        keys_values = None if pixels is None else self.fusion.project_concepts(self.vision(pixels))
        (texts,) = self.text([text])
        if keys_values is not None and image_of_text is not None:
            keys_values = keys_values.select(image_of_text)
        return texts, keys_values

    @cached_property
    def cost(self) -> ModelCost:
        """Coefficients from which the FLOPs of a step are computed."""
        return ModelCost.of(self)

    @property
    def chunks(self) -> int | Literal["step"]:
        """See :class:`engine.task.TaskModel`."""
        return self.config.chunks

    def copied_from(self) -> dict[str, str]:
        """Parameters that start as copies of other parameters, because a pre-training checkpoint does not contain them. Maps
        their names to the names of the copied parameters in the pre-training model."""
        return {}
