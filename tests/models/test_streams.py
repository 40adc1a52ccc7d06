"""The streams of pre-training, and the losses that a weight of 0 disables."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from batches import LONG
from batches.base import Batch
from batches.losses import weighted_sum
from batches.pretraining import HardNegatives, PretrainBatch
from benchmarks.synthetic import pretrain_batch
from models.config import IdenticalTexts, LossWeights, StreamWeights
from models.pretraining.model import PretrainModel
from models.pretraining.streams import STREAMS as STREAM_CLASSES
from models.pretraining.streams import ImageTextStream, Loss, Stream
from models.pretraining.trained_parameters import only_in_other_steps, trained_parameters, zero_loss
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.models.test_flops import MODEL, STREAMS
from utils.config import load_config

LOSSES = ("contrastive", "matching", "mlm", "l1", "giou")
ALL = [*STREAMS["both"], *STREAMS["texts"][2:], *STREAMS["translations"][2:], *STREAMS["videos"][2:]]


def built(overrides: list[str], **weights: float) -> tuple[PretrainModel, PretrainBatch]:
    given = [f"loss.{name}={weight}" for name, weight in weights.items()]
    config = load_config("configs/pretrain/base_4m.yaml", [*MODEL, *overrides, *given], PretrainConfig)
    torch.manual_seed(0)
    model = PretrainTask.build_model(config, None)
    return model.eval(), pretrain_batch(config.data, model.vision, 300)


def totals(model: PretrainModel, batch: PretrainBatch) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: term.total for name, term in model(batch).items()}


def only(*losses: str) -> dict[str, float]:
    return {name: float(name in losses) for name in LOSSES}


CASES = [(mix, {name: 0.0}) for mix in ("both", "all") for name in LOSSES]
CASES += [("both", only(name)) for name in LOSSES] + [("all", only("contrastive")), ("all", only("mlm"))]
CASES += [("long captions", {}), ("long captions", only("l1"))]
CASES += [("images", only("contrastive")), ("texts", only("mlm")), ("translations", only("mlm"))]


@pytest.mark.parametrize(("mix", "weights"), CASES)
def test_every_trainable_parameter_has_a_gradient_whatever_losses_are_disabled(mix, weights):
    """Otherwise DDP would wait for the gradient forever."""
    model, batch = built(ALL if mix == "all" else STREAMS[mix], **weights)
    skipped = {name for name, weight in weights.items() if weight == 0}
    terms = model(batch)
    assert terms.keys() == model.counts(batch).keys()
    assert not {name.split("/")[1] for name in terms} & skipped
    torch.stack([term.total for term in terms.values()]).sum().backward()
    assert not [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    reached = [name for name, each in model.named_parameters() if not each.requires_grad and each.grad is not None]
    assert not reached


LOSSES_OF = {name: kind(name, 1.0, LossWeights(), "negative").declared for name, kind in STREAM_CLASSES.items()}
SETS = [
    (name, wanted)
    for name, declared in LOSSES_OF.items()
    if not name.startswith(LONG)
    for count in range(1, len(declared) + 1)
    for wanted in itertools.combinations([loss.name for loss in declared], count)
]


@pytest.fixture(scope="module")
def all_streams() -> tuple[PretrainModel, PretrainBatch]:
    return built(ALL)


def trained_in(model: PretrainModel, stream: Stream[Any], batch: Any, wanted: tuple[str, ...]) -> set[str]:
    """The parameters that have a gradient after the backward pass of these losses."""
    model.zero_grad()
    encoded = model.encode_streams({stream.name: batch}, {stream.name: wanted})
    totals = stream.losses(model, encoded[stream.name], wanted)
    assert totals.keys() == set(wanted)
    torch.stack([*totals.values()]).sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("name", "wanted"), SETS, ids=[f"{name}-{'+'.join(wanted)}" for name, wanted in SETS])
def test_a_set_of_losses_trains_what_the_losses_declare(name, wanted, all_streams):
    model, batch = all_streams
    stream = model.streams[name]
    assert trained_in(model, stream, batch.by_stream()[name], wanted) == trained_parameters(model, [(stream, wanted)])


class OneMoreHead(PretrainModel):
    """A head that no loss declares to train."""

    def _build_streams(self, *arguments):
        self.forgotten_head = torch.nn.Linear(2, 2)
        return super()._build_streams(*arguments)


def test_a_parameter_that_no_loss_declares_to_train_is_an_error():
    with pytest.raises(ValueError, match=r"forgotten_head\.weight: no loss declares"):
        OneMoreHead(all_config().model)


def all_config() -> PretrainConfig:
    return load_config("configs/pretrain/base_4m.yaml", [*MODEL, *ALL], PretrainConfig)


# A loss defined outside the project: the worked example of docs/architecture.md


def uniformity(embedded: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The uniformity of normalised embeddings (N, E) (Wang and Isola, 2020, arXiv:2005.10242), summed over the valid ones."""
    others = (valid.unsqueeze(0) & valid.unsqueeze(1)).fill_diagonal_(False)
    distance = (2 - 2 * embedded @ embedded.t()).masked_fill(~others, torch.inf)
    return (-2 * distance).exp().sum(dim=1).clamp(min=1e-9).log().masked_fill(~valid, 0).sum()


