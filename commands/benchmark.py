"""``python run.py benchmark SUITE``: measures what a model understands, using the official files of a benchmark suite."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from commands.models import ModelFlags
from engine.checkpoint import digest_of, find_weights
from utils.commands import argv_of
from utils.errors import UserError
from utils.files import expanded, write_text
from utils.flags import SEVERAL, ModelName, OutputFolder, read_by, whole_number
from x2vlm.suites import SUITES, suite_named

RECEIPT, TABLE, CASES = "receipt.json", "table.txt", "cases.jsonl"
"""The files in ``--out``. The receipt is written last, so if it exists, the other two files belong to it."""


def benchmark(
    suite: Annotated[str, Parameter(choices=list(SUITES))],
    /,
    *,
    model: ModelName,
    data: Path,
    kinds: Annotated[tuple[str, ...], SEVERAL] = (),
    bootstrap: Annotated[int, read_by(whole_number(0))] = 1000,
    out: OutputFolder | None = None,
    overwrite: bool = False,
    options: ModelFlags = ModelFlags(),
) -> int:
    """Measure what a model understands without fine-tuning: whether it can distinguish texts or images that differ in one detail,
    retrieve images and texts, classify images, and locate phrases. A suite's files are read in their published form.

    Each example is scored by the cosine of the embeddings, by the matching head, and by the sum of both. Two baselines are shown
    next to each result: the text alone, with a grey image, and the image alone, with the same text for all images. If a baseline
    is far above chance, many examples can be solved without looking at the image, or without reading the text.

    Args:
        suite: the suite to run.
        model: a pre-trained or retrieval model (for RefCOCO, only a pre-trained model): a run's folder, a weight file,
            hub:owner/name, or an export.
        data: folder with the suite's files; if a file is missing, the error says where it is published.
        kinds: kinds of examples, separated by spaces (default: all).
        bootstrap: number of bootstrap draws for the 95% intervals; 0 for no intervals.
        out: folder for receipt.json, table.txt, and all examples with their scores in cases.jsonl.
        overwrite: replace an earlier receipt.json in --out, together with the other two files.

    Examples:
        python run.py benchmark drawn-pairs --model runs/demo/pretrain-seed0 --data data/scenes
    """
    from x2vlm.suites.suite import SEED, as_json, table

    chosen = suite_named(suite)
    if not data.is_dir():
        raise UserError(
            "is not a folder",
            where=f"--data {data}",
            remedy=f"pass the folder with the files of {chosen.title}, see {chosen.published_at}",
        )
    if out is not None and out.exists() and not out.is_dir():
        raise UserError("is a file", where=f"--out {out}", remedy="pass a folder")
    if out is not None and not overwrite and (out / RECEIPT).exists():
        raise UserError(f"contains {RECEIPT}", where=f"--out {out}", remedy="use another folder, or --overwrite")
    content = chosen.read(data, kinds)
    loaded = options.load(model)
    judged = chosen.judge(loaded, content)
    results = chosen.results(judged, draws=bootstrap)
    text = table(chosen, results, judged)
    sys.stdout.write(f"{text}\n")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        from tools.reproduce.identity import code_identity, machine_and_packages

        lines = [json.dumps(example, ensure_ascii=False) for example in judged.examples]
        command = argv_of(
            benchmark,
            suite,
            model=model,
            data=data,
            kinds=kinds,
            bootstrap=bootstrap,
            out=out,
            overwrite=overwrite,
            options=options,
        )
        receipt = {
            "suite": suite,
            "command": shlex.join(["python", "run.py", "benchmark", *command]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": loaded.origin,
            "weights": {**_weights_file(model), "digest": loaded.runtime.weights},
            "device": str(loaded.runtime.device),
            "precision": options.precision,
            "batch_size": options.batch_size,
            "data": str(data),
            "kinds": list(kinds),
            "bootstrap": bootstrap,
            "seed": SEED,
            "files": {name: digest_of(data / name) for name in chosen.files(data, kinds)},
            "examples": len(judged.kinds),
            "examples_sha256": _digest(judged.examples),
            "details": dict(judged.details),
            "notes": chosen.notes(judged),
            **as_json(chosen, results),
            "code": code_identity(),
            "machine": machine_and_packages(),
        }
        (out / RECEIPT).unlink(missing_ok=True)
        write_text(out / CASES, "".join(f"{line}\n" for line in lines))
        write_text(out / TABLE, f"{text}\n")
        write_text(out / RECEIPT, json.dumps(receipt, indent=2) + "\n")
        sys.stdout.write(f"wrote {RECEIPT}, {TABLE} and {CASES} to {out}\n")
    return 0


def _weights_file(model: str) -> dict[str, str]:
    """Returns the path and hash of a local model's weight file. The path of a file in a checkpoint contains the step."""
    path = expanded(model)
    if not path.exists():  # on the Hub
        return {}
    try:
        file = find_weights(path)
    except UserError:  # an export
        return {}
    return {"file": str(file), "sha256": digest_of(file)}


def _digest(examples: Sequence[Mapping[str, Any]]) -> str:
    """Returns a hash of the examples: kinds, image names and texts, in order, but without scores and folders."""
    digest = hashlib.sha256()
    for example in examples:
        images = [Path(image).name for image in example.get("images", [example.get("image", "")])]
        texts = {
            key: example[key]
            for key in ("id", "kind", "part", "boxes", "texts", "class", "phrase", "query")
            if key in example
        }
        digest.update(json.dumps([images, texts], sort_keys=True).encode())
    return digest.hexdigest()
