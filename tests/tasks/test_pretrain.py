"""The pre-training task on a small scenes data set."""

from __future__ import annotations

import json
import logging
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from batches.base import IGNORE
from batches.pretraining import PretrainBatch
from metrics.retrieval import NO_MATCH
from models.core.heads import masked_positions
from tasks import pretrain_evaluation, two_stage
from tasks.config import PretrainConfig
from tasks.evaluation import Evaluation, Metric
from tasks.inference import evaluating
from tasks.pretrain import PretrainTask
from tasks.pretrain_evaluation import PretrainEvaluator
from tasks.two_stage import Rankings, reranking_notes
from tests.dataset.media.test_video import encoded
from tests.messages import OneLine, naming
from utils.config import load_config
from utils.config_files import ConfigError
from utils.errors import UserError

DEMO = "configs/demo/pretrain.yaml"


@pytest.fixture(scope="module")
def task(tiny_overrides) -> PretrainTask:
    overrides = [*tiny_overrides, "model.text.dropout=0", "model.vision.drop_path=0"]
    return PretrainTask.build(load_config(DEMO, overrides, PretrainConfig))


@pytest.fixture
def batch(task) -> PretrainBatch:
    return next(task.train_loader().batches(consumed=0, count=1))


def losses(task, batch) -> dict[str, float]:
    torch.manual_seed(0)
    terms, counts = task.model(batch), task.model.counts(batch)
    assert terms.keys() == counts.keys()
    return {name: (term.total / counts[name].clamp(min=1)).item() for name, term in terms.items()}


def test_every_stream_has_all_its_losses(task, batch):
    found = losses(task, batch)
    streams = [f"{stream}/{name}" for stream in ("images", "regions") for name in ("contrastive", "matching", "mlm")]
    assert set(found) == {*streams, "regions/l1", "regions/giou"}
    assert all(value > 0 for value in found.values())


def test_invalid_rows_do_not_change_the_losses(task, batch):
    """An invalid row with other pixels and another text gives the same losses."""
    images = batch.images
    valid = images.valid.clone()
    valid[0] = False
    labels = images.text.labels.clone()
    labels[0] = IGNORE
    hidden = replace(images, valid=valid, text=replace(images.text, labels=labels))
    other = replace(hidden, pixels=hidden.pixels.clone(), text=replace(hidden.text, ids=hidden.text.ids.clone()))
    other.pixels[0] = 255 - other.pixels[0]
    other.text.ids[0, 1] = 7
    first = losses(task, replace(batch, images=hidden, regions=None))
    second = losses(task, replace(batch, images=other, regions=None))
    assert first == pytest.approx(second, abs=1e-6)


def test_an_empty_stream_has_zero_losses_and_finite_gradients(task, batch):
    regions = batch.regions
    nothing = torch.zeros_like(regions.valid)
    text = replace(regions.text, labels=torch.full_like(regions.text.labels, IGNORE))
    empty = replace(batch, images=None, regions=replace(regions, valid=nothing, text=text))
    assert set(losses(task, empty).values()) == {0.0}
    task.model.zero_grad()
    sum(term.total for term in task.model(empty).values()).backward()
    assert all(p.grad.isfinite().all() for p in task.model.parameters() if p.grad is not None)


def test_a_batch_of_one_pair_has_no_matching_loss_and_does_not_fail(task, batch):
    images = batch.images
    first = {name: value[:1] for name, value in vars(images.text).items() if isinstance(value, torch.Tensor)}
    text = replace(images.text, **first)
    one = replace(images, pixels=images.pixels[:1], text=text, valid=images.valid[:1])
    found = losses(task, replace(batch, images=one, regions=None))
    assert found["images/matching"] == 0
    assert found["images/contrastive"] == pytest.approx(0, abs=1e-6)
    assert found["images/mlm"] > 0


def test_a_batch_of_whole_images_has_a_zero_box_loss(task, batch):
    regions = replace(batch.regions, is_image=torch.ones_like(batch.regions.is_image))
    found = losses(task, replace(batch, images=None, regions=regions))
    assert found["regions/l1"] == found["regions/giou"] == 0


def test_without_regions_the_box_head_is_not_trained(tiny_overrides):
    config = load_config(DEMO, [*tiny_overrides, "data.regions=null"], PretrainConfig)
    task = PretrainTask.build(config)
    assert not any(parameter.requires_grad for parameter in task.model.box_head.parameters())
    batch = next(task.train_loader().batches(0, 1))
    sum(term.total for term in task.model(batch).values()).backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters() if parameter.requires_grad)


