"""No record can stop a run: each harmful record is counted as broken, with kind and location, in every stream and task."""

from __future__ import annotations

import io
import json
import logging
import pickle
import resource
import signal
import tarfile
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import pytest
import torch

from dataset.config import (
    AugmentConfig,
    CaptionedSplitConfig,
    CaptioningDataConfig,
    DataConfig,
    GroundingDataConfig,
    GroundingSplitConfig,
    ImageStreamConfig,
    NLVRDataConfig,
    NLVRSplitConfig,
    QuestionsConfig,
    RegionStreamConfig,
    RetrievalDataConfig,
    TextStreamConfig,
    TranslationStreamConfig,
    VideoQADataConfig,
    VideoQuestionsConfig,
    VideoStreamConfig,
    VQADataConfig,
)
from dataset.loaders import BatchLoader
from dataset.tasks.captioning import CaptioningBatches
from dataset.tasks.grounding import GroundingBatches
from dataset.tasks.nlvr import NLVRBatches
from dataset.tasks.pretrain import PretrainBatches
from dataset.tasks.retrieval import RetrievalBatches
from dataset.tasks.video_qa import VideoQABatches
from dataset.tasks.vqa import VQABatches
from tests.dataset.bad_records import ENCODED, HUGE, bad_boxes, bad_lines, bad_paths, bad_texts
from tests.dataset.conftest import pair, picture_bytes
from tests.messages import OneLine, naming
from utils.errors import UserError

