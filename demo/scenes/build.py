"""Fills a folder with scenes: images, JSON lines in the same format as other data sets, and tokenizers."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image

from dataset.prepare.folders import SPLITS, write_records
from dataset.prepare.output_folder import OutputFolder
from demo.folder import FolderFlags, Seed, is_complete, train_tokenizer
from demo.scenes.compose import compose_scene, draw_size
from demo.scenes.describe import looks_of
from demo.scenes.draw import draw_scene
from demo.scenes.pairs import KINDS, minimal_pairs
from demo.scenes.records import MULTILINGUAL, TASKS, Record, other_image, records_of, statement_records, texts_of
from demo.scenes.statements import ImageLooks, statement_sets
from demo.scenes.styles import STYLES, Style, in_style, in_words_of
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import write_text
from utils.flags import WrongValueError, number_within, read_by, whole_number
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


def _size(text: str) -> tuple[int, int]:
    side = whole_number(32, 1024)
    width, cross, height = text.lower().partition("x")
    try:
        return side(width), side(height if cross else width)
    except WrongValueError:
        fact = f"{text!r} is not a size from 32 to 1,024"
        raise WrongValueError(f"{fact}; use 64, or 96x64 for width x height") from None


Size = Annotated[tuple[int, int], read_by(_size, n_tokens=1, accepts_keys=False, metavar="SIZE", show_default="64")]
Split = Annotated[int, read_by(whole_number(1, 10_000))]


def scenes(
    *,
    output: FolderFlags,
    seed: Seed = 0,
    train: Annotated[int, read_by(whole_number(1, 1_000_000))] = 6000,
    val: Split = 200,
    test: Split = 200,
    size: Size = (64, 64),
    aspect: Annotated[float, read_by(number_within(1, 16))] = 1.0,
    long: bool = False,
    style: Literal["plain", "textile"] = "plain",
) -> int:
    """Draw the scenes data set.

    Args:
        seed: seed of the content of the scenes.
        train: number of training scenes.
        val: number of validation scenes.
        test: number of test scenes.
        size: size of an image in pixels: 64, or 96x64 for width x height.
        aspect: draw each scene with its own shape. The ratio of width to height changes by a factor of up to this number in both
            directions, and the number of pixels stays about the same.
        long: also write a long description of each scene (long_caption in the records for pre-training).
        style: textile: other colours, textures and words, in English only, for a model to adapt to.

    Examples:
        python -m demo.scenes --out data/scenes
    """
    started = time.monotonic()
    width, height = size
    counts = {"train": train, "val": val, "test": test}
    arguments = {"seed": seed, **counts, "size": [width, height], "drawing": DATA_VERSION} | (
        {"long": True} if long else {}
    )
    if aspect > 1:
        if min(size) < 32 * aspect**0.5:
            raise UserError(
                f"--aspect {aspect:g} would draw scenes with sides of less than 32 pixels",
                remedy=f"use --size {math.ceil(32 * aspect**0.5)} or larger",
            )
        arguments["aspect"] = aspect
    if style != "plain":
        arguments["style"] = style
    folder = OutputFolder(output.out, FACTS, arguments, OWNED, output.overwrite)
    if is_complete(folder):
        return 0
    with folder, progress_bar(total=sum(counts.values()), desc="drawing scenes", unit="scene") as bar:
        facts: dict[str, Any] = {
            name: {} for name in ("objects", "relations", "sentences", "referring", "sets", "pairs", "questions")
        }
        for split, count in counts.items():
            images: list[ImageLooks] = []
            for looks in _write_scenes(folder.out, seed, split, count, size, aspect, STYLES.get(style), long=long):
                images.append(looks)
                bar.update()
            statements = list(statement_sets(seed, split, images, count // 3 if split == "train" else count))
            examples = (record for stated in statements for record in statement_records(split, stated))
            if style != "plain":
                examples = (in_words_of(STYLES[style], record) for record in examples)
            write_records(folder.out / f"nlvr_{split}.jsonl", examples)
            for name, number in _facts(folder.out, split).items():
                facts[name][split] = number
        facts |= _train_tokenizers(folder.out, multilingual=style == "plain")
        folder.close(facts)
    sys.stdout.write(
        f"{folder.out}: {train} train, {val} val, {test} test scenes of {width}x{height} pixels"
        f"{f', with ratios from 1:{aspect:g} to {aspect:g}:1' if aspect > 1 else ''}; "
        f"{sum(facts['objects'].values())} objects, {sum(facts['relations'].values())} relational phrases, "
        f"{sum(facts['sentences'].values())} statements about two pictures, "
        f"{sum(sum(grains.values()) for grains in facts['referring'].values())} referring phrases, "
        f"{sum(facts['questions'].values())} questions, {facts['vocabulary']} word pieces; "
        f"{time.monotonic() - started:.0f} s\n"
    )
    return 0


def _train_tokenizers(out: Path, *, multilingual: bool) -> dict[str, int]:
    """Writes the answers of the training split, most frequent first, and trains the tokenizers on that split: one on the English
    texts, and, if ``multilingual``, one on the captions in all languages.

    Returns the sizes of the vocabularies, for the facts.
    """
    answers = Counter(record["answer"][0] for record in _read(out, "vqa_train"))
    by_frequency = sorted(answers, key=lambda answer: (-answers[answer], answer))
    write_text(out / ANSWERS, json.dumps(by_frequency, ensure_ascii=False) + "\n")
    english = {text for task in ENGLISH for record in _read(out, f"{task}train") for text in texts_of(record)}
    sizes = {"vocabulary": train_tokenizer(sorted(english | answers.keys()), out / "tokenizer", VOCABULARY_LIMIT)}
    if multilingual:
        translated = sorted({text for record in _read(out, "multilingual_train") for text in texts_of(record)})
        tokenizer = out / "tokenizer_multilingual"
        sizes["multilingual vocabulary"] = train_tokenizer(translated, tokenizer, MULTILINGUAL_LIMIT)
    return sizes


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
    out: Path,
    seed: int,
    split: str,
    count: int,
    size: tuple[int, int],
    aspect: float,
    style: Style | None,
    *,
    long: bool,
) -> Iterator[ImageLooks]:
    """Writes the images and records of a split, and yields the looks of the objects of each image.

    Large splits are drawn by one process per core. Files are written line by line, so that they are never completely in memory.
    """
    for folder in (split,) if split == "train" else (split, f"pairs_{split}"):
        (out / "images" / folder).mkdir(parents=True, exist_ok=True)
    draw = partial(_draw, out, seed, split, size, aspect, style, long=long)
    with ExitStack() as stack:
        scenes: Iterator[SceneRecords] = map(draw, range(count))
        if count >= _MIN_SCENES_FOR_PROCESSES:
            scenes = stack.enter_context(ProcessPoolExecutor(usable_cores())).map(draw, range(count), chunksize=32)
        tasks = [task for task in TASKS if style is None or task != MULTILINGUAL]
        paths = {task: out / f"{task}{split}.jsonl" for task in tasks}
        files = {
            task: stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for task, path in paths.items()
        }
        for records, looks in scenes:
            for task, file in files.items():
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records[task])
            yield looks


def _draw(
    out: Path,
    seed: int,
    split: str,
    size: tuple[int, int],
    aspect: float,
    style: Style | None,
    index: int,
    *,
    long: bool,
) -> SceneRecords:
    """Writes the image of a scene, and returns its records and the looks of its objects."""
    scene = compose_scene(seed, split, index, draw_size(seed, split, index, size, aspect))
    records = records_of(scene, long=long)
    drawn = {records[""][0]["image"]: scene}
    if split != "train":
        drawn |= {other_image(scene, pair): pair.other for pair in minimal_pairs(scene)}
    for path, content in drawn.items():
        Image.fromarray(draw_scene(content if style is None else in_style(content, style))).save(out / path)
    if style is not None:
        records = in_words_of(style, records)
    return records, tuple(looks_of(obj) for obj in scene.objects)
