"""The records in docs/records.md are accepted by the readers named there, and the commands in docs/own_data.md run as printed."""

from __future__ import annotations

import glob
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import run
from dataset.config import CaptionedSplitConfig, GroundingSplitConfig, NLVRSplitConfig, QuestionsConfig
from dataset.formats.captioned import read_captioned_images
from dataset.prepare.own import own
from dataset.records.schema import (
    ImageKeys,
    RawRecord,
    parse_region_record,
    parse_text_record,
    parse_translation_record,
)
from dataset.tasks.grounding import read_phrases
from dataset.tasks.nlvr import read_statements
from dataset.tasks.vqa import read_questions
from launch.command import launch, run_of_command_line
from tasks import job
from tests.messages import OneLine
from tests.tasks.painted import LOOKS, box_of, rows_of, write_pictures
from utils.commands import parse_arguments

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
RECORDS_PAGE = (ROOT / "docs/records.md").read_text(encoding="utf-8")
RECORDS = [
    json.loads(line) for block in re.findall(r"```json\n(.*?)```", RECORDS_PAGE, re.S) for line in block.splitlines()
]
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
SMALL = [
    *("model.vision.width=16", "model.vision.depth=1", "model.vision.heads=2", "model.vision.image_size=24"),
    "model.text.arch={family: bert, width: 16, layers: 1, heads: 2, intermediate: 32, max_positions: 64}",
    *("model.fusion.layers=1", "data.workers=0", "train.steps=3", "train.checkpoint_every=3"),
]
"""A model and a run that take seconds."""
BATCH = {
    "pretrain": ["data.images.batch_size=4", "data.regions.batch_size=4", "data.regions.max_images=2"],
    "vqa": ["data.batch_size=4", "train.steps=null"],  # this config sets epochs
}


@pytest.fixture
def write_record(tmp_path):
    """Files with the page's records, and the images that they name."""
    for number in (1, 2):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (200, 150)).save(tmp_path / f"images/000{number}.jpg")

    def write(number: int) -> str:
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(RECORDS[number]) + "\n")
        return str(path)

    return write


def test_every_record_of_the_page_is_read(write_record, tmp_path):
    captions, regions, new_regions, _, _, videos, text, translation = RECORDS
    items = read_captioned_images(CaptionedSplitConfig(annotations=write_record(0)), "k", 0.0)
    assert list(items.captions) == captions["caption"]
    (phrase,) = read_phrases(GroundingSplitConfig(annotations=write_record(1)), "k", 0.0)
    assert (phrase.text, list(phrase.boxes[0])) == ("dog", regions["elems"][0]["bb"])
    (phrase,) = read_phrases(GroundingSplitConfig(annotations=write_record(2)), "k", 0.0)
    assert phrase.text == "a sheep", "phrases with several boxes or without boxes are skipped"
    record = parse_region_record(RawRecord(new_regions, "a:1", tmp_path), ImageKeys(), "caption")
    assert not record.broken
    several, absent, one = record.elements
    assert (len(several.boxes), absent.boxes) == (2, ())
    assert (one.long_captions, one.hard_negatives) == (
        ("a white sheep that looks at the camera",),
        ("a black sheep", "a goat"),
    )
    (question,) = read_questions(QuestionsConfig(questions=write_record(3)), "k", 0.0, answered=True)
    assert (question.answers, question.answer_type) == (("dog",), "animal")
    (statement,) = read_statements(NLVRSplitConfig(annotations=write_record(4)), "k", 0.0)
    assert (len(statement.images), statement.label) == (2, 0)
    (tmp_path / "clips/0001.mp4").parent.mkdir()
    (tmp_path / "clips/0001.mp4").write_bytes(b"")
    items = read_captioned_images(CaptionedSplitConfig(annotations=write_record(5)), "k", 0.0)
    assert items.images[0].path == tmp_path / videos["video"]
    assert parse_text_record(RawRecord(text, "a:1", tmp_path), "text") == ("a dog on a lawn",)
    sides = parse_translation_record(RawRecord(translation, "a:1", tmp_path), "source_text", "target_text")
    assert sides == (("a dog on a lawn",), ("ein Hund auf einem Rasen",))


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A working directory with data/own and the configs."""
    own = tmp_path / "data/own"
    own.mkdir(parents=True)
    write_pictures(own / "images")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    parts = {"train": range(8), "val": range(8, 12), "test": range(12, 16)}
    for split, numbers in parts.items():
        questions = [{**row, "answer": row["answer"][0]} for row in rows_of("vqa", numbers)]
        rows = {"captions": rows_of("retrieval", numbers), "regions": regions_of(numbers), "questions": questions}
        for name, lines in rows.items():
            (own / f"{name}_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def regions_of(numbers: range) -> list[dict]:
    rows = []
    for number in numbers:
        colour, size, shape = LOOKS[number]
        x, y, side = box_of(size, shape)
        rows.append(
            {"image": f"images/{number}.png", "elems": [{"bb": [x, y, side, side], "caption": f"a {colour} {shape}"}]}
        )
    return rows


@pytest.mark.slow
def test_the_walkthrough_of_the_page_runs_as_printed(newcomer, capsys):
    walked = []
    for command in COMMANDS:
        program, script, *arguments = shlex.split(command)
        assert (program, script) == ("python", "run.py"), command
        if "_base.yaml" in command:
            continue  # needs the authors' weights; tests/recipes loads the config
        if arguments[:2] == ["prepare", "own"]:  # tests/dataset/prepare/test_own.py converts such files
            assert parse_arguments(own, arguments[2:], "own")[1].arguments["out"].parts[:2] == ("data", "own")
            continue
        if arguments[0] == "tokenizer":
            expanded = [path for word in arguments for path in (sorted(glob.glob(word)) if "*" in word else [word])]
            assert run.main(expanded) == 0
            continue
        if arguments[0] == "doctor":
            assert run.main([*arguments, *SMALL[:-1], *BATCH["pretrain"]]) == 0
            assert (newcomer / "first_batch.png").is_file()
            continue
        _, given = parse_arguments(launch, arguments, "run.py")
        given.apply_defaults()
        overrides, task, flags = (given.arguments[name] for name in ("overrides", "task", "flags"))
        bound = run_of_command_line(flags, overrides, task)
        walked.append(bound.file.stem)
        if not flags.resume:
            small = [*SMALL, *BATCH.get(bound.file.stem, ["data.batch_size=4"])]
            bound = run_of_command_line(flags, [*small, *overrides], task)
        assert job.run_task(bound, flags) == 0, command
    assert walked == ["pretrain", "retrieval", "grounding", "captioning", "vqa", "config", "retrieval"]
    printed = capsys.readouterr().out
    assert "text to image R@1" in printed
    assert OneLine("exact match") in printed.splitlines()
    assert "CIDEr" in printed
    assert (newcomer / "runs/own/grounding/predictions.png").is_file()
