"""Types of command-line arguments."""

from __future__ import annotations

import argparse

import pytest

from tests.messages import naming
from utils.flags import one_of


def test_a_misspelled_name_is_reported_with_the_nearest():
    name = one_of(["caption", "answer"])
    assert name("caption") == "caption"
    with pytest.raises(argparse.ArgumentTypeError, match=naming("'captoin'", "caption")):
        name("captoin")
    with pytest.raises(argparse.ArgumentTypeError, match="choose from caption, answer"):
        name("zzz")
