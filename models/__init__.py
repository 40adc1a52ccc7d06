"""The X²-VLM model: encoders, heads, losses, and the loading of checkpoints.

Read the modules in this order:

1. :mod:`models.reference` computes all pre-training losses on one page, in the simplest form. The other modules compute the same
   losses faster.
2. :mod:`models.pretraining.streams` computes these losses the way training does. A stream is one type of training data, such as
   image-text pairs or videos. :mod:`models.pretraining.model` contains the model and its forward pass, which covers all streams.
3. :mod:`models.core.vision`, :mod:`models.core.text` and :mod:`models.core.fusion` contain the encoders, and
   :mod:`models.core.blocks` the transformer block of the text and fusion encoders.
4. :mod:`models.core.contrastive`, :mod:`models.core.matching` and :mod:`models.core.heads` contain the heads.
5. :mod:`models.core.packing` stores texts without padding, and :mod:`models.core.keys_values` projects keys and values only once.

:mod:`models.tasks` contains the models for fine-tuning, :mod:`models.flops` counts the operations of a step,
:mod:`models.inference` ranks answers and texts with trained models, and :mod:`models.checkpoints` loads weights.

Docstrings give the shapes of tensors. Each letter stands for one axis:

====  ==============================================  ====  ==============================================
N     texts, pairs or examples                        Q     packed query positions
I     images or videos                                W     query positions of each text, padded
F     frames of a video                               H, d  attention heads, and the width of a head
P     patches of an image                             D     width of states
R     regions, or visual concepts of any kind         E     width of contrastive embeddings
B     rows of keys and values                         V     words of the vocabulary
K     keys (states to attend to) in a row             C     classes, or candidate answers
S     texts of a pass that attend to the same row     A     answers
L     tokens of a padded text                         J     hard negative texts of a pair
T     packed tokens                                   Z     queries of the head for sets of boxes
                                                      M     selected entries of any axis
====  ==============================================  ====  ==============================================

"The authors' code" is the original implementation; "released" refers to this code, and "published" to the paper or to the
authors' checkpoints. "Ours" refers to this project.
"""
