"""Experiment trackers: TensorBoard, and Weights & Biases with ``train.wandb``."""
