"""Texts: the released clean-up, tokens, and masking."""
