"""Small vision backbones with random weights, and the checks for each of them (docs/encoders.md)."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoints import initialise
from models.config import FusionConfig, InitConfig, PretrainModelConfig, TextArchitecture, TextConfig, VisionConfig
from models.core.vision import VisionEncoder
from models.pretraining.model import PretrainModel
from optim.config import LoraConfig
from optim.lora import DOWN, UP
from optim.setup import add_adapters, set_frozen
from tests.encoders.training import is_planned, learns
from x2vlm.export import graphs
from x2vlm.export.runtime import Graph
from x2vlm.runtime import TorchRuntime

WIDTH, HEADS, DEPTH = 32, 2, 3
TEXT = TextArchitecture(vocab_size=60, width=WIDTH, layers=2, heads=HEADS, intermediate=64, max_positions=32)
ATOL = 1e-5


@dataclass(frozen=True)
class VisionRow:
    """A row of the table.

    Attributes:
        title: name of the family.
        backbone: name of a timm model, or a model type of transformers, which is built from ``settings``.
        patch: side of a patch in pixels.
        settings: settings of a Hugging Face configuration; None for a timm model.
        sizes: False for a model with fixed widths.
    """

    title: str
    backbone: str
    patch: int = 16
    settings: dict[str, Any] | None = None
    sizes: bool = True

    @property
    def model(self) -> str:
        """The name shown on the page."""
        return self.backbone

    @property
    def library(self) -> str:
        return "timm" if self.settings is None else "transformers"

    def config(self, folder: Path, cells: int = 4, **changes: Any) -> VisionConfig:
        """The config of the small model, for a grid of ``cells`` x ``cells``. A Hugging Face configuration is written to the
        folder."""
        own = {} if self.sizes is False else {"width": WIDTH, "depth": DEPTH, "heads": HEADS}
        values = {"image_size": cells * self.patch, "drop_path": 0.0, **own, **changes}
        if self.settings is None:
            return VisionConfig(backbone=self.backbone, **values)
        write_hub_folder(self, folder)
        return VisionConfig(backbone=f"hf:{folder}", **values)


_SMALL = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 64}
ROWS = (
    VisionRow("BEiT-2", "beitv2_base_patch16_224"),
    VisionRow("ViT (CLIP)", "vit_base_patch16_clip_224"),
    VisionRow("DINOv2", "vit_small_patch14_dinov2", 14),
    VisionRow("DINOv2 with registers", "vit_small_patch14_reg4_dinov2", 14),
    VisionRow("DINOv3", "vit_small_patch16_dinov3"),
    VisionRow("SigLIP 2", "vit_base_patch16_siglip_224.v2_webli"),
    VisionRow("SigLIP 2, NaFlex", "naflexvit_base_patch16_siglip"),
    VisionRow("PE-Core", "vit_pe_core_base_patch16_224"),
    VisionRow("EVA-02", "eva02_tiny_patch14_224", 14),
    VisionRow("AIMv2", "aimv2_large_patch14_224", 14),
    VisionRow("ConvNeXt", "test_convnext", 32, sizes=False),
    VisionRow("ViT", "vit", settings={**_SMALL, "image_size": 64}),
    VisionRow("CLIP", "clip_vision_model", settings={**_SMALL, "image_size": 64, "patch_size": 16}),
    VisionRow("DINOv2", "dinov2", 14, settings={**_SMALL, "image_size": 56}),
    VisionRow(
        "DINOv2 with registers", "dinov2_with_registers", 14, settings={**_SMALL, "image_size": 56, "patch_size": 14}
    ),
    VisionRow("DINOv3", "dinov3_vit", settings={**_SMALL, "num_register_tokens": 4}),
    VisionRow("SigLIP", "siglip_vision_model", settings={**_SMALL, "image_size": 64}),
    VisionRow("SigLIP 2, NaFlex", "siglip2_vision_model", settings={**_SMALL, "num_patches": 16}),
    VisionRow("AIMv2", "aimv2_vision_model", 14, settings={**_SMALL, "image_size": 56}),
)


def write_hub_folder(row: VisionRow, folder: Path) -> None:
    """Writes the configuration of a row, with its preprocessing file."""
    settings = transformers.AutoConfig.for_model(row.backbone, **(row.settings or {}))
    settings.save_pretrained(folder)
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))


def encoder(config: VisionConfig, seed: int = 0) -> VisionEncoder:
    """A vision encoder with random weights that are large enough to show differences."""
    torch.manual_seed(seed)
    built = VisionEncoder(config)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return built.eval()


def pixels_of(config: VisionConfig, count: int = 2) -> Tensor:
    side = config.image_size
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def model_of(vision: VisionConfig) -> PretrainModel:
    torch.manual_seed(0)
    config = PretrainModelConfig(
        vision=vision,
        text=TextConfig(arch=TEXT, dropout=0, attention_dropout=0),
        fusion=FusionConfig(layers=1),
        embed_dim=16,
    )
    return PretrainModel(config)


def loads(row: VisionRow, folder: Path) -> None:
    """``init.vision`` accepts a file of the library's own weights: every parameter is loaded, and no tensor is unused."""
    config = row.config(folder)
    source = encoder(config, seed=3)
    file = folder / "weights.safetensors"
    save_file({name: value.clone() for name, value in source.backbone.state_dict().items()}, file)
    model = model_of(config)
    [report] = initialise(model, InitConfig(vision=str(file)))
    assert not report.fresh and not report.unused, (report.fresh[:3], report.unused[:3])
    _same_states(model.vision.eval(), source)


