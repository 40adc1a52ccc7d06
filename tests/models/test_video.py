"""Videos: the authors' results (golden cases `pretrain` and `videoqa`), and the information that each pooling of frames keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from batches.base import IGNORE
from batches.pretraining import PretrainBatch
from batches.questions import ClassifiedBatch
from batches.texts import Text
from models.checkpoints.files import read_weights
from models.checkpoints.initialise import fresh_parameters
from models.checkpoints.loading import load_published
from models.checkpoints.rename import DROPPED, TIED, published_to_ours
from models.config import PretrainModelConfig, StreamWeights, VideoConfig, VideoQAModelConfig, VisionConfig
from models.core.fusion import FusionPass
from models.core.vision import FRAME_POSITIONS, VisionEncoder
from models.pretraining.model import PretrainModel
from models.tasks.retrieval import RetrievalModel
from models.tasks.video_qa import VideoQAModel
from tests.devices import copied_to, moved
from tests.models.golden import (
    GOLDEN,
    PublishedNegatives,
    arrays,
    assert_golden,
    encoded,
    manifest,
    model_config,
    pretrain_batch,
    video_batch,
)
from utils.errors import UserError

GIVEN = arrays(GOLDEN / "pretrain" / "inputs.npz")
EXPECTED = arrays(GOLDEN / "pretrain" / "expected.npz")
MAPPINGS = json.loads((GOLDEN / "checkpoint_keys/checkpoint_mapping_tiny.json").read_text())
LOSSES = {"contrastive": "itc", "matching": "itm", "mlm": "mlm"}


def load(model, case: str):
    source = GOLDEN / case / "model.safetensors"
    report = load_published(model, read_weights(source), str(source))
    report.require_complete()
    return model.eval()


@pytest.fixture(scope="module")
def loaded() -> PretrainModel:
    streams = StreamWeights(videos=1.0)
    return load(PublishedNegatives(model_config(manifest("pretrain"), frames=3), streams=streams), "pretrain")


@pytest.fixture
def model(loaded, device) -> PretrainModel:
    return copied_to(device, loaded)


@pytest.fixture
def given(device) -> dict[str, Tensor]:
    return moved(GIVEN, device)


def means(model, batch) -> dict[str, Tensor]:
    terms, counts = model(batch), model.counts(batch)
    assert terms.keys() == counts.keys()
    return {name: term.total / counts[name].clamp(min=1) for name, term in terms.items()}


def of_questions(config: PretrainModelConfig, classes: int) -> VideoQAModelConfig:
    return VideoQAModelConfig(vision=config.vision, text=config.text, fusion=config.fusion, classes=classes)


@torch.no_grad()
def test_a_video_equals_the_published_encoder(model, given):
    assert_golden(model.vision(given["video"]).states(), EXPECTED["video_embeds"])


@torch.no_grad()
def test_matching_logits_of_videos_equal_the_published_ones(model, given):
    concepts = model.vision(given["video"])
    text = encoded(model, given["video_text_ids"], given["video_text_atts"])
    memory = model.fusion.project_concepts(concepts)
    passes = [
        FusionPass.cls(text, memory),
        FusionPass.cls(text, memory.select(given["video_image_neg_idx"])),
        FusionPass.cls(text.select(given["video_text_neg_idx"]), memory),
    ]
    found = model.matching_head(torch.cat(model.fusion.fuse(passes)))
    assert_golden(found, EXPECTED["video_itm_logits"])


def test_losses_of_videos_equal_the_published_ones(model, given, device):
    model.matching_head.drawn = [given["video_image_neg_idx"], given["video_text_neg_idx"]]
    for name, loss in means(model, moved(video_batch(GIVEN), device)).items():
        assert_golden(loss, EXPECTED[f"video_loss_{LOSSES[name.removeprefix('videos/')]}"])


def all_streams() -> PretrainBatch:
    return replace(pretrain_batch(GIVEN), videos=video_batch(GIVEN).videos)


def test_one_backbone_pass_over_all_streams_gives_each_its_own_losses(model, monkeypatch, given, device):
    calls = []
    patches = model.vision.patches
    monkeypatch.setattr(model.vision, "patches", lambda pixels: calls.append(len(pixels)) or patches(pixels))
    negatives = [*("image_neg_idx", "text_neg_idx"), *("video_image_neg_idx", "video_text_neg_idx")]
    model.matching_head.drawn = [*(given[name] for name in negatives), *[torch.arange(7, device=device).roll(1)] * 2]
    found = means(model, moved(all_streams(), device))
    assert calls == [4 + 3 + 2 * 3]
    for stream, published in (("images", "image"), ("videos", "video")):
        for name, short in LOSSES.items():
            assert_golden(found[f"{stream}/{name}"], EXPECTED[f"{published}_loss_{short}"])
    assert_golden(found["regions/l1"], EXPECTED["region_loss_bbox"])


def test_without_matching_the_other_losses_stay_and_every_parameter_has_a_gradient(model, device):
    both = [torch.arange(count, device=device).roll(1) for count in (4, 2, 7)]
    model.matching_head.drawn = [each for each in both for _ in range(2)]
    expected = means(model, moved(all_streams(), device))
    model.matching_head.drawn = [each for each in both for _ in range(2)]
    batch = replace(moved(all_streams(), device), unmatched=("images", "videos", "regions"))
    found = means(model, batch)
    assert found.keys() == expected.keys()
    for name, loss in found.items():
        assert_golden(loss, torch.zeros(()) if name.endswith("matching") else expected[name].detach())
    assert all(model.counts(batch)[f"{stream}/matching"] == 0 for stream in batch.unmatched)
    sum(found.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture
def video_qa(device) -> tuple[VideoQAModel, dict[str, Tensor], dict[str, Tensor]]:
    """The model, the inputs of the case on the same device, and the expected outputs."""
    facts = manifest("videoqa")
    shared = model_config(facts, frames=facts["config"]["frame_len"])
    config = of_questions(shared, facts["config"]["num_labels"])
    given, expected = (arrays(GOLDEN / "videoqa" / f"{name}.npz") for name in ("inputs", "expected"))
    return load(VideoQAModel(config), "videoqa").to(device), moved(given, device), expected


def question(given: dict[str, Tensor], labels: Tensor, owner: Tensor, weights: Tensor) -> ClassifiedBatch:
    text = Text(given["text_ids"], given["text_atts"].bool())
    valid = torch.ones(len(text.ids), dtype=torch.bool, device=text.ids.device)
    return ClassifiedBatch(given["video"], text, labels, owner, weights, valid)


@torch.no_grad()
def test_class_logits_of_video_questions_equal_the_published_ones(video_qa):
    model, given, expected = video_qa
    text = Text(given["text_ids"], given["text_atts"].bool())
    assert_golden(model.classify(given["video"], text), expected["logits"])
    assert_golden(model.classify(None, text), expected["text_only_logits"])


@torch.no_grad()
def test_an_answer_outside_the_list_adds_no_loss(video_qa, device):
    model, given, expected = video_qa
    batch = question(given, given["targets"], torch.arange(2, device=device), torch.ones(2, device=device))
    assert IGNORE in given["targets"].tolist()
    assert_golden(means(model, batch)["answers"], expected["loss"])


@torch.no_grad()
def test_the_loss_of_several_weighted_answers_equals_the_published_one(video_qa, device):
    model, given, expected = video_qa
    owner = torch.arange(2, device=device).repeat_interleave(given["vqa_k"])
    batch = question(given, given["vqa_targets"], owner, given["vqa_weights"])
    assert_golden(means(model, batch)["answers"], expected["vqa_classification_loss"])


@pytest.mark.parametrize("name", ["retrieval_video_more_frames", "videoqa"])
@pytest.mark.parametrize("frames", [3, 5, 2])
def test_a_pretraining_checkpoint_loads_as_published_for_any_number_of_frames(name, frames):
    mapping, state = MAPPINGS[f"a:{name}"], read_weights(GOLDEN / "pretrain" / "model.safetensors")
    config = model_config(manifest("pretrain"), frames=frames)
    asking = of_questions(config, 7)
    model = VideoQAModel(asking) if name == "videoqa" else RetrievalModel(config)
    before = model.vision.frame_positions.detach().clone()
    report = load_published(model, state, "golden")
    rename = published_to_ours(len(model.text.encoder.layer))
    assert sorted(report.fresh) == sorted(rename(key) for key in mapping["from_scratch"])
    fresh = {rename(key) for key in mapping["init_params_after"]} - {FRAME_POSITIONS}
    assert fresh_parameters(model, [report]) == fresh | ({FRAME_POSITIONS} if frames > 3 else set())
    table, both = model.vision.frame_positions, min(frames, 3)
    assert torch.equal(table[:, :both], state["absolute_frame_pos_embed"][:, :both])
    assert torch.equal(table[:, both:], before[:, both:])
    message = [line for line in report.lines() if f"resized {FRAME_POSITIONS}" in line]
    assert message == (
        []
        if frames == 3
        else [
            f"  resized {FRAME_POSITIONS}: the first {both} of 3 frames in the file, for {frames} frames in the model"
        ]
    )


def test_a_table_of_another_width_is_rejected():
    state = read_weights(GOLDEN / "pretrain" / "model.safetensors")
    state["absolute_frame_pos_embed"] = torch.zeros(1, 3, 1, 5)
    model = RetrievalModel(model_config(manifest("pretrain"), frames=5))
    with pytest.raises(UserError, match=r"absolute_frame_pos_embed is \(1, 3, 1, 5\)"):
        load_published(model, state, "golden")


def test_an_image_model_has_no_parameters_for_videos():
    model = PretrainModel(model_config(manifest("pretrain")))
    assert FRAME_POSITIONS not in dict(model.named_parameters())
    report = load_published(model, read_weights(GOLDEN / "pretrain" / "model.safetensors"), "golden")
    assert report.unused == ["absolute_frame_pos_embed"]


def vision(pooling: str) -> VisionEncoder:
    torch.manual_seed(0)
    sizes = VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, drop_path=0)
    return VisionEncoder(sizes.model_copy(update={"video": VideoConfig(frames=3, pooling=pooling)})).eval()


@torch.no_grad()
def test_the_mean_over_time_loses_the_order_of_frames_and_tokens_keep_it():
    frames = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    backwards = frames.flip(1)
    mean, tokens = vision("mean"), vision("tokens")
    torch.testing.assert_close(mean(frames).patches, mean(backwards).patches)
    assert mean(frames).patches.shape == (2, 4, 16)
    assert tokens(frames).patches.shape == (2, 12, 16)
    assert not torch.allclose(tokens(frames).patches.sort(dim=1).values, tokens(backwards).patches.sort(dim=1).values)
    torch.testing.assert_close(tokens(frames).mean, tokens(backwards).mean)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_a_video_with_fewer_frames_uses_the_first_positions(pooling):
    encoder = vision(pooling)
    patches = torch.randn(2, 2, 4, 16)
    expected = patches + encoder.frame_positions[:, :2]
    expected = expected.mean(dim=1) if pooling == "mean" else expected.flatten(1, 2)
    torch.testing.assert_close(encoder.video(patches).patches, expected)


@torch.no_grad()
def test_the_fusion_attends_to_every_frame_of_tokens():
    facts = manifest("pretrain")
    config = model_config(facts, frames=3)
    video = VideoConfig(frames=3, pooling="tokens")
    other = RetrievalModel(
        config.model_copy(update={"vision": config.vision.model_copy(update={"video": video})})
    ).eval()
    text = encoded(other, GIVEN["video_text_ids"], GIVEN["video_text_atts"])

    def cls(pixels: Tensor) -> Tensor:
        return other.fusion.cls(text, other.fusion.project_concepts(other.vision(pixels)))

    pixels = GIVEN["video"]
    for frame in range(3):
        changed = pixels.clone()
        changed[:, frame] = 0
        assert not torch.allclose(cls(pixels), cls(changed), atol=1e-5)


def test_every_tensor_of_published_video_checkpoints_has_a_parameter():
    """Names and shapes in the published files are exactly the names and shapes of our parameters."""
    cases = {
        "pretrain_base_video": (PretrainModel, 3),
        "retrieval_base_video": (RetrievalModel, 8),
        "videoqa_base": (VideoQAModel, 5),
    }
    from models.config import TextArchitecture, TextConfig

    counts = json.loads((GOLDEN / "checkpoint_keys/param_counts.json").read_text())
    rename = published_to_ours(text_layers=12)
    for name, (kind, frames) in cases.items():
        config = PretrainModelConfig(
            vision=VisionConfig(video=VideoConfig(frames=frames)),
            text=TextConfig(arch=TextArchitecture(vocab_size=30522)),
        )
        if kind is VideoQAModel:
            config = of_questions(config, 1500)
        with torch.device("meta"):
            model = kind(config)
        published = json.loads((GOLDEN / f"checkpoint_keys/{name}.json").read_text())["keys"]
        expected = {
            rename(key): tuple(shape)
            for key, shape in published.items()
            if key.rsplit(".", 1)[-1] not in DROPPED and key not in TIED
        }
        assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
        assert sum(parameter.numel() for parameter in model.parameters()) == counts[name]["total"]
