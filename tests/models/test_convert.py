"""Conversion of published names to ours and back: every recorded list of published tensors is restored in names, dtypes, shapes
and bytes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from models.checkpoints import load_weights
from models.checkpoints.convert import PUBLISHED, Form, computed_buffers, grid_side, same_bits, to_ours, to_published
from models.checkpoints.files import read_weights
from models.checkpoints.rename import LAYER, Layout, ours_to_published, published_to_ours
from models.tasks.captioning import CaptioningModel
from tests.messages import naming
from tests.models.golden import GOLDEN, manifest, model_config
from utils.errors import UserError
from utils.weight_file import save_weights

KINDS = sorted(
    path.stem
    for path in (GOLDEN / "checkpoint_keys").glob("*.json")
    if not path.stem.startswith(("optim", "param", "checkpoint"))
)
FILES = sorted(path.relative_to(GOLDEN) for path in GOLDEN.rglob("model.safetensors"))
COMPUTED_BY_THE_LOSS = "crit_mask_lm_smoothed.one_hot"


def facts(kind: str) -> dict:
    return json.loads((GOLDEN / "checkpoint_keys" / f"{kind}.json").read_text())


def tiny_state(kind: str) -> dict[str, Tensor]:
    """The tensors of a recorded list with random numbers at a hundredth of their size. Ties and buffers are as recorded."""
    listed, generator = facts(kind), torch.Generator().manual_seed(0)
    small = {768: 6, 1024: 8, 3072: 12, 4096: 16, 1536: 10, 2048: 10, 30522: 40, 250002: 50, 512: 9, 514: 11}
    small |= {732: 52, 2212: 52, 9028: 52}
    state = {
        name: torch.randn([small.get(size, size) for size in shape], generator=generator)
        for name, shape in listed["keys"].items()
    }
    for name in listed["buffers"]:
        state.pop(name)
    for original, *copies in listed["tied"]:
        state |= dict.fromkeys(copies, state[original])
    state |= {name: make() for name, make in computed_buffers(state).items()}
    if COMPUTED_BY_THE_LOSS in listed["keys"]:
        state[COMPUTED_BY_THE_LOSS] = torch.rand(1, 40, generator=generator)
    assert state.keys() == listed["keys"].keys()
    return state


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not same_bits(actual[name], expected[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_table_is_invertible(kind):
    names = facts(kind)["keys"]
    layout = Layout.of_published(names)
    assert layout.text_layers == 12
    rename, back = published_to_ours(layout.text_layers), ours_to_published(layout)
    skipped = {*facts(kind)["buffers"], *(copy for _, *copies in facts(kind)["tied"] for copy in copies)}
    ours = {rename(name): tuple(shape) for name, shape in names.items() if name not in skipped}
    assert None not in ours
    assert {back(name) for name in ours} == names.keys() - skipped
    assert Layout.of_ours(ours) == layout


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_file_survives_the_round_trip_with_and_without_its_form(kind):
    state = tiny_state(kind)
    ours, form = to_ours(state)
    assert len({tensor.data_ptr() for tensor in ours.values()}) == len(ours)
    back, unnamed = to_published(ours, form)
    assert unnamed == []
    assert_same(back, state)
    inferred, _ = to_published({name: tensor for name, tensor in ours.items() if name != COMPUTED_BY_THE_LOSS})
    inferred = {name: tensor for name, tensor in inferred.items() if name in state}
    assert_same(inferred, {name: tensor for name, tensor in state.items() if name != COMPUTED_BY_THE_LOSS})


@pytest.mark.parametrize("kind", ["pretrain_base", "plus_vqa_base", "vqa_base", "pretrain_cclm_base"])
def test_tied_tensors_are_written_twice_in_one_storage(kind):
    state = tiny_state(kind)
    back, _ = to_published(to_ours(state)[0])
    for original, *copies in facts(kind)["tied"]:
        assert {back[copy].data_ptr() for copy in copies} == {back[original].data_ptr()}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_golden_files_survive_the_round_trip_bit_for_bit(file):
    state = read_weights(GOLDEN / file)
    with safe_open(GOLDEN / file, "pt") as opened:
        assert set(opened.keys()) == state.keys()
    ours, form = to_ours(state)
    assert_same(to_published(ours, Form.from_plain(json.loads(json.dumps(form.as_plain())), form.layout))[0], state)


def test_a_file_without_buffers_or_tied_copies_stays_without_them():
    state = tiny_state("pretrain_base")
    for name in [name for name in state if name.endswith(("position_ids", "index", "decoder.bias"))]:
        del state[name]
    ours, form = to_ours(state)
    assert_same(to_published(ours, form)[0], state)


def test_tensors_without_a_counterpart_or_with_another_value_are_kept():
    state = tiny_state("retrieval_base")
    state["vision_encoder.blocks.1.attn.relative_position_index"] += 1
    state["itm_head_2.weight"] = torch.ones(2, 3)
    ours, form = to_ours(state)
    assert "itm_head_2.weight" in ours
    assert_same(to_published(ours, form)[0], state)


def test_the_word_table_of_a_separate_decoder_is_kept_on_request_or_if_it_differs():
    state, words = tiny_state("plus_vqa_base"), "decoder.embeddings.word_embeddings.weight"
    assert words not in to_ours(state)[0]
    ours, form = to_ours(state, shared_words=False)
    assert words in ours
    assert_same(to_published(ours, form)[0], state)
    own = torch.randn(50, 6)
    state |= {
        f"text_decoder.{name}": own
        for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
    }
    ours, form = to_ours(state)
    assert same_bits(ours[words], own)
    assert_same(to_published(ours, form)[0], state)


def test_tied_copies_that_differ_are_reported():
    state = tiny_state("pretrain_base")
    state["text_encoder.cls.predictions.decoder.bias"] = torch.zeros(40)
    with pytest.raises(UserError, match=r"decoder\.bias differs from text_encoder\.cls\.predictions\.bias"):
        to_ours(state)


def test_names_without_a_published_counterpart_are_returned():
    ours, _ = to_ours(tiny_state("retrieval_base"))
    assert to_published(ours | {"text.model.weight": torch.ones(1)})[1] == ["text.model.weight"]


def test_the_grid_of_a_square_table_is_computed_from_its_rows():
    assert [grid_side(rows) for rows in (732, 2212, 9028, 52, 4, 3, 0, 733, 19)] == [
        14,
        24,
        48,
        4,
        1,
        None,
        None,
        None,
        None,
    ]


def test_huge_layer_indices_in_names_cause_no_loop():
    name = "text_encoder.encoder.layer.99999999999.output.dense.weight"
    assert LAYER.fullmatch(name)
    assert to_ours({name: torch.ones(2)})[1].layout.text_layers == 10**11


def test_a_converted_file_loads_like_the_published_one(tmp_path):
    path = GOLDEN / "captioning" / "model.safetensors"
    ours, form = to_ours(read_weights(path))
    save_weights(tmp_path / "ours.safetensors", ours, {PUBLISHED: form.as_plain()})
    config = model_config(manifest("captioning"))
    first, second = CaptioningModel(config), CaptioningModel(config)
    published, converted = load_weights(first, path), load_weights(second, tmp_path / "ours.safetensors")
    assert_same(second.state_dict(), first.state_dict())
    assert (converted.unused, converted.fresh, converted.published) == (published.unused, published.fresh, True)


def test_two_layouts_in_one_file_are_reported():
    state = tiny_state("retrieval_base")
    words = "text_encoder.{}embeddings.word_embeddings.weight"
    state[words.format("bert.")] = state[words.format("")]
    with pytest.raises(UserError, match=naming("two layouts", "original")):
        to_ours(state)


def test_small_tables_of_wide_grids_do_not_fill_the_memory():
    state = {
        f"vision_encoder.blocks.{block}.relative_position_bias_table": torch.ones(255**2 + 3, 1) for block in range(3)
    }
    with pytest.raises(UserError, match="would take 6,443,237,400 bytes"):
        to_ours(state)


def test_a_table_without_rows_is_accepted():
    assert not Layout.of_ours({"text.embeddings.token_type_embeddings.weight": ()}).separate_fusion
