"""The packed path compared with the reference path: packed texts, shared keys and one pass give the same numbers as padding and
copying."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from batches.base import map_tensors
from batches.losses import Losses, weighted_sum
from batches.pretraining import PretrainBatch
from batches.texts import MaskedText
from benchmarks.plain_path import plain_losses
from benchmarks.pretrain_step import build
from benchmarks.synthetic import pretrain_batch
from models.core import packing
from models.pretraining.model import PretrainModel
from models.reference import reference_losses
from optim.setup import set_gradient_checkpointing
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.devices import BOUNDS, ON_REAL_DEVICES, bf16, copied_to, flattened, moved, relative_error
from tests.models.golden import in_float64
from tests.models.test_flops import MODEL, STREAMS
from utils.config import load_config


@pytest.fixture(scope="module")
def on_cpu() -> tuple[PretrainModel, PretrainBatch]:
    torch.manual_seed(0)
    model, batch = build(small=True)
    return with_large_weights(model), batch


@pytest.fixture
def built(on_cpu, device) -> tuple[PretrainModel, PretrainBatch]:
    model, batch = on_cpu
    return copied_to(device, model), moved(batch, device)


def with_large_weights(model: PretrainModel) -> PretrainModel:
    """Scales up fresh weights, which would hide mistakes in parts that hardly matter yet."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        model.contrastive.temperature.fill_(0.07)
    return model.eval()


def gradients(model: PretrainModel, losses: Losses) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.stack([term.weight * term.total for term in losses.values()]).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equals_reference(model: PretrainModel, batch: PretrainBatch, reference: PretrainBatch) -> None:
    torch.manual_seed(1)
    expected = plain_losses(model, reference)
    expected_gradients = gradients(model, expected)
    torch.manual_seed(1)
    found = model(batch)
    found_gradients = gradients(model, found)
    bound = BOUNDS[model.matching_head[0].weight.device.type]
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(found[name].total, term.total, rtol=bound, atol=bound)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = float(gradient.abs().max().clamp(min=1))
        torch.testing.assert_close(found_gradients[name] / scale, gradient / scale, rtol=0, atol=bound, msg=name)


def test_the_reference_returns_the_loss_of_the_step(built, monkeypatch):
    """This is equation 6."""
    model, batch = built
    for factor, stream in enumerate(model.streams.values(), start=2):
        weights = {loss: factor / (3 + index) for index, loss in enumerate(stream.weights)}
        monkeypatch.setattr(stream, "weights", weights)
    torch.manual_seed(1)
    expected, terms = reference_losses(model, batch)
    torch.manual_seed(1)
    counts = {name: count.clamp(min=1) for name, count in model.counts(batch).items()}
    averages, loss = weighted_sum(model(batch), counts)
    bound = BOUNDS[loss.device.type]
    torch.testing.assert_close(loss, expected, rtol=bound, atol=bound)
    assert len(averages) == len(terms)
    by_hand = sum(term.weight * term.total / counts[name] for name, term in terms.items())
    torch.testing.assert_close(expected, by_hand)


def with_counts(text: MaskedText, extra: int) -> MaskedText:
    """A copy of the text with counts that the host knows; each count is ``extra`` too large."""
    return replace(text, token_count=int(text.mask.sum()) + extra, masked_count=int(text.labels.ne(-100).sum()) + extra)


def test_losses_and_gradients_equal_the_reference_path(built):
    model, batch = built
    assert_equals_reference(model, batch, batch)


def test_paths_agree_if_a_text_is_the_mean_of_its_states(built, monkeypatch):
    model, batch = built
    mean = model.contrastive.config.model_copy(update={"text": "mean"})
    monkeypatch.setattr(model.contrastive, "config", mean)
    assert_equals_reference(model, batch, batch)


@pytest.mark.parametrize("extra", [0, 5])
def test_paths_agree_if_the_host_cannot_count_as_on_a_gpu(built, monkeypatch, extra):
    model, batch = built
    assert batch.images is not None and batch.regions is not None
    monkeypatch.setattr(packing, "on_host", lambda tensor: False)
    counted = replace(
        batch,
        images=replace(batch.images, text=with_counts(batch.images.text, extra)),
        regions=replace(batch.regions, text=with_counts(batch.regions.text, extra)),
    )
    assert_equals_reference(model, counted, batch)


