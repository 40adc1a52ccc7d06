"""Bias tables resized as the authors do (golden `vision_resize`, `interp_equivalence.json`)."""

import json

import pytest
import torch

from models.checkpoints.tables import _spread, resize_bias_table, table_side
from tests.models.golden import GOLDEN, arrays, load_case, manifest
from tests.models.test_golden_pretrain import assert_golden

GIVEN = arrays(GOLDEN / "vision_resize" / "inputs.npz")
EXPECTED = arrays(GOLDEN / "vision_resize" / "expected.npz")
SPREADS = json.loads((GOLDEN / "misc" / "interp_equivalence.json").read_text())


@pytest.mark.parametrize("name", [name for name in GIVEN if name.startswith("table_src_")])
def test_a_bare_table(name):
    target = int(name.rsplit("to", 1)[1])
    assert_golden(resize_bias_table(GIVEN[name], target, target), EXPECTED[name.replace("src", "dst")])


def test_a_checkpoint_loads_at_another_image_size():
    model = load_case("vision_resize", image_size=GIVEN["image_big"].shape[-1])
    for index in range(manifest("vision_resize")["vision"]["depth"]):
        table = model.vision.backbone.blocks[index].attn.relative_position_bias_table
        assert_golden(table, EXPECTED[f"table_{index}"])
    with torch.no_grad():
        assert_golden(model.vision(GIVEN["image_big"]).tokens(), EXPECTED["vision_embeds_big"])


@pytest.mark.parametrize("sides", SPREADS)
def test_the_geometric_spread_reaches_as_far_as_published(sides):
    source, target = map(int, sides.split("->"))
    spread = _spread(source, target)
    assert spread[-1] == pytest.approx(SPREADS[sides]["src_extent"], abs=1e-6)
    assert spread[len(spread) // 2] == 0


def test_the_same_grid_is_left_alone():
    table = torch.randn(52, 4)
    assert resize_bias_table(table, 4, 4) is table


def test_a_table_of_no_square_grid_is_refused():
    with pytest.raises(ValueError, match="does not belong to a square patch grid"):
        table_side(50)
