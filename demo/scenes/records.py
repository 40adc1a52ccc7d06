"""The records of a scene, for each task that the demo trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from demo.scenes.captions import captions_by_language, reference_captions
from demo.scenes.compose import Scene
from demo.scenes.describe import describe_scene, looks_of, refer_in_scene
from demo.scenes.long import long_caption
from demo.scenes.pairs import MinimalPair, minimal_pairs
from demo.scenes.questions import ask_about
from demo.scenes.sets import set_phrases
from demo.scenes.statements import StatementSet

Record = dict[str, Any]

MULTILINGUAL = "multilingual_"
TASKS = ("", "retrieval_", "refer_", "sets_", "pairs_", "vqa_", "captioning_", MULTILINGUAL)
"""Prefixes of the file names; the records for pre-training are in ``{split}.jsonl``."""

ANNOTATORS = 10
"""Number of answers to a question, as in VQA v2, whose accuracy compares a prediction with ten people's answers. Here, all
answers to a question are equal."""


def records_of(scene: Scene, *, long: bool = False) -> dict[str, list[Record]]:
    """Returns the records of a scene by :data:`TASKS`. Records of "captioning_" have several references, and records of
    "multilingual_" have captions by language. If ``long``, the record for pre-training also has a long caption."""
    captions = captions_by_language(scene)

    def captioned(caption: object) -> list[Record]:
        name = _name(scene.split, scene.index)
        return [{"image": _image(name), "caption": caption, "image_id": name}]

    records = (
        [pretraining_record(scene, captions["en"]) | ({"long_caption": long_caption(scene)} if long else {})],
        captioned(captions["en"]),
        referring_records(scene),
        set_records(scene),
        pair_records(scene),
        question_records(scene),
        captioned(reference_captions(scene)),
        captioned(captions),
    )
    return dict(zip(TASKS, records, strict=True))


def pretraining_record(scene: Scene, captions: list[str]) -> Record:
    """Returns a record with ``id``, ``image`` (relative path), ``caption`` and ``elems`` with ``bb`` = x, y, w, h in pixels.

    In the training split, each object is one element with all its phrases, and a reader uses one phrase at a time, because two
    texts of the same box would be false negatives of each other in a batch. Only one object also has a relational phrase, because
    such phrases fit more than one region of a batch. In the other splits, each phrase is an element with its grain.
    """
    training = scene.split == "train"
    relations = describe_scene(scene).relations
    phrases = [[("object", looks_of(obj).indefinite())] for obj in scene.objects]
    for index, text in relations[:1] if training else relations:
        phrases[index].append(("relation", text))
    elems: list[Record] = []
    for obj, of_object in zip(scene.objects, phrases, strict=True):
        box = list(obj.box)
        if training:
            elems.append({"bb": box, "caption": [text for _, text in of_object]})
        else:
            elems += [{"bb": box, "caption": text, "grain": grain} for grain, text in of_object]
    name = _name(scene.split, scene.index)
    return {"id": name, "image": _image(name), "caption": captions, "elems": elems}


def referring_records(scene: Scene) -> list[Record]:
    """Returns records of phrases that fit exactly one object: ``id``, ``image`` and ``elems`` with ``bb``, ``caption``,
    ``grain``.

    ``grain`` says how the phrase identifies its object: "relation", "attribute" or "place". Each phrase is a separate element,
    also in train, so an object may have several. A scene with one object has no record.
    """
    attributes, places = refer_in_scene(scene)
    by_grain = {"relation": describe_scene(scene).relations, "attribute": attributes, "place": places}
    elems = [
        {"bb": list(scene.objects[index].box), "caption": text, "grain": grain}
        for grain, phrases in by_grain.items()
        for index, text in phrases
    ]
    name = _name(scene.split, scene.index)
    return [{"id": name, "image": _image(name), "elems": elems}] if elems else []


def set_records(scene: Scene) -> list[Record]:
    """Returns records of phrases that fit several objects, one or none: ``id``, ``image`` and ``elems`` with ``bb`` (a list of
    boxes), ``caption`` and ``grain`` ("several", "one" or "absent")."""
    elems = [
        {"bb": [list(scene.objects[index].box) for index in objects], "caption": text, "grain": kind}
        for kind, text, objects in set_phrases(scene)
    ]
    name = _name(scene.split, scene.index)
    return [{"id": name, "image": _image(name), "elems": elems}] if elems else []


def pair_records(scene: Scene) -> list[Record]:
    """Returns the minimal pairs of a scene, each with its ``kind``.

    In the training split, these are image-text records of the scene, whose ``hard_negatives`` contains the text of the other
    scene. In the other splits, a record has both ``images`` and their ``captions``, and is a case for ``run.py benchmark``.
    """
    name = _name(scene.split, scene.index)
    if scene.split == "train":
        return [
            {"image": _image(name), "caption": pair.text, "hard_negatives": [pair.other_text], "kind": pair.kind}
            for pair in minimal_pairs(scene)
        ]
    return [
        {
            "kind": pair.kind,
            "images": [_image(name), other_image(scene, pair)],
            "captions": [pair.text, pair.other_text],
        }
        for pair in minimal_pairs(scene)
    ]


def other_image(scene: Scene, pair: MinimalPair) -> str:
    """Returns the relative path of the other image of a minimal pair, which is not in the folder of the scenes."""
    return _image(f"pairs_{_name(scene.split, scene.index)}_{pair.kind}")


def question_records(scene: Scene) -> list[Record]:
    """Returns questions in the processed format of VQA v2, with an additional ``answer_type``.

    ``question_id`` is the index of the scene times 100, plus the index of the question.
    """
    return [
        {
            "question_id": 100 * scene.index + index,
            "question": question.text,
            "image": _image(_name(scene.split, scene.index)),
            "dataset": "vqa",
            "answer": [question.answer] * ANNOTATORS,
            "answer_type": question.answer_type,
        }
        for index, question in enumerate(ask_about(scene))
    ]


def statement_records(split: str, stated: StatementSet) -> list[Record]:
    """Returns the two examples of a statement in the processed format of NLVR2: ``sentence``, ``label`` ("True" or "False"),
    ``identifier`` (split, set, two images and sentence) and ``images`` (left, right)."""
    examples = [("True", stated.true), ("False", stated.false)]
    return [
        {
            "sentence": stated.text,
            "label": label,
            "identifier": f"{split}-{stated.number}-{index}-0",
            "images": [_image(_name(split, index)) for index in images],
        }
        for index, (label, images) in enumerate(examples if stated.true_first else examples[::-1])
    ]


def texts_of(record: Mapping[str, Any]) -> Iterator[str]:
    """Yields the captions in all languages, phrases, question, sentence and long caption of a record."""
    for described in (record, *record.get("elems", ())):
        caption = described.get("caption", ())
        if isinstance(caption, dict):
            yield from (text for texts in caption.values() for text in texts)
        else:
            yield from [caption] if isinstance(caption, str) else caption
    yield from (record[name] for name in ("question", "sentence", "long_caption") if name in record)


def _name(split: str, index: int) -> str:
    return f"{split}/{index:06d}"


def _image(name: str) -> str:
    return f"images/{name}.png"