def _same_states(one: VisionEncoder, other: VisionEncoder) -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            one.patches(pixels_of(one.config)), other.patches(pixels_of(one.config)), atol=ATOL, rtol=1e-4
        )


@torch.no_grad()
def equals_the_library(row: VisionRow, folder: Path) -> None:
    """Compares with the states of the library's own model with the same weights, normalised per patch."""
    config = row.config(folder)
    built = encoder(config)
    library = library_model(row, built)
    if row.settings is None:
        library.load_state_dict(built.backbone.state_dict(), strict=False)
        statistics = library.default_cfg["mean"], library.default_cfg["std"]
    else:
        statistics = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    for buffer, own in zip((built.pixel_mean, built.pixel_std), statistics, strict=True):
        assert buffer.flatten().tolist() == pytest.approx(own)
    pixels = pixels_of(config)
    expected = states_of_library(row, library, built, pixels)
    torch.testing.assert_close(built.patches(pixels), expected, atol=ATOL, rtol=1e-4)


def library_model(row: VisionRow, built: VisionEncoder) -> Any:
    """The library's own model with the sizes of one of our encoders. A transformers model also gets its weights."""
    if row.settings is not None:
        library = transformers.AutoModel.from_config(built.backbone.config)
        library.load_state_dict(built.backbone.state_dict(), strict=False)
        return library.eval()
    own: dict[str, Any] = {}
    if row.sizes:
        own = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": built.config.image_size}
    return timm.create_model(row.backbone, num_classes=0, **own).eval()


def states_of_library(row: VisionRow, library: Any, built: VisionEncoder, pixels: Tensor) -> Tensor:
    """States (I, P, D) of the library's own model for pixels (I, 3, H, W), normalised per patch."""
    mean, std = built.pixel_mean, built.pixel_std
    normalised = (pixels / 255 - mean) / std
    if row.settings is None:
        states = library.forward_features(normalised)
        if states.dim() == 3:
            normed: Tensor = library.fc_norm(states[:, library.num_prefix_tokens :])
            return normed
        states = states if states.shape[1:3] == built.grid else states.permute(0, 2, 3, 1)
        norm, flat = getattr(library.head, "norm", None), states.flatten(1, 2)
        if norm is None:
            return flat
        return nn.functional.layer_norm(flat, flat.shape[-1:], norm.weight, norm.bias, norm.eps)
    inputs: dict[str, Any] = {"pixel_values": normalised}
    if row.backbone == "siglip2_vision_model":
        inputs = _by_the_processor(pixels, row.patch, mean, std)
    elif "interpolate_pos_encoding" in inspect.signature(library.forward).parameters:
        inputs["interpolate_pos_encoding"] = True
    states = library(**inputs).last_hidden_state
    rows, columns = built.grid
    patches: Tensor = states[:, states.shape[1] - rows * columns :]
    if row.backbone == "clip_vision_model":
        patches = library.post_layernorm(patches)
    return patches


