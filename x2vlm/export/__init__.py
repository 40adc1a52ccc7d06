"""Exports models as ONNX graphs. ``run.py export`` writes them, :func:`x2vlm.load` loads them, and onnxruntime runs them."""
