"""Speed of ``run.py prepare`` in rows per second: ``python -m benchmarks.prepare``."""

from __future__ import annotations

import io
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset.prepare.catalogue import SETS
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Urls
from dataset.prepare.options import Options
from dataset.prepare.output_folder import json_line
from dataset.prepare.prepare import prepare
from utils.commands import call
from utils.flags import Positive

TARGET = 10_000
"""Target rate, in rows per second and process."""
REGIONS, OBJECTS = 50, 35
"""Numbers of regions and objects per image in Visual Genome."""
COCO_CAPTIONS, COCO_OBJECTS = 5, 7
_WORDS = (
    "a",
    "man",
    "with",
    "dog",
    "green",
    "clock",
    "on",
    "the",
    "wall",
    "of",
    "wooden",
    "table",
    "near",
    "red",
    "bus",
)


def main(*, images_: Positive = 10_000, workers_: Positive = 2, small: bool = False) -> int:
    """Speed of run.py prepare in rows per second.

    The benchmark generates files in the official formats, with the same number of rows per image as the official files, but
    without images (except for FineHARD). A row is a region, an object, a phrase, a caption or a pair. Each data set is prepared
    by one process and by --workers processes; the time includes hashing sources and shards. --images 108077 is the size of Visual
    Genome, and shows the peak memory at that size.

    Data sets from the web are prepared in two steps. The first step, which writes the list for img2dataset, is timed like the
    other data sets. In the second step, one process converts the annotations of shards to records; reading and writing images is
    not timed.

    The last line is the lowest rate of any data set, in rows per second and process, divided by 10,000.

    Args:
        images_: number of images per data set.
        workers_: number of processes.
        small: smoke test with few images.

    Examples:
        python -m benchmarks.prepare
    """
    images = 100 if small else images_
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        for name, generate in GENERATORS.items():
            raw = Path(folder) / name
            raw.mkdir()
            rows = generate(raw, images)
            seconds = {workers: _seconds(name, raw, workers) for workers in dict.fromkeys((1, workers_))}
            rates += [rows / seconds[1]]
            each = ", ".join(f"{rows / taken:,.0f} rows/s by {workers}" for workers, taken in seconds.items())
            sys.stdout.write(f"{name}: {rows:,} rows: {each}\n")
            shutil.rmtree(raw)
    for name, (make, rows_of) in CONVERSIONS.items():
        rate, images_rate = _conversion(name, make, rows_of, images)
        rates.append(rate)
        sys.stdout.write(f"{name}, from shards: {rate:,.0f} rows/s, {images_rate:,.0f} images/s by 1\n")
    sys.stdout.write(f"peak memory of a process: {_peak_gib():.2f} GiB\n")
    sys.stdout.write(f"ratio: {min(rates) / TARGET:.2f}\n")
    return 0


def _seconds(name: str, raw: Path, workers: int) -> float:
    """Measures how many seconds one preparation takes in a separate process, not counting imports."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_prepare, args=(name, raw, workers, there))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"preparing {name} ended with status {process.exitcode}")
    seconds: float = here.recv()
    return seconds


def _prepare(name: str, raw: Path, workers: int, answer: Connection) -> None:
    out = raw.parent / f"{raw.name}-out"
    multiprocessing.set_start_method(None, force=True)  # with spawn, its child processes would repeat all imports
    without = ("karpathy_coco", "karpathy_flickr30k", "refcoco", "refcoco+", "refcocog", "vqa2_val", "gqa_val")
    started = time.perf_counter()
    prepare(name, Options(raw, out, (), without, frozenset(), False, True, workers, report=lambda line: None))
    answer.send(time.perf_counter() - started)
    shutil.rmtree(out)


def _conversion(
    name: str, make: Callable[[np.random.Generator, int], dict[str, Any]], rows_of: int, images: int
) -> tuple[float, float]:
    """Measures how many rows and images per second of CPU time are converted from annotations to records."""
    makes = SETS[name].makes
    assert isinstance(makes, Urls) and makes.annotations is not None
    rng, counts = np.random.default_rng(0), Counts()
    texts = [json.dumps(make(rng, n)) for n in range(images)]
    started = time.process_time()
    for n, text in enumerate(texts):
        record = makes.annotations.convert(json.loads(text), (640, 480), counts, f"00000.tar:{n:09}.jpg")
        if record is not None:
            json_line(record)
    seconds = time.process_time() - started
    return images * rows_of / seconds, images / seconds


def _peak_gib() -> float:
    """Returns the highest peak memory of all child processes so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def _phrase(rng: np.random.Generator, words: int) -> str:
    return " ".join(_WORDS[each] for each in rng.integers(len(_WORDS), size=words))


