"""All tasks on images that keep their aspect ratio."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.nn import functional as F

from batches.images import NativeImages
from batches.pretraining import PretrainBatch
from dataset.records.boxes import patch_mask
from demo.folder import FolderFlags
from demo.scenes.build import scenes
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tasks.run import run_script
from tests.conftest import tiny_run
from tests.distributed.test_sharded import STEPS, Run, assert_same
from tests.engine.frozen import as_of_step
from tests.ranks import on_ranks
from tests.tasks.painted import KINDS, ROOT, measured
from tests.tasks.test_finetune import start
from utils.config import load_config
from x2vlm import load
from x2vlm.export.writing import export
from x2vlm.search.index import ImageIndex
from x2vlm.search.making import build_index

NATIVE = "model.vision.image_size={max_patches: 12, patch_size: 8}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Scenes with sides between 32 and 128 pixels."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    scenes(output=FolderFlags(out=out), seed=0, train=40, val=8, test=8, aspect=4)
    return out


@pytest.fixture(scope="module")
def overrides(folder) -> Callable[[str], list[str]]:
    """Returns a function that returns the overrides for a short run of a task."""

    def of(task: str) -> list[str]:
        tiny = [*tiny_run(folder), NATIVE, "model.text.dropout=0", "model.vision.drop_path=0"]
        if task == "pretrain":
            return tiny
        prefix = {"grounding": "refer"}.get(task, task)
        file, (train, val, test) = (
            "questions" if task == "vqa" else "annotations",
            (f"{folder}/{prefix}_{split}.jsonl" for split in ("train", "val", "test")),
        )
        return [
            *(each for each in tiny if each.startswith(("model.", "train.", "schedule."))),
            "init.checkpoint=null",
            "data.workers=0",
            "data.batch_size=4",
            "train.steps=2",
            "train.validate_every=2",
            f"data.train=[{{questions: {train}}}]" if task == "vqa" else f"data.train.{file}={train}",
            f"evaluation.validation.{file}={val}",
            f"evaluation.test.test.{file}={test}",
            *([f"evaluation.answers={folder}/vqa_answers.json"] if task == "vqa" else []),
        ]

    return of


@pytest.fixture(scope="module")
def task(overrides) -> PretrainTask:
    return PretrainTask.build(load_config(ROOT / "configs/demo/pretrain.yaml", overrides("pretrain"), PretrainConfig))


@pytest.fixture
def batch(task) -> PretrainBatch:
    batch: PretrainBatch = next(task.train_loader().batches(consumed=0, count=1))
    return batch


def test_a_region_has_the_patches_that_its_box_touches_in_the_grid_of_its_image(batch):
    regions = batch.regions
    assert isinstance(regions.pixels, NativeImages) and len({*regions.pixels.grids}) > 1
    assert regions.patch_mask.shape == (8, 12)
    for mask, index, box in zip(regions.patch_mask, regions.image_index, regions.boxes_cxcywh, strict=True):
        rows, columns = regions.pixels.grids[index]
        cx, cy, w, h = box.tolist()
        pixels = ((cx - w / 2) * columns * 8, (cy - h / 2) * rows * 8, w * columns * 8, h * rows * 8)
        expected = patch_mask(pixels, (rows * 8, columns * 8), 8)
        assert torch.equal(mask, F.pad(expected, (0, 12 - rows * columns)))


def test_padding_changes_no_loss_and_no_gradient(task, batch):
    def padded(images: NativeImages) -> NativeImages:
        return replace(images, patches=F.pad(images.patches, (0, 0, 0, 0, 0, 0, 0, 5)))

    more = replace(
        batch,
        images=replace(batch.images, pixels=padded(batch.images.pixels)),
        regions=replace(
            batch.regions, pixels=padded(batch.regions.pixels), patch_mask=F.pad(batch.regions.patch_mask, (0, 5))
        ),
    )
    model = task.model.double()

    def outcome(batch: PretrainBatch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        model.zero_grad()
        torch.manual_seed(0)
        losses = {name: term.total for name, term in model(batch).items()}
        sum(losses.values()).backward()
        return losses, {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    (losses, gradients), (other_losses, other_gradients) = outcome(batch), outcome(more)
    assert len(losses) == 8
    torch.testing.assert_close(losses, other_losses)
    torch.testing.assert_close(gradients, other_gradients)
    model.float()


def test_a_worker_process_gives_the_same_batches(overrides, batch):
    config = load_config(
        ROOT / "configs/demo/pretrain.yaml", [*overrides("pretrain"), "data.workers=1"], PretrainConfig
    )
    other = next(PretrainTask.build(config).train_loader().batches(consumed=0, count=1))
    assert other.regions.pixels.grids == batch.regions.pixels.grids
    assert torch.equal(other.regions.pixels.patches, batch.regions.pixels.patches)


def test_a_pre_training_run_ends_with_an_evaluation(overrides, tmp_path):
    arguments = ["--config", str(ROOT / "configs/demo/pretrain.yaml"), "--output", str(tmp_path / "run")]
    assert run_script([*arguments, *overrides("pretrain")], "pretrain") == 0
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluation["held-out"]
    assert (tmp_path / "run/predictions.png").is_file()


@pytest.mark.slow
def test_sharded_training_has_the_weights_of_ddp_and_resumes_exactly(overrides, tmp_path):
    """The images of both ranks have different grids."""
    (tmp_path / "out").mkdir()
    found = []
    for parallel in ("ddp", "fsdp"):
        changes = [*overrides("pretrain"), *STEPS, f"train.parallel={parallel}"]
        whole, other = on_ranks(2, Run(tmp_path / parallel, changes), tmp_path / "out")
        assert_same(other, whole, 0.0)
        folder = as_of_step(2, tmp_path / parallel, tmp_path / f"{parallel}-resumed")
        assert_same(on_ranks(2, Run(folder, changes), tmp_path / "out")[0], whole, 0.0)
        found.append(whole)
    assert_same(*found)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_states_for_all_grids_without_compiling_again(task):
    first, second = (batch.regions.pixels for batch in task.train_loader().batches(consumed=0, count=2))
    assert sorted(first.grids) != sorted(second.grids)
    vision, graphs = copy.deepcopy(task.model.vision).eval(), []

    def backend(graph, inputs, **options):
        graphs.append(graph)
        return aot_eager(graph, inputs, **options)

    with torch.no_grad():
        expected = [vision(images).states() for images in (first, second)]
        vision.compile_blocks(backend=backend)
        found = [vision(first).states()]
        compiled = len(graphs)
        found.append(vision(second).states())
    assert 0 < compiled == len(graphs)
    torch.testing.assert_close(found, expected)


def close(one: Any, other: Any) -> bool:
    """True if two predictions are equal, with numbers up to rounding."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, abs=1e-4) if isinstance(one, float) else other)


