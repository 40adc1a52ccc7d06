"""The sides of :mod:`benchmarks.duel`: models of open_clip and of this project that learn from the same batches.

A side of open_clip has its image and text transformers, or its adapters of pre-trained encoders, its loss and the optimiser
settings that its README recommends. Changes (:data:`CHANGES`) replace one part at a time by the part of this project, until
nothing of open_clip is left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batches.pretraining import ImageTextBatch
from batches.texts import Text
from dataset.tasks.held_out import HeldOutRecord
from dataset.text.processors import TextProcessor
from demo.real.collect import CUTOUT_SOURCES
from engine.precision import Precision
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.task import Task
from engine.trainer import Trainer
from metrics.retrieval import ranks_of_first_match
from models.config import RankingScore
from models.core.backbones.stem import ConvolutionalStem
from models.pretraining.model import PretrainModel
from tasks.config import EvaluationConfig, PretrainConfig
from tasks.inference import evaluating
from tasks.pretrain import PretrainTask
from tasks.pretrain_evaluation import HeldOutReader, PretrainEvaluator
from tasks.two_stage import Rankings, TwoStageRetrieval
from utils.config import load_config
from utils.errors import UserError
from utils.extras import install_command

ONE_PROCESS = ("data.workers=0", "train.log_every=1000000")
NO_OTHER_LOSSES = ("loss.matching=0", "loss.mlm=0", "loss.l1=0", "loss.giou=0")

INGREDIENTS: dict[str, tuple[str, ...]] = {
    "contrastive": ("data.regions=null", *NO_OTHER_LOSSES),
    "contrastive, matching": ("data.regions=null", "loss.mlm=0", "loss.l1=0", "loss.giou=0"),
    "contrastive, words": ("data.regions=null", "loss.matching=0", "loss.l1=0", "loss.giou=0"),
    "contrastive, regions": NO_OTHER_LOSSES,
    "contrastive, regions, boxes": ("loss.matching=0", "loss.mlm=0"),
    "everything": (),
}
"""The overrides of each side of this project, by name. "contrastive" compares images and captions alone."""


@dataclass(frozen=True)
class Data:
    """The records from which the sides of a duel learn, and those by which they are compared.

    Attributes:
        config: the pre-training config of this project for these records. All sides take their sizes from it.
        folder: folder of the held-out records.
        files: names of the files whose captions and images are ranked among those of the same file. ``{split}`` stands for val or
            test.
        region_files: names of the files with boxes.
        has_cache: True if the config caches the features of frozen blocks.
    """

    config: str
    folder: str
    files: tuple[str, ...]
    region_files: tuple[str, ...]
    has_cache: bool = False

    def paths(self, names: Sequence[str], split: str) -> list[str]:
        """Returns the paths of files of a split."""
        return [f"{self.folder}/{name.format(split=split)}" for name in names]


DATA = {
    "scenes": Data("configs/demo/pretrain.yaml", "data/scenes", ("{split}.jsonl",), ("{split}.jsonl",)),
    "real": Data(
        "configs/real/pretrain.yaml",
        "data/real/records",
        tuple(f"{{split}}_{source}.jsonl" for source in CUTOUT_SOURCES),
        ("regions_{split}_composites.jsonl",),
        has_cache=True,
    ),
}
"""The demo's drawn scenes, with models trained from scratch, and emoji and clip art, with pre-trained encoders."""


@dataclass(frozen=True)
class Parts:
    """The parts of a side that begins as open_clip.

    Attributes:
        image, texts: settings of open_clip's transformers that differ from its defaults.
        init_std: standard deviation of the initial weights of all blocks. Default: open_clip's, which depend on width and depth.
        max_scale: upper limit of the factor of the cosine, the inverse of the temperature.
        locked: True if a pre-trained image encoder is not trained (open_clip's ``--lock-image``).
        stem: True for the stem of convolutions of this project.
        vision: True for the vision encoder of this project, with its projection.
        text: True for the text encoder of this project, with its projection.
        optimiser: True for the optimiser settings of this project: betas, eps, weight decay and clipping of the gradient.
    """

    image: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)
    init_std: float | None = None
    max_scale: float = 100
    locked: bool = False
    stem: bool = False
    vision: bool = False
    text: bool = False
    optimiser: bool = False

    def __or__(self, changes: Mapping[str, Any]) -> Parts:
        """Returns these parts with changes, which are added to the settings of the transformers."""
        added = {name: {**getattr(self, name), **changes[name]} for name in {"image", "texts"} & set(changes)}
        return replace(self, **{**changes, **added})