def _box(rng: np.random.Generator, sides: tuple[str, str]) -> dict[str, int]:
    x, y, width, height = rng.integers((-3, -3, 5, 5), (600, 400, 300, 300)).tolist()
    return {"x": x, "y": y, sides[0]: width, sides[1]: height}


def visual_genome(folder: Path, images: int) -> int:
    """Writes Visual Genome's files. Returns the number of regions and objects; regions count twice, since two folders are made
    from them."""
    rng = np.random.default_rng(0)
    listed = [{"image_id": n, "width": 800, "height": 600, "coco_id": None, "flickr_id": None} for n in range(images)]
    (folder / "image_data.json").write_text(json.dumps(listed))

    def objects(n: int) -> dict[str, Any]:
        made = [
            {
                "object_id": n * OBJECTS + k,
                **_box(rng, ("w", "h")),
                "names": [_phrase(rng, 1)],
                "synsets": ["clock.n.01"],
            }
            for k in range(OBJECTS)
        ]
        return {"image_id": n, "objects": made, "image_url": f"https://example.org/{n}.jpg"}

    def attributes(n: int) -> dict[str, Any]:
        listed = objects(n)["objects"]
        return {"image_id": n, "attributes": [{**each, "attributes": [_phrase(rng, 1)]} for each in listed]}

    def regions(n: int) -> dict[str, Any]:
        made = [
            {"region_id": n * REGIONS + k, "image_id": n, **_box(rng, ("width", "height")), "phrase": _phrase(rng, 5)}
            for k in range(REGIONS)
        ]
        return {"id": n, "regions": made}

    makers: dict[str, Callable[[int], dict[str, Any]]] = {
        "objects.json": objects,
        "attributes.json": attributes,
        "region_descriptions.json": regions,
    }
    for name, make in makers.items():
        with (folder / name).open("w") as stream:
            for n in range(images):
                stream.write(f"{',' if n else '['}{json.dumps(make(n))}")
            stream.write("]")
    return images * (2 * REGIONS + OBJECTS)


