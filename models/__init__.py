"""The X²-VLM model: encoders, fusion, heads, losses, and the loading of checkpoints."""
