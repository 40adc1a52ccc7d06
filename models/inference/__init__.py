"""Scoring with trained models: ranking of candidate answers, and re-ranking of texts for images."""
