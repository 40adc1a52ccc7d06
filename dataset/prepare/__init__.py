"""Converts published data sets to records, with one module per data set, and trains tokenizers."""