CHANGES: dict[str, dict[str, Any]] = {
    "our optimiser": {"optimiser": True},
    "our lowest temperature": {"max_scale": 1000},
    "mean of patches": {"image": {"pool_type": "avg"}},
    "sine-cosine positions": {"image": {"pos_embed_type": "sin_cos_2d"}},
    "stem of convolutions": {"stem": True},
    "LayerScale": {"image": {"ls_init_value": 0.1}, "texts": {"ls_init_value": 0.1}},
    "initial weights of 0.02": {"init_std": 0.02},
    "texts in both directions": {"texts": {"no_causal_mask": True}},
    "our vision encoder": {"vision": True},
    "our text encoder": {"text": True},
    "locked image encoder": {"locked": True},
}
"""The replacements of parts of open_clip, by name."""


@dataclass(frozen=True)
class Rate:
    """Peak learning rate, and the share of the time in which it is reached."""

    lr: float
    warm_up: float

    def at(self, progress: float) -> float:
        """Returns the learning rate when ``progress``, a fraction, of the time is over: a linear warm-up and a linear decay."""
        return self.lr * max(1e-6, min(progress / self.warm_up, (1 - progress) / (1 - self.warm_up), 1.0))


Ranks = tuple[np.ndarray, np.ndarray]
"""The rank of the caption of each image, and of the image of each caption, both (N,), from 0."""


@dataclass(frozen=True)
class HeldOutFile:
    """The records of a file that have a caption. They are ranked among each other.

    Attributes:
        pixels: pixels (N, 3, H, W) of the images, uint8.
        captions: the first caption of each record.
        text: the same captions as tokens.
    """

    pixels: Tensor
    captions: list[str]
    text: Text

    @classmethod
    def of(cls, records: Sequence[HeldOutRecord], processor: TextProcessor) -> HeldOutFile:
        """Returns the captioned ones of some records."""
        captioned = [record for record in records if record.captions]
        captions = [record.captions[0] for record in captioned]
        return cls(torch.stack([record.pixels for record in captioned]), captions, processor.encode_plain(captions))

    def ranks(self, image: Tensor, text: Tensor) -> Ranks:
        """Ranks the records by the cosine of their normalised embeddings (N, E)."""
        right = np.eye(len(image), dtype=bool)
        similarity = (image @ text.t()).numpy()
        return ranks_of_first_match(similarity, right), ranks_of_first_match(similarity.T, right)


class HeldOut:
    """The held-out records of a split: files with captions, and the evaluator of boxes and masked words."""

    def __init__(self, data: Data, split: str, config: PretrainConfig, model: PretrainModel, processor: TextProcessor):
        assert config.evaluation is not None
        files, region_files = data.paths(data.files, split), data.paths(data.region_files, split)
        self.settings = config.evaluation.model_copy(update={"files": files, "region_files": region_files})
        self.data, self.processor, self.seed = config.data, processor, config.seed
        self.files = []
        for file in files:
            settings = self.settings.model_copy(update={"files": [file]})
            reader = HeldOutReader(settings, config.data, model.config.vision, processor)
            self.files.append(HeldOutFile.of(reader.images("files"), processor))

    def evaluator_of(self, model: PretrainModel) -> PretrainEvaluator:
        """Returns the evaluator of the boxes and masked words of these records."""
        losses = model.loss_names - {"contrastive"}
        return PretrainEvaluator(self.settings, self.data, model, self.processor, self.seed, losses)


def joined(by_file: Iterable[Ranks]) -> Ranks:
    """Returns the ranks of the records of all files."""
    image, text = zip(*by_file, strict=True)
    return np.concatenate(image), np.concatenate(text)


