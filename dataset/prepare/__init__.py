"""Turns published data sets into records, one module per data set, and makes tokenizers."""
