"""The sides of :mod:`benchmarks.duel`: models of open_clip and of this project that learn from the same batches.

A side of open_clip has its image and text transformers, its loss and the optimiser settings that its README recommends. Changes
(:data:`CHANGES`) replace one part at a time by the part of this project, until nothing of open_clip is left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batches.pretraining import ImageTextBatch
from batches.texts import Text
from dataset.text.processors import TextProcessor
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.task import Task
from engine.trainer import Trainer
from metrics.retrieval import ranks_of_first_match
from models.config import RankingScore
from models.core.backbones.stem import ConvolutionalStem
from models.pretraining.model import PretrainModel
from tasks.config import PretrainConfig
from tasks.inference import evaluating
from tasks.pretrain import PretrainTask
from tasks.pretrain_evaluation import PretrainEvaluator
from tasks.two_stage import TwoStageRetrieval
from utils.config import load_config
from utils.errors import UserError
from utils.extras import install_command

DEMO = "configs/demo/pretrain.yaml"
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
class Parts:
    """The parts of a side that begins as open_clip.

    Attributes:
        pool: how open_clip's image transformer pools its states: "tok" (its default) or "avg".
        positions: its position embeddings, "learnable" (its default) or "sin_cos_2d".
        stem: True for the stem of convolutions of this project.
        vision: True for the vision encoder of this project, with its projection.
        text: True for the text encoder of this project, with its projection.
        optimiser: True for the optimiser settings of this project: betas, eps, weight decay and clipping of the gradient.
    """

    pool: str = "tok"
    positions: str = "learnable"
    stem: bool = False
    vision: bool = False
    text: bool = False
    optimiser: bool = False


CHANGES: dict[str, dict[str, Any]] = {
    "our optimiser": {"optimiser": True},
    "mean of patches": {"pool": "avg"},
    "sine-cosine positions": {"positions": "sin_cos_2d"},
    "stem of convolutions": {"stem": True},
    "our vision encoder": {"vision": True},
    "our text encoder": {"text": True},
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


class HeldOut:
    """Held-out records with a caption, and their pixels and texts."""

    def __init__(self, config: PretrainConfig, model: PretrainModel, processor: TextProcessor, files: list[str]):
        assert config.evaluation is not None
        self.settings = config.evaluation.model_copy(update={"files": files, "region_files": files})
        self.data, self.processor, self.seed = config.data, processor, config.seed
        records = [record for record in self.evaluator_of(model).records if record.captions]
        self.pixels = torch.stack([record.pixels for record in records])
        self.captions = [record.captions[0] for record in records]
        self.text: Text = processor.encode_plain(self.captions)

    def evaluator_of(self, model: PretrainModel) -> PretrainEvaluator:
        """Returns the evaluator of the boxes and masked words of these records."""
        losses = model.loss_names - {"contrastive"}
        return PretrainEvaluator(self.settings, self.data, model, self.processor, self.seed, losses)

    def ranks(self, similarity: Tensor) -> np.ndarray:
        """Returns the rank (N,) of the right result of each query, from 0. ``similarity`` (N, N) has a row for each query."""
        return ranks_of_first_match(similarity.numpy(), np.eye(len(similarity), dtype=bool))


class Side(ABC):
    """A model that is trained step by step.

    Attributes:
        name: name of the side.
        config: config of the batches, and of the model of this project.
        task: its pre-training task.
        model: the trained model.
    """

    model: nn.Module

    def __init__(self, name: str, overrides: Sequence[str], rate: Rate, seed: int):
        self.name, self.rate = name, rate
        torch.manual_seed(seed)
        self.config = load_config(
            DEMO, [*ONE_PROCESS, f"seed={seed}", f"optim.lr={rate.lr}", *overrides], PretrainConfig
        )
        self.task = PretrainTask.build(self.config)
        self.processor = TextProcessor(self.task.tokenizer, self.config.data.text)
        assert self.task.training is not None
        self.batches = self.task.training
        self.steps = 0

    @abstractmethod
    def step(self, progress: float) -> None:
        """Makes the next batch and takes an optimiser step on it."""

    @abstractmethod
    def embed(self, held_out: HeldOut) -> tuple[Tensor, Tensor]:
        """Returns the normalised embeddings (N, E) of held-out images and captions."""

    def others(self, held_out: HeldOut) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, float]]:
        """Returns the ranks (N,) of the caption of each image and of the image of each caption, from 0, by other scores than the
        cosine, and the accuracy of boxes and masked words, by name. A contrastive model has neither."""
        return {}, {}

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(each.numel() for each in self.model.parameters() if each.requires_grad)

    def cosine_ranks(self, held_out: HeldOut) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ranks by cosine, as in :meth:`others`."""
        self.model.eval()
        with torch.no_grad():
            image, text = self.embed(held_out)
        self.model.train()
        return held_out.ranks(image @ text.t()), held_out.ranks(text @ image.t())


