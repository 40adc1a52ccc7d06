"""Every loss of every stream, its divisor and its gradients, compared with :mod:`tests.models.oracle`, which shares no code with
the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from batches import LONG
from batches.base import IGNORE
from batches.pretraining import PretrainBatch, RegionBatch
from batches.texts import MaskedText
from benchmarks.synthetic import pretrain_batch
from models.pretraining.model import PretrainModel
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.models.oracle import Oracle
from tests.models.test_flops import MODEL, STREAMS
from tests.models.test_reference import ROBERTA, with_large_weights
from utils.config import load_config

LOSSES = ("contrastive", "matching", "mlm", "l1", "giou")
IGNORED = "model.contrastive.identical_texts={images: ignore, regions: ignore, translations: ignore}"
MIXES = {name: STREAMS[name] for name in ("hard negatives", "long captions", "videos", "frames")} | {
    "all": [*STREAMS["both"], *STREAMS["texts"][2:], *STREAMS["translations"][2:], *STREAMS["videos"][2:]],
    "hard negatives, equal texts ignored": [*STREAMS["hard negatives"], IGNORED],
    "translations of XLM-R": [*STREAMS["translations"], *ROBERTA],
    "a mean of states": [*STREAMS["both"], "model.contrastive.text=mean"],
    "the last state": [*STREAMS["hard negatives"], "model.contrastive.text=last"],
    "boxes of whole images": [*STREAMS["regions"], "loss.whole_image_boxes=true"],
    "other weights": [
        *STREAMS["both"],
        "data.regions.weight=3",
        "loss={contrastive: 0.5, matching: 2, mlm: 0.25, l1: 5, giou: 1.5}",
    ],
    "no words": [*STREAMS["hard negatives"], "loss={mlm: 0, giou: 0}"],
    "matching alone": [*STREAMS["both"], "loss={contrastive: 0, mlm: 0, l1: 0, giou: 0}"],
}


def oracle_of(model: PretrainModel, config: PretrainConfig, draws: list[torch.Tensor]) -> Oracle:
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.state_dict().items()}
    video = config.model.vision.video
    return Oracle(
        weights,
        vision_heads=config.model.vision.heads,
        text_heads=config.model.text.arch.heads,
        fusion_heads=config.model.fusion.heads,
        grid=model.vision.grid,
        same_group={name: stream.same_group for name, stream in model.streams.items()},
        draws=iter(draws),
        first_position=0 if config.model.text.arch.family == "bert" else config.model.text.arch.pad_id + 1,
        pools_frames=video is None or video.pooling == "mean",
        text_pooling=config.model.contrastive.text,
        eps=config.model.text.arch.eps,
        whole_image_boxes=config.loss.whole_image_boxes,
    )


def weight_of(config: PretrainConfig, name: str) -> float:
    """The weight of a loss of a stream in equation 6."""
    stream, loss = name.removeprefix(LONG).split("/")
    return getattr(config.data, stream).weight * getattr(config.loss, loss)


def varied(batch: PretrainBatch) -> PretrainBatch:
    """A copy of the batch in which the second example of each stream does not count, the last has the text id of the first, and
    regions describe whole images and several boxes, too."""
    changes: dict[str, Any] = {}
    for name, part in batch.by_stream().items():
        if name.startswith(LONG):
            continue
        fields: dict[str, Any] = {"valid": part.valid.clone(), "text": _with_repetition(part.text)}
        fields["valid"][1] = False
        fields["text"].labels[1] = IGNORE
        if isinstance(part, RegionBatch):
            fields |= {"is_image": part.is_image.clone(), "several_boxes": part.several_boxes.clone()}
            fields["is_image"][0] = fields["several_boxes"][2] = True
        if (hard := getattr(part, "hard_negatives", None)) is not None:
            hard_valid = hard.valid & fields["valid"][:, None]
            hard_valid[0, -1] = hard_valid[3, :] = False
            fields["hard_negatives"] = replace(hard, valid=hard_valid)
        if (long := getattr(part, "long", None)) is not None:
            fields["long"] = replace(long, valid=long.valid & fields["valid"] & (torch.arange(len(long.valid)) != 4))
            for row in (1, 4):
                fields["long"].text.labels[row] = IGNORE
        changes[name] = replace(part, **fields)
    return replace(batch, **changes)


def _with_repetition(text: MaskedText) -> MaskedText:
    ids = text.text_id.clone()
    ids[-1] = ids[0]
    return replace(text, text_id=ids, labels=text.labels.clone())


@pytest.fixture
def draws(monkeypatch) -> list[torch.Tensor]:
    """The noise that the model draws to sample negatives."""
    drawn: list[torch.Tensor] = []
    exponential = torch.Tensor.exponential_

    def recorded(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        drawn.append(exponential(tensor, *arguments, **options).clone())
        return tensor

    monkeypatch.setattr(torch.Tensor, "exponential_", recorded)
    return drawn


@pytest.mark.parametrize("mix", MIXES)
def test_losses_counts_and_gradients_equal_an_oracle_that_shares_nothing(mix, draws):
    config = load_config("configs/pretrain/base_4m.yaml", [*MODEL, *MIXES[mix]], PretrainConfig)
    torch.manual_seed(0)
    model = with_large_weights(PretrainTask.build_model(config, None)).double()
    batch = varied(pretrain_batch(config.data, model.vision, 300))
    found = model(batch)
    counts = model.counts(batch)
    torch.stack([term.weight * term.total / counts[name].clamp(min=1) for name, term in found.items()]).sum().backward()
    oracle = oracle_of(model, config, draws)
    streams = {name: batch.by_stream()[name] for name in model.streams if name in batch.by_stream()}
    weights = {name: weight_of(config, name) for name in (f"{stream}/{loss}" for stream in streams for loss in LOSSES)}
    expected = {name: pair for name, pair in oracle.losses(streams).items() if weights[name]}
    assert found.keys() == expected.keys()
    for name, (total, count) in expected.items():
        assert int(counts[name]) == count, name
        assert found[name].weight == weights[name], name
        torch.testing.assert_close(
            found[name].total, total, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.stack([weights[name] * total / max(1, count) for name, (total, count) in expected.items()]).sum().backward()
    for name, parameter in model.named_parameters():
        gradient, wanted = parameter.grad, oracle.weights[name].grad
        if wanted is None:
            assert gradient is None or not gradient.any(), name
            continue
        scale = float(wanted.abs().max().clamp(min=1))
        assert gradient is not None, name
        torch.testing.assert_close(
            gradient / scale, wanted / scale, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("mix", MIXES)
def test_no_gradient_is_added_in_an_arbitrary_order(mix):
    """On a GPU, the backward passes of these functions add with atomics."""
    config = load_config("configs/pretrain/base_4m.yaml", [*MODEL, *MIXES[mix]], PretrainConfig)
    model = PretrainTask.build_model(config, None)
    found = model(pretrain_batch(config.data, model.vision, 300))
    nodes, open_nodes = set(), [term.total.grad_fn for term in found.values()]
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            open_nodes += [following for following, _ in node.next_functions]
    names = {node.name() for node in nodes}
    assert "_SelectRowsBackward" in names
    assert not {name for name in names if name.startswith(("IndexSelect", "Gather", "Take", "ScatterAdd", "IndexAdd"))}