def test_a_text_stream_alone_is_rejected(tiny_overrides):
    overrides = ["data.images=null", "data.regions=null", "data.texts={files: [a.jsonl], batch_size: 2}"]
    with pytest.raises(UserError, match="texts alone cannot be aligned"):
        load_config(DEMO, [*tiny_overrides, *overrides], PretrainConfig)


def test_a_text_stream_is_mixed_in(tiny_overrides, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a small red star"}\n{"text": "a large blue circle"}\n')
    stream = f"data.texts={{files: [{path}], batch_size: 2, weight: 0.5}}"
    task = PretrainTask.build(load_config(DEMO, [*tiny_overrides, stream], PretrainConfig))
    batch = next(task.train_loader().batches(0, 1))
    term = task.model(batch)["texts/mlm"]
    assert term.weight == 0.5
    assert term.total > 0


@pytest.fixture(scope="module")
def evaluator(task) -> PretrainEvaluator:
    return task.evaluator()


def test_metrics_are_shares_with_chance_levels(evaluator):
    with evaluating(evaluator.model, "fp32"):
        evaluation = evaluator.evaluate()
    shares = [metric for metric in evaluation.metrics if metric.unit == "share"]
    assert len(shares) >= 7
    assert all(0 <= metric.value <= 1 and 0 <= metric.chance <= 1 for metric in shares)
    assert evaluation["records"].value == 8
    assert "8 records" in evaluation.table()


@pytest.mark.parametrize(("shift", "right"), [(0, 1.0), (1, 0.0)])
def test_a_masked_word_is_correct_if_its_token_is_the_likeliest(evaluator, monkeypatch, shift, right):
    labels = []

    def noted(text):
        positions, words = masked_positions(text)
        labels.append(words)
        return positions, words

    def predicted(texts, images, positions):
        return torch.nn.functional.one_hot(labels[-1].clamp(min=0) + shift, 1000).float()

    monkeypatch.setattr(pretrain_evaluation, "masked_positions", noted)
    monkeypatch.setattr(evaluator.model, "predict_words", predicted)
    with evaluating(evaluator.model, "fp32"):
        metrics = {metric.name: metric.value for metric in evaluator.evaluate().metrics}
    assert metrics["masked word"] == right


def evaluated(evaluator, **settings) -> Evaluation:
    """The result with other settings of the section ``evaluation``."""
    other = copy(evaluator)
    other.config = evaluator.config.model_copy(update=settings)
    other.reader = replace(evaluator.reader, config=other.config)
    with evaluating(evaluator.model, "fp32"):
        return other.evaluate()


def test_pairs_are_ranked_by_the_configured_score(evaluator, monkeypatch):
    scores = []
    by = Rankings.by
    monkeypatch.setattr(Rankings, "by", lambda self, score: (scores.append(score), by(self, score))[1])
    for score in ("cosine", "matching", "sum"):
        evaluation = evaluated(evaluator, score=score)
        assert (OneLine("log-odds", "cosine") in evaluation.table().splitlines()) == (score == "sum")
        assert ("image to text R@1 (reranked)" in evaluation.values()) == (score != "cosine")
        assert evaluation.chosen_score is None
    assert scores == ["matching", "sum"]


@pytest.mark.parametrize("best", ["cosine", "matching", "sum"])
def test_auto_chooses_the_score_on_validation_records(evaluator, scenes_folder, monkeypatch, best):
    """The recall of the chosen score is measured on the records of ``files``."""
    measured = []

    def chosen(rankings, image_of_text):
        measured.append(len(image_of_text))
        return best

    monkeypatch.setattr(Rankings, "best_score", chosen)
    found = evaluated(evaluator, score="auto", validation_files=[f"{scenes_folder}/test.jsonl"], limit=5)
    assert measured == [5] and found.chosen_score == best
    expected = evaluated(evaluator, score=best)
    assert found.values() == expected.values()
    assert OneLine("chosen", "validation") in found.table().splitlines()
    assert Evaluation.of(found.as_json()).chosen_score == best


def test_auto_needs_validation_records(tiny_overrides):
    with pytest.raises(UserError, match="set validation_files"):
        load_config(DEMO, [*tiny_overrides, "evaluation.score=auto"], PretrainConfig)
    files = load_config(DEMO, tiny_overrides, PretrainConfig).evaluation.files
    with pytest.raises(UserError, match="is in files and validation_files"):
        load_config(DEMO, [*tiny_overrides, f"evaluation.validation_files={files}"], PretrainConfig)


@pytest.mark.parametrize(
    ("losses", "missing"),
    [
        ({"contrastive"}, ("reranked", "box", "phrases", "word")),
        ({"contrastive", "matching", "l1"}, ("word",)),
        ({"mlm", "giou"}, ("R@1", "records")),
    ],
)
def test_what_no_loss_trains_is_not_evaluated(evaluator, losses, missing):
    every, other = evaluated(evaluator).values(), copy(evaluator)
    other.losses = losses
    found = evaluated(other).values()
    assert found == {name: each for name, each in every.items() if not any(word in name for word in missing)}
    assert len(found) < len(every)


def test_heads_of_a_checkpoint_are_evaluated_although_the_run_does_not_train_them(tiny_overrides, tmp_path):
    alone = ["data.regions=null", "loss.matching=0", "loss.mlm=0", "loss.l1=0", "loss.giou=0"]
    config = load_config(DEMO, [*tiny_overrides, *alone], PretrainConfig)
    assert PretrainTask.build(config).evaluator().losses == {"contrastive"}
    task = PretrainTask.build(config)
    task.config = config.model_copy(update={"init": config.init.model_copy(update={"checkpoint": "runs/a"})})
    assert task.evaluator().losses >= {"contrastive", "matching", "mlm", "l1", "giou"}


def test_a_result_that_is_not_among_the_candidates_is_said_in_words(evaluator, monkeypatch):
    monkeypatch.setattr(two_stage, "ranks_of_first_match", lambda scores, right: np.full(len(scores), NO_MATCH))
    ranks = evaluated(evaluator, candidates=3).predictions[0]["ranks"]
    assert ranks["reranked"]["image to text"] == "not among the 3 candidates"
    assert ranks["cosine"]["image to text"] == "not among the 8 candidates", "all records are candidates by cosine"


@pytest.mark.parametrize(("reranked", "worse"), [(0.4, True), (0.5, False), (0.6, False)])
def test_the_table_says_if_re_ranking_makes_the_ranking_worse(reranked, worse):
    metrics = [
        Metric(f"{direction} R@1 ({name})", value)
        for direction in ("image to text", "text to image")
        for name, value in (("cosine", 0.5), ("reranked", reranked))
    ]
    notes = reranking_notes(metrics, " (reranked)", " (cosine)")
    table = Evaluation(tuple(metrics), notes=notes).table()
    assert (table.splitlines()[-1] == OneLine("40.0%", "50.0%", "evaluation.score")) == worse
    for note in reranking_notes(metrics, " (reranked)", " (cosine)", chosen="sum"):
        assert note == OneLine("50.0%", "sum was the best") and "evaluation.score" not in note


def test_predictions_of_pre_training_are_boxes_and_ranks(evaluator, scenes_folder):
    with evaluating(evaluator.model, "fp32"):
        evaluation = evaluator.evaluate()
    predictions = evaluation.predictions
    rows = [json.loads(line) for line in (scenes_folder / "val.jsonl").read_text().splitlines()]
    assert [each["place"] for each in predictions] == [f"{scenes_folder}/val.jsonl:{n}" for n in range(1, 9)]
    for stage in ("cosine", "reranked"):
        first = np.mean([each["ranks"][stage]["text to image"] == 1 for each in predictions])
        assert first == pytest.approx(evaluation[f"text to image R@1 ({stage})"].value)
    for each, row in zip(predictions, rows, strict=True):
        assert [box["true"] for box in each["boxes"]] == [pytest.approx(element["bb"]) for element in row["elems"]]
    ious = [box["iou"] for each in predictions for box in each["boxes"] if box["grain"] == "object"]
    assert np.mean(np.array(ious) >= 0.5) == pytest.approx(evaluation["object box, IoU >= 0.5"].value)


def test_long_captions_are_ranked_separately(evaluator, monkeypatch):
    """They get the same ranks as the captions of records that have no other captions."""
    records = [
        replace(record, long_captions=[f"{record.captions[0]} left of a small red star"] if index % 2 else [])
        for index, record in enumerate(evaluator.records)
    ]
    long = [replace(each, captions=each.long_captions, long_captions=[]) for each in records if each.long_captions]
    found, alone = {}, {}
    for given, metrics in ((records, found), (long, alone)):
        monkeypatch.setattr(evaluator, "records", given)
        with evaluating(evaluator.model, "fp32"):
            metrics |= {metric.name: metric.value for metric in evaluator.evaluate().metrics}
    assert found["records"] == 8
    assert found["records with a long caption"] == alone["records"] == 4
    for stage in ("cosine", "reranked"):
        assert found[f"image to long text R@1 ({stage})"] == alone[f"image to text R@1 ({stage})"]
        assert found[f"long text to image R@1 ({stage})"] == alone[f"text to image R@1 ({stage})"]
    assert not [name for name in alone if "long" in name]


def test_the_sheet_of_pre_training_has_images_spread_over_the_records(evaluator, tmp_path, monkeypatch):
    with evaluating(evaluator.model, "fp32"):
        evaluator.evaluate()
    panels: list[Any] = []
    monkeypatch.setattr(pretrain_evaluation, "draw_sheet", lambda sheet, path: panels.extend(sheet.panels))
    evaluator.draw(tmp_path / "predictions.png")
    assert len(panels) == 2
    first, last = (evaluator.with_boxes[index] for index in (0, -1))
    for panel, record in zip(panels, (first, last), strict=True):
        (picture,) = panel.pictures
        assert picture.pixels.shape == (320, 320, 3), "the 32 pixels of the file, each repeated ten times"
        assert torch.equal(torch.from_numpy(picture.pixels[::10, ::10].copy()).permute(2, 0, 1), record.pixels)
        assert [line.text.split(" · ")[1] for line in panel.lines[: len(record.elements)]] == [
            element.caption for element in record.elements
        ]
        assert len(picture.boxes) == len(record.elements)


def with_videos(tiny_overrides, tmp_path, *more: str) -> PretrainConfig:
    rows = [{"video": [encoded(n), encoded(n + 1)], "caption": f"a small red star {n}"} for n in range(8)]
    path = tmp_path / "videos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = f"data.videos={{files: [{path}], batch_size: 3, weight: 0.5}}"
    return load_config(DEMO, [*tiny_overrides, stream, "model.vision.video.frames=2", *more], PretrainConfig)


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_a_video_stream_is_mixed_in(tiny_overrides, tmp_path, pooling):
    task = PretrainTask.build(with_videos(tiny_overrides, tmp_path, f"model.vision.video.pooling={pooling}"))
    batch = next(task.train_loader().batches(0, 1))
    terms = task.model(batch)
    assert terms.keys() == task.model.counts(batch).keys()
    assert {name: term.weight for name, term in terms.items() if name.startswith("videos/")} == {
        "videos/contrastive": 0.5,
        "videos/matching": 2.5,
        "videos/mlm": 0.5,
    }
    sum(term.total for term in terms.values()).backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


def test_after_the_last_matching_step_the_losses_keep_their_names(tiny_overrides, tmp_path):
    task = PretrainTask.build(with_videos(tiny_overrides, tmp_path, "data.matching_steps=1"))
    first, second = task.train_loader().batches(0, 2)
    assert first.unmatched == ()
    assert second.unmatched == ("images", "videos", "regions")
    terms = task.model(second)
    assert terms.keys() == task.model(first).keys()
    assert all(terms[f"{stream}/matching"].total == 0 for stream in second.unmatched)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("{words: 1}", "names 'words', which is not a loss of this run"),
        ("{whole_image_boxes: 1}", "names 'whole_image_boxes', which is not a loss of this run"),
        ("{mlm: 100}", "mlm would begin after 100 steps, but the run has 100"),
    ],
)
def test_a_loss_that_never_begins_is_an_error(tiny_overrides, losses, message):
    with pytest.raises(UserError, match=naming(message)):
        load_config(DEMO, [*tiny_overrides, "train.steps=100", f"data.losses_from={losses}"], PretrainConfig)


