"""Replacing the text encoder after pre-training: which weights are kept, replaced or initialised, and how the log reports it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import DistilBertConfig

from batches.texts import Text
from models.checkpoints import initialise
from models.checkpoints.files import read_weights
from models.checkpoints.initialise import fresh_parameters, loaded_weights
from models.checkpoints.loading import load_published
from models.config import (
    AligningConfig,
    DecoderConfig,
    FusionConfig,
    InitConfig,
    NLVRModelConfig,
    PretrainModelConfig,
    TextArchitecture,
    TextConfig,
    VisionConfig,
    VQAModelConfig,
)
from models.core.hub_text import HubTextEncoder
from models.pretraining.model import PretrainModel
from models.tasks.nlvr import NLVRModel
from models.tasks.retrieval import RetrievalModel
from models.tasks.vqa import VQAModel
from tests.messages import OneLine, naming
from tests.models.golden import GOLDEN, encoded, manifest, model_config
from utils.errors import UserError

BERT = TextArchitecture(vocab_size=40, width=16, layers=2, heads=2, intermediate=32, max_positions=12)
ROBERTA = TextArchitecture(
    family="roberta",
    vocab_size=70,
    width=16,
    layers=3,
    heads=2,
    intermediate=24,
    max_positions=14,
    token_types=1,
    eps=1e-5,
    pad_id=1,
)
VISION = VisionConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2)
KEPT = FusionConfig(layers=1, width=16, heads=2, intermediate=32, eps=1e-12)


@pytest.fixture
def checkpoint(tmp_path):
    """A pre-training checkpoint with the small BERT under our names. All its tensors differ from freshly initialised ones."""
    torch.manual_seed(1)
    config = PretrainModelConfig(vision=VISION, text=TextConfig(arch=BERT), fusion=FusionConfig(layers=1), embed_dim=8)
    state = {name: torch.randn_like(value) for name, value in PretrainModel(config).state_dict().items()}
    save_file(state, tmp_path / "english.safetensors")
    return tmp_path / "english.safetensors", state


def roberta_folder(tmp_path, arch: TextArchitecture = ROBERTA):
    """A file like XLM-R's, with its prefix and its word head."""
    torch.manual_seed(2)
    config = PretrainModelConfig(vision=VISION, text=TextConfig(arch=arch), fusion=KEPT, embed_dim=8, word_table="own")
    text = {
        name: torch.randn_like(value)
        for name, value in PretrainModel(config).text.state_dict().items()
        if "projection" not in name
    }
    state = {f"roberta.{name}": value for name, value in text.items()}
    state |= {"lm_head.bias": torch.ones(arch.vocab_size), "lm_head.dense.weight": torch.ones(arch.width, arch.width)}
    folder = tmp_path / "xlmr"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return folder, text


def retrieval(arch: TextArchitecture = ROBERTA, fusion: FusionConfig = KEPT) -> RetrievalModel:
    torch.manual_seed(3)
    return RetrievalModel(AligningConfig(vision=VISION, text=TextConfig(arch=arch), fusion=fusion, embed_dim=8))


def test_vision_fusion_and_heads_are_kept_and_the_text_encoder_is_replaced(checkpoint, tmp_path):
    path, english = checkpoint
    folder, text = roberta_folder(tmp_path)
    model = retrieval()
    reports = initialise(model, InitConfig(checkpoint=str(path), text=str(folder)))
    state = model.state_dict()
    for name, value in state.items():
        expected = text[name.removeprefix("text.")] if name.startswith("text.") else english[name]
        assert torch.equal(value, expected), name
    assert not fresh_parameters(model, reports)
    weights = loaded_weights(model, reports)
    first, others = weights.sources, weights.details
    kept = {part: sum(name.startswith(f"{part}.") for name in reports[0].loaded) for part in ("contrastive", "fusion")}
    assert first == OneLine(f"{kept['contrastive']} of contrastive", f"{kept['fusion']} of fusion")
    assert first == OneLine(path, f"{len(text)} of text", folder)
    log = "\n".join(others)
    assert OneLine("text encoder", "checkpoint") in log.splitlines()
    assert OneLine("width 16", "2 heads", "intermediate 32", "eps 1e-12") in log.splitlines()
    assert OneLine("different text encoder") in log.splitlines()
    assert OneLine("word_head.transform.dense.weight", "checkpoint") in log.splitlines()


