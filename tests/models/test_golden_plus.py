"""The authors' results with XLM-R and a separate fusion (golden case `xlmplus`), through the real loading code."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from batches.pretraining import ImageTextBatch, PretrainBatch, TranslationBatch
from batches.texts import Text
from models.checkpoints.files import read_weights
from models.checkpoints.initialise import fresh_parameters
from models.checkpoints.loading import load_published
from models.checkpoints.rename import DROPPED, SHARED_WORDS, TIED, published_to_ours
from models.config import (
    AligningConfig,
    DecoderConfig,
    FusionConfig,
    LossWeights,
    ModelConfig,
    NLVRModelConfig,
    PretrainModelConfig,
    StreamWeights,
    TextArchitecture,
    TextConfig,
    VisionConfig,
    VQAModelConfig,
)
from models.core.packing import PackedTexts
from models.core.xvlm import XVLM
from models.pretraining.model import PretrainModel
from models.tasks.captioning import CaptioningModel
from models.tasks.nlvr import NLVRModel
from models.tasks.retrieval import RetrievalModel
from models.tasks.vqa import VQAModel
from optim.config import OptimConfig
from optim.groups import parameter_groups
from tests.devices import copied_to, moved
from tests.models.golden import (
    GOLDEN,
    PublishedNegatives,
    arrays,
    assert_golden,
    cross_encoder,
    encoded,
    fused,
    manifest,
    masked_text,
    text_architecture,
)
from tests.models.published import published_state
from utils.errors import UserError

CASE = GOLDEN / "xvlmplus"
GIVEN = arrays(CASE / "inputs.npz")
EXPECTED = arrays(CASE / "expected.npz")


def case_config() -> PretrainModelConfig:
    facts = manifest("xvlmplus")
    vision, text, cross = facts["vision"], facts["xlmr_text"], facts["text"]
    return PretrainModelConfig(
        vision=VisionConfig(
            image_size=vision["image_res"],
            patch_size=vision["patch_size"],
            width=vision["width"],
            depth=vision["depth"],
            heads=vision["heads"],
        ),
        text=TextConfig(arch=text_architecture({"model_type": "xlm-roberta", **text}, facts["n_text_layers"])),
        fusion=cross_encoder(cross, facts["n_cross_layers"]),
        embed_dim=facts["config"]["embed_dim"],
        word_table="own",
    )


@pytest.fixture(scope="module")
def loaded() -> PretrainModel:
    model = PublishedNegatives(case_config(), streams=StreamWeights(images=1.0, regions=1.0, translations=1.0))
    state = read_weights(CASE / "model.safetensors")
    report = load_published(model, state, "case")
    assert report.fresh == []
    assert report.unused == []
    return model.eval()


@pytest.fixture
def model(loaded, device) -> PretrainModel:
    return copied_to(device, loaded)


@pytest.fixture
def given(device) -> dict[str, Tensor]:
    return moved(GIVEN, device)


@pytest.fixture
def text(model, given) -> PackedTexts:
    return encoded(model, given["text_ids"], given["text_atts"])


def test_text_states_equal_the_published_xlm_roberta(text):
    assert_golden(text.padded(), EXPECTED["text_embeds"], text.packing.mask)


def test_fusion_equals_the_published_cross_encoder(model, text, given):
    memory = model.fusion.project_concepts(model.vision(given["image"]))
    assert_golden(fused(model, text, memory), EXPECTED["fusion_embeds"], text.packing.mask)


@pytest.mark.parametrize("order", ["as given", "reversed", "two at each"])
def test_fusion_attends_to_texts_as_published(model, text, given, order, device):
    memory = model.fusion.project_texts(encoded(model, given["text_ids_2"], given["text_atts_2"]))
    rows = torch.arange(text.packing.count, device=device)
    if order == "reversed":
        rows = rows.flip(0)
        memory = memory.select(rows)
    if order == "two at each":
        rows = rows.repeat_interleave(2)
    texts = text.select(rows)
    assert_golden(fused(model, texts, memory), EXPECTED["text_text_fusion_embeds"][rows.cpu()], texts.packing.mask)


def batch() -> PretrainBatch:
    valid = torch.ones(len(GIVEN["image"]), dtype=torch.bool)
    other = Text(GIVEN["text_ids_2"], GIVEN["text_atts_2"].bool())
    return PretrainBatch(
        images=ImageTextBatch(GIVEN["image"], masked_text(GIVEN), valid),
        regions=None,
        texts=None,
        translations=TranslationBatch(masked_text(GIVEN), other, valid),
    )


def test_losses_of_images_and_of_parallel_texts_equal_the_published_ones(model, given, device):
    model.matching_head.drawn = [
        given[f"{name}_neg_idx{end}"] for name, end in (("image", ""), ("text", ""), ("para", "_a"), ("para", "_b"))
    ]
    everything = moved(batch(), device)
    terms, counts = model(everything), model.counts(everything)
    assert terms.keys() == counts.keys()
    published = {"contrastive": ("itc", "ttc"), "matching": ("itm", "ttm"), "mlm": ("mlm", "mlm")}
    for name, (of_images, of_pairs) in published.items():
        assert_golden(terms[f"images/{name}"].total / counts[f"images/{name}"], EXPECTED[f"image_loss_{of_images}"])
        assert_golden(
            terms[f"translations/{name}"].total / counts[f"translations/{name}"], EXPECTED[f"paratext_loss_{of_pairs}"]
        )


ROBERTA = TextArchitecture(family="roberta", vocab_size=250002, max_positions=514, token_types=1, eps=1e-5, pad_id=1)
"""XLM-R base. The epsilon of its fusion is BERT's."""


