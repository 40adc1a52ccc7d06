"""Multi-grained pre-training: the model, its streams and their losses (section 3.3 of the paper)."""
