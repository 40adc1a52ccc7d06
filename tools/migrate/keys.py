"""The table :data:`KEYS` of all keys in the authors' YAML configs (github.com/zengyan-97/X2-VLM), and how each is converted.

It lists the keys in the authors' YAML files, and for tasks without a YAML file, the keys that the authors' scripts read. A key
has several rows if it is converted differently for different tasks, or if it sets several of our keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.migrate.lists import by_split, captioned, phrases, question_sources, shards, statements, video_questions
from tools.migrate.source import SEPARATE, SINGLE, VISION_JSON, Source
from utils.errors import UserError

REQUIRED = object()
"""Marks a key that the authors' scripts require."""
UNSET = object()
"""Marks an optional key. Without the key, our config keeps the value of the preset."""

Read = Callable[[Any, str, Source], Any]
"""A function that returns our value, given the authors' value, the authors' key and the whole config."""


def same(value: Any, key: str, source: Source) -> Any:
    """Returns the value unchanged."""
    return value


@dataclass(frozen=True)
class Key:
    """A row of the table.

    Attributes:
        authors_key: dotted key of the authors' config. Keys of the JSON file that ``vision_config`` names start with
            ``vision_config/``.
        our_key: dotted key of our config, or "" without a counterpart. A key with ``[]`` or ``<name>`` only documents where the
            value ends up; another row sets it.
        note: the difference, or the reason for a missing counterpart; "" if the meaning is the same.
        read: function that converts the value.
        default: our value if the config lacks the key, as in the authors' code; or :data:`REQUIRED` or :data:`UNSET`.
        tasks: our names of the tasks that the row applies to; if empty, the row applies to all tasks.
        layout: the model layout that the row applies to; "" means both layouts.
        only: for rows without ``our_key``, the value that requests what our code always does.
    """

    authors_key: str
    our_key: str = ""
    note: str = ""
    read: Read = same
    default: Any = UNSET
    tasks: tuple[str, ...] = ()
    layout: str = ""
    only: Any = UNSET

    def is_for(self, source: Source) -> bool:
        """Returns True if the row applies to a config's task and model."""
        return source.task in (self.tasks or (source.task,)) and self.layout in ("", source.layout)

    @property
    def sets(self) -> bool:
        """Whether the row sets a value of our config."""
        return bool(self.our_key) and "[]" not in self.our_key and "<" not in self.our_key


PRETRAIN, RETRIEVAL, NLVR = ("pretrain",), ("retrieval",), ("nlvr",)
VQA, VIDEO_QA, GROUNDING, CAPTIONING = ("vqa",), ("video_qa",), ("grounding",), ("captioning",)
ALIGNS = (*PRETRAIN, *RETRIEVAL)
MASKS = (*PRETRAIN, *CAPTIONING)
NO_LR_MULT = (*RETRIEVAL, *NLVR, *GROUNDING)
"""Tasks for which the authors' scripts wrap the model before they create the optimiser, and therefore ignore ``lr_mult`` on
several GPUs."""
LR_MULT = (*PRETRAIN, *VQA, *VIDEO_QA, *CAPTIONING)
ONE_BATCH_SIZE = (*NLVR, *GROUNDING)
"""Tasks with the same batch size for training and evaluation."""
TWO_BATCH_SIZES = (*RETRIEVAL, *VQA, *VIDEO_QA, *CAPTIONING)
FINE_TUNING = (*ONE_BATCH_SIZE, *TWO_BATCH_SIZES)

ENCODERS = {
    "bert-base-uncased": "base",
    "bert-large-uncased-12l": "large",
    "bert-large-uncased": "large",
    "xlm-roberta-base": "xlmr_base",
    "xlm-roberta-large": "xlmr_large",
}
"""The preset with the sizes of each text encoder, by the name of its folder."""
ON_THE_HUB = {"bert-large-uncased-12l": "bert-large-uncased"}
"""Names of encoders on the Hugging Face Hub that differ from the names of their folders. The authors' file with 12 layers is not
published; instead, every second of the 24 layers on the Hub is loaded."""


# How values are converted.


def file(value: Any, key: str, source: Source) -> str:
    """Returns the path of a file or folder."""
    if not isinstance(value, str):
        raise source.wrong(key, "a path")
    return source.file(value)


