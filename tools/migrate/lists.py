"""Builds the data sections of our config from the lists and shards in a config of the authors' code.

Our readers accept most of the authors' files unchanged. A file is converted only if its keys differ from our records, if boxes
are in another file, or if the authors' config lists several files where our config takes one. For each file, ``source.files``
records what was done with it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dataset.broken import BrokenRecordError
from dataset.formats.annotations import Row, parse_rows, read_json, read_rows
from dataset.prepare.folders import write_records
from dataset.shards.finding import LINES_SUFFIXES, PARQUET_SUFFIX, TAR_SUFFIX
from tools.migrate.source import Source
from utils.errors import UserError
from utils.pickles import read_plain_pickle
from utils.printing import counted

SHARD_SUFFIXES = (*LINES_SUFFIXES, TAR_SUFFIX, PARQUET_SUFFIX)
RECORDS = "records"
"""Folder of converted files in the output folder."""
MAX_BROKEN = 0.01
"""Maximum fraction of broken rows in a list that is converted."""
REFCOCO = "refcoco+"
"""Folder with the official files of RefCOCO+, the only data set that the authors' grounding script reads."""

Change = Callable[[Row], dict[str, Any]]


def shards(value: Any, key: str, source: Source) -> list[str]:
    """Returns the folders and files of a pre-training stream.

    The authors' code reads every file in a folder, while our readers only read files with a known suffix. A folder of files
    such as ``part-00000`` is therefore replaced by a folder of symbolic links that end in ``.jsonl``.
    """
    entries = []
    for name in source.names(key, value):
        path = Path(source.file(name))
        if "://" in name:
            source.files.append((name, "not read; copy it to a local disk, and pass the path of the copy"))
            entries.append(name)
            continue
        entry, did = str(path), "used unchanged; run.py doctor checks its lines"
        if not path.exists():
            did = "missing"
        elif found := [each for each in _files_in(path) if each.suffix not in SHARD_SUFFIXES]:
            entry = _linked(path, found, source)
            did = (
                f"{counted(len(found), 'link', 'links')} with the suffix .jsonl in {entry}, since our readers only "
                "read files with a known suffix"
            )
        source.files.append((str(path), did))
        entries.append(entry)
    return entries


def _files_in(path: Path) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if file.is_file() and "_SUCCESS" not in file.name and not file.name.startswith(".")]


def _linked(path: Path, files: Iterable[Path], source: Source) -> str:
    folder = _unused(path.name, "", source)
    (source.work / folder).mkdir(parents=True)
    for file in files:
        (source.work / folder / f"{file.name}.jsonl").symlink_to(os.path.abspath(file))
    return str(source.out / folder)


def captioned(value: Any, key: str, source: Source) -> dict[str, Any]:
    """Returns the section for a list of captions. In rows with keys other than ``image`` or ``video``, ``caption`` and
    ``image_id``, the keys are renamed."""
    ours = {
        source.text("vision_key", "image"): "video" if source.get("is_video") else "image",
        source.text("text_key", "caption"): "caption",
        source.text("index_key", "image_id"): "image_id",
    }
    renamed = {theirs: name for theirs, name in ours.items() if theirs not in (name, "video_id")}
    change = (lambda row: {renamed.get(name, name): each for name, each in row.values.items()}) if renamed else None
    section = {"format": "records", "annotations": _one_list(value, key, source, change)}
    return section | _folder(source, "image_root", "images")


def statements(value: Any, key: str, source: Source) -> dict[str, Any]:
    """Returns the section for a list of NLVR2 statements."""
    section = {"format": "records", "annotations": _one_list(value, key, source, None)}
    return section | _folder(source, "image_root", "images")


def video_questions(value: Any, key: str, source: Source) -> dict[str, Any]:
    """Returns the section for lines of MSRVTT-QA or MSVD-QA."""
    return {"questions": _one_list(value, key, source, None)} | _folder(source, "img_rdir", "videos")


def question_sources(value: Any, key: str, source: Source) -> list[dict[str, Any]]:
    """Returns a config section for each list of questions.

    The authors' code chooses the folder of the images by each row's ``dataset``. Our config has one folder per list, so a list
    with rows from several data sets is rewritten.
    """
    return [_questions(name, key, source) for name in source.names(key, value)]


def _questions(name: str, key: str, source: Source) -> dict[str, Any]:
    path = source.file(name)
    roots = {"vqa": source.text("vqa_root"), "vg": source.text("vg_root"), "gqa": ""}
    if not Path(path).is_file():
        of = next((each for each in ("vg", "gqa") if Path(path).name.startswith(each)), "vqa")
        source.files.append((path, f"missing; judging by its name, its images belong to {of}"))
        return {"format": "records", "questions": path, "images": source.file(roots[of])}
    rows = read_rows(path, key)
    data_sets = {str(row.values.get("dataset", "vqa")) for row in rows if isinstance(row, Row)}
    if len(data_sets) == 1 and (of := data_sets.pop()) in roots:
        source.files.append((path, f"read unchanged: {counted(len(rows), 'row', 'rows')}"))
        return {"format": "records", "questions": path, "images": source.file(roots[of])}

    def change(row: Row) -> dict[str, Any]:
        of = row.values.get("dataset", "vqa")
        if of not in roots:
            raise BrokenRecordError("wrong type", f"dataset is {of!r}, not one of {', '.join(roots)}")
        return {**row.values, "image": os.path.join(roots[of], row.get("image", str))}

    written = _write(path, parse_rows(rows, change, key, MAX_BROKEN), Path(name).stem, source)
    return {"format": "records", "questions": written, "images": source.file("")}


