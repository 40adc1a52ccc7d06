"""``run.py migrate`` converts configs from the authors' format to ours, without dropping anything silently.

The expected results are the settings of the released configs (tests/golden/migrate) and our configs of the same runs.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from dataset.config import CaptionedSplitConfig, NLVRSplitConfig, VideoQuestionsConfig
from dataset.formats.captioned import read_captioned_images
from dataset.records.schema import ImageKeys, RawRecord, parse_region_record
from dataset.shards.finding import find_shards
from dataset.tasks.grounding import read_phrases
from dataset.tasks.nlvr import read_statements
from dataset.tasks.video_qa import read_video_questions
from dataset.tasks.vqa import read_questions
from run import main
from tasks.binding import bind_run
from tests.messages import OneLine
from tests.recipes.oracle import load, shipped, value_at
from tools.migrate.keys import KEYS, markdown
from tools.migrate.migration import Migrated, convert
from tools.migrate.source import Source, read_source
from utils.config import fields_of
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/migrate"

RUNS = {
    "pretrain_base_4m": ("pretrain/base_4m", 8),
    "pretrain_large_4m": ("pretrain/large_4m", 16),
    "pretrain_base_1b": ("pretrain/base_1b", None),
    "pretrain_large_1b": ("pretrain/large_1b", None),
    "pretrain_base_1b_stage2": ("pretrain/base_1b_stage2", 16),
    "pretrain_multilingual_base": ("pretrain/multilingual_base", 8),
    "vqa2_base": ("vqa/vqa2_base_1b", 16),
    "vqa2_large": ("vqa/vqa2_large_1b", 32),
    "refcoco_plus_large": ("grounding/refcoco_plus_large_1b", 8),
    "coco_captioning_large": ("captioning/coco_large_1b", 8),
}
"""Our config of each run, and the number of GPUs for which the global batches are equal. If None, our config has another
micro-batch."""

PAPER_DIFFERENCES = {"train.epochs": "the paper counts steps", "train.precision": "bf16 in place of apex's fp16"}
OTHER_VALUES: dict[str, dict[str, str]] = {
    "pretrain_base_4m": {**PAPER_DIFFERENCES, "data.text.max_tokens": "30 in the paper"},
    "pretrain_large_4m": {**PAPER_DIFFERENCES, "data.text.max_tokens": "30 in the paper"},
    "pretrain_base_1b": {
        "train.precision": PAPER_DIFFERENCES["train.precision"],
        "data.images.batch_size": "1,024 pairs over 32 GPUs",
        "data.regions.weight": "1",
    },
    "pretrain_base_1b_stage2": {"train.precision": PAPER_DIFFERENCES["train.precision"]},
    "vqa2_base": {"evaluation.batch_size": "16: memory"},
    "vqa2_large": {"evaluation.batch_size": "16: memory"},
    "coco_captioning_large": {"evaluation.batch_size": "32", "model.vision.image_size": "480 in the paper"},
}
OTHER_VALUES["pretrain_large_1b"] = OTHER_VALUES["pretrain_base_1b"]
"""Keys whose value in our config differs from the released value, with our value or the reason."""

CONTINUED = ("pretrain_base_1b_stage2", "pretrain_multilingual_base")
"""Pre-training runs that start from a complete model."""

FORMS = ("image_key", "caption_key", "video_key", "image_is", "files", "init.vision")
"""Keys for the format and location of files, which differ in our configs."""


def migrated(path: Path, *overrides: str, root: Path = GOLDEN, **options: Any) -> Migrated:
    return convert(read_source(path, overrides, None, root, Path("out"), path.parent, **options))


def write_config(folder: Path, content: dict[str, Any], name: str = "theirs.yaml") -> Path:
    """Writes a config of the authors' code into a folder that also has the JSON files of the vision encoders."""
    for each in GOLDEN.glob("*.json"):
        shutil.copy(each, folder)
    path = folder / name
    with path.open("w") as stream:
        yaml = YAML(typ="safe")
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(content, stream)
    return path


