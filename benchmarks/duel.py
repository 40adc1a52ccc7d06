"""A duel with open_clip in equal CPU time: ``python -m benchmarks.duel``.

All sides learn from the same batches, in one process on one thread, in turn: the side that has used the least CPU time takes the
next step. docs/performance.md shows the results.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import altair as alt
import numpy as np
import torch

from benchmarks.duel_sides import (
    DATA,
    INGREDIENTS,
    OPEN_CLIP,
    Data,
    HeldOut,
    OpenClipSide,
    OurSide,
    Rate,
    Side,
    check_sides,
)
from benchmarks.harness import print_line, write_results
from benchmarks.shapes import probe
from benchmarks.step_memory import process_memory
from metrics.bootstrap import paired_interval
from tools.reproduce.runs import Seeds
from utils.commands import call
from utils.errors import UserError
from utils.files import read_json
from utils.flags import Override, Positive, PositiveReal, one_of, read_by
from utils.progress import progress_bar

FIRST_WARM_UP = 0.17
"""Share of the time until the peak of the learning rate, while the rate itself is chosen."""

MARKS = 8
"""Number of points in time at which retrieval is measured."""

HELD_OUT_SCENES = 500
"""Number of validation scenes whose shapes a linear classifier reads from patches."""


@dataclass(frozen=True)
class Setting:
    """The settings that all sides of a run share.

    Attributes:
        minutes: CPU time of each side.
        seed: seed of the weights and the batches.
        data: name of the records.
        records: folder of the held-out records; None: as in the data.
        shapes: number of training scenes from which a linear classifier learns to read shapes from patches, if any.
        overrides: changes of the config of the data.
    """

    minutes: float
    seed: int
    data: str = "scenes"
    records: str | None = None
    shapes: int | None = None
    overrides: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """The settings as they are read from a JSON file."""
        return asdict(self) | {"overrides": list(self.overrides)}

    @property
    def records_and_config(self) -> Data:
        """The data of these settings."""
        data = DATA[self.data]
        overrides = (*data.overrides, *self.overrides)
        return replace(data, folder=self.records or data.folder, overrides=overrides)


def side_of(name: str, rate: Rate, setting: Setting, folder: Path) -> Side:
    """Builds a side, whose files are in ``folder``. ``open_clip + A + B`` is open_clip with the changes A and B."""
    common = (
        name,
        setting.records_and_config,
        (),
        rate,
        setting.seed,
        folder / name.replace(", ", "-").replace(" ", "_"),
    )
    return OurSide(*common) if name in INGREDIENTS else OpenClipSide(*common, name.split(" + ")[1:])


def run(rates: dict[str, Rate], setting: Setting, folder: Path, *, choosing: bool = False) -> dict[str, Any]:
    """Trains all sides for the same CPU time, in turn, and evaluates them. Returns the results by side.

    Args:
        rates: the learning rate of each side.
        setting: the settings of all sides.
        folder: folder for the files of all sides.
        choosing: only evaluate validation records, at the end, to choose a rate.
    """
    sides = [side_of(name, rate, setting, folder) for name, rate in rates.items()]
    data = setting.records_and_config
    splits = ("val",) if choosing else ("val", "test")
    held_out = {split: HeldOut(data, split, data.load(f"seed={setting.seed}"), sides[0]) for split in splits}
    limit_s = 60 * setting.minutes
    with progress_bar(total=round(limit_s * len(sides)), desc=f"seed {setting.seed}", unit="s") as progress:
        while (side := min(sides, key=lambda each: each.cpu_s)).cpu_s < limit_s:
            before = side.cpu_s
            wall, cpu = time.perf_counter(), time.process_time()
            side.step(before / limit_s)
            side.steps += 1
            side.wall_s += time.perf_counter() - wall
            side.cpu_s += time.process_time() - cpu
            progress.update(round(side.cpu_s) - round(before))
            if not choosing and int(MARKS * side.cpu_s / limit_s) > len(side.curve):
                image, text = (float((ranks < 1).mean()) for ranks in side.cosine_ranks(held_out["val"]))
                side.curve.append({"cpu_s": side.cpu_s, "image to text": image, "text to image": text})
    return {side.name: results_of(side, held_out, setting) for side in sides}


def results_of(side: Side, held_out: dict[str, HeldOut], setting: Setting) -> dict[str, Any]:
    """Evaluates a side at the end of its time, on each split of ``held_out``."""
    found: dict[str, Any] = {"rate": asdict(side.rate), "parameters": side.parameters, "steps": side.steps}
    found |= {"cpu_s": side.cpu_s, "wall_s": side.wall_s, "curve": side.curve}
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


def grid_of(output: Path, name: str, setting: Setting) -> list[tuple[float, Rate]]:
    """Returns the retrieval of validation records of a side in the grid, with its rates.

    Raises:
        UserError: if the grid was made with other data.
    """
    found = []
    for path in sorted((output / "grid").glob("*.json")):
        results = read_json(path)
        check_setting(path, results["setting"], setting.values, ignored=("minutes", "seed", "shapes"))
        found.append(results["sides"].get(name))
    return [(best_score(side)[1], Rate(**side["rate"])) for side in found if side]


def chosen_rates(
    output: Path, sides: tuple[str, ...], setting: Setting, warm_up: float | None = None
) -> dict[str, Rate]:
    """Returns the rate of each side with the best retrieval of validation records in the grid, among those with a warm-up, if
    given. Sides of this project that are not in the grid have the rate of "everything".

    Raises:
        UserError: if the grid lacks a side.
    """
    chosen = {}
    for name in sides:
        in_grid = grid_of(output, name, setting)
        if not in_grid and name in INGREDIENTS:
            in_grid = grid_of(output, "everything", setting)
        found = [(score, rate) for score, rate in in_grid if warm_up in (None, rate.warm_up)]
        if not found:
            raise UserError(
                f"{output}: no learning rate has been chosen for {name}",
                remedy=f"run python -m benchmarks.duel grid --output {output} --sides {name!r} first",
            )
        chosen[name] = max(found, key=lambda each: each[0])[1]
    return chosen


def given_rates(sides: tuple[str, ...], lr: Sequence[float] | None, warm_up: Sequence[float] | None) -> dict[str, Rate]:
    """Returns the same rate for all sides.

    Raises:
        UserError: unless the flags give one learning rate and one warm-up.
    """
    if lr is None or warm_up is None or len(lr) * len(warm_up) != 1:
        raise UserError("run takes one learning rate and one warm-up, or neither", remedy="pass --lr X --warm-up Y")
    return dict.fromkeys(sides, Rate(lr[0], warm_up[0]))


def edges(output: Path, name: str, rate: Rate, setting: Setting) -> str:
    """Returns a remark if the best value lies on an edge of the grid, so that another value may be better."""
    tried = [each for _, each in grid_of(output, name, setting)]
    ends = {
        "lr": rate.lr in (min(each.lr for each in tried), max(each.lr for each in tried)),
        "warm-up": rate.warm_up in (min(each.warm_up for each in tried), max(each.warm_up for each in tried)),
    }
    found = [what for what, at_end in ends.items() if at_end]
    return f" ({' and '.join(found)} on an edge of the grid)" if found else ""


def best_score(result: dict[str, Any]) -> tuple[str, float]:
    """Returns the score with the best retrieval of validation scenes, and the R@1 averaged over both directions."""
    recalls = {score: recall(ranks) for score, ranks in result["val"]["ranks"].items()}
    return max(recalls.items(), key=lambda each: each[1])


def recall(ranks: list[list[int]]) -> float:
    """Returns R@1 averaged over both directions."""
    return float(np.mean([np.mean(np.array(each) < 1) for each in ranks]))


def check_setting(path: Path, saved: dict[str, Any], expected: dict[str, Any], ignored: Collection[str] = ()) -> None:
    """Raises :class:`UserError` if the results in a file have other settings than expected, apart from the ``ignored`` ones."""
    for name, value in expected.items():
        if name not in ignored and saved.get(name) != value:
            raise UserError(
                f"{path} was made with {name} {saved.get(name)}, not {value}",
                remedy="choose another --output, or delete the file",
            )


def check_rate(path: Path, name: str, saved: Rate, expected: Rate) -> None:
    """Raises :class:`UserError` if the results of a side in a file have another learning rate or warm-up than expected."""
    if saved != expected:
        raise UserError(
            f"{path}: {name} was trained with lr {saved.lr:g} and warm-up {saved.warm_up:g}, not {expected.lr:g} and "
            f"{expected.warm_up:g}",
            remedy="choose another --output, or delete the file",
        )


def versions() -> dict[str, str]:
    """Returns the versions of torch and, if it is installed, of open_clip."""
    found = {"torch": version("torch")}
    with contextlib.suppress(PackageNotFoundError):
        found["open_clip"] = version("open-clip-torch")
    return found


def save_run(path: Path, rates: dict[str, Rate], setting: Setting, *, choosing: bool = False) -> None:
    """Runs the sides that the file lacks, and adds their results to it. For ``choosing``, see :func:`run`.

    Raises:
        UserError: if the file is from other settings or rates.
    """
    results: dict[str, Any] = {"setting": setting.values, "runs": [], "sides": {}}
    if path.exists():
        results = read_json(path)
        check_setting(path, results["setting"], setting.values)
        for name, side in results["sides"].items():
            if name in rates:
                check_rate(path, name, Rate(**side["rate"]), rates[name])
    missing = {name: rate for name, rate in rates.items() if name not in results["sides"]}
    if not missing:
        print_line(f"{path} is complete")
        return
    started, folder = time.perf_counter(), path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)  # features that an interrupted run has cached
    sides = run(missing, setting, folder, choosing=choosing)
    shutil.rmtree(folder, ignore_errors=True)
    results["runs"].append({"sides": list(missing), "date": time.strftime("%Y-%m-%d"), **versions()})
    results["sides"] |= sides
    path.parent.mkdir(parents=True, exist_ok=True)
    write_results(path, results)
    for name, result in sides.items():
        score, value = best_score(result)
        print_line(f"{path.stem}: {name}: {result['steps']} steps, R@1 on val {value:.1%} ({score})")
    print_line(f"{path} after {(time.perf_counter() - started) / 60:.1f} minutes")


def peak_memory(name: str, rate: Rate, setting: Setting, folder: Path) -> int:
    """Returns the peak memory in bytes of a process that takes ten steps of a side."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_memory_of_steps, name, rate, setting, folder).result()


