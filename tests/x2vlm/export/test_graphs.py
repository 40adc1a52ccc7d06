"""Each part of a model, for all families that configs name, gives the same results as a graph at any size."""

from __future__ import annotations

import json

import pytest
import torch

from batches.texts import Text
from models.config import (
    AligningConfig,
    ContrastiveConfig,
    FusionConfig,
    TextArchitecture,
    TextConfig,
    VideoConfig,
    VisionConfig,
)
from models.core.packing import PackedTexts, Packing
from models.core.vision import Concepts
from models.inference.reranking import TextBank
from models.tasks.retrieval import RetrievalModel
from x2vlm import UserError
from x2vlm.export import graphs
from x2vlm.export.runtime import Graph
from x2vlm.runtime import TorchRuntime

pytestmark = pytest.mark.slow

WIDTH, WORDS, PAD = 32, 50, 1
BERT = TextArchitecture(vocab_size=WORDS, width=WIDTH, layers=2, heads=2, intermediate=64, max_positions=64, pad_id=PAD)
BACKBONES = {
    "beit": VisionConfig(backbone="beitv2_base_patch16_224", image_size=32, width=WIDTH, depth=2, heads=2),
    "sincos": VisionConfig(
        backbone="beitv2_base_patch16_224",
        image_size=32,
        width=WIDTH,
        depth=1,
        heads=2,
        positions="sincos",
        patch_positions=True,
    ),
    "dinov2": VisionConfig(backbone="vit_small_patch14_dinov2", image_size=28, width=WIDTH, depth=2, heads=2),
    "siglip": VisionConfig(backbone="vit_base_patch16_siglip_224", image_size=32, width=WIDTH, depth=2, heads=2),
    "eva02": VisionConfig(backbone="eva02_tiny_patch14_224", image_size=28, width=WIDTH, depth=2, heads=2),
    "video": VisionConfig(image_size=32, width=WIDTH, depth=1, heads=2, video=VideoConfig(frames=2)),
    "video tokens": VisionConfig(
        image_size=32, width=WIDTH, depth=1, heads=2, video=VideoConfig(frames=2, pooling="tokens")
    ),
}
HUB = {
    "distilbert": {"dim": WIDTH, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64},
    "modernbert": {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "local_attention": 4,
        "global_attn_every_n_layers": 2,
    },
    "deberta-v2": {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
}


def network(
    vision: str = "beit", text: TextConfig | None = None, contrastive: ContrastiveConfig | None = None, **fusion: int
) -> RetrievalModel:
    """A model with random weights that are large enough to show differences."""
    torch.manual_seed(0)
    config = AligningConfig(
        vision=BACKBONES[vision],
        text=text or TextConfig(arch=BERT),
        fusion=FusionConfig(layers=2, **fusion),
        embed_dim=16,
        contrastive=contrastive or ContrastiveConfig(),
    )
    built = RetrievalModel(config, WORDS).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def texts_of(count: int, length: int) -> Text:
    """Random tokens, with padding after the end of each text except the first."""
    mask = torch.arange(length) < torch.randint(1, length + 1, (count, 1)).index_fill(0, torch.tensor([0]), length)
    ids = torch.randint(PAD + 1, WORDS, (count, length)).where(mask, torch.tensor(PAD))
    return Text(ids, mask, int(mask.sum()))


@pytest.mark.parametrize("vision", BACKBONES)
@torch.no_grad()
def test_graphs_of_every_backbone_encode_images(vision, tmp_path):
    model = network(vision)
    graphs.write_image_graph(model, tmp_path / "image.onnx", "x")
    graph, runtime = Graph(tmp_path / "image.onnx"), TorchRuntime(model, "fp32")
    side, frames = model.config.vision.image_size, model.config.vision.video
    for count in (1, 2, 5):
        pixels = torch.randint(0, 256, (count, *([frames.frames] if frames else []), 3, side, side), dtype=torch.uint8)
        states, embeddings = graph("image_states", "image_embedding", pixels=pixels)
        torch.testing.assert_close(states, runtime.image_states(pixels).states(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(embeddings, runtime.image_embeddings(pixels), atol=1e-4, rtol=0)
        assert states.shape[1:] == runtime.state_shape


def hub_text(kind: str, folder) -> TextConfig:
    values = {"model_type": kind, "vocab_size": WORDS, "pad_token_id": PAD, **HUB[kind]}
    (folder / "config.json").write_text(json.dumps(values))
    return TextConfig(encoder=str(folder), arch=None)


def text_config(kind: str, folder) -> TextConfig:
    if kind in HUB:
        return hub_text(kind, folder)
    return TextConfig(arch=BERT.model_copy(update={"family": "roberta" if kind == "xlm-roberta" else "bert"}))


@pytest.mark.parametrize(
    ("kind", "represented"), [*((kind, "cls") for kind in ("bert", "xlm-roberta", *HUB)), ("bert", "mean")]
)
@torch.no_grad()
def test_graphs_of_every_text_family_encode_any_length(kind, represented, tmp_path):
    model = network(text=text_config(kind, tmp_path), contrastive=ContrastiveConfig(text=represented))
    graphs.write_text_graph(model, tmp_path / "text.onnx", "x")
    graph, runtime = Graph(tmp_path / "text.onnx"), TorchRuntime(model, "fp32")
    for count, length in ((1, 1), (1, 8), (2, 2), (3, 5), (4, 13), (2, 40)):
        text = texts_of(count, length)
        states, embeddings = graph("text_states", "text_embedding", ids=text.ids, mask=text.mask)
        kept = text.mask.unsqueeze(2)
        torch.testing.assert_close(states * kept, runtime.text_states(text).padded() * kept, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(embeddings, runtime.text_embeddings(text), atol=1e-4, rtol=0)


@torch.no_grad()
def test_graphs_fuse_any_number_of_images_texts_and_tokens(tmp_path):
    """The fusion is narrower than its images, and text states are projected to its width."""
    model = network(width=16, heads=2, intermediate=32)
    graphs.write_text_graph(model, tmp_path / "text.onnx", "x")
    graphs.write_fusion_graph(model, tmp_path / "fusion.onnx", "x")
    encode, graph = Graph(tmp_path / "text.onnx"), Graph(tmp_path / "fusion.onnx")
    runtime = TorchRuntime(model, "fp32")
    for count, texts, length in ((1, 1, 1), (1, 4, 7), (2, 1, 8), (3, 2, 5), (2, 3, 40)):
        text, images = texts_of(count * texts, length), torch.randn(count, *runtime.state_shape)
        (states,) = encode("text_states", ids=text.ids, mask=text.mask)
        (found,) = graph(
            "margin",
            text_states=states.unflatten(0, (count, texts)),
            text_mask=text.mask.unflatten(0, (count, texts)),
            image_states=images,
            image_mask=torch.ones(images.shape[:2], dtype=torch.bool),
        )
        bank = TextBank.of([runtime.text_states(text)])
        expected = runtime.margins(Concepts.of_states(images), list(torch.arange(count * texts).split(texts)), bank)
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)


@torch.no_grad()
def test_masked_image_states_are_not_seen(tmp_path):
    model = network()
    graphs.write_fusion_graph(model, tmp_path / "fusion.onnx", "x")
    graph, (keys, width) = Graph(tmp_path / "fusion.onnx"), TorchRuntime(model, "fp32").state_shape
    texts, images = torch.randn(2, 1, 3, width), torch.randn(2, keys, width)
    mask = torch.rand(2, keys) < 0.5
    mask[:, 0] = True

    def margin(images: torch.Tensor) -> torch.Tensor:
        return graph(
            "margin",
            text_states=texts,
            text_mask=torch.ones(2, 1, 3, dtype=torch.bool),
            image_states=images,
            image_mask=mask,
        )[0]

    noise = 10 * torch.randn_like(images)
    torch.testing.assert_close(margin(images + noise * ~mask.unsqueeze(2)), margin(images), atol=1e-5, rtol=0)
    assert not torch.allclose(margin(images + noise * mask.unsqueeze(2)), margin(images), atol=1e-3)


@torch.no_grad()
def test_weights_too_large_for_one_file_are_stored_next_to_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_SINGLE_FILE", 1000)
    model, text = network(), texts_of(2, 5)
    graphs.write_text_graph(model, tmp_path / "text.onnx", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.onnx", "text.onnx.data"]
    moved = (tmp_path / "text.onnx").parent.rename(tmp_path.with_name("moved"))
    (found,) = Graph(moved / "text.onnx")("text_embedding", ids=text.ids, mask=text.mask)
    torch.testing.assert_close(found, TorchRuntime(model, "fp32").text_embeddings(text), atol=1e-4, rtol=0)


def test_a_part_that_cannot_be_exported_is_reported_in_one_line(tmp_path, monkeypatch, capfd):
    def of_its_contents(ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, WIDTH) if ids.sum() > 3 else torch.ones(*ids.shape, WIDTH)

    model = network()
    monkeypatch.setattr(model.text.embeddings, "forward", of_its_contents)
    reported = r"^x: its text encoder \(bert\) cannot be exported to ONNX: .*; use it with torch$"
    with pytest.raises(UserError, match=reported) as raised:
        graphs.write_text_graph(model, tmp_path / "text.onnx", "x")
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_gives_the_same_results_for_packed_and_padded_texts():
    """The values that the runtime passes to a graph after the end of a text are finite."""
    states, packing = torch.randn(4, 3), Packing.of(torch.tensor([3, 1]), 3)
    padded = PackedTexts(states, packing).padded()
    assert padded.isfinite().all() and packing.mask.tolist() == [[True, True, True], [True, False, False]]
