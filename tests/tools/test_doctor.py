"""``run.py doctor`` checks a config and its data before a run: each error and each warning is reported for bad data, and none for
good data."""

import json
import re
import shutil
import sys
from argparse import Namespace
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from batches.pretraining import RegionBatch
from dataset.prepare.tokenizer import train_wordpiece
from run import main
from tasks.binding import bind_run
from tasks.retrieval import RetrievalTask
from tests.conftest import tiny_run
from tests.messages import OneLine
from tools.doctor import checks, memory, sample, shared
from tools.doctor.image_blind import start_not_above
from tools.steps.fake import StepMemory

FINE = "0 refused, 0 warnings, 0 not checked"


def unwrapped(printed: str) -> list[str]:
    """Each check, and each finding with its fact and remedy, on its own line."""
    lines: list[str] = []
    for line in printed.splitlines():
        starts = not lines or re.match(r"  (ok|warning|refused|not checked) | +\d+\. |\S", line)
        text = " ".join(line.split())
        lines = [*lines, text] if starts else [*lines[:-1], f"{lines[-1]} {text}".rstrip()]
    return lines


@pytest.fixture
def doctor(capsys, tmp_path, monkeypatch):
    """Runs the command and returns its exit status and output. The memory estimate takes most of the time, so it is only made
    with ``estimate``."""

    def run(*argv: str, estimate: bool = False) -> tuple[int, str]:
        if not estimate:
            monkeypatch.setattr(checks, "CHECKS", [check for check in checks.CHECKS if check.section != "memory"])
        monkeypatch.setattr(sample, "MICRO_BATCHES", 20)  # all of the 80 captions
        monkeypatch.setattr(shared, "MAX_LOOKS", 3)
        status = main(["doctor", *argv, "--out", str(tmp_path / "out")])
        printed = capsys.readouterr()
        return status, "\n".join(unwrapped(printed.out + printed.err))

    return run


@pytest.fixture
def arguments_of(scenes_folder):
    """Returns a function that returns the arguments of a good run of a task on the small scenes."""

    def of(task: str, **splits: object) -> list[str]:
        tiny = tiny_run(scenes_folder)
        if task == "pretrain":
            return ["--config", "configs/demo/pretrain.yaml", *tiny]
        names = {"grounding": "refer", "vqa": "vqa"}
        files = {split: f"{scenes_folder}/{names.get(task, task)}_{split}.jsonl" for split in ("train", "val", "test")}
        files |= splits  # type: ignore[arg-type]
        key = "questions" if task == "vqa" else "annotations"
        train = (
            f"data.train=[{{questions: {files['train']}}}]" if task == "vqa" else f"data.train.{key}={files['train']}"
        )
        return [
            *("--config", f"configs/demo/{task}.yaml", "init.checkpoint=null", "data.batch_size=4", train),
            *(f"evaluation.validation.{key}={files['val']}", f"evaluation.test.test.{key}={files['test']}"),
            *([f"evaluation.answers={scenes_folder}/vqa_answers.json"] if task == "vqa" else []),
            *(each for each in tiny if each.startswith(("model.", "train.", "schedule."))),
            *("train.validate_every=4", "data.max_broken=0.1", "train.steps=200"),
        ]

    return of


