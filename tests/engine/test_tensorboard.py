"""TensorBoard events: the curves of values that change, the config, images, and the events that a resumed run writes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from engine.metrics_log import MetricsLog
from engine.run_folder import RunFolder
from engine.trackers import show_images
from tests.messages import OneLine


@pytest.fixture(autouse=True)
def names_of_files_in_order(monkeypatch):
    """Makes the names of event files sort in the order of writing. Files written in the same second are otherwise ordered by
    their index in the process, compared as strings, so that "10" would come before "9"."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """The points of a curve as TensorBoard shows them, sorted by step."""
    accumulator = events(folder)
    if name not in accumulator.Tags()["scalars"]:
        return []
    return sorted((event.step, round(event.value, 4)) for event in accumulator.Scalars(name))


def write(folder: Path, values: dict[int, float], *, after: int = 0, name: str = "lr") -> None:
    """Simulates a process that resumes ``after`` a step and logs ``values``."""
    log = MetricsLog(RunFolder(folder), after)
    for step, value in values.items():
        log.write({"step": step, name: value})
    log.sync()
    log.close()


def test_a_constant_is_logged_without_a_curve(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.5, 3: 0.5})
    assert curve(tmp_path, "lr") == []
    assert (tmp_path / "metrics.jsonl").read_text().count("0.5") == 3


def test_a_curve_starts_with_the_value_before_its_first_change(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.25, 5: 0.5})
    assert curve(tmp_path, "lr") == [(1, 0.5), (3, 0.5), (4, 0.25), (5, 0.5)]


@pytest.mark.parametrize("killed_at", range(1, 9))
@pytest.mark.parametrize("resumed_after", range(8))
def test_a_resumed_run_draws_each_point_once(tmp_path, killed_at, resumed_after):
    """This holds wherever the run was killed and whichever checkpoint it resumes from."""
    values = {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 1.0, 7: 3.0, 8: 3.0}
    resumed_after = min(resumed_after, killed_at)
    write(tmp_path, {step: value for step, value in values.items() if step <= killed_at})
    write(tmp_path, {step: value for step, value in values.items() if step > resumed_after}, after=resumed_after)
    assert curve(tmp_path, "lr") == [(step, value) for step, value in values.items() if step != 2]


def test_purged_values_of_the_first_process_do_not_count_as_first_values(tmp_path):
    """Like the values of a clock, which differ when a step is repeated."""
    write(tmp_path, {1: 5.0, 2: 6.0})
    write(tmp_path, {1: 7.0, 2: 8.0}, after=0)
    assert curve(tmp_path, "lr") == [(1, 7.0), (2, 8.0)]


def test_non_finite_values_are_equal_to_each_other(tmp_path):
    write(tmp_path, {1: math.nan, 2: math.nan})
    assert curve(tmp_path, "lr") == []
    write(tmp_path, {3: 1.0}, after=2)
    drawn = curve(tmp_path, "lr")
    assert [step for step, _ in drawn] == [1, 2, 3]
    assert math.isnan(drawn[0][1]) and drawn[2][1] == 1.0


def test_validations_have_separate_curves(tmp_path):
    log = MetricsLog(RunFolder(tmp_path), 0)
    log.write_validation(2, {"images": 7, "accuracy": 0.5})
    log.write_validation(4, {"images": 7, "accuracy": 0.75})
    log.close()
    assert curve(tmp_path, "validation/accuracy") == [(2, 0.5), (4, 0.75)]
    assert curve(tmp_path, "validation/images") == []


def test_the_config_is_shown_once_even_in_a_resumed_run(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    write(tmp_path, {1: 0.5, 2: 0.25})
    (tmp_path / "config.yaml").write_text("seed: 0\nworkers: 2\n")
    write(tmp_path, {3: 0.5}, after=2)
    accumulator = events(tmp_path)
    (event,) = accumulator.Tensors("config/text_summary")
    assert event.tensor_proto.string_val == [b"```yaml\nseed: 0\nworkers: 2\n\n```"]
    (event,) = accumulator.Tensors("report/text_summary")
    assert event.tensor_proto.string_val[0].decode() == OneLine(f"run.py report {tmp_path}", f"{tmp_path}/report.html")


def test_an_image_replaces_an_earlier_one(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.25})
    image = np.zeros((20, 30, 3), np.uint8)
    show_images(RunFolder(tmp_path), None, {"predictions/a": image}, 1)
    show_images(RunFolder(tmp_path), None, {"predictions/a": image, "predictions/b": image}, 2)
    accumulator = events(tmp_path)
    assert sorted(accumulator.Tags()["images"]) == ["predictions/a", "predictions/b"]
    (image,) = accumulator.Images("predictions/a")
    assert (image.step, image.height, image.width) == (2, 20, 30)
    assert curve(tmp_path, "lr") == [(1, 0.5), (2, 0.25)]


def test_an_evaluation_writes_no_events(tmp_path):
    show_images(RunFolder(tmp_path), None, {"predictions/a": np.zeros((20, 30, 3), np.uint8)}, 0)
    assert not list(tmp_path.iterdir())


def test_the_curves_are_in_the_last_file_while_a_run_continues(tmp_path):
    """TensorBoard reads files in the order of their names, and ignores anything added to a file other than the last."""
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    log = MetricsLog(RunFolder(tmp_path), 0)
    files = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert [name.endswith(".config") for name in files] == [True, False]
    log.close()


def test_a_folder_that_cannot_be_written_is_reported_once(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file in the place of the folder")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    write(tmp_path, {1: 0.5, 2: 0.25})
    (message,) = caplog.messages
    assert message == OneLine(f"{tmp_path}/tensorboard: TensorBoard's events", "the run continues without them")
    assert (tmp_path / "metrics.jsonl").read_text().count("step") == 2
