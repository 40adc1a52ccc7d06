"""X²-VLM in other libraries: mteb, sentence-transformers and transformers. docs/using.md says how to install them."""

MODELLING_FILE = "modeling_x2vlm.py"
"""Name of the file with the code of a model that is saved for transformers."""
