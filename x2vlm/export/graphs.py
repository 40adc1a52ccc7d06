"""Defines the graphs of an export as torch modules, and writes them as ONNX files. There are three graphs: the image encoder, the
text encoder, and the fusion encoder with its heads.

The modules perform the same computations as :mod:`x2vlm.runtime`, with texts padded as in :mod:`models.reference`: ONNX graphs
use padded tensors instead of packing. Axes: B images, S texts per image, N images or texts, L tokens, K = 1 + P states of an
image (the mean patch, then its patches), D width, E embedding.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models.core.hub_text import HubTextEncoder
from models.core.losses import at_least_float32
from models.core.vision import Concepts
from models.core.xvlm import XVLM
from models.inference.reranking import AligningModel
from models.pretraining.model import PretrainModel
from models.reference import Padded, add_and_norm, attend, encode
from models.tasks.grounding import GroundingModel
from utils.errors import UserError, reason_of
from utils.extras import require
from utils.image_size import NativeSize, sides_for
from x2vlm.export.files import (
    BOX,
    FUSION,
    IDS,
    IMAGE,
    IMAGE_EMBEDDING,
    IMAGE_MASK,
    IMAGE_STATES,
    MARGIN,
    MASK,
    PIXELS,
    TEXT,
    TEXT_EMBEDDING,
    TEXT_MASK,
    TEXT_STATES,
)
from x2vlm.runtime import TorchRuntime

MAX_SINGLE_FILE = 1_800_000_000
"""Maximum size of a graph's weights, in bytes, up to which the graph is written as one file. Protobuf limits files to 2 GiB."""

EXAMPLES = 3
"""Number of images in an example input. The dynamic axes of the input have different sizes, because the exporter can merge axes
of equal size."""

Axes = Mapping[int, Dim]


class ImageGraph(nn.Module):
    """Maps pixels (N, 3, H, W) uint8, or (N, F, 3, H, W) for videos, to states (N, K, D) and, if the model has them, embeddings
    (N, E). If images keep their aspect ratio, H and W are any multiples of the patch size."""

    def __init__(self, network: XVLM):
        super().__init__()
        self.vision = network.vision
        self.head = network.contrastive if isinstance(network, AligningModel) else None

    @property
    def outputs(self) -> list[str]:
        return [IMAGE_STATES] if self.head is None else [IMAGE_STATES, IMAGE_EMBEDDING]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        concepts = self._concepts(pixels)
        return (concepts.states(),) if self.head is None else (concepts.states(), self.head.embed_image(concepts))

    def _concepts(self, pixels: Tensor) -> Concepts:
        """Equivalent to :meth:`VisionEncoder.encode`, but independent of the number of images, which is dynamic in a graph."""
        if self.vision.config.video is None:
            return Concepts.whole(self.vision.patches(pixels))
        return self.vision.video(self.vision.patches(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2]))


class TextGraph(nn.Module):
    """Maps ids (N, L) int64 and a mask (N, L) bool, True = token, to states (N, L, D), which are undefined at padding, and to
    embeddings (N, E) if the model has them."""

    def __init__(self, network: XVLM):
        super().__init__()
        self.text = network.text
        self.head = network.contrastive if isinstance(network, AligningModel) else None

    @property
    def outputs(self) -> list[str]:
        return [TEXT_STATES] if self.head is None else [TEXT_STATES, TEXT_EMBEDDING]

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        states = self._states(ids, mask)
        if self.head is None:
            return (states,)
        return states, self.head.embed_text(Padded(states, mask))

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        if not isinstance(self.text, HubTextEncoder):
            return encode(self.text, ids, mask).states
        states: Tensor = self.text.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states if self.text.projection is None else self.text.projection(states)


class FusionGraph(nn.Module):
    """Maps text states (B, S, L, D) with their mask (B, S, L), and image states (B, K, D) with their mask (B, K), True = attend,
    to the margin (B, S), which is the log-odds that the text is about the image, and to the box (B, S, 4) of the text as centre
    and size in 0..1. Each output exists only if the model has a head for it.

    The keys and values of an image are projected once for all its texts, and the last block computes only [CLS].
    """

    def __init__(self, network: XVLM):
        super().__init__()
        self.fusion = network.fusion
        self.matching_head = network.matching_head if isinstance(network, AligningModel) else None
        self.box_head: nn.Module | None = None
        if isinstance(network, GroundingModel) and network.set_head is not None:
            raise UserError(
                "a box-set head cannot be exported", where="model.box_set", remedy="use the model without exporting it"
            )
        if isinstance(network, PretrainModel | GroundingModel):
            self.box_head = network.box_head

    @property
    def outputs(self) -> list[str]:
        heads = ((MARGIN, self.matching_head), (BOX, self.box_head))
        return [name for name, head in heads if head is not None]

    def forward(
        self, text_states: Tensor, text_mask: Tensor, image_states: Tensor, image_mask: Tensor
    ) -> tuple[Tensor, ...]:
        cls = self._cls(text_states, text_mask, Padded(image_states, image_mask))
        results = []
        if self.matching_head is not None:
            logits = at_least_float32(self.matching_head(cls))
            results.append(logits[..., 1] - logits[..., 0])
        if self.box_head is not None:
            results.append(self.box_head(cls))
        return tuple(results)

    def _cls(self, text_states: Tensor, text_mask: Tensor, images: Padded) -> Tensor:
        """Returns the fused states (B, S, D) of [CLS]."""
        batch, texts, _, width = text_states.shape
        states, mask = text_states.flatten(0, 1), text_mask.flatten(0, 1)
        blocks = self.fusion.blocks
        for block in blocks:
            queries = states[:, :1] if block is blocks[-1] else states
            states = attend(block.attention, queries, Padded(states, mask))
            assert block.crossattention is not None
            # The queries of all texts of an image are concatenated, so that the image's keys are needed only once.
            by_image = states.reshape(batch, -1, width)
            states = attend(block.crossattention, by_image, images).reshape(batch * texts, -1, width)
            states = add_and_norm(block.output, F.gelu(block.intermediate.dense(states)), states)
        return states.reshape(batch, texts, width)


