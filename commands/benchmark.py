"""``python run.py benchmark SUITE``: measure what a model understands by the official files of a suite."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from commands.models import ModelFlags
from utils.errors import UserError
from utils.flags import SEVERAL, ModelName, read_by, whole_number
from x2vlm.suites import SUITES, suite_named

RECEIPT, TABLE, CASES = "receipt.json", "table.txt", "cases.jsonl"


def benchmark(
    suite: Annotated[str, Parameter(choices=list(SUITES))],
    /,
    *,
    model: ModelName,
    data: Path,
    kinds: Annotated[tuple[str, ...], SEVERAL] = (),
    bootstrap: Annotated[int, read_by(whole_number(0))] = 1000,
    out: Path | None = None,
    options: ModelFlags = ModelFlags(),
) -> int:
    """Measure what a model understands without fine-tuning: whether it tells apart texts, or images, that differ in one fact;
    finds images and texts; names classes; and locates phrases. The files of a suite are read as they are published.

    Each example is scored by the cosine of the embeddings, by the matching head, and by both. Two baselines stand next to each
    result: the text alone with a grey image, and the image alone with one text for all. If a baseline is far above chance, the
    suite can be solved without looking.

    Args:
        suite: what to measure.
        model: a model of task pretrain or retrieval (RefCOCO: pretrain): a run's folder, a weight file, hub:owner/name, or an
            export.
        data: folder with the files of the suite; if any is missing, the message says where it is published.
        kinds: kinds of examples (default: all).
        bootstrap: draws of the 95 % intervals, 0 for none.
        out: folder for receipt.json, table.txt, and all examples with their scores in cases.jsonl.

    Examples:
        python run.py benchmark drawn-pairs --model runs/demo/pretrain-seed0 --data data/scenes
    """
    from x2vlm.suites.suite import as_json, table

    chosen = suite_named(suite)
    if not data.is_dir():
        raise UserError(
            f"--data {data}: is not a folder; give the one with the files of {chosen.title}, see {chosen.published_at}"
        )
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    content = chosen.read(data, kinds)
    loaded = options.load(model)
    judged = chosen.judge(loaded, content)
    results = chosen.results(judged, draws=bootstrap)
    text = table(chosen, results, judged)
    sys.stdout.write(f"{text}\n")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        receipt = {
            "command": suite,
            "model": loaded.origin,
            "weights": loaded.runtime.weights,
            "precision": options.precision,
            "kinds": list(kinds),
            "bootstrap": bootstrap,
            "files": {name: _sha256(data / name) for name in chosen.files(kinds)},
            "examples": len(judged.kinds),
            "notes": list(judged.notes),
            **as_json(chosen, results),
        }
        (out / RECEIPT).write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
        (out / TABLE).write_text(f"{text}\n", encoding="utf-8")
        lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in judged.examples)
        (out / CASES).write_text("".join(lines), encoding="utf-8")
        sys.stdout.write(f"wrote {RECEIPT}, {TABLE} and {CASES} to {out}\n")
    return 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
