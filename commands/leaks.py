"""``python run.py leaks CONFIG ...``: finds images shared by the training data and the held-out splits of configs."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

from batches.base import BrokenRecord
from dataset import look_alikes
from dataset.broken import printable
from dataset.config import DataConfig
from dataset.examples import readable_records
from dataset.image_ids import ids_in_path
from dataset.leaks import KnownImage, SharedImage, SharedImages, Source, known_image, shared_with_splits
from dataset.look_alikes import Look
from dataset.media.sources import ImageSource
from dataset.prepare.held_out import SPLITS, Links, contradictory_links, read_held_out, read_links
from dataset.prepare.raw_folder import RawFolder
from dataset.records.schema import RawRecord
from dataset.shards.readers import Shards
from tasks.binding import bind_run
from tasks.config import PretrainConfig
from tasks.finetune import FineTuneTask
from tools.doctor.findings import NotCheckedError
from tools.doctor.shared import images_of_record, sources_of
from utils.errors import UserError
from utils.extras import require
from utils.files import replacing
from utils.flags import File, OutputFile, Positive, named
from utils.printing import counted
from utils.progress import progress_bar
from utils.suffixes import IMAGE_SUFFIXES

MAX_PRINTED = 5
"""Maximum number of shared images that are printed for each pair of a training set and a held-out set. --out lists all."""

NAMES = {"coco": "COCO", "flickr": "Flickr", "vg": "Visual Genome", "objects365": "Objects365"}
"""Names of the data sets that provide ids."""

MORE = "; add --perceptual to find resized, recompressed, recoloured or cropped copies too"


@dataclass
class ImageSets:
    """The training and held-out images of the given configs, under the names ``CONFIG KEY``."""

    training: dict[str, Iterable[KnownImage]] = field(default_factory=dict)
    held_out: dict[str, Iterable[KnownImage]] = field(default_factory=dict)
    contents_compared: bool = True
    """False if some images could not be compared by content."""
    not_checked: list[str] = field(default_factory=list)
    """Texts that name each set of images that cannot be read, with the reason."""


def leaks(
    configs: list[File],
    /,
    *,
    held_out: Annotated[tuple[Path, ...], named("FOLDER")] = (),
    perceptual: bool = False,
    sample: Positive = 1000,
    seed: int = 0,
    out: OutputFile | None = None,
) -> int:
    """Find images that are in both the training data and the held-out splits of the given configs. Images are compared by their
    ids in public data sets (COCO, Visual Genome, Flickr), by path and, for up to 20,000 files, by content. A file name of 12
    digits is a COCO id only in one of COCO's folders, such as train2017, or after a prefix such as COCO_train2014_.

    Args:
        configs: configs of pre-training or fine-tuning.
        held_out: folder with official files (dataset_coco.json, refs(unc).p, ...), whose validation and test splits are also
            compared: by id and, if the folder also contains their images, by content; may be repeated.
        perceptual: also compare a sample by appearance, to find resized, recompressed or recoloured copies, and crops (needs
            imagehash).
        sample: number of images that --perceptual draws from each training set and each held-out set.
        seed: seed of the sample.
        out: write every pair of a training record and a held-out image to a tab-separated table.

    Examples:
        python run.py leaks configs/pretrain/base_4m.yaml configs/retrieval/coco_base_4m.yaml configs/vqa/vqa2_base_4m.yaml
        python run.py leaks my/pretrain.yaml my/retrieval.yaml --out leaks.tsv
        python run.py leaks my/pretrain.yaml --held-out data/coco --held-out data/refcoco+

    Returns:
        0 no image is shared; 1 images are shared; 2 a config or the command line is wrong; 3 no shared image was found, but some
        comparisons were impossible: the lines "not checked" list data that cannot be read, images that could be compared neither
        by id nor by content, and data sets whose ids cannot be compared because no file links them
    """
    if perceptual:
        require("imagehash", "leaks", where="--perceptual")
    image_sets = ImageSets()
    for config in configs:
        read_images(config, image_sets)
    raw = RawFolder(held_out)
    links = read_links(raw)
    official = _official_splits(raw)
    if held_out and not official and not links.files:
        files = ", ".join([*(splits.file for splits in SPLITS.values()), *links.absent])
        raise UserError(f"contains none of {files}", where=f"--held-out {', '.join(map(str, held_out))}")
    image_sets.held_out |= official
    if not image_sets.training or not image_sets.held_out:
        missing = "training data" if not image_sets.training else "held-out split"
        first = image_sets.not_checked[0] if image_sets.not_checked else "the configs name none"
        more = f"; and {len(image_sets.not_checked) - 1} more" if len(image_sets.not_checked) > 1 else ""
        raise UserError(f"no {missing} could be read: {first}{more}", where=", ".join(configs))
    looks = _SampledLooks(sample, seed, image_sets.not_checked)
    with _Table(out) as table:
        for training, images in image_sets.training.items():
            try:
                found = shared_with_splits(images, image_sets.held_out, links.all_ids, partial(table.add, training))
            except UserError as error:  # shards that can no longer be read
                image_sets.not_checked.append(f"{training}: {error}")
                continue
            _print_unshared(training, {split: each for split, each in found.items() if not each.shared})
            for split, shared in found.items():
                if shared.shared:
                    _print_shared(training, split, shared)
            if any(each.too_many or each.not_compared is not None for each in found.values()):
                image_sets.contents_compared = False
            image_sets.not_checked += [*_not_compared(training, found), *_unlinked(training, found, links)]
            if perceptual:
                _compare_looks(training, images, image_sets.held_out, found, looks, table)
    not_checked = [*image_sets.not_checked, *_broken({**image_sets.training, **image_sets.held_out})]
    for each in not_checked:
        sys.stdout.write(f"not checked: {each}\n")
    if contradictory := contradictory_links(links):
        sys.stdout.write(f"{contradictory}\n")
    compared = "id, path and content" if image_sets.contents_compared else "id and path (not all by content)"
    more = f", and by the appearance of a sample of {sample:,} images per set" if perceptual else MORE
    sys.stdout.write(f"compared by {compared}{more}\n")
    if out is not None:
        sys.stdout.write(f"{out}: {table.rows:,} pairs of a training image and a held-out image\n")
    return 1 if table.rows else 3 if not_checked else 0


class _Table:
    """The table that ``--out`` names. Rows are written to a temporary file, which replaces the target at the end. Without a path,
    rows are only counted."""

    def __init__(self, path: Path | None):
        self.rows = 0
        self._files = ExitStack()
        self._stream: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = self._files.enter_context(replacing(path))
            self._stream = self._files.enter_context(part.open("w", encoding="utf-8", errors="backslashreplace"))
            self._write("training", "held_out", "found_by", "training_image", "held_out_image")

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def add(self, training: str, split: str, pair: SharedImage) -> None:
        """Writes a pair of a training image and a held-out image."""
        self.rows += 1
        self._write(training, split, pair.how, pair.training, pair.held_out)

    def _write(self, *row: str) -> None:
        if self._stream is not None:
            self._stream.write("\t".join(map(printable, row)) + "\n")


class _SampledLooks:
    """Computes the appearance of a random sample of each set of images, once per set. Images without an appearance, because they
    are videos or cannot be decoded, are added to ``not_checked``."""

    def __init__(self, count: int, seed: int, not_checked: list[str]):
        self._count, self._seed, self._not_checked = count, seed, not_checked
        self._samples: dict[str, list[tuple[Source, Look]]] = {}

    def sample(self, name: str, images: Iterable[KnownImage]) -> list[tuple[Source, Look]]:
        """Returns the appearance of the images in the sample of a set."""
        if name not in self._samples:
            rng = random.Random(self._seed)
            if isinstance(images, _Records):
                chosen = images.sample(self._count, rng)
            else:
                known = list({(each.source.path or each.source.location): each for each in images}.values())
                chosen = known if len(known) <= self._count else rng.sample(known, self._count)
            looks = self._samples[name] = look_alikes.looks_of([each.source for each in chosen], name)
            if len(looks) < len(chosen):
                found = {source.location for source, _ in looks}
                first = next((each.source.location for each in chosen if each.source.location not in found), name)
                self._not_checked.append(
                    f"{name}: {len(chosen) - len(looks):,} of {len(chosen):,} sampled images could not be compared by "
                    f"appearance, because they cannot be decoded or are videos, the first: {first}"
                )
        return self._samples[name]


def _compare_looks(
    training: str,
    images: Iterable[KnownImage],
    splits: Mapping[str, Iterable[KnownImage]],
    found: Mapping[str, SharedImages],
    looks: _SampledLooks,
    table: _Table,
) -> None:
    """Prints the pairs of a training image and a held-out image that look alike, except images already known to be shared."""
    training_looks = looks.sample(training, images)
    for split, held_out in splits.items():
        held_out_looks = looks.sample(split, held_out)
        known = {pair.held_out for pair in found[split].pairs}
        pairs = [
            SharedImage(held_out_looks[held_out_index][0].location, training_looks[training_index][0].location, "look")
            for training_index, held_out_index in look_alikes.similar(
                [look for _, look in training_looks], [look for _, look in held_out_looks]
            )
            if held_out_looks[held_out_index][0].location not in known
        ]
        if held_out_looks:
            several = f"{len(pairs):,} pairs look alike" if pairs else "no other images look alike"
            sys.stdout.write(
                f"{training} and {split}: {several}, of {len(training_looks):,} x {len(held_out_looks):,} images\n"
            )
        for index, pair in enumerate(pairs):
            table.add(training, split, pair)
            if index < MAX_PRINTED:
                sys.stdout.write(f"  {pair.held_out} looks like {pair.training}\n")
        if len(pairs) > MAX_PRINTED:
            sys.stdout.write(f"  and {len(pairs) - MAX_PRINTED:,} more (--out FILE lists all)\n")


def _not_compared(training: str, found: Mapping[str, SharedImages]) -> Iterator[str]:
    """Yields a line for each split with images that could be compared with some training records neither by id nor by content."""
    for split, shared in found.items():
        if shared.not_compared is not None:
            missed = shared.not_compared
            images = f"{missed.held_out:,} of {counted(shared.held_out, 'held-out image', 'held-out images')}"
            yield (
                f"{training}: {missed.training:,} of {counted(missed.records, 'training record', 'training records')} and "
                f"{images} of {split} could not be compared, because they have no ids in common data sets and {missed.reason}; "
                "check the paths of the images, or pass the folder of the images of an official split with --held-out"
            )


def _unlinked(training: str, found: Mapping[str, SharedImages], links: Links) -> Iterator[str]:
    """Yields a line for each pair of data sets whose ids cannot be compared, because no file says which images they share."""
    missing: dict[tuple[str, str], list[str]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for split, shared in found.items():
        for other in sorted(shared.sets):
            for sets, count in shared.training_sets.items():
                if not sets or other in sets or any(frozenset({other, each}) in links.sets for each in sets):
                    continue
                pair = " and ".join(NAMES[each] for each in sorted(sets)), NAMES[other]
                counts[pair] = count
                missing.setdefault(pair, []).append(split)
    for (ids, other_ids), splits in missing.items():
        if other_ids == NAMES["objects365"]:
            remedy = "no official file links them, so use --perceptual"
        elif NAMES["vg"] in (ids, other_ids):
            remedy = "pass the folder of image_data.json with --held-out"
        else:
            remedy = "pass the folder of captions_{train,val}2014.json of COCO with --held-out"
        yield (
            f"{training}: {counts[ids, other_ids]:,} records have {ids} ids, which cannot be compared with the {other_ids} ids "
            f"in {', '.join(splits)}; {remedy}"
        )


def _official_splits(raw: RawFolder) -> dict[str, Iterable[KnownImage]]:
    """Returns the held-out images listed in the official files, by split. Their files are found below the folders by the ids in
    their paths; an image without a file can only be compared by id.

    Raises:
        UserError: if a file cannot be read.
    """
    photographs = read_held_out(raw, required=(), without=()).photographs()
    paths = {
        each: path
        for files in (raw.files.values() if photographs else ())
        for path in files
        if path.suffix.lower() in IMAGE_SUFFIXES
        for each in ids_in_path(path.as_posix())
    }
    return {
        split: [
            KnownImage(
                ImageSource(
                    f"{split}: {name}",
                    path=next((paths[each] for each in sorted(ids) if each in paths), Path(split, name)),
                ),
                frozenset({name}),
            )
            for name, ids in photos.items()
        ]
        for split, photos in photographs.items()
    }


def read_images(path: str, image_sets: ImageSets) -> None:
    """Adds the training and held-out images of a config to ``image_sets``."""
    run = bind_run(path, [])
    kind, config = run.source.load(), run.config
    if isinstance(config, PretrainConfig):
        _read_pretraining(path, config, image_sets)
    elif issubclass(kind.task, FineTuneTask):
        _read_fine_tuning(path, config, kind.task, image_sets)
    else:
        image_sets.not_checked.append(f"{path}: its task has neither streams nor splits")


def _read_pretraining(path: str, config: Any, image_sets: ImageSets) -> None:
    streams = {
        name: stream for name, stream in config.data.streams().items() if name in ("images", "regions", "videos")
    }
    for name, stream in streams.items():
        for files in stream.paths:
            key = f"data.{name}.files"
            _read_into(
                f"{path} {files}", partial(_Records, [files], stream, key, config.data), image_sets.training, image_sets
            )
    evaluation = config.evaluation
    if evaluation is None:
        return
    for key, stream in (("files", "images"), ("region_files", "regions"), ("video_files", "videos")):
        files = getattr(evaluation, key)
        chosen = streams.get(stream) or next(iter(streams.values()), None)
        if files and chosen is None:
            image_sets.not_checked.append(
                f"{path} evaluation.{key}: the config trains on no images that show how to read it"
            )
        elif files:
            opened = partial(_Records, files, chosen, f"evaluation.{key}", config.data)
            _read_into(f"{path} evaluation.{key}", opened, image_sets.held_out, image_sets)


class _Records:
    """The images in the records of shards. Records are read during iteration, and broken records are skipped, as in training.

    Attributes:
        broken: number of broken records in the last iteration.
        first: the first error in the last iteration.
    """

    def __init__(self, files: list[str], stream: Any, key: str, data: DataConfig):
        self.shards = Shards(files, key=key, index_folder=data.cache_index, remote=data.remote, in_order=True)
        self.stream, self.name, self.broken, self.first = stream, files[0], 0, ""

    def __iter__(self) -> Iterator[KnownImage]:
        count, self.broken = len(self.shards), 0

        def count_broken(broken: BrokenRecord) -> None:
            self.first = self.first if self.broken else str(broken)
            self.broken += 1

        numbers = progress_bar(range(count), total=count, desc=self.name, unit="record", leave=False)
        for images in readable_records(self.shards, numbers, self._images_of, count_broken):
            yield from images

    def sample(self, count: int, rng: random.Random) -> list[KnownImage]:
        """Returns the images of ``count`` random records, each image once. Broken records are skipped."""
        found: dict[Any, KnownImage] = {}
        numbers = sorted(rng.sample(range(len(self.shards)), min(count, len(self.shards))))
        for images in readable_records(self.shards, numbers, self._images_of):
            found.update({(each.source.path or each.source.location): each for each in images})
        return list(found.values())

    def _images_of(self, raw: RawRecord) -> list[KnownImage]:
        return images_of_record(raw, self.stream)


def _read_fine_tuning(path: str, config: Any, task: type[FineTuneTask[Any, Any, Any]], image_sets: ImageSets) -> None:
    def read(split: Any, key: str) -> list[KnownImage]:
        return [known_image(source) for source in sources_of(task.read_split(config, split, key))]

    train = getattr(config.data, "train", None)
    for index, split in enumerate(train if isinstance(train, list) else [train] if train is not None else []):
        key = f"data.train[{index}]" if isinstance(train, list) else "data.train"
        _read_into(f"{path} {key}", partial(read, split, key), image_sets.training, image_sets)
    evaluation = config.evaluation
    held_out = {} if evaluation.validation is None else {"evaluation.validation": evaluation.validation}
    held_out |= {f"evaluation.test.{name}": split for name, split in evaluation.test.items()}
    for key, split in held_out.items():
        _read_into(f"{path} {key}", partial(read, split, key), image_sets.held_out, image_sets)


def _read_into(
    name: str, read: Callable[[], Iterable[KnownImage]], into: dict[str, Iterable[KnownImage]], image_sets: ImageSets
) -> None:
    try:
        into[name] = read()
    except (UserError, NotCheckedError) as error:
        image_sets.not_checked.append(f"{name}: {error}")


def _broken(image_sets: Mapping[str, Iterable[KnownImage]]) -> list[str]:
    """Returns a line for each set that has broken records, because their images are unknown."""
    broken = {name: images for name, images in image_sets.items() if isinstance(images, _Records) and images.broken}
    return [
        f"{name}: {images.broken:,} of {len(images.shards):,} records are broken, the first: {images.first}"
        for name, images in broken.items()
    ]


def _print_unshared(training: str, splits: Mapping[str, SharedImages]) -> None:
    """Prints the splits that share no image with a training set, on one line."""
    if splits:
        sizes = ", ".join(f"{counted(found.held_out, 'image', 'images')} of {split}" for split, found in splits.items())
        limit = next((found.limit_reached for found in splits.values() if found.limit_reached), "")
        sys.stdout.write(f"{training} contains none of {sizes}{limit}\n")


def _print_shared(training: str, split: str, found: SharedImages) -> None:
    """Prints the images that a training set and a split share."""
    how = ", ".join(f"{found.count(each):,} by {each}" for each in ("id", "path", "content") if found.count(each))
    images = counted(found.held_out, "image", "images")
    sys.stdout.write(f"{training} contains {found.shared:,} of {images} of {split} ({how}){found.limit_reached}\n")
    for pair in found.pairs[:MAX_PRINTED]:
        sys.stdout.write(f"  {pair.held_out} is {pair.training}\n")
    if found.shared > MAX_PRINTED:
        sys.stdout.write(f"  and {found.shared - MAX_PRINTED:,} more (--out FILE lists all)\n")
