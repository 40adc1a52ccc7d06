"""A head that predicts any number of boxes for a phrase, including none."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batches.losses import Losses, Term
from models.config import BoxSetConfig
from models.core import losses
from models.core.assignment import FREE, assign
from models.core.backbones.positions import padded_sincos_positions, sincos_positions
from models.core.heads import MLPHead
from models.core.losses import at_least_float32
from models.core.packing import PackedTexts, select_rows
from models.core.vision import Concepts
from models.flops import Lengths, linear_macs, step_flops

CLASS_COST, L1_COST, GIOU_COST = 1.0, 5.0, 2.0
"""Weights of the probability, L1 and GIoU errors, in the assignment and in the loss (Carion et al., 2020, "End-to-end object
detection with transformers", section A.4)."""

INITIAL_PROBABILITY = 0.1
"""Initial probability that a box belongs to the phrase, before training."""


class BoxSet(NamedTuple):
    """Z boxes for each of N phrases, in float32 or higher precision.

    Attributes:
        boxes: (N, Z, 4), as (cx, cy, w, h) in 0..1.
        logits: (N, Z), the log-odds that each box belongs to the phrase.
    """

    boxes: Tensor
    logits: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """Returns the most probable box of each phrase (N, 4), and the log-odds (N,) of these boxes."""
        logits, index = self.logits.max(dim=1)
        return self.boxes.gather(1, index.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1), logits


class BoxSetHead(nn.Module):
    """Predicts a set of boxes from a fused phrase and the patches of its image.

    Each of Z queries starts at a cell of a grid over the image, and attends to the other queries, to the fused tokens of the
    phrase, and to the patches. A query's box is predicted as an offset from its cell. The log-odds that the box belongs to the
    phrase are a product of the query's state and the phrase's [CLS] state.

    Args:
        config: sizes of the head.
        width, heads: width of the states, and number of attention heads.
        vision_width: width of the patch states.
        grid: rows and columns of the patches.
    """

    positions: Tensor
    cells: Tensor

    def __init__(self, config: BoxSetConfig, width: int, heads: int, vision_width: int, grid: tuple[int, int]):
        super().__init__()
        rows = round(math.sqrt(config.queries))
        columns = math.ceil(config.queries / rows)
        positions = sincos_positions(*grid, width)
        cell_positions = F.adaptive_avg_pool2d(positions.T.unflatten(1, grid), (rows, columns)).flatten(1).T
        # If the grid has more cells than there are queries, the skipped cells are spread evenly.
        chosen = torch.linspace(0, rows * columns - 1, config.queries).round().long()
        self.queries = nn.Parameter(cell_positions[chosen])
        self.patches = nn.Linear(vision_width, width)
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(width))
        with torch.no_grad():
            # With equal projections, a query initially attends to patches near its cell.
            for block in self.decoder.layers:
                weight = block.multihead_attn.in_proj_weight
                weight[:width] = weight[width : 2 * width]
        self.box, self.belongs, self.asked = MLPHead(width, 4), nn.Linear(width, 1), nn.Linear(width, width)
        nn.init.constant_(self.belongs.bias, math.log(INITIAL_PROBABILITY / (1 - INITIAL_PROBABILITY)))
        y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
        cells = torch.stack([x, y, torch.full_like(x, 1 / columns), torch.full_like(y, 1 / rows)], dim=-1)
        self.register_buffer("cells", cells.flatten(0, 1)[chosen].logit(1e-3), persistent=False)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, fused: PackedTexts, images: Concepts, image_index: Tensor) -> BoxSet:
        """Predicts the boxes of N phrases.

        Args:
            fused: states of all tokens of the phrases, fused with their images.
            images: the I images.
            image_index: (N,) int64, the index of each phrase's image.
        """
        positions, real = self.positions, images.real_patches()
        if images.grids is not None:
            length, width = images.patches.shape[1], positions.shape[1]
            positions = padded_sincos_positions(images.grids, length, width).to(positions.device)[image_index]
        tokens, patches = fused.padded(), self.patches(select_rows(images.patches, image_index)) + positions
        see = torch.ones_like(patches[..., 0], dtype=torch.bool) if real is None else real[image_index]
        mask = torch.cat([fused.packing.mask, see], dim=1)
        states = self.decoder(
            self.queries.expand(len(tokens), -1, -1).to(tokens.dtype),
            torch.cat([tokens, patches.to(tokens.dtype)], dim=1),
            memory_key_padding_mask=~mask,
        )
        boxes = at_least_float32(self.box(states)) + self.cells
        likeness = states @ self.asked(tokens[:, 0]).unsqueeze(2) / math.sqrt(states.shape[2])
        return BoxSet(boxes.sigmoid(), at_least_float32(self.belongs(states) + likeness).squeeze(2))

    def step_flops(self, tokens: Lengths, fused: bool, images: bool) -> int:
        """FLOPs of a step for phrases with the numbers of tokens ``tokens``. ``fused`` is True if the states of the fused phrases
        have gradients, and ``images`` is True if the patches have gradients."""
        width, queries, patches = self.belongs.in_features, len(self.queries), len(self.positions)
        memory, phrases, layers = tokens + patches, len(tokens), len(self.decoder.layers)
        # A query has four projections in self-attention and two in cross-attention, followed by the feed-forward layers.
        query_macs = (
            4 * width * width
            + 2 * width * width
            + linear_macs(self.decoder.layers[0].linear1, self.decoder.layers[0].linear2)
        )
        layer_macs = phrases * (queries * query_macs + 2 * queries * queries * width)
        layer_macs += int(memory.sum()) * (2 * width * width + 2 * queries * width)
        ends = phrases * queries * (linear_macs(self.box, self.belongs) + width)
        return (
            step_flops(layers * layer_macs + ends, True, True)
            + step_flops(phrases * linear_macs(self.asked), True, fused)
            + step_flops(phrases * patches * linear_macs(self.patches), True, images)
        )


