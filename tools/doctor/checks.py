"""The checks of ``run.py doctor``, in the order of its report. To add a check, write a function, import it, and add a line here.

A check may use what the checks before it have built: the tokenizer, the model, the training data, the held-out splits, and the
batches of the sample (:class:`~tools.doctor.subject.Subject`).
"""

from __future__ import annotations

from tasks.checks import check_answers, check_batch_size, check_sizes, check_text_encoder
from tasks.prepared import Check
from tools.doctor.boxes import check_boxes
from tools.doctor.data import check_held_out, check_training
from tools.doctor.files import check_download, check_inputs, check_tokenizer
from tools.doctor.first_step import check_image, check_step
from tools.doctor.image_blind import check_image_blind, check_start_of_answers
from tools.doctor.machine import check_cores, check_device, check_versions, check_wandb
from tools.doctor.memory import check_disk, check_memory
from tools.doctor.record_keys import check_record_keys
from tools.doctor.sample import check_hard_negatives, check_loading, check_sample, check_shared_patches, check_unknown
from tools.doctor.shared import check_shared
from tools.doctor.weights import check_model, check_pixels, check_weights

CHECKS = (
    Check("environment", "versions", check_versions),
    Check("environment", "wandb", check_wandb),
    Check("environment", "device", check_device),
    Check("environment", "cores", check_cores),
    Check("files", "inputs", check_inputs),
    Check("files", "tokenizer", check_tokenizer),
    Check("files", "init.text", check_download),
    Check("model and weights", "model", check_model),
    Check("model and weights", "sizes", check_sizes),
    Check("model and weights", "text encoder", check_text_encoder),
    Check("model and weights", "pixels", check_pixels),
    Check("model and weights", "weights", check_weights),
    Check("data", "training", check_training),
    Check("data", "held out", check_held_out),
    Check("data", "batch", check_batch_size),
    Check("data", "record keys", check_record_keys),
    Check("data", "boxes", check_boxes),
    Check("data", "sample", check_sample),
    Check("data", "hard negatives", check_hard_negatives),
    Check("data", "patches", check_shared_patches),
    Check("data", "loading", check_loading),
    Check("data", "unknown tokens", check_unknown),
    Check("data", "answers", check_answers),
    Check("data", "image-blind", check_image_blind),
    Check("data", "init.checkpoint", check_start_of_answers),
    Check("data", "shared images", check_shared),
    Check("memory", "a step", check_memory),
    Check("disk", "checkpoints", check_disk),
    Check("first step", "image", check_image),
    Check("first step", "step", check_step),
)
