"""Scoring with a trained model: candidate answers, and texts with images."""
