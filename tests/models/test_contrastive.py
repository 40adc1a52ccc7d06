"""The head of the contrastive loss: the representation of a text, the initial projection, and the range of the temperature."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.config import AligningConfig, ContrastiveConfig
from models.core.contrastive import ContrastiveHead
from models.core.packing import PackedTexts, Packing
from models.reference import Padded
from tests.messages import naming
from utils.errors import UserError

WIDTH = 6


def head(embed_dim: int = WIDTH, **options) -> ContrastiveHead:
    torch.manual_seed(0)
    config = AligningConfig(embed_dim=embed_dim, contrastive=ContrastiveConfig(**options))
    return ContrastiveHead(config, 8, WIDTH)


@pytest.mark.parametrize("tokens", [None, 9], ids=["packed", "with spare tokens"])
def test_a_text_is_represented_by_its_first_state_or_its_mean(tokens):
    packing = Packing.of(torch.tensor([3, 1, 2]), 4, tokens)
    states = torch.randn(packing.token_count, WIDTH)
    texts = PackedTexts(states, packing)
    means = torch.stack([states[:3].mean(dim=0), states[3], states[4:6].mean(dim=0)])
    for text, expected in (("cls", states[[0, 3, 4]]), ("mean", means)):
        one = head(text=text)
        torch.testing.assert_close(one.embed_text(texts), F.normalize(one.text_proj(expected), dim=1))
        torch.testing.assert_close(one.embed_text(Padded(texts.padded(), packing.mask)), one.embed_text(texts))


def test_states_after_a_text_are_excluded_from_its_mean():
    states, mask = torch.randn(1, 3, WIDTH), torch.tensor([[True, True, False]])
    states[0, 2] = torch.nan
    assert head(text="mean").embed_text(Padded(states, mask)).isfinite().all()


def test_the_joint_space_can_start_as_the_space_of_the_text_encoder():
    texts = PackedTexts(torch.randn(5, WIDTH), Packing.of(torch.tensor([2, 3]), 3))
    one = head(text="mean", text_projection="identity")
    expected = torch.stack([texts.states[:2].mean(dim=0), texts.states[2:].mean(dim=0)])
    torch.testing.assert_close(one.embed_text(texts), F.normalize(expected, dim=1))


def test_an_identity_to_another_width_is_rejected():
    with pytest.raises(UserError, match=naming("embed_dim", "4", "6")):
        head(embed_dim=4, text_projection="identity")


def test_an_initial_temperature_below_its_range_is_rejected():
    with pytest.raises(ValueError, match=r"temperature is 0.03.*contrastive.min_temperature is 0.07"):
        AligningConfig(temperature=0.03, contrastive=ContrastiveConfig(min_temperature=0.07))


def test_saved_configs_may_contain_the_previous_name_of_the_minimum_temperature():
    assert ContrastiveConfig.model_validate({"least_temperature": 0.05}) == ContrastiveConfig(min_temperature=0.05)


def test_an_initial_temperature_above_its_range_is_rejected():
    with pytest.raises(ValueError, match=r"temperature\n.*less than or equal to 0.5"):
        AligningConfig(temperature=0.6)


def test_the_temperature_stays_in_its_range():
    one = head(min_temperature=0.05)
    for value, kept in ((0.01, 0.05), (0.3, 0.3), (2.0, 0.5)):
        one.temperature.data.fill_(value)
        one.clamp_temperature()
        assert one.temperature.item() == pytest.approx(kept)
