"""Small text encoders with random weights, and the checks for each of them (docs/encoders.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from batches.texts import Text
from models.checkpoints import initialise
from models.config import FusionConfig, InitConfig, PretrainModelConfig, TextConfig, VisionConfig
from models.core.hub import model_class
from models.core.hub_text import HubTextEncoder, build_text_encoder
from models.core.text import TextEncoder
from models.pretraining.model import PretrainModel
from optim.config import LoraConfig
from optim.lora import DOWN, UP
from optim.setup import add_adapters, set_frozen
from tests.encoders.training import VOCABULARY, is_planned, learns
from x2vlm.export import graphs
from x2vlm.export.runtime import Graph
from x2vlm.runtime import TorchRuntime

WIDTH, WORDS, PAD, ATOL = 32, VOCABULARY, 1, 1e-5
VISION = VisionConfig(backbone="vit_tiny_patch16_224", image_size=32, width=WIDTH, depth=1, heads=2, drop_path=0.0)
_SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_BERT = {**_SMALL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_MODERN = {
    **_SMALL,
    "num_hidden_layers": 3,
    "local_attention": 4,
    "global_attn_every_n_layers": 2,
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
}


@dataclass(frozen=True)
class TextRow:
    """A row of the table: a family, the model type in transformers, and the settings of its configuration."""

    title: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The name shown on the page."""
        return self.model_type

    @property
    def library(self) -> str:
        return "our blocks" if self.model_type in ("bert", "roberta", "xlm-roberta") else "transformers"

    def config(self, folder: Path) -> TextConfig:
        """The config of the small encoder. Its Hugging Face configuration is written to the folder."""
        values = {"vocab_size": WORDS, "pad_token_id": PAD, **self.settings}
        transformers.AutoConfig.for_model(self.model_type, **values).save_pretrained(folder)
        return TextConfig(encoder=str(folder), arch=None, dropout=0.0, attention_dropout=0.0)


