"""Reports keys in records that nothing reads, because they may be misspelled."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from dataset.config import ImageRecordsConfig
from dataset.examples import readable_records
from dataset.formats.annotations import Row, read_rows
from dataset.shards.readers import Shards
from dataset.text.processors import clean_caption
from tasks.config import CaptioningConfig, GroundingConfig, NLVRConfig, PretrainConfig, RetrievalConfig, VQAConfig
from tools.doctor.findings import Report
from tools.doctor.subject import Subject
from utils.findings import Finding

RECORDS = 300
"""Number of random records of a file whose keys are counted."""

OTHER_KEYS = {
    "id",
    "image_id",
    "question_id",
    "identifier",
    "coco_id",
    "flickr_id",
    "vg_id",
    "dataset",
    "caption",
    "elems",
}
OTHER_KEYS |= {"url", "kind"}
"""Keys that records may have for other purposes: ids, and keys that another task reads."""
TEXT_KEYS = {"long_caption", "hard_negatives"}
"""Keys of a record or phrase that pre-training reads if its config says so."""
PHRASE_KEYS = {"bb", "caption", "attributes", "grain"}
"""Keys of a phrase that pre-training and grounding read."""
CAPTIONED_KEYS = {"image", "video", "video_id", "caption"}
TASK_KEYS: dict[type[Any], set[str]] = {
    RetrievalConfig: CAPTIONED_KEYS,
    CaptioningConfig: CAPTIONED_KEYS,
    GroundingConfig: {"image", "elems"},
    VQAConfig: {"image", "question", "answer", "answer_type"},
    NLVRConfig: {"images", "sentence", "label"},
}
"""Keys that fine-tuning tasks read."""

ALTERNATIVE_NAMES = {
    "bb": ("bbox", "box", "bboxes", "boxes"),
    "attributes": ("attribute", "attrs"),
    "elems": ("regions", "boxes", "objects", "elements", "annotations", "bboxes"),
    "caption": ("captions", "text", "sentence", "sentences", "description"),
    "image": ("image_path", "file_name", "filename", "img", "path"),
    "answer": ("answers",),
    "sentence": ("caption", "statement", "text"),
}
"""Names that other formats use for the same keys."""


class _Sampled(NamedTuple):
    """Some records of a file, or their phrases, with the file's ``key`` in the config, the keys that this run reads (``read``),
    and other known keys (``others``).

    Attributes:
        only_given: whether hard negatives are only taken from records.
    """

    key: str
    read: set[str]
    others: set[str]
    records: Sequence[Mapping[str, Any]]
    only_given: bool = False


def check_record_keys(subject: Subject, report: Report) -> None:
    """Lists the unknown keys of training records and of their phrases, and warns if one of them looks like a known key that is
    missing. Also reports how many phrases have several boxes, no box, long captions or hard negatives."""
    for sampled in _sampled(subject):
        _check_keys(sampled, "records", report)
        if "elems" not in sampled.read:
            _check_texts(sampled, sampled.records, report)
            continue
        listed = [record["elems"] for record in sampled.records if isinstance(record.get("elems"), list)]
        phrases = [phrase for phrases in listed for phrase in phrases if isinstance(phrase, dict)]
        _check_texts(sampled, [*sampled.records, *phrases], report)
        if shares := _phrase_fractions(phrases, is_grounding=subject.config.task == "grounding"):
            report.ok("phrases", f"{sampled.key}: {shares}")
        _check_keys(
            _Sampled(sampled.key, PHRASE_KEYS, OTHER_KEYS | {"exhaustive"}, phrases), "phrases in elems", report
        )


def _check_keys(sampled: _Sampled, what: str, report: Report) -> None:
    key, read, others, objects, _ = sampled
    counts = Counter(name for each in objects for name in each)
    unknown = [name for name, _ in counts.most_common() if name not in read | others | TEXT_KEYS]
    if not unknown:
        return
    listed = ", ".join(f"{name} (in {counts[name]:,} of {len(objects):,})" for name in unknown[:8])
    listed += f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    intended = [name for each in unknown if (name := intended_key(each, sorted((read | TEXT_KEYS) - counts.keys())))]
    if intended:
        fact = f"{what} have unknown keys: {listed}"
        remedy = f"did you mean {', '.join(dict.fromkeys(intended))}? docs/records.md lists the keys"
        report.add("record keys", [Finding("warning", key, fact, remedy)])
    else:
        report.ok("record keys", f"{key}: {what} have unknown keys, which nothing reads: {listed}")


def _check_texts(sampled: _Sampled, described: Sequence[Mapping[str, Any]], report: Report) -> None:
    """Warns if the config requests long captions or hard negatives but no record or phrase has them, or if hard negatives cannot
    be used."""
    if "long_caption" in sampled.read and not any(each.get("long_caption") for each in described):
        fact = (
            f"{sampled.key}.captions requests long captions, but none of {len(sampled.records):,} records has a "
            "long_caption"
        )
        report.add(
            "record keys", [Finding("warning", sampled.key, fact, "set it to short, or add them: docs/records.md")]
        )
    if "hard_negatives" not in sampled.read:
        return
    key, given = f"{sampled.key}.hard_negatives", [each for each in described if each.get("hard_negatives")]
    unusable = [each for each in given if not set(_cleaned(each["hard_negatives"])) - {*_cleaned(each.get("caption"))}]
    if not given and sampled.only_given:
        fact = f"none of {len(sampled.records):,} records has hard_negatives, but {key}.sources only contains given"
        report.add(
            "record keys", [Finding("warning", key, fact, "add other sources, or hard_negatives: docs/records.md")]
        )
    if unusable:
        fact = (
            f"hard_negatives of {len(unusable):,} of {len(given):,} records or phrases have no usable text: they are empty or a "
            "caption"
        )
        report.add(
            "record keys", [Finding("warning", key, fact, "add texts that are wrong about the image: docs/records.md")]
        )


def _cleaned(texts: Any) -> Iterator[str]:
    """Yields all cleaned texts in a text, a list, or texts by language."""
    if isinstance(texts, str):
        with suppress(ValueError):  # the text is empty after cleaning
            yield clean_caption(texts, len(texts))
    elif isinstance(texts, Mapping | Sequence):
        for each in texts.values() if isinstance(texts, Mapping) else texts:
            yield from _cleaned(each)


def _phrase_fractions(phrases: Sequence[Mapping[str, Any]], is_grounding: bool) -> str:
    """Describes the fractions of the phrases that have features that previous versions did not support. Returns "" if no phrase
    has such a feature.

    Args:
        is_grounding: whether the task is grounding. A grounding run trains on sets of boxes or skips them.
    """
    boxes = [phrase["bb"] for phrase in phrases if isinstance(phrase.get("bb"), list)]
    counts = {
        f"have several boxes{'' if is_grounding else ', and no box loss'}": sum(
            len(bb) > 1 and isinstance(bb[0], list) for bb in boxes
        ),
        f"have no box{'' if is_grounding else ', and are not used yet'}": sum(not bb for bb in boxes),
        "have a long caption": sum(bool(phrase.get("long_caption")) for phrase in phrases),
        "have hard negatives": sum(bool(phrase.get("hard_negatives")) for phrase in phrases),
    }
    shares = [f"{count / len(phrases):.1%} {what}" for what, count in counts.items() if count]
    return f"of {len(phrases):,} phrases, {'; '.join(shares)}" if shares else ""


def intended_key(name: str, absent: Sequence[str]) -> str | None:
    """Returns the key that was probably intended by ``name``, among the ``absent`` keys, which occur in no record; or None."""
    known_as = [key for key in absent if name.lower() in ALTERNATIVE_NAMES.get(key, ())]
    return next(iter(known_as or difflib.get_close_matches(name, absent, 1, 0.75)), None)


def _sampled(subject: Subject) -> Iterator[_Sampled]:
    config: Any = subject.config
    rng = np.random.default_rng(config.seed)
    if isinstance(config, PretrainConfig):
        for name, stream in config.data.streams().items():
            if isinstance(stream, ImageRecordsConfig) and not subject.missing_below(f"data.{name}"):
                read = {stream.image_key, stream.caption_key} | ({"elems"} if name == "regions" else set())
                if stream.captions != "short":
                    read.add("long_caption")
                sources = () if stream.hard_negatives is None else stream.hard_negatives.sources
                if "given" in sources:
                    read.add("hard_negatives")
                data = config.data
                shards = Shards(
                    stream.paths, key=f"data.{name}.files", index_folder=data.cache_index, remote=data.remote
                )
                chosen = rng.choice(len(shards), min(RECORDS, len(shards)), replace=False)
                yield _Sampled(
                    f"data.{name}",
                    read,
                    OTHER_KEYS,
                    list(_read(shards, sorted(chosen.tolist()))),
                    set(sources) == {"given"},
                )
        return
    task_keys = next((keys for task, keys in TASK_KEYS.items() if isinstance(config, task)), None)
    if task_keys is None or subject.missing_below("data.train"):
        return
    train = config.data.train
    for index, split in enumerate(train if isinstance(train, list) else [train]):
        if split.format == "records":
            key = f"data.train[{index}]" if isinstance(train, list) and len(train) > 1 else "data.train"
            rows = [row.values for row in read_rows(_file(split), key) if isinstance(row, Row)]
            chosen = rng.choice(len(rows), min(RECORDS, len(rows)), replace=False)
            yield _Sampled(key, task_keys, OTHER_KEYS, [rows[row] for row in sorted(chosen.tolist())])


def _file(split: Any) -> str:
    path: str = split.questions if hasattr(split, "questions") else split.annotations
    return path


def _read(shards: Shards, indices: Iterable[int]) -> Iterator[Mapping[str, Any]]:
    return readable_records(shards, indices, lambda raw: raw.values)
