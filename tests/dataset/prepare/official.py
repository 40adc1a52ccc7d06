"""Small files in the official formats of the pre-training data sets, with the pitfalls of the real files."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset.prepare.manifest import read_manifest
from dataset.prepare.options import Options
from dataset.prepare.prepare import prepare
from dataset.records.schema import ImageKeys, RawRecord, parse_region_record, texts_in

COCO_TRAIN, COCO_VAL = [9, 25, 30, 34], [42, 73]
VQA_SELECTION, GQA_VAL = 81, 97
"""A COCO image among the 5% of val2014 that select the weights of VQA v2, and a validation image of GQA."""
KARPATHY_TEST, KARPATHY_VAL, REFCOCOG_VAL, REFCOCO_TRAIN = 42, 25, 34, 9
FLICKR_TEST, FLICKR_TRAIN = 36979, 1000092795


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def image(path: Path, shade: int = 0, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 40, 90)).save(path)


def photograph(seed: int) -> Image.Image:
    """An image with bright and dark areas of many sizes, like a photograph."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((240, 320))
    for side in (4, 8, 16, 32):
        grid = Image.fromarray(rng.normal(0, 1, (side * 3 // 4, side)).astype(np.float32), "F")
        pixels += np.asarray(grid.resize((320, 240), Image.Resampling.BICUBIC)) / side**0.5
    return Image.fromarray((128 + 60 * pixels / pixels.std()).clip(0, 255).astype(np.uint8)).convert("RGB")


def coco_name(number: int) -> str:
    split = "val2014" if number in COCO_VAL else "train2014"
    return f"{split}/COCO_{split}_{number:012}.jpg"


def coco_images(numbers: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "width": 64,
            "height": 48,
            "file_name": coco_name(number).rpartition("/")[2],
            "flickr_url": f"http://farm1.staticflickr.com/1/{7000 + number}_0a1b2c_z.jpg",
        }
        for number in numbers
    ]


def coco(root: Path, *, pictures: bool = True) -> Path:
    """COCO 2014: crowds as RLE, boxes across the border, a gap in the category ids, and a duplicate caption."""
    for split, numbers in (("train2014", COCO_TRAIN), ("val2014", COCO_VAL)):
        captions = [
            {"image_id": number, "id": 10 * number + each, "caption": text}
            for number in numbers
            for each, text in enumerate((f"A tray, of food {number}.\n", "Two dogs!", "two dogs"))
        ]
        boxes: list[dict[str, Any]] = []
        for number in numbers:
            boxes += [
                {
                    "image_id": number,
                    "bbox": [1.5, 2.25, 20.0, 10.5],
                    "category_id": 90,
                    "iscrowd": 0,
                    "id": 100 * number,
                },
                {"image_id": number, "bbox": [50, 40, 20, 10], "category_id": 1, "iscrowd": 0, "id": 100 * number + 1},
                {"image_id": number, "bbox": [70, 2, 9, 9], "category_id": 1, "iscrowd": 0, "id": 100 * number + 2},
                {"image_id": number, "bbox": [5, 5, 0, 9], "category_id": 1, "iscrowd": 0, "id": 100 * number + 3},
                {
                    "image_id": number,
                    "bbox": [0, 0, 60, 40],
                    "category_id": 1,
                    "iscrowd": 1,
                    "segmentation": {"counts": [1, 2, 3], "size": [48, 64]},
                    "id": 100 * number + 4,
                },
            ]
        categories = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
        listed = coco_images(numbers)
        write(root / f"annotations/captions_{split}.json", {"info": {}, "images": listed, "annotations": captions})
        instances = {"info": {}, "images": listed, "annotations": boxes, "categories": categories}
        write(root / f"annotations/instances_{split}.json", instances)
        if pictures:
            for number in numbers:
                image(root / coco_name(number), shade=number)
    return root


def karpathy(root: Path) -> None:
    rows = [
        {
            "cocoid": number,
            "filepath": coco_name(number).partition("/")[0],
            "filename": coco_name(number).partition("/")[2],
            "split": split,
            "sentences": [{"raw": "A Dog.", "tokens": ["a", "dog"]}, {"raw": "Two cats!", "tokens": ["two", "cats"]}],
        }
        for number, split in ((9, "train"), (73, "restval"), (KARPATHY_TEST, "test"), (KARPATHY_VAL, "val"))
    ]
    write(root / "dataset_coco.json", {"dataset": "coco", "images": rows})
    rows = [
        {"imgid": 0, "filename": f"{number}.jpg", "split": split, "sentences": []}
        for number, split in ((FLICKR_TRAIN, "train"), (FLICKR_TEST, "test"))
    ]
    write(root / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": rows})


def references(root: Path) -> None:
    """The RefCOCO family: in each set, image 9 has one training reference and one held-out reference. RefCOCOg also trains on
    image 30, which RefCOCO tests on."""
    held_out = {"refcoco": (30, "testA"), "refcoco+": (30, "val"), "refcocog": (REFCOCOG_VAL, "val")}
    for name, (number, split) in held_out.items():
        refs = [
            _reference(REFCOCO_TRAIN, 900, "train", ["Navy shirt", "navy shirt", "the man"]),
            _reference(number, 100 * number, split, ["held out"]),
        ]
        if name == "refcocog":
            refs.append(_reference(30, 3000, "train", ["leak"]))
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        by = "umd" if name == "refcocog" else "unc"
        (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
        boxes = [{"id": 100 * each, "image_id": each, "bbox": [1.0, 2.0, 30.0, 20.0]} for each in COCO_TRAIN]
        write(folder / "instances.json", {"images": coco_images(COCO_TRAIN), "annotations": boxes})


def _reference(number: int, annotation: int, split: str, phrases: list[str]) -> dict[str, Any]:
    sentences = [{"sent": phrase, "raw": phrase, "sent_id": 0, "tokens": phrase.split()} for phrase in phrases]
    name = f"COCO_train2014_{number:012}_16.jpg"
    return {
        "ref_id": 0,
        "ann_id": annotation,
        "image_id": number,
        "file_name": name,
        "split": split,
        "sentences": sentences,
        "category_id": 1,
        "sent_ids": [0],
    }


VG_IMAGES: dict[int, tuple[int | None, int | None]] = {
    1: (None, None),
    2: (KARPATHY_TEST, None),
    3: (None, FLICKR_TEST),
    4: (REFCOCO_TRAIN, 7009),
    5: (None, 7000 + KARPATHY_VAL),
}
"""Images of Visual Genome with their COCO and Flickr ids. Images 2 and 3 are held out. Image 5 is held out too, because COCO's
file links it to a held-out image."""


def visual_genome(root: Path, *, pictures: bool = True) -> Path:
    """Visual Genome: objects with w and h, regions with width and height, negative corners, an object without attributes, and a
    line break in a phrase."""
    data = [
        {
            "image_id": n,
            "width": 64,
            "height": 48,
            "coco_id": coco_id,
            "flickr_id": flickr_id,
            "url": f"http://x/{n}.jpg",
        }
        for n, (coco_id, flickr_id) in VG_IMAGES.items()
    ]
    write(root / "image_data.json", data)
    objects, attributes, regions = [], [], []
    for n in VG_IMAGES:
        box = {"x": -3, "y": 5, "w": 20, "h": 30}
        clock = {"object_id": 10 * n, **box, "names": ["Clock", "watch"], "synsets": ["clock.n.01"]}
        bare = {"object_id": 10 * n + 1, "x": 1, "y": 1, "w": 5, "h": 5, "names": ["hand"], "synsets": []}
        nameless = {"object_id": 10 * n + 2, "x": 1, "y": 1, "w": 5, "h": 5, "names": [], "synsets": []}
        objects.append({"image_id": n, "objects": [clock, bare, nameless], "image_url": "http://x"})
        attributes.append(
            {"image_id": n, "attributes": [{**clock, "attributes": ["Green", "tall "]}, {**bare, "attributes": None}]}
        )
        phrases = [
            {
                "region_id": n,
                "image_id": n,
                "x": 0,
                "y": 0,
                "width": 64,
                "height": 48,
                "phrase": "the clock is\n green",
            },
            {"region_id": n, "image_id": n, "x": 60, "y": 40, "width": 50, "height": 50, "phrase": "A wall."},
            {"region_id": n, "image_id": n, "x": 99, "y": 40, "width": 5, "height": 5, "phrase": "outside"},
            {"region_id": n, "image_id": n, "x": 1, "y": 1, "width": 5, "height": 5, "phrase": " . "},
        ]
        regions.append({"id": n, "regions": phrases})
        if pictures:
            image(root / ("VG_100K" if n % 2 else "VG_100K_2") / f"{n}.jpg", shade=100 + n)
    write(root / "objects.json", objects)
    write(root / "attributes.json", attributes[::-1])  # the images are in another order
    write(root / "region_descriptions.json", regions)
    return root


def gqa(root: Path) -> Path:
    """Scene graphs of images 1 (training), 2 (held out) and 99 (in no list), and of a validation image."""
    graphs = {
        str(n): {
            "width": 64,
            "height": 48,
            "location": None,
            "weather": None,
            "objects": {
                "271881": {
                    "name": "chair",
                    "x": 22,
                    "y": 31,
                    "w": 50,
                    "h": 8,
                    "attributes": ["brown"],
                    "relations": [],
                },
                "271882": {"name": "floor", "x": 0, "y": 0, "w": 0, "h": 8, "attributes": [], "relations": []},
            },
        }
        for n in (1, 2, 99)
    }
    write(root / "train_sceneGraphs.json", graphs)
    write(root / "val_sceneGraphs.json", {str(GQA_VAL): graphs["99"]})
    return root


def entities(root: Path) -> Path:
    """Flickr30K Entities: a chain with two boxes, one without boxes, a scene, and a non-visual chain."""
    for n in (FLICKR_TRAIN, FLICKR_TEST):
        write(
            root / f"Sentences/{n}.txt",
            "[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look up .\n"
            "[/EN#1/people Two men] stand in [/EN#3/scene a yard] , [/EN#0/notvisual it] seems .\n",
        )
        write(
            root / f"Annotations/{n}.xml",
            "<annotation><size><width>64</width><height>48</height><depth>3</depth></size>"
            "<object><name>1</name><bndbox><xmin>2</xmin><ymin>4</ymin><xmax>12</xmax><ymax>40</ymax></bndbox></object>"
            "<object><name>1</name><bndbox><xmin>30</xmin><ymin>6</ymin><xmax>40</xmax><ymax>44</ymax></bndbox></object>"
            "<object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>",
        )
        image(root / f"flickr30k-images/{n}.jpg", shade=n % 200)
    write(root / "train.txt", f"{FLICKR_TRAIN}\n{FLICKR_TEST}\n")  # the split of Entities differs from Karpathy's
    write(root / "val.txt", "77\n")
    write(root / "test.txt", "78\n")
    return root


def sbu(root: Path) -> Path:
    """SBU: a held-out photograph, a repeated URL, and an empty caption."""
    urls = [
        "http://static.flickr.com/2723/4385058960_b0f291553e.jpg",
        f"http://farm4.static.flickr.com/3/{FLICKR_TEST}_b0f2.jpg",
        "http://static.flickr.com/2723/4385058960_b0f291553e.jpg",
        "http://static.flickr.com/9/111_aa.jpg",
        f"http://static.flickr.com/9/{7000 + KARPATHY_TEST}_aa.jpg",
    ]
    captions = ['A "wooden" chair, in the living room.', "held out", "again", " ! ", "linked"]
    write(root / "SBU_captioned_photo_dataset_urls.txt", "".join(f"{url}\n" for url in urls))
    write(root / "SBU_captioned_photo_dataset_captions.txt", "".join(f"{text}\n" for text in captions))
    return root


def cc3m(root: Path, rows: int = 3) -> Path:
    lines = [f"a very typical bus station {n}\thttp://example.org/{n}.jpg\n" for n in range(rows)]
    write(root / "Train_GCC-training.tsv", "".join(lines))
    return root


def downloaded(folder: Path, pairs: list[tuple[str, str]], *, failed: int = 1, prefix: str = "") -> None:
    """A shard in img2dataset's format, with its statistics file. The names of its members begin with ``prefix``."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, (url, caption) in enumerate(pairs):
            content = io.BytesIO()
            Image.new("RGB", (32, 32), (number, 0, 0)).save(content, "JPEG")
            values = {"url": url, "caption": caption, "key": f"{number:09}", "status": "success", "width": 32}
            members = {"jpg": content.getvalue(), "txt": caption.encode(), "json": json.dumps(values).encode()}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{prefix}{number:09}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    statuses = {"success": len(pairs), "HTTP Error 404: Not Found": failed}
    write(folder / "00000_stats.json", {"count": len(pairs) + failed, "successes": len(pairs), "status_dict": statuses})


def everything(root: Path) -> Path:
    """All sets below one folder."""
    coco(root / "coco")
    karpathy(root / "coco")
    references(root)
    visual_genome(root / "vg")
    gqa(root / "gqa")
    entities(root / "flickr30k_entities")
    sbu(root / "sbu")
    cc3m(root / "cc3m")
    return root


def options(raw: Path, out: Path, lines: list[str] | None = None, **changes: Any) -> Options:
    """Options for a user who gives no flags; ``lines`` collects the messages."""
    wish: dict[str, Any] = {
        "raw": raw,
        "out": out,
        "held_out": (),
        "without": (),
        "missing": frozenset(),
        "verify": False,
        "overwrite": False,
        "workers": 1,
        "report": (lines if lines is not None else []).append,
    }
    return Options(**(wish | changes))


def prepared(name: str, raw: Path, out: Path, **changes: Any) -> str:
    """Prepares a set and returns its messages."""
    lines: list[str] = []
    prepare(name, options(raw, out, lines, **changes))
    return "\n".join(lines)


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of a prepared folder in shard order."""
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def parsed_records(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of a prepared folder, after checking that the parser of region records accepts each of them.

    Every box of an element is parsed separately. For phrases without a box, only the texts are checked.
    """
    found = records(folder)
    for number, record in enumerate(found):
        check_record(record, f"{folder}[{number}]", folder)
    return found


def check_record(record: dict[str, Any], location: str, folder: Path, image: bytes | None = None) -> None:
    elements = []
    for element in record.get("elems", []):
        boxes = element["bb"] if not element["bb"] or isinstance(element["bb"][0], list) else [element["bb"]]
        elements += [{**element, "bb": box} for box in boxes]
        for key in ("caption", "long_caption", "hard_negatives"):
            if key in element:
                texts_in(element[key], key)
    for key in ("long_caption", "hard_negatives"):
        if key in record:
            texts_in(record[key], key)
    raw = RawRecord({**record, "elems": elements}, location, folder, image)
    parsed = parse_region_record(raw, ImageKeys(), "caption")
    assert parsed.broken == () and len(parsed.elements) == len(elements)


def counted(folder: Path) -> dict[str, dict[str, int]]:
    """The counts in a manifest."""
    counts = read_manifest(folder).values["counts"]
    return {name: counts[name] for name in ("read", "written", "fixed", "skipped")}


def in_this_process(work: Any, jobs: Any, workers: int, died: Any) -> Any:
    """Replaces ``in_order``, and does the work in this process. For tests that are not about processes."""
    for job in jobs:
        yield work(job)


def contents(folder: Path) -> dict[str, bytes]:
    """The contents of the shards of a prepared folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