@pytest.mark.parametrize("name", KINDS)
def test_a_task_predicts_the_same_for_images_together_and_alone(name, overrides, tmp_path):
    start(name, tmp_path / "run", overrides(name))
    schema, kind, *_ = KINDS[name]
    predictions: list[Any] = []
    for size in (1, 8):
        more = [*overrides(name), f"evaluation.batch_size={size}", f"init.checkpoint={tmp_path / 'run'}"]
        config = load_config(ROOT / f"configs/demo/{name}.yaml", more, schema)
        torch.manual_seed(0)
        evaluation = measured(kind.build(config))
        predictions.append((evaluation.values(), evaluation.predictions))
    (values, alone), (other_values, together) = predictions
    assert values == pytest.approx(other_values, abs=1e-6)
    assert close(alone, together)


@torch.no_grad()
def strengthen(model: torch.nn.Module) -> None:
    """Adds random weights, because a model that was hardly trained gives nearly the same results for all images."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def test_sets_of_boxes_are_the_same_for_images_together_and_alone(overrides, folder, tmp_path):
    sets = [f"data.train.annotations={folder}/sets_train.jsonl", "model.box_set={queries: 6}"]
    sets.append("model.vision.image_size={max_patches: 14, patch_size: 8}")  # more than 3 x 4
    for split in ("validation", "test.test"):
        sets.append(f"evaluation.{split}.annotations={folder}/sets_{'val' if split == 'validation' else 'test'}.jsonl")
    schema, kind, *_ = KINDS["grounding"]
    torch.manual_seed(0)
    config = load_config(ROOT / "configs/demo/grounding.yaml", [*overrides("grounding"), *sets], schema)
    task = kind.build(config)
    batch = next(task.train_loader().batches(0, 1))
    assert min(map(math.prod, batch.pixels.grids)) < 14
    with torch.no_grad():
        strengthen(task.model)
        together = task.model.eval().double().locate_all(batch.pixels, batch.text)
        for row, mask in enumerate(batch.text.mask):
            text = replace(batch.text, ids=batch.text.ids[[row]], mask=mask[None], token_count=None)
            padded = batch.pixels.select([row])
            short = replace(padded, patches=padded.patches[:, : math.prod(padded.grids[0])])
            alone = task.model.locate_all(short, text)
            torch.testing.assert_close(together.boxes[row], alone.boxes[0])
            torch.testing.assert_close(together.logits[row], alone.logits[0])


def test_a_model_gives_the_same_for_images_together_and_alone_in_an_index_and_in_onnx(overrides, folder, tmp_path):
    run = tmp_path / "run"
    arguments = ["--config", str(ROOT / "configs/demo/pretrain.yaml"), "--output", str(run)]
    assert run_script([*arguments, *overrides("pretrain")], "pretrain") == 0
    model, images = load(run), sorted((folder / "images/val").iterdir())
    strengthen(model.network)
    text = "a red star"
    together = model.match(images, [text])[:, 0]
    assert together == pytest.approx([model.match(image, [text])[0, 0] for image in images], abs=1e-5)
    assert together.max() - together.min() > 1e-3
    boxes = model.locate(images, [[text]] * len(images))
    for image, [box] in zip(images, boxes, strict=True):
        [[alone]] = model.locate([image], [[text]])
        assert (box.x, box.y, box.width, box.height, box.score) == pytest.approx(
            (alone.x, alone.y, alone.width, alone.height, alone.score), abs=1e-3
        )
    saved = load(model.save(tmp_path / "saved"))
    build_index(saved, folder / "images/val", tmp_path / "index")
    expected = dict(zip([path.name for path in images], together.tolist(), strict=True))
    for _ in range(2):  # the second search reads the states from the cache
        hits = ImageIndex(tmp_path / "index", saved, cache=tmp_path / "cache").search(text, top=8, rerank=8)
        assert {Path(hit.path).name: hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)
    export(saved, tmp_path / "model.onnx")  # compares all results with those of torch
    exported = load(tmp_path / "model.onnx")
    assert exported.match(images, [text])[:, 0] == pytest.approx(together, abs=1e-4)
