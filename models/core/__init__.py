"""Code that all tasks share: the encoders, the fusion encoder, the heads, the losses, text generation, and FLOP counts."""