def box_set_losses(predicted: BoxSet, boxes: Tensor, present: Tensor, valid: Tensor) -> Losses:
    """Assigns ground-truth boxes to queries at the minimum total cost, and returns the losses: L1 and GIoU (eq. 5) of the
    assigned boxes, and the cross-entropy of predicting whether a query is assigned to a ground-truth box.

    Args:
        predicted: the predicted boxes of N phrases.
        boxes: (N, M, 4), the ground-truth boxes as (cx, cy, w, h).
        present: (N, M) bool, True for boxes that exist.
        valid: (N,) bool, True for the phrases that enter the loss.
    """
    present = present & valid.unsqueeze(1)
    queries = assign(_costs(predicted, boxes), present)
    rows = queries.clamp(min=0).unsqueeze(2).expand(-1, -1, 4)
    assigned, true = predicted.boxes.gather(1, rows).flatten(0, 1), boxes.flatten(0, 1)
    # Boxes that do not exist are written to an additional last column, which is cut off.
    is_assigned = F.pad(torch.zeros_like(predicted.logits), (0, 1))
    is_assigned = is_assigned.scatter(1, queries.masked_fill(queries == FREE, predicted.logits.shape[1]), 1.0)[:, :-1]
    belongs = F.binary_cross_entropy_with_logits(predicted.logits, is_assigned, reduction="none").sum(dim=1)
    return {
        "l1": Term(losses.box_l1(assigned, true, present.flatten()), L1_COST),
        "giou": Term(losses.box_giou(assigned, true, present.flatten()), GIOU_COST),
        "belongs": Term(belongs.masked_fill(~valid, 0).sum(), CLASS_COST),
    }


@torch.no_grad()
def _costs(found: BoxSet, boxes: Tensor) -> Tensor:
    """The costs (N, M, Z) of assigning ground-truth boxes to queries."""
    (count, targets, _), queries = boxes.shape, found.logits.shape[1]
    shape = (count, targets, queries, 4)
    predicted = found.boxes.unsqueeze(1).expand(shape).reshape(-1, 4)
    true = boxes.unsqueeze(2).expand(shape).reshape(-1, 4)
    giou = losses.giou(losses.corners(predicted), losses.corners(true))
    boxes_cost = L1_COST * (predicted - true).abs().sum(dim=1) - GIOU_COST * giou
    return boxes_cost.view(shape[:3]) - CLASS_COST * found.logits.sigmoid().unsqueeze(1)