def rewritten(path: Path, out: Path, change) -> str:
    """JSON lines with each record changed and with absolute image paths."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    changed = []
    for number, row in enumerate(rows):
        row["image"] = str(path.parent / row["image"])
        changed.append(json.dumps(change(number, row)) + "\n")
    out.write_text("".join(changed))
    return str(out)


def with_boxes(change):
    """A change of records that is applied to each of their boxes."""

    def of_record(_, row):
        return {**row, "elems": [{**element, "bb": change(element["bb"])} for element in row["elems"]]}

    return of_record


RELATIVE = with_boxes(lambda box: [value / 32 for value in box])
CORNERS = with_boxes(lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]])


@pytest.mark.parametrize("task", ["pretrain", "retrieval", "grounding", "vqa", "nlvr", "captioning"])
def test_a_good_run_has_no_findings(task, doctor, arguments_of, tmp_path):
    status, printed = doctor(*arguments_of(task), estimate=task == "retrieval")
    assert status == 0
    assert FINE in printed
    assert "grad_norm" in printed
    assert "images/s per core" in printed and "the GPU needs up to" not in printed  # of an unknown device
    assert Image.open(tmp_path / "out" / "first_batch.png").width > 300


@pytest.mark.slow
def test_the_step_of_a_sharded_model_uses_fsdp(doctor, arguments_of):
    status, printed = doctor(*arguments_of("pretrain"), "--gpus", "2", "train.parallel=fsdp")
    assert status == 0
    assert printed.count("FSDP2") == 2, "images and regions"
    assert not torch.distributed.is_initialized()


def test_all_missing_files_are_reported_at_once(doctor, arguments_of):
    missing = ["model.text.encoder=data/nowhere", "init.checkpoint=weights/none.pth", "data.train.images=data/none"]
    status, printed = doctor(*arguments_of("retrieval", val="data/none.jsonl"), *missing)
    assert status == 1
    for place in ("data/nowhere", "weights/none.pth", "data/none", "data/none.jsonl"):
        assert f"{place} does not exist" in printed
    assert "4. refused" in printed and "5. refused" not in printed
    for check in ("tokenizer", "model", "weights", "training", "batch", "sample", "image", "step", "checkpoints"):
        assert f"- {check} not checked: " in printed
    assert "evaluation.test.test: 8 images or videos" in printed
    assert "python run.py tokenizer" in printed


def test_a_mistake_in_the_config_is_reported_in_one_line(doctor, arguments_of):
    status, printed = doctor(*arguments_of("retrieval"), "data.batch_siz=4")
    assert status == 2
    assert printed == OneLine("error", "data.batch_siz")


def test_a_global_batch_that_does_not_divide_is_rejected(doctor, arguments_of):
    status, printed = doctor(*arguments_of("retrieval"), "train.global_batch=10", "train.accumulate=null")
    assert status == 1
    assert "train.global_batch" in printed and "not a multiple of 4" in printed


def test_lanes_that_the_ranks_do_not_divide_are_rejected(doctor, arguments_of):
    blocks = ["data.images.order=blocks", "data.images.lanes=4"]
    assert FINE in doctor(*arguments_of("pretrain"), *blocks, "--gpus", "2")[1]
    status, printed = doctor(*arguments_of("pretrain"), *blocks, "--gpus", "3")
    assert status == 1
    assert OneLine("3 ranks", "lanes") in printed.splitlines() and "run on 1, 2 or 4 ranks" in printed


@pytest.mark.parametrize(("flags", "fine"), [(["--gpus", "20"], True), (["--gpus", "21"], False)])
def test_a_contrastive_batch_larger_than_the_data_is_rejected(flags, fine, doctor, arguments_of):
    """There are 80 captions."""
    status, printed = doctor(*arguments_of("retrieval"), *flags)
    assert status == (0 if fine else 1)
    assert (OneLine("84", "80 captions") in printed.splitlines()) is not fine


def test_other_tasks_may_repeat_their_data_in_a_batch(doctor, arguments_of):
    status, _ = doctor(*arguments_of("grounding"), "--gpus", "1000", "train.steps=1", "schedule.warmup_steps=0")
    assert status == 0


def test_more_than_100_epochs_cause_a_warning(doctor, arguments_of):
    assert FINE in doctor(*arguments_of("retrieval"), "train.steps=2000")[1]
    status, printed = doctor(*arguments_of("retrieval"), "train.steps=2001")
    assert status == 0
    assert (
        OneLine("warning", "train fact", "100 passes") in printed.splitlines()
        and "train.steps=2000 (100 passes)" in printed
    )


@pytest.mark.slow
def test_fine_tuning_on_a_part_of_the_records_causes_a_warning(doctor, arguments_of):
    assert FINE in doctor(*arguments_of("retrieval"), "train.steps=10")[1]
    status, printed = doctor(*arguments_of("retrieval"), "train.steps=9")
    assert status == 0
    assert "9 steps x 4 = 36 of 80, 0.45 epochs" in printed and "train.steps=20 is one epoch" in printed
    assert FINE in doctor(*arguments_of("pretrain"), "train.steps=1", "schedule.warmup_steps=0")[1]


def test_questions_that_need_no_image_cause_a_warning(doctor, arguments_of, scenes_folder, tmp_path):
    same = lambda number, row: {**row, "answer": ["yes"] * 10}  # noqa: E731
    files = {
        split: rewritten(scenes_folder / f"vqa_{split}.jsonl", tmp_path / f"{split}.jsonl", same)
        for split in ("train", "val")
    }
    status, printed = doctor(*arguments_of("vqa", **files))
    assert status == 0
    assert "1 warning" in printed
    assert "warning: evaluation.validation fact: image-blind baseline 100.0% of" in printed
    assert OneLine("without the images") in printed.splitlines()
    assert "evaluation.test.test: image-blind baseline " in printed


def test_starting_from_a_run_that_ignores_the_images_causes_a_warning(scenes_folder, tmp_path):
    """The run's accuracy does not exceed its image-blind baseline."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(b"weights")
    (run / "config.yaml").write_text("task: vqa\n")
    metrics = {"questions": 800, "accuracy": 0.5, "image-blind baseline": 0.49}
    evaluation = {"test": {name: {"value": value} for name, value in metrics.items()}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    config = Namespace(task="vqa", init=Namespace(checkpoint=str(run)))
    (found,) = start_not_above(Namespace(config=config))
    assert (found.level, found.location) == ("warning", "init.checkpoint")
    assert found.fact == OneLine(f"{run}, test", "50.0%", "49.0%")
    assert start_not_above(Namespace(config=Namespace(task="retrieval", init=config.init))) == []
    (run / "evaluation.json").unlink()
    assert start_not_above(Namespace(config=config)) == []


def test_relative_boxes_are_rejected(doctor, arguments_of, scenes_folder, tmp_path):
    path = rewritten(scenes_folder / "refer_train.jsonl", tmp_path / "relative.jsonl", RELATIVE)
    status, printed = doctor(*arguments_of("grounding", train=path))
    assert status == 1
    assert "boxes lie within 0 and 1" in printed and OneLine("remedy", "relative") in printed.splitlines()


def test_relative_boxes_of_pre_training_are_rejected(doctor, arguments_of, scenes_folder, tmp_path):
    path = rewritten(scenes_folder / "train.jsonl", tmp_path / "relative.jsonl", RELATIVE)
    status, printed = doctor(*arguments_of("pretrain"), f"data.regions.files=[{path}]")
    assert status == 1
    assert "data.regions: all" in printed and "boxes lie within 0 and 1" in printed


def renamed(old: str, new: str):
    """A change of records that renames one of their keys."""
    return lambda _, row: {new if key == old else key: value for key, value in row.items()}


def test_regions_of_pre_training_without_any_box_are_rejected(doctor, arguments_of, scenes_folder, tmp_path):
    path = rewritten(scenes_folder / "train.jsonl", tmp_path / "regions.jsonl", renamed("elems", "regions"))
    status, printed = doctor(*arguments_of("pretrain"), f"data.regions.files=[{path}]", "data.max_broken=1")
    assert status == 1
    assert (
        OneLine("refused", "data.regions", "40 records", "box") in printed.splitlines()
        and f"{path}:1: no 'elems'" in printed
    )
    assert "data.regions=null" in printed


def test_phrases_without_any_box_are_rejected_once(doctor, arguments_of, scenes_folder, tmp_path):
    """The three splits are one file here, so the report lists its error once, with the three locations."""
    path = rewritten(scenes_folder / "refer_train.jsonl", tmp_path / "regions.jsonl", renamed("elems", "regions"))
    status, printed = doctor(*arguments_of("grounding", train=path, val=path, test=path))
    assert status == 1
    assert "no 'elems'; keys: id, image, regions" in printed and "''" not in printed
    assert "2 refused" in printed
    assert "2. refused: evaluation.validation, evaluation.test.test fact: " in printed
    assert "[2] evaluation.test.test: the same" in printed


def test_unknown_keys_of_records_are_listed_with_suggestions(doctor, arguments_of, scenes_folder, tmp_path):
    path = rewritten(scenes_folder / "refer_train.jsonl", tmp_path / "regions.jsonl", renamed("elems", "regions"))
    _, printed = doctor(*arguments_of("grounding", train=path))
    records = len(Path(path).read_text().splitlines())
    assert OneLine("data.train", "regions", f"{records} of {records}") in printed.splitlines()
    assert "did you mean elems?" in printed


def test_unknown_keys_of_phrases_are_listed_with_suggestions(doctor, arguments_of, scenes_folder, tmp_path):
    def changed(number, row):
        return {**row, "elems": [{**each, "attribute": ["red"], "score": 0.5} for each in row["elems"]]}

    path = rewritten(scenes_folder / "refer_train.jsonl", tmp_path / "phrases.jsonl", changed)
    _, printed = doctor(*arguments_of("grounding", train=path))
    assert OneLine("warning", "data.train", "elems", "attribute", "score") in printed.splitlines()
    assert "did you mean attributes?" in printed


def test_the_share_of_texts_with_hard_negatives_is_reported_and_a_low_share_causes_a_warning(doctor, arguments_of):
    status, printed = doctor(
        *arguments_of("pretrain"), "data.images.hard_negatives={sources: [given]}", "data.regions.hard_negatives={}"
    )
    assert status == 0
    message = " ".join(printed.split())
    assert "0.0% of" in message and "texts have a hard negative" in message
    assert "data.images.hard_negatives" in message
    assert "regions: 100.0% of" in message


def test_a_grid_too_coarse_for_the_objects_causes_a_warning(doctor, arguments_of):
    _, printed = doctor(*arguments_of("pretrain"))
    assert "share all their patches" in printed and "warning patches" not in printed
    status, printed = doctor(*arguments_of("pretrain"), "model.vision.patch_size=16")
    assert status == 0
    (line,) = [line for line in printed.splitlines() if line.startswith("warning patches")]
    assert line == OneLine("2 x 2 patches", "model.vision.image_size=32", "another part of the image")
    assert "raise model.vision.image_size (with 64, the grid has 4 x 4 patches)" in printed


def test_an_object_inside_another_object_is_not_counted_as_sharing_its_patches():
    """The objects are a shirt and the man who wears it, and, in another image, two birds."""
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.25, 0.25, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1]])
    mask = torch.tensor([[True, False, False, False]] * 4)
    no = torch.zeros(4, dtype=torch.bool)
    regions = RegionBatch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 0, 1, 1]), mask, boxes, no, no, None, ~no)  # type: ignore[arg-type]
    assert sample.objects_without_own_patches(regions) == (3, 3)
    apart = torch.tensor([[True, False, False, False], [True, False, True, False]] * 2)
    assert sample.objects_without_own_patches(replace(regions, patch_mask=apart)) == (1, 3)


