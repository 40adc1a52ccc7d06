"""Addresses of remote files: ``https://host/path``, ``s3://bucket/path``; and data sets on the Hugging Face Hub."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


HUB = "hf:"
"""Beginning of the entry of a data set on the Hub, ``hf:ORG/NAME``."""


def is_hub(entry: str) -> bool:
    """Returns True if a path in a config is a data set on the Hub rather than a local path."""
    return entry.startswith(HUB)


def is_address(entry: str) -> bool:
    """Returns True if a path in a config is a remote address rather than a local path."""
    return _SCHEME.match(entry) is not None


def scheme_of(address: str) -> str:
    """Returns the protocol of an address, in lower case."""
    match = _SCHEME.match(address)
    assert match is not None, address
    return match[1].lower()