class Side(ABC):
    """A model that is trained step by step.

    Attributes:
        name: name of the side.
        config: config of the batches, and of the model of this project.
        task: its pre-training task.
        model: the trained model.
    """

    model: nn.Module

    def __init__(self, name: str, config: str, overrides: Sequence[str], rate: Rate, seed: int):
        self.name, self.rate = name, rate
        torch.manual_seed(seed)
        shared = [*ONE_PROCESS, f"seed={seed}", f"optim.lr={rate.lr}"]
        self.config = load_config(config, [*shared, *overrides], PretrainConfig)
        self.task = PretrainTask.build(self.config)
        self.processor = TextProcessor(self.task.tokenizer, self.config.data.text)
        assert self.task.training is not None
        self.batches = self.task.training
        self.steps = 0

    @abstractmethod
    def step(self, progress: float) -> None:
        """Makes the next batch and takes an optimiser step on it."""

    @abstractmethod
    def embed(self, file: HeldOutFile) -> tuple[Tensor, Tensor]:
        """Returns the normalised embeddings (N, E) of held-out images and captions."""

    @abstractmethod
    def patches(self, pixels: Tensor) -> Tensor:
        """Returns the states (N, P, D) of the patches of images (N, 3, H, W) uint8, after the last norm."""

    def reranked(self, held_out: HeldOut) -> dict[str, Ranks]:
        """Returns the ranks by other scores than the cosine, by name. A contrastive model has none."""
        return {}

    def accuracies(self, held_out: HeldOut) -> dict[str, float]:
        """Returns the accuracy of boxes and masked words, by name. A contrastive model predicts neither."""
        return {}

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(each.numel() for each in self.model.parameters() if each.requires_grad)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.task.model.vision.patch_size

    def cosine_ranks(self, held_out: HeldOut) -> Ranks:
        """Returns the ranks by cosine."""
        with evaluating(self.model, self.config.train.precision):
            embedded = [self.embed(file) for file in held_out.files]
        return joined(
            file.ranks(image.float(), text.float())
            for file, (image, text) in zip(held_out.files, embedded, strict=True)
        )


class OurSide(Side):
    """A pre-training run of this project, with its trainer. The overrides select the losses."""

    model: PretrainModel

    def __init__(self, name: str, config: str, rate: Rate, seed: int, folder: Path, overrides: Sequence[str] = ()):
        super().__init__(name, config, [*INGREDIENTS[name], *overrides], rate, seed)
        plan = RunPlan.of(self.config.train, self.config.data, chunks=1, ranks=1)
        plan = plan.with_length(
            self.config.train, self.config.optim, self.config.schedule, self.batches.stream_sizes["images"]
        )
        self.trainer = Trainer(
            cast(Task, self.task),
            plan,
            train=self.config.train,
            optim=self.config.optim,
            schedule=self.config.schedule,
            seed=seed,
            folder=RunFolder(folder),
            device=torch.device("cpu"),
        )
        self.model = self.task.model
        self.progress = 0.0
        self.trainer.trained.schedule = lambda step: rate.at(self.progress) / rate.lr

    def step(self, progress: float) -> None:
        self.progress = progress
        self.trainer.train_step([self.batches.make(self.steps)])
        self.steps += 1

    def embed(self, file: HeldOutFile) -> tuple[Tensor, Tensor]:
        images, (texts,) = self.model.vision(file.pixels), self.model.text([file.text])
        return self.model.contrastive.embed_image(images), self.model.contrastive.embed_text(texts)

    def patches(self, pixels: Tensor) -> Tensor:
        return self.model.vision.patches(pixels)

    def reranked(self, held_out: HeldOut) -> dict[str, Ranks]:
        if not self.config.loss.matching:
            return {}
        with evaluating(self.model, self.config.train.precision):
            found = [self.rankings(file, held_out.settings) for file in held_out.files]
        scores: tuple[RankingScore, ...] = ("matching", "sum")
        return {
            score: joined(rankings.by(score).ranks(np.arange(len(rankings.cosine.texts.ids))) for rankings in found)
            for score in scores
        }

    def rankings(self, file: HeldOutFile, settings: EvaluationConfig) -> Rankings:
        """Ranks the records of a file with the matching head."""
        count = len(file.captions)
        search = TwoStageRetrieval(self.model, self.processor, candidates=settings.candidates, batch_size=count)
        return search.rank(count, lambda share: iter([list(file.pixels[share])]), file.captions)

    def accuracies(self, held_out: HeldOut) -> dict[str, float]:
        with evaluating(self.model, self.config.train.precision):
            evaluation = held_out.evaluator_of(self.model).evaluate()
        return {name: value for name, value in evaluation.values().items() if "IoU" in name or name == "masked word"}


