"""The sides of :mod:`benchmarks.duel`: models of open_clip and of this project that learn from the same batches.

A side of open_clip has its image and text transformers, or its adapters of pre-trained encoders, its loss, and the defaults of
its training code for the optimiser. Changes (:data:`CHANGES`) replace a part or lock an encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from utils.extras import require

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

OPEN_CLIP = "open_clip"

FROM_SCRATCH = {"stem of convolutions"}
PRETRAINED = {"locked image encoder", "image encoder locked except for its last block", "locked text encoder"}
CHANGES = FROM_SCRATCH | PRETRAINED
"""Replacements of a part or setting of open_clip. The stem needs random weights, and locking needs pre-trained weights."""


@dataclass(frozen=True)
class Data:
    """Training records and held-out records of a duel.

    Attributes:
        config: the pre-training config of this project for these records. All sides take their sizes from it.
        folder: folder of the held-out records.
        files: names of the files with captions. Each file is ranked separately. ``{split}`` is val or test.
        region_files: names of the files with boxes.
        overrides: changes of the config.
    """

    config: str
    folder: str
    files: tuple[str, ...]
    region_files: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    def load(self, *overrides: str) -> PretrainConfig:
        """Returns the config with changes, for steps in a single process."""
        one_process = ("data.workers=0", "train.log_every=1000000")
        return load_config(self.config, [*one_process, *self.overrides, *overrides], PretrainConfig)

    def paths(self, names: Sequence[str], split: str) -> list[str]:
        """Returns the paths of files of a split."""
        return [f"{self.folder}/{name.format(split=split)}" for name in names]


DATA = {
    "scenes": Data(
        "configs/demo/pretrain.yaml",
        "data/scenes",
        ("{split}.jsonl",),
        ("{split}.jsonl",),
        (
            "data.text.max_tokens=30",  # the length of the longest caption, to which open_clip pads
            "data.images.batch_size=32",
            "data.regions.batch_size=24",
            "data.regions.max_images=8",
            "optim.muon=null",  # all sides are trained with AdamW
        ),
    ),
    "real": Data(
        "configs/real/pretrain.yaml",
        "data/real/records",
        tuple(f"{{split}}_{source}.jsonl" for source in CUTOUT_SOURCES),
        ("regions_{split}_composites.jsonl",),
        (
            "optim.muon=null",
            "optim.freeze.vision=300",
            "optim.freeze.text=700",
            "train.steps=850",
            "evaluation.matching_weight=1",
        ),
    ),
}
"""The demo's drawn scenes, with models trained from scratch, and emoji and clip art, with pre-trained encoders."""


def check_sides(names: Sequence[str], data: Data) -> None:
    """Raises :class:`UserError` if one of the names is not a side of a duel on this data."""
    allowed = CHANGES - (FROM_SCRATCH if data.load().init.vision else PRETRAINED)
    for name in names:
        base, *changes = name.split(" + ")
        if name not in INGREDIENTS and (base != OPEN_CLIP or not allowed.issuperset(changes)):
            raise UserError(
                f"{name!r} is not a side with these records",
                remedy=f"use one of {[OPEN_CLIP, *INGREDIENTS]}, or `open_clip + CHANGE` with a change of {sorted(allowed)}",
            )