def test_without_weights_the_new_text_encoder_is_reported_as_initialised_randomly(checkpoint):
    path, english = checkpoint
    model = retrieval()
    before = {name: value.clone() for name, value in model.text.state_dict().items()}
    reports = initialise(model, InitConfig(checkpoint=str(path), new_text=True))
    assert all(torch.equal(value, before[name]) for name, value in model.text.state_dict().items())
    assert torch.equal(model.fusion.layer[0].output.dense.weight, english["fusion.layer.0.output.dense.weight"])
    fresh = fresh_parameters(model, reports)
    assert fresh == {f"text.{name}" for name, _ in model.text.named_parameters()}
    weights = loaded_weights(model, reports)
    first, others = weights.sources, weights.details
    assert first == OneLine(f"{len(fresh)} of text", "randomly initialised")
    assert others.count("  random text.*") == 1
    assert sum("text.embeddings.word_embeddings.weight" in line for line in others) == 1, (
        "the text encoder of the file must be dropped"
    )


def test_another_text_encoder_by_mistake_is_reported_with_the_remedy(checkpoint):
    path, _ = checkpoint
    with pytest.raises(UserError, match=naming("shapes", "model.text", "init.text", "init.new_text=true")):
        initialise(retrieval(), InitConfig(checkpoint=str(path)))
    with pytest.raises(ValueError, match=r"new_text says that the checkpoint has a different text encoder"):
        InitConfig(new_text=True)


def test_a_fusion_with_the_sizes_of_the_new_encoder_is_reported_with_the_remedy(checkpoint):
    path, _ = checkpoint
    model = retrieval(fusion=FusionConfig(layers=1))
    with pytest.raises(UserError, match=naming("fusion", "model.fusion", "width, heads, intermediate and eps")):
        initialise(model, InitConfig(checkpoint=str(path), new_text=True))


def test_a_text_encoder_of_another_width_is_projected_and_other_parts_are_kept(checkpoint, tmp_path):
    path, english = checkpoint
    wide = ROBERTA.model_copy(update={"width": 20})
    folder, _ = roberta_folder(tmp_path, wide)
    model = retrieval(wide)
    reports = initialise(model, InitConfig(checkpoint=str(path), text=str(folder)))
    assert fresh_parameters(model, reports) == {"text.projection.weight", "text.projection.bias"}
    assert torch.equal(model.contrastive.text_proj.weight, english["contrastive.text_proj.weight"])
    ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    states = encoded(model, ids, ids.ne(1)).padded()
    assert states.shape == (2, 4, 16)
    weights = loaded_weights(model, reports)
    assert weights.sources == OneLine("2 of text", "randomly initialised")
    assert [line for line in weights.details if "random" in line] == [
        "  random text.projection.weight",
        "  random text.projection.bias",
    ]


def test_a_separate_fusion_width_needs_heads_that_divide_it():
    with pytest.raises(UserError, match=naming("model.fusion", "width 15", "heads 2")):
        retrieval(fusion=FusionConfig(layers=1, width=15))


def test_a_tied_word_table_needs_equal_widths():
    wide = ROBERTA.model_copy(update={"width": 20})
    config = PretrainModelConfig(vision=VISION, text=TextConfig(arch=wide), fusion=KEPT, embed_dim=8)
    with pytest.raises(UserError, match=naming("model.word_table", "20", "16", "own")):
        PretrainModel(config)
    model = PretrainModel(config.model_copy(update={"word_table": "own"}))
    assert model.word_head(torch.zeros(1, 16), model.text.word_embeddings).shape == (1, 70)