def test_paths_agree_if_no_counts_are_known_and_nothing_is_packed(built, monkeypatch):
    model, batch = built
    monkeypatch.setattr(packing, "on_host", lambda tensor: False)
    assert_equals_reference(model, batch, batch)


def test_paths_agree_with_gradient_checkpointing(built):
    model, batch = built
    set_gradient_checkpointing(model, ("vision", "text", "fusion"))
    assert_equals_reference(model, batch, batch)


ROBERTA = [
    "model.text.arch={family: roberta, vocab_size: 300, width: 128, layers: 2, heads: 4, intermediate: 512, max_positions: 64, "
    "pad_id: 1}",
    "model.word_table=own",
    "data.translations.text={max_tokens: 50, max_masks: 16, mask_prob: 0.4}",
]
MIXES = {name: STREAMS[name] for name in ("hard negatives", "texts", "translations", "videos", "frames")} | {
    "translations of XLM-R": [*STREAMS["translations"], *ROBERTA],
    "all": [*STREAMS["both"], *STREAMS["texts"][2:], *STREAMS["translations"][2:], *STREAMS["videos"][2:]],
}


@pytest.mark.parametrize("mix", MIXES)
@ON_REAL_DEVICES
def test_every_stream_of_a_config_equals_the_reference_path(mix, monkeypatch, device):
    """This includes the shapes of compiled encoders, for which only the counts in the batch are known, as on a GPU. The test uses
    float64, because the temperature's gradient is a small difference of large sums, whose rounding error in float32 exceeds the
    tolerance."""
    config = load_config("configs/pretrain/base_4m.yaml", [*MODEL, *MIXES[mix]], PretrainConfig)
    torch.manual_seed(0)
    model = with_large_weights(PretrainTask.build_model(config, None)).double().to(device)
    batch, static = (
        moved(pretrain_batch(config.data, model.vision, 300, static=static), device) for static in (False, True)
    )
    assert {name.split("/")[0] for name in model.counts(batch)} == config.data.streams().keys()
    assert_equals_reference(model, batch, batch)
    monkeypatch.setattr(packing, "on_host", lambda tensor: False)
    assert_equals_reference(model, static, batch)


def sampled_by_the_mask_alone(similarity: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Samples negatives independently of similarities, which rounding would change."""
    noise = torch.rand(allowed.shape, generator=torch.Generator().manual_seed(2)).to(allowed.device)
    return (noise * allowed).argmax(dim=1)


def test_in_bf16_both_paths_are_equally_close_to_float64(on_cpu, device):
    """Relative errors on a CPU, for both paths with four sets of weights: losses 1.4e-4, whole gradient 5.5e-3, gradient of a
    parameter 5.5e-2. The packed path's error was at most 0.995 of the reference path's. The bounds are about three times as wide,
    to allow for other kernels."""
    model, batch = copied_to(torch.device("cpu"), on_cpu[0]), on_cpu[1]
    model.matching_head.draw_negatives = sampled_by_the_mask_alone
    exact_model = copied_to(torch.device("cpu"), model).double()
    exact_losses = plain_losses(exact_model, map_tensors(batch, in_float64))
    exact = gradients(exact_model, exact_losses)
    total = flattened(exact)
    model, batch, errors = model.to(device), moved(batch, device), {}
    for name, path in {"fast": lambda: model(batch), "plain": lambda: plain_losses(model, batch)}.items():
        with bf16(device):
            losses = path()
        for loss, term in exact_losses.items():
            assert relative_error(losses[loss].total, term.total) < 5e-4, loss
        gradient = gradients(model, losses)
        assert gradient.keys() == exact.keys()
        errors[name] = relative_error(flattened(gradient), total)
        large = [each for each in exact if exact[each].norm() > 1e-3 * total.norm()]
        far = {each: relative_error(gradient[each], exact[each]) for each in large}
        assert {each: error for each, error in far.items() if error > 0.15} == {}
    assert errors["plain"] < 0.015
    assert errors["fast"] < 1.5 * errors["plain"]
