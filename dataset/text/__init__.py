"""Texts: cleaning as in the authors' code, tokenization, and masking."""
