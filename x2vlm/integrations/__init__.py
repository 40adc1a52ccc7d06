"""X²-VLM inside other libraries: mteb, sentence-transformers and transformers. Their extras are in docs/using.md."""