def _memory_of_steps(name: str, rate: Rate, setting: Setting, folder: Path) -> int:
    torch.set_num_threads(1)
    side = side_of(name, rate, setting, folder)
    for _ in range(10):
        side.step(0.5)
    return process_memory("VmHWM")  # getrusage would also count the process that started this one


def hits_of(result: dict[str, Any]) -> np.ndarray:
    """Returns, for each test scene, the share of the two directions whose first result is right, by the score that is best on
    validation scenes."""
    ranks = result["test"]["ranks"][best_score(result)[0]]
    return np.mean([np.array(each) < 1 for each in ranks], axis=0)


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """Reads the results of all seeds in a folder, by side.

    Raises:
        UserError: if their settings or rates differ.
    """
    paths = sorted(folder.glob("seed*.json"))
    found = [read_json(path) for path in paths]
    rates: dict[str, Rate] = {}
    for path, results in zip(paths, found, strict=True):
        check_setting(path, results["setting"], found[0]["setting"], ignored=("seed",))
        for name, side in results["sides"].items():
            rate = Rate(**side["rate"])
            check_rate(path, name, rate, rates.setdefault(name, rate))
    return [results["sides"] for results in found]


def table(runs: Sequence[dict[str, Any]], sides: Sequence[str]) -> str:
    """Returns a Markdown table of runs of equal time with different seeds, and the differences between the sides: to the first
    side of open_clip, and to the contrastive loss alone. Sides that are not in all runs are skipped, which a last line says."""
    names = [name for name in sides if all(name in run for run in runs)]
    rows = [_row(name, [run[name] for run in runs]) for name in names]
    columns = list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(column, "") for column in columns) + " |" for row in rows]
    of_open_clip = [name for name in names if name.split(" + ")[0] == OPEN_CLIP]
    bases = [*of_open_clip[:1], *(name for name in names if name == "contrastive")]
    for base in bases:
        for name in names:
            if name in bases[: bases.index(base) + 1]:
                continue
            differences = np.stack([hits_of(run[name]) - hits_of(run[base]) for run in runs])
            low, high = paired_interval(differences)
            by_seed = ", ".join(f"{100 * seed.mean():+.1f}" for seed in differences)
            lines.append(
                f"\n{name} minus {base}: {100 * differences.mean():+.1f} points [{100 * low:.1f}, {100 * high:.1f}], "
                f"by seed {by_seed}"
            )
    if skipped := [name for name in sides if name not in names]:
        lines.append(f"\nnot in all runs: {', '.join(skipped)}")
    return "\n".join(lines)


