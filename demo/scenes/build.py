"""Fills a folder with scenes: images, JSON lines in the format of every other data set, and a tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dataset.prepare.folders import SPLITS, write_records
from demo.folder import Folder
from demo.scenes.compose import compose_scene
from demo.scenes.describe import looks_of
from demo.scenes.draw import draw_scene
from demo.scenes.records import TASKS, Record, records_of, statement_records, texts_of
from demo.scenes.statements import ImageLooks, statement_sets
from utils.files import write_text
from utils.progress import progress_bar

FACTS = "scenes.json"
ANSWERS = "vqa_answers.json"
OWNED = (
    *(f"{task}{split}.jsonl" for task in (*TASKS, "nlvr_") for split in SPLITS),
    ANSWERS,
    "images",
    "tokenizer",
    "tokenizer_multilingual",
)

VOCABULARY_LIMIT = 512
MULTILINGUAL_LIMIT = 1500
"""Entries of the tokenizer that learns from the captions in all languages."""

DRAWING = 8
"""Goes up when the same arguments give other images or texts, so that an older folder is not taken for a current one."""

_WORTH_A_PROCESS = 1000

SceneRecords = tuple[dict[str, list[Record]], ImageLooks]
"""The records of a scene by task, and how its objects look."""


def build(
    out: Path,
    *,
    seed: int,
    train: int,
    val: int,
    test: int,
    size: int | tuple[int, int],
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Make images of ``size`` (a side, or width and height), and a file of records for each split and task.

    ``vqa_answers.json`` has the answers of train, the most frequent ones first. ``tokenizer/`` learns from the English texts of
    train and ``tokenizer_multilingual/`` from its captions in all languages.

    Raises:
        UserError: the folder was made with other arguments, holds files of another origin, or cannot be written.
        ValueError: a seed, number or size out of range.
    """
    width, height = (size, size) if isinstance(size, int) else size
    counts = {"train": train, "val": val, "test": test}
    arguments = {"seed": seed, **counts, "size": [width, height], "drawing": DRAWING}
    folder = Folder(out, FACTS, OWNED, arguments, overwrite)
    if folder.is_complete():
        return
    with folder.filling() as facts:
        content = {split: _Content() for split in SPLITS}
        with progress_bar(total=sum(counts.values()), quiet=not progress, desc="drawing scenes", unit="scene") as bar:
            for split, count in counts.items():
                for scene in _write_scenes(out, seed, split, count, (width, height)):
                    content[split].add(*scene)
                    bar.update()
                content[split].write_statements(out, seed, split)
        for name in ("objects", "relations", "sentences", "referring", "questions"):
            facts[name] = {split: content[split].facts()[name] for split in SPLITS}
        learned = content["train"]
        frequent_first = sorted(learned.answers, key=lambda answer: (-learned.answers[answer], answer))
        write_text(out / ANSWERS, json.dumps(frequent_first, ensure_ascii=False) + "\n")
        facts["vocabulary"] = folder.train_tokenizer([*learned.texts, *learned.answers], VOCABULARY_LIMIT)
        facts["multilingual vocabulary"] = folder.train_tokenizer(
            learned.multilingual, MULTILINGUAL_LIMIT, "tokenizer_multilingual"
        )


@dataclass
class _Content:
    """Counts for the facts file, and texts for the tokenizers, of a split; dictionaries without values are ordered sets."""

    images: list[ImageLooks] = field(default_factory=list)
    relations: int = 0
    statements: int = 0
    grains: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    texts: dict[str, None] = field(default_factory=dict)
    multilingual: dict[str, None] = field(default_factory=dict)

    def add(self, records: dict[str, list[Record]], looks: ImageLooks) -> None:
        """Count a scene."""
        self.images.append(looks)
        (scene,) = records[""]
        # All of its texts are captions, a phrase for each object, and relational phrases.
        self.relations += len(list(texts_of(scene))) - len(scene["caption"]) - len(looks)
        self.grains.update(elem["grain"] for record in records["refer_"] for elem in record["elems"])
        self.answers.update(record["answer"][0] for record in records["vqa_"])
        for task in ("", "refer_", "vqa_", "captioning_"):
            self.texts.update(dict.fromkeys(text for record in records[task] for text in texts_of(record)))
        (translated,) = records["multilingual_"]
        self.multilingual.update(dict.fromkeys(text for texts in translated["caption"].values() for text in texts))

    def write_statements(self, out: Path, seed: int, split: str) -> None:
        """Write statements on the images so far, and count them."""
        count = len(self.images) // 3 if split == "train" else len(self.images)
        sets = list(statement_sets(seed, split, self.images, count))
        records = [record for stated in sets for record in statement_records(split, stated)]
        write_records(out / f"nlvr_{split}.jsonl", records)
        self.statements = len(sets)
        self.texts.update(dict.fromkeys(record["sentence"] for record in records))

    def facts(self) -> dict[str, Any]:
        """The split's part of the facts file."""
        return {
            "objects": sum(map(len, self.images)),
            "relations": self.relations,
            "sentences": self.statements,
            "referring": {grain: self.grains[grain] for grain in ("relation", "attribute", "place")},
            "questions": self.answers.total(),
        }


def _write_scenes(out: Path, seed: int, split: str, count: int, size: tuple[int, int]) -> Iterator[SceneRecords]:
    """Draw the scenes of a split, by as many processes as there are cores where that pays; no file is held as a whole."""
    (out / "images" / split).mkdir(parents=True, exist_ok=True)
    draw = partial(_draw, out, seed, split, size)
    with ExitStack() as stack:
        scenes: Iterator[SceneRecords] = map(draw, range(count))
        if count >= _WORTH_A_PROCESS:
            scenes = stack.enter_context(ProcessPoolExecutor()).map(draw, range(count), chunksize=32)
        paths = {task: out / f"{task}{split}.jsonl" for task in TASKS}
        files = {
            task: stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for task, path in paths.items()
        }
        for records, looks in scenes:
            for task, lines in records.items():
                files[task].writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in lines)
            yield records, looks


def _draw(out: Path, seed: int, split: str, size: tuple[int, int], index: int) -> SceneRecords:
    """Write the image of a scene, and return its records."""
    scene = compose_scene(seed, split, index, size)
    records = records_of(scene)
    Image.fromarray(draw_scene(scene)).save(out / records[""][0]["image"])
    return records, tuple(looks_of(obj) for obj in scene.objects)
