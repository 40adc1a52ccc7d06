"""``python run.py benchmark SUITE``: measure compositional understanding by the official files of a suite."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from commands.models import ModelFlags
from utils.errors import UserError
from utils.flags import SEVERAL, ModelName, read_by, whole_number
from utils.progress import progress_bar
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
    """Measure how well a model tells apart texts, or images, that differ in one fact. The files of a suite are read as they are
    published.

    Each case is scored by the cosine of the embeddings, by the matching head, and by both. Two baselines stand next to each
    result: the text alone with a grey image, and the image alone with one text for all. If a baseline is far above chance, the
    suite can be solved without looking.

    Args:
        suite: what to measure.
        model: a model of task pretrain or retrieval: a run's folder, a weight file, hub:owner/name, or an export.
        data: folder with the files of the suite; if any is missing, the message says where it is published.
        kinds: kinds of cases (default: all).
        bootstrap: draws of the 95 % intervals, 0 for none.
        out: folder for receipt.json, table.txt and the scores of all cases in cases.jsonl.

    Examples:
        python run.py benchmark drawn-pairs --model runs/demo/pretrain --data data/scenes
    """
    from x2vlm.suites.results import as_json, results_of, table
    from x2vlm.suites.scoring import missing_pictures, score_cases

    chosen = suite_named(suite)
    if not data.is_dir():
        raise UserError(
            f"--data {data}: is not a folder; give the one with the files of {chosen.title}, {chosen.published_at}"
        )
    cases = chosen.read(data)
    known = list(dict.fromkeys(case.kind for case in cases))
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UserError(f"--kinds {unknown[0]}: {chosen.title} has no such kind; kinds are {', '.join(known)}")
    cases = [case for case in cases if not kinds or case.kind in kinds]
    if missing := missing_pictures(cases):
        raise UserError(
            f"--data {data}: {len(missing):,} images of {chosen.title} are missing, such as {missing[0]}; see {chosen.published_at}"
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    loaded = options.load(model)
    with progress_bar(total=len(cases), desc="cases", unit="case") as bar:
        scores = score_cases(loaded, cases, bar)
    results = results_of(chosen, cases, scores, draws=bootstrap)
    text = table(chosen, results, len(cases))
    sys.stdout.write(f"{text}\n")
    if out is not None:
        receipt = {
            "model": loaded.origin,
            "weights": loaded.runtime.weights,
            "cases": len(cases),
            **as_json(chosen, results),
        }
        (out / RECEIPT).write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
        (out / TABLE).write_text(f"{text}\n", encoding="utf-8")
        with (out / CASES).open("w", encoding="utf-8") as lines:
            for index, case in enumerate(cases):
                of_case = {score: each[index].round(5).tolist() for score, each in scores["model"].items()}
                images = [str(picture.path) for picture in case.pictures]
                line = {"kind": case.kind, "images": images, "texts": case.texts, "scores": of_case}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stdout.write(f"wrote {RECEIPT}, {TABLE} and {CASES} to {out}\n")
    return 0