def test_a_misspelled_key_of_hard_negatives_causes_a_warning(doctor, arguments_of, scenes_folder, tmp_path):
    for old, add in (("images", {"hard_negative": ["a zebra"]}), ("regions", {"elems": None})):

        def changed(number, row, add=add):
            if "elems" in add:
                return {**row, "elems": [{**each, "hard_negative": ["a zebra"]} for each in row["elems"]]}
            return {**row, **add}

        path = rewritten(scenes_folder / "train.jsonl", tmp_path / f"{old}.jsonl", changed)
        _, printed = doctor(*arguments_of("pretrain"), f"data.{old}.files=[{path}]")
        assert OneLine("warning", f"data.{old}", "hard_negative") in printed.splitlines()
        assert "did you mean hard_negatives?" in printed


def test_unusable_given_hard_negatives_cause_a_warning(doctor, arguments_of, scenes_folder, tmp_path):
    def changed(number, row):
        return {**row, "hard_negatives": ["", "!!!"] if number % 2 else row["caption"]}

    path = rewritten(scenes_folder / "train.jsonl", tmp_path / "train.jsonl", changed)
    more = [f"data.images.files=[{path}]", "data.images.hard_negatives={sources: [given]}"]
    _, printed = doctor(*arguments_of("pretrain"), *more)
    message = " ".join(printed.split())
    assert "hard_negatives of 40 of 40 records or phrases have no usable text: they are empty or a caption" in message
    _, printed = doctor(*arguments_of("pretrain"), more[1])
    assert "none of 40 records has hard_negatives" in " ".join(printed.split())


