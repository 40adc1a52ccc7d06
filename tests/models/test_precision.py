"""Models never reduce the precision of their inputs: a float64 model with float64 inputs has float64 outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from batches.base import Batch, map_tensors
from batches.grounding import GroundingBatch
from batches.nlvr import StatementBatch
from models.config import DecodingConfig, GroundingModelConfig, NLVRModelConfig, VideoQAModelConfig, VQAModelConfig
from models.core.losses import at_least_float32
from models.core.xvlm import XVLM
from models.inference.reranking import TextBank, score_pairs
from models.tasks.captioning import CaptioningModel
from models.tasks.grounding import GroundingModel
from models.tasks.nlvr import NLVRModel
from models.tasks.retrieval import RetrievalModel
from models.tasks.video_qa import VideoQAModel
from models.tasks.vqa import VQAModel
from tests.models import test_golden_captioning, test_golden_vqa, test_video
from tests.models.golden import GOLDEN, arrays, manifest, model_config
from tests.models.test_golden_downstream import retrieval_batch, text_of


def vqa() -> tuple[XVLM, Batch]:
    config = model_config(manifest("vqa"))
    parts = {"vision": config.vision, "text": config.text, "fusion": config.fusion}
    return VQAModel(VQAModelConfig(**parts)), test_golden_vqa.batch()


def captioning() -> tuple[XVLM, Batch]:
    return CaptioningModel(model_config(manifest("captioning"))), test_golden_captioning.batch("fgfree")


def video_qa() -> tuple[XVLM, Batch]:
    facts, given = manifest("videoqa"), arrays(GOLDEN / "videoqa" / "inputs.npz")
    config = model_config(facts, frames=facts["config"]["frame_len"])
    parts = {"vision": config.vision, "text": config.text, "fusion": config.fusion}
    model = VideoQAModel(VideoQAModelConfig(**parts, classes=facts["config"]["num_labels"]))
    return model, test_video.question(given, given["targets"], torch.arange(2), torch.ones(2))


def encoders(facts: Any) -> dict[str, Any]:
    """The sections of the encoders of a golden model."""
    config = model_config(facts)
    return {"vision": config.vision, "text": config.text, "fusion": config.fusion}


def retrieval() -> tuple[XVLM, Batch]:
    given = arrays(GOLDEN / "retrieval" / "inputs.npz")
    return RetrievalModel(model_config(manifest("retrieval"))), retrieval_batch(given, given["train_idx"])


def nlvr() -> tuple[XVLM, Batch]:
    given, valid = arrays(GOLDEN / "nlvr" / "inputs.npz"), torch.ones(3, dtype=torch.bool)
    batch = StatementBatch(given["image"], text_of(given), given["targets"], valid)
    return NLVRModel(NLVRModelConfig(**encoders(manifest("nlvr")))), batch


def grounding() -> tuple[XVLM, Batch]:
    given, valid = arrays(GOLDEN / "grounding" / "inputs.npz"), torch.ones(3, dtype=torch.bool)
    batch = GroundingBatch(given["image"], text_of(given), given["target_bbox"].unsqueeze(1), valid.unsqueeze(1), valid)
    return GroundingModel(GroundingModelConfig(**encoders(manifest("grounding")))), batch


def in_float64(model: XVLM, batch: Batch) -> tuple[XVLM, Batch]:
    doubled = map_tensors(batch, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    return model.double().eval(), doubled


@pytest.mark.parametrize("task", [vqa, captioning, video_qa, retrieval, nlvr, grounding])
@torch.no_grad()
def test_no_loss_of_a_float64_model_is_float32(task):
    model, batch = in_float64(*task())
    assert {term.total.dtype for term in model(batch).values()} == {torch.float64}


@torch.no_grad()
def test_decoding_and_reranking_scores_stay_in_float64():
    model, batch = in_float64(*captioning())
    memory = model.project_images(batch.pixels)
    found = model.generate(memory, test_golden_captioning.TOKENS, DecodingConfig(max_length=3, min_length=0))
    assert found.score.dtype == torch.float64
    model, batch = in_float64(*retrieval())
    bank = TextBank.of(model.text([batch.text]))
    requested = [torch.arange(2)] * len(batch.pixels)
    scores = score_pairs(model.fusion, model.matching_head, model.vision(batch.pixels), requested, bank)
    assert {score.dtype for score in scores} == {torch.float64}


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32)],
)
def test_lower_precisions_become_float32(given, expected):
    assert at_least_float32(torch.ones(1, dtype=given)).dtype == expected
