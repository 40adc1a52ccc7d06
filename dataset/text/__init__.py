"""Texts: the clean-up of the released code, tokenization, and masking."""
