"""The official files of MSR-VTT, MSRVTT-QA and MSVD-QA, and rows in our own format: each text gets the right video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from batches.base import IGNORE
from dataset.config import (
    AugmentConfig,
    CaptionedSplitConfig,
    RetrievalDataConfig,
    VideoQADataConfig,
    VideoQuestionsConfig,
    VideoReadingConfig,
)
from dataset.formats.annotations import Row
from dataset.formats.captioned import read_captioned_images
from dataset.formats.video_files import Videos
from dataset.media.sources import VideoSource
from dataset.media.video import FrameSampler
from dataset.media.views import EvaluationView, TrainingView, check_medium
from dataset.tasks.questions import QuestionTable
from dataset.tasks.retrieval import RetrievalBatches
from dataset.tasks.video_qa import VideoQABatches, read_classes, read_video_questions
from tests.dataset.media.test_video import encoded
from tests.messages import naming
from utils.errors import UserError

WHOLE = AugmentConfig(scale=(1, 1), ratio=(4, 4), flip=0, rand_augment_ops=0)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "videos").mkdir()
    for name in ("video0.mp4", "video_1.json", "video7.webm", "clip_3_9.avi"):
        (tmp_path / "videos" / name).write_bytes(b"")
    (tmp_path / "videos" / "video2").mkdir()
    return tmp_path


def write(folder: Path, name: str, content) -> str:
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in content) if name.endswith("jsonl") else json.dumps(content)
    path.write_text(content if isinstance(content, str) else lines)
    return str(path)


def msrvtt(folder: Path) -> str:
    sentences = [{"sen_id": n, "video_id": f"video{n % 3}", "caption": f"a person is number {n}"} for n in range(7)]
    return write(folder, "MSRVTT_data.json", {"info": {}, "videos": [], "sentences": sentences})


def captioned(folder: Path, annotations: str, **options):
    official = "MSRVTT" in annotations or annotations.endswith(".csv")
    options = {"format": "msrvtt" if official else "records", **options}
    config = CaptionedSplitConfig(annotations=annotations, images=str(folder / "videos"), **options)
    return read_captioned_images(config, "data.train", 0.0)


def test_msrvtt_gives_each_listed_video_all_its_sentences(folder):
    listed = write(folder, "MSRVTT_train.9k.csv", "video_id\nvideo2\nvideo0\n")
    items = captioned(folder, msrvtt(folder), listed=listed)
    assert [source.path.name for source in items.images] == ["video0.mp4", "video2"]
    assert list(items.ids) == ["video0", "video2"]
    assert list(items.captions) == [f"a person is number {n}" for n in (0, 3, 6, 2, 5)]
    everything = captioned(folder, msrvtt(folder))
    assert [source.path.name for source in everything.images] == ["video0.mp4", "video_1.json", "video2"]


def test_the_1k_a_test_file_gives_each_video_its_one_sentence(folder):
    rows = 'key,vid_key,video_id,sentence\nret0,msr7,video7,a man sings\nret1,msr0,video0,"a dog, and a cat"\n'
    items = captioned(folder, write(folder, "MSRVTT_JSFUSION_test.csv", rows))
    assert [source.path.name for source in items.images] == ["video7.webm", "video0.mp4"]
    assert list(items.captions) == ["a man sings", "a dog, and a cat"]
    assert items.images[1].location.endswith("test.csv:3")


def test_rows_in_our_format_name_a_file_or_hold_frames(folder):
    rows = [
        {"video": "video0.mp4", "caption": "one"},
        {"video": [encoded(3), encoded(4)], "caption": ["two", "three"], "image_id": "clip"},
        {"video_id": 7, "caption": "four"},
    ]
    items = captioned(folder, write(folder, "a.jsonl", rows))
    assert all(isinstance(source, VideoSource) for source in items.images)
    assert list(items.ids) == ["video0.mp4", "clip", "7"]
    assert items.captions_per_image.tolist() == [1, 2, 1]
    assert len(items.images[1].frames) == 2


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "a,b\n1,2\n", {}, ("data.train", "a.csv", "video_id", "sentence", "a, b")),
        ("a.csv", "video_id,sentence\n", {}, ("a.csv", "header")),
        ("a.csv", "video_id,sentence\nvideo0\n", {}, ("a.csv:2",)),
        ("a.csv", "video_id,sentence\nvideo0,a man,sings\n", {}, ("data.train", "a.csv:2", "3 values")),
        ("a.csv", 'video_id,sentence\nvideo0,"a man\nvideo0,b\n', {}, ("data.train", "a.csv:2", "'sentence'", "close")),
        ("a.csv", "video_id,sentence\nvideo9,x\n", {}, ("missing video", "videos", "video9", ".mp4, .avi")),
        ("a.jsonl", [{"caption": "a"}], {}, ("no 'image'",)),
        ("a.jsonl", [{"video": "none.mp4", "caption": "a"}], {}, ("none.mp4",)),
        ("a.jsonl", [{"video": 3, "caption": "a"}], {}, ("neither a path nor a list",)),
        ("a.json", {"videos": [], "sentences": []}, {}, ("MSR-VTT's", "format: msrvtt")),
        ("MSRVTT.json", {"sentences": 3}, {}, ("sentences", "MSR-VTT's", "data.train.format")),
        ("MSRVTT.json", {"sentences": [3]}, {}, ("3 is not an object",)),
    ],
)
def test_errors_are_reported_before_training(folder, name, content, options, message):
    with pytest.raises(UserError, match=naming(*message)):
        captioned(folder, write(folder, name, content), **options)


def test_a_list_of_other_videos_is_reported(folder):
    listed = write(folder, "list.csv", "video_id\nvideo900\n")
    with pytest.raises(UserError, match=naming("no sentence", "list.csv")):
        captioned(folder, msrvtt(folder), listed=listed)


def test_images_and_videos_are_not_confused(folder):
    items = captioned(folder, msrvtt(folder))
    check_medium(items.images, 5, "data.train")
    with pytest.raises(UserError, match=r"data.train has videos, .*; set model.vision.video.frames"):
        check_medium(items.images, None, "data.train")
    with pytest.raises(UserError, match=r"data.train has images, .*; remove model.vision.video"):
        check_medium([object()], 5, "data.train")


def test_training_pairs_hold_the_frames_of_their_video(folder, tokenizer):
    rows = [
        {"video": [encoded(10 * clip + n) for n in range(4)], "caption": f"number {clip}", "image_id": clip}
        for clip in range(3)
    ]
    rows.append({"video": "video0.mp4", "caption": "number three"})
    split = CaptionedSplitConfig(annotations=write(folder, "a.jsonl", rows), images=str(folder / "videos"))
    data = RetrievalDataConfig(train=split, batch_size=4, augment=WHOLE)
    batches = RetrievalBatches(data, tokenizer=tokenizer, image_size=32, seed=0, frames=3)
    batch = batches.make(0)
    assert batch.pixels.shape == (4, 3, 3, 32, 32)
    assert [each.reason for each in batch.broken] == ["unreadable video"]
    assert batch.valid.sum() == 3
    assert (batch.pixels[~batch.valid] == 0).all()
    assert torch.equal(batches.make(0).pixels, batch.pixels)
    assert not torch.equal(batches.make(1).pixels, batch.pixels)


def source(numbers: list[int]) -> VideoSource:
    from dataset.media.sources import video_source

    return video_source([encoded(n) for n in numbers], "video", "a:1", Path())


def test_training_views_differ_between_frames_unless_configured_to_be_shared():
    augment = AugmentConfig(scale=(0.1, 0.6), ratio=(1, 4), flip=0.5, rand_augment_ops=0)
    for same in (False, True):
        sampler = FrameSampler(3, VideoReadingConfig(same_view=same), 10**6)
        view = TrainingView(16, 10**6, augment, sampler)
        found = view(source([9, 9, 9]), np.random.default_rng(1), may_flip=True)
        assert torch.equal(found[0], found[1]) == same


def test_shuffling_only_changes_the_order_of_frames():
    sampler = FrameSampler(4, VideoReadingConfig(), 10**6)
    plain, shuffled = (EvaluationView(128, 10**6, sampler, shuffle_frames=each) for each in (False, True))
    clip = source([1, 2, 3, 4])
    assert torch.equal(shuffled(clip), shuffled(clip))
    assert not torch.equal(plain(clip), shuffled(clip))
    assert sorted(frame.sum().item() for frame in plain(clip)) == sorted(f.sum().item() for f in shuffled(clip))


ASKED = [
    {"id": 4, "video_id": 0, "category_id": 14, "question": "what is it?", "answer": "couch"},
    {"id": 5, "video_id": 0, "question": "who sits?", "answer": "man"},
    {"id": 6, "video_id": 1, "question": "what is left of it?", "answer": "unheard of"},
]


def questions(folder: Path, rows, name: str = "train_qa.json", **options):
    config = VideoQuestionsConfig(questions=write(folder, name, rows), videos=str(folder / "videos"), **options)
    return config, read_video_questions(config, "data.train", 0.0, answered=True)


def test_msrvtt_qa_identifies_videos_by_number(folder):
    _, found = questions(folder, ASKED)
    assert [item.source.path.name for item in found] == ["video0.mp4", "video0.mp4", "video_1.json"]
    assert [item.question_id for item in found] == [4, 5, 6]
    named = [{**row, "video_id": f"video{row['video_id']}"} for row in ASKED]
    _, again = questions(folder, named, "train.jsonl")
    assert [item.source.path for item in again] == [item.source.path for item in found]


def test_msvd_names_its_videos_in_a_separate_file(folder):
    names = write(folder, "youtube_mapping.txt", "clip_3_9 vid1\nother_1_2 vid2\n")
    _, found = questions(folder, [{"id": 0, "video_id": 1, "question": "what is it?", "answer": "meat"}], names=names)
    assert found[0].source.path.name == "clip_3_9.avi"
    with pytest.raises(UserError, match=naming("missing video", "other_1_2")):
        questions(folder, [{"id": 0, "video_id": 2, "question": "what is it?", "answer": "meat"}], names=names)
    with pytest.raises(UserError, match=naming("data.train.names", ":1", "a b c", "video_id")):
        questions(folder, ASKED, names=write(folder, "n.txt", "a b c\n"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?!"}, ("a text without words",)),
        ({"answer": " "}, ("no answer",)),
        ({"answer": None}, ("no 'answer'",)),
        ({"video_id": None}, ("no 'video' or 'video_id'",)),
        ({"video_id": 1.5}, ("neither a text nor a number",)),
        ({"video_id": 77}, ("77",)),
    ],
)
def test_a_broken_question_is_reported(folder, row, message):
    with pytest.raises(UserError, match=naming(*message)):
        questions(folder, [{**ASKED[0], **row}])


def test_candidates_are_ordered_by_label(folder):
    expected = ["couch", "man", "dog"]
    for content in (expected, {"man": 1, "couch": 0, "dog": 2}):
        assert read_classes(write(folder, "a.json", content), "evaluation.answers", 3) == expected
    wrong = {
        "set model.classes=3, not 5": (expected, 5),
        "lists 'man' twice": (["man", "man"], 2),
        "neither a JSON list of answers nor an object": ({"man": 1, "dog": 2}, 2),
    }
    for message, (content, classes) in wrong.items():
        with pytest.raises(UserError, match=message):
            read_classes(write(folder, "a.json", content), "evaluation.answers", classes)


def test_an_answer_outside_the_candidates_has_no_label(folder, tokenizer):
    rows = [{**row, "video": [encoded(n)], "video_id": None} for n, row in enumerate(ASKED)]
    config, _ = questions(folder, [{k: v for k, v in row.items() if v is not None} for row in rows])
    data = VideoQADataConfig(train=config, batch_size=3, augment=WHOLE)
    batches = VideoQABatches(data, classes=["man", "couch"], tokenizer=tokenizer, image_size=32, seed=0, frames=2)
    batch = batches.make(0)
    order = [int(place.rsplit("[", 1)[1][:-1]) for place in batch.records]
    assert batch.labels.tolist() == [[1, 0, IGNORE][place] for place in order]
    assert batch.pixels.shape == (3, 2, 3, 32, 32)
    with pytest.raises(UserError, match=naming("answer", "candidates")):
        VideoQABatches(data, classes=["cat", "dog"], tokenizer=tokenizer, image_size=32, seed=0, frames=2)


def test_a_path_and_an_id_with_the_same_name_are_two_videos(tmp_path):
    """The path and the id each get their own video, whichever is read first."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7.mp4").write_bytes(b"")
    path, number = Row({"video": "7"}, "a[0]"), Row({"video_id": 7}, "a[1]")
    for rows in ((path, number), (number, path)):
        videos = Videos(tmp_path)
        found = {row.location: videos.of_row(row)[1].path for row in rows}
        assert found == {"a[0]": tmp_path / "7", "a[1]": tmp_path / "7.mp4"}


def test_questions_about_a_path_and_an_id_with_the_same_name_get_their_own_video(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7.mp4").write_bytes(b"")
    rows = [{"video": "7"}, {"video_id": 7}, {"video": "7"}]
    (tmp_path / "a.json").write_text(json.dumps([{"question": "what", "answer": "man", **row} for row in rows]))
    config = VideoQuestionsConfig(questions=str(tmp_path / "a.json"))
    items = read_video_questions(config, "data.train", 0.0, answered=True)
    assert [item.source.path.name for item in items] == ["7", "7.mp4", "7"]
    table = QuestionTable(items)
    assert [source.path.name for source in table.sources()] == ["7", "7.mp4"]
