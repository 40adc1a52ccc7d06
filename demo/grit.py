"""``python -m demo.grit``: writes scenes of the demo in the published format of GRIT, a data set of web images with phrases and
boxes, and then in the format in which img2dataset stores downloaded images.

docs/pretraining_data.md describes how to prepare these scenes like a data set from the web.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from PIL import Image

from dataset.shards.parquet import check_pyarrow
from utils.commands import call
from utils.errors import UserError
from utils.files import replacing, write_text
from utils.flags import read_by, whole_number

URL_PREFIX = "https://scenes.example/"
"""Prefix of all image URLs. The rest of a URL is the path of the image in the folder of scenes."""
CONFIDENCE = 0.9


def grit_row(record: dict[str, Any], size: tuple[int, int], number: int) -> dict[str, Any]:
    """Returns a row with GRIT's columns: a caption, and for each of its phrases the character offsets and the box (x1, y1, x2,
    y2), with coordinates in [0, 1]."""
    width, height = size
    caption = str(record["caption"][0])
    spans: dict[str, list[list[float]]] = {"noun_chunks": [], "ref_exps": []}
    for element in record["elems"]:
        x, y, w, h = element["bb"]
        box = [x / width, y / height, (x + w) / width, (y + h) / height]
        for phrase, column in zip(element["caption"], ("noun_chunks", "ref_exps"), strict=False):
            if phrase not in caption:
                caption += f"; {phrase}"
            start = caption.index(phrase)
            spans[column].append([float(start), float(start + len(phrase)), *box, CONFIDENCE])
    columns = {
        "id": number,
        "url": f"{URL_PREFIX}{record['image']}",
        "caption": caption,
        "width": width,
        "height": height,
    }
    return {"clip_similarity_vitb32": 0.3, "clip_similarity_vitl14": 0.3, **columns, **spans}


def _rows(scenes: Path, count: int) -> Iterator[dict[str, Any]]:
    lines = (scenes / "train.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    for number, record in enumerate(map(json.loads, lines)):
        with Image.open(scenes / record["image"]) as image:
            yield grit_row(record, image.size, number)


def write_parquet(scenes: Path, out: Path, count: int) -> int:
    """Writes ``coyo_0_snappy.parquet``, which is named like GRIT's files; returns the number of rows."""
    check_pyarrow("demo.grit")
    import pyarrow
    import pyarrow.parquet

    out.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(scenes, count))
    with replacing(out / "coyo_0_snappy.parquet") as part:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), part)
    return len(rows)


def write_shard(scenes: Path, lists: Path, out: Path) -> int:
    """Writes the images of all URL lists into one shard, next to a file of statistics, as img2dataset does; returns the number of
    images."""
    check_pyarrow("demo.grit")
    import pyarrow.parquet

    files = sorted(lists.glob("*.parquet"))
    if not files:
        raise UserError(f"{lists} has no lists", remedy="run `python run.py prepare grit` first")
    rows = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "00000.tar") as part, tarfile.open(part, "w") as tar:
        for number, row in enumerate(rows):
            content = (scenes / row["url"].removeprefix(URL_PREFIX)).read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
            sizes = {"width": width, "height": height, "original_width": width, "original_height": height}
            values = {**row, "key": f"{number:09d}", "status": "success", **sizes}
            members = {"png": content, "txt": row["caption"].encode(), "json": json.dumps(values).encode()}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    statistics = {"count": len(rows), "successes": len(rows), "status_dict": {"success": len(rows)}}
    write_text(out / "00000_stats.json", json.dumps(statistics))
    return len(rows)


def grit(
    *,
    out: Path,
    scenes: Path = Path("data/scenes"),
    lists: Path | None = None,
    rows: Annotated[int, read_by(whole_number(1, 1_000_000))] = 500,
) -> int:
    """Write scenes of the demo in GRIT's format; with --lists, write the shard that img2dataset would write.

    Args:
        out: folder to write to.
        scenes: folder written by demo.scenes.
        lists: folder of the URL lists written by `prepare grit`; their images are written to a shard in --out.
        rows: number of scenes.

    Examples:
        python -m demo.grit --out data/raw/grit
        python -m demo.grit --lists data/web/grit_urls --out data/web/grit_shards
    """
    if not (scenes / "train.jsonl").is_file():
        raise UserError(f"{scenes} has no scenes", remedy=f"draw them with `python -m demo.scenes --out {scenes}`")
    count = write_parquet(scenes, out, rows) if lists is None else write_shard(scenes, lists, out)
    sys.stdout.write(f"{out}: {count:,} {'rows' if lists is None else 'images'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(grit, sys.argv[1:], "python -m demo.grit"))
