"""The layer that text and fusion encoders share."""

from __future__ import annotations

import torch

from models.encoded import Encoded
from models.vision import Concepts
from models.fusion import FusionConfig, FusionEncoder, Look, Part
from models.blocks import BlockConfig, ResidualOutput, attention_mask

LENGTHS = (3, 1, 5, 2, 4, 5, 2, 3)
MASK = torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)
FAR = 1000.0


def outputs_of_last_layer(encoder: FusionEncoder) -> list[ResidualOutput]:
    layer = encoder.layer[-1]
    return [layer.attention.output, layer.crossattention.output, layer.output]


def test_a_drop_path_leaves_out_whole_texts_and_each_by_itself():
    torch.manual_seed(0)
    sizes = BlockConfig(width=8, heads=2, intermediate=16, dropout=0.0, attention_dropout=0.0)
    encoder = FusionEncoder(FusionConfig(layers=2, drop_path=0.5), sizes, 8).train()
    kept = []
    for output in outputs_of_last_layer(encoder):
        torch.nn.init.zeros_(output.dense.weight)
        torch.nn.init.constant_(output.dense.bias, FAR)
        output.LayerNorm.register_forward_pre_hook(lambda _, given: kept.append(given[0][:, 0].detach()))
    memory = encoder.remember(Concepts.whole(torch.randn(len(LENGTHS), 4, 8)))
    texts = Encoded(torch.randn(*MASK.shape, 8), MASK)
    alone = Encoded(torch.randn(2, 5, 8), MASK[:2])
    encoder.fuse([Part(alone), Part(texts, Look(memory, torch.arange(len(LENGTHS)), 1))])
    for block, rows in zip(("self-attention", "cross-attention", "feed-forward"), kept, strict=True):
        lengths = LENGTHS if block == "cross-attention" else (*LENGTHS, *LENGTHS[:2])
        added = [part.round(decimals=-3) for part in rows.split(list(lengths))]
        assert all((part == part[0]).all() for part in added), f"{block}: a text is left out whole"
        assert {float(part[0]) for part in added} == {0.0, 2 * FAR}, f"{block}: some are left out, the others doubled"


def test_an_attention_mask_hides_what_is_not_to_be_seen_and_has_rows_8_numbers_apart():
    added = attention_mask(MASK, torch.bfloat16)
    assert added.shape == (len(LENGTHS), 1, 1, 5)
    assert added.dtype == torch.bfloat16
    assert torch.equal(added == 0, MASK[:, None, None])
    assert torch.equal(added == -torch.inf, ~MASK[:, None, None])
    assert added.stride()[:3] == (8, 8, 8)
    per_query = MASK[:, None, :] & torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.equal(attention_mask(per_query, torch.float32) == 0, per_query[:, None])


def test_half_precision_projects_all_layers_in_one_product_to_the_same_keys_and_gradients():
    torch.manual_seed(0)
    sizes = BlockConfig(width=8, heads=2, intermediate=16)
    encoder = FusionEncoder(FusionConfig(layers=2), sizes, 12)
    found = []
    for together in (False, True):
        patches = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            if together:
                memory = [layer.patches for layer in encoder.remember(Concepts.whole(patches)).layers]
            else:
                tokens = Concepts.whole(patches).tokens()
                memory = [layer.crossattention.self(tokens) for layer in encoder.layer]
        parts = [part for layer in memory for part in layer]
        assert {part.dtype for part in parts} == {torch.bfloat16}
        torch.stack(parts).float().pow(2).sum().backward()
        found.append([patches.grad, torch.stack(parts).float()])
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.005)