GOOD = 7
LIMIT_S = 20


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Fails the test if a reader blocks or uses too much memory, so that the machine survives."""

    def late(*_: Any) -> None:
        raise KeyboardInterrupt("blocked")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 6_000_000_000, limits[1]))
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogateescape")
    return str(path)


def epoch(batches: Any, data: Any) -> tuple[int, dict[str, str]]:
    """Reads an epoch like a run does. Returns the number of valid rows, and the kind of each broken record by location."""
    loader = BatchLoader(batches, data)
    rows, broken = 0, {}
    for batch in loader.batches(0, -(-loader.epoch_size // loader.records_per_batch)):
        rows += len(batch.records)
        broken |= {each.place: each.reason for each in batch.broken}
    return rows, broken


PRETRAIN = {
    "images": (lambda files: ImageStreamConfig(files=files, batch_size=2), lambda n: pair(n)),
    "regions": (
        lambda files: RegionStreamConfig(files=files, batch_size=4, max_images=2),
        lambda n: {**pair(n), "elems": [{"bb": [2, 3, 16, 12], "caption": "a red star"}]},
    ),
    "videos": (
        lambda files: VideoStreamConfig(files=files, batch_size=2),
        lambda n: {"video": [pair(n)["image"]] * 2, "caption": "a dog"},
    ),
    "texts": (lambda files: TextStreamConfig(files=files, batch_size=2), lambda n: {"text": f"a dog with number {n}"}),
    "translations": (
        lambda files: TranslationStreamConfig(files=files, batch_size=2),
        lambda n: {"source_text": f"a dog {n}", "target_text": "the cat"},
    ),
}


def run_stream(name: str, lines: list[str], tokenizer: Any, tmp_path: Path) -> tuple[int, dict[str, str], str]:
    """Reads an epoch of a stream with good records before and after ``lines``."""
    make, good = PRETRAIN[name]
    all_lines = [json.dumps(good(0)), *lines, *(json.dumps(good(n)) for n in range(1, GOOD))]
    file = write(tmp_path / "a.jsonl", all_lines)
    data = DataConfig(**{name: make([file])}, cache_index=str(tmp_path / "index"), workers=0, max_broken=0.9)
    frames = 2 if name == "videos" else None
    batches = PretrainBatches(data, tokenizer=tokenizer, image_size=32, patch_size=8, seed=0, frames=frames)
    rows, broken = epoch(batches, data)
    return rows, broken, file


def locations(file: str, lines: Sized) -> set[str]:
    """The locations of the lines after the first good record and before the others."""
    return {f"{file}:{number}" for number in range(2, 2 + len(lines))}


@pytest.mark.parametrize("stream", PRETRAIN)
def test_a_line_without_a_record_is_broken(stream, tokenizer, tmp_path):
    rows, broken, file = run_stream(stream, [*bad_lines().values()], tokenizer, tmp_path)
    assert broken.keys() == locations(file, bad_lines())
    assert rows >= GOOD


TEXT_KEYS = {
    "images": ["caption"],
    "regions": ["caption", "elems"],
    "videos": ["caption"],
    "texts": ["text"],
    "translations": ["source_text", "target_text"],
}


@pytest.mark.parametrize(("stream", "key"), [(stream, key) for stream, keys in TEXT_KEYS.items() for key in keys])
def test_an_unusable_text_is_broken(stream, key, tokenizer, tmp_path):
    lines = []
    for text in bad_texts().values():
        value = [{"bb": [2, 3, 16, 12], "caption": text}] if key == "elems" else text
        lines.append(json.dumps({**PRETRAIN[stream][1](1), key: value}))
    _, broken, file = run_stream(stream, lines, tokenizer, tmp_path)
    assert broken.keys() == locations(file, lines)


def test_an_invalid_box_is_broken(tokenizer, tmp_path):
    lines = [
        f'{{"image": "{ENCODED}", "elems": [{{"bb": {box}, "caption": "a star"}}]}}' for box in bad_boxes().values()
    ]
    _, broken, file = run_stream("regions", lines, tokenizer, tmp_path)
    assert broken.keys() == locations(file, lines)
    assert set(broken.values()) <= {"wrong type", "box outside image", "bad json"}


@pytest.mark.parametrize("stream", ["images", "regions", "videos"])
def test_a_path_that_does_not_lead_to_an_image_is_broken(stream, tokenizer, tmp_path):
    paths = bad_paths(tmp_path)
    records = [
        {**PRETRAIN[stream][1](1), ("video" if stream == "videos" else "image"): [path] if stream == "videos" else path}
        for path in paths.values()
    ]
    _, broken, file = run_stream(stream, [json.dumps(record) for record in records], tokenizer, tmp_path)
    kinds = {name: broken.get(f"{file}:{number}") for number, name in enumerate(paths, start=2)}
    assert kinds == {
        **dict.fromkeys(
            ("eps", "pdf", "text", "empty", "cut", "folder", "fifo", "sparse", "device"), "unreadable image"
        ),
        "bomb": "image too large",
        **dict.fromkeys(("nul", "surrogate", "long"), "missing image"),
    }


def test_a_path_that_does_not_lead_to_a_video_is_broken(tokenizer, tmp_path):
    paths = bad_paths(tmp_path)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "1\u00b2.jpg").write_bytes(picture_bytes())  # a Unicode digit that is not a decimal digit
    names = [*paths.values(), "deep.json"]
    lines = [json.dumps({"video": name, "caption": "a dog"}) for name in (*names, "dir")]
    rows, broken, file = run_stream("videos", lines, tokenizer, tmp_path)
    assert set(broken) == {f"{file}:{number}" for number in range(2, 2 + len(names))}
    assert rows >= GOOD + 1


def test_harmful_tar_members_are_broken(tokenizer, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        members = {
            "good.jpg": picture_bytes(),
            "good.txt": b"a dog",
            "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
            "eps.txt": b"a dog",
            "large.jpg": picture_bytes(200, 200) + bytes(5000),
            "large.txt": b"a dog",
            "latin.jpg": picture_bytes(),
            "latin.txt": b"\xff\xfe",
            "deep.jpg": picture_bytes(),
            "deep.json": b"[" * 100_000,
        }
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    monkeypatch.setattr("dataset.shards.tars._LIMITS", ((5000, "image"), (5000, "text"), (200_000, "json")))
    data = DataConfig(
        images=ImageStreamConfig(files=[str(tmp_path / "a.tar")], batch_size=5),
        cache_index=str(tmp_path / "index"),
        workers=0,
        max_broken=1.0,
    )
    batches = PretrainBatches(data, tokenizer=tokenizer, image_size=32, patch_size=8, seed=0)
    rows, broken = epoch(batches, data)
    file = tmp_path / "a.tar"
    assert rows == 1
    assert broken == {
        f"{file}:eps.jpg": "unreadable image",
        f"{file}:large.jpg": "unreadable image",
        f"{file}:latin.jpg": "wrong type",
        f"{file}:deep.jpg": "bad json",
    }


# Fine-tuning: the data of each task, with the keys of its text and its image.
WHOLE = AugmentConfig(scale=(1, 1), ratio=(1, 1), flip=0, rand_augment_ops=0)


def task_batches(task: str, file: str, folder: Path, tokenizer: Any) -> tuple[Any, Any]:
    more = {"batch_size": 2, "workers": 0, "max_broken": 0.9}
    options = {"tokenizer": tokenizer, "image_size": 32, "seed": 0}
    split: Any
    if task in ("retrieval", "captioning"):
        split = CaptionedSplitConfig(annotations=file, images=str(folder))
        kinds = {
            "retrieval": (RetrievalDataConfig, RetrievalBatches),
            "captioning": (CaptioningDataConfig, CaptioningBatches),
        }
        config, batches = kinds[task]
        data = config(train=split, augment=WHOLE, **more)
        return batches(data, **options), data
    if task == "vqa":
        vqa = VQADataConfig(train=[QuestionsConfig(questions=file, images=str(folder))], augment=WHOLE, **more)
        return VQABatches(vqa, **options), vqa
    if task == "nlvr":
        nlvr = NLVRDataConfig(train=NLVRSplitConfig(annotations=file, images=str(folder)), augment=WHOLE, **more)
        return NLVRBatches(nlvr, **options), nlvr
    if task == "grounding":
        split = GroundingSplitConfig(annotations=file, images=str(folder))
        grounding = GroundingDataConfig(train=split, **more)
        return GroundingBatches(grounding, **options), grounding
    split = VideoQuestionsConfig(questions=file, videos=str(folder))
    video = VideoQADataConfig(train=split, augment=WHOLE, **more)
    return VideoQABatches(video, classes=["dog", "cat"], frames=2, **options), video


def good_row(task: str, n: int) -> dict[str, Any]:
    rows = {
        "retrieval": {"image": f"{n}.jpg", "caption": "a dog"},
        "captioning": {"image": f"{n}.jpg", "caption": "a dog"},
        "vqa": {"question_id": n, "question": "what is it", "image": f"{n}.jpg", "answer": ["dog", "cat"]},
        "nlvr": {"sentence": "a dog", "label": "True", "images": [f"{n}.jpg", f"{n}.jpg"]},
        "grounding": {"image": f"{n}.jpg", "elems": [{"bb": [2, 3, 16, 12], "caption": "a dog"}]},
        "video_qa": {"question": "what is it", "answer": "dog", "video": [pair(n)["image"]]},
    }
    return rows[task]


TASKS = ["retrieval", "captioning", "vqa", "nlvr", "grounding", "video_qa"]
TASK_TEXTS = [
    *(
        ("retrieval", "caption"),
        ("captioning", "caption"),
        ("vqa", "question"),
        ("vqa", "answer"),
        ("nlvr", "sentence"),
    ),
    *(("grounding", "elems"), ("video_qa", "question"), ("video_qa", "answer")),
]


def run_task(
    task: str, lines: list[str], tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> tuple[int, str, str]:
    """Reads an epoch of a task with good rows around ``lines``. Returns the number of valid rows, the log, and the file."""
    for n in range(GOOD):
        (tmp_path / f"{n}.jpg").write_bytes(picture_bytes())
    rows = [json.dumps(good_row(task, 0)), *lines, *(json.dumps(good_row(task, n)) for n in range(1, GOOD))]
    file = write(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        counted, _ = epoch(*task_batches(task, file, tmp_path, tokenizer))
    return counted, caplog.text, file


@pytest.mark.parametrize("task", TASKS)
def test_a_row_that_is_not_a_record_is_broken(task, tokenizer, tmp_path, caplog):
    lines = [line for name, line in bad_lines().items() if name != "not utf-8"]
    counted, logged, file = run_task(task, lines, tokenizer, tmp_path, caplog)
    assert counted >= GOOD
    assert f"{file}:2: " in logged
    assert f"{len(lines)} of {GOOD + len(lines)} records (" in logged


@pytest.mark.parametrize(("task", "key"), TASK_TEXTS)
def test_an_unusable_text_of_a_row_is_broken(task, key, tokenizer, tmp_path, caplog):
    lines = []
    for text in bad_texts().values():
        value: Any = [{"bb": [2, 3, 16, 12], "caption": text}] if key == "elems" else text
        value = ["dog", text] if (task, key) == ("vqa", "answer") else value
        lines.append(json.dumps({**good_row(task, 1), key: value}))
    counted, logged, file = run_task(task, lines, tokenizer, tmp_path, caplog)
    assert counted >= GOOD
    assert f"{file}:2: " in logged
    assert f"{len(lines)} of {GOOD + len(lines)} records (" in logged


@pytest.mark.parametrize("task", TASKS)
def test_a_row_without_a_valid_image_is_broken(task, tokenizer, tmp_path, caplog):
    paths = [*bad_paths(tmp_path).values(), json.loads("[" * 900 + "]" * 900)]
    lines = []
    for path in paths:
        value = [path, path] if task == "nlvr" else [path] if task == "video_qa" else path
        key = {"nlvr": "images", "video_qa": "video"}.get(task, "image")
        lines.append(json.dumps({**good_row(task, 1), key: value}))
    counted, logged, _ = run_task(task, lines, tokenizer, tmp_path, caplog)
    assert GOOD <= counted < GOOD + len(lines)
    assert "unreadable image" in logged


def test_an_invalid_box_of_a_row_is_broken(tokenizer, tmp_path, caplog):
    lines = [f'{{"image": "1.jpg", "elems": [{{"bb": {box}, "caption": "a star"}}]}}' for box in bad_boxes().values()]
    counted, logged, file = run_task("grounding", lines, tokenizer, tmp_path, caplog)
    assert counted >= GOOD
    assert f"{file}:2: " in logged
    assert f"{len(lines)} of {GOOD + len(lines)} records (" in logged


@pytest.mark.parametrize("task", TASKS)
def test_an_id_of_400_digits_does_not_stop_a_run(task, tokenizer, tmp_path, caplog):
    keys = ["question_id", "image_id", "id", "label", "identifier"]
    lines = [json.dumps({**good_row(task, 1), key: "N"}).replace('"N"', HUGE) for key in keys]
    counted, _, _ = run_task(task, lines, tokenizer, tmp_path, caplog)
    assert counted >= GOOD


@pytest.mark.parametrize("bad", [*bad_boxes(), "huge image", "nan image"])
def test_harmful_rows_of_official_grounding_files_are_reported(bad, tokenizer, tmp_path, caplog):
    boxes = {key: value for key, value in bad_boxes().items() if key != "beyond"}  # the whole file is invalid JSON then
    if bad == "beyond":
        return
    size = {"huge image": HUGE, "nan image": "NaN"}.get(bad, "40")
    images, annotations, refs = [], [], []
    for n in range(1, GOOD + 1):
        (tmp_path / f"COCO_train2014_{n:012d}.jpg").write_bytes(picture_bytes())
        first = n == 1
        images.append(f'{{"id": {n}, "width": {size if first else 40}, "height": 32}}')
        box = boxes.get(bad, "[2, 3, 16, 12]") if first else "[2, 3, 16, 12]"
        annotations.append(f'{{"id": {n}, "bbox": {box}}}')
        refs.append({"image_id": n, "ann_id": n, "split": "train", "sentences": [{"sent": "a dog"}]})
    instances = f'{{"images": [{", ".join(images)}], "annotations": [{", ".join(annotations)}]}}'
    (tmp_path / "instances.json").write_text(instances)
    (tmp_path / "refs.p").write_bytes(pickle.dumps(refs))
    train = GroundingSplitConfig(
        format="refcoco",
        refs=str(tmp_path / "refs.p"),
        instances=str(tmp_path / "instances.json"),
        splits=["train"],
        images=str(tmp_path),
    )
    data = GroundingDataConfig(train=train, batch_size=2, workers=0, max_broken=0.9)
    with caplog.at_level(logging.WARNING):
        counted, _ = epoch(GroundingBatches(data, tokenizer=tokenizer, image_size=32, seed=0), data)
    assert counted >= GOOD - 1
    assert f"{tmp_path}/refs.p[0]" in caplog.text


def test_a_bug_in_the_code_is_logged_with_class_and_traceback(tokenizer, tmp_path, caplog, monkeypatch):
    for n in range(GOOD):
        (tmp_path / f"{n}.jpg").write_bytes(picture_bytes())
    rows = [good_row("vqa", n) for n in range(GOOD)]
    rows[3]["question"] = "is it blue"
    batches, data = task_batches("vqa", write(tmp_path / "a.jsonl", list(map(json.dumps, rows))), tmp_path, tokenizer)
    correct = VQABatches.example

    def mistaken(self, record, rng):
        if "blue" in record.questions[0].question:
            raise AttributeError("'NoneType' object has no attribute 'x'")
        return correct(self, record, rng)

    monkeypatch.setattr(VQABatches, "example", mistaken)
    with caplog.at_level(logging.DEBUG, logger="dataset.loaders"):
        rows_read, broken = epoch(batches, data)
    assert broken == {f"{tmp_path}/a.jsonl:4": "AttributeError"}
    assert rows_read >= GOOD - 1
    summary, traceback = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "AttributeError: 'NoneType' object has no attribute 'x'" in summary
    assert "Traceback" in traceback
    assert "in mistaken" in traceback


def test_a_bug_in_collating_stops_the_run(tokenizer, tmp_path, monkeypatch):
    for n in range(GOOD):
        (tmp_path / f"{n}.jpg").write_bytes(picture_bytes())
    rows = [json.dumps(good_row("vqa", n)) for n in range(GOOD)]
    batches, data = task_batches("vqa", write(tmp_path / "a.jsonl", rows), tmp_path, tokenizer)
    correct = VQABatches.collate

    def mistaken(self, examples, *args, **more):
        if len(examples) > 1:
            raise AttributeError("two are too many")
        return correct(self, examples, *args, **more)

    monkeypatch.setattr(VQABatches, "collate", mistaken)
    with pytest.raises(AttributeError, match="two are too many"):
        epoch(batches, data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stops_if_the_first_100_records_are_all_broken(tokenizer, tmp_path, workers):
    lines = [json.dumps({"image": "gone.jpg", "caption": "a"})] * 90 + ["{"] * 60
    file = write(tmp_path / "a.jsonl", lines)
    data = DataConfig(
        images=ImageStreamConfig(files=[file], batch_size=8),
        cache_index=str(tmp_path / "index"),
        workers=workers,
        max_broken=1.0,
    )
    batches = PretrainBatches(data, tokenizer=tokenizer, image_size=32, patch_size=8, seed=0)
    steps = BatchLoader(batches, data).batches(0, 40)
    with pytest.raises(UserError) as caught:
        next(steps)
    message = str(caught.value)
    assert message == OneLine("104 records", "images", "data section")
    assert f"missing image (first: {file}:" in message
    assert f"bad json (first: {file}:" in message


def test_a_run_with_fewer_than_100_records_stops_if_all_are_broken(tokenizer, tmp_path):
    file = write(tmp_path / "a.jsonl", ["{"] * 150)
    data = DataConfig(
        images=ImageStreamConfig(files=[file], batch_size=8),
        cache_index=str(tmp_path / "index"),
        workers=0,
        max_broken=1.0,
    )
    batches = PretrainBatches(data, tokenizer=tokenizer, image_size=32, patch_size=8, seed=0)
    with pytest.raises(UserError, match=naming("16 records", "images", "16 bad json")):
        list(BatchLoader(batches, data).batches(0, 2))


def test_batches_before_the_first_usable_record_are_not_lost(tokenizer, tmp_path):
    """A resumed run relies on the index of each batch."""
    file = write(tmp_path / "a.jsonl", [json.dumps(pair(0)), *["{"] * 30])
    data = DataConfig(
        images=ImageStreamConfig(files=[file], batch_size=1),
        cache_index=str(tmp_path / "index"),
        workers=0,
        max_broken=1.0,
    )
    batches = PretrainBatches(data, tokenizer=tokenizer, image_size=32, patch_size=8, seed=0)
    read = list(BatchLoader(batches, data).batches(0, 31))
    assert [len(batch.records) for batch in read] == [len(batches.make(n).records) for n in range(31)]
    assert sum(int(batch.images.valid.sum()) for batch in read) == 1
    assert all(torch.equal(batch.images.pixels, batches.make(n).images.pixels) for n, batch in enumerate(read))


def test_each_stream_needs_a_usable_record(tokenizer, tmp_path, write_lines, make_pair):
    """Usable pairs do not hide unusable texts."""
    pairs = write_lines("pairs.jsonl", [make_pair(n) for n in range(200)])
    data = DataConfig(
        images=ImageStreamConfig(files=[pairs], batch_size=4),
        texts=TextStreamConfig(files=[write(tmp_path / "texts.jsonl", ["{}"] * 200)], batch_size=8),
        cache_index=str(tmp_path / "index"),
        workers=0,
        max_broken=1.0,
    )
    batches = PretrainBatches(data, tokenizer=tokenizer, image_size=32, patch_size=8, seed=0)
    steps = BatchLoader(batches, data).batches(0, 40)
    with pytest.raises(UserError, match=naming("104 records", "texts")):
        next(steps)
