"""COCO in three languages: English captions of Karpathy's splits, Japanese captions of STAIR, Chinese captions of COCO-CN.

STAIR's captions are joined by image id, so they have Karpathy's splits; COCO-CN has its own. ``joint_train`` has all three
languages, without the images that are held out in any language, because an English caption would reveal the content of a Chinese
test image.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from dataset.formats.karpathy import KarpathyImage
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import DataSet, Files, Splits, files_named
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile
from utils.errors import UserError

SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
"""Our name for each split, and Karpathy's names."""

SMALL_TEST = 1000
"""Number of images of ``karpathy_test_1k.jsonl``."""

CHINESE = "imageid.human-written-caption.txt"
_NAME = re.compile(r"COCO_(train2014|val2014)_(\d{12})")

Captions = dict[str, list[str]]
"""Captions of each image, by its path."""


def _read(files: Files, folder: Path, options: Options, counts: Counts) -> Mapping[str, Iterator[dict[str, Any]]]:
    english = _karpathy(files["karpathy"])
    japanese: Captions = {}
    for name in ("stair_train", "stair_val"):
        japanese |= _stair(files[name])
    chinese = _coco_cn(files)
    splits = {
        f"karpathy_{split}": _records({"en": captions, "ja": _only(captions, japanese)})
        for split, captions in english.items()
    }
    small = dict(islice(english["test"].items(), SMALL_TEST))
    splits["karpathy_test_1k"] = _records({"en": small, "ja": _only(small, japanese)})
    splits |= {f"coco_cn_{split}": _records({"zh": captions}) for split, captions in chinese.items()}
    splits["joint_train"] = _records(_joint_training(english, japanese, chinese))
    return splits


def _karpathy(file: RawFile) -> dict[str, Captions]:
    """Returns English captions by split."""
    ours = {theirs: split for split, names in SPLITS.items() for theirs in names}
    captions: dict[str, Captions] = {split: {} for split in SPLITS}

    with official_pieces(file, "Karpathy", "images") as pieces:
        for image in (KarpathyImage(piece.row) for piece in pieces):
            captions[ours[image.split]][image.path] = [str(caption).strip() for caption in image.captions]
    return captions


def _stair(file: RawFile) -> Captions:
    """Returns Japanese captions. The file may list annotations before images."""
    names: dict[Any, str] = {}
    texts: defaultdict[Any, list[tuple[str, str]]] = defaultdict(list)
    with official_pieces(file, "STAIR") as pieces:
        for piece in pieces:
            if piece.section == "images":
                names[piece.value["id"]] = _path_of(piece.value["file_name"], piece.location)
            elif piece.section == "annotations":
                texts[piece.value["image_id"]].append((piece.location, str(piece.value["caption"]).strip()))
    if unknown := next((said[0][0] for image, said in texts.items() if image not in names), None):
        raise UserError("its image is not in the file", where=unknown, remedy="is it STAIR's file?")
    return {names[image]: [text for _, text in said] for image, said in texts.items()}


def _coco_cn(files: Files) -> dict[str, Captions]:
    """Returns Chinese captions, written by people, by split."""
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for location, line in files["chinese"].lines():
        if line:
            name, tab, text = line.partition("\t")
            if not tab:
                raise UserError("no tab between image and caption", where=location)
            captions[name.split("#")[0]].append("".join(text.split()))
    splits: dict[str, Captions] = {split: {} for split in SPLITS}
    for split, split_captions in splits.items():
        for location, line in files[f"coco_cn_{split}"].lines():
            name = line.strip()
            if name and name not in captions:
                raise UserError(f"{name!r} has no caption in {CHINESE}", where=location)
            if name:
                split_captions[_path_of(name, location)] = captions[name]
    return splits


def _records(languages: Mapping[str, Captions]) -> Iterator[dict[str, Any]]:
    """Yields ``image``, ``caption`` (lists by language) and ``image_id`` of each image with a caption in any language."""
    for image in dict.fromkeys(name for captions in languages.values() for name in captions):
        by_language = {language: captions[image] for language, captions in languages.items() if image in captions}
        match = _NAME.search(image)
        yield {"image": image, "caption": by_language, "image_id": int(match[2]) if match else image}


def _joint_training(
    english: Mapping[str, Captions], japanese: Captions, chinese: Mapping[str, Captions]
) -> dict[str, Captions]:
    held_out = {name for split in ("val", "test") for captions in (english, chinese) for name in captions[split]}
    training = {"en": english["train"], "ja": _only(english["train"], japanese), "zh": chinese["train"]}
    return {
        language: {name: texts for name, texts in captions.items() if name not in held_out}
        for language, captions in training.items()
    }


def _only(images: Iterable[str], captions: Captions) -> Captions:
    return {name: captions[name] for name in images if name in captions}


def _path_of(name: str, location: str) -> str:
    match = _NAME.search(name)
    if not match:
        raise UserError(f"{name!r} is not an image of COCO 2014", where=location)
    return f"{match[1]}/{match[0]}.jpg"


MULTILINGUAL_COCO = DataSet(
    name="multilingual_coco",
    title="COCO in English, Japanese and Chinese",
    home="cocodataset.org, stair-lab-cit.github.io/STAIR-captions-web, github.com/li-xirong/coco-cn",
    licence="STAIR CC BY 4.0; COCO-CN none stated; images under the terms of Flickr",
    files={
        "dataset_coco.json": "English, Karpathy's split (caption_datasets.zip)",
        "stair_captions_v1.2_train.json, stair_captions_v1.2_val.json": "Japanese",
        f"{CHINESE}, coco-cn_train.txt, coco-cn_val.txt, coco-cn_test.txt": "Chinese (coco-cn-version1805v1.1)",
    },
    sizes={},
    makes=Splits(
        "coco_multilingual",
        "an image of COCO and its captions by language",
        files=files_named(
            karpathy="dataset_coco.json",
            stair_train="stair_captions_v1.2_train.json",
            stair_val="stair_captions_v1.2_val.json",
            chinese=CHINESE,
            **{f"coco_cn_{split}": f"coco-cn_{split}.txt" for split in SPLITS},
        ),
        read=_read,
    ),
    read_by="configs/retrieval/coco_multilingual_{base,large}.yaml",
)
