"""Decodes a random sample of all training records in the same way as training."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_area, box_convert

from batches.base import Batch, BrokenRecord
from batches.pretraining import PretrainBatch, RegionBatch
from dataset.broken import remedy_for
from dataset.config import VideoStreamConfig
from dataset.tasks.streams.wordings import ADD_SOURCES, FEW_HARD_NEGATIVES
from engine.devices import ASSUMED_UTILISATION, peak_of
from models.flops import frames_of
from tasks.config import PretrainConfig
from tasks.prepared import NotCheckedError
from tools.doctor.findings import Report
from tools.doctor.subject import Subject
from utils.cores import usable_cores
from utils.files import expanded
from utils.findings import Finding, Level
from utils.image_size import NativeSize, sides_of

MICRO_BATCHES, SECONDS = 60, 4.0
"""Maximum number of tiny micro-batches in the sample, and time limit in seconds for building them."""

MAX_UNKNOWN = 0.05
"""If this fraction of tokens is unknown, the check warns."""

MAX_SHARED_PATCHES = 0.1
"""If more than this fraction of the objects covers the same patches as another object, the check warns. On the demo's scenes, it
is 0 on a grid of 8 x 8 patches, 0.006 on 4 x 4, and 0.39 on 2 x 2, where many objects cover the same patches."""


def check_sample(subject: Subject, report: Report) -> None:
    """Decodes a sample of records, and reports broken records by kind."""
    training = subject.training_data()
    records = next(iter(training.stream_sizes.values()))
    micro_batches = math.ceil(records / training.records_per_batch)
    rng = np.random.default_rng(subject.config.seed)
    chosen = rng.choice(micro_batches, min(MICRO_BATCHES, micro_batches), replace=False).tolist()
    started = time.perf_counter()
    for number in chosen:
        subject.batches.append(training.make(number))
        subject.loading_s = time.perf_counter() - started
        if subject.loading_s > SECONDS:
            break
    read = sum(batch.read for batch in subject.batches)
    findings = broken_findings(subject.batches, read, subject.config.data.max_broken, media_folders(subject.config))
    report.add("sample", findings, f"{read:,} random records are intact")


def check_hard_negatives(subject: Subject, report: Report) -> None:
    """Reports the fraction of the captions that have a hard negative, and warns if it is small."""
    parts: dict[str, list[Any]] = {}
    for batch in subject.batches:
        for name, part in batch.by_stream().items() if isinstance(batch, PretrainBatch) else ():
            if getattr(part, "hard_negatives", None) is not None:
                parts.setdefault(name, []).append(part)
    for name, stream_parts in parts.items():
        texts = sum(int(part.valid.sum()) for part in stream_parts)
        share = sum(int(part.hard_negatives.valid.any(dim=1).sum()) for part in stream_parts) / max(1, texts)
        fact = f"{share:.1%} of {texts:,} texts have a hard negative"
        few = Finding(
            "warning",
            f"data.{name}.hard_negatives",
            fact,
            ADD_SOURCES,
        )
        report.add("hard negatives", [few] if share < FEW_HARD_NEGATIVES else [], f"{name}: {fact}")


def check_shared_patches(subject: Subject, report: Report) -> None:
    """Warns if the patches are too coarse to distinguish the objects in an image."""
    batches = [
        batch.regions for batch in subject.batches if isinstance(batch, PretrainBatch) and batch.regions is not None
    ]
    if subject.model is None or not batches:
        return
    counts = [objects_without_own_patches(regions) for regions in batches]
    without, objects = (sum(column) for column in zip(*counts, strict=True))
    vision = subject.config.model.vision
    if isinstance(vision.image_size, NativeSize):
        has = f"up to {vision.image_size.max_patches} patches"
        change = "raise model.vision.image_size.max_patches"
    else:
        rows, columns = subject.model.vision.grid
        height, width = (2 * side for side in sides_of(vision.image_size))
        larger = height if height == width else [height, width]
        has = f"{rows} x {columns} patches"
        change = f"raise model.vision.image_size (with {larger}, the grid has {2 * rows} x {2 * columns} patches)"
    fact = (
        f"{without:,} of {objects:,} sampled objects share all their patches with an object in another part of the image, "
        f"because {vision.backbone} has {has} at model.vision.image_size={vision.image_size}"
    )
    remedy = f"{change}, or choose a backbone with smaller patches"
    too_coarse = without > MAX_SHARED_PATCHES * objects
    report.add(
        "patches",
        [Finding("warning", "model.vision", fact, remedy)] if too_coarse else [],
        f"{has}; {without:,} of {objects:,} objects share all their patches with another object",
    )


def objects_without_own_patches(regions: RegionBatch) -> tuple[int, int]:
    """Returns how many objects share all their patches with another object in the same image, and how many objects share their
    image with another object.

    An object inside another object naturally has the same patches. Such pairs are not counted: more than half of the first box
    must lie outside the second.
    """
    is_object = regions.valid & ~regions.is_image & ~regions.several_boxes
    corners = box_convert(regions.boxes_cxcywh, "cxcywh", "xyxy")
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    high = torch.minimum(corners[:, None, 2:], corners[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(dim=-1) / box_area(corners).clamp(min=1e-9)[:, None]
    same_image = regions.image_index[:, None] == regions.image_index
    elsewhere = same_image & is_object[:, None] & is_object & (inside < 0.5)
    has_own_patch = (regions.patch_mask[:, None] & ~regions.patch_mask).any(dim=-1)
    return int((elsewhere & ~has_own_patch).any(dim=1).sum()), int(elsewhere.any(dim=1).sum())


def broken_findings(
    batches: list[Batch], read: int, max_broken: float, folders: Mapping[str, str] | None = None
) -> list[Finding]:
    """Returns a finding for each reason why records are broken. The findings have the level "refused" if there are more broken
    records than the run tolerates.

    Args:
        batches: the sampled batches.
        read: number of records in the sample.
        max_broken: maximum fraction of broken records that a run tolerates.
        folders: the result of :func:`media_folders`.
    """
    broken = [each for batch in batches for each in batch.broken]
    read_of, broken_of = Counter[str](), Counter[str]()
    for batch in batches:
        for stream, count in batch.counts.items():
            read_of[stream] += count.read
            broken_of[stream] += count.broken
    level: Level = "refused" if broken_of.total() > max_broken * read else "warning"
    shares = [
        f"{count:,} of {read_of[stream]:,} sampled records of {stream}" for stream, count in broken_of.most_common()
    ]
    rest = f"{' and '.join(shares)} are broken; a run stops above data.max_broken = {max_broken:.3g}"
    paths_from = " and ".join(folder for stream, folder in (folders or {}).items() if broken_of[stream])
    reasons = Counter(each.reason for each in broken)
    first: dict[str, BrokenRecord] = {each.reason: each for each in reversed(broken)}
    return [
        Finding(
            level,
            first[reason].place,
            f"{reason}: {first[reason].detail} ({count:,} for this reason; {rest})",
            remedy_for({reason: count}, None, paths_from),
        )
        for reason, count in reasons.most_common()
    ]


def media_folders(config: Any) -> dict[str, str]:
    """Returns, for each stream of pre-training, the folder that relative paths of its media start from, and the config key.
    Fine-tuning checks all paths when it reads a split."""
    if not isinstance(config, PretrainConfig):
        return {}
    folders = {}
    for name, stream in config.data.streams().items():
        setting = "video_root" if isinstance(stream, VideoStreamConfig) else "image_root"
        if hasattr(stream, setting):
            shards = dict.fromkeys(str(expanded(path).parent) for path in stream.paths)
            folders[name] = f"{getattr(stream, setting) or ' or '.join(shards)} (data.{name}.{setting})"
    return folders


def check_loading(subject: Subject, report: Report) -> None:
    """Compares the number of images that one core loads per second with the number that a step on the device would need."""
    if not subject.batches:
        return
    seconds = subject.loading_s
    images = sum(images_in(batch) for batch in subject.batches)
    only_texts = images == 0
    count = sum(batch.read for batch in subject.batches) if only_texts else images
    unit, rate = "records" if only_texts else "images", count / max(seconds, 1e-9)
    text = f"{rate:,.0f} {unit}/s per core"
    needed = needed_per_second(subject)
    if needed is None or only_texts:
        report.ok("loading", f"{text} ({count:,} in {seconds:.1f} s)")
        return
    workers = max(1, subject.config.data.workers)
    on_this_node = min(subject.ranks, torch.cuda.device_count() or subject.ranks)
    cores = max(1.0, usable_cores() / on_this_node)
    supply = rate * min(workers, cores)
    text += f"; {min(workers, cores):.3g} workers load {supply:,.0f}, and the GPU needs up to {needed:,.0f} (estimate)"
    remedy = f"raise data.workers to {math.ceil(needed / rate)}, or shrink the images on disk"
    slow = Finding("warning", "data.workers", f"data loading will limit the GPU: {text}", remedy)
    report.add("loading", [slow] if supply < needed else [], text)


def needed_per_second(subject: Subject) -> float | None:
    """Returns the images per second that a step on the device needs, or None if this is unknown."""
    train = subject.config.train
    peak = train.peak_tflops or peak_of(subject.device, train.precision)
    if peak is None or subject.model is None or not subject.batches:
        return None
    work = subject.model.work(subject.batches[0])
    if not work.flops > 0 or not work.images:  # FLOPs are NaN if they are not counted
        return None
    return work.images / (work.flops / (peak * 1e12 * ASSUMED_UTILISATION))


def images_in(batch: Any) -> int:
    """Returns the number of images and frames in a batch."""
    parts = list(batch.by_stream().values()) if isinstance(batch, PretrainBatch) else [batch]
    pixels = {id(part.pixels): part.pixels for part in parts if hasattr(part, "pixels")}
    return sum(len(each) * frames_of(each) for each in pixels.values())  # streams may share their images


def check_unknown(subject: Subject, report: Report) -> None:
    """Reports the fraction of unknown tokens in the sampled texts."""
    log = subject.tokenizer
    if log is None or not subject.batches:
        raise NotCheckedError("no texts were sampled")
    if log.unknown_id is None:
        report.ok("unknown tokens", "the tokenizer has none")
        return
    unknown, tokens = sum(log.unknown.values()), max(1, log.tokens)
    findings = [] if unknown <= MAX_UNKNOWN * tokens else [_unknown_finding(subject, unknown, tokens)]
    report.add("unknown tokens", findings, f"{unknown / tokens:.1%} of {log.tokens:,} tokens")


def _unknown_finding(subject: Subject, unknown: int, tokens: int) -> Finding:
    assert subject.tokenizer is not None
    words = ", ".join(f"{word} ({count:,})" for word, count in subject.tokenizer.unknown.most_common(8))
    location = f"model.text.encoder = {subject.config.model.text.encoder}"
    remedy = "train a tokenizer on your texts (python run.py tokenizer --help), or choose an encoder for their language"
    fact = f"{unknown / tokens:.1%} of {tokens:,} tokens in the sample are unknown, mostly in the words {words}"
    return Finding("warning", location, fact, remedy)
