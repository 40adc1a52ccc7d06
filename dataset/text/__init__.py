"""Texts: the released clean-up, tokenization, and masking."""