def test_keys_of_the_demos_own_data_are_known(doctor, arguments_of, scenes_folder):
    pairs = f"data.images.files=[{scenes_folder}/train.jsonl, {scenes_folder}/pairs_train.jsonl]"
    _, printed = doctor(*arguments_of("pretrain"), pairs)
    assert "unknown keys" not in printed


def test_long_captions_that_no_record_has_cause_a_warning(doctor, arguments_of):
    status, printed = doctor(*arguments_of("pretrain"), "data.images.captions=both")
    assert status == 0
    assert "data.images.captions requests long captions" in printed.replace("\n", " ")
    assert "data.regions.captions" not in printed


def test_a_warm_up_that_is_too_long_does_not_hide_errors_in_the_records(doctor, arguments_of, scenes_folder, tmp_path):
    path = rewritten(scenes_folder / "refer_train.jsonl", tmp_path / "regions.jsonl", renamed("elems", "regions"))
    _, printed = doctor(*arguments_of("grounding", train=path), "schedule.warmup_steps=1000000")
    assert "did you mean elems?" in printed and "no 'elems'" in printed
    assert "schedule.warmup_steps" in printed


def test_unused_keys_are_listed_without_a_warning(doctor, arguments_of, scenes_folder, tmp_path):
    add = lambda number, row: {**row, "licence": "free"} if number == 3 else row  # noqa: E731
    path = rewritten(scenes_folder / "retrieval_train.jsonl", tmp_path / "train.jsonl", add)
    status, printed = doctor(*arguments_of("retrieval", train=path))
    assert status == 0 and FINE in printed
    assert OneLine("data.train", "licence", "1 of 40") in printed.splitlines()


