"""``run.py report``: runs that differ only in their seed, and the verdict, compared with hand-computed values."""

from __future__ import annotations

import json

import pytest

from tests.messages import OneLine
from tests.tasks.conftest import data, overrides  # noqa: F401 (fixtures)
from tests.tools.report_runs import charts_of, event_lines, make_run, points_of, report, rows_with, section  # noqa: F401 (fixture)
from tools.report.groups import Spread, grouped
from tools.report.verdict import Side, gap, verdicts
from tools.runs.reading import read_runs
from utils.events import Validated


def side(*values: float, **known) -> Side:
    return Side("a", 0, Spread.of(values), **known)


def test_a_spread_is_a_mean_and_a_standard_deviation():
    assert Spread.of([]) is None
    assert Spread.of([0.5]) == Spread(0.5, None, 1)
    spread = Spread.of([1.0, 2.0, 6.0])
    assert (spread.mean, spread.deviation, spread.count) == (3.0, pytest.approx(7**0.5), 3)  # (4 + 1 + 9) / 2


def test_seeds_on_both_sides_are_compared_by_their_spread():
    # Both deviations are 0.02, so the standard error is 0.02 * sqrt(2 / 3) = 0.01633. With 4 degrees of freedom, t is 2.776.
    found = gap(side(0.60, 0.62, 0.64, half_interval=0.9), side(0.50, 0.52, 0.54, half_interval=0.9))
    assert (found.noise, found.clear) == ("seeds", True)
    assert found.difference == pytest.approx(0.1) and found.margin == pytest.approx(0.04534, abs=1e-5)
    assert gap(side(0.60, 0.62, 0.64), side(0.58, 0.60, 0.62)).clear is False
    assert gap(side(0.6, 0.6), side(0.5, 0.5)).clear is True
    # The deviations are 0.01 and 0.03 over 2 and 3 seeds. The standard error is sqrt(0.0001 / 2 + 0.0009 / 3) = 0.018708, the
    # degrees of freedom are 0.00035² / (0.00005² + 0.0003² / 2) = 2.5789, and t is 3.4939.
    uneven = gap(side(0.8 - 0.01 / 2**0.5, 0.8 + 0.01 / 2**0.5), side(0.67, 0.70, 0.73))
    assert uneven.margin == pytest.approx(0.018708 * 3.4939, abs=2e-4)


def test_single_seeds_are_compared_by_intervals_then_by_the_number_of_examples():
    found = gap(side(0.60, half_interval=0.03, examples=98), side(0.56, half_interval=0.04, examples=98))
    assert (found.noise, found.margin, found.clear) == ("intervals", pytest.approx(0.05), False)
    # With one success and one failure added, the shares are 80 and 50 of 100: 1.96 * sqrt((0.8 * 0.2 + 0.5 * 0.5) / 100).
    found = gap(side(79 / 98, examples=98), side(0.5, half_interval=0.04, examples=98))
    assert (found.noise, found.clear) == ("examples", True)
    assert found.margin == pytest.approx(0.1255, abs=1e-4)
    assert gap(side(1.0, examples=3), side(0.0, examples=3)).margin > 0.49
    assert gap(side(0.6), side(0.5, examples=98)).clear is None
    assert gap(side(0.6, 0.62), side(0.5)).noise == "unknown"


def runs_of(*folders):
    return read_runs([str(folder) for folder in folders])


def test_runs_that_differ_only_in_their_seed_are_a_group(make):
    folders = [make(f"lr{lr}-seed{seed}", f"seed={seed}", f"optim.lr={lr}") for lr in (0.1, 0.2) for seed in (0, 1)]
    groups = grouped(runs_of(*folders, make("other", "seed=5", "train.log_every=3", "optim.lr=0.2", "data.workers=0")))
    assert [(group.name, group.colour, len(group.runs)) for group in groups] == [
        ("lr0.1", 0, 2),
        ("lr0.2-seed0 and 2 more", 1, 3),
    ]


def test_a_repeated_seed_and_a_run_without_config_are_separate_groups(make):
    first, again, bare = make("a"), make("b"), make("c")
    (bare / "config.yaml").unlink()
    assert [group.name for group in grouped(runs_of(first, again, bare))] == ["a", "b", "c"]
    names = [make(f"seeds/seed-{seed}", f"seed={seed}") for seed in (10, 11)]
    assert [group.name for group in grouped(runs_of(*names))] == ["seed-10 and 1 more"]


