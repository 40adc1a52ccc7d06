"""Our analytic FLOPs count, compared with torch's count of the operations that actually run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from batches.base import IGNORE
from optim.setup import set_frozen
from tasks.binding import bind_run
from tools.plan.synthetic import synthetic_batch

ROOT = Path(__file__).parent.parent.parent
MODEL = [
    "model.vision.width=128",
    "model.vision.depth=2",
    "model.vision.heads=4",
    "model.vision.image_size=32",
    "model.vision.patch_size=8",
    "model.vision.drop_path=0",
    "model.text.arch={family: bert, vocab_size: 300, width: 128, layers: 2, heads: 4, intermediate: 512, max_positions: 64}",
    "model.text.dropout=0",
    "model.text.attention_dropout=0",
    "model.fusion={layers: 2, width: 128, heads: 4, intermediate: 512}",
]
STREAMS = {
    "images": ["data.images.batch_size=6", "data.regions=null"],
    "regions": ["data.images=null", "data.regions={files: [x], batch_size: 8, max_images: 4, max_regions: 2}"],
    "both": ["data.images.batch_size=6", "data.regions={files: [x], batch_size: 8, max_images: 4, max_regions: 2}"],
    "long captions": [
        "data.images.batch_size=6",
        "data.images.captions=both",
        "data.regions={files: [x], batch_size: 8, max_images: 4, max_regions: 2, captions: both}",
    ],
    "hard negatives": [
        "data.images.batch_size=6",
        "data.images.hard_negatives={count: 2}",
        "data.regions={files: [x], batch_size: 8, max_images: 4, max_regions: 2, hard_negatives: {}}",
    ],
    "texts": ["data.images.batch_size=2", "data.regions=null", "data.texts={files: [x], batch_size: 6}"],
    "translations": ["data.images.batch_size=2", "data.regions=null", "data.translations={files: [x], batch_size: 6}"],
    "videos": [
        "data.images=null",
        "data.regions=null",
        "data.videos={files: [x], batch_size: 3}",
        "model.vision.video={frames: 3, pooling: mean}",
    ],
    "frames": [
        "data.images=null",
        "data.regions=null",
        "data.videos={files: [x], batch_size: 3}",
        "model.vision.video={frames: 3, pooling: tokens}",
    ],
}
FINE_TUNING = {
    "retrieval": "retrieval/coco_base_4m",
    "retrieval of videos": "retrieval/msrvtt_base",
    "nlvr": "nlvr/nlvr2_base_4m",
    "grounding": "grounding/refcoco_plus_base_4m",
    "vqa": "vqa/vqa2_base_4m",
    "video_qa": "vqa/msrvtt_qa_base",
    "captioning": "captioning/coco_base_4m",
}


def made(name: str, overrides: list[str]):
    """Model and micro-batch of a config. The batch has no padding."""
    path = ROOT / "configs" / f"{name}.yaml"
    bound = bind_run(path, [*MODEL, *overrides])
    kind = bound.source.load().task
    config = bound.config
    torch.manual_seed(0)
    model = kind.build_model(config, None)
    return model, synthetic_batch(config, model)


def counted(model, batch) -> float:
    """FLOPs of the forward and backward pass of a step, counted as they run.

    Attention uses plain products here. The counter has no formula for the CPU's fused kernel, and it would count operations that
    the GPU's backward pass repeats (half of the forward pass of attention).
    """
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        terms = model(batch)
        torch.stack([term.total * term.weight for term in terms.values()]).sum().backward()
    return counter.get_total_flops()


def pretraining(stream: str):
    """One token per text is masked: attention pads query positions to the maximum over all texts, and [CLS] is one of them."""
    return made("pretrain/base_4m", [*STREAMS[stream], "data.text.max_masks=1"])


def fine_tuning(task: str, *overrides: str):
    decoder = ["model.decoder.layers=2"] if task == "vqa" else []
    return made(FINE_TUNING[task], ["data.batch_size=4", *decoder, *overrides])


def with_a_stem(task: str):
    return fine_tuning(task, "model.vision.stem=convolutions")


def of_sets(task: str):
    return fine_tuning(task, "model.box_set={queries: 7, layers: 2}")


CASES = [(pretraining, stream) for stream in STREAMS] + [(fine_tuning, task) for task in FINE_TUNING]
CASES += [(with_a_stem, "grounding"), (of_sets, "grounding")]


@pytest.mark.parametrize(("make", "name"), CASES, ids=[f"{make.__name__} {name}" for make, name in CASES])
def test_the_count_equals_a_step_without_padding_within_one_percent(make, name):
    """The count is never larger. The following operations run but are not counted: the similarities for sampling negatives, which
    the loss computes too; the mean of a region's patches, which is computed over all patches of the image; and the mean tokens of
    an image's other regions, which are masked keys of each region."""
    model, batch = make(name)
    runs, count = counted(model, batch), model.work(batch).flops
    assert 0.99 * runs <= count <= runs


@pytest.mark.parametrize("task", ["nlvr", "grounding", "vqa", "video_qa"])
def test_the_count_is_exact_if_no_uncounted_operations_run(task):
    model, batch = fine_tuning(task)
    assert model.work(batch).flops == counted(model, batch)


