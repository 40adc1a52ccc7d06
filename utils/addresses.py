"""Addresses of remote files: ``https://host/path``, ``s3://bucket/path``."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def is_address(entry: str) -> bool:
    """Returns True if a path in a config is a remote address rather than a local path."""
    return _SCHEME.match(entry) is not None


def scheme_of(address: str) -> str:
    """Returns the protocol of an address, in lower case."""
    match = _SCHEME.match(address)
    assert match is not None, address
    return match[1].lower()
