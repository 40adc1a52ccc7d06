"""What a fine-tuned model loses: splits of earlier data with the starting and the final weights, and replay of earlier data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.text.loading import load_tokenizer
from models.checkpoints.files import read_weights
from tasks.binding import bind_run
from tasks.config import RetrievalConfig
from tasks.finetune import FineTuneTask
from tasks.inference import evaluating
from tasks.retrieval import RetrievalTask
from tests.messages import OneLine, naming
from tests.tasks.painted import FILES, KINDS, ROOT
from tests.tasks.test_finetune import start
from utils.config import load_config
from utils.errors import UserError


def replaying(task: str, data, share: float) -> list[str]:
    file, earlier = FILES.get(task, "annotations"), f"{data}/{task}_test.jsonl"
    train = f"[{{questions: {earlier}}}]" if task == "vqa" else f"{{{file}: {earlier}}}"
    return [f"data.replay={{share: {share}, train: {train}}}"]


@pytest.fixture(scope="module")
def first(tmp_path_factory, overrides):
    """A run to start from."""
    folder = tmp_path_factory.mktemp("first")
    start("retrieval", folder / "run", overrides("retrieval"))
    return folder / "run"


def keeping(first, data) -> list[str]:
    return [f"init.checkpoint={first}", f"evaluation.keep.test.old.annotations={data}/retrieval_val.jsonl"]


def test_everything_is_measured_with_the_starting_weights_too(first, data, overrides, tmp_path, capsys):
    found = start("retrieval", tmp_path / "run", [*overrides("retrieval"), *keeping(first, data)])
    assert list(found) == ["test", "keep: old", "phrases of test in images of old"]
    assert "before  measured" in capsys.readouterr().out
    task = RetrievalTask.build(
        load_config(tmp_path / "run" / "config.yaml", [f"init.checkpoint={first}"], RetrievalConfig), trains=False
    )
    with evaluating(task.model, "fp32"):
        for name, items in (("test", task.held_out.test["test"]), ("keep: old", task.held_out.kept["old"])):
            expected = task.evaluate(items).values()
            for metric, values in found[name].items():
                assert values.get("before") == (None if values["unit"] == "count" else expected[metric])
    assert any(each["before"] != each["value"] for each in found["keep: old"].values() if "before" in each)


def test_weights_that_do_not_change_lose_nothing(first, data, overrides, tmp_path):
    sets = [*overrides("retrieval"), *keeping(first, data), "optim.lr=1e-30", "optim.weight_decay=0"]
    found = start("retrieval", tmp_path / "run", sets)
    measured = [each for split in found.values() for each in split.values() if "before" in each]
    assert len(measured) > 10
    assert all(each["before"] == pytest.approx(each["value"]) for each in measured)


def test_phrases_are_absent_if_their_log_odds_are_below_those_of_present_phrases(first, data, overrides):
    task = RetrievalTask.build(
        load_config(
            ROOT / "configs/demo/retrieval.yaml", [*overrides("retrieval"), *keeping(first, data)], RetrievalConfig
        )
    )
    items, earlier = task.held_out.test["test"], task.held_out.kept["old"]

    def score(caption: str, source) -> float:
        view, text = task.held_out.view(source), task.text.encode_plain([caption])
        return float(task._matched([view], text)[0])

    with evaluating(task.model, "fp32"):
        own = [score(item.caption, item.source) for item in items]
        foreign = [score(item.caption, earlier.images[n % len(earlier.images)]) for n, item in enumerate(items)]
        found = task.evaluate_absent(items, earlier)["recognised as absent"].value
    assert found == pytest.approx(np.mean(np.array(foreign) < np.quantile(own, 0.05)))


def test_keep_needs_weights_to_start_from(data, overrides):
    sets = [*overrides("retrieval"), f"evaluation.keep.test.old.annotations={data}/retrieval_val.jsonl"]
    with pytest.raises(UserError, match=naming("evaluation.keep", "set init.checkpoint")):
        load_config(ROOT / "configs/demo/retrieval.yaml", sets, RetrievalConfig)


@pytest.mark.parametrize("task", KINDS)
def test_each_batch_has_a_share_of_replayed_examples(task, data, overrides):
    kind = KINDS[task]
    sets = [*overrides(task), *replaying(task, data, 0.25), "data.batch_size=8"]
    config = load_config(ROOT / f"configs/demo/{task}.yaml", sets, kind.config)
    assert config.data.records_per_batch == 6 and config.data.micro_batch.size == 8
    tokenizer = load_tokenizer(config.model.text.encoder)
    assert issubclass(kind.task, FineTuneTask)
    model = kind.task.build_model(config, len(tokenizer))
    batches = kind.task.training_data(config, tokenizer, model, config.plan(1))
    batch = batches.make(3)
    new, old = (f"{batches.name}{suffix}" for suffix in ("", "/replay"))
    assert {name: count.read for name, count in batch.counts.items()} == {new: 6, old: 2}
    assert list(batches.stream_sizes) == [new, old]
    # A function of the number only, and two epochs of the earlier data contain every example twice.
    again = kind.task.training_data(config, tokenizer, model, config.plan(1)).make(3)
    assert torch.equal(again.text.ids, batch.text.ids)
    size = batches.stream_sizes[old]
    seen = [index for number in range(size) for index, _ in batches.replay.source.samples(number)]
    assert sorted(seen) == sorted([*range(size)] * 2)


def test_replayed_images_are_negatives_of_the_others(data, overrides):
    sets = [*overrides("retrieval"), *replaying("retrieval", data, 0.5), "data.batch_size=8"]
    config = load_config(ROOT / "configs/demo/retrieval.yaml", sets, RetrievalConfig)
    tokenizer = load_tokenizer(config.model.text.encoder)
    batches = RetrievalTask.training_data(config, tokenizer, None, config.plan(1))
    images = len(batches.items.images)
    for number in range(5):
        groups = batches.make(number).group
        assert all(groups[:4] < images) and all(groups[4:] >= images)


def check_resume(folder, sets: list[str]) -> None:
    """Trains once without and once with an interruption after step 2, and compares the last losses."""
    start("retrieval", folder / "whole", sets)
    start("retrieval", folder / "cut", sets)
    for step in (4, 6):
        shutil.rmtree(folder / f"cut/checkpoints/step-{step:08d}")
    start("retrieval", folder / "cut", sets, "--resume")
    whole, cut = (
        json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("whole", "cut")
    )
    assert whole["loss"] == cut["loss"]


def test_a_run_with_replay_resumes_exactly(first, data, overrides, tmp_path):
    sets = [*overrides("retrieval"), *replaying("retrieval", data, 0.5), "train.checkpoint_every=2"]
    check_resume(tmp_path, [*sets, "train.deterministic=true", "train.keep_checkpoints=9"])


def test_a_micro_batch_of_one_example_has_no_room_for_replay(data, overrides):
    sets = [*overrides("retrieval"), *replaying("retrieval", data, 0.5), "data.batch_size=1"]
    with pytest.raises(UserError, match=naming("no room for replay")) as caught:
        load_config(ROOT / "configs/demo/retrieval.yaml", sets, RetrievalConfig)
    assert str(caught.value) == OneLine("raise batch_size")


def test_distillation_adds_the_divergence_from_the_similarities_of_the_starting_model(first, data, overrides, tmp_path):
    """It is zero in the first step, in which the model equals its teacher."""
    sets = [*overrides("retrieval"), f"init.checkpoint={first}", "optim.lr=3e-3"]
    rows: dict[int, list[dict]] = {}
    for weight in (0, 2):
        start("retrieval", tmp_path / str(weight), [*sets, f"loss.distillation={weight}"])
        lines = (tmp_path / str(weight) / "metrics.jsonl").read_text().splitlines()
        rows[weight] = [row for row in map(json.loads, lines) if "loss" in row]
    assert not any("distillation" in row for row in rows[0])
    for row in rows[2]:
        assert row["loss"] == pytest.approx(row["contrastive"] + row["matching"] + 2 * row["distillation"])
    found = [row["distillation"] for row in rows[2]]
    assert found[0] == pytest.approx(0, abs=1e-3)  # dropout
    assert min(found[2:]) > found[0]
    assert rows[2][0]["contrastive"] == rows[0][0]["contrastive"]
    # The teacher is in no checkpoint.
    names = [set(read_weights(tmp_path / str(weight) / "best.safetensors")) for weight in (0, 2)]
    assert names[0] == names[1]


def test_a_run_with_distillation_resumes_exactly(first, data, overrides, tmp_path):
    sets = [*overrides("retrieval"), f"init.checkpoint={first}", "loss.distillation=2", "train.checkpoint_every=2"]
    sets += ["train.deterministic=true", "train.keep_checkpoints=9", "optim.lr=3e-3"]
    check_resume(tmp_path, sets)


def test_distillation_needs_weights_to_start_from(data, overrides):
    sets = [*overrides("retrieval"), "loss.distillation=1"]
    with pytest.raises(UserError, match=naming("loss.distillation", "set init.checkpoint")):
        load_config(ROOT / "configs/demo/retrieval.yaml", sets, RetrievalConfig)


def kept(task: str, sets: list[str]) -> dict | None:
    run = bind_run(ROOT / f"configs/demo/{task}.yaml", [*sets, "evaluation.keep=start"])
    return run.config.evaluation.keep


def test_keep_can_be_the_held_out_files_of_the_run_that_a_run_starts_from(first, data, overrides):
    keep = kept("retrieval", [*overrides("retrieval"), f"init.checkpoint={first}"])
    assert [split.annotations for split in keep.test.values()] == [f"{data}/retrieval_test.jsonl"]
    assert keep.validation.annotations == f"{data}/retrieval_val.jsonl"


@pytest.mark.parametrize(("task", "files"), [("retrieval", ["a", "b"]), ("grounding", ["c"])])
def test_the_held_out_files_of_pre_training_are_those_of_images_or_of_regions(task, files, overrides, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    evaluation = {"files": ["a.jsonl", "b.jsonl"], "region_files": ["c.jsonl"], "validation_files": ["v.jsonl"]}
    (run / "config.yaml").write_text(json.dumps({"task": "pretrain", "evaluation": evaluation}))
    (run / "model.safetensors").write_bytes(b"")
    keep = kept(task, [*overrides(task), f"init.checkpoint={run}"])
    assert [Path(split.annotations).stem for split in keep.test.values()] == files
    assert list(keep.test) == [f"earlier{number or ''}" for number in range(len(files))]
    assert Path(keep.validation.annotations).stem == "v"


@pytest.mark.parametrize(
    ("task", "start", "said"),
    [
        ("retrieval", None, "start needs a run to start from"),
        ("retrieval", "file", "is not in a run's folder"),
        ("vqa", "first", "is a run of the task retrieval without held-out files that vqa can read"),
    ],
)
def test_without_such_files_the_user_names_them(task, start, said, first, overrides, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    checkpoint = {None: "null", "file": file, "first": first}[start]
    with pytest.raises(UserError, match=naming(said, "name the splits in evaluation.keep.test")):
        kept(task, [*overrides(task), f"init.checkpoint={checkpoint}"])
