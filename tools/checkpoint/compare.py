"""``run.py checkpoint compare``: reports which tensors of two weight files differ, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.convert import same_bits, to_ours
from models.checkpoints.files import read_weights
from models.checkpoints.recognise import in_our_names
from models.checkpoints.rename import is_published
from tools.checkpoint.outline import shown, weights_at
from utils.errors import UserError

PIECE = 1 << 20
"""Number of values that are compared at a time, in float64."""


@dataclass(frozen=True)
class Difference:
    """The largest differences between a tensor's values in two files; NaN if only one file has a NaN."""

    name: str
    absolute: float
    relative: float

    @property
    def rank(self) -> float:
        """Sorts key; a NaN counts as the largest difference."""
        return math.inf if math.isnan(self.absolute) else self.absolute


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two files. Tensors have our names.

    Attributes:
        only: names that only the first file contains, and names that only the second file contains.
        other: lines that report different shapes and dtypes.
    """

    equal: int
    only: tuple[list[str], list[str]]
    other: list[str]
    differences: list[Difference]

    @property
    def same(self) -> bool:
        return not (self.other or self.differences or any(self.only))


def compare(first: str, second: str, max_lines: int) -> tuple[bool, str]:
    """Returns whether two weight files are equal bit for bit, and up to ``max_lines`` lines for each kind of difference.

    Raises:
        UserError: if a file cannot be read.
    """
    files = [weights_at(path)[0] for path in (first, second)]
    found = compare_states(*(_in_our_names(file) for file in files))
    lines = [f"A {files[0]}", f"B {files[1]}", f"{found.equal} tensors are equal bit for bit"]
    for letter, names in zip("AB", found.only, strict=True):
        lines += _listed(f"only in {letter}", [shown(name) for name in names], max_lines)
    lines += _listed("with a different shape or dtype", found.other, max_lines)
    numbers = [f"{each.absolute:<10.3g} {each.relative:<10.3g} {shown(each.name)}" for each in found.differences]
    lines += _listed("with different values: largest absolute and relative difference", numbers, max_lines)
    lines.append("equal" if found.same else "different")
    return found.same, "\n".join(lines) + "\n"


def _listed(title: str, lines: Sequence[str], max_lines: int) -> list[str]:
    if not lines:
        return []
    more = [f"  … and {len(lines) - max_lines} more; --all lists them"] if len(lines) > max_lines else []
    return [f"{len(lines)} {title}:", *(f"  {line}" for line in lines[:max_lines]), *more]


def _in_our_names(file: Path) -> dict[str, Tensor]:
    state = read_weights(file)
    if not is_published(state):
        return {name: state[there] for name, there in in_our_names(state).items()}
    try:
        return to_ours(state)[0]
    except UserError as error:
        raise UserError(f"{error}", where=file) from None


def compare_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> Comparison:
    """Compares tensors on the CPU by name; differences are sorted in descending order."""
    equal, other, differences = 0, [], []
    for name in [name for name in first if name in second]:
        one, two = first[name], second[name]
        if same_bits(one, two):
            equal += 1
            continue
        if one.shape != two.shape:
            other.append(f"{shown(name)}: {_shape(one)} and {_shape(two)}")
            continue
        if one.dtype != two.dtype:
            other.append(f"{shown(name)}: {_dtype(one)} and {_dtype(two)}")
        absolute, relative = largest_differences(one, two)
        if one.dtype == two.dtype or absolute != 0:
            differences.append(Difference(name, absolute, relative))
    only = ([name for name in first if name not in second], [name for name in second if name not in first])
    return Comparison(equal, only, other, sorted(differences, key=lambda each: -each.rank))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def largest_differences(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Returns the largest ``|a - b|`` and the largest ``|a - b| / max(|a|, |b|)`` of two tensors of the same shape; NaN if a
    value is NaN in only one of them. Infinities of the same sign are equal."""
    absolute = relative = torch.zeros((), dtype=torch.float64)
    pairs = zip(first.detach().reshape(-1).split(PIECE), second.detach().reshape(-1).split(PIECE), strict=True)
    for one, two in pairs:
        if not one.numel():
            continue
        one, two = _real(one), _real(two)
        alike = (one == two) | (one.isnan() & two.isnan())
        distance = (one - two).abs().masked_fill(alike, 0.0)
        scale = torch.maximum(one.abs(), two.abs())
        share = (distance / scale).masked_fill(alike, 0.0)
        share = share.masked_fill(scale.isinf() & ~alike, math.inf)
        absolute, relative = torch.maximum(absolute, distance.max()), torch.maximum(relative, share.max())
    return absolute.item(), relative.item()


def _real(tensor: Tensor) -> Tensor:
    """Converts to float64; a complex number becomes its real and imaginary part."""
    return torch.view_as_real(tensor).reshape(-1).double() if tensor.is_complex() else tensor.double()