def encoder(value: Any, key: str, source: Source) -> str:
    """Returns the folder of a text encoder, or its name on the Hub if the folder does not exist."""
    folder = Path(file(value, key, source))
    return str(folder) if (folder / "config.json").is_file() else ON_THE_HUB.get(folder.name, folder.name)


def backbone(value: Any, key: str, source: Source) -> str:
    """Returns the vision encoder, which the name of its JSON file determines, as in the authors' code.

    Raises:
        UserError: if the config requests an encoder other than BEiT-2, or the name contains neither base nor large.
    """
    for other in ("use_clip_vit", "use_swin", "use_swin_v2"):
        if source.get(other):
            raise UserError(
                f"{other} = true: weights of X-VLM with this vision encoder cannot be loaded",
                where=source.place(other),
                remedy="pass the config of a model with BEiT-2, or start from a config in configs/ with another "
                "model.vision.backbone",
            )
    return f"beitv2_{size_of(value, key, source)}_patch16_224"


def size_of(value: Any, key: str, source: Source) -> str:
    """Returns the size of the vision encoder, base or large."""
    size = next((size for size in ("base", "large") if size in str(value)), None)
    if size is None:
        raise source.wrong(key, "a file with base or large in its name")
    return size


def initial_vision_weights(value: Any, key: str, source: Source) -> Any:
    """Returns the weights of the vision encoder, or null with --checkpoint."""
    return file(value, key, source) if source.checkpoint is None else None


def initial_text_weights(value: Any, key: str, source: Source) -> Any:
    """Returns the weights of the text encoder, or null with --checkpoint."""
    return encoder(value, key, source) if source.checkpoint is None else None


def replacement_text_weights(value: Any, key: str, source: Source) -> Any:
    """Returns the weights of the text encoder, if they replace the text encoder of the checkpoint."""
    return encoder(source.get("text_encoder"), "text_encoder", source) if value or source.checkpoint is None else None


def root_of_paths(value: Any, key: str, source: Source) -> Any:
    """Returns the folder that paths in records are relative to, or null for base64."""
    return str(source.root) if value else None


def video_max_words(value: Any, key: str, source: Source) -> Any:
    """Returns the maximum number of words for captions of videos. Captions of images are limited to 30 words."""
    return value if source.get("is_video") else 30


def fusion_layers(value: Any, key: str, source: Source) -> Any:
    """Returns the number of layers with cross-attention, which are the layers from ``text_fusion_start_at`` on."""
    return int(source.number(key) - source.number("text_fusion_start_at"))


def min_rate_factor(value: Any, key: str, source: Source) -> float:
    """Returns the minimum learning rate as a factor."""
    return source.number(key) / source.number("optimizer.lr")


def patch_size(value: Any, key: str, source: Source) -> Any:
    """Returns null for 16, the patch size of BEiT-2."""
    return None if value == 16 else value


def path_or_base64(value: Any, key: str, source: Source) -> str:
    """Returns how a record contains its image."""
    if not isinstance(value, bool):
        raise source.wrong(key, "true or false")
    return "path" if value else "base64"


def accumulated(value: Any, key: str, source: Source) -> Any:
    """Returns null if --gpus is set, because ``train.global_batch`` then determines the accumulation."""
    return value if source.gpus is None else None


def not_by_language(value: Any, key: str, source: Source) -> Any:
    """Returns false for captions by language, in which the authors' reader never recognises left and right."""
    return value if source.layout == SINGLE else False


def precision(value: Any, key: str, source: Source) -> Any:
    """Returns our name for one of apex's precision levels."""
    return {"O0": "fp32", "O1": "fp16", "O2": "fp16"}.get(str(value), value)


def lower(value: Any, key: str, source: Source) -> Any:
    """Returns the value in lower case."""
    return value.lower() if isinstance(value, str) else value


def test_lists(value: Any, key: str, source: Source) -> dict[str, Any]:
    """Returns the splits to report on."""
    return by_split(value, key, source, SECTIONS[source.task])


def first_list(value: Any, key: str, source: Source) -> Any:
    """Returns the split that selects the weights, which is the first list if there is a list for each language."""
    first = next(iter(value.items()), None) if isinstance(value, dict) else None
    return SECTIONS[source.task](*((value, key) if first is None else (first[1], f"{key}.{first[0]}")), source)


def tested_phrases(value: Any, key: str, source: Source) -> dict[str, Any]:
    """Returns the splits of RefCOCO+; val selects the weights."""
    splits = phrases(value, key, source)
    return {"validation": splits.get("val"), "test": splits}


