"""``run.py prepare multilingual``: captions by language for the records of ``prepare 4m``."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from dataset.examples import readable_records
from dataset.prepare.counts import Counts
from dataset.prepare.file_jobs import FileJob, FinishedFile, fill_with_files
from dataset.prepare.folders import tally
from dataset.prepare.output_flags import OutputFlags, manifest_of
from dataset.prepare.output_folder import OutputFolder, json_line
from dataset.prepare.processes import WorkerDiedError, in_order
from dataset.prepare.raw_folder import file_digest
from dataset.prepare.translations import TEXTS, Translator, fill_store, translate_record, translated_files, write_texts
from dataset.prepare.url_shards import add_member
from dataset.records.schema import ImageKeys, RawRecord, image_source
from dataset.shards.finding import PARQUET_SUFFIX, TAR_SUFFIX, find_shards
from dataset.shards.readers import Shards
from dataset.shards.tars import key_of
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import replacing
from utils.flags import read_by, whole_number
from utils.progress import progress_bar

FOLDERS = ("coco", "vg", "sbu", "cc3m", "coco_regions", "vg_regions")
"""Folders of records with captions by language that configs/presets/pretrain_multilingual.yaml reads."""

COMMAND = "multilingual"


@dataclass(frozen=True)
class _Job(FileJob):
    """A shard to translate to ``languages`` with the translations in ``store``."""

    source: Path
    store: Path
    languages: tuple[str, ...]


def multilingual(
    *,
    output: OutputFlags,
    records: Path,
    translations: Path,
    workers: Annotated[int, read_by(whole_number(1, 1024))] = usable_cores(),
) -> int:
    """Make records with captions by language for multilingual pre-training.

    The records come from `prepare 4m`. The first run writes their distinct texts to texts.txt in the folder of translations.
    Translate this file line by line into texts.de.txt, texts.fr.txt and so on, with a system of your choice, and run the command
    again. The second run writes a copy of each folder of records, with captions by language. `prepare wikimatrix` makes
    translated sentences.

    Args:
        records: folder with the folders that `prepare 4m` made: coco, vg, sbu, cc3m, coco_regions, vg_regions.
        translations: folder for texts.txt, which the first run writes, and for texts.de.txt, …
        workers: number of processes.
    """
    folders = [records / name for name in FOLDERS if (records / name).is_dir()]
    if not folders:
        raise UserError(
            f"contains none of {', '.join(FOLDERS)}",
            where=f"--records {records}",
            remedy="build them with `prepare 4m`",
        )
    if missing := [name for name in FOLDERS if records / name not in folders]:
        _report(f"{records}: found no {', '.join(missing)}, which the multilingual configs also read")
    files = translated_files(translations) if translations.is_dir() else {}
    if not (translations / TEXTS).is_file() or not files:
        _write_texts(folders, translations)
        return 0
    with tempfile.TemporaryDirectory(prefix="translations-", dir=_created(output.out)) as scratch:
        store = Path(scratch, "store")
        fill_store(store, translations, files)
        digests = {language: file_digest(path) for language, path in files.items()}
        for folder in folders:
            _translate(folder, output, store, tuple(files), digests, workers)
    return 0


def _write_texts(folders: Sequence[Path], translations: Path) -> None:
    count = write_texts(translations, _texts(folders))
    _report(
        f"{translations / TEXTS}: {count:,} texts; translate it line by line, and leave a line empty to skip its text"
    )
    _report(f"  save the translations as texts.de.txt, texts.fr.txt, … in {translations}, and run this command again")


def _texts(folders: Sequence[Path]) -> Iterator[str]:
    """Yields the texts of all records."""
    found: list[str] = []
    for folder in folders:
        shards = Shards([str(folder)], key=str(folder), in_order=True)
        for raw in progress_bar(_readable(shards, Counts()), total=len(shards), desc=folder.name, unit="record"):
            translate_record(_values(raw), found.append)
            yield from found
            found.clear()


def _readable(shards: Shards, counts: Counts) -> Iterator[RawRecord]:
    """Returns the records in order. Unreadable records are skipped and counted."""
    return readable_records(shards, range(len(shards)), lambda raw: raw, counts.skip_broken)


def _values(raw: RawRecord) -> dict[str, Any]:
    """Returns the values of a record. The caption of a record in a tar may be in a separate text file."""
    return {**({"caption": raw.text} if raw.text is not None else {}), **raw.values}


def _translate(
    source: Path,
    output: OutputFlags,
    store: Path,
    languages: tuple[str, ...],
    digests: dict[str, str],
    workers: int,
) -> None:
    """Builds a folder of records with captions by language."""
    out = output.out / source.name
    shards = [Path(str(path)) for path in find_shards([str(source)], str(source))]
    if parquet := [path for path in shards if path.suffix == PARQUET_SUFFIX]:
        raise UserError(
            "captions cannot be translated in Parquet files", where=parquet[0], remedy="pass JSON lines or tars"
        )
    names = [path.name for path in shards]
    arguments = {"records": str(source.resolve()), "translations": digests}
    with OutputFolder(out, manifest_of(COMMAND), arguments, names, overwrite=output.overwrite) as folder:
        before = dict(folder.entries)
        jobs = [_Job(path, out / path.name, store, languages) for path in shards]

        def run(left: Sequence[_Job], advance: object) -> Generator[FinishedFile, None, None]:
            return in_order(_translate_shard, left, workers, _died)

        entries = fill_with_files(folder, jobs, run, desc=source.name, unit="shard")
        if folder.complete and folder.entries == before:
            _report(f"{out} is already complete with these translations; nothing to do")
            return
        counts = Counts.of_files(entry.counts for entry in entries)
        folder.close({"counts": counts.to_values()})
    _report(f"{out}: {tally(counts.written)}, in {', '.join(('en', *languages))}")
    for reason, number in counts.skipped.most_common():
        _report(f"  {number:,} {reason}, first {counts.examples[reason][0]}")


def _translate_shard(job: _Job) -> FinishedFile:
    """Builds one shard; runs in a worker process."""
    counts = Counts()
    shards = Shards([str(job.source)], key=str(job.source), index_folder=job.store.parent / "index")
    write = _write_tar if job.source.suffix == TAR_SUFFIX else _write_lines
    with Translator(job.store, job.languages) as translator, replacing(job.target) as part:
        translate = partial(_translated, translator, counts, job.target.parent)
        write(part, readable_records(shards, range(len(shards)), translate, counts.skip_broken))
    return FinishedFile.of(counts)


def _translated(translator: Translator, counts: Counts, out: Path, raw: RawRecord) -> tuple[RawRecord, dict[str, Any]]:
    """Returns a record and its translation, in which the path of the image is relative to the new folder."""
    image = None if raw.image is not None else image_source(raw, ImageKeys())
    values = translator.record(_values(raw), counts, raw.location)
    counts.written["records"] += 1
    if image is not None and image.path is not None and not Path(values["image"]).is_absolute():
        folder = os.path.realpath(raw.folder)
        path = os.path.normpath(os.path.join(folder, values["image"]))
        values["image"] = os.path.relpath(path, os.path.realpath(out))
    return raw, values


def _write_lines(path: Path, records: Iterable[tuple[RawRecord, dict[str, Any]]]) -> None:
    with path.open("wb") as stream:
        for _, values in records:
            stream.write(json_line(values))


def _write_tar(path: Path, records: Iterable[tuple[RawRecord, dict[str, Any]]]) -> None:
    """Writes each record as two members: its image, and a JSON file with the captions."""
    with tarfile.open(path, "w:") as tar:
        for raw, values in records:
            name = raw.location.partition(f"{TAR_SUFFIX}:")[2]
            content = json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace")
            members = ({name: raw.image} if raw.image is not None else {}) | {f"{key_of(name)}.json": content}
            for member, data in members.items():
                add_member(tar, member, data)


def _died(job: _Job) -> FinishedFile:
    raise WorkerDiedError(job.source)


def _created(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _report(line: str) -> None:
    sys.stdout.write(f"{line}\n")