def config(kind: type[ModelConfig], image_size: int, **more) -> ModelConfig:
    return kind(
        vision=VisionConfig(image_size=image_size),
        text=TextConfig(arch=ROBERTA),
        fusion=FusionConfig(eps=1e-12),
        **more,
    )


def base_model(name: str) -> XVLM:
    with torch.device("meta"):
        if name == "pretrain_cclm_base":
            streams = StreamWeights(images=1.0, regions=1.0, translations=1.0)
            return PretrainModel(config(PretrainModelConfig, 224, word_table="own"), None, LossWeights(), streams)
        if name == "plus_retrieval_base":
            return RetrievalModel(config(AligningConfig, 384))
        if name == "plus_vqa_base":
            return VQAModel(config(VQAModelConfig, 384, decoder=DecoderConfig(word_table="shared")))
        if name == "plus_marvl_base":
            return NLVRModel(config(NLVRModelConfig, 384))
        return NLVRModel(config(NLVRModelConfig, 384, images=1, classes=3))


@pytest.mark.parametrize(
    "name", ["pretrain_cclm_base", "plus_retrieval_base", "plus_vqa_base", "plus_marvl_base", "plus_xvnli_base"]
)
def test_every_published_tensor_has_a_parameter_in_a_base_model_with_xlm_r(name):
    model = base_model(name)
    published = json.loads((GOLDEN / "checkpoint_keys" / f"{name}.json").read_text())["keys"]
    rename = published_to_ours(text_layers=12)
    expected = {
        rename(key): tuple(shape)
        for key, shape in published.items()
        if key.rsplit(".", 1)[-1] not in DROPPED and key not in TIED and key not in SHARED_WORDS
    }
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    total = json.loads((GOLDEN / "checkpoint_keys" / "param_counts.json").read_text())[name]["total"]
    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_optimiser_groups_of_multilingual_pre_training_equal_the_released_ones():
    model = base_model("pretrain_cclm_base")
    rates = OptimConfig(lr=4e-5, lr_mult=2, vision_lr=2e-5, text_lr=8e-5, cross_lr=4e-5)
    groups = parameter_groups(model.named_parameters(), rates, fresh_parameters(model, []))
    found = {name: [group["lr"], group["weight_decay"]] for group in groups for name in group["names"]}
    content = json.loads((GOLDEN / "checkpoint_keys" / "optim_groups_pretrain_cclm_base.json").read_text())
    (released,) = content.values()
    rename = published_to_ours(text_layers=12)
    assert found == {rename(name): group for name, group in released.items()}


