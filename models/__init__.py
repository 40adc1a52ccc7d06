"""The X²-VLM model: encoders, fusion, heads, losses, and the loading of checkpoints.

Read in this order:

1. :mod:`models.reference`: all pre-training losses on one page, in the simplest form. The other modules compute the same losses
   faster.
2. :mod:`models.pretraining.streams`: the same losses as they run in training, stream by stream; :mod:`models.pretraining.model`:
   the model, and its forward pass, which covers all streams.
3. :mod:`models.core.vision`, :mod:`models.core.text`, :mod:`models.core.fusion`: the encoders; :mod:`models.core.blocks`: the
   transformer block of the text and fusion encoders.
4. :mod:`models.core.contrastive`, :mod:`models.core.matching`, :mod:`models.core.heads`: the heads.
5. :mod:`models.core.packing`, :mod:`models.core.keys_values`: texts without padding; keys and values, projected only once.

:mod:`models.tasks` contains the models for fine-tuning, :mod:`models.inference` ranks answers and texts with trained models, and
:mod:`models.checkpoints` loads weights.

Each axis of a tensor has one letter:

====  ==============================================  ====  ==============================================
N     texts, pairs or examples                        Q     packed query positions
I     images or videos                                W     query positions of each text, padded
F     frames of a video                               H, d  attention heads, and the width of a head
P     patches of an image                             D     width of states
R     regions; rows of keys and values                E     width of contrastive embeddings
K     states of a row (keys)                          V     words of the vocabulary
L     tokens of a padded text                         C     classes, or candidate answers
T     packed tokens                                   A     answers
S     texts that attend to the same row               M     selected entries, of any kind
====  ==============================================  ====  ==============================================

"Released" refers to the authors' code, "published" to the paper or the authors' checkpoints.
"""
