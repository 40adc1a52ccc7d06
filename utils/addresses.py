"""Recognises URLs of remote files, such as ``https://host/path`` and ``s3://bucket/path``, and data sets on the Hugging Face
Hub."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


HUB = "hf:"
"""Prefix of a path in a config that names a data set on the Hub: ``hf:ORG/NAME``."""


def is_hub(entry: str) -> bool:
    """Returns True if a path in a config is a data set on the Hub rather than a local path."""
    return entry.startswith(HUB)


def is_url(entry: str) -> bool:
    """Returns True if a path in a config is a URL rather than a local path."""
    return _SCHEME.match(entry) is not None


def scheme_of(address: str) -> str:
    """Returns the scheme of a URL, in lower case."""
    match = _SCHEME.match(address)
    assert match is not None, address
    return match[1].lower()