def phrases(value: Any, key: str, source: Source) -> dict[str, dict[str, Any]]:
    """Returns the sections for the lists of RefCOCO+, by split: train, val, testA and testB.

    The lists contain the phrases, while ``refs(unc).p`` and ``instances.json`` contain the boxes and splits. They are combined
    into region records. If one of these files is missing, the config reads the official annotations (``format: refcoco``), which
    contain the same phrases.
    """
    folder = os.path.join(source.text("refcoco_data"), REFCOCO)
    refs, instances = (
        source.file(os.path.join(folder, "refs(unc).p")),
        source.file(os.path.join(folder, "instances.json")),
    )
    names = source.names(key, value)
    boxes_in_separate_file = not source.get("vlue_test")
    needed = [*map(source.file, names), *([refs, instances] if boxes_in_separate_file else [])]
    if missing := [path for path in needed if not Path(path).is_file()]:
        splits = ("train",) if key == "train_file" else ("val", "testA", "testB")
        source.files += [
            (path, "missing; the config uses the official files, which contain the same phrases") for path in missing
        ]
        images = source.file(os.path.join(source.text("image_root"), "train2014"))
        official = {"format": "refcoco", "refs": refs, "instances": instances, "images": images}
        return {split: {**official, "splits": [split]} for split in splits}
    boxes = _boxes_of_references(refs, instances, key) if boxes_in_separate_file else {}

    def change(row: Row) -> tuple[str, dict[str, Any]]:
        found = boxes.get(row.values.get("ref_id")) if boxes_in_separate_file else ("test", row.get("bbox", list))
        if found is None:
            raise BrokenRecordError("missing key", f"ref_id {row.values.get('ref_id')!r} is not in {refs}")
        split, box = found
        return "train" if key == "train_file" else split, {
            "image": row.get("image", str),
            "elems": [{"bb": box, "caption": row.get("text", str)}],
        }

    sections: dict[str, dict[str, Any]] = {}
    for name in names:
        found = parse_rows(read_rows(source.file(name), key), change, key, MAX_BROKEN)
        for split in dict.fromkeys(each for each, _ in found):
            stem = Path(name).stem if len({each for each, _ in found}) == 1 else f"{Path(name).stem}_{split}"
            written = _write(source.file(name), [record for each, record in found if each == split], stem, source)
            sections[split] = {"format": "records", "annotations": written} | _folder(source, "image_root", "images")
    return sections


def _boxes_of_references(refs: str, instances: str, key: str) -> dict[Any, tuple[str, Any]]:
    """Returns the split and the box of each reference, by reference id."""
    references, annotations = read_plain_pickle(refs, key), read_json(instances, key)
    try:
        by_annotation = {each["id"]: each["bbox"] for each in annotations["annotations"]}
        return {each["ref_id"]: (each["split"], by_annotation.get(each["ann_id"], [])) for each in references}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{refs} and {instances} are not the official files of RefCOCO+ (no {error})", where=key
        ) from None


def by_split(value: Any, key: str, source: Source, section: Callable[[Any, str, Source], Any]) -> dict[str, Any]:
    """Returns a config section for each list of a test split. If the config names the lists by language, the names are
    kept."""
    if isinstance(value, dict):
        return {str(name): section(each, f"{key}.{name}", source) for name, each in value.items()}
    names = source.names(key, value)
    if len(names) == 1:
        return {"test": section(names[0], key, source)}
    stems = [Path(name).stem for name in names]
    if len(set(stems)) < len(stems):
        stems = ["_".join(Path(name).with_suffix("").parts) for name in names]
    return {stem.replace(".", "_"): section(name, key, source) for stem, name in zip(stems, names, strict=True)}


def _folder(source: Source, key: str, ours: str) -> dict[str, Any]:
    return {ours: source.file(source.text(key))}


def _one_list(value: Any, key: str, source: Source, change: Change | None) -> str:
    """Returns the path of a single list: the list itself, or the records converted from several lists or from lists with other
    keys."""
    paths = [source.file(name) for name in source.names(key, value)]
    missing = [path for path in paths if not Path(path).is_file()]
    name = Path(paths[0]).stem if len(paths) == 1 else key.replace(".", "_")
    if missing:
        source.files += [(path, "missing" if len(paths) == 1 and not change else _REPEAT) for path in missing]
        return paths[0] if len(paths) == 1 and not change else str(source.out / RECORDS / f"{name}.jsonl")
    if len(paths) == 1 and change is None:
        source.files.append((paths[0], f"read unchanged: {counted(len(read_rows(paths[0], key)), 'row', 'rows')}"))
        return paths[0]
    rows = [row for path in paths for row in read_rows(path, key)]
    records = parse_rows(rows, change or (lambda row: row.values), key, MAX_BROKEN)
    return _write(", ".join(paths), records, name, source)


_REPEAT = "missing, but it must be converted; repeat the command on a machine that has the file"


def _write(of: str, records: Iterable[dict[str, Any]], stem: str, source: Source) -> str:
    path = _unused(stem, ".jsonl", source)
    (source.work / RECORDS).mkdir(exist_ok=True)
    count = write_records(source.work / path, records)
    source.files.append((of, f"{counted(count, 'record', 'records')} in {source.out / path}"))
    return str(source.out / path)


def _unused(stem: str, suffix: str, source: Source) -> Path:
    """Returns an unused path in the output folder."""
    names = (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}" for number in itertools.count(1))
    return next(path for path in (Path(RECORDS, name) for name in names) if not (source.work / path).exists())