class OurSide(Side):
    """A pre-training run of this project, with its trainer. The overrides select the losses."""

    model: PretrainModel

    def __init__(self, name: str, rate: Rate, seed: int, folder: Path, overrides: Sequence[str] = ()):
        super().__init__(name, [*INGREDIENTS[name], *overrides], rate, seed)
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
        self.trainer.trained.schedule = lambda step: rate.at(self.progress) / rate.lr

    def step(self, progress: float) -> None:
        self.progress = progress
        self.trainer.train_step([self.batches.make(self.steps)])
        self.steps += 1

    def embed(self, held_out: HeldOut) -> tuple[Tensor, Tensor]:
        images, (texts,) = self.model.vision(held_out.pixels), self.model.text([held_out.text])
        return self.model.contrastive.embed_image(images), self.model.contrastive.embed_text(texts)

    def others(self, held_out: HeldOut) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, float]]:
        ranks: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        numbers = np.arange(len(held_out.captions))
        with evaluating(self.model, "fp32"):
            evaluation = held_out.evaluator_of(self.model).evaluate()
            if self.config.loss.matching:
                search = TwoStageRetrieval(self.model, held_out.processor, candidates=16, batch_size=len(numbers))
                rankings = search.rank(
                    len(numbers), lambda share: iter([list(held_out.pixels[share])]), held_out.captions
                )
                scores: tuple[RankingScore, ...] = ("matching", "sum")
                ranks = {score: rankings.by(score).ranks(numbers) for score in scores}
        found = {name: value for name, value in evaluation.values().items() if "IoU" in name or name == "masked word"}
        self.model.train()
        return ranks, found


class OpenClipSide(Side):
    """The CLIP model of open_clip, or a model between it and the contrastive loss of this project."""

    model: Towers

    def __init__(self, name: str, rate: Rate, seed: int, parts: Parts = Parts(), overrides: Sequence[str] = ()):
        super().__init__(name, [*INGREDIENTS["contrastive"], *overrides], rate, seed)
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
        image, text = self.model(batch.pixels, batch.text.plain())
        self.loss(image, text, self.model.logit_scale.exp()).backward()
        if self.parts.optimiser and self.config.train.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_grad_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, np.log(100))  # as in the training code of open_clip
        self.steps += 1

    def embed(self, held_out: HeldOut) -> tuple[Tensor, Tensor]:
        image, text = self.model(held_out.pixels, held_out.text)
        return image, text


class Towers(nn.Module):
    """An image and a text transformer of open_clip, or the encoders of this project in their place.

    Args:
        ours: the model of this project, whose parts can be taken.
        parts: which parts are taken.
        tokenizer: the tokenizer of both.
        config: gives open_clip's transformers the sizes of this project's encoders.
        length: number of tokens to which open_clip pads texts.
    """

    def __init__(self, ours: PretrainModel, parts: Parts, tokenizer: Any, config: PretrainConfig, length: int):
        super().__init__()
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        vision, arch = config.model.vision, config.model.text.arch
        assert tokenizer.pad_token_id == 0 and arch is not None and vision.width and vision.depth and vision.heads
        self.parts, self.length = parts, length
        image_settings = CLIPVisionCfg(
            layers=vision.depth,
            width=vision.width,
            head_width=vision.width // vision.heads,
            patch_size=vision.patch_size,
            image_size=vision.image_size,
            pool_type=parts.pool,
            pos_embed_type=parts.positions,
        )
        text_settings = CLIPTextCfg(
            context_length=length,
            vocab_size=len(tokenizer),
            width=arch.width,
            heads=arch.heads,
            layers=arch.layers,
            pool_type="eos",
            eos_id=tokenizer.sep_token_id,
        )
        self.clip: Any = CLIP(config.model.embed_dim, image_settings, text_settings)
        if parts.stem:
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
            image = self.clip.encode_image((pixels.float() / 255 - self.pixel_mean) / self.pixel_std)
        if self.parts.text:
            embedded = self.text_proj(self.text([text])[0].cls)
        else:
            padded = F.pad(text.ids, (0, self.length - text.ids.shape[1]))
            embedded = self.clip.encode_text(padded)
        return F.normalize(image, dim=1), F.normalize(embedded, dim=1)
