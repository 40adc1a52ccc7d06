"""The tensors that each fine-tuning model loads from a pre-training checkpoint, compared with every entry of the authors'
mappings by value.

A mapping lists tensors that keep their names (``identity``, a count), tensors that are renamed (``renamed``, new name to old),
tensors that stay random (``from_scratch``), tensors that train at a higher rate (``init_params_after``), and unused tensors of
the file (``unused_source``). Variant ``a`` has equal numbers of text and fusion layers, and texts as wide as images. Variant
``b`` has three text layers and two fusion layers, and texts wider than images.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints import LoadReport, initialise
from models.checkpoints.files import read_weights
from models.checkpoints.initialise import fresh_parameters
from models.checkpoints.loading import load_published
from models.checkpoints.rename import DROPPED, TIED, bert_to_ours, published_to_ours
from models.config import (
    DecoderConfig,
    GroundingModelConfig,
    InitConfig,
    NLVRModelConfig,
    PretrainModelConfig,
    StreamWeights,
    TextConfig,
    VideoQAModelConfig,
    VQAModelConfig,
)
from models.core.backbones.tables import resize_bias_table
from models.core.vision import FRAME_POSITIONS
from models.core.xvlm import XVLM
from models.pretraining.model import PretrainModel
from models.tasks.captioning import CaptioningModel
from models.tasks.grounding import GroundingModel
from models.tasks.nlvr import NLVRModel
from models.tasks.retrieval import RetrievalModel
from models.tasks.video_qa import VideoQAModel
from models.tasks.vqa import VQAModel
from tests.models.golden import GOLDEN, manifest, model_config
from tests.models.published import published_state

MAPPINGS = json.loads((GOLDEN / "checkpoint_keys/checkpoint_mapping_tiny.json").read_text())
CCLM = "cclm_from_xvlm_replace_text"
FRAMES = 3
MORE_FRAMES = 5


def pretrain_config(variant: str) -> PretrainModelConfig:
    config = model_config(manifest("pretrain"), frames=FRAMES)
    if variant == "a":
        return config
    vision = config.vision.model_copy(update={"width": 16, "heads": 2, "depth": 2})
    arch = config.text.arch.model_copy(update={"layers": 3})
    return config.model_copy(update={"vision": vision, "text": TextConfig(arch=arch)})


@functools.cache
def pretrained(variant: str) -> dict[str, Tensor]:
    if variant == "a":
        return read_weights(GOLDEN / "pretrain" / "model.safetensors")
    torch.manual_seed(0)
    model = PretrainModel(pretrain_config("b"), streams=StreamWeights(videos=1.0))
    state = published_state(model, "pretrain_base_video")
    # Random values distinguish all tensors. Freshly initialised norms and biases would all be ones and zeros.
    state = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    return state | {copy: state[original] for copy, original in TIED.items() if copy in state}


def vqa_model(config: PretrainModelConfig, layers: int) -> VQAModel:
    decoder = DecoderConfig(layers=layers)
    return VQAModel(VQAModelConfig(vision=config.vision, text=config.text, fusion=config.fusion, decoder=decoder))


def fine_tuned(name: str, config: PretrainModelConfig) -> XVLM:
    """The model of a mapping, with random weights."""
    vision = config.vision
    still = config.model_copy(update={"vision": vision.model_copy(update={"video": None})})
    if name == "retrieval_bigger_image":
        bigger = still.vision.model_copy(update={"image_size": 2 * vision.image_size})
        return RetrievalModel(still.model_copy(update={"vision": bigger}))
    if name == "retrieval_video_more_frames":
        video = vision.video.model_copy(update={"frames": MORE_FRAMES})
        return RetrievalModel(config.model_copy(update={"vision": vision.model_copy(update={"video": video})}))
    if name == "videoqa":
        return VideoQAModel(VideoQAModelConfig(vision=vision, text=config.text, fusion=config.fusion, classes=7))
    if name.startswith("vqa"):
        return vqa_model(still, config.fusion.layers // (2 if "half" in name else 1))
    parts = {"vision": still.vision, "text": still.text, "fusion": still.fusion}
    if name == "nlvr":
        return NLVRModel(NLVRModelConfig(**parts))
    if name == "grounding":
        return GroundingModel(GroundingModelConfig(**parts))
    return {"retrieval": RetrievalModel, "captioning": CaptioningModel}[name](still)


def assert_transformed(model: XVLM, name: str, source: Tensor, before: Tensor) -> None:
    after = model.state_dict()[name]
    if name == FRAME_POSITIONS:
        assert torch.equal(after[:, :FRAMES], source)
        assert torch.equal(after[:, FRAMES:], before[:, FRAMES:])
    else:
        torch.testing.assert_close(after, resize_bias_table(source, *model.vision.grid))


def assert_mapped(
    mapping: dict, model: XVLM, before: dict[str, Tensor], state: dict[str, Tensor], reports: list[LoadReport]
) -> None:
    """Checks that the model has the weights that the mapping states. ``before`` are the model's initial random weights, and
    ``state`` are all tensors in the files, under the names used in the mapping."""
    rename = published_to_ours(len(model.text.encoder.layer))
    after = model.state_dict()
    renamed = {key: source for key, source in mapping["renamed"].items() if key not in TIED}
    from_scratch = {rename(key) for key in mapping["from_scratch"] if key not in TIED and not is_buffer(key)}
    for key, source in renamed.items():
        if source.startswith("TRANSFORMED"):
            assert_transformed(model, rename(key), state[key], before[rename(key)])
        else:
            assert torch.equal(after[rename(key)], state[source]), key
    for name in from_scratch:
        assert torch.equal(after[name], before[name]), name
    kept = after.keys() - from_scratch - {rename(key) for key in renamed}
    names = {rename(key): key for key in state if not key.startswith("XLMR:")}
    for name in kept:
        assert torch.equal(after[name], state[names[name]]), name
    stored_twice = [key for key in state if key in TIED and key not in mapping["unused_source"]]
    assert len(kept) + len(stored_twice) == mapping["identity"]
    assert {name for report in reports for name in report.fresh} == from_scratch
    assert fresh_parameters(model, reports) == {rename(key) for key in mapping["init_params_after"]}


def is_buffer(key: str) -> bool:
    return key.rsplit(".", 1)[-1] in DROPPED


def assert_no_other_unused_tensors(mapping: dict, left_over: list[str]) -> None:
    """Checks ``left_over``, the tensors in the files that were not loaded. The authors' mapping lists a resized tensor twice, as
    transformed and as unused."""
    transformed = {key for key, source in mapping["renamed"].items() if source.startswith("TRANSFORMED")}
    expected = set(mapping["unused_source"]) - transformed
    loaded_by_its_original = {key for key in left_over if key in TIED and key not in expected}
    assert {key for key in left_over if not is_buffer(key)} - loaded_by_its_original == expected


@pytest.mark.parametrize("entry", [entry for entry in MAPPINGS if not entry.endswith(CCLM)])
def test_a_pretraining_checkpoint_is_loaded_as_by_the_published_code(entry):
    variant, _, name = entry.partition(":")
    mapping, state = MAPPINGS[entry], pretrained(variant)
    torch.manual_seed(1)
    model = fine_tuned(name, pretrain_config(variant))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_published(model, state, "golden")
    assert_mapped(mapping, model, before, state, [report])
    assert_no_other_unused_tensors(mapping, [*report.unused, *report.dropped])


def multilingual_model(config: PretrainModelConfig) -> PretrainModel:
    arch = config.text.arch
    fusion = {"width": arch.width, "heads": arch.heads, "intermediate": arch.intermediate, "eps": arch.eps}
    xlm_r = arch.model_copy(update={"family": "roberta", "vocab_size": 90, "token_types": 1, "pad_id": 1, "eps": 1e-5})
    return PretrainModel(
        config.model_copy(
            update={
                "vision": config.vision.model_copy(update={"video": None}),
                "text": TextConfig(arch=xlm_r),
                "fusion": config.fusion.model_copy(update=fusion),
                "word_table": "own",
            }
        )
    )


def xlm_r_state(mapping: dict, model: PretrainModel) -> dict[str, Tensor]:
    """An XLM-R file with random values for the tensors that the mapping names.

    The authors' tiny file may have more layers than the model, and their code drops them. Our code rejects such a file
    (tests/models/test_initialise.py), so the additional layers are omitted here.
    """
    rename, parameters = published_to_ours(len(model.text.encoder.layer)), model.state_dict()
    state = {
        source: torch.randn_like(parameters[rename(key)])
        for key, source in mapping["renamed"].items()
        if source.startswith("XLMR:")
    }
    heads = [key for key in mapping["unused_source"] if key.startswith("XLMR:lm_head.")]
    return state | {key: torch.randn(3) for key in heads}


@pytest.mark.parametrize("variant", ["a", "b"])
def test_a_multilingual_model_loads_everything_except_its_text_encoder_from_an_english_checkpoint(
    variant, tmp_path: Path
):
    mapping, english = MAPPINGS[f"{variant}:{CCLM}"], pretrained(variant)
    torch.manual_seed(1)
    model = multilingual_model(pretrain_config(variant))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    xlm_r = xlm_r_state(mapping, model)
    save_file({key: value.clone() for key, value in english.items()}, tmp_path / "english.safetensors")
    (tmp_path / "xlm_r").mkdir()
    save_file({key.removeprefix("XLMR:"): value for key, value in xlm_r.items()}, tmp_path / "xlm_r/model.safetensors")
    config = InitConfig(checkpoint=str(tmp_path / "english.safetensors"), text=str(tmp_path / "xlm_r"))
    whole, text = initialise(model, config)
    assert_mapped(mapping, model, before, english | xlm_r, [whole, text])
    of_the_file = [key for key in mapping["unused_source"] if not key.startswith("XLMR:")]
    assert_no_other_unused_tensors(mapping | {"unused_source": of_the_file}, [*whole.unused, *whole.dropped])
    heads = [key.removeprefix("XLMR:") for key in xlm_r if key.startswith("XLMR:lm_head.")]
    assert {*text.unused, *text.dropped} == {bert_to_ours(key) or key for key in heads}