def test_the_metric_that_selects_the_weights_decides(make, tmp_path):
    selected = event_lines(Validated(step=10, metric="recall", value=0.25, best=True, averaged=False))
    one = make("one", recall=0.25, events=selected)
    two = make("two", "optim.lr=0.2", recall=0.75, events=selected)
    (verdict,) = verdicts(grouped(runs_of(one, two)))
    assert (verdict.metric, verdict.best.name, verdict.gaps[0].side.name) == ("recall", "two", "one")
    assert (verdict.gaps[0].noise, verdict.best.examples) == ("examples", 7)
    metric = {"value": 3.0, "unit": "score"}
    lower = [make(f"lower-{n}", median_rank={**metric, "value": float(n)}) for n in (2, 1, 3)]
    for folder in lower:
        evaluation = json.loads((folder / "evaluation.json").read_text())
        (folder / "evaluation.json").write_text(
            json.dumps({"test": {"median rank": evaluation["test"]["median rank"]}})
        )
    (verdict,) = verdicts(grouped(runs_of(*lower)))
    assert [verdict.best.name, *(each.side.name for each in verdict.gaps)] == ["lower-1", "lower-2", "lower-3"]


def test_runs_measured_on_different_files_get_no_verdict(make, tmp_path):
    folders = [make(name, recall=0.5) for name in ("a", "b")]
    for folder in folders:
        values = json.loads((folder / "evaluation.json").read_text())
        for metric in values["test"].values():
            metric["split"] = f"{folder.name}.jsonl"
        (folder / "evaluation.json").write_text(json.dumps(values))
    assert verdicts(grouped(runs_of(*folders))) == []
    assert "No verdict" in report(tmp_path, *folders)


def seeds_of(make, name: str, lr: float, *values: float):
    def metric(value: float) -> dict:
        return {"value": value, "unit": "share", "split": "f.jsonl"}

    folders = [
        make(f"{name}-seed{seed}", f"optim.lr={lr}", f"seed={seed}", losses=[lr * 100 + seed] * 10)
        for seed in range(len(values))
    ]
    for folder, value in zip(folders, values, strict=True):
        (folder / "evaluation.json").write_text(json.dumps({"test": {"accuracy": metric(value)}}))
    return folders


def test_the_page_shows_which_group_is_better_by_how_much_and_why(make, tmp_path):
    text = report(
        tmp_path, *seeds_of(make, "slow", 0.1, 0.50, 0.52, 0.54), *seeds_of(make, "fast", 0.2, 0.60, 0.62, 0.64)
    )
    verdict = " ".join(section(text, "Verdict").split())
    assert 'class="swatch c1"></i><span>fast</span></span> is better' in verdict
    assert "62.0 ± 2.0%</b> over 3 seeds" in verdict and "<b>10.0 points</b>" in verdict
    assert OneLine("4.5 points", "Welch") in verdict.split("</p>")
    assert OneLine("optim.lr", "0.1 against 0.2") in verdict.split("</p>")
    assert rows_with(section(text, "Config differences"), "optim.lr") == ["optim.lr 0.1 0.2"]
    metrics = section(text, "Metrics").split("<details>")[0]
    assert rows_with(metrics, "accuracy") == ["accuracy 52.0 ± 2.0% 62.0 ± 2.0%"]
    assert rows_with(metrics, "3 seeds")[0].count("3 seeds") == 2
    loss = charts_of(text)["loss (total)"]["datasets"]
    assert {row[2] for row in loss["lines"]["rows"]} == {11, 21}
    assert {tuple(row[2:]) for row in loss["bands"]["rows"]} == {(10, 12), (20, 22)}


def test_the_seeds_of_a_single_config_have_a_spread_and_no_winner(make, tmp_path):
    text = report(tmp_path, *seeds_of(make, "only", 0.1, 0.50, 0.52, 0.54))
    verdict = section(text, "Verdict")
    assert "52.0 ± 2.0%" in verdict and "better" not in verdict
    assert points_of(charts_of(text)["loss (total)"], "bands")


def test_a_seed_that_differs_too_is_not_named_as_a_cause(make, tmp_path):
    folders = make("a", "optim.lr=0.1", "seed=1", recall=0.1), make("b", "optim.lr=0.2", "seed=2", recall=0.9)
    verdict = " ".join(section(report(tmp_path, *folders), "Verdict").split())
    assert "Apart from the seed, only <b>optim.lr</b> differs (0.1 against 0.2)." in verdict


def test_single_seeds_without_a_number_of_examples_give_no_verdict(make, tmp_path):
    text = report(tmp_path, *seeds_of(make, "a", 0.1, 0.5), *seeds_of(make, "b", 0.2, 0.6))
    verdict = section(text, "Verdict")
    assert "one seed cannot tell" in verdict and "evaluation.bootstrap" in verdict


def test_an_unfinished_run_and_a_missing_metric_are_named_in_the_verdict(make, tmp_path):
    good, bad = seeds_of(make, "a", 0.1, 0.5) + seeds_of(make, "b", 0.2, 0.6), make("cut", losses=range(9, 5, -1))
    (bad / "evaluation.json").unlink()
    verdict = " ".join(section(report(tmp_path, *good, bad), "Verdict").split())
    assert "Without this metric: cut." in verdict and "cut (cut at step 4 of 10)" in verdict