@dataclass(frozen=True)
class Rate:
    """Peak learning rate, and the share of the time in which it is reached."""

    lr: float
    warm_up: float

    def at(self, progress: float) -> float:
        """Returns the learning rate when ``progress``, a fraction, of the time is over: a linear warm-up and a linear decay."""
        return self.lr * max(1e-6, min(progress / self.warm_up, (1 - progress) / (1 - self.warm_up)))


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

    def __init__(self, data: Data, split: str, config: PretrainConfig, side: Side):
        assert config.evaluation is not None
        files, region_files = data.paths(data.files, split), data.paths(data.region_files, split)
        self.settings = config.evaluation.model_copy(update={"files": files, "region_files": region_files})
        self.data, self.processor, self.seed = config.data, side.processor, config.seed
        self.files = []
        for file in files:
            settings = self.settings.model_copy(update={"files": [file]})
            reader = HeldOutReader(settings, config.data, side.vision, side.processor)
            self.files.append(HeldOutFile.of(reader.images("files"), side.processor))

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
        vision: the config's vision encoder, with its image size.
        patch_size: side of a patch in pixels.
        model: the trained model.
        steps: number of steps so far.
        cpu_s, wall_s: CPU time and wall time of these steps, in seconds.
        curve: retrieval of validation records over time.
    """

    model: nn.Module

    def __init__(self, name: str, data: Data, overrides: Sequence[str], rate: Rate, seed: int, folder: Path):
        self.name, self.rate = name, rate
        torch.manual_seed(seed)
        self.config = data.load(*overrides, f"seed={seed}", f"optim.lr={rate.lr}")
        if self.config.optim.frozen.cache is not None:  # each side pays for its own cache of features
            own_cache = f"optim.freeze.cache.folder={folder}/features"
            self.config = data.load(*overrides, f"seed={seed}", f"optim.lr={rate.lr}", own_cache)
        self.task = PretrainTask.build(self.config)
        self.vision, self.patch_size = self.task.model.config.vision, self.task.model.vision.patch_size
        self.processor = TextProcessor(self.task.tokenizer, self.config.data.text)
        assert self.task.training is not None
        self.batches = self.task.training
        self.steps, self.cpu_s, self.wall_s = 0, 0.0, 0.0
        self.curve: list[dict[str, float]] = []

    @abstractmethod
    def step(self, progress: float) -> None:
        """Makes the next batch and takes an optimiser step on it."""

    @abstractmethod
    def embed(self, file: HeldOutFile) -> tuple[Tensor, Tensor]:
        """Returns the normalised embeddings (N, E) of held-out images and captions."""

    @abstractmethod
    def patches(self, pixels: Tensor) -> Tensor:
        """Returns the states (N, P, D) of the patches of images (N, 3, H, W) uint8, after the last norm. In this project,
        they contain positions if ``model.vision.patch_positions`` is set."""

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

    def cosine_ranks(self, held_out: HeldOut) -> Ranks:
        """Returns the ranks by cosine."""
        with evaluating(self.model, "fp32"):
            return joined(file.ranks(*self.embed(file)) for file in held_out.files)


class OurSide(Side):
    """A pre-training run of this project, with its trainer. The overrides select the losses."""

    model: PretrainModel

    def __init__(self, name: str, data: Data, overrides: Sequence[str], rate: Rate, seed: int, folder: Path):
        super().__init__(name, data, [*INGREDIENTS[name], *overrides], rate, seed, folder)
        config = self.config
        plan = RunPlan.of(config.train, config.data, chunks=1, ranks=1)
        plan = plan.with_length(config.train, config.optim, config.schedule, self.batches.stream_sizes["images"])
        self.trainer = Trainer(
            cast(Task, self.task),
            plan,
            train=config.train,
            optim=config.optim,
            schedule=config.schedule,
            seed=seed,
            folder=RunFolder(folder),
            device=torch.device("cpu"),
        )
        self.model = self.task.model
        self.progress = 0.0
        trained: Any = self.trainer.trained
        start_step = trained.start_step
        # Encoders are unfrozen after the same share of the time as of the steps in the config.
        trained.start_step = lambda _: start_step(int(self.progress * self.trainer.steps))
        trained.schedule = lambda _: rate.at(self.progress) / rate.lr

    def step(self, progress: float) -> None:
        self.progress = progress
        self.trainer.train_step([self.batches.make(self.steps)])

    def embed(self, file: HeldOutFile) -> tuple[Tensor, Tensor]:
        images, (texts,) = self.model.vision(file.pixels), self.model.text([file.text])
        return self.model.contrastive.embed_image(images), self.model.contrastive.embed_text(texts)

    def patches(self, pixels: Tensor) -> Tensor:
        return self.model.vision.patches(pixels)

    def reranked(self, held_out: HeldOut) -> dict[str, Ranks]:
        if not self.config.loss.matching:
            return {}
        with evaluating(self.model, "fp32"):
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
        with evaluating(self.model, "fp32"):
            evaluation = held_out.evaluator_of(self.model).evaluate()
        return {name: value for name, value in evaluation.values().items() if "IoU" in name or name == "masked word"}


class OpenClipSide(Side):
    """The CLIP model of open_clip, with some changes.

    Raises:
        UserError: if open_clip is not installed.
    """

    model: Towers

    def __init__(
        self,
        name: str,
        data: Data,
        overrides: Sequence[str],
        rate: Rate,
        seed: int,
        folder: Path,
        changes: Sequence[str] = (),
    ):
        losses = require("open_clip.loss", "duel", where="benchmarks.duel")
        super().__init__(name, data, [*INGREDIENTS["contrastive"], *overrides], rate, seed, folder)
        config = self.config
        torch.manual_seed(seed)
        self.model = Towers(self.task.model, changes, self.task.tokenizer, config).train()
        del self.task.model  # which would count as memory of this side
        self.loss = losses.ClipLoss()
        # The defaults of open_clip's training code for ViTs, which does not clip gradients.
        trained = [each for each in self.model.parameters() if each.requires_grad]
        decayed, others = ([each for each in trained if (each.ndim >= 2) == matrix] for matrix in (True, False))
        groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)

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
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, np.log(100))  # as in open_clip's training code

    def embed(self, file: HeldOutFile) -> tuple[Tensor, Tensor]:
        image, text = self.model(file.pixels, file.text)
        return image, text

    def patches(self, pixels: Tensor) -> Tensor:
        return self.model.patches(pixels)


class Towers(nn.Module):
    """An image and a text transformer of open_clip.

    With pre-trained weights (``init.vision`` and ``init.text``), these are open_clip's adapters of timm and of transformers, with
    the same weights and the same number of blocks.

    Args:
        ours: the model of this project, whose stem can be taken.
        changes: names of the changes (:data:`CHANGES`).
        tokenizer: the tokenizer of both.
        config: gives open_clip's transformers the sizes of this project's encoders. Texts are padded to ``data.text.max_tokens``.
    """

    def __init__(self, ours: PretrainModel, changes: Sequence[str], tokenizer: Any, config: PretrainConfig):
        super().__init__()
        assert tokenizer.pad_token_id == 0
        self.length = config.data.text.max_tokens
        self.clip: Any = pretrained_clip(config, changes) if config.init.vision else new_clip(config, tokenizer)
        if "stem of convolutions" in changes:
            stem = ConvolutionalStem(ours.vision.grid, ours.vision.patch_size, config.model.vision.width or 0)
            self.clip.visual.conv1 = nn.Sequential(*stem)  # without the change of axes, which open_clip makes itself
        self.logit_scale: nn.Parameter = self.clip.logit_scale
        self.pixel_mean, self.pixel_std = ours.vision.pixel_mean, ours.vision.pixel_std

    def forward(self, pixels: Tensor, text: Text) -> tuple[Tensor, Tensor]:
        """Returns the normalised embeddings (N, E) of images (N, 3, H, W) uint8 and of texts."""
        image = self.clip.encode_image(self.normalised(pixels))
        padded = F.pad(text.ids, (0, self.length - text.ids.shape[1]))
        embedded = self.clip.encode_text(padded)
        return F.normalize(image, dim=1), F.normalize(embedded, dim=1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Returns the pixels with the mean and the standard deviation that the encoder expects."""
        return (pixels.float() / 255 - self.pixel_mean) / self.pixel_std

    def patches(self, pixels: Tensor) -> Tensor:
        """See :meth:`Side.patches`."""
        options = {"indices": 1, "normalize_intermediates": True, "intermediates_only": True, "output_fmt": "NLC"}
        found: list[Tensor] = self.clip.visual.forward_intermediates(self.normalised(pixels), **options)[
            "image_intermediates"
        ]
        return found[-1]


def new_clip(config: PretrainConfig, tokenizer: Any) -> Any:
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
    )
    text_settings = CLIPTextCfg(
        context_length=config.data.text.max_tokens,
        vocab_size=len(tokenizer),
        width=arch.width,
        heads=arch.heads,
        layers=arch.layers,
        pool_type="eos",
        eos_id=tokenizer.sep_token_id,
    )
    return CLIP(config.model.embed_dim, image_settings, text_settings)


def pretrained_clip(config: PretrainConfig, changes: Sequence[str]) -> Any:
    """Returns open_clip's model with pre-trained encoders from timm and transformers.

    Images are the mean of their patches with a linear projection, and texts the mean of their tokens, as in most of open_clip's
    configs of such models. Texts have no projection, as in the model of this project, because the encoder was trained for the
    mean.
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
    if "locked image encoder" in changes:
        model.lock_image_tower()
    if "image encoder locked except for its last block" in changes:
        model.lock_image_tower(unlocked_groups=1)  # the last block, with the last norm
    if "locked text encoder" in changes:
        model.lock_text_tower()
    return model
