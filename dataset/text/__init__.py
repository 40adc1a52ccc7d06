"""Texts: the clean-up of the authors' code, tokenization, and masking."""
