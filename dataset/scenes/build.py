"""Fills a folder with scenes: pictures, JSON lines in the format of every other data set, and a tokenizer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dataset.prepare.folders import SPLITS, claim_folder, close_folder, write_records
from dataset.prepare.tokenizer import train_wordpiece
from dataset.scenes.compose import Scene, compose_scene
from dataset.scenes.describe import describe_scene
from dataset.scenes.draw import draw_scene
from dataset.scenes.wording import captions, noun_phrase, relation_phrase
from utils.errors import UserError

FACTS = "scenes.json"
OWNED = (*(f"{split}.jsonl" for split in SPLITS), "images", "tokenizer")
VOCABULARY_LIMIT = 512

DRAWING = 3
"""Goes up when the same arguments give other pictures or texts, so that an older folder is not taken for a current one."""

logger = logging.getLogger(__name__)


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
    """Make ``out/{train,val,test}.jsonl``, ``out/images/``, ``out/tokenizer/`` and, last, ``out/scenes.json``.

    A folder that is complete and was made with the same arguments is left as it is.

    Args:
        out: the folder; made if missing.
        seed: not negative.
        train, val, test: numbers of scenes.
        size: side of the square pictures, or (width, height), in pixels.
        overwrite: replace what an earlier run with other arguments made.
        progress: show a progress bar on stderr.

    Raises:
        UserError: the folder was made with other arguments, holds files of another origin, or cannot be written.
        ValueError: a seed, number or size out of range.
    """
    width, height = (size, size) if isinstance(size, int) else size
    counts = {"train": train, "val": val, "test": test}
    arguments = {"seed": seed, **counts, "size": [width, height], "drawing": DRAWING}
    if not claim_folder(out, FACTS, arguments, OWNED, overwrite=overwrite):
        logger.info("%s is complete and was made with the same arguments", out)
        return
    facts: dict[str, Any] = {"arguments": arguments, "objects": {}, "relations": {}}
    texts: list[str] = []
    try:
        with tqdm(total=sum(counts.values()), desc="drawing scenes", unit="scene", disable=not progress) as bar:
            for split, count in counts.items():
                (out / "images" / split).mkdir(parents=True, exist_ok=True)
                tally: Counter[str] = Counter()
                records = _records(out, seed, split, count, (width, height), bar)
                write_records(out / f"{split}.jsonl", _watched(records, tally, texts if split == "train" else None))
                facts["objects"][split], facts["relations"][split] = tally["object"], tally["relation"]
        facts["vocabulary"] = train_wordpiece(texts, out / "tokenizer", vocab_size=VOCABULARY_LIMIT)
        close_folder(out, FACTS, facts)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error


def scene_record(scene: Scene) -> dict[str, Any]:
    """The scene as a record: ``id``, ``image`` (relative path), ``caption`` and ``elems`` with ``bb`` = x, y, w, h in pixels.

    In the training split each object is one element with all its phrases, of which a reader takes one at a time: two texts of
    one box would be wrong negatives of each other in a batch. Only one object also has a relational phrase there: such phrases
    fit more than one region of a batch. In the others each phrase is an element, marked by its grain.
    """
    description = describe_scene(scene)
    phrases: dict[int, list[tuple[str, str]]] = {
        place: [("object", noun_phrase(scene, mention))] for place, mention in enumerate(description.objects)
    }
    relations = description.relations[:1] if scene.split == "train" else description.relations
    for phrase in relations:
        phrases[phrase.subject.index].append(("relation", relation_phrase(scene, phrase)))
    elems: list[dict[str, Any]] = []
    for place, said in phrases.items():
        box = list(scene.objects[place].box)
        if scene.split == "train":
            elems.append({"bb": box, "caption": [text for _, text in said]})
        else:
            elems += [{"bb": box, "caption": text, "grain": grain} for grain, text in said]
    name = f"{scene.split}/{scene.index:06d}"
    return {"id": name, "image": f"images/{name}.png", "caption": captions(scene, description), "elems": elems}


def texts_of(record: dict[str, Any]) -> Iterator[str]:
    """All texts of a scene's record."""
    yield from record["caption"]
    for elem in record["elems"]:
        yield from [elem["caption"]] if isinstance(elem["caption"], str) else elem["caption"]


def _records(
    out: Path, seed: int, split: str, count: int, size: tuple[int, int], bar: tqdm[Any]
) -> Iterator[dict[str, Any]]:
    for index in range(count):
        scene = compose_scene(seed, split, index, size)
        record = scene_record(scene)
        Image.fromarray(draw_scene(scene)).save(out / record["image"])
        bar.update()
        yield record


def _watched(
    records: Iterator[dict[str, Any]], tally: Counter[str], texts: list[str] | None
) -> Iterator[dict[str, Any]]:
    for record in records:
        for elem in record["elems"]:
            several = isinstance(elem["caption"], list)
            tally.update(["object", *["relation"] * (len(elem["caption"]) - 1)] if several else [elem["grain"]])
        if texts is not None:
            texts.extend(texts_of(record))
        yield record