def _by_the_processor(pixels: Tensor, patch: int, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The inputs of SigLIP 2 as its own image processor builds them."""
    made = transformers.Siglip2ImageProcessor(
        image_mean=mean.flatten().tolist(),
        image_std=std.flatten().tolist(),
        patch_size=patch,
        max_num_patches=(pixels.shape[-1] // patch) ** 2,
        do_resize=True,
    )(images=list(pixels), return_tensors="pt")
    return dict(made)


@torch.no_grad()
def resizes(row: VisionRow, folder: Path) -> None:
    """Weights for a 4 x 4 grid load into a model with a 6 x 6 grid, whose states equal the states of the library's own model. For
    timm, the expected tables are resized by timm's functions, without antialiasing, as in DINOv2."""
    small, large = row.config(folder), row.config(folder, cells=6)
    source = encoder(small, seed=3)
    model = model_of(large).eval()
    weights = {name: value.clone() for name, value in source.backbone.state_dict().items()}
    file = folder / "weights.safetensors"
    save_file(weights, file)
    [report] = initialise(model, InitConfig(vision=str(file)))
    assert not report.fresh and not report.unused
    pixels = pixels_of(large)
    library = library_model(row, source if row.settings is not None else model.vision)
    if row.settings is None:
        sizes = library.state_dict()
        for name, table in weights.items():
            if name.endswith("relative_position_bias_table"):
                weights[name] = timm.layers.resize_rel_pos_bias_table(table, (6, 6), sizes[name].shape)
            elif table.shape != sizes[name].shape:
                prefix = library.num_prefix_tokens if table.shape[1] > 16 else 0
                weights[name] = timm.layers.resample_abs_pos_embed(
                    table, [6, 6], num_prefix_tokens=prefix, antialias=False
                )
        library.load_state_dict(weights, strict=False)
    expected = states_of_library(row, library, model.vision, pixels)
    torch.testing.assert_close(model.vision.patches(pixels), expected, atol=ATOL, rtol=1e-4)


def freezes(row: VisionRow, folder: Path) -> None:
    """With frozen first blocks, states and gradients are the same with and without the feature cache."""
    config = row.config(folder)
    built = encoder(config).train()
    built.freeze_blocks(2)
    pixels = pixels_of(config)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        built.zero_grad()
        patches = built.patches(pixels)
        patches.square().sum().backward()
        return patches.detach(), {name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None}

    expected, gradients = run()
    frozen = {f"backbone.{name}" for name in built.vision_backbone.names_before(2)}
    blocks = {id(p) for block in built.vision_backbone.blocks[:2] for p in block.parameters()}
    assert blocks <= {id(p) for name, p in built.named_parameters() if name in frozen}
    assert gradients and not frozen & gradients.keys()
    built.keep_features(folder / "features", 10**9)
    for _ in range(2):  # computed first, then read from the cache
        patches, found = run()
        torch.testing.assert_close(patches, expected, atol=ATOL, rtol=1e-4)
        assert found.keys() == gradients.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, gradients[name], atol=1e-4, rtol=1e-3)


def adapts(row: VisionRow, folder: Path) -> None:
    """New adapters do not change the output, and each of them has a gradient."""
    model = model_of(row.config(folder)).eval()
    pixels = pixels_of(model.config.vision)
    with torch.no_grad():
        before = model.vision.patches(pixels)
    add_adapters(model, LoraConfig(rank=2, targets=["vision"]))
    after = model.vision.patches(pixels)
    torch.testing.assert_close(after, before, atol=ATOL, rtol=1e-4)
    after.square().sum().backward()
    trained = [name for name, p in model.vision.named_parameters() if p.requires_grad]
    assert trained and all(UP in name or DOWN in name for name in trained), trained[:3]
    assert all(p.grad is not None for p in model.vision.parameters() if p.requires_grad)


def recomputes(row: VisionRow, folder: Path) -> None:
    """Gradient checkpointing gives the same gradients."""
    config = row.config(folder)
    pixels, found = pixels_of(config), []
    for enabled in (False, True):
        built = encoder(config).train()
        built.set_gradient_checkpointing(enabled)
        built.patches(pixels).square().sum().backward()
        found.append({name: p.grad for name, p in built.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def compiles(row: VisionRow, folder: Path) -> None:
    """``torch.compile`` gives the same states without a graph break."""
    config = row.config(folder)
    built = encoder(config)
    pixels = pixels_of(config)
    expected = built.patches(pixels)
    built.compile_blocks(fullgraph=True)
    torch.testing.assert_close(built.patches(pixels), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def exports(row: VisionRow, folder: Path) -> None:
    """The ONNX graph gives the same states for one image and for several."""
    model = model_of(row.config(folder)).eval()
    graphs.write_image_graph(model, folder / "image.onnx", "x")
    graph, runtime = Graph(folder / "image.onnx"), TorchRuntime(model, "fp32")
    for count in (1, 3):
        pixels = pixels_of(model.config.vision, count)
        (states,) = graph("image_states", pixels=pixels)
        torch.testing.assert_close(states, runtime.image_states(pixels), atol=1e-4, rtol=1e-4)


def counts_flops(row: VisionRow, folder: Path) -> None:
    """The planned FLOPs of a step equal torch's count in a real step, frozen or not."""
    model = model_of(row.config(folder))
    vision = model.vision
    pixels = torch.randn(1, 3, vision.config.image_size, vision.config.image_size)
    for frozen in ([], ["vision"]):
        set_frozen(model, frozen)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            patches = vision.patches(pixels)
            if patches.requires_grad:
                patches.sum().backward()
        assert vision.vision_backbone.step_flops() == counter.get_total_flops(), frozen


def plans(row: VisionRow, folder: Path) -> None:
    """The planner runs a step of the model without allocating memory."""
    is_planned(lambda: model_of(row.config(folder)))


def trains(row: VisionRow, folder: Path) -> None:
    """Fifty pre-training steps; see :func:`learns`."""
    learns(model_of(row.config(folder)))


CELLS: dict[str, Callable[[VisionRow, Path], None]] = {
    "load": loads,
    "states": equals_the_library,
    "resize": resizes,
    "freeze": freezes,
    "LoRA": adapts,
    "recompute": recomputes,
    "compile": compiles,
    "ONNX": exports,
    "FLOPs": counts_flops,
    "plan": plans,
    "learns": trains,
}
