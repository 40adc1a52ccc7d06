"""Small versions of timm and Hugging Face encoders, tested with everything that the project does with an encoder."""
