"""Two linear baselines for the emoji and clip art model: ``python -m benchmarks.real_ridge``, after its data has been made
(docs/real_model.md)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.harness import write_results
from benchmarks.step_config import build, config_for
from dataset.prepare.folders import SPLITS
from dataset.records.schema import ImageKeys
from dataset.tasks.held_out import read_held_out
from dataset.text.loading import load_tokenizer
from dataset.text.processors import TextProcessor
from demo.real.collect import CUTOUT_SOURCES
from metrics.retrieval import ranks_of_first_match, retrieval_recalls
from models.checkpoints import initialise
from models.pretraining.model import PretrainModel
from tasks.inference import evaluating
from utils.commands import call

CONFIG = Path("configs/real/pretrain.yaml")
BASELINES = {"A": 1, "B": 4}
"""Number of last layers whose features each baseline uses."""

RANKS_FILE = "ridge.json"
"""File in the folder of the records that contains the ranks of the baselines, by split, baseline and source."""

PENALTIES = tuple(10.0**power for power in np.arange(-3, 3.1, 0.5))
"""Candidate penalties on standardised features; each is multiplied by the number of features."""

BATCH = 16


class Encoded(NamedTuple):
    """N pictures and their first captions.

    Attributes:
        layers: features of the last four layers, (N, 4, 2D).
        texts: embeddings of the captions, (N, D').
    """

    layers: Tensor
    texts: Tensor


def features(model: PretrainModel, pixels: Tensor) -> Tensor:
    """Computes features (N, 4, 2D) of ``pixels`` (N, 3, H, W) uint8: the normalised [CLS] and mean patch of the last four layers,
    in order."""
    vision = model.vision
    normalised = (pixels / 255 - vision.pixel_mean) / vision.pixel_std
    backbone: Any = vision.backbone
    layers = backbone.forward_intermediates(
        normalised,
        indices=max(BASELINES.values()),
        return_prefix_tokens=True,
        norm=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return torch.stack(
        [torch.cat([prefix[:, 0], patches.mean(dim=1)], dim=1).float() for patches, prefix in layers], dim=1
    )


def text_embeddings(model: PretrainModel, processor: TextProcessor, captions: Sequence[str]) -> Tensor:
    """Computes the normalised mean (N, D') of the token states of each caption."""
    (packed,) = model.text([processor.encode_plain(captions)])
    states, mask = packed.padded_with_mask()
    return F.normalize(states.float().masked_fill(~mask.unsqueeze(2), 0).sum(dim=1), dim=1)


def encode(model: PretrainModel, processor: TextProcessor, file: Path) -> dict[str, Encoded]:
    """Encodes the pictures in a file of records, by source."""
    sources = np.array([json.loads(line)["source"] for line in file.read_text(encoding="utf-8").splitlines()])
    records = read_held_out([str(file)], processor, image_size=model.config.vision.image_size, keys=ImageKeys())
    blocks = [records[start : start + BATCH] for start in range(0, len(records), BATCH)]
    layers, texts = [], []
    for block in tqdm(blocks, desc=file.name):
        layers.append(features(model, torch.stack([record.pixels for record in block])))
        texts.append(text_embeddings(model, processor, [record.captions[0] for record in block]))
    whole = Encoded(torch.cat(layers), torch.cat(texts))
    return {
        source: Encoded(whole.layers[sources == source], whole.texts[sources == source]) for source in CUTOUT_SOURCES
    }


class Ridge:
    """Ridge regression from standardised features ``x`` (N, D) to centred targets ``y`` (N, D')."""

    def __init__(self, x: Tensor, y: Tensor, penalty: float):
        self.mean, self.std, self.target_mean = x.mean(dim=0), x.std(dim=0) + 1e-6, y.mean(dim=0)
        z, identity = self._standardised(x), torch.eye(len(x), dtype=x.dtype)
        # Solve the dual problem, because baseline B has fewer pictures than features.
        dual = torch.linalg.solve(z @ z.T + penalty * x.shape[1] * identity, y - self.target_mean)
        self.weight = z.T @ dual

    def _standardised(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def ranks(self, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Ranks N captions, embedded as ``y`` (N, D'), for each of N pictures with features ``x`` (N, D), and pictures for each
        caption. Returns the rank of each picture's caption and of each caption's picture, both (N,)."""
        images = F.normalize(self._standardised(x) @ self.weight, dim=1)
        texts = F.normalize(y - self.target_mean, dim=1)
        scores, same = (images @ texts.T).numpy(), np.eye(len(x), dtype=bool)
        return ranks_of_first_match(scores, same), ranks_of_first_match(scores.T, same)


def baseline(splits: dict[str, Encoded], layers: int) -> tuple[float, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Returns the penalty with the best mean recall on the validation split, and its ranks on the validation and the test split,
    as returned by :meth:`Ridge.ranks`."""
    x = {split: encoded.layers[:, -layers:].flatten(1).double() for split, encoded in splits.items()}
    y = {split: encoded.texts.double() for split, encoded in splits.items()}
    fits = {penalty: Ridge(x["train"], y["train"], penalty) for penalty in PENALTIES}
    best = max(fits, key=lambda penalty: retrieval_recalls(*fits[penalty].ranks(x["val"], y["val"]))["mean recall"])
    return best, {split: fits[best].ranks(x[split], y[split]) for split in ("val", "test")}


def main(*, records: Path = Path("data/real/records")) -> int:
    """Two linear baselines for the emoji and clip art model; make its data first (docs/real_model.md).

    For each source separately, ridge regression predicts MiniLM's embedding of a picture's first caption (the mean of the token
    states) from DINOv2's features of the picture. Held-out captions are then ranked for each held-out picture by their cosine
    with the prediction, and pictures are ranked for each caption. The features are [CLS] and the mean patch at 224 pixels, in the
    precision of the config: of the last layer in baseline A, of the last four layers in baseline B. The penalty is chosen on the
    validation split, by the mean of R@1, R@5 and R@10 in both directions; the test split is used once. The ranks are saved in the
    folder of the records, where ``benchmarks.real_sources`` reads them.

    Args:
        records: folder of the records.

    Examples:
        python -m benchmarks.real_ridge
    """
    config = config_for(CONFIG, ["model.vision.depth=null", "model.vision.image_size=224"])
    model = build(config)
    initialise(model, config.init)
    processor = TextProcessor(load_tokenizer(config.model.text.encoder), config.data.text)
    with evaluating(model, config.train.precision):
        encoded = {split: encode(model, processor, records / f"{split}.jsonl") for split in SPLITS}
    found: dict[str, dict[str, dict[str, list[list[int]]]]] = {
        split: {name: {} for name in BASELINES} for split in ("val", "test")
    }
    for source in CUTOUT_SOURCES:
        splits = {split: by_source[source] for split, by_source in encoded.items()}
        for name, layers in BASELINES.items():
            penalty, ranks = baseline(splits, layers)
            for split, both in ranks.items():
                found[split][name][source] = [each.tolist() for each in both]
            mean_recall = retrieval_recalls(*ranks["test"])["mean recall"]
            sys.stdout.write(f"{source:13} {name}  penalty {penalty:<7.3g} mean recall on test {mean_recall:.1%}\n")
    write_results(records / RANKS_FILE, found)
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.real_ridge"))