@pytest.mark.parametrize("layers", [2, 5])
def test_the_published_english_file_provides_everything_except_its_text_encoder(layers):
    """As released for cross-view language modelling (reference mapping "cclm_from_xvlm_replace_text"): the fusion layers, the
    heads, and the transform of the word head are loaded. The bias and the table of the word head are initialised randomly."""
    given = model_config(manifest("pretrain"))
    arch = given.text.arch.model_copy(
        update={"family": "roberta", "vocab_size": 90, "layers": layers, "pad_id": 1, "eps": 1e-5}
    )
    sizes = {"width": arch.width, "heads": arch.heads, "intermediate": arch.intermediate, "eps": given.text.arch.eps}
    fusion = given.fusion.model_copy(update=sizes)
    model = PretrainModel(
        given.model_copy(update={"text": TextConfig(arch=arch), "fusion": fusion, "word_table": "own"})
    )
    state = read_weights(GOLDEN / "pretrain" / "model.safetensors")
    report = load_published(model, state, "english", new_text=True)
    assert {name for name in report.fresh if not name.startswith("text.")} == {
        "word_head.bias",
        "word_head.decoder.weight",
    }
    first = given.text.arch.layers
    source = state[f"text_encoder.bert.encoder.layer.{first}.crossattention.self.key.weight"]
    assert torch.equal(model.fusion.layer[0].crossattention.self.key.weight, source)
    transform = state["text_encoder.cls.predictions.transform.dense.weight"]
    assert torch.equal(model.word_head.transform.dense.weight, transform)


def test_a_published_file_with_another_text_encoder_is_reported_with_the_remedy():
    given = model_config(manifest("pretrain"))
    arch = given.text.arch.model_copy(update={"layers": given.text.arch.layers + 1})
    model = PretrainModel(given.model_copy(update={"text": TextConfig(arch=arch)}))
    state = read_weights(GOLDEN / "pretrain" / "model.safetensors")
    with pytest.raises(UserError, match=naming("english", "model.text")):
        load_published(model, state, "english")


def test_any_other_hub_encoder_can_replace_the_text_encoder(checkpoint, monkeypatch):
    path, english = checkpoint
    hub = DistilBertConfig(vocab_size=50, dim=12, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=16)
    monkeypatch.setattr("models.core.hub_text.hub_config_of", lambda encoder: hub)
    config = AligningConfig(vision=VISION, text=TextConfig(encoder="any"), fusion=KEPT, embed_dim=8)
    model = RetrievalModel(config)
    assert isinstance(model.text, HubTextEncoder)
    reports = initialise(model, InitConfig(checkpoint=str(path), new_text=True))
    assert all(name.startswith("text.") for name in reports[0].fresh)
    ids = torch.tensor([[1, 2, 3]])
    assert encoded(model, ids, ids.ne(0)).padded().shape == (1, 3, 16)
    assert torch.equal(model.matching_head[0].weight, english["matching_head.0.weight"])


def test_an_answer_decoder_with_a_shared_word_table_starts_from_the_fusion(checkpoint, tmp_path):
    path, english = checkpoint
    folder, text = roberta_folder(tmp_path)
    config = VQAModelConfig(
        vision=VISION, text=TextConfig(arch=ROBERTA), fusion=KEPT, decoder=DecoderConfig(word_table="shared")
    )
    model = VQAModel(config)
    reports = initialise(model, InitConfig(checkpoint=str(path), text=str(folder)))
    assert torch.equal(model.decoder.words, text["embeddings.word_embeddings.weight"])
    assert "decoder.embeddings.word_embeddings.weight" not in model.state_dict()
    assert reports[0].copied["decoder.layer.0.output.dense.weight"] == "fusion.layer.0.output.dense.weight"
    assert torch.equal(model.decoder.word_head.transform.dense.weight, english["word_head.transform.dense.weight"])
    ids = torch.tensor([[0, 5, 2]])
    assert model.decoder.embeddings(ids, words=model.decoder.words).shape == (1, 3, 16)


def test_a_model_for_statements_about_one_image_has_its_classes():
    model = NLVRModel(NLVRModelConfig(vision=VISION, text=TextConfig(arch=BERT), fusion=KEPT, images=1, classes=3))
    text = Text(torch.tensor([[2, 5, 3], [2, 6, 3]]), torch.ones(2, 3, dtype=torch.bool))
    assert model.classify(torch.rand(2, 3, 32, 32), text).shape == (2, 3)
