"""A duel with open_clip in equal CPU time: ``python -m benchmarks.duel``.

All sides learn from the same batches of the demo's scenes, in one process on one thread, in turn: the side that has used the
least CPU time takes the next step. docs/performance.md shows the results.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import altair as alt
import numpy as np
import torch

from benchmarks.duel_sides import CHANGES, DATA, INGREDIENTS, Data, HeldOut, OpenClipSide, OurSide, Parts, Rate, Side
from benchmarks.harness import print_line, write_results
from benchmarks.shapes import probe
from benchmarks.step_memory import process_memory
from tools.reproduce.runs import Seeds
from utils.commands import call
from utils.errors import UserError
from utils.flags import Override, Positive, PositiveReal, one_of, read_by
from utils.progress import progress_bar

MARKS = 8
"""Number of points in time at which retrieval is measured."""

HELD_OUT_SCENES = 500
"""Number of validation scenes whose shapes a linear classifier reads from patches."""


@dataclass
class Clock:
    """The time that a side has used.

    Attributes:
        cpu_s, wall_s: CPU time and wall time of its steps, in seconds.
        curve: retrieval over time.
    """

    cpu_s: float = 0.0
    wall_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    def run(self, side: Side, limit_s: float) -> None:
        """Lets a side take a step."""
        wall, cpu = time.perf_counter(), time.process_time()
        side.step(min(1.0, self.cpu_s / limit_s))
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu


@dataclass(frozen=True)
class Setting:
    """The settings that all sides of a run share.

    Attributes:
        minutes: CPU time of each side.
        seed: seed of the weights and the batches.
        folder: folder for files of the run, which is deleted at its end.
        data: the records.
        shapes: number of training scenes from which a linear classifier learns to read shapes from patches, if any.
        overrides: changes of the config of the data.
    """

    minutes: float
    seed: int
    folder: Path
    data: Data
    shapes: int | None = None
    overrides: tuple[str, ...] = ()


def side_of(name: str, rate: Rate, setting: Setting) -> Side:
    """Builds a side. ``open_clip + A + B`` is open_clip with the changes A and B.

    Raises:
        UserError: if there is no such side.
    """
    if name in INGREDIENTS:
        folder = setting.folder / name.replace(", ", "-")
        # Each side pays for its own cache of features.
        cache = [f"optim.freeze.cache.folder={folder}/features"] if setting.data.has_cache else []
        return OurSide(name, setting.data.config, rate, setting.seed, folder, [*cache, *setting.overrides])
    base, *changes = name.split(" + ")
    unknown = [change for change in changes if change not in CHANGES]
    if base != "open_clip" or unknown:
        raise UserError(
            f"{name!r} is not a side",
            remedy=f"use open_clip, one of {list(INGREDIENTS)}, or `open_clip + CHANGE` with a change of {list(CHANGES)}",
        )
    parts = Parts()
    for change in changes:
        parts |= CHANGES[change]
    return OpenClipSide(name, setting.data.config, rate, setting.seed, parts, setting.overrides)


def run(rates: dict[str, Rate], setting: Setting) -> dict[str, Any]:
    """Trains all sides for the same CPU time, in turn, and evaluates them. Returns the results by side."""
    sides = {name: side_of(name, rate, setting) for name, rate in rates.items()}
    any_side = next(iter(sides.values()))
    held_out = {
        split: HeldOut(setting.data, split, any_side.config, any_side.task.model, any_side.processor)
        for split in ("val", "test")
    }
    clocks = {name: Clock() for name in sides}
    limit_s = 60 * setting.minutes
    with progress_bar(total=round(limit_s * len(sides)), desc=f"seed {setting.seed}", unit="s") as progress:
        while True:
            name, clock = min(clocks.items(), key=lambda each: each[1].cpu_s)
            if clock.cpu_s >= limit_s:
                break
            before = clock.cpu_s
            clock.run(sides[name], limit_s)
            progress.update(round(clock.cpu_s) - round(before))
            if int(MARKS * clock.cpu_s / limit_s) > len(clock.curve):
                image, text = (float((ranks < 1).mean()) for ranks in sides[name].cosine_ranks(held_out["test"]))
                clock.curve.append({"cpu_s": clock.cpu_s, "image to text": image, "text to image": text})
    return {name: results_of(side, clocks[name], held_out, setting) for name, side in sides.items()}


def results_of(side: Side, clock: Clock, held_out: dict[str, HeldOut], setting: Setting) -> dict[str, Any]:
    """Evaluates a side at the end of its time, on both splits."""
    found: dict[str, Any] = {"rate": asdict(side.rate), "parameters": side.parameters, "steps": side.steps}
    found |= {"cpu_s": clock.cpu_s, "wall_s": clock.wall_s, "curve": clock.curve}
    for split, records in held_out.items():
        ranks = {"cosine": side.cosine_ranks(records), **side.reranked(records)}
        found[split] = {
            "ranks": {score: [each.tolist() for each in both] for score, both in ranks.items()},
            "others": side.accuracies(records),
        }
    if setting.shapes:
        side.model.eval()
        shape, colour = probe(side.patches, side.patch_size, setting.shapes, HELD_OUT_SCENES, setting.seed)
        found["read from patches"] = {"shape": shape, "colour": colour}
    return found


def chosen_rates(output: Path, sides: tuple[str, ...]) -> dict[str, Rate]:
    """Returns the rate of each side with the best retrieval of validation scenes in the grid.

    Raises:
        UserError: if the grid lacks a side.
    """
    found: dict[str, list[tuple[float, Rate]]] = {name: [] for name in sides}
    for path in sorted((output / "grid").glob("*.json")):
        for name, result in read_results(path)["sides"].items():
            if name in found:
                found[name].append((best_score(result)[1], Rate(**result["rate"])))
    for name in sides:
        if not found[name]:
            raise UserError(
                f"{output}: no learning rate has been chosen for {name}",
                remedy=f"run python -m benchmarks.duel grid --output {output} first",
            )
    return {name: max(found[name], key=lambda each: each[0])[1] for name in sides}


def best_score(result: dict[str, Any]) -> tuple[str, float]:
    """Returns the score with the best retrieval of validation scenes, and the R@1 averaged over both directions."""
    recalls = {score: recall(ranks) for score, ranks in result["val"]["ranks"].items()}
    return max(recalls.items(), key=lambda each: each[1])


def recall(ranks: list[list[int]]) -> float:
    """Returns R@1 averaged over both directions."""
    return float(np.mean([np.mean(np.array(each) < 1) for each in ranks]))


def read_results(path: Path) -> dict[str, Any]:
    """Reads the results of a run."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def save_run(path: Path, rates: dict[str, Rate], setting: Setting) -> None:
    """Runs the sides and writes their results, unless the file exists."""
    if path.exists():
        print_line(f"{path} exists")
        return
    facts = {name: version(name) for name in ("open-clip-torch", "torch")} | {"date": time.strftime("%Y-%m-%d")}
    started = time.perf_counter()
    sides = run(rates, setting)
    shutil.rmtree(setting.folder, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_results(path, {"minutes": setting.minutes, "seed": setting.seed, "facts": facts, "sides": sides})
    for name, result in sides.items():
        score, value = best_score(result)
        test = ", ".join(f"{key} {recall(ranks):.1%}" for key, ranks in result["test"]["ranks"].items())
        print_line(f"{path.stem}: {name}: {result['steps']} steps, val {value:.1%} ({score}), test {test}")
    print_line(f"{path} after {(time.perf_counter() - started) / 60:.1f} minutes")


def peak_memory(name: str, rate: Rate, setting: Setting) -> int:
    """Returns the peak memory in bytes of a process that takes ten steps of a side."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_memory_of_steps, name, rate, setting).result()


def _memory_of_steps(name: str, rate: Rate, setting: Setting) -> int:
    torch.set_num_threads(1)
    side = side_of(name, rate, setting)
    for _ in range(10):
        side.step(0.5)
    return process_memory("VmHWM")  # getrusage would also count the process that started this one


def hits_of(result: dict[str, Any]) -> np.ndarray:
    """Returns, for each test scene, the share of the two directions whose first result is right, by the score that is best on
    validation scenes."""
    ranks = result["test"]["ranks"][best_score(result)[0]]
    return np.mean([np.array(each) < 1 for each in ranks], axis=0)


def paired_interval(differences: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """Returns the 95% interval of the mean of ``differences`` (seeds, scenes). Seeds and scenes are resampled."""
    rng = np.random.default_rng(0)
    seeds, scenes = differences.shape
    means = [
        differences[rng.integers(seeds, size=seeds)][:, rng.integers(scenes, size=scenes)].mean() for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def table(folder: Path) -> str:
    """Returns a Markdown table of all runs in a folder, which have the same time, and the differences between the sides: to
    open_clip, and to the contrastive loss alone."""
    runs = [read_results(path)["sides"] for path in sorted(folder.glob("seed*.json"))]
    names = list(runs[0])
    rows = [_row(name, [run[name] for run in runs]) for name in names]
    columns = list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(column, "") for column in columns) + " |" for row in rows]
    for base in ("open_clip", "contrastive"):
        for name in names[names.index(base) + 1 :] if base in names else []:
            differences = np.stack([hits_of(run[name]) - hits_of(run[base]) for run in runs])
            low, high = paired_interval(differences)
            lines.append(
                f"\n{name} minus {base}: {100 * differences.mean():+.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
            )
    return "\n".join(lines)


def _row(name: str, results: list[dict[str, Any]]) -> dict[str, str]:
    """Returns the cells of a side, by column: means over seeds."""

    def mean(values: Iterable[Any]) -> float:
        return float(np.mean(list(values)))

    scores = list(results[0]["test"]["ranks"])
    chosen = [best_score(result) for result in results]
    cells = {"": name, "lr": f"{results[0]['rate']['lr']:g}", "warm-up": f"{results[0]['rate']['warm_up']:g}"}
    cells["steps"] = f"{mean(result['steps'] for result in results):,.0f}"
    for score in scores:
        image, text = (mean(np.mean(np.array(r["test"]["ranks"][score][way]) < 1) for r in results) for way in (0, 1))
        cells[f"R@1 {score}"] = f"{100 * image:.1f} / {100 * text:.1f}"
    cells["median rank"] = f"{mean(np.median(result['test']['ranks']['cosine']) + 1 for result in results):g}"
    cells["chosen on val"] = ", ".join(dict.fromkeys(score for score, _ in chosen))
    cells["R@1 chosen"] = f"{100 * mean(hits_of(result).mean() for result in results):.1f}"
    for kind in results[0]["test"]["others"]:
        cells[kind] = f"{100 * mean(result['test']['others'][kind] for result in results):.1f}"
    for what in results[0].get("read from patches", {}):
        cells[f"{what} read from patches"] = f"{100 * mean(r['read from patches'][what] for r in results):.1f}"
    return cells


def draw(folders: Sequence[Path], path: Path) -> None:
    """Draws the retrieval of all sides over time, with a panel for each folder of runs and a line for each side: R@1 by cosine,
    averaged over both directions and seeds."""
    rows = [
        {
            "time": f"{results['minutes']:g} minutes each",
            "side": name,
            "CPU minutes": round(point["cpu_s"] / 60 / (results["minutes"] / MARKS)) * results["minutes"] / MARKS,
            "R@1": (point["image to text"] + point["text to image"]) / 2,
        }
        for folder in folders
        for file in sorted(folder.glob("seed*.json"))
        for results in [read_results(file)]
        for name, side in results["sides"].items()
        for point in side["curve"]
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("CPU minutes:Q"),
            y=alt.Y("mean(R@1):Q", axis=alt.Axis(format="%"), title="R@1 by cosine, 200 held-out scenes"),
            color=alt.Color("side:N", title=None, sort=list(dict.fromkeys(row["side"] for row in rows))),
        )
        .properties(width=320, height=260)
        .facet(column=alt.Column("time:N", title=None, sort=list(dict.fromkeys(row["time"] for row in rows))))
        .resolve_scale(x="independent")
    )
    chart.save(str(path), scale_factor=2)


NAMES = read_by(lambda text: tuple(text.split(";")), n_tokens=1)
NUMBERS = read_by(lambda text: tuple(map(float, text.split(","))), n_tokens=1)


def main(
    what: Annotated[str, read_by(one_of(["grid", "run", "table", "memory"]))],
    /,
    *overrides: Override,
    sides: Annotated[tuple[str, ...], NAMES] = ("open_clip", "contrastive", "everything"),
    minutes: PositiveReal = 4,
    seeds: Seeds = (0, 1, 2),
    lr: Annotated[tuple[float, ...], NUMBERS] = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3),
    warm_up: Annotated[tuple[float, ...], NUMBERS] = (0.05, 0.33),
    data: Literal["scenes", "real"] = "scenes",
    records: str | None = None,
    shapes: Positive | None = None,
    output: Path = Path("runs/duel"),
) -> int:
    """Compares open_clip with this project at equal CPU time: from scratch on the demo's scenes (make scenes), or with the
    pre-trained encoders and pictures of make real.

    "grid" chooses the peak learning rate and the warm-up of each side on validation scenes: first the rate, then the warm-up at
    this rate. "run" trains all sides with each seed, at the chosen rates, or at --lr and --warm-up if each of them has one value.
    "table" prints the results of all runs in the output folder. Finished runs are not repeated, so the commands can be
    interrupted. "memory" prints the peak memory of a process that takes ten steps of a side.

    Args:
        what: grid, run, table or memory.
        overrides: values of configs/demo/pretrain.yaml or configs/real/pretrain.yaml to override for all sides.
        sides: names of the sides, separated by semicolons.
        minutes: CPU time of each side.
        seeds: seeds of the runs.
        lr: peak learning rates of the grid.
        warm_up: other shares of the time until the peak is reached than the 0.17 of the first runs.
        data: the data to learn and to compare.
        records: folder of the held-out records. Default: that of the data.
        shapes: also fit linear classifiers of shapes and colours to the patches of this many training scenes (benchmarks.shapes).
        output: folder of the results.

    Examples:
        python -m benchmarks.duel grid
        python -m benchmarks.duel run --minutes 4
        python -m benchmarks.duel run --sides "open_clip + our text encoder;contrastive" --lr 5e-4 --warm-up 0.33
    """
    torch.set_num_threads(1)

    held_out = replace(DATA[data], folder=records or DATA[data].folder)

    def run_all(path: Path, rates: dict[str, Rate], seed: int) -> None:
        save_run(path, rates, Setting(minutes, seed, path.with_suffix(""), held_out, shapes, overrides))

    if what == "grid":
        for rate in lr:
            run_all(output / "grid" / f"lr{rate:g}.json", {name: Rate(rate, 0.17) for name in sides}, 0)
        best = chosen_rates(output, sides)
        for share in warm_up:
            run_all(
                output / "grid" / f"warm_up{share:g}.json",
                {name: replace(rate, warm_up=share) for name, rate in best.items()},
                0,
            )
    elif what == "memory":
        for name in sides:
            memory = peak_memory(
                name, Rate(lr[0], 0.5), Setting(minutes, 0, output / "memory", held_out, None, overrides)
            )
            print_line(f"{name}: {memory / 1e9:.2f} GB")
    elif what == "run":
        given = len(lr) == len(warm_up) == 1
        rates = {name: Rate(lr[0], warm_up[0]) for name in sides} if given else chosen_rates(output, sides)
        for seed in seeds or (0,):
            run_all(output / f"{minutes:g}min" / f"seed{seed}.json", rates, seed)
    else:
        folders = sorted(output.glob("*min"), key=lambda folder: float(folder.name.removesuffix("min")))
        for folder in folders:
            print_line(f"\n{folder.name.removesuffix('min')} minutes of CPU time for each side\n\n{table(folder)}")
        draw(folders, output / "duel.png")
        print_line(f"\n{output / 'duel.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.duel"))
