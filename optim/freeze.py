"""Freezes encoders or their first blocks, for the whole run or for its first steps."""

from __future__ import annotations
