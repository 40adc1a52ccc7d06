"""What all tasks share: the encoders, the fusion encoder, the heads, the losses, text generation, and the count of FLOPs."""
