"""Pieces that know nothing of models, data or tasks: configuration, errors, batches, ranks, files, logs."""