class MoreLossWeights(LossWeights):
    uniformity: float = 0.5


class UniformTexts(ImageTextStream):
    def declare(self, weights):
        assert isinstance(weights, MoreLossWeights)
        return [
            *super().declare(weights),
            Loss(
                "uniformity",
                weights.uniformity,
                trains=("text", "contrastive.text_proj"),
                count=lambda batch: batch.valid.sum(),
            ),
        ]

    def losses(self, model, encoded, requested):
        totals = super().losses(model, encoded, requested)
        if "uniformity" in requested:
            embedded = model.contrastive.embed_text(encoded.texts["plain"])
            totals["uniformity"] = uniformity(embedded, encoded.batch.valid)
        return totals


@pytest.fixture
def uniform(monkeypatch) -> tuple[PretrainModel, PretrainBatch]:
    monkeypatch.setitem(STREAM_CLASSES, "images", UniformTexts)
    config = load_config("configs/pretrain/base_4m.yaml", [*MODEL, *STREAMS["images"]], PretrainConfig)
    torch.manual_seed(0)
    model = PretrainModel(config.model, None, MoreLossWeights(), StreamWeights(images=1.0, regions=None)).eval()
    return model, pretrain_batch(config.data, model.vision, 300)


def test_a_loss_can_be_added_from_outside(uniform):
    model, batch = uniform
    losses, counts = model(batch), model.counts(batch)
    encoded = model.text([batch.images.text.plain()])[0]
    expected = uniformity(model.contrastive.embed_text(encoded), batch.images.valid)
    torch.testing.assert_close(losses["images/uniformity"].total, expected)
    assert losses["images/uniformity"].weight == 0.5
    averages, loss = weighted_sum(losses, counts)
    weights = [term.weight for term in losses.values()]
    torch.testing.assert_close(loss, (averages * torch.tensor(weights)).sum())
    streams = StreamWeights(images=1.0, regions=None)
    without = PretrainModel(model.config, None, MoreLossWeights(uniformity=0.0), streams).eval()
    without.load_state_dict(model.state_dict())
    expected_totals = totals(without, batch)
    torch.testing.assert_close({name: totals(model, batch)[name] for name in expected_totals}, expected_totals)


@pytest.mark.parametrize("wanted", [("uniformity",), ("mlm", "uniformity"), ("contrastive", "matching", "uniformity")])
def test_an_added_loss_trains_the_parameters_that_it_declares(uniform, wanted):
    model, batch = uniform
    stream = model.streams["images"]
    assert trained_in(model, stream, batch.images, wanted) == trained_parameters(model, [(stream, wanted)])


def test_the_flops_of_an_added_loss_are_unknown_until_it_counts_them(uniform):
    model, batch = uniform
    work = model.work(batch)
    assert math.isnan(work.flops) and work.samples == batch.images.valid.sum()


ALIGNED = ("images", "videos", "regions", "translations")
UNMATCHED = [
    ("both", {}),
    ("all", {}),
    ("both", only("matching")),
    ("texts", only("matching")),
    ("all", only("matching")),
]
UNMATCHED += [
    ("texts", {"contrastive": 0.0}),
    ("texts", only("matching", "mlm")),
    ("both", only("matching", "contrastive")),
]


