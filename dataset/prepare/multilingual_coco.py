"""``run.py prepare multilingual_coco``: records of COCO in English, Japanese and Chinese."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dataset.prepare.official import OutputFlags, read_lines, read_object, write_splits
from utils.errors import UserError

SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
"""Our name of a split -> Karpathy's."""

SMALL_TEST = 1000
"""Images of ``karpathy_test_1k.jsonl``."""

_NAME = re.compile(r"COCO_(train2014|val2014)_(\d{12})")

Captions = dict[str, list[str]]
"""Captions of each image, by its path."""


def read_karpathy(path: Path) -> dict[str, Captions]:
    """English captions by split.

    Raises:
        UserError: the file is not Karpathy's of COCO.
    """
    ours = {theirs: split for split, names in SPLITS.items() for theirs in names}
    captions: dict[str, Captions] = {split: {} for split in SPLITS}
    for place, image in enumerate(read_object(path, "images")["images"]):
        try:
            name = f"{image['filepath']}/{image['filename']}"
            captions[ours[image["split"]]][name] = [sentence["raw"].strip() for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: images[{place}] is not as in dataset_coco.json ({error})") from None
    return captions


def read_stair(paths: Sequence[Path]) -> Captions:
    """Japanese captions of the images of both files.

    Raises:
        UserError: a file is not STAIR's.
    """
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        content = read_object(path, "annotations")
        names = {image["id"]: image["file_name"] for image in content.get("images", [])}
        for place, annotation in enumerate(content["annotations"]):
            try:
                captions[_path_of(names[annotation["image_id"]], path)].append(annotation["caption"].strip())
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}: annotations[{place}] is not as in STAIR's files ({error})") from None
    return dict(captions)


def read_coco_cn(folder: Path) -> dict[str, Captions]:
    """Chinese captions, written by people, by split.

    Raises:
        UserError: a file is missing, or an image of a split has no caption.
    """
    source = folder / "imageid.human-written-caption.txt"
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(read_lines(source), start=1):
        name, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{source}:{number}: no tab between image and caption")
        captions[name.split("#")[0]].append("".join(text.split()))
    splits: dict[str, Captions] = {}
    for split in SPLITS:
        listed = folder / f"coco-cn_{split}.txt"
        splits[split] = {}
        for number, line in enumerate(read_lines(listed), start=1):
            if line.strip() not in captions:
                raise UserError(f"{listed}:{number}: {line.strip()!r} has no caption in {source.name}")
            splits[split][_path_of(line.strip(), listed)] = captions[line.strip()]
    return splits


def records(languages: Mapping[str, Captions]) -> Iterator[dict[str, Any]]:
    """``image``, ``caption`` (lists by language) and ``image_id`` of each image that has a caption in any language."""
    for image in dict.fromkeys(name for captions in languages.values() for name in captions):
        by_language = {language: captions[image] for language, captions in languages.items() if image in captions}
        match = _NAME.search(image)
        yield {"image": image, "caption": by_language, "image_id": int(match[2]) if match else image}


def joint_training(
    english: Mapping[str, Captions], japanese: Captions, chinese: Mapping[str, Captions]
) -> dict[str, Captions]:
    """The training captions of all languages, without the images that any language holds out."""
    held_out = {name for split in ("val", "test") for captions in (english, chinese) for name in captions[split]}
    training = {"en": english["train"], "ja": _of(english["train"], japanese), "zh": chinese["train"]}
    return {
        language: {name: texts for name, texts in captions.items() if name not in held_out}
        for language, captions in training.items()
    }


def _of(images: Iterable[str], captions: Captions) -> Captions:
    return {name: captions[name] for name in images if name in captions}


def _path_of(name: str, source: Path) -> str:
    match = _NAME.search(name)
    if not match:
        raise UserError(f"{source}: {name!r} is not an image of COCO 2014")
    return f"{match[1]}/{match[0]}.jpg"


def multilingual_coco(*, output: OutputFlags, karpathy: Path, stair: tuple[Path, Path], coco_cn: Path) -> int:
    """Make records of COCO with captions by language: English from Karpathy's dataset_coco.json, whose splits they keep; Japanese
    from STAIR's stair_captions_v1.2_{train,val}.json, by image id; Chinese from COCO-CN, which has its own splits.

    The command writes karpathy_{train,val,test}.jsonl (en, ja), karpathy_test_1k.jsonl (the first 1,000 images of the test),
    coco_cn_{train,val,test}.jsonl (zh), and joint_train.jsonl (all three), which excludes every image that is held out in
    either: an English caption would teach what the Chinese test asks.

    Args:
        karpathy: dataset_coco.json.
        stair: stair_captions_v1.2_train.json and …_val.json.
        coco_cn: folder coco-cn-version1805v1.1.
    """
    paths = {"karpathy": karpathy, "stair": stair[0], "stair_2": stair[1], "coco_cn": coco_cn}
    arguments = {name: str(path.resolve()) for name, path in paths.items()}
    english, japanese, chinese = read_karpathy(karpathy), read_stair(stair), read_coco_cn(coco_cn)
    splits = {
        f"karpathy_{split}": records({"en": captions, "ja": _of(captions, japanese)})
        for split, captions in english.items()
    }
    small = dict(islice(english["test"].items(), SMALL_TEST))
    splits["karpathy_test_1k"] = records({"en": small, "ja": _of(small, japanese)})
    splits |= {f"coco_cn_{split}": records({"zh": captions}) for split, captions in chinese.items()}
    splits["joint_train"] = records(joint_training(english, japanese, chinese))
    write_splits("multilingual_coco", output, arguments, splits)
    return 0
