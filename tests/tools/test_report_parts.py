"""The parts of ``run.py report``: series of bounded size, axes, the log, and the judgement of predictions."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

from metrics.captions import caption_scores
from tools.report.charts import Chart, Line, thinned
from tools.report.judging import chosen, judged, lines_of
from tools.runs import series as reading
from tools.runs.series import Series, read_metrics
from utils.printing import format_number


def test_a_long_series_keeps_extremes_mean_and_ends_in_bounded_memory():
    series = Series()
    values = [math.sin(step / 700) for step in range(100_000)]
    values[61_234], values[7] = 50.0, -40.0
    for step, value in enumerate(values):
        series.add(step, value)
    assert len(series.buckets) <= reading.CAPACITY
    points = series.points()
    assert len(points) <= 2 * reading.CAPACITY + 2
    assert (61_234, 50.0) in points and (7, -40.0) in points
    assert points[0] == (0, values[0]) and points[-1] == (99_999, values[-1])
    assert series.range() == (-40.0, 50.0)
    total = sum(bucket.total for bucket in series.buckets)
    assert total == pytest.approx(sum(values))
    assert all(a <= b for (a, _), (b, _) in pairwise(points))


def test_a_smoothed_series_is_the_mean_over_neighbours():
    series = Series()
    for step in range(100):
        series.add(step, 5.0 + (1 if step % 2 else -1))
    smooth = series.smoothed()
    assert len(smooth) == 100
    assert max(abs(value - 5) for _, value in smooth[10:-10]) < 0.35
    assert Series().smoothed() == []


def test_non_finite_values_are_counted_and_not_drawn():
    series = Series()
    for step, value in enumerate((1.0, math.nan, math.inf, 2.0)):
        series.add(step, value)
    assert series.not_finite == 2
    assert series.points() == [(0, 1.0), (3, 2.0)]


def test_incomplete_and_invalid_lines_are_counted_with_line_numbers(tmp_path):
    file = tmp_path / "metrics.jsonl"
    good = [{"step": 1, "loss": 2.0, "elapsed_s": 3.0}, {"step": 3, "loss": None, "elapsed_s": 4.0}]
    lines = [json.dumps(good[0]), "[1, 2]", '{"step": "2", "loss": 1}', '{"step": 2, "loss": "x"}', json.dumps(good[1])]
    file.write_text("\n".join([*lines, '{"step": 4, "lo']))
    metrics = read_metrics(file)
    assert (metrics.lines, metrics.damaged_count, metrics.damaged) == (2, 4, [2, 3, 4, 6])
    assert metrics.last_step == 3
    assert metrics.series["loss"].points() == [(1, 2.0)] and metrics.series["loss"].not_finite == 1
    assert metrics.series["step_s"].points() == [(3, 0.5)]


def test_an_endless_line_is_one_damaged_line(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 40)
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "a": ' + "1" * 500 + '}\n{"step": 2, "loss": 1.5}\n')
    metrics = read_metrics(file)
    assert (metrics.damaged, metrics.lines, metrics.last_step) == ([1], 1, 2)


def test_downsampling_keeps_the_minimum_and_maximum_of_each_interval():
    points = [(float(step), float(step % 10)) for step in range(10_000)]
    points[4321] = (4321.0, 99.0)
    points[8765] = (8765.0, -99.0)
    thin = thinned(points, 200)
    assert len(thin) <= 401
    assert (4321.0, 99.0) in thin and (8765.0, -99.0) in thin
    assert thin == sorted(thin) and thin[-1] == points[-1]
    assert thinned(points[:400], 200) == points[:400]


def test_an_axis_is_logarithmic_only_over_orders_of_magnitude():
    def is_log(values: list[float], may: bool) -> bool:
        chart = Chart("a", [Line("", 0, list(enumerate(values)))], may_be_log=may)
        y = chart.spec["layer"][0]["encoding"]["y"]
        return y["scale"].get("type") == "log"

    assert is_log([0.01, 10.0], True)
    for values, may in (([0.01, 10.0], False), ([5.0, 10.0], True), ([0.0, 10.0], True), ([-1.0, 100.0], True)):
        assert not is_log(values, may)


def test_numbers_are_abbreviated():
    assert [format_number(v) for v in (0.0, 12_500.0, 0.0123456, 3e-7, 250.0)] == [
        "0",
        "12,500",
        "0.01235",
        "3e-07",
        "250",
    ]


def test_names_from_files_are_chart_titles_and_never_field_names():
    name = "a.b[0]['\"] </script> datum"
    spec = Chart(name, [Line(name, 0, [(1, 0.5), (3, 0.7)]), Line("y", 9, [(2, 1.0)])], "%", mark=(3, "best")).spec
    fields = {value for key, value in _items(spec) if key == "field"}
    assert fields == {"line", "step", "value", "label", "v0", "v1"}
    assert {key for key, value in _items(spec) if value == name} == {"description", "title"}
    assert spec["datasets"]["hover"]["rows"] == [[1, 0.5, 1], [2, 0.6, 1], [3, 0.7, 1]]


def test_a_mean_line_has_a_range_where_all_seeds_have_values():
    one, other = Series(), Series()
    for step, value in ((0, 1.0), (10, 3.0), (20, 5.0)):
        one.add(step, value)
    for step, value in ((5, 4.0), (15, 8.0)):
        other.add(step, value)
    line = Line.mean_of_seeds([one, other], "x", 0)
    # At 5, 10 and 15, the first run has 2, 3 and 4, and the second one has 4, 6 and 8.
    assert line.points == [(5, 3.0), (10, 4.5), (15, 6.0)]
    assert line.band == [(2.0, 4.0), (3.0, 6.0), (4.0, 8.0)]
    assert Line.mean_of_seeds([one, other], "x", 0, 100.0).points[0] == (5, 300.0)


def _items(value):
    """All keys of nested values, with their values."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key, inner if isinstance(inner, str) else None
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _items(inner)


