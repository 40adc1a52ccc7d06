"""The X²-VLM model: encoders, heads, losses, and the loading of checkpoints.

Read the modules in this order:

1. :mod:`models.reference` computes all pre-training losses in the simplest form. The other modules compute the same losses
   faster.
2. :mod:`models.core.packing` stores texts without padding. Its first paragraphs explain the two layouts that all other modules
   use.
3. :mod:`models.pretraining.streams` computes these losses the way training does. A stream is one type of training data, such as
   image-text pairs or videos. :mod:`models.pretraining.model` contains the model and its forward pass, which covers all streams,
   and :mod:`models.pretraining.trained_parameters` freezes what no loss trains.
4. :mod:`models.core.vision`, :mod:`models.core.text` and :mod:`models.core.fusion` contain the encoders,
   :mod:`models.core.keys_values` what texts attend to, and :mod:`models.core.blocks` the transformer block of the text and fusion
   encoders.
5. :mod:`models.core.contrastive`, :mod:`models.core.matching` and :mod:`models.core.heads` contain the heads, and
   :mod:`models.core.losses` the losses as functions.

:mod:`models.tasks` contains the models for fine-tuning, :mod:`models.flops` counts the operations of a step,
:mod:`models.inference` ranks answers and texts with trained models, and :mod:`models.checkpoints` loads weights.

Docstrings give the shapes of tensors. Each letter stands for one axis:

====  ==============================================  ====  ==============================================
N     texts, pairs or examples                        Q     packed query positions
I     images or videos                                U     query positions of each text, padded
F     frames of a video                               d     width of an attention head
H, W  height and width of an image in pixels          D     width of states
P     patches of an image                             E     width of contrastive embeddings
R     regions, or visual concepts of any kind         V     words of the vocabulary
B     rows of keys and values                         C     classes, or candidate answers
K     keys (states to attend to) in a row             A     answers
S     texts of a pass that attend to the same row     J     hard negative texts of a pair
L     tokens of a padded text                         Z     queries of the head for sets of boxes
T     packed tokens                                   M     selected or compared entries of any axis
====  ==============================================  ====  ==============================================

A prime marks another size of the same axis, such as D' for the width of images next to D for the width of texts. With regions, N
and R are the same number, because each region has one text.

"The authors' code" is the original implementation. "Released" refers to the authors' code, and "published" to the paper or to the
authors' checkpoints. "Ours" refers to this project.
"""