def multilingual_vqa(words: str, **sizes) -> VQAModel:
    """A model with the sizes of the case ``xvlmplus``, or of XLM-R base on the meta device."""
    if sizes:
        return VQAModel(config(VQAModelConfig, decoder=DecoderConfig(word_table=words), **sizes))
    shared = case_config()
    parts = {"vision": shared.vision, "text": shared.text, "fusion": shared.fusion}
    return VQAModel(VQAModelConfig(**parts, decoder=DecoderConfig(word_table=words)))


def test_an_answer_decoder_with_its_own_word_table_has_all_tensors_of_the_released_xgqa_script():
    """The listed file belongs to the model with a shared word table. Without sharing, the second table is an additional
    parameter."""
    with torch.device("meta"):
        model = multilingual_vqa("own", image_size=384)
    published = json.loads((GOLDEN / "checkpoint_keys" / "plus_vqa_base.json").read_text())["keys"]
    rename = published_to_ours(text_layers=12)
    expected = {
        rename(key): tuple(shape)
        for key, shape in published.items()
        if key.rsplit(".", 1)[-1] not in DROPPED and key not in TIED
    }
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("words", ["own", "shared"])
def test_an_answer_decoder_with_xlm_r_is_loaded_completely(words):
    torch.manual_seed(0)
    source, model = multilingual_vqa(words), multilingual_vqa(words)
    state = published_state(source, "plus_vqa_base")
    tables = [f"text_{part}.word_embeddings.weight" for part in ("encoder.embeddings", "decoder.bert.embeddings")]
    assert torch.equal(*(state[name] for name in tables)) == (words == "shared")
    report = load_published(model, state, "case")
    report.require_complete()
    assert report.copied == {}
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_file_with_a_shared_word_table_loads_into_a_decoder_with_its_own():
    source, model = multilingual_vqa("shared"), multilingual_vqa("own")
    load_published(model, published_state(source, "plus_vqa_base"), "case").require_complete()
    assert torch.equal(model.decoder.words, source.text.word_embeddings)


def test_a_file_with_two_word_tables_needs_a_decoder_with_its_own():
    state = published_state(multilingual_vqa("own"), "plus_vqa_base")
    with pytest.raises(UserError, match=r"text_decoder\.bert.* differs from .*; set model\.decoder\.word_table=own"):
        load_published(multilingual_vqa("shared"), state, "case")


def test_its_own_word_table_starts_randomly_and_layers_start_from_the_fusion():
    model = multilingual_vqa("own")
    report = load_published(model, read_weights(CASE / "model.safetensors"), "case")
    assert {name.split(".")[1] for name in report.fresh} == {"embeddings", "word_head"}
    assert fresh_parameters(model, [report]) == set(report.fresh)
    assert torch.equal(model.decoder.layer[0].output.dense.weight, model.fusion.layer[0].output.dense.weight)


def test_word_heads_have_the_eps_of_the_same_encoder_as_the_authors():
    """The encoder is the text encoder in pre-training and captioning, and the fusion in the answer decoder, which is initialised
    from it."""
    shared = case_config()
    text, fusion = shared.text.arch.eps, shared.fusion.eps
    assert (text, fusion) == (1e-5, 1e-12)
    parts = {"vision": shared.vision, "text": shared.text, "fusion": shared.fusion.model_copy(update={"eps": 1e-6})}
    captioning = CaptioningModel(ModelConfig(**parts))
    assert PretrainModel(shared).word_head.transform.LayerNorm.eps == text
    assert captioning.word_head.transform.LayerNorm.eps == text
    for words in ("own", "shared"):
        decoder = VQAModel(VQAModelConfig(**parts, decoder=DecoderConfig(word_table=words))).decoder
        assert decoder.word_head.transform.LayerNorm.eps == 1e-6
        assert decoder.embeddings.LayerNorm.eps == 1e-6
