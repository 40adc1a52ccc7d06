"""Fills a folder with scenes: pictures, JSON lines in the format of every other data set, and a tokenizer."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from tqdm import tqdm

from dataset.prepare.folders import SPLITS, claim_folder, close_folder, write_records
from dataset.prepare.tokenizer import train_wordpiece
from demo.scenes.compose import Scene, compose_scene
from demo.scenes.describe import describe_scene, looks_of
from demo.scenes.draw import draw_scene
from demo.scenes.languages import captions_by_language
from demo.scenes.questions import ANSWER_TYPES, ask_about
from demo.scenes.referring import refer_in_scene
from demo.scenes.statements import Picture, StatementSet, statement_sets
from demo.scenes.wording import (
    captions,
    noun_phrase,
    place_phrase,
    question_text,
    reference_captions,
    relation_phrase,
    statement_text,
)
from utils.errors import UserError
from utils.files import write_text
from utils.progress import progress_bar

FACTS = "scenes.json"
ANSWERS = "vqa_answers.json"
TASKS = ("retrieval", "nlvr", "refer", "vqa", "captioning", "multilingual")
OWNED = (
    *(f"{split}.jsonl" for split in SPLITS),
    *(f"{task}_{split}.jsonl" for task in TASKS for split in SPLITS),
    ANSWERS,
    "images",
    "tokenizer",
    "tokenizer_multilingual",
)
GRAINS = ("relation", "attribute", "place")
"""Of referring phrases."""

VOCABULARY_LIMIT = 512
MULTILINGUAL_LIMIT = 1500
"""Entries of the tokenizer that learns from the captions in all languages."""

ANNOTATORS = 10
"""Answers to a question of VQA v2, by which its accuracy is measured; here they all agree."""

_WORTH_A_PROCESS = 1000

DRAWING = 8
"""Goes up when the same arguments give other pictures or texts, so that an older folder is not taken for a current one."""

logger = logging.getLogger(__name__)

T = TypeVar("T")


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

    Over the same pictures come, for each split, ``out/retrieval_{split}.jsonl``, ``out/nlvr_{split}.jsonl``,
    ``out/refer_{split}.jsonl``, ``out/vqa_{split}.jsonl`` and ``out/captioning_{split}.jsonl``: see
    :func:`retrieval_record`, :func:`statement_records`, :func:`referring_record`, :func:`question_records` and
    :func:`captioning_record`; and ``out/vqa_answers.json``, the answers of train, the most
    frequent ones first. ``out/multilingual_{split}.jsonl`` has captions by language (:func:`multilingual_record`), from which
    ``out/tokenizer_multilingual/`` learns.

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
    facts: dict[str, Any] = {"arguments": arguments}
    facts |= {name: {} for name in ("objects", "relations", "sentences", "referring", "questions")}
    texts: dict[str, None] = {}  # as an ordered set: many phrases come again and again
    spoken: dict[str, None] = {}
    try:
        total = sum(counts.values())
        with progress_bar(total=total, quiet=not progress, desc="drawing scenes", unit="scene") as bar:
            for split, count in counts.items():
                learned = (texts, spoken) if split == "train" else None
                made = _build_split(out, seed, split, count, (width, height), bar, learned)
                for name, number in made.items():
                    facts[name][split] = number
        facts["vocabulary"] = train_wordpiece(texts, out / "tokenizer", vocab_size=VOCABULARY_LIMIT)
        folder = out / "tokenizer_multilingual"
        facts["multilingual vocabulary"] = train_wordpiece(spoken, folder, vocab_size=MULTILINGUAL_LIMIT)
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
    return {**_named(scene.split, scene.index), "caption": captions(scene, description), "elems": elems}


def referring_record(scene: Scene) -> dict[str, Any] | None:
    """Phrases of which each fits one object of the scene: ``id``, ``image`` and ``elems`` with ``bb``, ``caption`` and ``grain``.

    ``grain`` is "relation", "attribute" or "place": by what the phrase tells its object apart. Each phrase is an element of its
    own in train too, so that an object may have several. None where nothing can be said.
    """
    referring = refer_in_scene(scene)
    said = [
        *(("relation", phrase.subject, relation_phrase(scene, phrase)) for phrase in referring.relations),
        *(("attribute", mention, noun_phrase(scene, mention, definite=True)) for mention in referring.attributes),
        *(("place", phrase.subject, place_phrase(scene, phrase)) for phrase in referring.places),
    ]
    elems = [
        {"bb": list(scene.objects[subject.index].box), "caption": text, "grain": grain} for grain, subject, text in said
    ]
    return {**_named(scene.split, scene.index), "elems": elems} if elems else None


def retrieval_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A scene's record as one of the retrieval task: ``image``, ``caption`` (a list) and ``image_id``."""
    return {"image": record["image"], "caption": record["caption"], "image_id": record["id"]}


def captioning_record(scene: Scene) -> dict[str, Any]:
    """The scene with its reference captions: ``image``, ``caption`` (a list) and ``image_id``."""
    named = _named(scene.split, scene.index)
    return {"image": named["image"], "caption": reference_captions(scene), "image_id": named["id"]}


def multilingual_record(scene: Scene) -> dict[str, Any]:
    """The scene with its captions by language: ``image``, ``caption`` and ``image_id``."""
    named = _named(scene.split, scene.index)
    return {"image": named["image"], "caption": captions_by_language(scene), "image_id": named["id"]}


