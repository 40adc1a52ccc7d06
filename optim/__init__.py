"""The optimiser: AdamW with the parameter groups of the authors' code, freezing, adapters, and averaged weights."""