def trained_phrases(value: Any, key: str, source: Source) -> Any:
    """Returns the training phrases of RefCOCO+."""
    return next(iter(phrases(value, key, source).values()))


def tested_questions(value: Any, key: str, source: Source) -> Any:
    """Returns the questions to answer. No split selects the weights, as in the authors' script."""
    return {"validation": None, "test": by_split(value, key, source, lambda *each: question_sources(*each)[0])}


SECTIONS: dict[str, Read] = {
    "retrieval": captioned,
    "captioning": captioned,
    "nlvr": statements,
    "video_qa": video_questions,
}
"""For each task, the function that builds the config section for a list."""


# The table.


def stream(authors_key: str, our_key: str) -> list[Key]:
    """Returns the rows for the keys that all streams of pre-training have."""
    weight = "a factor on the losses of the stream, not a probability, as in the authors' code"
    return [
        Key(f"{authors_key}.batch_size", f"{our_key}.batch_size", default=REQUIRED, tasks=PRETRAIN),
        Key(f"{authors_key}.iter_perc", f"{our_key}.weight", weight, default=1.0, tasks=PRETRAIN),
        Key(
            f"{authors_key}.num_workers",
            "",
            "data.workers (8) processes load the batches of all streams",
            tasks=PRETRAIN,
        ),
        Key(f"{authors_key}.tokenized", "", "texts are tokenized when they are read", only=False, tasks=PRETRAIN),
    ]


def masking(our_key: str, tasks: tuple[str, ...]) -> list[Key]:
    """Returns the rows for the keys that set truncation and masking."""
    return [
        Key("max_tokens", f"{our_key}.max_tokens", default=REQUIRED, tasks=tasks),
        Key("mask_prob", f"{our_key}.mask_prob", default=REQUIRED, tasks=tasks),
        Key("max_masks", f"{our_key}.max_masks", default=REQUIRED, tasks=tasks),
        Key("mask_whole_word", f"{our_key}.whole_word", default=REQUIRED, tasks=tasks),
        Key("skipgram_prb", f"{our_key}.skipgram_prob", default=REQUIRED, tasks=tasks),
        Key("skipgram_size", f"{our_key}.skipgram_size", default=REQUIRED, tasks=tasks),
    ]


NEEDS = {
    "data.images.clean.": "train_file_aux",
    "data.videos.clean.": "train_file_videos_aux",
    "data.images.": "train_file",
    "data.regions.": "train_file_regions",
    "data.videos.": "train_file_videos",
    "data.texts.": "train_file_text",
    "data.translations.": "train_file_mtext",
    "model.vision.video.": "train_file_videos",
}
"""Maps prefixes of our keys to the authors' key that must be set for these keys to have an effect in pre-training. The first
match counts."""


def needs(key: Key, source: Source) -> str | None:
    """Returns the key that a row requires but the config lacks, or None."""
    if source.task not in PRETRAIN:
        return None
    needed = next((authors_key for start, authors_key in NEEDS.items() if key.our_key.startswith(start)), None)
    return needed if needed is not None and not source.get(needed) else None


