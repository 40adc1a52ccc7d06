"""The authors' results for question answering, through the real loading code, and the ranking of candidates compared with a naive
implementation."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from batches.questions import QuestionBatch
from batches.texts import Text
from models.checkpoints.files import read_weights
from models.checkpoints.initialise import fresh_parameters
from models.checkpoints.loading import load_published, load_weights
from models.checkpoints.rename import published_to_ours
from models.config import (
    DecoderConfig,
    FusionConfig,
    ModelConfig,
    TextArchitecture,
    TextConfig,
    VisionConfig,
    VQAModelConfig,
)
from models.core.packing import PackedTexts, Packing
from models.inference import answer_ranking
from models.inference.answer_ranking import AnswerTree, best_first, rank_answers
from models.pretraining.model import PretrainModel
from models.tasks.vqa import VQAModel, left_to_right
from tests.devices import copied_to, moved
from tests.messages import naming
from tests.models.golden import GOLDEN, arrays, assert_golden, manifest, model_config
from utils.errors import UserError

GIVEN, EXPECTED = arrays(GOLDEN / "vqa" / "inputs.npz"), arrays(GOLDEN / "vqa" / "expected.npz")
MAPPINGS = json.loads((GOLDEN / "checkpoint_keys/checkpoint_mapping_tiny.json").read_text())


def shared_config(case: str) -> ModelConfig:
    found = model_config(manifest(case))
    return ModelConfig(vision=found.vision, text=found.text, fusion=found.fusion)


def vqa_config(case: str, layers: int) -> VQAModelConfig:
    """The configuration of a golden case whose answer decoder has ``layers`` layers."""
    return VQAModelConfig(**shared_config(case).model_dump(), decoder=DecoderConfig(layers=layers))


@pytest.fixture(scope="module")
def loaded():
    made = VQAModel(vqa_config("vqa", manifest("vqa")["config"]["num_dec_layers"]))
    report = load_published(made, read_weights(GOLDEN / "vqa" / "model.safetensors"), "golden")
    report.require_complete()
    assert report.copied == {}
    return made.eval()


@pytest.fixture
def model(loaded, device):
    return copied_to(device, loaded)


@pytest.fixture
def asked(model, device) -> PackedTexts:
    """The questions of the case with their images."""
    given = moved(batch(), device)
    return model.fuse_questions(given.pixels, given.text)


def text(name: str) -> Text:
    return Text(GIVEN[f"{name}_ids"], GIVEN[f"{name}_atts"].bool())


def batch(valid: Tensor | None = None) -> QuestionBatch:
    counts = GIVEN["k"]
    return QuestionBatch(
        pixels=GIVEN["image"],
        text=text("question"),
        answers=text("answer"),
        question_of_answer=torch.arange(len(counts)).repeat_interleave(counts),
        weights=GIVEN["weights"],
        valid=torch.ones(len(counts), dtype=torch.bool) if valid is None else valid,
    )


def test_the_training_loss_equals_the_published_one(model, device):
    given = moved(batch(), device)
    term = model(given)["answers"]
    assert_golden(term.total / model.counts(given)["answers"], EXPECTED["train_loss"])


def test_an_invalid_question_adds_nothing(model, device):
    both = model(moved(batch(), device))["answers"].total
    parts = [moved(batch(torch.tensor([keep, not keep])), device) for keep in (True, False)]
    assert_golden(sum(model(part)["answers"].total for part in parts), both)
    assert [int(model.counts(part)["answers"]) for part in parts] == [1, 1]


def test_questions_that_share_an_image_have_the_loss_and_gradients_of_separate_images(model, device):
    given = batch()
    rows, image_of_question = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 0, 1])
    answers = given.question_of_answer
    four = {
        "text": Text(given.text.ids[rows], given.text.mask[rows]),
        "answers": Text(given.answers.ids.repeat(2, 1), given.answers.mask.repeat(2, 1)),
        "question_of_answer": torch.cat([answers, answers + 2]),
        "weights": given.weights.repeat(2),
        "valid": torch.tensor([True, True, False, True]),
    }
    totals, gradients, images = [], [], []
    for pixels, index in ((given.pixels, image_of_question), (given.pixels[image_of_question], None)):
        asked = QuestionBatch(pixels=pixels, image_of_question=index, **four)
        images.append(model.work(asked).images)
        totals.append(model(moved(asked, device))["answers"].total)
        gradients.append(torch.autograd.grad(totals[-1], list(model.vision.parameters()), allow_unused=True))
    assert_golden(totals[0], totals[1])
    for shared, separate in zip(*gradients, strict=True):
        assert (shared is None) == (separate is None)
        if shared is not None:
            assert_golden(shared, separate)
    assert images == [2, 3], "another question must share the image of the invalid question"


@torch.no_grad()
def test_question_states_and_decoder_logits_equal_the_published_ones(model, device):
    given = moved(batch(), device)
    states = model.fuse_questions(given.pixels, given.text)
    assert_golden(states.padded(), EXPECTED["question_states"], states.packing.mask)
    memory = model.decoder.project_texts(states).select(given.question_of_answer)
    decoded = model.decoder.decode(given.answers.ids, left_to_right(given.answers.mask), memory)
    assert_golden(model.decoder.logits(decoded), EXPECTED["train_decoder_logits"])


@torch.no_grad()
def test_several_questions_can_share_an_image(model, device):
    questions, images = text("question"), GIVEN["image"].to(device)
    rows, image_of_question = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1], device=device)
    questions = moved(Text(questions.ids[rows], questions.mask[rows]), device)
    found = model.fuse_questions(images, questions, image_of_question)
    expected = model.fuse_questions(images[image_of_question], questions)
    assert_golden(found.padded(), expected.padded(), expected.packing.mask)


def candidates() -> list[list[int]]:
    given = text("cand")
    return [ids[mask].tolist() for ids, mask in zip(given.ids, given.mask, strict=True)]


@pytest.mark.parametrize("nodes_per_call", [None, 1])
@torch.no_grad()
def test_the_ranking_of_candidates_equals_the_published_one(model, asked, nodes_per_call):
    found = rank_answers(model.decoder, asked, AnswerTree(candidates()), 9, "released", nodes_per_call)
    assert torch.equal(found.ids.cpu(), EXPECTED["rank_k9_ids"])
    assert_golden(found.probabilities, EXPECTED["rank_k9_probs"])


@torch.no_grad()
def test_the_first_tokens_select_the_candidates(model, asked, device):
    likeliest = EXPECTED["first_token_probs"].sort(dim=1, descending=True, stable=True).indices
    for k in (1, 4):
        found = rank_answers(model.decoder, asked, AnswerTree(candidates()), k, "likelihood")
        assert torch.equal(found.ids.sort(dim=1).values.cpu(), likeliest[:, :k].sort(dim=1).values)
    start = torch.full((2, 1), candidates()[0][0], device=device)
    memory = model.decoder.project_texts(asked)
    states = model.decoder.decode(start, torch.ones(1, 1, 1, dtype=torch.bool, device=device), memory)
    probabilities = model.decoder.logits(states[:, 0]).softmax(dim=1)
    assert_golden(probabilities[:, [ids[1] for ids in candidates()]], EXPECTED["first_token_probs"])


def small_model(**sizes) -> VQAModel:
    torch.manual_seed(sizes.pop("seed", 0))
    depth, decoder = sizes.pop("fusion", 2), DecoderConfig(layers=sizes.pop("decoder", None))
    arch = TextArchitecture(
        **{"vocab_size": 40, "width": 16, "layers": 1, "heads": 2, "intermediate": 32, "max_positions": 24} | sizes
    )
    config = VQAModelConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2),
        text=TextConfig(arch=arch.model_copy(update={"init_std": 0.3})),
        fusion=FusionConfig(layers=depth),
        decoder=decoder,
    )
    return VQAModel(config).eval()


def naive_scores(model: VQAModel, question: PackedTexts, chosen: list[list[int]]) -> tuple[Tensor, Tensor]:
    """For each candidate, the sum of the log-probabilities of its tokens, and the log-probability of its first token. Each
    candidate is computed separately."""
    scores = []
    for ids in chosen:
        row = torch.tensor([ids])
        memory = model.decoder.project_texts(question)
        states = model.decoder.decode(row[:, :-1], left_to_right(torch.ones_like(row[:, :-1]).bool()), memory)
        logs = model.decoder.logits(states).log_softmax(dim=2)
        scores.append(logs[0, torch.arange(len(ids) - 1), row[0, 1:]])
    return torch.stack([score.sum() for score in scores]), torch.stack([score[0] for score in scores])


@pytest.mark.parametrize("ranking", ["released", "likelihood"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("k", [3, 20, 99])
@torch.no_grad()
def test_the_ranking_equals_scoring_candidates_separately(ranking, family, k):
    """Some candidates share a prefix, one is a prefix of another, and the questions have several lengths."""
    model = small_model(family=family, pad_id=1 if family == "roberta" else 0)
    draws = torch.Generator().manual_seed(1)
    bodies = {tuple(torch.randint(5, 9, (1 + n % 4,), generator=draws).tolist()): None for n in range(60)}
    listed = [[2, *body, 3] for body in bodies]
    assert any(a != b and a[:-1] == b[: len(a) - 1] for a in listed for b in listed)
    packing = Packing.of(torch.tensor([6, 2, 4]), 6)
    questions = PackedTexts(packing.pack(torch.randn(3, 6, 16, generator=draws)), packing)
    found = rank_answers(model.decoder, questions, AnswerTree(listed), k, ranking, 40)
    for row in range(3):
        alone = questions.select(torch.tensor([row]), length=int(packing.lengths[row]))
        total, first = naive_scores(model, alone, listed)
        same = {ids[1]: first[index] for index, ids in enumerate(listed)}
        first = torch.stack([same[ids[1]] for ids in listed])
        top = best_first(first.unsqueeze(0), min(k, len(listed)), ranking)[0]
        score = (total + first if ranking == "released" else total)[top]
        assert found.ids[row].tolist() == top[best_first(score.unsqueeze(0), len(score), ranking)[0]].tolist()
        assert_golden(found.probabilities[row], score.sort(descending=True).values.softmax(dim=0))


@torch.no_grad()
def test_the_number_of_logits_at_once_is_bounded_and_does_not_change_the_ranking(model, asked, monkeypatch):
    tree = AnswerTree(candidates())
    expected = rank_answers(model.decoder, asked, tree, 9, "likelihood")
    sizes = []
    logits = model.decoder.logits
    monkeypatch.setattr(model.decoder, "logits", lambda states: sizes.append(len(part := logits(states))) or part)
    bound = 3 * len(model.decoder.words)
    monkeypatch.setattr(answer_ranking, "MAX_LOGITS", bound)
    found = rank_answers(model.decoder, asked, tree, 9, "likelihood")
    assert max(sizes) == 3
    assert found.ids.equal(expected.ids)
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-6, rtol=1e-5)


def test_the_two_rankings_can_disagree():
    """Counting the first token twice prefers likely first tokens."""
    model = small_model(seed=5)
    listed = [[2, a, b, 3] for a in range(5, 15) for b in range(5, 15)]
    states = torch.randn(12, 16, generator=torch.Generator().manual_seed(2))
    questions = PackedTexts(states, Packing.equal_lengths(4, 3, states.device))
    with torch.no_grad():
        best = [
            rank_answers(model.decoder, questions, AnswerTree(listed), 100, ranking).ids
            for ranking in ("released", "likelihood")
        ]
    assert not torch.equal(*best)


def test_equal_prefixes_share_a_node():
    tree = AnswerTree([[2, 7, 3], [2, 7, 8, 3], [2, 7, 9, 3], [2, 8, 3]])
    assert len(tree) == 4
    assert tree.tokens.tolist() == [2, 7, 8, 9, 8]
    assert tree.path.tolist() == [[1, -1], [1, 2], [1, 3], [4, -1]]
    assert tree.following.tolist() == [[7, 3, -1], [7, 8, 3], [7, 9, 3], [8, 3, -1]]
    assert tree.depths.tolist() == [0, 1, 2, 2, 1]
    with pytest.raises(ValueError, match="at least one token"):
        AnswerTree([[2, 3]])


@pytest.mark.parametrize("layers", [1, 2])
def test_keys_and_values_start_randomly_if_images_and_texts_differ_in_width(layers, tmp_path):
    mapping = MAPPINGS["b:vqa_dec_half_cross" if layers == 1 else "b:vqa_dec_eq_cross"]
    config = vqa_config("pretrain", layers)
    narrow = {"vision": config.vision.model_copy(update={"width": 16, "heads": 2})}
    torch.manual_seed(0)
    source = PretrainModel(model_config(manifest("pretrain")).model_copy(update=narrow))
    model = VQAModel(config.model_copy(update=narrow))
    save_file(dict(source.state_dict()), tmp_path / "model.safetensors")
    report = load_weights(model, tmp_path / "model.safetensors")
    rename = published_to_ours(len(model.text.encoder.layer))
    assert sorted(report.fresh) == sorted(rename(key) for key in mapping["from_scratch"])
    assert fresh_parameters(model, [report]) == {rename(key) for key in mapping["init_params_after"]}
    assert torch.equal(model.decoder.layer[-1].output.dense.weight, source.fusion.layer[-1].output.dense.weight)
    assert torch.equal(model.decoder.word_head.bias, source.word_head.bias)
    assert report.copied["decoder.word_head.bias"] == "word_head.bias"
    assert not any(name.startswith("word_head.") for name in report.unused)


def test_a_fine_tuned_model_is_loaded_completely_without_copies(tmp_path):
    model, other = small_model(), small_model(seed=1)
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    report = load_weights(other, tmp_path / "model.safetensors")
    report.require_complete()
    assert report.copied == {}
    assert torch.equal(other.decoder.word_head.bias, model.decoder.word_head.bias)
    damaged = {name: value for name, value in model.state_dict().items() if name != "decoder.word_head.bias"}
    save_file(damaged, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming("1 parameters", "decoder.word_head.bias")):
        load_weights(other, tmp_path / "model.safetensors").require_complete()


@pytest.mark.parametrize(("text_layers", "expected"), [(1, [0, 2]), (2, [1, 3]), (3, [0, 2])])
def test_a_decoder_of_half_the_depth_starts_from_odd_layers_of_text_and_fusion(text_layers, expected):
    """As released, layers with odd indices in the whole stack are used, so with an odd number of text layers, the fusion's first
    layer is used."""
    found = small_model(layers=text_layers, fusion=4, decoder=2).copied_from()
    layers = [found[f"decoder.layer.{layer}.output.dense.weight"] for layer in range(2)]
    assert layers == [f"fusion.layer.{layer}.output.dense.weight" for layer in expected]


def test_a_decoder_has_all_or_half_of_the_fusion_layers():
    for layers in (3, 6):
        config = VQAModelConfig(fusion=FusionConfig(layers=6), decoder=DecoderConfig(layers=layers))
        assert config.decoder_layers == layers
    with pytest.raises(ValidationError, match=r"decoder.layers is 4.* 6 "):
        VQAModelConfig(fusion=FusionConfig(layers=6), decoder=DecoderConfig(layers=4))