class OpenClipSide(Side):
    """The CLIP model of open_clip, or a model between it and the contrastive loss of this project."""

    model: Towers

    def __init__(
        self,
        name: str,
        config: str,
        rate: Rate,
        seed: int,
        parts: Parts = Parts(),
        overrides: Sequence[str] = (),
    ):
        super().__init__(name, config, [*INGREDIENTS["contrastive"], *overrides], rate, seed)
        try:
            import open_clip.loss
        except ImportError:
            raise UserError("open_clip is not installed", remedy=install_command("duel")) from None
        self.parts = parts
        torch.manual_seed(seed)
        images = self.config.data.images
        assert images is not None
        batches = range(self.batches.stream_sizes["images"] // images.batch_size)
        length = max(cast(ImageTextBatch, self.batches.make(number).images).text.ids.shape[1] for number in batches)
        self.model = Towers(self.task.model, parts, self.task.tokenizer, self.config, length).train()
        self.loss = open_clip.loss.ClipLoss()
        optim = self.config.optim
        # The README of open_clip and its training code: AdamW with these settings for ViTs, no clipping of the gradient.
        betas, eps, decay = (0.9, 0.98), 1e-6, 0.2
        if parts.optimiser:
            betas, eps, decay = optim.betas, optim.eps, optim.weight_decay
        trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        decayed = [each for each in trained.values() if each.ndim >= 2]
        others = [each for each in trained.values() if each.ndim < 2]
        groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate.lr, betas=betas, eps=eps, fused=True)

    def step(self, progress: float) -> None:
        batch = self.batches.make(self.steps).images
        assert batch is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate.at(progress)
        self.optimizer.zero_grad(set_to_none=True)
        with Precision(self.config.train.precision, torch.device("cpu")).autocast():
            image, text = self.model(batch.pixels, batch.text.plain())
            loss = self.loss(image, text, self.model.logit_scale.exp())
        loss.backward()
        if self.parts.optimiser and self.config.train.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_grad_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, np.log(self.parts.max_scale))  # as in the training code of open_clip
        self.steps += 1

    def embed(self, file: HeldOutFile) -> tuple[Tensor, Tensor]:
        image, text = self.model(file.pixels, file.text)
        return image, text

    def patches(self, pixels: Tensor) -> Tensor:
        return self.model.patches(pixels)