def test_a_loss_that_starts_later_is_zero_until_then_and_its_parameters_wait(tiny_overrides):
    task = PretrainTask.build(
        load_config(DEMO, [*tiny_overrides, "data.losses_from={matching: 1, mlm: 2}"], PretrainConfig)
    )
    totals = []
    for batch in task.train_loader().batches(0, 3):
        terms = task.model(batch)
        sum(term.total for term in terms.values()).backward()
        assert all(each.grad is not None for each in task.model.parameters() if each.requires_grad)
        totals.append({name: bool(term.total != 0) for name, term in terms.items()})
        assert {name for name, count in task.model.counts(batch).items() if count == 0} == {
            name for name, computed in totals[-1].items() if not computed
        }
    every = {name.split("/")[1] for name in totals[0]}
    computed = [{name.split("/")[1] for name, found in each.items() if found} for each in totals]
    assert computed == [every - {"matching", "mlm"}, every - {"mlm"}, every]


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_held_out_videos_are_found_with_or_without_images(tiny_overrides, tmp_path, pooling):
    held_out = f"evaluation.video_files=[{tmp_path}/videos.jsonl]"
    given = (held_out, f"model.vision.video.pooling={pooling}")
    task = PretrainTask.build(with_videos(tiny_overrides, tmp_path, *given))
    with evaluating(task.model, "fp32"):
        both = task.evaluator().evaluate()
    alone = PretrainTask.build(with_videos(tiny_overrides, tmp_path, *given, "evaluation.files=[]"))
    with evaluating(alone.model, "fp32"):
        videos = alone.evaluator().evaluate()
    assert (both["records"].value, both["videos"].value) == (8, 8)
    for name in ("video to text R@1 (cosine)", "text to video R@1 (cosine)", "text to video R@1 (reranked)"):
        assert videos[name].chance == 1 / 8
        assert both[name] == videos[name]
    assert not [name for name in videos.values() if "image" in name or name == "records"]


