"""Weight files on disk."""

from __future__ import annotations

import torch

from utils.weight_file import save_weights


def test_a_weight_file_has_the_permissions_of_any_new_file(tmp_path):
    save_weights(tmp_path / "model.safetensors", {"weight": torch.zeros(2)})
    (tmp_path / "any").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