# fmt: off
KEYS: list[Key] = [
    # The model.
    Key("use_beit_v2", "", "the vision encoder is BEiT-2", only=True),
    Key("use_clip_vit", "", "model.vision.backbone can be a CLIP encoder, but weights of X-VLM with CLIP cannot be loaded",
        only=False),
    Key("use_swin", "", "Swin transformers are not supported as vision encoders", only=False),
    Key("use_swin_v2", "", "Swin transformers are not supported as vision encoders", only=False),
    Key("vision_config", "model.vision.backbone", "base or large, taken from the file name", read=backbone, default=REQUIRED),
    Key(f"{VISION_JSON}ckpt", "init.vision", "null with --checkpoint", read=initial_vision_weights, default=REQUIRED,
        tasks=PRETRAIN),
    Key(f"{VISION_JSON}ckpt", "", "fine-tuning starts from --checkpoint", tasks=FINE_TUNING),
    Key(f"{VISION_JSON}vision_width", "", "determined by model.vision.backbone"),
    Key(f"{VISION_JSON}patch_size", "", "determined by model.vision.backbone"),
    Key("image_res", "model.vision.image_size", default=REQUIRED),
    Key("patch_size", "model.vision.patch_size", "null means the backbone's patch size, 16", read=patch_size, default=None),
    Key("local_attn_depth", "", "not used by the authors' code"),
    Key("frame_len", "model.vision.video.frames"),
    Key("add_frame_pos", "", "frames have trained position embeddings", only=True),
    Key("video_encoding", "", "model.vision.video.pooling is mean", only="avgpool"),
    Key("model_type", "model.word_table",
        "CrossViewLM: separate encoders for text and fusion, and a separate word table", read=lambda *_: "own",
        tasks=PRETRAIN, layout=SEPARATE),
    Key("model_type", "", "model.text and model.fusion determine the layout of the model", tasks=FINE_TUNING,
        layout=SEPARATE),
    Key("model_type", "", "model.text and model.fusion determine the layout of the model", layout=SINGLE),
    Key("text_encoder", "model.text.encoder", read=encoder, default=REQUIRED),
    Key("text_encoder", "init.text", "null with --checkpoint", read=initial_text_weights, default=REQUIRED, tasks=PRETRAIN),
    Key("text_num_hidden_layers", "model.fusion.layers",
        "minus text_fusion_start_at, since the authors' key counts both encoders",
        read=fusion_layers, default=REQUIRED, layout=SINGLE),
    Key("text_fusion_start_at", "model.text.arch.layers", default=REQUIRED, layout=SINGLE),
    Key("text_num_hidden_layers", "model.text.arch.layers", default=REQUIRED, layout=SEPARATE),
    Key("cross_num_hidden_layers", "model.fusion.layers", default=REQUIRED, layout=SEPARATE),
    Key("cross_encoder", "", "model.fusion sets its sizes; its weights come from the checkpoint", layout=SEPARATE),
    Key("is_xvlm_ckpt", "", "recognised from the tensors of the weight file"),
    Key("xvlm_ckpt_text_num_hidden_layers", "", "recognised from the tensors of the weight file"),
    Key("replace_text_encoder", "init.text", "the value of text_encoder, if it replaces the checkpoint's",
        read=replacement_text_weights),
    Key("dropout", "model.text.dropout", default=0.1),
    Key("text_drop_path_rate", "model.text.drop_path", "drops entire texts instead of positions", default=0.0),
    Key("cross_drop_path_rate", "model.fusion.drop_path", "drops entire texts instead of positions", default=0.0),
    Key("embed_dim", "model.embed_dim", default=REQUIRED, tasks=ALIGNS),
    Key("temp", "model.temperature", default=REQUIRED, tasks=ALIGNS),
    Key("num_dec_layers", "model.decoder.layers", default=REQUIRED, tasks=VQA),
    Key("num_labels", "model.classes", default=REQUIRED, tasks=VIDEO_QA),
    Key("num_labels", "model.classes", tasks=NLVR),
    Key("init_word_embeddings", "", "word embeddings are loaded from init.text or init.checkpoint", only=False),
    # Pre-training: data.
    Key("train_file", "data.images.files", read=shards, tasks=PRETRAIN),
    Key("train_dataset_size", "", "an epoch contains all records; train.steps sets a different length",
        tasks=PRETRAIN),
    Key("train_file_aux", "data.images.clean.files", read=shards, tasks=PRETRAIN),
    Key("aux_iter_perc", "data.images.clean.probability", tasks=PRETRAIN),
    Key("images.aux_caption_key", "data.images.clean.caption_key", tasks=PRETRAIN),
    Key("images.image_key", "data.images.image_key", default=REQUIRED, tasks=PRETRAIN),
    Key("images.is_image_rpath", "data.images.image_is", read=path_or_base64, default=REQUIRED, tasks=PRETRAIN),
    Key("images.is_image_rpath", "data.images.image_root", "--root, since paths are relative to it",
        read=root_of_paths, default=REQUIRED, tasks=PRETRAIN),
    Key("images.caption_key", "data.images.caption_key", default=REQUIRED, tasks=PRETRAIN),
    *stream("images", "data.images"),
    Key("train_file_regions", "data.regions.files", read=shards, tasks=PRETRAIN),
    Key("regions.image_key", "data.regions.image_key", default=REQUIRED, tasks=PRETRAIN),
    Key("regions.is_image_rpath", "data.regions.image_is", read=path_or_base64, default=REQUIRED, tasks=PRETRAIN),
    Key("regions.is_image_rpath", "data.regions.image_root", "--root, since paths are relative to it",
        read=root_of_paths, default=REQUIRED, tasks=PRETRAIN),
    Key("regions.caption_key", "data.regions.caption_key", default=REQUIRED, tasks=PRETRAIN),
    Key("regions.max_images", "data.regions.max_images", default=REQUIRED, tasks=PRETRAIN),
    Key("regions.max_regions", "data.regions.max_regions", default=REQUIRED, tasks=PRETRAIN),
    Key("regions.min_perc_in_image", "data.regions.min_inside", default=REQUIRED, tasks=PRETRAIN),
    Key("regions.careful_hflip", "data.regions.careful_flip",
        "false for captions by language, where it has no effect", read=not_by_language, default=False,
        tasks=PRETRAIN),
    Key("regions.code_switch", "", "an attribute and its noun may be in different languages", only=True, tasks=PRETRAIN),
    *stream("regions", "data.regions"),
    Key("regions_use_bbox_only", "", "data.regions.weight applies to all losses of the stream", only=False,
        tasks=PRETRAIN),
    Key("train_file_videos", "data.videos.files", read=shards, tasks=PRETRAIN),
    Key("train_file_videos_aux", "data.videos.clean.files", read=shards, tasks=PRETRAIN),
    Key("video_aux_iter_perc", "data.videos.clean.probability", tasks=PRETRAIN),
    Key("videos.image_key", "data.videos.video_key", default=REQUIRED, tasks=PRETRAIN),
    Key("videos.is_image_rpath", "", "a list of base64 frames, a file or a folder is recognised automatically",
        only=False, tasks=PRETRAIN),
    Key("videos.caption_key", "data.videos.caption_key", default=REQUIRED, tasks=PRETRAIN),
    Key("videos.frame_len", "model.vision.video.frames", "one value for data and model", default=REQUIRED,
        tasks=PRETRAIN),
    Key("videos.use_random_sampling", "", "frames are sampled randomly in training", only=True, tasks=PRETRAIN),
    Key("videos.combine_continuous_clips", "data.videos.join_clips", default=False, tasks=PRETRAIN),
    Key("videos.mininum_frames_before_sampling", "data.videos.min_frames", tasks=PRETRAIN),
    *stream("videos", "data.videos"),
    Key("train_file_text", "data.texts.files", read=shards, tasks=PRETRAIN),
    Key("texts.text_key", "data.texts.text_key", default=REQUIRED, tasks=PRETRAIN),
    *stream("texts", "data.texts"),
    Key("train_file_mtext", "data.translations.files", read=shards, tasks=PRETRAIN),
    Key("mtexts.source_key", "data.translations.source_key", default=REQUIRED, tasks=PRETRAIN),
    Key("mtexts.target_key", "data.translations.target_key", default=REQUIRED, tasks=PRETRAIN),
    Key("mtexts.max_words", "", "texts are truncated to max_tokens words, then to max_tokens tokens", tasks=PRETRAIN),
    *masking("data.translations.text", PRETRAIN),
    Key("mtexts.max_tokens", "data.translations.text.max_tokens", tasks=PRETRAIN),
    Key("mtexts.mask_prob", "data.translations.text.mask_prob", tasks=PRETRAIN),
    Key("mtexts.max_masks", "data.translations.text.max_masks", tasks=PRETRAIN),
    *stream("mtexts", "data.translations"),
    # Fine-tuning: data.
    Key("train_file", "data.train", "several lists are merged", read=captioned, default=REQUIRED,
        tasks=(*RETRIEVAL, *CAPTIONING)),
    Key("train_file", "data.train", "several lists are merged", read=statements, default=REQUIRED, tasks=NLVR),
    Key("train_file", "data.train", read=video_questions, default=REQUIRED, tasks=VIDEO_QA),
    Key("train_file", "data.train", "one source per list", read=question_sources, default=REQUIRED, tasks=VQA),
    Key("train_file", "data.train", "converted to region records, with the boxes in instances.json", read=trained_phrases,
        default=REQUIRED, tasks=GROUNDING),
    Key("val_file", "evaluation.validation", "selects the weights; the authors' scripts select on the test split",
        read=first_list, default=None, tasks=(*RETRIEVAL, *CAPTIONING)),
    Key("val_file", "evaluation.validation", read=first_list, default=None, tasks=NLVR),
    Key("valid_file", "evaluation.validation", read=first_list, default=None, tasks=VIDEO_QA),
    Key("test_file", "evaluation.test", read=test_lists, default=REQUIRED,
        tasks=(*RETRIEVAL, *CAPTIONING, *NLVR, *VIDEO_QA)),
    Key("test_file", "evaluation", "evaluation.validation is null, so the last weights are evaluated", read=tested_questions,
        default=REQUIRED, tasks=VQA),
    Key("test_file", "evaluation", "val selects the weights; the test list is split into testA and testB",
        read=tested_phrases, default=REQUIRED, tasks=GROUNDING),
    Key("val_gt_file", "", "the references are the captions of the split", tasks=CAPTIONING),
    Key("test_gt_file", "", "the references are the captions of the split", tasks=CAPTIONING),
    Key("image_root", "evaluation.test.<name>.images", "also for data.train and evaluation.validation",
        tasks=(*RETRIEVAL, *CAPTIONING, *NLVR, *GROUNDING)),
    Key("vqa_root", "data.train[].images", "for lists with VQA v2 rows", tasks=VQA),
    Key("vg_root", "data.train[].images", "for lists with Visual Genome rows", tasks=VQA),
    Key("img_rdir", "evaluation.test.<name>.videos", "also for data.train and evaluation.validation", tasks=VIDEO_QA),
    Key("answer_list", "evaluation.answers", read=file, default=REQUIRED, tasks=VQA),
    Key("ans2label_file", "evaluation.answers", read=file, default=REQUIRED, tasks=VIDEO_QA),
    Key("is_video", "", "implied by model.vision.video", tasks=RETRIEVAL),
    Key("index_key", "", "records use image_id or video_id; rows with another key are rewritten", tasks=RETRIEVAL),
    Key("vision_key", "", "records use image or video; rows with another key are rewritten", tasks=RETRIEVAL),
    Key("text_key", "", "records use caption; rows with another key are rewritten", tasks=RETRIEVAL),
    Key("refcoco_data", "evaluation.test.<name>.refs",
        "refcoco+/refs(unc).p and instances.json in this folder contain the boxes for the lists", tasks=GROUNDING),
    Key("det_file", "", "boxes are predicted, not chosen from a list", tasks=GROUNDING),
    Key("coco_file", "", "boxes are predicted, not chosen from a list", tasks=GROUNDING),
    Key("vlue_test", "", "the rows of the lists contain the boxes", tasks=GROUNDING),
    Key("careful_hflip", "data.careful_flip", default=REQUIRED, tasks=GROUNDING),
    Key("apply_FG_free", "", "training is FG-free", only=True, tasks=CAPTIONING),
    # Texts.
    Key("max_words", "", "texts are truncated to max_tokens words, then to max_tokens tokens", tasks=PRETRAIN),
    Key("max_words", "", "training captions are only truncated to max_tokens", tasks=CAPTIONING),
    Key("max_words", "data.text.max_words", "30 for images, as in the authors' code", read=video_max_words, default=30,
        tasks=RETRIEVAL),
    *masking("data.text", MASKS),
    Key("max_tokens", "data.text.max_tokens", default=REQUIRED, tasks=(*RETRIEVAL, *NLVR, *VQA, *VIDEO_QA, *GROUNDING)),
    Key("prompt", "data.prompt", default=REQUIRED, tasks=CAPTIONING),
    # Training.
    Key("batch_size_train", "data.batch_size", default=REQUIRED, tasks=TWO_BATCH_SIZES),
    Key("batch_size", "data.batch_size", default=REQUIRED, tasks=ONE_BATCH_SIZE),
    Key("accumulate_steps", "train.accumulate", "null with --gpus, since train.global_batch determines it", read=accumulated,
        default=None, tasks=FINE_TUNING),
    Key("mixed_in_batch", "", "every step uses all streams", only=True, tasks=PRETRAIN),
    Key("calc_image_bbox_loss", "loss.whole_image_boxes", default=REQUIRED, tasks=PRETRAIN),
    Key("stop_calc_itm", "data.matching_steps", default=None, tasks=PRETRAIN),
    Key("label_smoothing", "loss.label_smoothing", default=REQUIRED, tasks=CAPTIONING),
    Key("large_lr_for_dec", "optim.fresh_decoder", default=False, tasks=VQA),
    Key("optimizer.opt", "", "the optimiser is AdamW", only="adamW"),
    Key("optimizer.lr", "optim.lr", default=REQUIRED),
    Key("optimizer.weight_decay", "optim.weight_decay", default=REQUIRED),
    Key("optimizer.lr_mult", "optim.lr_mult", default=1.0, tasks=LR_MULT),
    Key("optimizer.lr_mult", "optim.lr_mult", "1, because it has no effect in the authors' script on several GPUs",
        read=lambda *_: 1.0, default=1.0, tasks=NO_LR_MULT),
    Key("optimizer.vision_lr", "optim.vision_lr", default=None),
    Key("optimizer.text_lr", "optim.text_lr", default=None),
    Key("optimizer.cross_lr", "optim.cross_lr", default=None),
    Key("schedular.sched", "schedule.kind", read=lower, default=REQUIRED),
    Key("schedular.lr", "", "optimizer.lr is used instead, as in the authors' code"),
    Key("schedular.epochs", "train.epochs", default=REQUIRED),
    Key("schedular.num_warmup_steps", "schedule.warmup_steps", default=0),
    Key("min_lr", "schedule.min_rate", "divided by the learning rate", read=min_rate_factor, default=0.0,
        tasks=FINE_TUNING),
    Key("min_lr", "", "not used by the authors' script", tasks=PRETRAIN),
    Key("accelerator.FP16_OPT_LEVEL", "train.precision", "O0 is fp32; O1 and O2 are fp16 with autocast instead of apex",
        read=precision, default=REQUIRED, tasks=PRETRAIN),
    Key("accelerator.CLIP_GRAD_NORM", "train.clip_grad_norm", default=REQUIRED, tasks=PRETRAIN),
    Key("accelerator.GRAD_ACCUMULATE_STEPS", "train.accumulate", "null with --gpus, since train.global_batch determines it",
        read=accumulated, default=None, tasks=PRETRAIN),
    Key("accelerator.RNG_SEED", "seed", "a single seed; the authors' code also uses --seed", tasks=PRETRAIN),
    Key("accelerator.FP16_LOSS_SCALE", "", "fp16 uses a dynamic loss scale", only="dynamic", tasks=PRETRAIN),
    Key("accelerator.SYNCBN", "", "the models have no batch norm", only=False, tasks=PRETRAIN),
    Key("ckpt_frequent_step", "", "train.checkpoint_every saves checkpoints for resuming; only the newest are kept",
        tasks=PRETRAIN),
    Key("ckpt_frequent", "", "checkpoints are saved every train.checkpoint_every steps", tasks=PRETRAIN),
    Key("print_broken_data", "", "broken records are counted and reported (data.max_broken)", tasks=PRETRAIN),
    Key("start_eval", "", "every epoch is validated, or every train.validate_every steps", tasks=FINE_TUNING),
    # Evaluation.
    Key("batch_size_test", "evaluation.batch_size", tasks=TWO_BATCH_SIZES),
    Key("batch_size_test_text", "", "evaluation.batch_size also applies to texts", tasks=RETRIEVAL),
    Key("k_test", "evaluation.candidates", default=REQUIRED, tasks=(*RETRIEVAL, *VQA)),
    Key("num_beams", "evaluation.decoding.beams", default=REQUIRED, tasks=CAPTIONING),
    Key("max_length", "evaluation.decoding.max_length",
        "does not count the prompt; in the authors' code, the batch size is added to this limit",
        default=REQUIRED, tasks=CAPTIONING),
    Key("min_length", "evaluation.decoding.min_length", default=REQUIRED, tasks=CAPTIONING),
    Key("length_penalty", "evaluation.decoding.length_penalty", default=REQUIRED, tasks=CAPTIONING),
]
# fmt: on


def markdown() -> str:
    """Returns the table as Markdown, with a line for each row."""
    lines = ["| authors' key | our key | tasks | note |", "|---|---|---|---|"]
    for key in KEYS:
        authors_key = (
            f"`{key.authors_key}`"
            if VISION_JSON not in key.authors_key
            else f"`{key.authors_key.removeprefix(VISION_JSON)}` in the JSON file"
        )
        tasks = "fine-tuning" if set(key.tasks) == set(FINE_TUNING) else ", ".join(key.tasks) or "all"
        tasks += f" ({key.layout})" if key.layout else ""
        always = "" if key.only is UNSET else f"always {json.dumps(key.only)} here: "
        lines.append(
            f"| {authors_key} | {f'`{key.our_key}`' if key.our_key else 'none'} | {tasks} | {always}{key.note} |"
        )
    return "\n".join(lines) + "\n"
