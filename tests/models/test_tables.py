"""Bias tables are resized as in the authors' code (golden `vision_resize`, `interp_equivalence.json`)."""

import json

import pytest
import torch

from models.core.backbones.tables import _spread, resize_bias_table, resize_positions, table_side
from models.core.text import stretch_positions
from tests.messages import naming
from tests.models.golden import GOLDEN, arrays, load_case, manifest
from tests.models.test_golden_pretrain import assert_golden

GIVEN = arrays(GOLDEN / "vision_resize" / "inputs.npz")
EXPECTED = arrays(GOLDEN / "vision_resize" / "expected.npz")
SPREADS = json.loads((GOLDEN / "misc" / "interp_equivalence.json").read_text())


@pytest.mark.parametrize("name", [name for name in GIVEN if name.startswith("table_src_")])
def test_a_single_table_is_resized_as_released(name):
    target = int(name.rsplit("to", 1)[1])
    assert_golden(resize_bias_table(GIVEN[name], target, target), EXPECTED[name.replace("src", "dst")])


def test_a_checkpoint_loads_at_another_image_size():
    model = load_case("vision_resize", image_size=GIVEN["image_big"].shape[-1])
    for index in range(manifest("vision_resize")["vision"]["depth"]):
        table = model.vision.backbone.blocks[index].attn.relative_position_bias_table
        assert_golden(table, EXPECTED[f"table_{index}"])
    with torch.no_grad():
        assert_golden(model.vision(GIVEN["image_big"]).states(), EXPECTED["vision_embeds_big"])


@pytest.mark.parametrize("sides", SPREADS)
def test_the_geometric_sequence_extends_as_far_as_published(sides):
    source, target = map(int, sides.split("->"))
    spread = _spread(source, target)
    assert spread[-1] == pytest.approx(SPREADS[sides]["src_extent"], abs=1e-6)
    assert spread[len(spread) // 2] == 0


def test_a_table_of_the_same_grid_is_not_changed():
    table = torch.randn(52, 4)
    assert resize_bias_table(table, 4, 4) is table


def test_a_table_of_a_non_square_grid_is_rejected():
    with pytest.raises(ValueError, match=naming("square")):
        table_side(50)


def test_absolute_positions_are_resized_along_each_side_except_token_positions():
    """Uses a linear table. Checks the side that keeps its size, and the distance between every second patch of the other side,
    away from the border."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    table = torch.cat([torch.tensor([[70.0, 71.0]]), torch.stack([y, x], dim=2).view(-1, 2)]).unsqueeze(0)
    resized = resize_positions(table, 8, 16, 1)
    assert resized.shape == (1, 1 + 8 * 16, 2)
    assert resized[0, 0].tolist() == [70, 71]
    grid = resized[0, 1:].view(8, 16, 2)
    torch.testing.assert_close(grid[:, 0, 0], torch.arange(8.0))
    torch.testing.assert_close(grid[0, 5:12:2, 1].diff(), torch.ones(3))
    assert grid.mean(dim=(0, 1)).tolist() == pytest.approx([3.5, 3.5], abs=1e-5)


def test_absolute_positions_of_a_non_square_grid_are_rejected():
    with pytest.raises(ValueError, match=naming("61 positions", "square")):
        resize_positions(torch.zeros(1, 61, 4), 8, 8, 1)


def test_absolute_positions_are_sampled_at_the_centres_of_the_new_patches():
    """Uses a table that holds its own coordinates. Each axis has its own grid, and the position of [CLS] is kept."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    table = torch.cat([torch.tensor([[7.0, 9.0]]), torch.stack([y, x], dim=-1).flatten(0, 1)]).unsqueeze(0)
    resized = resize_positions(table, 6, 4, 1)
    assert resized.shape == (1, 1 + 6 * 4, 2)
    assert resized[0, 0].tolist() == [7.0, 9.0]
    grid = resized[0, 1:].unflatten(0, (6, 4))
    # The centre of cell i of R is at (i + 0.5) * 12 / R - 0.5, which is halfway between two source cells, or on one.
    assert torch.allclose(grid[1:5, 2, 0], torch.tensor([2.5, 4.5, 6.5, 8.5]), atol=1e-5)
    assert torch.allclose(grid[3, :, 1], torch.tensor([1.0, 4.0, 7.0, 10.0]), atol=1e-5)


def test_a_stretched_position_table_keeps_its_first_positions_and_its_end():
    table = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    long = stretch_positions(table, 200)
    assert torch.equal(long[:20], table[:20])
    torch.testing.assert_close(long[[20, -1]], table[[20, -1]])
    torch.testing.assert_close(stretch_positions(table, 64), table)
    assert torch.equal(stretch_positions(table, 30), table[:30])
    assert torch.equal(stretch_positions(table, 200, first=2)[:22], table[:22])
    line = torch.arange(64.0).unsqueeze(1)
    steps = stretch_positions(line, 196)[20:, 0].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 43 / 175))
    with pytest.raises(ValueError, match="too short"):
        stretch_positions(table[:20], 30)