def coco(folder: Path, images: int) -> int:
    """Writes COCO's files. Returns the number of captions and objects; captions count twice, since two folders are made from
    them."""
    rng = np.random.default_rng(0)
    outline = rng.integers(600, size=60).tolist()
    for split, numbers in (("train2014", range(images // 2)), ("val2014", range(images // 2, images))):
        listed = [{"id": n, "width": 640, "height": 480, "file_name": f"COCO_{split}_{n:012}.jpg"} for n in numbers]
        captions = [
            {"image_id": n, "id": n, "caption": _phrase(rng, 10)} for n in numbers for _ in range(COCO_CAPTIONS)
        ]
        boxes = [
            {
                "image_id": n,
                "id": n,
                "bbox": rng.uniform(1, 200, 4).round(2).tolist(),
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": [outline],
            }
            for n in numbers
            for _ in range(COCO_OBJECTS)
        ]
        content = {"images": listed, "annotations": captions}
        (folder / f"captions_{split}.json").write_text(json.dumps(content))
        content = {"images": listed, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    karpathy = {"images": [{"cocoid": 0, "filepath": "val2014", "split": "val", "sentences": [{"raw": "a dog"}]}]}
    (folder / "dataset_coco.json").write_text(json.dumps(karpathy))
    return images * (2 * COCO_CAPTIONS + COCO_OBJECTS)


def cc3m(folder: Path, images: int) -> int:
    """Writes CC3M's file with ``10 * images`` pairs. Returns the number of pairs."""
    rng = np.random.default_rng(0)
    with (folder / "Train_GCC-training.tsv").open("w") as stream:
        for n in range(10 * images):
            stream.write(f"{_phrase(rng, 10)}\thttp://example.org/pictures/{n}.jpg\n")
    return 10 * images


def odvg(folder: Path, images: int) -> int:
    """Writes ODVG lines with the boxes and phrases of each image. Returns the number of rows."""
    rng = np.random.default_rng(0)
    with (folder / "train_odvg.jsonl").open("w") as stream:
        for n in range(images):
            corners = rng.uniform((0, 0, 200, 200), (200, 200, 400, 400), (2 * PHRASES, 4)).round(2).tolist()
            objects = [
                {"bbox": each, "label": k, "category": _phrase(rng, 1)} for k, each in enumerate(corners[:PHRASES])
            ]
            regions = [{"bbox": each, "phrase": _phrase(rng, 3)} for each in corners[PHRASES:]]
            parts = {
                "detection": {"instances": objects},
                "grounding": {"caption": _phrase(rng, 12), "regions": regions},
            }
            stream.write(f"{json.dumps({'filename': f'{n}.jpg', 'width': 640, 'height': 480, **parts})}\n")
    return images * (2 * PHRASES + 1)


def finehard(folder: Path, images: int) -> int:
    """Writes FineHARD's file, and small images, since their sizes are needed. Returns the number of boxes."""
    rng, content = np.random.default_rng(0), io.BytesIO()
    Image.new("RGB", (64, 48)).save(content, "JPEG")
    stored = folder / "coyo_image_0/00000"
    stored.mkdir(parents=True)
    rows = []
    for n in range(images):
        (stored / f"{n:09d}.jpg").write_bytes(content.getvalue())
        described = [
            {
                "bbox": [*_corners(rng), 0.9],
                "short_expr": _phrase(rng, 4),
                "long_expr": _phrase(rng, 20),
                "flag_short_neg": 1,
                "short_expr_negs": {str(k): _phrase(rng, 4) for k in range(NEGATIVES)},
            }
            for _ in range(FINEHARD_BOXES)
        ]
        texts = {"short_caption": _phrase(rng, 10), "caption": _phrase(rng, 60)}
        rows.append({"f_path": f"grit-12m/coyo_image_0/00000/{n:09d}.jpg", **texts, "bbox_info": described})
    (folder / "finehard.json").write_text(json.dumps(rows))
    return images * FINEHARD_BOXES


def lvis(folder: Path, images: int) -> int:
    """Writes LVIS's file. Returns the number of objects."""
    rng = np.random.default_rng(0)
    url = "http://images.cocodataset.org/train2017"
    listed = [
        {"id": n, "width": 640, "height": 480, "coco_url": f"{url}/{n:012}.jpg", "neg_category_ids": [1, 2, 3]}
        for n in range(images)
    ]
    outline = rng.integers(600, size=60).tolist()
    boxes = [
        {
            "image_id": n,
            "id": n,
            "bbox": rng.uniform(1, 200, 4).round(2).tolist(),
            "category_id": int(rng.integers(1, 1200)),
            "segmentation": [outline],
        }
        for n in range(images)
        for _ in range(LVIS_OBJECTS)
    ]
    categories = [{"id": n, "name": f"thing_{n}", "synonyms": [f"thing_{n}", f"item_{n}"]} for n in range(1, 1204)]
    content = {"images": listed, "annotations": boxes, "categories": categories}
    (folder / "lvis_v1_train.json").write_text(json.dumps(content))
    return images * LVIS_OBJECTS


def grefcoco(folder: Path, images: int) -> int:
    """Writes gRefCOCO's files with ten references per image. Returns the number of expressions."""
    rng = np.random.default_rng(0)
    boxes = [{"id": n, "image_id": n // 4, "bbox": rng.uniform(1, 200, 4).round(2).tolist()} for n in range(4 * images)]
    listed = [{"id": n, "width": 640, "height": 480} for n in range(images)]
    references = [
        {
            "ref_id": 10 * n + k,
            "image_id": n,
            "ann_id": [-1] if k == 9 else [4 * n + k % 4, 4 * n + (k + 1) % 4],
            "split": "train",
            "sentences": [{"sent": _phrase(rng, 5), "sent_id": each} for each in range(2)],
        }
        for n in range(images)
        for k in range(10)
    ]
    (folder / "grefcoco").mkdir()
    (folder / "grefcoco/grefs(unc).json").write_text(json.dumps(references))
    (folder / "grefcoco/instances.json").write_text(json.dumps({"images": listed, "annotations": boxes}))
    return images * 20


def _corners(rng: np.random.Generator) -> list[float]:
    x, y, width, height = rng.uniform(0.02, 0.5, 4).tolist()
    return [x, y, x + width, y + height]


def grit_row(rng: np.random.Generator, n: int) -> dict[str, Any]:
    spans = [[float(k), float(k + 12), *_corners(rng), 0.9] for k in range(PHRASES)]
    known = {"url": f"http://example.org/{n}.jpg", "caption": _phrase(rng, 14)}
    return {**known, "noun_chunks": spans[: PHRASES // 2], "ref_exps": spans[PHRASES // 2 :]}


def blip3_row(rng: np.random.Generator, n: int) -> dict[str, Any]:
    boxes = [", ".join(f"{side:.3f}" for side in _corners(rng)) for _ in range(PHRASES)]
    located = " and ".join(f"a {_phrase(rng, 2)} (<bbox>{box}</bbox>)" for box in boxes)
    known = {"url": f"http://example.org/{n}.jpg", "cogvlm_caption": f"{_phrase(rng, 40)}."}
    return {**known, "captions": json.dumps([[_phrase(rng, 40), False, 2], [located, False, 0]])}


def gbc_row(rng: np.random.Generator, n: int) -> dict[str, Any]:
    labels = ["image", *["entity"] * (GBC_VERTICES - 4), "composition", "relation", "relation"]
    vertices = []
    for k, label in enumerate(labels):
        sides = dict(zip(("left", "top", "right", "bottom"), _corners(rng), strict=True))
        kind = "relation" if label == "relation" else "short"
        texts = [{"text": _phrase(rng, 60), "label": "detail"}, {"text": _phrase(rng, 12), "label": kind}]
        edges = [{"source": "", "text": _phrase(rng, 2), "target": f"v{k}"}]
        out = [{"source": f"v{k}", "text": "x", "target": f"v{each}"} for each in (1, 2)]
        vertex = {"vertex_id": f"v{k}", "bbox": {**sides, "confidence": 0.5}, "label": label, "descs": texts}
        vertices.append({**vertex, "in_edges": edges, "out_edges": out})
    return {
        "img_url": f"http://example.org/{n}.jpg",
        "original_caption": _phrase(rng, 10),
        "vertices": vertices,
    }


def pixelprose_row(rng: np.random.Generator, n: int) -> dict[str, Any]:
    known = {"url": f"http://example.org/{n}.jpg", "original_caption": _phrase(rng, 10)}
    return {**known, "vlm_caption": f"{_phrase(rng, 40)}. {_phrase(rng, 40)}."}


def _listed(
    name: str, make: Callable[[np.random.Generator, int], dict[str, Any]], rows_of: int
) -> Callable[[Path, int], int]:
    """Returns a function that generates the Parquet file of a data set from the web."""

    def generate(folder: Path, images: int) -> int:
        import pyarrow
        import pyarrow.parquet

        rng = np.random.default_rng(0)
        rows = [make(rng, n) for n in range(images)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")
        return images * rows_of

    return generate


PHRASES, LVIS_OBJECTS, GBC_VERTICES, FINEHARD_BOXES = 6, 13, 12, 10
"""Numbers per image."""
NEGATIVES = 10
"""Hard negatives per box in FineHARD."""

CONVERSIONS: dict[str, tuple[Callable[[np.random.Generator, int], dict[str, Any]], int]] = {
    "grit": (grit_row, PHRASES + 1),
    "blip3_grounding": (blip3_row, PHRASES + 1),
    "gbc": (gbc_row, GBC_VERTICES),
    "pixelprose": (pixelprose_row, 2),
}
"""Data sets from the web: a function that makes a row, and the number of phrases, vertices or captions in the row."""

GENERATORS: dict[str, Callable[[Path, int], int]] = {
    "visual_genome": visual_genome,
    "coco": coco,
    "cc3m": cc3m,
    "odvg": odvg,
    "finehard": finehard,
    "lvis": lvis,
    "grefcoco": grefcoco,
    **{name: _listed(name, make, rows_of) for name, (make, rows_of) in CONVERSIONS.items()},
}


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.prepare"))
