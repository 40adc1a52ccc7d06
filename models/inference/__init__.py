"""Scoring with a trained model: ranking candidate answers, and re-ranking texts for images."""