def test_held_out_videos_need_a_stream_that_configures_their_reading(tiny_overrides, tmp_path):
    with_videos(tiny_overrides, tmp_path)
    held_out = f"evaluation.video_files=[{tmp_path}/videos.jsonl]"
    with pytest.raises(UserError, match=naming("evaluation.video_files", "data.videos")):
        PretrainTask.build(load_config(DEMO, [*tiny_overrides, held_out], PretrainConfig))
    with pytest.raises(UserError, match=naming("evaluation", "files, region_files or video_files")):
        load_config(DEMO, [*tiny_overrides, "evaluation.files=[]"], PretrainConfig)


def test_a_video_stream_and_the_number_of_frames_need_each_other(tiny_overrides, tmp_path):
    for missing in ("model.vision.video=null", "data.videos=null"):
        with pytest.raises(UserError, match=r"data.videos and model.vision.video require each other"):
            with_videos(tiny_overrides, tmp_path, missing)


def test_hard_negatives_without_a_loss_that_uses_them_are_rejected(tiny_overrides):
    no_alignment = ["loss.contrastive=0", "loss.matching=0"]
    with pytest.raises(ConfigError, match=r"data.images.hard_negatives are only used by .* whose weights are 0; set"):
        load_config(
            "configs/demo/pretrain.yaml",
            [*tiny_overrides, "data.images.hard_negatives={}", *no_alignment],
            PretrainConfig,
        )