def test_the_shares_of_phrases_with_several_boxes_or_none_are_reported(doctor, arguments_of, scenes_folder, tmp_path):
    def changed(number, row):
        phrase = row["elems"][0]
        bb = [[phrase["bb"], phrase["bb"]], [], phrase["bb"], phrase["bb"]][number % 4]
        return {**row, "elems": [{**phrase, "bb": bb, "hard_negatives": ["a zebra"] if number % 2 else []}]}

    path = rewritten(scenes_folder / "refer_train.jsonl", tmp_path / "phrases.jsonl", changed)
    _, printed = doctor(*arguments_of("grounding", train=path))
    line = OneLine(
        "data.train", "phrases", "26.3% have several boxes", "26.3% have no box", "50.0% have hard negatives"
    )
    assert line in printed.splitlines()


def test_boxes_that_look_like_corners_cause_a_warning(doctor, arguments_of, scenes_folder, tmp_path):
    path = rewritten(scenes_folder / "refer_train.jsonl", tmp_path / "corners.jsonl", CORNERS)
    _, printed = doctor(*arguments_of("grounding", train=path))
    assert OneLine("warning", "data.train", "x1, y1, x2, y2") in printed.splitlines()
    assert OneLine("(32, 32)", path) in printed.splitlines()


def test_boxes_of_pre_training_that_look_like_corners_cause_a_warning(doctor, arguments_of, scenes_folder, tmp_path):
    path = rewritten(scenes_folder / "train.jsonl", tmp_path / "corners.jsonl", CORNERS)
    _, printed = doctor(*arguments_of("pretrain"), f"data.regions.files=[{path}]")
    assert OneLine("warning", "data.regions", "x1, y1, x2, y2") in printed.splitlines()


