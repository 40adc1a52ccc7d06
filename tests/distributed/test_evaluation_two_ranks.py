"""Held-out sets on two gloo ranks are compared with one process: each item counts once, for any number of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dataset.tasks.questions import QuestionTable
from tasks.config import PretrainConfig
from tasks.finetune import FineTuneTask
from tasks.inference import evaluating
from tasks.kinds import find_task
from tasks.pretrain import PretrainTask
from tests.conftest import tiny_run
from tests.ranks import on_two_ranks
from utils import distributed
from utils.config import load_config

ROOT = Path(__file__).parent.parent.parent
FILES = {"retrieval": "retrieval", "nlvr": "nlvr", "grounding": "refer", "vqa": "vqa", "captioning": "captioning"}
"""Prefix of the file names of each task."""
SIZES = {
    "retrieval": "images",
    "nlvr": "statements",
    "grounding": "phrases",
    "vqa": "questions",
    "captioning": "images",
}
EXTRA = {"retrieval": ["evaluation.candidates=3"], "captioning": ["evaluation.decoding.max_length=6"]}
COUNTS = [1, 2, 5, 8]
"""Numbers of items: fewer than ranks, the same number, odd and even. With 5 and 8 items, a rank needs two forward passes."""


class Measure:
    """A picklable job that measures the first items of each task's held-out set on every rank, with fixed weights."""

    def __init__(self, scenes: Path):
        self.scenes = scenes

    def task(self, name: str) -> FineTuneTask[Any, Any, Any]:
        schema, kind = find_task(name).load()[:2]
        overrides = [
            *[each for each in tiny_run(self.scenes) if each.startswith(("model.", "train.", "schedule."))],
            "init.checkpoint=null",
            "data.workers=0",
            *self.files(name, f"{self.scenes}/{FILES[name]}"),
            "evaluation.validation=null",
            "evaluation.batch_size=2",
            *EXTRA.get(name, []),
        ]
        task: FineTuneTask[Any, Any, Any] = kind.build(
            load_config(ROOT / f"configs/demo/{name}.yaml", overrides, schema)
        )
        distributed.move_from_rank_0(task.model, torch.device("cpu"))
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for part, parameter in task.model.named_parameters():
                if parameter.dim() > 1:
                    # The weights are far from their initial values, so that scores differ by more than rounding errors, and
                    # answers depend on the question.
                    scale = 1.5 if part.startswith("decoder.layer.") and ".crossattention." in part else 0.3
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        return task

    def files(self, name: str, start: str) -> list[str]:
        if name == "vqa":
            answers = f"evaluation.answers={self.scenes}/vqa_answers.json"
            return [
                f"data.train=[{{questions: {start}_train.jsonl}}]",
                f"evaluation.test.test.questions={start}_test.jsonl",
                answers,
            ]
        return [f"data.train.annotations={start}_train.jsonl", f"evaluation.test.test.annotations={start}_test.jsonl"]

    def __call__(self) -> dict[str, Any]:
        torch.set_num_threads(1)
        found: dict[str, Any] = {"shares": {count: list(distributed.share_of(count)) for count in (0, 1, 2, 3, 7, 100)}}
        for name in FILES:
            task = self.task(name)
            for count in COUNTS:
                items = first_of(task.held_out.test["test"], count)
                with evaluating(task.model, "fp32"):
                    found[f"{name}/{count}"] = task.evaluate(items).as_json()
                    for method in ("_predict", "_locate", "captions"):
                        if hasattr(task, method):
                            found[f"{name}/{count}/rows"] = [
                                row.tolist() if hasattr(row, "tolist") else row for row in getattr(task, method)(items)
                            ]
        overrides = [*tiny_run(self.scenes), "data.workers=0", "evaluation.batch_size=3"]
        pretraining = PretrainTask.build(load_config(ROOT / "configs/demo/pretrain.yaml", overrides, PretrainConfig))
        distributed.move_from_rank_0(pretraining.model, torch.device("cpu"))
        with evaluating(pretraining.model, "fp32"):
            found["pretrain"] = pretraining.evaluator().evaluate().as_json()
        return found


def first_of(items: Any, count: int) -> Any:
    """The first ``count`` images with their captions, or the first statements, phrases or questions."""
    if isinstance(items, list | QuestionTable):
        assert len(items) >= count
        return items[:count]
    assert len(items.images) >= count
    captions = int(items.captions_per_image[:count].sum())
    return type(items)(
        items.images[:count], items.captions[:captions], items.image_of_caption[:captions], items.ids[:count]
    )


@pytest.fixture(scope="module")
def alone(scenes_folder) -> dict[str, Any]:
    return Measure(scenes_folder)()


@pytest.fixture(scope="module")
def both(scenes_folder, tmp_path_factory) -> list[dict[str, Any]]:
    return on_two_ranks(Measure(scenes_folder), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", FILES)
def test_both_ranks_get_the_metrics_of_one_process(alone, both, name, count):
    """The metrics are ratios of counts, so they must be exactly equal."""
    expected = alone[f"{name}/{count}"]
    assert expected[SIZES[name]]["value"] == count
    for found in both:
        assert found[f"{name}/{count}"] == expected


@pytest.mark.parametrize("name", FILES)
def test_the_metrics_depend_on_the_items(alone, name):
    """Otherwise the test above could not fail."""
    found = [alone[f"{name}/{count}"] for count in COUNTS]
    assert len({str([metric for metric in each.values() if metric["unit"] != "count"]) for each in found}) > 2


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["captioning", "vqa"])
def test_texts_of_all_ranks_are_in_the_order_of_the_items(alone, both, name, count):
    expected = alone[f"{name}/{count}/rows"]
    assert len(expected) == count
    assert all(found[f"{name}/{count}/rows"] == expected for found in both)
    assert count < 5 or expected != expected[::-1], "the data must reveal another order"


@pytest.mark.parametrize("name", ["nlvr", "grounding"])
def test_predictions_of_all_ranks_are_in_the_order_of_the_items(alone, both, name):
    for count in COUNTS:
        expected = torch.tensor(alone[f"{name}/{count}/rows"])
        assert len(expected) == count
        for found in both:
            torch.testing.assert_close(torch.tensor(found[f"{name}/{count}/rows"]), expected, atol=1e-5, rtol=1e-5)
    rows = torch.tensor(alone[f"{name}/8/rows"])
    assert not torch.equal(rows, rows.flip(0)), "the data must reveal another order"


def test_the_shares_of_all_ranks_contain_each_item_once_in_order(both):
    first, second = (found["shares"] for found in both)
    for count, own in first.items():
        assert own + second[count] == list(range(count))
        assert abs(len(own) - len(second[count])) <= 1


def test_both_ranks_evaluate_a_pre_trained_model_like_one_process(alone, both):
    expected = alone["pretrain"]
    assert expected["records"]["value"] > 1
    assert expected["masked words"]["value"] > 1
    assert [found["pretrain"] for found in both] == [expected] * 2