def test_failures_are_first_with_the_worst_at_the_top():
    predictions = [{"phrase": str(n), "iou": n / 20} for n in range(20)]
    shown = chosen(judged(predictions, None, "grounding"), 8)
    assert [example.number for example in shown[:6]] == [0, 1, 2, 3, 4, 5]
    assert [example.right for example in shown] == [False] * 6 + [True] * 2
    few = chosen(judged(predictions[8:], None, "grounding"), 8)
    assert [example.number for example in few if not example.right] == [0, 1]
    assert len(few) == 8
    assert chosen(judged(predictions, None, "grounding"), 0) == []


def test_equal_failures_are_spread_over_the_split():
    predictions = [{"predicted": "true", "true": "false", "sentence": str(n)} for n in range(1000)]
    numbers = [example.number for example in chosen(judged(predictions, None, "nlvr"), 24)]
    assert min(numbers) < 250 and max(numbers) > 750 and len(set(numbers)) == 24


def test_without_answers_predictions_are_spread_over_the_split():
    examples = judged([{"question_id": n, "answer": "yes"} for n in range(100)], None, "vqa")
    assert all(example.right is None and example.score is None for example in examples)
    assert [example.number for example in chosen(examples, 4)] == [0, 25, 50, 75]


@pytest.mark.parametrize(
    ("prediction", "right", "answer"),
    [
        (
            {"text": 0, "caption": "c", "image_id": "b", "nearest": [{"image_id": "b"}, {"image_id": "a"}]},
            True,
            "rank 1",
        ),
        (
            {"text": 0, "caption": "c", "image_id": "b", "nearest": [{"image_id": "a"}, {"image_id": "b"}]},
            False,
            "rank 2",
        ),
        ({"image_id": "b", "nearest": [{"caption": "c", "right": False}]}, False, "not among the 1 nearest"),
        ({"place": "f:1", "boxes": [{"phrase": "p", "iou": 0.7}, {"phrase": "q", "iou": 0.2}]}, False, "1 of 2 boxes"),
        (
            {"place": "f:1", "ranks": {"cosine": {"image to text": 3}, "reranked": {"image to text": 1}}},
            True,
            "image to text: rank 1",
        ),
        ({"sentence": "s", "predicted": "true", "true": "true"}, True, "true"),
    ],
)
def test_a_prediction_states_whether_it_is_correct(prediction, right, answer):
    (example,) = judged([prediction], None, None)
    assert (example.right, example.answer) == (right, answer)
    marks = [line.right for line in lines_of(prediction) if line.right is not None]
    assert (False not in marks) == right or "nearest" in prediction


def test_captions_are_ordered_by_their_cider():
    class Split:
        def references(self):
            return [["a red star"], ["a blue circle"], ["a green square"]]

    captions = ["a red star", "two dogs", "a green circle"]
    predictions = [{"image_id": n, "caption": caption} for n, caption in enumerate(captions)]
    examples = judged(predictions, Split(), "captioning")
    expected = caption_scores(captions, Split().references())[1]["CIDEr"].tolist()
    assert [example.score for example in examples] == expected
    assert [example.number for example in chosen(examples, 3)] == [1, 2, 0]