@pytest.mark.slow
def test_photographs_with_boxes_and_an_orientation_are_counted(doctor, arguments_of, scenes_folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6

    def change(number, row):
        if number < 3:
            name = str(tmp_path / f"{number}.jpg")
            Image.open(row["image"]).convert("RGB").save(name, exif=exif)
            row["image"] = name
        return row

    path = rewritten(scenes_folder / "train.jsonl", tmp_path / "train.jsonl", change)
    status, printed = doctor(*arguments_of("pretrain"), f"data.regions.files=[{path}]")
    assert status == 0
    assert OneLine("data.regions", "3 of 40", "EXIF") in printed.splitlines()
    path = rewritten(scenes_folder / "refer_train.jsonl", tmp_path / "refer.jsonl", change)
    _, printed = doctor(*arguments_of("grounding", train=path))
    assert OneLine("data.train", "3 of 38", "EXIF") in printed.splitlines()


@pytest.mark.parametrize(("every", "status", "reported"), [(1, 1, "none of the"), (2, 0, "are not among the")])
def test_answers_outside_the_list_are_counted(every, status, reported, doctor, arguments_of, scenes_folder, tmp_path):
    def change(number, row):
        return {**row, "answer": ["blargh"] * 10} if number % every == 0 else row

    path = rewritten(scenes_folder / "vqa_train.jsonl", tmp_path / "questions.jsonl", change)
    found, printed = doctor(*arguments_of("vqa", train=path))
    assert found == status
    assert f"1. {'warning' if status == 0 else 'refused'}: data.train fact: " in printed
    assert reported in printed and "'blargh'" in printed


def test_unknown_tokens_cause_a_warning(doctor, arguments_of, tmp_path):
    train_wordpiece(["привет мир"], tmp_path / "other", vocab_size=60)
    status, printed = doctor(*arguments_of("retrieval"), f"model.text.encoder={tmp_path}/other")
    assert status == 0
    assert "100.0% of" in printed and "are unknown, mostly in the words " in printed and "run.py tokenizer" in printed


@pytest.mark.parametrize("copied", [False, True])
def test_images_shared_with_a_held_out_split_cause_a_warning(copied, doctor, arguments_of, scenes_folder, tmp_path):
    def change(number, row):
        if copied and number < 3:
            name = str(tmp_path / f"copy{number}.png")
            shutil.copy(row["image"], name)
            row["image"] = name
        return row

    path = rewritten(scenes_folder / "retrieval_val.jsonl", tmp_path / "val.jsonl", change)
    status, printed = doctor(*arguments_of("retrieval", train=path), "data.batch_size=2")
    assert status == 0
    assert OneLine("warning", "evaluation.validation", "8") in printed.splitlines()
    assert (OneLine("3 of them", "a different path") in printed.splitlines()) is copied
    assert OneLine("none of 8", "evaluation.test.test") in printed.splitlines()


def test_pre_training_data_are_compared_with_their_evaluation(doctor, arguments_of, scenes_folder):
    status, printed = doctor(*arguments_of("pretrain"), f"evaluation.files=[{scenes_folder}/train.jsonl]")
    assert status == 0
    assert OneLine("warning", "evaluation.files", "40") in printed.splitlines()


@pytest.mark.parametrize(("max_broken", "level", "status"), [(0.01, "refused", 1), (0.5, "warning", 0)])
def test_broken_records_are_counted_by_kind_with_a_location(
    max_broken, level, status, doctor, arguments_of, scenes_folder, tmp_path
):
    def change(number, row):
        if number == 5:
            row["image"] = str(tmp_path / "broken.png")
        return row

    (tmp_path / "broken.png").write_bytes(b"no image")
    path = rewritten(scenes_folder / "retrieval_train.jsonl", tmp_path / "train.jsonl", change)
    found, printed = doctor(*arguments_of("retrieval", train=path), f"data.max_broken={max_broken}")
    assert found == status
    assert OneLine(level, f"{path}:6", "unreadable image", f"{tmp_path}/broken.png: 8 bytes") in printed.splitlines()


def test_an_unreadable_held_out_image_is_rejected(doctor, arguments_of, scenes_folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = lambda number, row: {**row, "image": str(tmp_path / "broken.png")} if number == 2 else row  # noqa: E731
    path = rewritten(scenes_folder / "retrieval_val.jsonl", tmp_path / "val.jsonl", broken)
    status, printed = doctor(*arguments_of("retrieval", val=path))
    assert status == 1
    assert OneLine("refused", f"{path}:3", "unreadable image") in printed.splitlines() and "held-out set" in printed


def test_an_unusable_held_out_record_of_pre_training_is_rejected(doctor, arguments_of, scenes_folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = lambda number, row: {**row, "image": str(tmp_path / "broken.png")} if number == 2 else row  # noqa: E731
    path = rewritten(scenes_folder / "test.jsonl", tmp_path / "test.jsonl", broken)
    status, printed = doctor(*arguments_of("pretrain"), f"evaluation.files=[{path}]")
    assert status == 1
    assert OneLine("refused", f"{path}:3", "unreadable image") in printed.splitlines() and "held-out set" in printed


def tiny_weights(argv: list[str]) -> dict[str, torch.Tensor]:
    path, overrides = argv[1], [each for each in argv[2:] if "=" in each]
    bound = bind_run(path, overrides)
    task = bound.source.load().task
    return task.build_model(bound.config, 210).state_dict()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_tensors_that_a_checkpoint_would_load_are_reported(
    suffix, whole, doctor, arguments_of, tmp_path, scenes_folder
):
    argv = arguments_of("retrieval")
    vocabulary = len((scenes_folder / "tokenizer" / "vocab.txt").read_text().splitlines())
    weights = {name: tensor for name, tensor in tiny_weights(argv).items() if whole or not name.startswith("fusion.")}
    for name, tensor in weights.items():
        if tensor.shape[:1] == (210,):
            weights[name] = torch.zeros(vocabulary, *tensor.shape[1:])
    path, kept = tmp_path / f"weights.{suffix}", {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(kept, path) if suffix == "safetensors" else torch.save({"model": kept}, path)
    status, printed = doctor(*argv, f"init.checkpoint={path}")
    assert status == 0, printed
    assert f"{len(weights)} loaded (0 of them resized)" in printed
    assert ("randomly initialised: fusion.layer" in printed) is not whole
    assert (FINE in printed) is whole


def test_a_checkpoint_with_different_shapes_is_rejected(doctor, arguments_of, tmp_path):
    save_file({"text.embeddings.LayerNorm.weight": torch.zeros(7)}, tmp_path / "other.safetensors")
    status, printed = doctor(*arguments_of("retrieval"), f"init.checkpoint={tmp_path}/other.safetensors")
    assert status == 1
    assert "shapes differ" in printed


@pytest.mark.slow
def test_slow_loading_is_reported_only_for_a_known_device(doctor, arguments_of):
    """A device of 1e9 TFLOP/s waits for any data."""
    printed = doctor(*arguments_of("retrieval"), "train.peak_tflops=1e9")[1]
    assert OneLine("warning", "data.workers", "GPU") in printed.splitlines()
    printed = doctor(*arguments_of("retrieval"), "train.peak_tflops=1e-9")[1]
    assert FINE in printed and "the GPU needs up to" in printed


@pytest.mark.slow
def test_too_little_memory_or_disk_causes_a_warning(doctor, arguments_of, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(memory, "free_memory", lambda: 1e5)
    monkeypatch.setattr(memory, "estimate", lambda _: StepMemory(10**6, 0, 0, 0))
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: usage(1e4))
    status, printed = doctor(*arguments_of("retrieval"), estimate=True)
    assert status == 0
    assert "0 refused, 2 warnings" in printed
    assert "its free memory is 0.0 GB" in printed and "10 kB are free at" in printed


@pytest.mark.slow
def test_memory_is_estimated_for_a_frozen_encoder_without_loading_weights(doctor, arguments_of):
    status, printed = doctor(*arguments_of("retrieval"), "optim.freeze.vision=true", estimate=True)
    assert status == 0
    assert "not checked: optim.freeze" not in printed and "an estimate)" in printed


def test_wandb_without_its_package_is_rejected(doctor, arguments_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, printed = doctor(*arguments_of("retrieval"), "train.wandb={}")
    assert status == 1
    assert OneLine("package wandb") in printed.splitlines()


@pytest.mark.slow
def test_no_step_is_run_with_a_model_too_large_for_the_cpu(doctor, arguments_of, monkeypatch):
    monkeypatch.setattr("tools.doctor.subject.MAX_PARAMETERS_ON_CPU", 1000)
    status, printed = doctor(*arguments_of("retrieval"))
    assert status == 0
    assert OneLine("step", "0 M", "CPU") in printed.splitlines()


@pytest.mark.parametrize("form", ["file", "command line"])
def test_sizes_that_a_base_sets_for_another_backbone_cause_a_warning(form, doctor, arguments_of, tmp_path):
    _, config, *others = arguments_of("pretrain")
    assert " sizes " not in doctor("--config", config, *others)[1]
    other = "vit_small_patch14_dinov2"
    if form == "file":
        own = tmp_path / "own.yaml"
        own.write_text(f"base: {Path(config).resolve()}\nmodel: {{vision: {{backbone: {other}}}}}\n")
        config = str(own)
    else:
        others.append(f"model.vision.backbone={other}")
    printed = doctor("--config", config, *others)[1]
    assert OneLine("warning", "sizes", other, "beitv2_base_patch16_224") in printed.splitlines()
    assert "presets/other_vision.yaml as the last entry of base" in printed


def test_the_model_is_built_once(doctor, arguments_of, monkeypatch):
    built, build = [], RetrievalTask.build_model

    def counted(*arguments: object) -> object:
        built.append(arguments)
        return build(*arguments)

    monkeypatch.setattr(RetrievalTask, "build_model", staticmethod(counted))
    status, printed = doctor(*arguments_of("retrieval"), estimate=True)
    assert status == 0 and "an estimate)" in printed and "grad_norm" in printed
    assert len(built) == 1


@pytest.mark.slow
def test_a_task_in_a_folder_is_checked(doctor, tmp_path):
    data = tmp_path / "entailment"
    files = {"data.train": "train", "evaluation.validation": "val", "evaluation.test.test": "test"}
    options = [f"{key}.file={data}/{split}.jsonl" for key, split in files.items()]
    options += [f"data.folder={data}", f"model.text.encoder={data}/tokenizer"]
    status, printed = doctor("--task", "examples/entailment", *options)
    assert status == 0
    assert "1,500 sentences" in printed and "grad_norm" in printed


def test_records_that_training_skips_are_reported(doctor, arguments_of, scenes_folder, tmp_path):
    lines = (scenes_folder / "refer_train.jsonl").read_text().splitlines()
    whole = [line.replace('"image": "', f'"image": "{scenes_folder}/') for line in lines]
    (tmp_path / "some.jsonl").write_text("\n".join([*whole, '{"image": 3}']) + "\n")
    arguments = [*arguments_of("grounding", train=str(tmp_path / "some.jsonl")), "data.max_broken=0.1"]
    status, printed = doctor(*arguments)
    assert status == 0
    assert "1 warning" in printed
    assert OneLine("data.train", f"1 of {len(whole) + 1}", "1 wrong type") in printed.splitlines()
    assert f"some.jsonl:{len(whole) + 1}" in printed