ROWS = (
    TextRow("BERT", "bert", {**_BERT, "max_position_embeddings": 64}),
    TextRow(
        "RoBERTa", "roberta", {**_BERT, "max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    ),
    TextRow(
        "XLM-R", "xlm-roberta", {**_BERT, "max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    ),
    TextRow("ModernBERT", "modernbert", _MODERN),
    TextRow(
        "mmBERT", "modernbert", {**_MODERN, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    ),
    TextRow(
        "DeBERTa-v3",
        "deberta-v2",
        {
            **_BERT,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
            "max_position_embeddings": 64,
        },
    ),
    TextRow("SigLIP 2", "siglip2_text_model", {**_SMALL, "max_position_embeddings": 64}),
    TextRow(
        "DistilBERT",
        "distilbert",
        {"dim": WIDTH, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64},
    ),
)


def encoder(config: TextConfig, seed: int = 0) -> TextEncoder | HubTextEncoder:
    """A text encoder with random weights that are large enough to show differences."""
    torch.manual_seed(seed)
    built = build_text_encoder(config, WORDS)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return built.eval()


def text_of(count: int = 3, length: int = 9) -> Text:
    """Random tokens, with padding after the end of each text except the first."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.randint(2, length + 1, (count, 1), generator=generator)
    ends[0] = length
    mask = torch.arange(length) < ends
    ids = torch.randint(PAD + 1, WORDS, (count, length), generator=generator).where(mask, torch.tensor(PAD))
    return Text(ids, mask, int(mask.sum()))


def model_of(text: TextConfig) -> PretrainModel:
    torch.manual_seed(0)
    fusion = FusionConfig(layers=1, width=WIDTH, heads=2, intermediate=64)
    return PretrainModel(PretrainModelConfig(vision=VISION, text=text, fusion=fusion, embed_dim=16), WORDS)


def library_model(row: TextRow, folder: Path) -> Any:
    """The library's own model with random weights, without its pooling head."""
    row.config(folder)
    torch.manual_seed(3)
    hub_config = transformers.AutoConfig.from_pretrained(folder)
    library: Any = model_class(hub_config)(hub_config)
    with torch.no_grad():
        for parameter in library.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return library.eval()


@torch.no_grad()
def equals_the_library(row: TextRow, folder: Path) -> None:
    """``init.text`` accepts a folder of the library, and the states of all tokens equal the states of the library's own model."""
    library = library_model(row, folder)
    library.save_pretrained(folder)
    model = model_of(row.config(folder)).eval()
    [report] = initialise(model, InitConfig(text=str(folder)))
    assert not [name for name in report.fresh if name.startswith("text.")], report.fresh[:3]
    text = text_of()
    expected = library(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state
    kept = text.mask.unsqueeze(2)
    [found] = model.text([text])
    torch.testing.assert_close(found.padded() * kept, expected * kept, atol=ATOL, rtol=1e-4)


@torch.no_grad()
def takes_long_texts(row: TextRow, folder: Path) -> None:
    """With ``max_positions``, the encoder accepts texts of 128 tokens instead of 64. The states of short texts do not change."""
    library = library_model(row, folder)
    library.save_pretrained(folder)
    model = model_of(row.config(folder).model_copy(update={"max_positions": 128})).eval()
    [report] = initialise(model, InitConfig(text=str(folder)))
    assert not [name for name in report.fresh if name.startswith("text.")], report.fresh[:3]
    assert (model.text.longest_text or 128) == 128
    text = text_of(length=18)
    expected = library(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state
    kept = text.mask.unsqueeze(2)
    [found] = model.text([text])
    torch.testing.assert_close(found.padded() * kept, expected * kept, atol=ATOL, rtol=1e-4)
    [long] = model.text([text_of(length=128)])
    assert long.padded().shape[1] == 128 and long.states.isfinite().all()


def word_tables(row: TextRow, folder: Path) -> None:
    """The word head can use the encoder's word table, or a separate one."""
    text = row.config(folder)
    tied = model_of(text)
    assert tied.word_head.decoder is None and tied.text.word_embeddings.shape[0] == WORDS
    config = tied.config.model_copy(update={"word_table": "own"})
    own = PretrainModel(config, WORDS).word_head.decoder
    assert own is not None and own.weight.shape[0] == WORDS


def fusion_uses_the_eps(row: TextRow, folder: Path) -> None:
    """The fusion's norms have the epsilon of the encoder's norms unless the config sets another value."""
    model = model_of(row.config(folder))
    own, fused = (
        {module.eps for module in part.modules() if isinstance(module, nn.LayerNorm)}
        for part in (model.text, model.fusion)
    )
    assert len(fused) == 1 and fused <= own, (own, fused)


def pools(row: TextRow, folder: Path) -> None:
    """A text is represented by its first token, the mean of its tokens, or its last token, independently of padding."""
    text = encoder(row.config(folder))
    batch = text_of()
    with torch.no_grad():
        [packed] = text([batch])
        for row_number, states in enumerate(packed.padded()):
            length = int(batch.mask[row_number].sum())
            alone = Text(
                batch.ids[row_number : row_number + 1, :length],
                batch.mask[row_number : row_number + 1, :length],
                length,
            )
            [single] = text([alone])
            torch.testing.assert_close(states[:length], single.padded()[0], atol=ATOL, rtol=1e-4)


def freezes(row: TextRow, folder: Path) -> None:
    """A frozen encoder has no gradients, but the fusion encoder after it has."""
    model = model_of(row.config(folder))
    set_frozen(model, ["text"])
    [packed] = model.text([text_of()])
    assert not packed.padded().requires_grad and not any(p.requires_grad for p in model.text.parameters())


def adapts(row: TextRow, folder: Path) -> None:
    """New adapters do not change the output, and each of them has a gradient."""
    model = model_of(row.config(folder)).eval()
    with torch.no_grad():
        before = model.text([text_of()])[0].padded()
    add_adapters(model, LoraConfig(rank=2, targets=["text"]))
    after = model.text([text_of()])[0].padded()
    torch.testing.assert_close(after, before, atol=ATOL, rtol=1e-4)
    after.square().sum().backward()
    trained = [name for name, p in model.text.named_parameters() if p.requires_grad]
    assert trained and all(UP in name or DOWN in name for name in trained), trained[:3]
    assert all(p.grad is not None for p in model.text.parameters() if p.requires_grad)


def recomputes(row: TextRow, folder: Path) -> None:
    """Gradient checkpointing gives the same gradients."""
    found = []
    for enabled in (False, True):
        text = encoder(row.config(folder)).train()
        for part in [text.encoder] if isinstance(text, TextEncoder) else [text]:
            part.set_gradient_checkpointing(enabled)
        text([text_of()])[0].padded().square().sum().backward()
        found.append({name: p.grad for name, p in text.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def compiles(row: TextRow, folder: Path) -> None:
    """``torch.compile`` gives the same states at several lengths."""
    text = encoder(row.config(folder))
    expected = [text([text_of(length=length)])[0].padded() for length in (9, 13)]
    for part in [text.encoder] if isinstance(text, TextEncoder) else [text]:
        part.compile_blocks()
    for length, states in zip((9, 13), expected, strict=True):
        torch.testing.assert_close(text([text_of(length=length)])[0].padded(), states, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def exports(row: TextRow, folder: Path) -> None:
    """The ONNX graph gives the same states for one text and for several texts of any length."""
    model = model_of(row.config(folder)).eval()
    graphs.write_text_graph(model, folder / "text.onnx", "x")
    graph, runtime = Graph(folder / "text.onnx"), TorchRuntime(model, "fp32")
    for count, length in ((1, 2), (3, 9), (2, 20)):
        text = text_of(count, length)
        (states,) = graph("text_states", ids=text.ids, mask=text.mask)
        kept = text.mask.unsqueeze(2)
        torch.testing.assert_close(states * kept, runtime.text_states(text).padded() * kept, atol=1e-4, rtol=1e-4)


def counts_flops(row: TextRow, folder: Path) -> None:
    """The planned FLOPs of a step equal torch's count in a real step, for texts without padding."""
    model = model_of(row.config(folder))
    text = Text(torch.randint(PAD + 1, WORDS, (1, 21)), torch.ones(1, 21, dtype=torch.bool), 21)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.text([text])[0].padded().sum().backward()
    assert model.cost.encode_texts(np.array([21])) == pytest.approx(counter.get_total_flops(), rel=0.01)


def plans(row: TextRow, folder: Path) -> None:
    """The planner runs a step of the model without allocating memory."""
    is_planned(lambda: model_of(row.config(folder)))


def trains(row: TextRow, folder: Path) -> None:
    """Fifty pre-training steps; see :func:`learns`."""
    learns(model_of(row.config(folder)))


CELLS: dict[str, Callable[[TextRow, Path], None]] = {
    "load, states": equals_the_library,
    "long texts": takes_long_texts,
    "word table": word_tables,
    "eps": fusion_uses_the_eps,
    "pooling": pools,
    "freeze": freezes,
    "LoRA": adapts,
    "recompute": recomputes,
    "compile": compiles,
    "ONNX": exports,
    "FLOPs": counts_flops,
    "plan": plans,
    "learns": trains,
}
