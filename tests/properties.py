"""Property tests with Hypothesis: their settings, and strategies for the values that files of records contain."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

PROPERTY = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""Settings of a property: the same examples in every run."""

PROPERTY_OF_FILES = settings(PROPERTY, max_examples=10)
"""Settings of a property that writes and reads files for each example."""

TEXTS = st.text(max_size=20)
"""Any text that can be encoded."""

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.text(st.characters(codec=None), max_size=5)  # with halves of surrogate pairs
)

JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)
"""Any value that Python's JSON parser can return."""


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Returns a strategy for values that are usually as they should be, but may be any JSON value."""
    return st.one_of(usual, usual, usual, JSON)


_NUMBERS = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6)
BOXES = st.lists(_NUMBERS, min_size=4, max_size=4)
_BY_LANGUAGE = st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=3)
CAPTIONS = TEXTS | _BY_LANGUAGE | st.lists(TEXTS | _BY_LANGUAGE, min_size=1, max_size=3)
_ELEMENTS = st.fixed_dictionaries(
    {"caption": CAPTIONS, "bb": BOXES | st.lists(BOXES, max_size=3)},
    optional={"long_caption": CAPTIONS, "hard_negatives": CAPTIONS, "attributes": CAPTIONS, "grain": TEXTS},
)
RECORDS = st.fixed_dictionaries(
    {"image": TEXTS.filter(bool)},
    optional={
        "caption": CAPTIONS,
        "long_caption": CAPTIONS,
        "hard_negatives": CAPTIONS,
        "elems": st.lists(_ELEMENTS, max_size=3),
    },
)
"""Region records, and image-text records, as docs/records.md describes them."""