def _row(name: str, results: list[dict[str, Any]]) -> dict[str, str]:
    """Returns the cells of a side, by column: means over seeds."""

    def mean(values: Iterable[Any]) -> float:
        return float(np.mean(list(values)))

    scores = list(results[0]["test"]["ranks"])
    chosen = [best_score(result) for result in results]
    cells = {"": name, "lr": f"{results[0]['rate']['lr']:g}", "warm-up": f"{results[0]['rate']['warm_up']:g}"}
    cells["steps"] = f"{mean(result['steps'] for result in results):,.0f}"
    cells["wall time (s)"] = f"{mean(result['wall_s'] for result in results):,.0f}"
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


def draw(folders: Sequence[Path], sides: Sequence[str], path: Path) -> None:
    """Draws the retrieval of some sides over time, with a panel for each folder of runs and a line for each side: R@1 by cosine,
    averaged over both directions and seeds."""
    rows = [
        {
            "time": f"{minutes:g} min each",
            "side": name,
            "CPU minutes": round(point["cpu_s"] / 60 / (minutes / MARKS)) * minutes / MARKS,
            "R@1": (point["image to text"] + point["text to image"]) / 2,
        }
        for folder in folders
        for file in sorted(folder.glob("seed*.json"))
        for results in [read_json(file)]
        for minutes in [results["setting"]["minutes"]]
        for name in sides
        for point in results["sides"].get(name, {"curve": []})["curve"]
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("CPU minutes:Q"),
            y=alt.Y("mean(R@1):Q", axis=alt.Axis(format="%"), title="R@1 by cosine, validation records"),
            color=alt.Color("side:N", title=None, sort=list(sides), legend=alt.Legend(orient="bottom", labelLimit=0)),
        )
        .properties(width=320, height=260)
        .facet(column=alt.Column("time:N", title=None, sort=list(dict.fromkeys(row["time"] for row in rows))))
        .resolve_scale(x="independent")
    )
    chart.save(str(path), scale_factor=2)