class Towers(nn.Module):
    """An image and a text transformer of open_clip, or the encoders of this project in their place.

    With pre-trained weights (``init.vision`` and ``init.text``), these are open_clip's adapters of timm and of transformers, with
    the same weights and the same number of blocks.

    Args:
        ours: the model of this project, whose parts can be taken.
        parts: which parts are taken.
        tokenizer: the tokenizer of both.
        config: gives open_clip's transformers the sizes of this project's encoders.
        length: number of tokens to which open_clip pads texts.
    """

    def __init__(self, ours: PretrainModel, parts: Parts, tokenizer: Any, config: PretrainConfig, length: int):
        super().__init__()
        assert tokenizer.pad_token_id == 0
        self.parts, self.length = parts, length
        self.clip: Any = (
            pretrained_clip(config) if config.init.vision else clip_from_scratch(config, parts, tokenizer, length)
        )
        if parts.locked:
            self.clip.lock_image_tower()
        if parts.stem:
            vision = config.model.vision
            assert vision.width is not None
            stem = ConvolutionalStem(ours.vision.grid, ours.vision.patch_size, vision.width)
            self.clip.visual.conv1 = nn.Sequential(*stem)  # without the change of axes, which open_clip makes itself
        self.logit_scale: nn.Parameter = self.clip.logit_scale
        self.pixel_mean, self.pixel_std = ours.vision.pixel_mean, ours.vision.pixel_std
        if parts.vision:
            self.clip.visual = ours.vision
            self.vision_proj = ours.contrastive.vision_proj
        if parts.text:
            for part in ("transformer", "token_embedding", "ln_final"):
                delattr(self.clip, part)
            self.clip.positional_embedding = self.clip.text_projection = None
            self.text, self.text_proj = ours.text, ours.contrastive.text_proj

    def forward(self, pixels: Tensor, text: Text) -> tuple[Tensor, Tensor]:
        """Returns the normalised embeddings (N, E) of images (N, 3, H, W) uint8 and of texts."""
        if self.parts.vision:
            image = self.vision_proj(self.clip.visual(pixels).mean)
        else:
            image = self.clip.encode_image(self.normalised(pixels))
        if self.parts.text:
            embedded = self.text_proj(self.text([text])[0].cls)
        else:
            padded = F.pad(text.ids, (0, self.length - text.ids.shape[1]))
            embedded = self.clip.encode_text(padded)
        return F.normalize(image, dim=1), F.normalize(embedded, dim=1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Returns the pixels with the mean and the standard deviation that the encoder expects."""
        return (pixels.float() / 255 - self.pixel_mean) / self.pixel_std

    def patches(self, pixels: Tensor) -> Tensor:
        """See :meth:`Side.patches`."""
        if self.parts.vision:
            states: Tensor = self.clip.visual.patches(pixels)
        else:
            options = {"indices": 1, "normalize_intermediates": True, "intermediates_only": True, "output_fmt": "NLC"}
            (states,) = self.clip.visual.forward_intermediates(self.normalised(pixels), **options)[
                "image_intermediates"
            ]
        return states


def clip_from_scratch(config: PretrainConfig, parts: Parts, tokenizer: Any, length: int) -> Any:
    """Returns open_clip's model with random weights and the sizes of this project's encoders."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision, arch = config.model.vision, config.model.text.arch
    assert arch is not None and vision.width and vision.depth and vision.heads
    image_settings = CLIPVisionCfg(
        layers=vision.depth,
        width=vision.width,
        head_width=vision.width // vision.heads,
        patch_size=vision.patch_size,
        image_size=vision.image_size,
        **parts.image,
    )
    text_settings = CLIPTextCfg(
        context_length=length,
        vocab_size=len(tokenizer),
        width=arch.width,
        heads=arch.heads,
        layers=arch.layers,
        pool_type="eos",
        eos_id=tokenizer.sep_token_id,
        **parts.texts,
    )
    model = CLIP(config.model.embed_dim, image_settings, text_settings)
    if parts.init_std is not None:
        for name, each in model.named_parameters():
            if each.ndim == 2 and "resblocks" in name:
                nn.init.normal_(each, std=parts.init_std)
    return model


def pretrained_clip(config: PretrainConfig) -> Any:
    """Returns open_clip's model with pre-trained encoders from timm and transformers.

    As in its configs of such models, images are the mean of their patches with a linear projection, and texts the mean of their
    tokens.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
    from safetensors.torch import load_file
    from timm.models.vision_transformer import checkpoint_filter_fn

    vision = config.model.vision
    image_settings = CLIPVisionCfg(timm_model_name=vision.backbone, image_size=vision.image_size)
    text_settings = CLIPTextCfg(hf_model_name=str(config.init.text), hf_pooler_type="mean_pooler", hf_proj_type=None)
    model = CustomTextCLIP(config.model.embed_dim, image_settings, text_settings)
    trunk: Any = model.visual.trunk
    trunk.set_input_size(vision.image_size)
    trunk.load_state_dict(checkpoint_filter_fn(load_file(str(config.init.vision)), trunk))
    trunk.blocks = trunk.blocks[: vision.depth]
    return model