def statement_records(split: str, stated: StatementSet) -> list[dict[str, Any]]:
    """The two examples of a statement in the form of the processed NLVR2: ``sentence``, ``label`` ("True" or "False"),
    ``identifier`` (split, set, pair and sentence) and ``images`` (left, right)."""
    statement, true, false = stated.judgement
    pairs = [("True", true), ("False", false)]
    return [
        {
            "sentence": statement_text(statement),
            "label": label,
            "identifier": f"{split}-{stated.number}-{place}-0",
            "images": [_named(split, index)["image"] for index in pair],
        }
        for place, (label, pair) in enumerate(pairs if stated.true_first else pairs[::-1])
    ]


def question_records(scene: Scene) -> list[dict[str, Any]]:
    """The questions about the scene in the processed format of VQA v2, each with its ``answer_type`` beside it.

    ``question_id`` is the scene's index times 100, plus the question's place.
    """
    return [
        {
            "question_id": 100 * scene.index + place,
            "question": question_text(question),
            "image": _named(scene.split, scene.index)["image"],
            "dataset": "vqa",
            "answer": [question.answer] * ANNOTATORS,
            "answer_type": ANSWER_TYPES[question.kind],
        }
        for place, question in enumerate(ask_about(scene))
    ]


def texts_of(record: Mapping[str, Any]) -> Iterator[str]:
    """All texts of a record with described boxes."""
    yield from record.get("caption", ())
    for elem in record["elems"]:
        yield from [elem["caption"]] if isinstance(elem["caption"], str) else elem["caption"]


class Made(NamedTuple):
    """What there is of a scene once its picture is drawn: its records of every kind, and what its objects look like."""

    record: dict[str, Any]
    phrases: dict[str, Any] | None
    questions: list[dict[str, Any]]
    captioned: dict[str, Any]
    spoken: dict[str, Any]
    looks: Picture


def _make(out: Path, seed: int, split: str, size: tuple[int, int], index: int) -> Made:
    """Draw a scene's picture and say everything about it."""
    scene = compose_scene(seed, split, index, size)
    made = Made(
        scene_record(scene),
        referring_record(scene),
        question_records(scene),
        captioning_record(scene),
        multilingual_record(scene),
        tuple(looks_of(thing) for thing in scene.objects),
    )
    Image.fromarray(draw_scene(scene)).save(out / made.record["image"])
    return made


def _build_split(
    out: Path,
    seed: int,
    split: str,
    count: int,
    size: tuple[int, int],
    bar: tqdm[Any],
    learned: tuple[dict[str, None], dict[str, None]] | None,
) -> dict[str, Any]:
    """Draw the pictures of a split, write its records, and count for the facts file.

    ``learned`` receives what the records say, in English for every task, and the captions in all languages.
    """
    texts, all_languages = learned or (None, None)
    (out / "images" / split).mkdir(parents=True, exist_ok=True)
    tally: Counter[str] = Counter()
    referring: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    pictures: list[Picture] = []

    def rows() -> Iterator[tuple[Sequence[Mapping[str, Any]], ...]]:
        for record, phrases, questions, captioned, spoken, looks in _in_processes(
            partial(_make, out, seed, split, size), count
        ):
            bar.update()
            pictures.append(looks)
            tally.update(_grains(record))
            if phrases is not None:
                referring.update(_grains(phrases))
            answers.update(question["answer"][0] for question in questions)
            if texts is not None:
                texts.update(dict.fromkeys(text for said in (record, phrases) if said for text in texts_of(said)))
                texts.update(dict.fromkeys(question["question"] for question in questions))
                texts.update(dict.fromkeys(captioned["caption"]))
            if all_languages is not None:
                all_languages.update(dict.fromkeys(text for said in spoken["caption"].values() for text in said))
            yield [record], [retrieval_record(record)], [phrases] if phrases else [], questions, [captioned], [spoken]

    tasks = ("", "retrieval_", "refer_", "vqa_", "captioning_", "multilingual_")
    names = [f"{task}{split}.jsonl" for task in tasks]
    _write_side_by_side([out / name for name in names], rows())
    stated = list(statement_sets(seed, split, pictures, count // 3 if split == "train" else count))
    write_records(out / f"nlvr_{split}.jsonl", (line for each in stated for line in statement_records(split, each)))
    if texts is not None:
        texts.update(dict.fromkeys(statement_text(each.judgement.statement) for each in stated))
        texts.update(dict.fromkeys(answers))
        by_frequency = sorted(answers, key=lambda answer: (-answers[answer], answer))
        write_text(out / ANSWERS, json.dumps(by_frequency, ensure_ascii=False) + "\n")
    return {
        "objects": tally["object"],
        "relations": tally["relation"],
        "sentences": len(stated),
        "referring": {grain: referring[grain] for grain in GRAINS},
        "questions": answers.total(),
    }


def _in_processes(make: Callable[[int], T], count: int) -> Iterator[T]:
    """``make`` of each number below ``count``, in order, by as many processes as there are cores where that pays."""
    if count < _WORTH_A_PROCESS:
        yield from map(make, range(count))
        return
    with ProcessPoolExecutor() as pool:
        yield from pool.map(make, range(count), chunksize=32)


def _named(split: str, index: int) -> dict[str, str]:
    name = f"{split}/{index:06d}"
    return {"id": name, "image": f"images/{name}.png"}


def _grains(record: Mapping[str, Any]) -> Iterator[str]:
    for elem in record["elems"]:
        several = isinstance(elem["caption"], list)
        yield from ["object", *["relation"] * (len(elem["caption"]) - 1)] if several else [elem["grain"]]


def _write_side_by_side(paths: Sequence[Path], rows: Iterable[Sequence[Sequence[Mapping[str, Any]]]]) -> None:
    """Write rows of cells of records, a file for each column. No column is ever held as a whole."""
    with ExitStack() as stack:
        streams = [stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in paths]
        for row in rows:
            for stream, cell in zip(streams, row, strict=True):
                for record in cell:
                    stream.write(json.dumps(record, ensure_ascii=False) + "\n")