@pytest.mark.parametrize("task", ["vqa", "video_qa"])
def test_an_image_shared_by_questions_counts_once(task):
    model, batch = fine_tuning(task, "data.batch_size=2", "data.questions_per_example=2")
    work = model.work(batch)
    assert (work.samples, work.images) == (4, 2 * (batch.pixels.shape[1] if task == "video_qa" else 1))
    assert work.flops == counted(model, batch)


def test_fewer_masked_words_reduce_the_count_of_the_last_layer_and_the_word_head():
    model, batch = made("pretrain/base_4m", [*STREAMS["images"], "data.text.max_masks=29"])
    labels = batch.images.text.labels.clone()
    labels[:, 10:] = IGNORE
    fewer = dataclasses.replace(batch.images, text=dataclasses.replace(batch.images.text, labels=labels))
    spared = model.work(batch).flops - model.work(dataclasses.replace(batch, images=fewer)).flops
    assert spared > model.cost.head("word_head", 6 * 19)


def test_a_step_without_matching_has_a_smaller_exact_count():
    model, batch = pretraining("both")
    noisy = dataclasses.replace(batch, unmatched=("images", "regions"))
    assert model.work(noisy).flops < 0.9 * model.work(batch).flops
    assert 0.99 * counted(model, noisy) <= model.work(noisy).flops <= counted(model, noisy)


@pytest.mark.parametrize(("make", "name"), CASES, ids=[name for _, name in CASES])
def test_padding_and_invalid_rows_are_not_counted(make, name):
    model, batch = make(name)
    whole = model.work(batch)
    shorter = model.work(half_padded(batch))
    assert shorter.samples < whole.samples
    assert shorter.tokens < 0.9 * whole.tokens
    assert shorter.flops < 0.9 * whole.flops
    assert shorter.flops <= counted(model, half_padded(batch))


def half_padded(value):
    """The last row of each part is invalid, and each text is cut to its first half."""
    if not dataclasses.is_dataclass(value):
        return value
    changed = {field.name: half_padded(getattr(value, field.name)) for field in dataclasses.fields(value)}
    for name, part in changed.items():
        if name == "valid":
            counts = torch.arange(len(part)) < len(part) - 1
            changed[name] = counts.view(-1, *[1] * (part.dim() - 1)).expand_as(part)
        elif name == "mask" and part.dim() == 2:
            changed[name] = torch.arange(part.shape[1]).expand_as(part) < part.shape[1] // 2
        elif name == "ids" and isinstance(value.mask, torch.Tensor) and value.mask.dim() == 3:
            changed[name] = part.masked_fill(torch.arange(part.shape[1]) >= part.shape[1] // 2, 0)
    return dataclasses.replace(value, **changed)


def test_coefficients_are_read_once_from_a_model_and_do_not_depend_on_the_batch(monkeypatch):
    model, batch = pretraining("both")
    whole = model.work(batch)
    monkeypatch.setattr(torch.nn.Module, "modules", None)
    assert model.work(batch) == whole
    assert model.work(half_padded(batch)).flops < whole.flops


def test_samples_images_and_tokens_are_counted_from_the_batch():
    model, batch = pretraining("both")
    work = model.work(batch)
    assert (work.samples, work.images, work.tokens) == (6 + 8, 6 + 4, (6 + 8) * 30)
    model, batch = fine_tuning("retrieval of videos")
    assert model.work(batch).images == 4 * batch.pixels.shape[1]


def test_the_step_of_the_published_base_run_equals_a_hand_computed_count():
    """One forward pass of 128 pairs and 128 regions in 50 images, with texts of 13 and 6 tokens, takes 4.3e12
    multiply-accumulates. The vision encoder takes 3.13e12 of them: 178 images at 17.56e9 each."""
    path = ROOT / "configs/pretrain/base_4m.yaml"
    bound = bind_run(path, ["data.text.max_tokens=13"])
    kind = bound.source.load().task
    config = bound.config
    with torch.device("meta"):
        model = kind.build_model(config, None)
    set_frozen(model, ["vision"])  # so that only its forward pass is counted
    assert model.cost.vision.image == pytest.approx(2 * 17.563e9, rel=1e-3)
    set_frozen(model, [])
    regions = bind_run(path, ["data.text.max_tokens=6", "data.images=null"]).config
    pairs = bind_run(path, ["data.text.max_tokens=13", "data.regions=null"]).config
    total = sum(model.work(synthetic_batch(part, model)).flops for part in (regions, pairs))
    assert total / 6 == pytest.approx(4.3e12, rel=0.02)


def test_a_hugging_face_text_encoder_is_counted_as_it_runs(tmp_path):
    sizes = {"vocab_size": 300, "dim": 128, "hidden_dim": 256, "n_layers": 1, "n_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "distilbert", **sizes}))
    hub = ["model.text.arch=null", f"model.text.encoder={tmp_path}"]
    model, batch = made("pretrain/base_4m", [*STREAMS["images"], "data.text.max_masks=1", *hub])
    work = model.work(batch)
    assert work.tokens == 6 * 30
    assert work.flops == pytest.approx(counted(model, batch), rel=1e-4)
