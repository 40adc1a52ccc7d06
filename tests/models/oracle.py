"""The losses of pre-training, computed a second time from raw weights and a batch, with nothing of ours but the batch.

:mod:`models.reference` is the page to read; it shares regions, groups, negatives and loss functions with the code that it is
compared with. This module shares none of them: every example is computed separately, without padding, in loops, with the formulas
of the paper (arXiv:2211.12402, section 3.3) and of BEiT-2, BERT and CCLM. The random draws of the hard negatives are an input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Pixel statistics of the authors' BEiT-2 models."""
IGNORED = -100


@dataclass
class Oracle:
    """Computes losses from raw weights.

    Args:
        weights: the model's tensors by name, with gradients.
        vision_heads, text_heads, fusion_heads: numbers of attention heads.
        grid: rows and columns of patches.
        first_position: index of a text's first position in the position table: 0 in BERT, ``pad_id + 1`` in RoBERTa.
        same_group: for each stream, whether two pairs with equal texts are negatives of each other ("negative") or are not
            compared ("ignore").
        draws: exponential noise for each sampling of negatives, in the order in which the model samples.
        pools_frames: True if the patches of a video are averaged over its frames, False if all of them are kept.
        text_pooling: which states of a text represent it: "cls", "mean" or "last".
        eps: epsilon of the norms in the text encoder and the fusion encoder.
        whole_image_boxes: True if texts about whole images have box losses, too.
    """

    weights: Mapping[str, Tensor]
    vision_heads: int
    text_heads: int
    fusion_heads: int
    grid: tuple[int, int]
    same_group: Mapping[str, str]
    draws: Iterator[Tensor]
    first_position: int = 0
    pools_frames: bool = True
    text_pooling: str = "cls"
    eps: float = 1e-12
    whole_image_boxes: bool = False

    def losses(self, streams: Mapping[str, Any]) -> dict[str, tuple[Tensor, int]]:
        """Returns each loss of each stream, summed over its examples, and the number by which it is divided."""
        found = {}
        for name, batch in streams.items():
            for loss, value in self._stream(name, batch).items():
                found[f"{name}/{loss}"] = value
        return found

    def _stream(self, name: str, batch: Any) -> dict[str, tuple[Tensor, int]]:
        texts = [self.encode_text(ids, mask) for ids, mask in zip(batch.text.ids, batch.text.mask, strict=True)]
        if hasattr(batch, "other"):  # a text and its translation; the first text takes the place of an image
            others = [self.encode_text(ids, mask) for ids, mask in zip(batch.other.ids, batch.other.mask, strict=True)]
            images = [self.embed_text(text) for text in texts]
            return {
                **self.compare(name, batch, images, texts, others, None),
                "mlm": self.words(batch.text, others),
            }
        if not hasattr(batch, "pixels"):
            return {"mlm": self.words(batch.text, None)}
        patches = [self.encode_image(pixels) for pixels in batch.pixels]
        if hasattr(batch, "patch_mask"):
            shown, means = [], []
            for image, mask in zip(batch.image_index.tolist(), batch.patch_mask, strict=True):
                inside = torch.stack([patches[image][patch] for patch in range(len(mask)) if mask[patch]])
                means.append(inside.mean(dim=0))
                shown.append(torch.cat([means[-1][None], inside]))
        else:
            means = [each.mean(dim=0) for each in patches]
            shown = [torch.cat([mean[None], each]) for mean, each in zip(means, patches, strict=True)]
        images = [self.embed(mean, "contrastive.vision_proj") for mean in means]
        hard = getattr(batch, "hard_negatives", None)
        found = {
            **self.compare(name, batch, images, shown, texts, hard),
            "mlm": self.words(batch.text, shown),
        }
        if hasattr(batch, "patch_mask"):
            found |= self.boxes(batch, patches, texts)
        return found

    # encoders

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Patches (P, D) of an image (3, H, W), or of a video (F, 3, H, W)."""
        if pixels.dim() == 3:
            return self._patches(pixels)
        positions = self.weights["vision.frame_positions"][0, :, 0]
        frames = [self._patches(frame) + positions[index] for index, frame in enumerate(pixels)]
        return torch.stack(frames).mean(dim=0) if self.pools_frames else torch.cat(frames)

    def _patches(self, pixels: Tensor) -> Tensor:
        dtype = self.weights["vision.backbone.cls_token"].dtype
        if pixels.dtype == torch.uint8:
            mean, std = (torch.tensor(values).to(dtype).view(3, 1, 1) for values in (MEAN, STD))
            pixels = (pixels.to(dtype) / 255 - mean) / std
        kernel = self.weights["vision.backbone.patch_embed.proj.weight"]
        size, tokens = kernel.shape[-1], [self.weights["vision.backbone.cls_token"][0, 0]]
        for row in range(self.grid[0]):
            for column in range(self.grid[1]):
                patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
                bias = self.weights["vision.backbone.patch_embed.proj.bias"]
                tokens.append((kernel * patch).sum(dim=(1, 2, 3)) + bias)
        states, block = torch.stack(tokens), 0
        while f"vision.backbone.blocks.{block}.norm1.weight" in self.weights:
            states = self._beit_block(states, f"vision.backbone.blocks.{block}.")
            block += 1
        return self.norm(states[1:], "vision.backbone.fc_norm", 1e-6)

    def _beit_block(self, states: Tensor, name: str) -> Tensor:
        weights = self.weights
        q_bias, v_bias = weights[f"{name}attn.q_bias"], weights[f"{name}attn.v_bias"]
        bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        normed = self.norm(states, f"{name}norm1", 1e-6)
        query, key, value = F.linear(normed, weights[f"{name}attn.qkv.weight"], bias).chunk(3, dim=-1)
        table = weights[f"{name}attn.relative_position_bias_table"]
        attended = self._heads(query, key, value, self.vision_heads, table[self._relative_positions()])
        states = states + weights[f"{name}gamma_1"] * self.linear(attended, f"{name}attn.proj")
        hidden = F.gelu(self.linear(self.norm(states, f"{name}norm2", 1e-6), f"{name}mlp.fc1"))
        return states + weights[f"{name}gamma_2"] * self.linear(hidden, f"{name}mlp.fc2")

    def _relative_positions(self) -> Tensor:
        """Rows (1 + P, 1 + P) of BEiT's table: the row distance and the column distance of two patches, or one of three rows for
        pairs with [CLS]."""
        rows, columns = self.grid
        last = (2 * rows - 1) * (2 * columns - 1)
        index = torch.empty(1 + rows * columns, 1 + rows * columns, dtype=torch.int64)
        index[0], index[:, 0], index[0, 0] = last, last + 1, last + 2
        for query in range(rows * columns):
            for key in range(rows * columns):
                down = query // columns - key // columns + rows - 1
                right = query % columns - key % columns + columns - 1
                index[1 + query, 1 + key] = down * (2 * columns - 1) + right
        return index

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States (L, D) of the tokens of a text, without padding."""
        ids = ids[: int(mask.sum())]
        words = self.weights["text.embeddings.word_embeddings.weight"][ids]
        positions = self.weights["text.embeddings.position_embeddings.weight"]
        own_positions = positions[self.first_position : self.first_position + len(ids)]
        types = self.weights["text.embeddings.token_type_embeddings.weight"][0]
        states, layer = self.norm(words + own_positions + types, "text.embeddings.LayerNorm", self.eps), 0
        while f"text.encoder.layer.{layer}.output.dense.weight" in self.weights:
            states = self._bert_block(states, None, f"text.encoder.layer.{layer}.", self.text_heads)
            layer += 1
        return states

    def fuse(self, text: Tensor, image: Tensor | None) -> Tensor:
        """States (L, D) of a text (L, D) that attends to an image (K, D)."""
        layer = 0
        while f"fusion.layer.{layer}.output.dense.weight" in self.weights:
            text = self._bert_block(text, image, f"fusion.layer.{layer}.", self.fusion_heads)
            layer += 1
        return text

    def _bert_block(self, states: Tensor, image: Tensor | None, name: str, heads: int) -> Tensor:
        states = self._attention(states, states, f"{name}attention.", heads)
        if image is not None:
            states = self._attention(states, image, f"{name}crossattention.", heads)
        hidden = F.gelu(self.linear(states, f"{name}intermediate.dense"))
        return self.norm(self.linear(hidden, f"{name}output.dense") + states, f"{name}output.LayerNorm", self.eps)

    def _attention(self, states: Tensor, attended: Tensor, name: str, heads: int) -> Tensor:
        query = self.linear(states, f"{name}self.query")
        key, value = (self.linear(attended, f"{name}self.{part}") for part in ("key", "value"))
        output = self.linear(self._heads(query, key, value, heads), f"{name}output.dense")
        return self.norm(output + states, f"{name}output.LayerNorm", self.eps)

    def _heads(self, query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
        """Attention, computed for one head after the other. ``bias`` is (queries, keys, heads)."""
        width, found = query.shape[1] // heads, []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].t() / math.sqrt(width)
            if bias is not None:
                scores = scores + bias[:, :, head]
            found.append(scores.softmax(dim=1) @ value[:, part])
        return torch.cat(found, dim=1)

    # losses

    def compare(
        self, name: str, batch: Any, images: list[Tensor], shown: list[Tensor], texts: list[Tensor], hard: Any
    ) -> dict[str, tuple[Tensor, int]]:
        """The contrastive loss (eq. 1) and the matching loss (eq. 2) of pairs.

        Args:
            name: name of the stream.
            batch: the pairs.
            images: the embedding of each image.
            shown: the states of each image to which texts attend.
            texts: the states of each text.
            hard: K hard negative texts for each pair, or None.
        """
        count, valid, group = len(texts), batch.valid.tolist(), batch.text.text_id.tolist()
        embedded = [self.embed_text(text) for text in texts]
        hard_texts: list[list[Tensor | None]] = [[] for _ in range(count)]
        if hard is not None:
            each = hard.valid.shape[1]
            for pair in range(count):
                for k in range(each):
                    row = pair * each + k
                    text = self.encode_text(hard.text.ids[row], hard.text.mask[row]) if hard.valid[pair, k] else None
                    hard_texts[pair].append(text)
        temperature = self.weights["contrastive.temperature"]

        def similarity(image: int, text: Tensor) -> Tensor:
            return (images[image] * text).sum() / temperature

        def compared(one: int, other: int) -> bool:
            same_text = group[one] == group[other] and self.same_group[name] == "ignore"
            return one == other or (valid[other] and not same_text)

        contrastive = temperature.new_zeros(())
        for pair in range(count):
            if not valid[pair]:
                continue
            others = [other for other in range(count) if compared(pair, other)]
            to_texts = [similarity(pair, embedded[other]) for other in others]
            to_texts += [similarity(pair, self.embed_text(text)) for text in hard_texts[pair] if text is not None]
            to_images = [similarity(other, embedded[pair]) for other in others]
            right = similarity(pair, embedded[pair])
            for scores in (to_texts, to_images):
                contrastive = contrastive + (torch.logsumexp(torch.stack(scores), dim=0) - right) / 2
        matching, pairs = self._matching(name, batch, images, shown, texts, embedded, hard_texts)
        return {"contrastive": (contrastive, sum(valid)), "matching": (matching, 3 * pairs)}

    def _matching(
        self,
        name: str,
        batch: Any,
        images: list[Tensor],
        shown: list[Tensor],
        texts: list[Tensor],
        embedded: list[Tensor],
        hard_texts: list[list[Tensor | None]],
    ) -> tuple[Tensor, int]:
        count, valid, group = len(texts), batch.valid.tolist(), batch.text.text_id.tolist()
        temperature = self.weights["contrastive.temperature"]
        image_noise, text_noise = next(self.draws), next(self.draws)

        def allowed(one: int, other: int) -> bool:
            differ = self.same_group[name] == "negative" or group[one] != group[other]
            return one != other and valid[one] and valid[other] and differ

        total, pairs = temperature.new_zeros(()), 0
        for pair in range(count):
            others = [other for other in range(count) if allowed(pair, other)]
            if not others:
                continue
            pairs += 1
            with torch.no_grad():
                scores = torch.stack([(images[other] * embedded[pair]).sum() / temperature for other in range(count)])
                weights = scores.softmax(dim=0) + 1e-5
                negative = max(others, key=lambda other: float(weights[other] / image_noise[pair, other]))
                candidates: list[Tensor | None] = [texts[other] if other in others else None for other in range(count)]
                candidates += hard_texts[pair]
                scores = torch.stack(
                    [
                        (images[pair] * embedded[other]).sum() / temperature
                        if other < count
                        else (images[pair] * self.embed_text(candidate)).sum() / temperature
                        if candidate is not None
                        else torch.full_like(temperature, -math.inf)
                        for other, candidate in enumerate(candidates)
                    ]
                )
                weights = scores.softmax(dim=0) + 1e-5
                chosen = max(
                    (other for other, candidate in enumerate(candidates) if candidate is not None),
                    key=lambda other: float(weights[other] / text_noise[pair, other]),
                )
            negative_text = candidates[chosen]
            assert negative_text is not None
            for text, image, label in (
                (texts[pair], shown[pair], 1),
                (negative_text, shown[pair], 0),
                (texts[pair], shown[negative], 0),
            ):
                logits = self.head(self.fuse(text, image)[0], "matching_head")
                total = total - logits.log_softmax(dim=0)[label]
        return total, pairs

    def words(self, text: Any, images: list[Tensor] | None) -> tuple[Tensor, int]:
        """Eq. 3: the masked words of each text, predicted with the help of its image."""
        total, count = self.weights["contrastive.temperature"].new_zeros(()), 0
        table = self.weights.get("word_head.decoder.weight", self.weights["text.embeddings.word_embeddings.weight"])
        for row in range(len(text.masked_ids)):
            masked = self.encode_text(text.masked_ids[row], text.mask[row])
            fused = self.fuse(masked, None if images is None else images[row])
            for position, label in zip(text.positions[row].tolist(), text.labels[row].tolist(), strict=True):
                if label == IGNORED:
                    continue
                hidden = F.gelu(self.linear(fused[position], "word_head.transform.dense"))
                hidden = self.norm(hidden, "word_head.transform.LayerNorm", 1e-12)
                total = total - (table @ hidden + self.weights["word_head.bias"]).log_softmax(dim=0)[label]
                count += 1
        return total, count

    def boxes(self, batch: Any, patches: list[Tensor], texts: list[Tensor]) -> dict[str, tuple[Tensor, int]]:
        """Eqs. 4 and 5: the box of each text, predicted from the whole image."""
        l1 = giou = self.weights["contrastive.temperature"].new_zeros(())
        count = 0
        for row, text in enumerate(texts):
            is_image = bool(batch.is_image[row]) and not self.whole_image_boxes
            if not batch.valid[row] or batch.several_boxes[row] or is_image:
                continue
            count += 1
            image = patches[int(batch.image_index[row])]
            states = torch.cat([image.mean(dim=0)[None], image])
            found = self.head(self.fuse(text, states)[0], "box_head").sigmoid()
            true = batch.boxes_cxcywh[row].to(found.dtype)
            l1 = l1 + (found - true).abs().sum()
            (left, top, right, bottom), (a, b, c, d) = (
                (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in (found, true)
            )
            zero = torch.zeros_like(left)
            across = torch.maximum(torch.minimum(right, c) - torch.maximum(left, a), zero)
            down = torch.maximum(torch.minimum(bottom, d) - torch.maximum(top, b), zero)
            overlap = across * down
            union = (right - left) * (bottom - top) + (c - a) * (d - b) - overlap
            hull = (torch.maximum(right, c) - torch.minimum(left, a)) * (
                torch.maximum(bottom, d) - torch.minimum(top, b)
            )
            giou = giou + 1 - (overlap / union - (hull - union) / hull)
        return {"l1": (l1, count), "giou": (giou, count)}

    # layers

    def embed_text(self, text: Tensor) -> Tensor:
        pooled = {"cls": text[0], "mean": text.mean(dim=0), "last": text[-1]}[self.text_pooling]
        return self.embed(pooled, "contrastive.text_proj")

    def embed(self, state: Tensor, name: str) -> Tensor:
        projected = self.linear(state, name)
        return projected / projected.square().sum().sqrt()

    def head(self, state: Tensor, name: str) -> Tensor:
        return self.linear(F.gelu(self.norm(self.linear(state, f"{name}.0"), f"{name}.1", 1e-5)), f"{name}.3")

    def linear(self, states: Tensor, name: str) -> Tensor:
        return states @ self.weights[f"{name}.weight"].t() + self.weights[f"{name}.bias"]

    def norm(self, states: Tensor, name: str, eps: float) -> Tensor:
        centred = states - states.mean(dim=-1, keepdim=True)
        scale = (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return centred / scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