def write_graphs(network: XVLM, folder: Path, name: str) -> None:
    """Writes the three graphs of a network into ``folder``. The network is on the CPU, in float32. Messages call it
    ``name``.

    Raises:
        UserError: a package is missing, or a component of the network cannot be exported.
    """
    write_image_graph(network, folder / IMAGE, name)
    write_text_graph(network, folder / TEXT, name)
    write_fusion_graph(network, folder / FUSION, name)


def write_image_graph(network: XVLM, path: Path, name: str) -> None:
    """Writes the graph of the image encoder. Raises the same errors as :func:`write_graphs`."""
    size, video = network.vision.config.image_size, network.vision.config.video
    frames = () if video is None else (video.frames,)
    axes: dict[int, Any] = {0: Dim("batch")}
    if isinstance(size, NativeSize):
        rows, columns = (Dim(name, min=1, max=size.max_patches) for name in ("rows", "columns"))
        axes |= {2: size.patch_size * rows, 3: size.patch_size * columns}
    pixels = torch.zeros(EXAMPLES, *frames, 3, *sides_for(size, 2, 3), dtype=torch.uint8)
    named = f"{name}: its image encoder ({network.config.vision.backbone})"
    _write(path, ImageGraph(network), {PIXELS: (pixels, axes)}, named)


def write_text_graph(network: XVLM, path: Path, name: str) -> None:
    """Writes the graph of the text encoder. Raises the same errors as :func:`write_graphs`."""
    text, shape = network.text, (EXAMPLES, 7)
    axes = {0: Dim("batch"), 1: Dim("length", max=text.longest_text)}
    ids, mask = torch.ones(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.bool)
    family = text.model.config.model_type if isinstance(text, HubTextEncoder) else text.arch.family
    _write(path, TextGraph(network), {IDS: (ids, axes), MASK: (mask, axes)}, f"{name}: its text encoder ({family})")


def write_fusion_graph(network: XVLM, path: Path, name: str) -> None:
    """Writes the graph of the fusion encoder with its heads. Raises the same errors as :func:`write_graphs`."""
    texts = torch.zeros(EXAMPLES, 2, 7, network.text.width)
    images = torch.zeros(EXAMPLES, *TorchRuntime(network, "fp32").state_shape)
    text_axes, image_axes = {0: Dim("batch"), 1: Dim("texts"), 2: Dim("length")}, {0: Dim("batch")}
    if isinstance(network.vision.config.image_size, NativeSize):
        image_axes[1] = Dim("states")
    inputs = {
        TEXT_STATES: (texts, text_axes),
        TEXT_MASK: (torch.ones(texts.shape[:3], dtype=torch.bool), text_axes),
        IMAGE_STATES: (images, image_axes),
        IMAGE_MASK: (torch.ones(images.shape[:2], dtype=torch.bool), image_axes),
    }
    _write(path, FusionGraph(network), inputs, f"{name}: its fusion encoder")


def _write(path: Path, graph: Any, inputs: Mapping[str, tuple[Tensor, Axes]], named: str) -> None:
    """Writes a graph. ``inputs`` contains example tensors with the names of their dynamic axes."""
    require_packages()
    tensors, axes = zip(*inputs.values(), strict=True)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(graph.eval(), tensors, dynamic_shapes=axes, strict=False)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(inputs),
                output_names=graph.outputs,
                dynamic_shapes=axes,
                verbose=False,
            )
            assert exported is not None
            _clean(exported.model)
            size = sum(each.numel() * each.element_size() for each in graph.state_dict().values())
            exported.save(path, external_data=size > MAX_SINGLE_FILE)
    except OSError:
        raise
    except Exception as error:  # torch's exporters raise many types of exceptions
        reason = reason_of(error)[:200]
        raise UserError(f"{named} cannot be exported to ONNX: {reason}", remedy="use it with torch") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the output, logs and warnings of torch and onnxscript. Errors are still raised as exceptions."""
    former = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(former)


def _clean(model: Any) -> None:
    """Removes the annotations of torch's exporter, which contain file paths of the exporting machine."""
    for component in _components(model):
        component.metadata_props.clear()
        component.doc_string = None


def _components(model: Any) -> Iterator[Any]:
    """Yields a model's graph, nodes and values."""
    graph = model.graph
    yield from (model, graph, *graph.inputs, *graph.outputs, *graph.initializers.values())
    for node in graph.all_nodes():
        yield from (node, *node.outputs)


def require_packages() -> None:
    """Checks that the packages for writing graphs are installed.

    Raises:
        UserError: a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "export", where="export")
