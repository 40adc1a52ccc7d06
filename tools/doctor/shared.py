"""Images that training and held-out splits share."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dataset.leaks import KnownImage, SharedImages, Source, known_image, shared_images
from dataset.records.schema import RawRecord, image_source
from dataset.shards.readers import Shards
from dataset.tasks.streams.base import ImageRecordsConfig
from dataset.tasks.streams.pairs import VideoStreamConfig
from tasks import held_out_media
from tasks.pretrain import PretrainConfig
from tools.doctor.findings import NotCheckedError, Report
from tools.doctor.subject import Subject
from utils.findings import Finding

MOST_RECORDS, MOST_SECONDS = 20_000, 3.0
"""Records of pre-training that are read at most, on each side."""

REMEDY = "split by image, not by text: take these images out of one of the two"


def check_shared(subject: Subject, report: Report) -> None:
    """Training images among those of each held-out split."""
    if isinstance(subject.config, PretrainConfig):
        _check_pretraining(subject, report)
        return
    for key in subject.splits():
        with report.check("shared images"):
            if key not in subject.held_out:
                raise NotCheckedError(f"{key} cannot be read")
            training = sources_of(_required_items(subject))
            _tell(shared_images(training, sources_of(subject.held_out[key])), key, "", report)


def _required_items(subject: Subject) -> Any:
    if subject.training is None:
        raise NotCheckedError("the training data cannot be read")
    items = getattr(subject.training, "items", None)
    if items is None:
        raise NotCheckedError("the training data have no list `items`")
    return items


def _tell(found: SharedImages, key: str, of: str, report: Report) -> None:
    how = "by id, path and content" if found.contents_compared else "by id and path; contents are too many to compare"
    if not found.shared:
        report.ok("shared images", f"none of {found.held_out:,} in {key} is in training{of} ({how})")
        return
    first = found.pairs[0]
    copies = f", {found.count('content'):,} of them under another path" if found.count("content") else ""
    photographs = f", {found.count('id'):,} of them by their ids in public data sets" if found.count("id") else ""
    fact = (
        f"{found.shared:,} of its {found.held_out:,} images are also in training{of}{copies}{photographs}, as {first.held_out} "
        f"and {first.training}"
    )
    report.add("shared images", [Finding("warning", key, fact, REMEDY)])


def sources_of(items: Any) -> list[Source]:
    """The images or videos of a split.

    Raises:
        NotCheckedError: if no item has any.
    """
    if not (found := held_out_media.sources_of(items)):
        raise NotCheckedError("its items have no image, images or source that is an ImageSource or a VideoSource")
    return found


def _check_pretraining(subject: Subject, report: Report) -> None:
    config = subject.config
    if config.evaluation is None:
        return
    streams, evaluation = config.data.streams(), config.evaluation
    with_images = {name: stream for name, stream in streams.items() if name in ("images", "regions")}
    sides = {
        "evaluation.files": (evaluation.files, next(iter(with_images.values()), None), with_images),
        "evaluation.region_files": (evaluation.region_files, with_images.get("regions"), with_images),
        "evaluation.video_files": (
            evaluation.video_files,
            config.data.videos,
            {"videos": config.data.videos} if config.data.videos else {},
        ),
    }
    for key, (files, stream, training) in sides.items():
        if not files or stream is None or not training:
            continue
        with report.check("shared images"):
            subject.require_inputs(key, *(f"data.{name}" for name in training))
            held_out, read, there = _read(files, stream, subject, key)
            ours: list[KnownImage] = []
            notes = [f"; {read:,} of {there:,} held-out records read"] if read < there else []
            for name, own in training.items():
                found, read, there = _read(own.paths, own, subject, f"data.{name}.files")
                ours += found
                notes += [f"; {read:,} of {there:,} records of data.{name} read"] if read < there else []
            _tell(shared_images(ours, held_out), key, "".join(notes), report)


def _read(files: list[str], stream: Any, subject: Subject, key: str) -> tuple[list[KnownImage], int, int]:
    """The images or videos of at most :data:`MOST_RECORDS` records at random, how many were read, and how many there are."""
    shards = Shards(files, key=key, index_folder=subject.config.data.cache_index, remote=subject.config.data.remote)
    count = min(len(shards), MOST_RECORDS)
    rng, until = np.random.default_rng(subject.config.seed), time.perf_counter() + MOST_SECONDS
    chosen = rng.choice(len(shards), count, replace=False).tolist()  # unsorted: the time may end before the list
    found: list[KnownImage] = []
    read = 0
    for index in chosen:
        if time.perf_counter() > until:
            break
        read += 1
        try:
            raw = shards.read(index)
            found += images_of_record(raw, stream)
        except Exception:  # counted by the sample
            continue
    return found, read, len(shards)


def images_of_record(raw: RawRecord, stream: Any) -> list[KnownImage]:
    """The image of a record of pre-training, or its video clips, with the ids that it gives.

    Raises:
        BrokenRecordError: it has none.
    """
    if isinstance(stream, ImageRecordsConfig):
        return [known_image(image_source(raw, stream.keys()), raw.values)]
    if isinstance(stream, VideoStreamConfig):
        return [known_image(clip) for clip in stream.record(raw).clips]
    return []
