"""Encoders of timm and Hugging Face in small, against everything that the project does with an encoder."""