NAMES = read_by(lambda text: tuple(name.strip() for name in text.split(";") if name.strip()), n_tokens=1)
NUMBERS = read_by(lambda text: tuple(map(float, text.split(","))), n_tokens=1)


def main(
    what: Annotated[str, read_by(one_of(["grid", "run", "table", "memory"]))],
    /,
    *overrides: Override,
    sides: Annotated[tuple[str, ...], NAMES] = (OPEN_CLIP, "contrastive", "everything"),
    minutes: PositiveReal = 4,
    seeds: Seeds = (0, 1, 2),
    lr: Annotated[tuple[float, ...] | None, NUMBERS] = None,
    warm_up: Annotated[tuple[float, ...] | None, NUMBERS] = None,
    data: Literal["scenes", "real"] = "scenes",
    records: str | None = None,
    shapes: Positive | None = None,
    output: Path = Path("runs/duel"),
) -> int:
    """Compares open_clip with this project at equal CPU time: from scratch on the demo's scenes (make scenes), or with the
    pre-trained encoders and pictures of make real.

    "grid" chooses the peak learning rate and the warm-up of each side on validation records: first the rate, with a warm-up of
    17% of the time, then the warm-up at this rate. "run" trains all sides with each seed, at the chosen rates, or at --lr and
    --warm-up. Finished seeds are not repeated; a seed that was interrupted starts again. "table" prints and draws the results of
    these sides in the output folder. "memory" prints the peak memory of a process that takes ten steps of a side.

    Args:
        what: grid, run, table or memory.
        overrides: values of configs/demo/pretrain.yaml or configs/real/pretrain.yaml to override for all sides.
        sides: names of the sides, separated by semicolons: open_clip, `contrastive`, `everything`, other combinations of losses,
            and open_clip with changes. An unknown name lists them all.
        minutes: CPU time of each side.
        seeds: seeds of the runs.
        lr: peak learning rates, separated by commas. Default of grid: 1.25e-4, 2.5e-4, 5e-4, 1e-3 and 2e-3.
        warm_up: shares of the time until the peak is reached. Default of grid: 0.05, 0.33 and 0.5, besides 0.17.
        data: the training and held-out records.
        records: folder of the held-out records (default: the folder that belongs to --data).
        shapes: also fit linear classifiers of shapes and colours to the patches of this many training scenes (benchmarks.shapes).
        output: folder of the results.

    Examples:
        python -m benchmarks.duel grid
        python -m benchmarks.duel run --minutes 4
        python -m benchmarks.duel run --sides "open_clip + stem of convolutions;contrastive" --lr 5e-4 --warm-up 0.33
    """
    torch.set_num_threads(1)
    if shapes and data == "real":
        raise UserError("--shapes reads shapes from drawn scenes", remedy="leave it out, or use --data scenes")
    check_sides(sides, DATA[data])
    if wrong := [rate for rate in lr or () if not rate > 0]:
        raise UserError(f"--lr {wrong[0]:g} is not a learning rate", remedy="use values above 0")
    if wrong := [share for share in warm_up or () if not 0 < share < 1]:
        raise UserError(f"--warm-up {wrong[0]:g} is not a share of the time", remedy="use values between 0 and 1")

    def setting_of(seed: int) -> Setting:
        return Setting(minutes, seed, data, records, shapes, overrides)

    if what == "grid":
        for peak in lr or (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3):
            first = {name: Rate(peak, FIRST_WARM_UP) for name in sides}
            save_run(output / "grid" / f"lr{peak:g}.json", first, setting_of(0), choosing=True)
        best = chosen_rates(output, sides, setting_of(0), FIRST_WARM_UP)
        for share in warm_up or (0.05, 0.33, 0.5):
            if share == FIRST_WARM_UP:
                continue
            shared = {name: replace(rate, warm_up=share) for name, rate in best.items()}
            save_run(output / "grid" / f"warm_up{share:g}.json", shared, setting_of(0), choosing=True)
        for name, rate in chosen_rates(output, sides, setting_of(0)).items():
            print_line(f"{name}: lr {rate.lr:g}, warm-up {rate.warm_up:g}{edges(output, name, rate, setting_of(0))}")
    elif what == "memory":
        for name in sides:
            memory = peak_memory(name, Rate(1e-4, 0.5), setting_of(0), output / "memory")
            print_line(f"{name}: {memory / 1e9:.2f} GB")
    elif what == "run":
        chosen = lr is warm_up is None
        rates = chosen_rates(output, sides, setting_of(0)) if chosen else given_rates(sides, lr, warm_up)
        for seed in seeds or (0,):
            save_run(output / f"{minutes:g}min" / f"seed{seed}.json", rates, setting_of(seed))
    else:
        folders = sorted(output.glob("*min"), key=lambda folder: float(folder.name.removesuffix("min")))
        runs_by_folder = {folder: runs for folder in folders if (runs := runs_in(folder))}
        if not runs_by_folder:
            raise UserError(f"{output} has no runs", remedy="run python -m benchmarks.duel run first")
        for folder, runs in runs_by_folder.items():
            print_line(f"\n{folder.name.removesuffix('min')} minutes of CPU time for each side\n\n{table(runs, sides)}")
        draw(folders, sides, output / "duel.png")
        print_line(f"\n{output / 'duel.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.duel"))