def settings(name: str) -> Any:
    return YAML(typ="safe").load((GOLDEN / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_a_released_config_becomes_the_config_of_the_same_run(name):
    config, gpus = RUNS[name]
    checkpoint = None if name.startswith("pretrain_") and name not in CONTINUED else "weights.th"
    result = migrated(GOLDEN / f"{name}.yaml", gpus=gpus, checkpoint=checkpoint)
    ours = shipped(config).model_dump(mode="json")
    theirs = load_values(result)
    origins = {
        key: origin for key, origin in result.origins.items() if "file" not in origin and not key.endswith(FORMS)
    }
    assert len(origins) > 12
    compared = [*origins, *(["train.global_batch"] if gpus else [])]
    compared = [
        key for key in compared if key not in ("train.accumulate", "evaluation.answers", "model.vision.patch_size")
    ]
    different = {key for key in compared if value_at(theirs, key) != value_at(ours, key)}
    assert different == OTHER_VALUES.get(name, {}).keys()


def load_values(result: Migrated) -> dict[str, Any]:
    task = result.values["task"]
    return (
        bind_run(None, [], task).source.load().config.model_validate(result.values).model_dump(mode="json")
        if task
        else {}
    )


@pytest.mark.parametrize("name", RUNS)
def test_values_fixed_in_the_authors_code_agree_with_our_config_of_the_same_run(name):
    """The other values agree too, except for data and weights."""
    ours = shipped(RUNS[name][0]).model_dump(mode="json")
    result = migrated(GOLDEN / f"{name}.yaml")
    theirs = load_values(result)
    for section in ("model", "loss", "optim", "schedule"):
        different = [
            key
            for key in leaves(theirs.get(section, {}), section)
            if key not in OTHER_VALUES.get(name, {}) and value_at(theirs, key) != value_at(ours, key)
        ]
        # Null means the learning rate of the texts, which our config repeats.
        assert set(different) <= {"optim.cross_lr"}, section


def leaves(node: Any, prefix: str) -> list[str]:
    if isinstance(node, dict) and node:
        return [key for name, value in node.items() for key in leaves(value, f"{prefix}.{name}")]
    return [prefix]


@pytest.mark.parametrize("name", RUNS)
def test_every_key_has_a_row_in_the_table(name):
    result = migrated(GOLDEN / f"{name}.yaml")
    lines = {line.authors_key for line in result.lines}
    keys = {key.removeprefix("all.") for key in leaves(settings(name), "all")}
    assert keys - lines == set()
    assert {line.authors_key for line in result.lines if line.kind == "unknown"} == set()
    assert all(line.note for line in result.lines if line.kind in ("none", "always"))


def test_every_converted_value_comes_from_the_file():
    """If a value in the file changes, our value changes too, unless the table gives a reason."""
    changed = {
        "image_res": 256,
        "embed_dim": 128,
        "temp": 0.05,
        "max_tokens": 21,
        "mask_prob": 0.25,
        "max_masks": 7,
        "mask_whole_word": False,
        "skipgram_prb": 0.3,
        "skipgram_size": 4,
        "calc_image_bbox_loss": True,
        "images.batch_size": 3,
        "images.image_key": "a",
        "images.caption_key": "b",
        "images.iter_perc": 0.5,
        "regions.batch_size": 5,
        "regions.max_images": 2,
        "regions.max_regions": 3,
        "regions.min_perc_in_image": 0.4,
        "regions.iter_perc": 0.2,
        "regions.careful_hflip": True,
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 0.1,
        "optimizer.lr_mult": 3,
        "schedular.epochs": 2,
        "schedular.num_warmup_steps": 7,
        "stop_calc_itm": 9,
        "dropout": 0.2,
        "accelerator.FP16_OPT_LEVEL": "O0",
        "accelerator.CLIP_GRAD_NORM": 2.0,
        "accelerator.RNG_SEED": 1,
        "accelerator.GRAD_ACCUMULATE_STEPS": 2,
        "text_num_hidden_layers": 16,
        "text_drop_path_rate": 0.2,
    }
    path = GOLDEN / "pretrain_base_4m.yaml"
    before = load_values(migrated(path))
    for theirs, value in changed.items():
        after = load_values(migrated(path, f"{theirs}={json.dumps(value)}"))
        ours = {key.our_key for key in KEYS if key.authors_key == theirs and "translations" not in key.our_key} - {
            "model.text.arch.layers"
        }
        assert any(value_at(after, key) != value_at(before, key) for key in ours if key), theirs


def test_every_key_of_ours_in_the_table_exists():
    known = {
        path
        for task in RUNS
        for path, _ in fields_of(bind_run(None, [], RUNS[task][0].split("/")[0]).source.load().config)
    }
    known |= {path for task in ("retrieval", "nlvr", "video_qa") for path, _ in fields_of(kind(task))}
    requested = {key.our_key for key in KEYS if key.our_key}
    assert requested <= known


def kind(task: str) -> Any:
    from tasks.kinds import find_task

    return find_task(task).load().config


def test_unknown_keys_are_listed(tmp_path):
    path = write_config(
        tmp_path, {**settings("vqa2_base"), "bach_size_train": 3, "prompt": "x", "deep": {"er": [1, 2]}}
    )
    by_key = {line.authors_key: line for line in migrated(path, root=tmp_path).lines}
    assert by_key["bach_size_train"].kind == "unknown"
    assert by_key["bach_size_train"].note == "did you mean batch_size_train?"
    assert (by_key["deep.er"].kind, by_key["deep.er"].value) == ("unknown", [1, 2])
    assert by_key["prompt"].kind == "none"
    assert "script for vqa" in by_key["prompt"].note


def test_an_unsupported_value_is_reported(tmp_path):
    path = write_config(tmp_path, {**settings("coco_captioning_large"), "apply_FG_free": False})
    line = next(line for line in migrated(path, root=tmp_path).lines if line.authors_key == "apply_FG_free")
    assert (line.kind, line.note) == ("none", "always true in our code: training is FG-free")


@pytest.fixture
def migrate(tmp_path, capsys):
    """Runs the command on a config with the given keys, and returns the exit status and the output."""

    def run(content: dict[str, Any], *argv: str) -> tuple[int, str]:
        path = write_config(tmp_path, content)
        status = main(["migrate", str(path), "--root", str(tmp_path), "--out", str(tmp_path / "out"), *argv])
        printed = capsys.readouterr()
        return status, printed.out if status == 0 else printed.err

    return run


@pytest.mark.parametrize(
    ("changes", "argv", "facts"),
    [
        ({"image_res": "big"}, [], ["theirs.yaml", "image_res", "model.vision.image_size", "'big'"]),
        ({"batch_size_train": "eight"}, [], ["batch_size_train", "data.batch_size"]),
        ({"optimizer": {"opt": "adamW", "lr": True, "weight_decay": 0.01}}, [], ["optimizer.lr", "optim.lr", "number"]),
        ({"text_fusion_start_at": "x"}, [], ["text_fusion_start_at"]),
        ({"train_file": 3}, [], ["train_file = 3", "file"]),
        ({"answer_list": 3}, [], ["answer_list = 3", "path"]),
        ({"vision_config": "huge.json"}, [], ["vision_config", "huge.json", "--root"]),
        ({"text_encoder": "data/gpt2"}, [], ["text_encoder", "gpt2", "bert-base-uncased", "docs/encoders.md"]),
        ({"use_swin": True}, [], ["use_swin = true", "BEiT-2"]),
        ({"k_test": None}, [], ["k_test", "evaluation.candidates"]),
        ({}, ["--checkpoint", "none.th"], ["none.th", "no such file"]),
        ({}, ["--task", "itr"], ["--task", "itr"]),
        ({}, ["batch_size_train"], ["batch_size_train"]),
    ],
)
def test_mistakes_are_reported_in_one_line(changes, argv, facts, migrate):
    status, printed = migrate({**settings("vqa2_base"), **changes}, *argv)
    assert status == 2
    assert printed == OneLine(*facts)


def test_a_config_of_ours_is_not_converted(tmp_path):
    path = ROOT / "configs/retrieval/coco_base_4m.yaml"
    with pytest.raises(UserError, match="is already a config of this project"):
        read_source(path, (), None, tmp_path, tmp_path / "out", tmp_path)


@pytest.mark.parametrize("name", ["pretrain_multilingual_base", "vqa2_large", "refcoco_plus_large"])
@pytest.mark.parametrize("odd", [None, [], {"a": 1}, ".inf"], ids=str)
def test_no_value_causes_a_traceback(name, odd, tmp_path):
    """For any value of a key, there is a result or a message that names the file."""
    content = settings(name)
    value = float("inf") if odd == ".inf" else odd
    source = read_source(GOLDEN / f"{name}.yaml", (), None, GOLDEN, Path("out"), tmp_path)
    keys = [key.removeprefix("all.") for key in [*content, *leaves(content, "all")]]
    messages = [message_of(replace(source, values=changed_at(dict(source.values), key, value))) for key in keys]
    refused = [message for message in messages if message is not None]
    assert len(refused) > 10
    assert [message for message in refused if f"{name}.yaml" not in message] == []


def message_of(source: Source) -> str | None:
    """The message with which a config is rejected, or None."""
    try:
        convert(source)
    except UserError as error:
        return str(error)
    return None


def changed_at(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {**values, first: changed_at(values[first], rest, value) if rest else value}


def test_a_missing_key_is_reported_in_one_line(migrate):
    content = settings("vqa2_base")
    del content["batch_size_train"], content["k_test"]
    status, printed = migrate(content)
    assert (status, printed) == (2, OneLine("batch_size_train", "data.batch_size", "k_test", "KEY=VALUE"))
    assert migrate(content, "batch_size_train=4", "k_test=16")[0] == 0


def test_a_config_of_an_unknown_task_needs_the_flag(migrate):
    content = {
        key: value for key, value in settings("refcoco_plus_large").items() if "coco" not in key and key != "det_file"
    }
    status, printed = migrate(content)
    assert (status, printed) == (2, OneLine("--task", "nlvr"))


def test_files_that_are_not_configs_are_reported_in_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "code.yaml").write_text("a: !!python/object/apply:os.system ['touch /tmp/ran']")
    for name in ("none.yaml", "broken.yaml", "code.yaml"):
        assert main(["migrate", str(tmp_path / name), *out]) == 2
        assert capsys.readouterr().err == OneLine(name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    assert main(["migrate", str(GOLDEN / "vqa2_base.yaml"), "--out", str(tmp_path / "full")]) == 2
    assert capsys.readouterr().err == OneLine("--out", "exists")
    assert not (tmp_path / "out").exists()


def test_code_in_weights_is_not_executed(tmp_path, migrate):
    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": {"a": torch.zeros(2)}, "attack": Attack()}, tmp_path / "bad.th")
    status, printed = migrate(settings("vqa2_base"), "--checkpoint", str(tmp_path / "bad.th"))
    assert (status, printed) == (2, OneLine("bad.th"))
    assert not (tmp_path / "ran").exists()


def test_weights_are_named_and_described(tmp_path, migrate):
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "some.th")
    status, printed = migrate(settings("vqa2_base"), "--checkpoint", str(tmp_path / "some.th"), "--gpus", "16")
    assert status == 0
    assert "some.th: not recognised" in printed
    config = load(tmp_path / "out/config.yaml")
    assert config.init.checkpoint == str(tmp_path / "some.th")
    assert config.train.global_batch == 128
    assert (tmp_path / "out/migration.txt").read_text() == printed


# Lists and shards


def picture(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (120, 30, 60)).save(path)
    return path.name


def listed(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


RETRIEVAL: dict[str, Any] = {
    **{key: value for key, value in settings("vqa2_base").items() if key not in ("answer_list", "vqa_root", "vg_root")},
    "embed_dim": 256,
    "temp": 0.07,
    "k_test": 16,
    "batch_size_test_text": 256,
    "image_root": "images/",
    "train_file": ["lists/train.json"],
    "val_file": "lists/val.json",
    "test_file": "lists/test.json",
}
for unused in ("num_dec_layers", "large_lr_for_dec", "start_eval"):
    del RETRIEVAL[unused]


def test_retrieval_lists_are_read_unchanged(tmp_path, migrate):
    picture(tmp_path / "images/a.jpg")
    listed(tmp_path / "lists/train.json", [{"image": "a.jpg", "caption": "a dog", "image_id": "x_1"}])
    listed(tmp_path / "lists/test.json", [{"image": "a.jpg", "caption": ["a dog", "a cat"]}])
    listed(tmp_path / "lists/val.json", [{"image": "a.jpg", "caption": ["a bird"]}])
    status, printed = migrate(RETRIEVAL)
    assert (status, printed.count("json: read unchanged")) == (0, 3)
    config = load(tmp_path / "out/config.yaml")
    assert not (tmp_path / "out/records").exists()
    assert texts_of(config.data.train) == ["a dog"]
    assert texts_of(config.evaluation.test["test"]) == ["a dog", "a cat"]
    assert texts_of(config.evaluation.validation) == ["a bird"]
    assert config.optim.lr_mult == 1.0


def texts_of(split: CaptionedSplitConfig) -> list[str]:
    return list(read_captioned_images(split, "k", 0.0).captions)


def test_several_retrieval_lists_are_merged_except_lists_by_language(tmp_path, migrate):
    picture(tmp_path / "images/a.jpg")
    listed(tmp_path / "lists/en.json", [{"image": "a.jpg", "caption": "a dog", "image_id": 1}])
    listed(tmp_path / "lists/de.json", [{"image": "a.jpg", "caption": "ein Hund", "image_id": 1}])
    by_language = {"en": "lists/en.json", "de": "lists/de.json"}
    changes = {"train_file": ["lists/en.json", "lists/de.json"], "val_file": by_language, "test_file": by_language}
    status, _ = migrate({**RETRIEVAL, **changes})
    config = load(tmp_path / "out/config.yaml")
    assert status == 0
    assert texts_of(config.data.train) == ["a dog", "ein Hund"]
    assert {name: texts_of(split) for name, split in config.evaluation.test.items()} == {
        "en": ["a dog"],
        "de": ["ein Hund"],
    }
    assert texts_of(config.evaluation.validation) == ["a dog"]


def test_rows_about_videos_are_renamed(tmp_path, migrate):
    frame = picture(tmp_path / "images/clip/1.jpg")
    assert frame == "1.jpg"
    listed(tmp_path / "lists/train.json", [{"vid": 7, "clip": "clip", "text": "a dog runs"}])
    listed(tmp_path / "lists/test.json", [{"vid": 7, "clip": "clip", "text": ["a dog runs"]}])
    keys = {
        "is_video": True,
        "frame_len": 5,
        "index_key": "vid",
        "vision_key": "clip",
        "text_key": "text",
        "max_words": 20,
    }
    content = {key: value for key, value in RETRIEVAL.items() if key != "val_file"}
    status, _ = migrate({**content, **keys})
    config = load(tmp_path / "out/config.yaml")
    assert status == 0
    assert (config.model.vision.video.frames, config.data.text.max_words) == (5, 20)
    assert config.evaluation.validation is None
    assert texts_of(config.data.train) == ["a dog runs"]
    assert texts_of(config.evaluation.test["test"]) == ["a dog runs"]


def test_questions_get_the_folder_of_their_data_set(tmp_path, migrate):
    picture(tmp_path / "images/coco/train2014/a.jpg")
    picture(tmp_path / "images/visualgenome/image/1.jpg")
    asked = {"question_id": 1, "question": "what is it?", "image": "train2014/a.jpg", "dataset": "vqa"}
    genome = {"question": "where?", "image": "image/1.jpg", "answer": "here", "dataset": "vg"}
    listed(tmp_path / "lists/vqa_train.json", [{**asked, "answer": ["a dog"] * 10}])
    listed(tmp_path / "lists/vqa_val.json", [{**asked, "answer": ["cat"] * 10}, genome])
    listed(tmp_path / "lists/vg_qa.json", [genome])
    listed(tmp_path / "lists/vqa_test.json", [asked])
    status, printed = migrate(settings("vqa2_base"))
    assert status == 0
    assert "2 records in" in printed
    config = load(tmp_path / "out/config.yaml")
    read = [read_questions(split, "k", 0.0, answered=True) for split in config.data.train]
    assert [[question.question for question in questions] for questions in read] == [
        ["what is it?"],
        ["what is it?", "where?"],
        ["where?"],
    ]
    assert [[question.weight for question in questions] for questions in read] == [[1.0], [1.0, 0.5], [0.5]]
    assert len(read_questions(config.evaluation.test["test"], "k", 0.0, answered=False)) == 1
    assert config.evaluation.validation is None


def test_refcoco_lists_get_their_boxes_and_splits(tmp_path, migrate):
    picture(tmp_path / "images/coco/train2014/a.jpg")
    image = "train2014/a.jpg"
    rows = {"train": [(0, "navy shirt")], "val": [(1, "red hat")], "test": [(2, "a man"), (3, "a bag")]}
    for name, phrases in rows.items():
        listed(
            tmp_path / f"lists/refcoco+_{name}.json",
            [{"image": image, "text": text, "ref_id": number} for number, text in phrases],
        )
    refs = [
        {"ref_id": number, "ann_id": 10 + number, "split": split}
        for number, split in enumerate(("train", "val", "testA", "testB"))
    ]
    (tmp_path / "lists/refcoco+").mkdir()
    (tmp_path / "lists/refcoco+/refs(unc).p").write_bytes(pickle.dumps(refs))
    boxes = [{"id": 10 + number, "bbox": [number, 2, 20, 30]} for number in range(4)]
    (tmp_path / "lists/refcoco+/instances.json").write_text(json.dumps({"annotations": boxes, "images": []}))
    status, _ = migrate(settings("refcoco_plus_large"))
    config = load(tmp_path / "out/config.yaml")
    assert status == 0
    splits = {"train": config.data.train, **config.evaluation.test}
    read = {
        name: [(phrase.text, phrase.boxes[0][0]) for phrase in read_phrases(split, "k", 0.0)]
        for name, split in splits.items()
    }
    assert read == {
        "train": [("navy shirt", 0)],
        "val": [("red hat", 1)],
        "testA": [("a man", 2)],
        "testB": [("a bag", 3)],
    }
    assert config.evaluation.validation == config.evaluation.test["val"]


def test_files_other_than_refcocos_are_reported_in_one_line(tmp_path, migrate):
    for name in ("train", "val", "test"):
        listed(tmp_path / f"lists/refcoco+_{name}.json", [{"image": "a.jpg", "text": "a man", "ref_id": 0}])
    (tmp_path / "lists/refcoco+").mkdir()
    (tmp_path / "lists/refcoco+/refs(unc).p").write_bytes(pickle.dumps([{"id": 1}]))
    (tmp_path / "lists/refcoco+/instances.json").write_text("[]")
    status, printed = migrate(settings("refcoco_plus_large"))
    assert (status, printed) == (2, OneLine("train_file", "official files of RefCOCO+"))
    (tmp_path / "lists/refcoco+/instances.json").write_text('{"annotations": []}')
    (tmp_path / "lists/refcoco+/refs(unc).p").write_bytes(pickle.dumps([]))
    status, printed = migrate(settings("refcoco_plus_large"))
    assert (status, printed) == (2, OneLine("train_file", "ref_id 0"))
    assert not (tmp_path / "out").exists()


def test_nlvr_lists_are_read_unchanged(tmp_path, migrate):
    for name in ("dev/a.png", "dev/b.png"):
        picture(tmp_path / "images" / name)
    rows = [{"sentence": "two dogs", "label": label, "images": ["dev/a.png", "dev/b.png"]} for label in ("True", False)]
    for name in ("train", "val", "test"):
        listed(tmp_path / f"lists/{name}.json", rows)
    content = {**RETRIEVAL, "batch_size": 4}
    status, _ = migrate(content, "--task", "nlvr")
    config = load(tmp_path / "out/config.yaml")
    assert status == 0
    assert [item.label for item in read_statements(config.data.train, "k", 0.0)] == [1, 0]
    assert isinstance(config.evaluation.test["test"], NLVRSplitConfig)


def test_captioning_lists_are_read_unchanged(tmp_path, migrate):
    picture(tmp_path / "images/coco/val2014/a.jpg")
    row = {"image": "val2014/a.jpg", "image_id": "coco_1"}
    listed(tmp_path / "lists/coco_karpathy_train.json", [{**row, "caption": "a dog"}])
    for name in ("val", "test"):
        listed(tmp_path / f"lists/coco_karpathy_{name}.json", [{"image": row["image"], "caption": ["a dog", "a cat"]}])
    assert migrate(settings("coco_captioning_large"))[0] == 0
    config = load(tmp_path / "out/config.yaml")
    assert texts_of(config.data.train) == ["a dog"]
    assert texts_of(config.evaluation.test["test"]) == ["a dog", "a cat"]


def test_video_questions_are_read_unchanged(tmp_path, migrate):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/video_7.json").write_text("[]")
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": "who?", "answer": "dog", "video_id": "video7"}))
    content = {
        key: value
        for key, value in RETRIEVAL.items()
        if key not in ("val_file", "image_root", "k_test", "embed_dim", "temp")
    }
    content |= {"ans2label_file": "labels.json", "img_rdir": "videos", "num_labels": 1500, "frame_len": 5}
    content |= {"train_file": "train.jsonl", "valid_file": "val.jsonl", "test_file": "test.jsonl"}
    assert migrate(content)[0] == 0
    config = load(tmp_path / "out/config.yaml")
    assert config.model.classes == 1500
    assert isinstance(config.data.train, VideoQuestionsConfig)
    [question] = read_video_questions(config.data.train, "k", 0.0, answered=True)
    assert question.source.path == tmp_path / "videos/video_7.json"


def test_shards_without_a_suffix_get_links_with_one(tmp_path, migrate):
    record = {
        "binary": "/9j/4AAQ",
        "caption": "a dog",
        "elems": [{"bb": [1, 2, 3, 4], "caption": "dog", "attributes": ["brown"]}],
    }
    for name in ("coco_obj/part-00000", "coco_obj/part-00001", "coco_obj/_SUCCESS", "coco/a.jsonl"):
        (tmp_path / "shards" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shards" / name).write_text(json.dumps(record) + "\n")
    status, printed = migrate({**settings("pretrain_base_4m"), "train_file": "shards/coco,hdfs://far/away"})
    assert status == 0
    assert "2 links" in printed and "hdfs://far/away: not read" in printed
    config = load(tmp_path / "out/config.yaml")
    assert config.data.images.files == [str(tmp_path / "shards/coco"), "hdfs://far/away"]
    found = find_shards([config.data.regions.files[0]], "data.regions.files")
    assert [path.name for path in found] == ["part-00000.jsonl", "part-00001.jsonl"]
    raw = RawRecord(json.loads(found[0].read_text()), "a:1", tmp_path)
    regions = config.data.regions
    parsed = parse_region_record(
        raw, ImageKeys(image_key=regions.image_key, image_is=regions.image_is), regions.caption_key
    )
    assert (parsed.broken, parsed.elements[0].boxes, parsed.elements[0].attributes) == ((), ((1, 2, 3, 4),), ("brown",))


def test_lists_that_are_elsewhere_are_named(migrate, tmp_path):
    status, printed = migrate({**RETRIEVAL, "train_file": ["lists/a.json", "lists/b.json"]})
    assert status == 0
    assert "lists/test.json: missing" in " ".join(printed.split())
    assert "repeat the command" in " ".join(printed.split())
    assert load(tmp_path / "out/config.yaml").data.train.annotations.endswith("records/train_file.jsonl")


def test_the_converted_config_passes_the_doctor(tmp_path, migrate, scenes_folder, capsys):
    """Runs every check that a run makes before it starts, and a step."""
    rows = [json.loads(line) for line in (scenes_folder / "retrieval_train.jsonl").read_text().splitlines()]
    listed(tmp_path / "lists/train.json", rows)
    for name in ("val", "test"):
        rows = [json.loads(line) for line in (scenes_folder / f"retrieval_{name}.jsonl").read_text().splitlines()]
        listed(tmp_path / f"lists/{name}.json", rows)
    assert migrate({**RETRIEVAL, "image_root": str(scenes_folder), "batch_size_train": 4, "image_res": 32})[0] == 0
    tiny = [
        f"model.text.encoder={scenes_folder}/tokenizer",
        "model.text.arch={family: bert, width: 16, layers: 1, heads: 2, intermediate: 32, max_positions: 64}",
        *("model.vision.width=16", "model.vision.depth=1", "model.vision.heads=2", "model.vision.layer_scale=null"),
        *("model.fusion={layers: 1, width: 16, heads: 2, intermediate: 32}", "data.workers=0", "data.max_broken=0.1"),
    ]
    status = main(["doctor", "--config", str(tmp_path / "out/config.yaml"), "--out", str(tmp_path), *tiny])
    printed = capsys.readouterr()
    assert status == 0, printed.out + printed.err
    assert "0 refused" in printed.out


def test_the_page_has_the_table_of_keys():
    page = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    assert markdown() in page


def test_the_table_can_be_printed(capsys):
    assert main(["migrate", "--keys"]) == 0
    assert capsys.readouterr().out == markdown()
    assert main(["migrate", "a.yaml", "--keys"]) == 2
    assert main(["migrate"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