def test_a_run_logs_how_many_texts_have_hard_negatives(tiny_overrides, caplog):
    with caplog.at_level(logging.INFO):
        PretrainTask.build(
            load_config(
                DEMO,
                [*tiny_overrides, "data.images.hard_negatives={sources: [given]}", "data.regions.hard_negatives={}"],
                PretrainConfig,
            )
        )
    message = [record for record in caplog.records if "have a hard negative" in record.getMessage()]
    images, regions = message
    assert images.levelname == "WARNING"
    assert images.getMessage().startswith("data.images: 0.0% of ")
    assert "add other sources, or hard_negatives to the records" in images.getMessage()
    assert regions.levelname == "INFO"
    assert regions.getMessage().startswith("data.regions: 100.0% of ")
    assert "given 0.0%, exchanged " in regions.getMessage() and ", replaced 100.0%" in regions.getMessage()


def test_hard_negatives_join_the_contrastive_and_the_matching_loss(tiny_overrides, scenes_folder):
    """Each image is compared with one more text, and the losses count the same number of pairs."""
    pairs = f"data.images.files=[{scenes_folder}/train.jsonl, {scenes_folder}/pairs_train.jsonl]"
    more = [
        pairs,
        "data.images.hard_negatives={count: 2}",
        "data.regions.hard_negatives={}",
        "data.images.captions=both",
    ]
    still = ["model.text.dropout=0", "model.vision.drop_path=0"]
    task = PretrainTask.build(load_config(DEMO, [*tiny_overrides, *more, *still], PretrainConfig))
    batch = next(task.train_loader().batches(consumed=0, count=1))
    assert batch.images.hard_negatives.valid.any() and batch.regions.hard_negatives.valid.any()
    without = replace(
        batch,
        images=replace(batch.images, hard_negatives=None),
        regions=replace(batch.regions, hard_negatives=None),
    )
    with_them, others = losses(task, batch), losses(task, without)
    for name, value in with_them.items():
        joined = name in ("images/contrastive", "regions/contrastive")
        assert (
            value > others[name]
            if joined
            else name.endswith("matching") or value == pytest.approx(others[name], rel=1e-5)
        )
    counts = task.model.counts(batch)
    assert all(counts[name] == count for name, count in task.model.counts(without).items())
