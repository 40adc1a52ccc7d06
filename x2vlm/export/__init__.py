"""Models as ONNX graphs, which ``run.py export`` writes, :func:`x2vlm.load` reads and onnxruntime runs."""
