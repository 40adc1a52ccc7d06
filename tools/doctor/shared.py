"""Finds images that training and held-out splits share."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dataset import look_alikes
from dataset.config import ImageRecordsConfig, VideoStreamConfig
from dataset.examples import readable_records
from dataset.leaks import KnownImage, SharedImages, Source, known_image, shared_images
from dataset.records.schema import ImageKeys, RawRecord, image_source
from dataset.shards.readers import Shards
from dataset.tasks.streams.pairs import video_record
from tasks import held_out_media
from tasks.config import PretrainConfig
from tasks.prepared import NotCheckedError
from tools.doctor.findings import Report
from tools.doctor.subject import Subject
from utils.extras import install_command
from utils.findings import Finding
from utils.printing import counted

MAX_RECORDS, MAX_SECONDS = 20_000, 3.0
"""Maximum number of pre-training records that are read from each of the training data and the held-out split, and time limit in
seconds for each."""

MAX_LOOKS = 100
"""Maximum number of training images, and of held-out images, whose appearance is compared. Without a time limit, so that two runs
of the doctor compare the same images."""

REMEDY = "split by image, not by text: remove these images from one of the two"


def check_shared(subject: Subject, report: Report) -> None:
    """Reports training images that also occur in a held-out split, for each split."""
    if isinstance(subject.config, PretrainConfig):
        _check_pretraining(subject, report)
        return
    for key in subject.splits():
        with report.check("shared images"):
            if key not in subject.held_out:
                raise NotCheckedError(f"{key} cannot be read")
            training = sources_of(_required_items(subject))
            held_out = sources_of(subject.held_out[key])
            shared = shared_images(training, held_out)
            _report_shared(shared, key, "", report)
            shuffled, shuffled_held_out = (
                random.Random(subject.config.seed).sample(images, len(images)) for images in (training, held_out)
            )
            _check_looks(shuffled, shuffled_held_out, shared, key, report)


def _required_items(subject: Subject) -> Any:
    items = getattr(subject.training_data(), "items", None)
    if items is None:
        raise NotCheckedError("the training data have no list `items`")
    return items


def _report_shared(found: SharedImages, key: str, of: str, report: Report) -> None:
    how = f"by id and path{found.limit_reached}" if found.limit_reached else "by id, path and content"
    if not found.shared and (missed := found.not_compared) is not None:
        report.skip(
            "shared images",
            f"{missed.training:,} of {missed.records:,} training images could not be compared with {missed.held_out:,} of "
            f"{found.held_out:,} images in {key}{of}, because {missed.reason}",
        )
        return
    if not found.shared:
        report.ok("shared images", f"none of {found.held_out:,} in {key} is in training{of} ({how})")
        return
    first = found.pairs[0]
    copies = f", {found.count('content'):,} of them under a different path" if found.count("content") else ""
    photographs = f", {found.count('id'):,} of them by their ids in public data sets" if found.count("id") else ""
    fact = (
        f"{found.shared:,} of its {found.held_out:,} images are also in training{of}{copies}{photographs}, such as "
        f"{first.held_out} and {first.training}"
    )
    report.add("shared images", [Finding("warning", key, fact, REMEDY)])


def _check_looks(
    training: Sequence[Source], held_out: Sequence[Source], shared: SharedImages, key: str, report: Report
) -> None:
    """Reports images of a split that look like training images and are not known to be shared. Samples of training and held-out
    images are compared.

    Args:
        training: training images in random order, of which the first :data:`MAX_LOOKS` are compared.
        held_out: images of the split in random order, likewise.
        shared: the images that are known to be shared.
        key: config key of the split.
        report: receives the result.
    """
    check = "similar images"
    if not look_alikes.available():
        report.skip(check, f"{key}: copies and crops that look alike need imagehash: {install_command('leaks')}")
        return
    known = {pair.held_out for pair in shared.pairs}
    sides = []
    for name, images in (("training", training), (key, [each for each in held_out if each.location not in known])):
        images = list({(each.path or each.location): each for each in images}.values())
        sides.append((look_alikes.looks_of(images[:MAX_LOOKS], name), len(images)))
    (training_looks, training_count), (held_out_looks, held_out_count) = sides
    if not training_looks or not held_out_looks:
        return
    pairs = look_alikes.similar(
        [look for _, look in training_looks],
        [look for _, look in held_out_looks],
        look_alikes.WARN_CORRELATION,
    )
    found = {other: own for own, other in pairs}
    sample = f"{len(held_out_looks):,} of its {held_out_count:,} and {len(training_looks):,} of {training_count:,} "
    sample += "training images"
    findings = [
        Finding(
            "warning",
            key,
            f"{counted(len(found), 'image looks', 'images look')} like a training image ({sample} compared), such as "
            f"{held_out_looks[other][0].location} and {training_looks[own][0].location}",
            "look at both; `python run.py leaks --perceptual` lists such pairs; split by photograph, not by crop",
        )
        for other, own in itertools.islice(found.items(), 1)
    ]
    report.add(check, findings, f"no image in {key} looks like one in training ({sample} compared)")


def sources_of(items: Any) -> list[Source]:
    """Returns the images or videos of a split.

    Raises:
        NotCheckedError: if no item has images or videos.
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
            held_out, read, total = _read(files, stream, subject, key)
            training_images: list[list[KnownImage]] = []
            notes = [f"; {read:,} of {total:,} held-out records read"] if read < total else []
            for name, own in training.items():
                found, read, total = _read(own.paths, own, subject, f"data.{name}.files")
                training_images.append(found)
                notes += [f"; {read:,} of {total:,} records of data.{name} read"] if read < total else []
            # One image of each stream in turn: the first images do not depend on how many could be read in the time.
            trained = [image for row in itertools.zip_longest(*training_images) for image in row if image is not None]
            shared = shared_images(trained, held_out)
            _report_shared(shared, key, "".join(notes), report)
            _check_looks([each.source for each in trained], [each.source for each in held_out], shared, key, report)


def _read(files: list[str], stream: Any, subject: Subject, key: str) -> tuple[list[KnownImage], int, int]:
    """Returns the images or videos of up to :data:`MAX_RECORDS` random records, the number of records that were read, and the
    total number of records."""
    shards = Shards(files, key=key, index_folder=subject.config.data.cache_index, remote=subject.config.data.remote)
    count = min(len(shards), MAX_RECORDS)
    rng, until = np.random.default_rng(subject.config.seed), time.perf_counter() + MAX_SECONDS
    chosen = rng.choice(len(shards), count, replace=False).tolist()  # unsorted: the time limit may cut the list short
    found: list[KnownImage] = []
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for number in itertools.takewhile(lambda _: time.perf_counter() <= until, chosen):
            read += 1
            yield number

    for images in readable_records(shards, numbers(), lambda raw: images_of_record(raw, stream)):
        found += images
    return found, read, len(shards)


def images_of_record(raw: RawRecord, stream: Any) -> list[KnownImage]:
    """Returns the image of a pre-training record, or its video clips, with the record's ids.

    Raises:
        BrokenRecordError: if the record has no image or clips.
    """
    if isinstance(stream, ImageRecordsConfig):
        return [known_image(image_source(raw, ImageKeys.of(stream)), raw.values)]
    if isinstance(stream, VideoStreamConfig):
        return [known_image(clip) for clip in video_record(stream, raw).clips]
    return []
