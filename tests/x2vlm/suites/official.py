"""Small folders in the official format of each suite, with our own texts and images."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.files import write_text
from x2vlm.suites import detection, sugarcrepe, valse


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def sugarcrepe_in(folder: Path) -> None:
    """The entry numbers have a gap, as in the official swap_obj."""
    picture(folder / "val2017/000000000001.jpg")
    entry = {"filename": "000000000001.jpg", "caption": "a red star", "negative_caption": "a blue star"}
    for kind in (*sugarcrepe.REPLACED, *sugarcrepe.SWAPPED, *sugarcrepe.ADDED):
        write(folder / f"{kind}.json", {"0": entry, "2": {**entry, "negative_caption": "a red heart"}})


def sugarcrepe_pp_in(folder: Path) -> None:
    picture(folder / "val2017/000000000001.jpg")
    entry = {"id": 0, "filename": "000000000001.jpg", "caption": "a red star", "negative_caption": "a blue star"}
    for kind in (*sugarcrepe.REPLACED, *sugarcrepe.SWAPPED):
        write(folder / f"{kind}.json", [{**entry, "caption2": "the star is red"}])


def winoground_in(folder: Path) -> None:
    lines = []
    for number, tag in enumerate(("Object", "Relation")):
        stems = [f"ex_{number}_img_{side}" for side in range(2)]
        for side, stem in enumerate(stems):
            picture(folder / f"images/{stem}.png", seed=2 * number + side)
        texts = {"caption_0": "a star on a heart", "caption_1": "a heart on a star"}
        lines.append({"id": number, "image_0": stems[0], "image_1": stems[1], **texts, "collapsed_tag": tag})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "examples.jsonl").write_text(text, encoding="utf-8")


def aro_in(folder: Path) -> None:
    """Relations "on" (two cases), "near" (symmetric) and "under", and attributes of which one pair is frequent enough."""
    picture(folder / "images/1.jpg")
    box = {"bbox_x": 2, "bbox_y": 4, "bbox_w": 20, "bbox_h": 10}
    texts = {"true_caption": "the star is on the heart", "false_caption": "the heart is on the star"}
    entry = {"image_path": "1.jpg", **box, **texts}
    relations = [{**entry, "relation_name": name} for name in ("on", "near", "under", "on")]
    write(folder / "visual_genome_relation.json", relations)
    pairs = [["red", "small"]] * 25 + [["blue", "large"]] * 24
    write(folder / "visual_genome_attribution.json", [{**entry, "attributes": pair} for pair in pairs])


def valse_in(folder: Path) -> None:
    """One entry of each piece is kept. There is another entry whose caption most annotators did not choose."""
    picture(folder / "images/one.jpg")
    entry = {"image_file": "one.jpg", "caption": "there is a star", "foil": "there is no star"}
    kept, dropped = ({"caption": votes, "foil": 3 - votes, "other": 0} for votes in (2, 1))
    for piece in valse.PIECES:
        write(folder / f"{piece}.json", {"a_1": {**entry, "mturk": kept}, "a_2": {**entry, "mturk": dropped}})


def fg_ovd_in(folder: Path) -> None:
    picture(folder / "val2017/1.jpg")
    names = ["a red star", "a blue star", "a green star"]
    content = {
        "images": [{"id": 7, "file_name": "val2017/1.jpg", "width": 32, "height": 24}],
        "categories": [{"id": 10 + index, "name": name} for index, name in enumerate(names)],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 10, "neg_category_ids": [12, 11], "bbox": [1.5, 2.0, 9.2, 8.0]},
            {"id": 1, "image_id": 7, "category_id": 11, "neg_category_ids": [], "bbox": [0, 0, 5, 5]},
        ],
    }
    names_of_files = ("1_attributes", "2_attributes", "3_attributes", "shuffle_negatives")
    for name in (*names_of_files, "color", "material", "pattern", "transparency"):
        write(folder / f"{name}.json", content)


def retrieval_in(folder: Path, name: str) -> None:
    """Three images with one, two and two captions."""
    captions = [["a red star"], ["a blue heart", "a heart"], ["two green circles", "circles"]]
    for number, _ in enumerate(captions):
        picture(folder / f"images/{number}.jpg", seed=number)
    entries = [{"image": f"images/{number}.jpg", "caption": texts} for number, texts in enumerate(captions)]
    write(folder / f"{name}_test.json", entries)


def classes_in(folder: Path) -> None:
    for number, name in enumerate(("blue_heart", "red_star", "red_star", "red_star")):
        picture(folder / f"{name}/{number}.png", seed=number)


def refcoco_in(folder: Path, splits: tuple[str, ...], refs: str) -> None:
    """One phrase for each split, all about the same box."""
    picture(folder / "train2014/COCO_train2014_000000000007.jpg")
    images, annotations = [{"id": 7, "width": 32, "height": 24}], [{"id": 1, "image_id": 7, "bbox": [2, 3, 20, 15]}]
    write(folder / "instances.json", {"images": images, "annotations": annotations})
    listed = [
        {"ref_id": index, "ann_id": 1, "image_id": 7, "split": split, "sentences": [{"sent": "the red star"}]}
        for index, split in enumerate(splits)
    ]
    (folder / refs).write_bytes(pickle.dumps(listed))


def entities_in(folder: Path) -> None:
    """Two phrases with a box, of which the first has two boxes, one without a box, and one that is not visual."""
    picture(folder / "flickr30k-images/7.jpg")
    sentence = "[/EN#5/other A red star] above [/EN#6/other/shapes two circles] on [/EN#0/notvisual it] , [/EN#8/scene outside] ."
    for part in ("Sentences", "Annotations"):
        (folder / part).mkdir(parents=True)
    write_text(folder / "Sentences/7.txt", f"{sentence}\n")
    boxes = {5: (2, 3, 22, 18), 6: (20, 2, 30, 10)}
    listed = [(5, boxes[5]), (6, boxes[6]), (6, (1, 15, 9, 22))]
    objects = ""
    for chain, box in listed:
        corners = "".join(f"<{name}>{value}</{name}>" for name, value in zip(CORNERS, box, strict=True))
        objects += f"<object><name>{chain}</name><bndbox>{corners}</bndbox></object>"
    scene = "<object><name>8</name><scene>1</scene><nobndbox>1</nobndbox></object>"
    size = "<size><width>32</width><height>24</height></size>"
    write_text(folder / "Annotations/7.xml", f"<annotation>{size}{objects}{scene}</annotation>")
    write_text(folder / "test.txt", "7\n")


def detected_in(folder: Path, annotations: str, images: str, detections: str, *, lvis: bool = False) -> None:
    """Two images with a box each, one of which the detector finds with the right label."""
    listed, found = [], []
    for number in (1, 2):
        picture(folder / images / f"val2017/{number}.jpg" if lvis else folder / images / f"{number}.jpg", seed=number)
        url = f"http://images.cocodataset.org/val2017/{number}.jpg"
        listed.append(
            {"id": number, "width": 32, "height": 24, **({"coco_url": url} if lvis else {"file_name": f"{number}.jpg"})}
        )
        found.append({"image_id": number, "category_id": number, "bbox": [2, 3, 20, 15], "score": number / 2})
    checked = {"neg_category_ids": [1, 2], "not_exhaustive_category_ids": []} if lvis else {}
    true = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 3, 20, 15], "area": 300, "iscrowd": 0} for n in (1, 2)
    ]
    frequency = {"frequency": "r"} if lvis else {}
    names = [{"id": number, "name": name, **frequency} for number, name in ((1, "red_star"), (2, "heart"))]
    content = {"images": [image | checked for image in listed], "annotations": true, "categories": names}
    for name, value in ((annotations, content), (detections, found)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, value)


def odinw_in(folder: Path) -> None:
    for part in ("Aquarium/test", "Raccoon/test"):
        detected_in(folder, f"{part}/annotations_without_background.json", part, f"{part}/detections.json")


CORNERS = ("xmin", "ymin", "xmax", "ymax")

CASES: dict[str, tuple[Callable[[Path], None], int]] = {
    "sugarcrepe": (sugarcrepe_in, 14),
    "sugarcrepe++": (sugarcrepe_pp_in, 5),
    "winoground": (winoground_in, 2),
    "aro-relation": (aro_in, 3),
    "aro-attribution": (aro_in, 25),
    "valse": (valse_in, 11),
    "fg-ovd": (fg_ovd_in, 8),
}
"""The function that writes the folder of each suite of cases, and the number of its cases."""

FOLDERS = CASES | {
    "retrieval-coco": (partial(retrieval_in, name="coco"), 3 + 5),
    "retrieval-flickr30k": (partial(retrieval_in, name="flickr30k"), 3 + 5),
    "classification": (classes_in, 4),
    "refcoco": (partial(refcoco_in, splits=("val", "testA", "testB"), refs="refs(unc).p"), 3),
    "refcoco+": (partial(refcoco_in, splits=("val", "testA", "testB"), refs="refs(unc).p"), 3),
    "coco-boxes": (partial(detected_in, **detection.COCO.sets["val2017"]._asdict()), 2),
    "lvis-boxes": (partial(detected_in, **detection.LVIS.sets["val"]._asdict(), lvis=True), 2),
    "odinw": (odinw_in, 4),
    "flickr30k-entities": (entities_in, 4),
    "refcocog": (partial(refcoco_in, splits=("val", "test"), refs="refs(umd).p"), 2),
}
"""The function that writes the folder of each suite, and the number of its examples."""
