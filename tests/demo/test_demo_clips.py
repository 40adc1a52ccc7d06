"""Drawn clips: one object moves as the text says. Without the order of the frames, the direction cannot be known."""

from __future__ import annotations

import base64
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from dataset.config import CaptionedSplitConfig, VideoQuestionsConfig, VideoReadingConfig
from dataset.formats.captioned import read_captioned_images
from dataset.media.encoded import pixels_of
from dataset.media.video import read_frames
from dataset.tasks.video_qa import read_classes, read_video_questions
from demo.clips import DIRECTIONS, caption, clips, compose_clip, question
from demo.folder import FolderFlags
from demo.scenes.draw import draw_scene
from utils.errors import UserError

CLIPS = [compose_clip(0, "train", index) for index in range(60)]


def path_of(clip) -> tuple[list[int], list[int]]:
    """x and y of the moving object, which is drawn last."""
    boxes = [scene.objects[-1].box for scene in clip.frames]
    return [box[0] for box in boxes], [box[1] for box in boxes]


def test_the_moving_object_moves_as_described_and_the_others_stay():
    for clip in CLIPS:
        x, y = path_of(clip)
        moving, still = (x, y) if clip.direction in ("left", "right") else (y, x)
        steps = np.diff(moving)
        assert (steps < 0).all() if clip.direction in ("left", "up") else (steps > 0).all()
        assert len(set(still)) == 1
        assert len({scene.objects[:-1] for scene in clip.frames}) == 1
        assert f"moves {'to the ' if clip.direction in ('left', 'right') else ''}{clip.direction}" in caption(clip)
        assert question(clip).startswith("which way does the ")
        for scene in clip.frames:
            bx, by, w, h = scene.objects[-1].box
            assert 0 <= bx <= scene.width - w
            assert 0 <= by <= scene.height - h


def test_all_directions_are_equally_likely_and_a_reversed_clip_is_plausible():
    many = [compose_clip(0, "train", index) for index in range(240)]
    counts = {direction: sum(clip.direction == direction for clip in many) for direction in DIRECTIONS}
    assert min(counts.values()) > 40
    middles = {
        direction: np.mean(
            [np.mean(path_of(clip)[direction in ("up", "down")]) for clip in many if clip.direction == direction]
        )
        for direction in DIRECTIONS
    }
    assert abs(middles["left"] - middles["right"]) < 4
    assert abs(middles["up"] - middles["down"]) < 4


def test_frames_are_images_of_their_scenes(tmp_path):
    clips(output=FolderFlags(out=tmp_path), train=1, val=1, test=1)
    encoded = json.loads((tmp_path / "frames/train/000000.json").read_text())
    drawn = [draw_scene(scene) for scene in CLIPS[0].frames]
    for frame, expected in zip(encoded, drawn, strict=True):
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(frame))))
        assert np.abs(image.astype(int) - expected).mean() < 8
    assert all((first != second).any() for first, second in itertools.pairwise(drawn))


def test_a_folder_of_clips_can_be_used_for_retrieval_and_questions(tmp_path):
    clips(output=FolderFlags(out=tmp_path / "clips"), train=6, val=2, test=3, size=32, frames=3)
    facts = json.loads((tmp_path / "clips/clips.json").read_text())
    assert facts["directions"]["train"].keys() <= set(DIRECTIONS)
    items = read_captioned_images(
        CaptionedSplitConfig(annotations=str(tmp_path / "clips/retrieval_train.jsonl")), "data.train", 0.0
    )
    assert len(items.images) == len(items.captions) == 6
    frames = read_frames(items.images[0], VideoReadingConfig(), range, pixels_of, 10**6)
    assert [tuple(frame.shape) for frame in frames] == [(3, 32, 32)] * 3
    asked = VideoQuestionsConfig(questions=str(tmp_path / "clips/questions_test.jsonl"))
    questions = read_video_questions(asked, "data.train", 0.0, answered=True)
    classes = read_classes(str(tmp_path / "clips/answers.json"), "evaluation.answers", 4)
    assert {item.answers[0] for item in questions} <= set(classes)
    again = tmp_path / "again"
    clips(output=FolderFlags(out=again), train=6, val=2, test=3, size=32, frames=3)
    for name in ("retrieval_train.jsonl", "frames/test/000002.json"):
        assert (again / name).read_bytes() == (tmp_path / "clips" / name).read_bytes()
    assert json.loads((again / "clips.json").read_text()) == facts
    with pytest.raises(UserError, match="frames=3, not 4"):
        clips(output=FolderFlags(out=again), train=6, val=2, test=3, size=32, frames=4)
