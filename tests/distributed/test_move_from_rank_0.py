"""Only rank 0 builds modules with content. The other ranks receive parameters and buffers, including buffers that are not saved
in files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.encoders import text, vision
from tests.ranks import on_two_ranks
from utils import distributed

CPU = torch.device("cpu")


class Encoders:
    """A picklable job that returns the states of small versions of all encoders in docs/encoders.md, before (on rank 0) and after
    they were sent."""

    def __call__(self) -> dict[str, list[Tensor]]:
        found = {}
        for package, rows in ((vision, vision.ROWS), (text, text.ROWS)):
            for row in rows:
                with tempfile.TemporaryDirectory() as folder:
                    config = row.config(Path(folder))
                    with distributed.built_on_rank_0():
                        encoder = package.encoder(config, seed=distributed.rank())
                assert all(each.is_meta == (distributed.rank() > 0) for each in encoder.parameters())

                def states(row=row, package=package, config=config, encoder=encoder) -> Tensor:
                    with torch.no_grad():
                        if package is vision:
                            return encoder(vision.pixels_of(config).float() / 255).patches
                        return encoder([text.text_of()])[0].padded()

                before = [states()] if distributed.rank() == 0 else []
                distributed.move_from_rank_0(encoder, CPU)
                found[f"{row.title}/{row.library}"] = [*before, states()]
        return found


@pytest.mark.slow
def test_every_encoder_has_the_same_states_on_all_ranks(tmp_path):
    first, second = on_two_ranks(Encoders(), tmp_path)
    assert first.keys() == second.keys() and len(first) >= 25
    for title, (before, after) in first.items():
        assert torch.equal(after, before), title
        assert torch.equal(second[title][0], before), title


class Tied(nn.Module):
    """Two modules that share a table, a non-persistent buffer, a buffer with two names, and complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.decoder = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.decoder.weight = self.table.weight
        self.decoder.bias.requires_grad_(False)
        self.register_buffer("angles", torch.rand(4), persistent=False)
        self.register_buffer("also", self.angles)
        self.register_buffer("turns", torch.polar(torch.ones(4), torch.rand(4)))
        self.register_buffer("none", None)


class Moved:
    """A picklable job that returns the tensors of :class:`Tied` on a rank."""

    def __call__(self) -> dict[str, Tensor]:
        torch.manual_seed(distributed.rank())
        with distributed.built_on_rank_0():
            module = Tied()
        kept = [module.table.weight, module.decoder.bias, module.angles]
        distributed.move_from_rank_0(module, CPU)
        assert module.decoder.weight is module.table.weight is kept[0], "the tables must be tied"
        assert module.decoder.bias is kept[1] and module.also is module.angles is kept[2]
        assert [each.requires_grad for each in kept] == [True, False, False]
        assert isinstance(module.table.weight, nn.Parameter) and type(module.angles) is Tensor
        module.decoder(module.table(torch.tensor([1]))).sum().backward()
        return {**module.state_dict(), "angles": module.angles, "gradient": module.table.weight.grad}


def test_tied_weights_stay_tied_and_buffers_arrive(tmp_path):
    first, second = on_two_ranks(Moved(), tmp_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_a_single_process_builds_a_module_as_usual_and_moves_it():
    with distributed.built_on_rank_0():
        module = Tied()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    distributed.move_from_rank_0(module, CPU)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
