"""``run.py checkpoint compare`` lists tensors that only one file has, and tensors whose values differ, with the largest
difference first."""

from __future__ import annotations

import math

import pytest
import torch

from tests.messages import OneLine
from tests.tools.test_checkpoint import model_of, run, weights
from tools.checkpoint.compare import largest_differences
from utils.weight_file import save_weights


def test_compare_lists_differences_the_largest_first(tmp_path, capsys):
    state = weights(model_of("nlvr"))
    other = {name: tensor.clone() for name, tensor in state.items()}
    other["text.embeddings.LayerNorm.bias"][0] += 1.0
    other["classifier.0.bias"][0] += 3.0
    other["classifier.3.bias"] = torch.zeros(5)
    other["classifier.1.bias"] = other["classifier.1.bias"].double()
    del other["fusion.layer.0.output.dense.bias"]
    other["new"] = torch.zeros(1)
    save_weights(tmp_path / "a.safetensors", state)
    save_weights(tmp_path / "b.safetensors", other)
    status, out, _ = run(capsys, "compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert status == 1 and out.endswith("different\n")
    assert OneLine(f"{len(state) - 5} tensors", "equal") in out.splitlines()
    assert "\n1 only in A:\n  fusion.layer.0.output.dense.bias\n" in out
    assert "1 only in B:\n  new\n" in out
    assert "classifier.3.bias: 2 and 5\n" in out and "classifier.1.bias: float32 and float64\n" in out
    assert out.index("3          ") < out.index("1          ")
    status, out, _ = run(capsys, "compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--most", 1)
    assert "  … and 1 more; --all lists them" in out


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], (0.0, 0.0)),
        ([0.0], [-0.0], (0.0, 0.0)),
        ([1.0, -4.0], [1.5, -2.0], (2.0, 0.5)),
        ([0.0, 100.0], [1e-3, 101.0], (1.0, 1.0)),
        ([math.inf, math.nan], [math.inf, math.nan], (0.0, 0.0)),
        ([math.inf], [1.0], (math.inf, math.inf)),
        ([math.nan], [1.0], (math.nan, math.nan)),
        ([], [], (0.0, 0.0)),
    ],
)
def test_a_difference_is_the_maximum_over_all_values(first, second, expected):
    found = largest_differences(torch.tensor(first), torch.tensor(second))
    assert found == pytest.approx(expected, nan_ok=True)
    assert largest_differences(torch.tensor(second), torch.tensor(first)) == pytest.approx(expected, nan_ok=True)
