"""Fills a folder with scenes: images, JSON lines in the same format as other data sets, and tokenizers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dataset.prepare.folders import SPLITS, write_records
from demo.folder import Folder
from demo.scenes.compose import compose_scene
from demo.scenes.describe import looks_of
from demo.scenes.draw import draw_scene
from demo.scenes.pairs import KINDS, minimal_pairs
from demo.scenes.records import TASKS, Record, other_image, records_of, statement_records, texts_of
from demo.scenes.statements import ImageLooks, statement_sets
from utils.cores import usable_cores
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

ENGLISH = ("", "refer_", "vqa_", "captioning_", "nlvr_")
"""Prefixes of the files whose texts the English tokenizer is trained on."""

VOCABULARY_LIMIT = 512
MULTILINGUAL_LIMIT = 1500
"""Maximum number of entries of the tokenizer that is trained on the captions in all languages."""

DATA_VERSION = 12
"""Version number, increased when the same arguments give different images or texts, so that older folders are recognised."""

_MIN_SCENES_FOR_PROCESSES = 1000

SceneRecords = tuple[dict[str, list[Record]], ImageLooks]
"""The records of a scene by task, and the looks of its objects."""


def build(
    out: Path,
    *,
    seed: int,
    train: int,
    val: int,
    test: int,
    size: int | tuple[int, int],
    long: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Writes images of ``size`` (a side, or width and height), and a file of records for each split and task.

    ``vqa_answers.json`` has the answers of the training split, most frequent first. ``tokenizer/`` is trained on the English
    texts of the training split, and ``tokenizer_multilingual/`` on its captions in all languages. If ``long``, each scene also
    has a long caption.

    Raises:
        UserError: if the folder was made with different arguments, contains files that this command did not write, or cannot be
            written.
        ValueError: if a seed, number or size is out of range.
    """
    width, height = (size, size) if isinstance(size, int) else size
    counts = {"train": train, "val": val, "test": test}
    arguments = {"seed": seed, **counts, "size": [width, height], "drawing": DATA_VERSION} | (
        {"long": True} if long else {}
    )
    folder = Folder(out, FACTS, OWNED, arguments, overwrite)
    if folder.is_complete():
        return
    with (
        folder.filling() as facts,
        progress_bar(total=sum(counts.values()), quiet=not progress, desc="drawing scenes", unit="scene") as bar,
    ):
        facts |= {name: {} for name in ("objects", "relations", "sentences", "referring", "sets", "pairs", "questions")}
        for split, count in counts.items():
            images: list[ImageLooks] = []
            for looks in _write_scenes(out, seed, split, count, (width, height), long=long):
                images.append(looks)
                bar.update()
            statements = list(statement_sets(seed, split, images, count // 3 if split == "train" else count))
            examples = (record for stated in statements for record in statement_records(split, stated))
            write_records(out / f"nlvr_{split}.jsonl", examples)
            for name, number in _facts(out, split).items():
                facts[name][split] = number
        facts |= _train_tokenizers(folder)


def _train_tokenizers(folder: Folder) -> dict[str, int]:
    """Trains the tokenizers on the texts and answers of the training split, and writes the list of answers.

    Returns the sizes of the vocabularies, for the facts.
    """
    answers = Counter(record["answer"][0] for record in _read(folder.out, "vqa_train"))
    by_frequency = sorted(answers, key=lambda answer: (-answers[answer], answer))
    write_text(folder.out / ANSWERS, json.dumps(by_frequency, ensure_ascii=False) + "\n")
    english = {text for task in ENGLISH for record in _read(folder.out, f"{task}train") for text in texts_of(record)}
    translated = {text for record in _read(folder.out, "multilingual_train") for text in texts_of(record)}
    return {
        "vocabulary": folder.train_tokenizer(sorted(english | answers.keys()), VOCABULARY_LIMIT),
        "multilingual vocabulary": folder.train_tokenizer(
            sorted(translated), MULTILINGUAL_LIMIT, "tokenizer_multilingual"
        ),
    }


def _facts(out: Path, split: str) -> dict[str, Any]:
    """Counts the contents of a split's files, for the facts."""
    phrases: Counter[str] = Counter()
    for record in _read(out, split):
        for elem in record["elems"]:
            # In train, all phrases of an object are in one element, and only the first is not a relational phrase.
            grains = [elem["grain"]] if "grain" in elem else ["object", *["relation"] * (len(elem["caption"]) - 1)]
            phrases.update(grains)
    referring = Counter(elem["grain"] for record in _read(out, f"refer_{split}") for elem in record["elems"])
    sets = Counter(elem["grain"] for record in _read(out, f"sets_{split}") for elem in record["elems"])
    pairs = Counter(record["kind"] for record in _read(out, f"pairs_{split}"))
    return {
        "objects": phrases["object"],
        "relations": phrases["relation"],
        "sentences": sum(1 for _ in _read(out, f"nlvr_{split}")) // 2,
        "referring": {grain: referring[grain] for grain in ("relation", "attribute", "place")},
        "sets": {grain: sets[grain] for grain in ("absent", "one", "several")},
        "pairs": {kind: pairs[kind] for kind in KINDS},
        "questions": sum(1 for _ in _read(out, f"vqa_{split}")),
    }


def _read(out: Path, name: str) -> Iterator[Record]:
    with (out / f"{name}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write_scenes(
    out: Path, seed: int, split: str, count: int, size: tuple[int, int], *, long: bool
) -> Iterator[ImageLooks]:
    """Writes the images and records of a split, and yields the looks of the objects of each image.

    Large splits are drawn by one process per core. Files are written line by line, so that they are never completely in memory.
    """
    for folder in (split,) if split == "train" else (split, f"pairs_{split}"):
        (out / "images" / folder).mkdir(parents=True, exist_ok=True)
    draw = partial(_draw, out, seed, split, size, long=long)
    with ExitStack() as stack:
        scenes: Iterator[SceneRecords] = map(draw, range(count))
        if count >= _MIN_SCENES_FOR_PROCESSES:
            scenes = stack.enter_context(ProcessPoolExecutor(usable_cores())).map(draw, range(count), chunksize=32)
        paths = {task: out / f"{task}{split}.jsonl" for task in TASKS}
        files = {
            task: stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for task, path in paths.items()
        }
        for records, looks in scenes:
            for task, lines in records.items():
                files[task].writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in lines)
            yield looks


def _draw(out: Path, seed: int, split: str, size: tuple[int, int], index: int, *, long: bool) -> SceneRecords:
    """Writes the image of a scene, and returns its records and the looks of its objects."""
    scene = compose_scene(seed, split, index, size)
    records = records_of(scene, long=long)
    Image.fromarray(draw_scene(scene)).save(out / records[""][0]["image"])
    if split != "train":
        for pair in minimal_pairs(scene):
            Image.fromarray(draw_scene(pair.other)).save(out / other_image(scene, pair))
    return records, tuple(looks_of(obj) for obj in scene.objects)
