"""Addresses of files that are not on a disk: ``https://host/path``, ``s3://bucket/path``."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def is_address(entry: str) -> bool:
    """Whether a path of a config is an address, and none of this machine."""
    return _SCHEME.match(entry) is not None


def scheme_of(address: str) -> str:
    """The protocol of an address, in lower case."""
    match = _SCHEME.match(address)
    assert match is not None, address
    return match[1].lower()