@pytest.mark.parametrize(("mix", "weights"), UNMATCHED)
def test_every_parameter_has_a_gradient_in_a_step_without_matching_losses(mix, weights):
    model, batch = built(ALL if mix == "all" else STREAMS[mix], **weights)
    whole = totals(model, batch)
    terms = model(replace(batch, unmatched=ALIGNED))
    assert terms.keys() == whole.keys() == model.counts(batch).keys()
    torch.stack([term.total for term in terms.values()]).sum().backward()
    assert not [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert all(term.total == 0 for name, term in terms.items() if name.endswith("/matching"))


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("losses", [("matching",), ("matching", "mlm"), ("matching", "contrastive")])
def test_every_parameter_has_a_gradient_in_a_step_without_matching_in_one_stream(name, losses):
    """A stream whose only loss is omitted is not encoded, although other streams are."""
    model, batch = built(ALL, **only(*losses))
    terms = model(replace(batch, unmatched=(name,)))
    torch.stack([term.total for term in terms.values()]).sum().backward()
    assert not [key for key, each in model.named_parameters() if each.requires_grad and each.grad is None]


def test_the_zero_of_an_omitted_loss_is_on_the_models_device():
    """This holds even if other streams train every parameter, as translations do when images have no matching loss."""
    model, batch = built(ALL)
    assert (
        zero_loss(untrained(model, replace(batch, unmatched=("images",))), torch.device("meta")).device.type == "meta"
    )
    assert not untrained(model, replace(batch, unmatched=("images",)))
    assert {id(p) for p in untrained(model, replace(batch, unmatched=ALIGNED))} == {
        id(p) for p in model.matching_head.parameters()
    }


def untrained(model: PretrainModel, batch: PretrainBatch) -> list[torch.nn.Parameter]:
    requested = model.losses_to_compute(batch)
    return only_in_other_steps(model, {name: model.streams[name] for name in requested}, requested)


def test_a_stream_that_is_not_encoded_adds_no_work():
    model, batch = built(STREAMS["both"], **only("matching"))
    without = model.work(replace(batch, unmatched=("regions",)))
    assert without == model.work(replace(batch, regions=None))


def test_the_model_batches_and_weights_have_the_same_streams():
    parts = (
        {field.name for field in fields(PretrainBatch)}
        - {field.name for field in fields(Batch)}
        - {"unmatched", "not_started"}
    )
    assert STREAM_CLASSES.keys() == StreamWeights.model_fields.keys() == parts | {"long_images", "long_regions"}
    assert IdenticalTexts.model_fields.keys() == {
        name.removeprefix(LONG)
        for name, declared in LOSSES_OF.items()
        if any(loss.name == "matching" for loss in declared)
    }


def test_long_captions_have_the_same_losses_as_alone():
    model, batch = built(STREAMS["long captions"], **only("contrastive", "mlm", "l1", "giou"))
    found = totals(model, batch)
    long = {name: replace(getattr(batch, name), text=getattr(batch, name).long.text) for name in ("images", "regions")}
    alone = totals(model, replace(batch, **{name: replace(each, long=None) for name, each in long.items()}))
    torch.testing.assert_close({name: found[LONG + name] for name in alone}, alone)
    assert not model.losses_to_compute(replace(batch, unmatched=("images",)))["long_images"].count("matching")


@pytest.mark.parametrize(("images", "regions"), [("negative", "ignore"), ("ignore", "negative")])
def test_equal_long_captions_are_treated_like_equal_captions(images, regions):
    """If pairs with equal texts are not compared, a batch in which all texts are equal has no negatives to match."""
    key = "model.contrastive.identical_texts"
    model, batch = built([*STREAMS["long captions"], f"{key}.images={images}", f"{key}.regions={regions}"])
    for name, treatment in (("images", images), ("regions", regions)):
        part = getattr(batch, name)
        long = replace(part.long, text=replace(part.long.text, text_id=torch.zeros_like(part.long.text.text_id)))
        equal = replace(part, text=replace(part.text, text_id=torch.zeros_like(part.text.text_id)), long=long)
        counts = model.counts(replace(batch, **{name: equal}))
        for stream in (name, LONG + name):
            assert (counts[f"{stream}/matching"] == 0) == (treatment == "ignore"), stream


def test_only_valid_long_captions_count_and_they_have_no_hard_negatives():
    """An example without a long caption has a filler instead."""
    model, batch = built(STREAMS["long captions"])
    for name in ("images", "regions"):
        part = getattr(batch, name)
        valid = torch.arange(len(part.valid)) % 2 == 0
        hard = HardNegatives(part.text.plain(), torch.ones(len(valid), 1, dtype=torch.bool))
        changed = replace(part, long=replace(part.long, valid=valid), hard_negatives=hard)
        with_fillers = replace(batch, **{name: changed})
        counts = model.counts(with_fillers)
        assert (counts[f"{LONG}{name}/contrastive"], counts[f"{name}/contrastive"]) == (valid.sum(), part.valid.sum())
        streams = with_fillers.by_stream()
        assert streams[name].hard_negatives is hard and streams[LONG + name].hard_negatives is None


def test_the_images_of_long_captions_are_encoded_once(monkeypatch):
    model, batch = built(STREAMS["long captions"])
    encoded = []
    encode = model.vision.encode
    monkeypatch.setattr(model.vision, "encode", lambda pixels: (encoded.extend(pixels), encode(pixels))[1])
    model(batch)
    assert [len(each) for each in encoded] == [len(batch.images.pixels), len(batch.regions.pixels)]


@pytest.mark.parametrize("name", LOSSES)
def test_disabling_a_loss_does_not_change_the_others(name):
    model, batch = built(ALL)
    lighter, _ = built(ALL, **{name: 0.0})
    expected, found = totals(model, batch), totals(lighter, batch)
    assert found.keys() == {each for each in expected if not each.endswith(f"/{name}")}
    torch.testing.assert_close(found, {each: expected[each] for each in found})


@pytest.mark.parametrize(("name", "spared"), [("mlm", 0.8), ("matching", 0.9)])
def test_a_loss_of_weight_0_costs_nothing(name, spared):
    model, batch = built(STREAMS["both"])
    lighter, _ = built(STREAMS["both"], **{name: 0.0})
    assert lighter.work(batch).flops < spared * model.work(batch).flops
    tokens = [0]
    for each in (model, lighter):
        each.text.register_forward_pre_hook(lambda _, inputs: tokens.append(sum(int(t.mask.sum()) for t in inputs[0])))
        each(batch)
    _, whole, fewer = tokens
    assert fewer == (whole // 2 if name == "mlm" else whole), "masked copies must not be encoded"


def test_the_weight_of_a_loss_is_multiplied_by_the_weight_of_its_stream():
    weights = {name: float(number) for number, name in enumerate(LOSSES, start=2)}
    factors = {"images": 0.5, "regions": 0.25, "texts": 8.0, "translations": 16.0, "videos": 32.0}
    model, batch = built([*ALL, *(f"data.{name}.weight={factor}" for name, factor in factors.items())], **weights)
    found = {name: term.weight for name, term in model(batch).items()}
    assert {name.split("/")[0] for name in found} == factors.keys()
    assert found == {each: factors[(parts := each.split("/"))[0]] * weights[parts[1]] for each in found}


def test_without_masked_words_matching_and_boxes_the_fusion_does_not_run(monkeypatch):
    model, batch = built(STREAMS["both"], **only("contrastive"))
    monkeypatch.setattr(model, "fusion", None)
    assert totals(model, batch).keys() == {"images/contrastive", "regions/contrastive"}


def test_the_boxes_of_whole_images_are_trained_if_configured():
    model, batch = built(STREAMS["regions"])
    every, _ = built(STREAMS["regions"], whole_image_boxes=True)
    every.load_state_dict(model.state_dict())
    rows = torch.arange(len(batch.regions.valid))
    region = replace(batch.regions, is_image=rows % 3 == 0, several_boxes=rows == 2, valid=rows != 1)
    batch = replace(batch, regions=region)
    one_box = region.valid & ~region.several_boxes
    for each, learned in ((model, one_box & ~region.is_image), (every, one_box)):
        assert 0 < learned.sum() < len(rows)
        encoded = each.encode_streams({"regions": region}, {"regions": ["l1"]})["regions"]
        predicted = each.predict_boxes(encoded.texts["plain"], encoded.images, region.image_index)
        by_hand = (predicted - region.boxes_cxcywh).abs().sum(dim=1)[learned].sum()
        assert each.counts(batch)["regions/l1"] == each.counts(batch)["regions/giou"] == learned.sum()
        torch.testing.assert_close(totals(each, batch)["regions/l1"], by_hand)
