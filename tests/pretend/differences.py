"""Compares the results of two devices."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

import numpy as np

BOUND = 1e-5
"""Maximum error of a number, relative if the number is above 1."""


def differences(found: Any, expected: Any, location: str = "") -> list[str]:
    """Lists the locations at which two nested results differ. Numbers differ if the error exceeds :data:`BOUND`."""
    if isinstance(expected, np.ndarray):
        if expected.dtype == np.uint8:  # in an image, a number may be rounded to the next level
            return [] if np.abs(found.astype(int) - expected).max() <= 1 else [f"{location}: another picture"]
        return differences(found.tolist(), expected.tolist(), location)
    if is_dataclass(expected):
        return differences(vars(found), vars(expected), location)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), location
        return [each for key in expected for each in differences(found[key], expected[key], f"{location}/{key}")]
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected), location
        return [
            each
            for number, value in enumerate(expected)
            for each in differences(found[number], value, f"{location}/{number}")
        ]
    close = isinstance(expected, float) and abs(found - expected) <= BOUND * max(1, abs(expected))
    return [] if close or found == expected else [f"{location}: {found}, not {expected}"]
