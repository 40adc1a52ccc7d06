"""An unusable record stops the reading of held-out data with a one-line error, whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataset.config import CaptionedSplitConfig, TextDataConfig, VideoStreamConfig
from dataset.formats.captioned import read_captioned_images
from dataset.media.video import FrameSampler
from dataset.media.views import EvaluationView
from dataset.records.schema import ImageKeys
from dataset.tasks.finetune import in_batches
from dataset.tasks.held_out import read_held_out, read_held_out_videos
from dataset.text.processors import TextProcessor
from tests.dataset.bad_records import ENCODED, bad_boxes, bad_lines, bad_paths, bad_texts
from tests.dataset.conftest import pair, picture_bytes
from tests.dataset.test_bad_records import bounded  # noqa: F401
from tests.messages import naming
from utils.errors import UserError


def lines() -> dict[str, str]:
    texts = {name: json.dumps({**pair(1), "caption": text}) for name, text in bad_texts().items()}
    boxes = {
        f"box {name}": f'{{"image": "{ENCODED}", "elems": [{{"bb": {box}, "caption": "a star"}}]}}'
        for name, box in bad_boxes().items()
    }
    return {**bad_lines(), **texts, **boxes}


def write(path: Path, line: str) -> list[str]:
    path.write_text(f"{json.dumps(pair(0))}\n{line}\n", encoding="utf-8", errors="surrogateescape")
    return [str(path)]


def error_of(run: Any, place: str) -> None:
    with pytest.raises(UserError) as caught:
        run()
    message = str(caught.value)
    assert message.startswith(f"{place}: ")
    assert "held-out set" in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", lines())
def test_unusable_images_are_reported_in_one_line(name, tokenizer, tmp_path):
    files = write(tmp_path / "a.jsonl", lines()[name])
    processor = TextProcessor(tokenizer, TextDataConfig())
    options: dict[str, Any] = {"image_size": 16, "keys": ImageKeys(), "index_folder": str(tmp_path / "index")}
    error_of(lambda: read_held_out(files, processor, **options), f"{files[0]}:2")


def test_unusable_image_paths_are_reported_in_one_line(tokenizer, tmp_path):
    processor = TextProcessor(tokenizer, TextDataConfig())
    for number, path in enumerate(bad_paths(tmp_path).values()):
        files = write(tmp_path / f"{number}.jsonl", json.dumps({"image": path, "caption": "a dog"}))
        options: dict[str, Any] = {"image_size": 16, "keys": ImageKeys(), "index_folder": str(tmp_path / "index")}
        error_of(lambda files=files, options=options: read_held_out(files, processor, **options), f"{files[0]}:2")


@pytest.mark.parametrize("name", [*bad_lines(), *bad_texts()])
def test_unusable_videos_are_reported_in_one_line(name, tokenizer, tmp_path):
    lines = {
        **bad_lines(),
        **{key: json.dumps({"video": [ENCODED], "caption": text}) for key, text in bad_texts().items()},
    }
    path = tmp_path / "a.jsonl"
    path.write_text(f"{lines[name]}\n{{}}\n", encoding="utf-8", errors="surrogateescape")
    config = VideoStreamConfig(files=[], batch_size=1)
    given = ([str(path)], TextProcessor(tokenizer, TextDataConfig()), config, FrameSampler(2, config.reading, 10**6))
    error_of(lambda: read_held_out_videos(*given, image_size=16, index_folder=str(tmp_path)), f"{path}:1")


@pytest.mark.parametrize("workers", [0, 1])
def test_unusable_fine_tuning_rows_are_reported_in_one_line(tmp_path, workers):
    """Some errors are found when the split is read, and others when a worker decodes its images."""
    (tmp_path / "good.jpg").write_bytes(picture_bytes())
    for name, path in bad_paths(tmp_path).items():
        rows = [{"image": "good.jpg", "caption": "a dog"}, {"image": path, "caption": "a cat"}]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        split = CaptionedSplitConfig(annotations=str(file), images=str(tmp_path))

        def evaluate(split: CaptionedSplitConfig) -> None:
            items = read_captioned_images(split, "evaluation.test.a", 0.0)
            view = EvaluationView(16, 10**6)
            list(in_batches(lambda index: view(items.images[index]), range(2), 2, workers, items.images.location))

        with pytest.raises(UserError, match=naming("held-out")) as caught:
            evaluate(split)
        assert f"{file}:2: " in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_the_code_is_reported_with_its_class_and_the_record(workers):
    def read(item: int) -> int:
        return [1, 2, 3][item]

    with pytest.raises(UserError, match=naming("row 3", "IndexError: list index out of range", "held-out")):
        list(in_batches(read, range(5), 2, workers, "row {}".format))
