"""Runs on videos: text-to-video retrieval, video question answering, and the value of the order of frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import two_stage
from tasks.config import RetrievalConfig, VideoQAConfig, VQAConfig
from tasks.drawing import ImageReader
from tasks.evaluation import Evaluation
from tasks.inference import evaluating
from tasks.retrieval import RetrievalTask
from tasks.video_qa import VideoQATask
from tasks.vqa import VQATask
from tests.conftest import tiny_run
from tests.dataset.media.test_video import BITS, encoded, without_decoders
from tests.messages import OneLine, naming
from utils.config import load_config
from utils.config_files import read_config
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent
CLIPS = 6


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Clips of four frames, each with a text and two questions."""
    folder = tmp_path_factory.mktemp("clips")
    pairs, asked = [], []
    for clip in range(CLIPS):
        name = f"video_{clip}.json"
        (folder / name).write_text(json.dumps([encoded(20 * clip + 3 * n) for n in range(4)]))
        pairs.append({"video": name, "caption": f"a {('red', 'blue')[clip % 2]} star {clip}"})
        asked.append({"id": 2 * clip, "video_id": clip, "question": "what shape is it?", "answer": "star"})
        asked.append({"id": 2 * clip + 1, "video_id": clip, "question": "what number?", "answer": f"{clip}"})
    for name, rows in (("pairs", pairs), ("asked", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "answers.json").write_text(json.dumps({"0": 1, "star": 0, "1": 2}))
    return folder


def sizes(scenes_folder: Path) -> list[str]:
    return [
        *[each for each in tiny_run(scenes_folder) if each.startswith(("model.", "train.", "schedule."))],
        "init.checkpoint=null",
        "data.workers=0",
        "data.batch_size=3",
        "train.steps=3",
        "evaluation.batch_size=4",
        "evaluation.precision=fp32",
        "train.precision=fp32",
    ]


PLAIN = "{family: bert, width: 16, layers: 1, heads: 2, intermediate: 32, max_positions: 64}"


def retrieval_options(clips: Path, scenes_folder: Path) -> list[str]:
    return [
        *sizes(scenes_folder),
        f"data.train.annotations={clips}/pairs.jsonl",
        f"evaluation.validation.annotations={clips}/pairs.jsonl",
        f"evaluation.test.test.annotations={clips}/pairs.jsonl",
        "model.vision.video.frames=3",
    ]


def retrieval(clips: Path, scenes_folder: Path, *more: str) -> RetrievalConfig:
    overrides = retrieval_options(clips, scenes_folder)
    return load_config(ROOT / "configs/demo/retrieval.yaml", [*overrides, *more], RetrievalConfig)


def video_qa_options(clips: Path, scenes_folder: Path) -> list[str]:
    return [
        *sizes(scenes_folder),
        f"data.train.questions={clips}/asked.jsonl",
        f"data.train.videos={clips}",
        f"evaluation.validation={{questions: {clips}/asked.jsonl}}",
        f"evaluation.test={{test: {{questions: {clips}/asked.jsonl}}}}",
        f"evaluation.answers={clips}/answers.json",
        "model.classes=3",
        "train.epochs=null",
        "train.global_batch=null",
        "model.vision.backbone=beitv2_base_patch16_224",
        "model.vision.patch_size=8",
        "model.vision.video.frames=3",
    ]


def video_qa(clips: Path, scenes_folder: Path, *more: str) -> VideoQAConfig:
    overrides = video_qa_options(clips, scenes_folder)
    return load_config(ROOT / "configs/vqa/msrvtt_qa_base.yaml", [*overrides, *more], VideoQAConfig)


def randomise(task) -> None:
    """Sets weights that are large enough for outputs to differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def measured(task) -> Evaluation:
    with evaluating(task.model, "fp32"):
        return task.evaluate(task.held_out.test["test"])


def losses(task) -> dict[str, float]:
    batch = next(task.train_loader().batches(0, 1))
    terms = task.model(batch)
    sum(term.total for term in terms.values()).backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())
    return {name: term.total.item() for name, term in terms.items()}


def test_retrieval_on_videos_trains_every_parameter_and_measures_both_directions(clips, scenes_folder):
    task = RetrievalTask.build(retrieval(clips, scenes_folder))
    assert all(np.isfinite(value) for value in losses(task).values())
    found = measured(task)
    assert found["videos"].value == CLIPS
    assert 0 <= found["text to video R@1"].value <= 1
    assert found["mean recall"].chance > 0


def test_questions_about_a_video_share_its_frames(clips, scenes_folder):
    """There are two questions about each of three clips."""
    task = VideoQATask.build(video_qa(clips, scenes_folder, "data.questions_per_example=2"))
    batch = next(task.train_loader().batches(0, 1))
    assert batch.pixels.shape[:2] == (3, 3) and len(batch.text.ids) == 6
    assert batch.image_of_question.tolist() == [0, 0, 1, 1, 2, 2]
    task.model.eval()
    repeated = replace(batch, pixels=batch.pixels[batch.image_of_question], image_of_question=None)
    found, expected = (
        {name: term.total.item() for name, term in task.model(each).items()} for each in (batch, repeated)
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(value) for value in losses(task).values())


@pytest.mark.parametrize(("pooling", "differs"), [("mean", False), ("tokens", True)])
def test_the_order_of_frames_only_matters_with_tokens(clips, scenes_folder, monkeypatch, pooling, differs):
    given = [f"model.vision.video.pooling={pooling}", "model.vision.drop_path=0", "model.text.dropout=0"]
    scores = []
    real = two_stage.score_pairs

    def keep(*args, **options):
        found = real(*args, **options)
        scores[-1].append(torch.cat(found))
        return found

    monkeypatch.setattr(two_stage, "score_pairs", keep)
    for shuffle in ("false", "true"):
        task = RetrievalTask.build(retrieval(clips, scenes_folder, *given, f"evaluation.shuffle_frames={shuffle}"))
        randomise(task)
        scores.append([])
        measured(task)
    plain, shuffled = (torch.cat(each) for each in scores)
    assert bool((plain - shuffled).abs().max() > 1e-3) == differs


def test_video_questions_are_classified_and_unlisted_answers_are_wrong(clips, scenes_folder, monkeypatch):
    task = VideoQATask.build(video_qa(clips, scenes_folder))
    assert task.classes == ["star", "0", "1"]
    assert np.isfinite(losses(task)["answers"])
    labels = {"star": 0, "0": 1, "1": 2}
    items = task.held_out.test["test"]
    right = np.array([labels.get(item.answers[0], 0) for item in items])
    monkeypatch.setattr(task, "_predict", lambda items: right)
    found = measured(task)
    known = (CLIPS + 2) / (2 * CLIPS)
    assert found["accuracy"].value == pytest.approx(known)
    assert found["answer is a candidate"].value == pytest.approx(known)
    assert found["accuracy"].chance == pytest.approx(known / 3)
    blind = [task.image_blind.answer(item) == item.answers[0] for item in items]
    assert found["image-blind baseline"].value == pytest.approx(np.mean(blind))
    assert found.predictions[1] == {"question_id": 1, "answer": "0"}


def test_a_video_is_read_and_encoded_once_for_its_questions(clips, scenes_folder, monkeypatch):
    task = VideoQATask.build(video_qa(clips, scenes_folder))
    randomise(task)
    read, encoded_videos = [], []
    videos = task.held_out.view.videos
    sample, encode = videos.evaluation, task.model.vision.forward
    monkeypatch.setattr(
        type(videos), "evaluation", lambda self, source, look: read.append(source) or sample(source, look)
    )
    monkeypatch.setattr(
        task.model.vision, "forward", lambda pixels: encoded_videos.append(len(pixels)) or encode(pixels)
    )
    together = measured(task).predictions
    assert len(read) == sum(encoded_videos) == CLIPS
    alone = VideoQATask.build(video_qa(clips, scenes_folder, "evaluation.batch_size=1"))
    alone.model.load_state_dict(task.model.state_dict())
    assert measured(alone).predictions == together


def test_a_config_states_whether_questions_are_about_images_or_videos():
    assert read_config(ROOT / "configs/vqa/msvd_qa_base.yaml").values.get("task") == "video_qa"
    assert read_config(ROOT / "configs/vqa/vqa2_base_4m.yaml").values.get("task") == "vqa"
    assert read_config(ROOT / "configs/vqa/vqa2_base_4m.yaml", ["task=video_qa"]).values.get("task") == "video_qa"


def test_without_a_decoder_frame_lists_work_and_a_video_file_is_rejected_before_training(
    clips, scenes_folder, monkeypatch
):
    without_decoders(monkeypatch)
    assert measured(RetrievalTask.build(retrieval(clips, scenes_folder)))["videos"].value == CLIPS
    assert measured(VideoQATask.build(video_qa(clips, scenes_folder)))["questions"].value == 2 * CLIPS
    (clips / "film.mp4").write_bytes(b"a file")
    rows = [json.dumps({"video": name, "caption": "a star"}) for name in ("video_0.json", "film.mp4")]
    (clips / "mixed.jsonl").write_text("\n".join(rows))
    for part in ("data.train", "evaluation.test.test"):
        with pytest.raises(UserError) as caught:
            RetrievalTask.build(retrieval(clips, scenes_folder, f"{part}.annotations={clips}/mixed.jsonl"))
        assert "film.mp4 (" in str(caught.value)
        assert str(caught.value) == OneLine("video file", "pip install av")
        assert "\n" not in str(caught.value)


def test_questions_about_images_and_about_videos_are_distinguished(clips, scenes_folder, tmp_path):
    (tmp_path / "v2.json").write_text(json.dumps({"questions": [{"image_id": 1, "question": "what?"}]}))
    for file in (f"{scenes_folder}/vqa_train.jsonl", f"{tmp_path}/v2.json"):
        with pytest.raises(UserError, match=naming("data.train", "images", "videos")):
            VideoQATask.build(video_qa(clips, scenes_folder, f"data.train.questions={file}"))


def test_mistakes_are_reported_in_one_line_before_training(clips, scenes_folder):
    with pytest.raises(UserError, match=naming("data.train", "model.vision.video.frames")):
        RetrievalTask.build(retrieval(clips, scenes_folder, "model.vision.video=null"))
    with pytest.raises(UserError, match=r"evaluation.answers: .* lists 3 answers; set model.classes=3, not 4"):
        VideoQATask.build(video_qa(clips, scenes_folder, "model.classes=4"))
    with pytest.raises(UserError, match=r"needs model.vision.video.frames"):
        video_qa(clips, scenes_folder, "model.vision.video=null")
    images = [
        f"data.train=[{{questions: {scenes_folder}/vqa_train.jsonl}}]",
        f"evaluation.answers={scenes_folder}/vqa_answers.json",
        f"evaluation.validation.questions={scenes_folder}/vqa_val.jsonl",
        f"evaluation.test.test.questions={scenes_folder}/vqa_test.jsonl",
        "model.vision.video.frames=3",
    ]
    config = load_config(ROOT / "configs/demo/vqa.yaml", [*sizes(scenes_folder), *images], VQAConfig)
    with pytest.raises(UserError, match=naming("model.vision.video", "images")):
        VQATask.build(config)


def test_videos_are_drawn_as_strips_of_their_frames(clips, scenes_folder):
    """The frames are side by side in questions and in queries, and stacked in retrieved videos."""
    asked = VideoQATask.build(video_qa(clips, scenes_folder))
    found = RetrievalTask.build(retrieval(clips, scenes_folder))
    for task, number, wide in ((asked, 0, True), (found, 0, False), (found, CLIPS, True)):
        items = task.held_out.test["test"]
        with evaluating(task.model, "fp32"):
            predictions = task.evaluate(items).predictions
        panel = task.panel(items, number, predictions[number], ImageReader(task.held_out.view))
        for picture in panel.pictures:
            height, width = picture.pixels.shape[:2]
            assert width / height == pytest.approx(BITS / 2 * (3 if wide else 1 / 3), rel=0.1)
