"""The language model's parts against hand values."""

import math
from dataclasses import replace

import pytest
import torch

from models.config import PRESETS
from models.text import (
    MLP,
    RMSNorm,
    TextModel,
    causal_mask,
    compute_type,
    gated_silu,
    masked_attention,
    rotary,
    rotate,
)

TINY = replace(PRESETS["tiny"].text, num_hidden_layers=2)       # E = 32, sections 4 + 6 + 6


def test_rms_norm_by_hand():
    # (3, 4): mean square 12.5, root 3.5355339; 3 / root = .8485281, 4 / root = 1.1313708
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([2.0, 0.5])
    assert norm(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([1.6970563, 0.5656854])


def test_rms_norm_in_bfloat16_rounds_before_the_weight():
    # 1.1313708 in bfloat16 (steps of 1/128) is 145/128; times 1.5 is 217.5/128, a tie that goes to the even 218/128.
    # Rounding only once: 1.6970563 = 217.22/128 would give 217/128 = 1.6953125.
    norm = RMSNorm(2, eps=0.0).to(torch.bfloat16)
    norm.weight.data.fill_(1.5)
    assert norm(torch.tensor([3.0, 4.0], dtype=torch.bfloat16))[1].item() == 1.703125


def test_gated_silu_by_hand():
    # silu(0) = 0; silu(ln 3) = ln 3 * sigmoid(ln 3) = 1.0986123 * 3/4 = 0.8239592, times 2
    assert gated_silu(torch.tensor([0.0, math.log(3)]), torch.tensor([5.0, 2.0])).tolist() == pytest.approx(
        [0.0, 1.6479184])


def test_mlp_projects_the_gated_product_down():
    # x = (2, 0); gate = 2 * ln(3) / 2 = ln 3; up = 3 * 2 = 6; silu(ln 3) * 6 = 4.9437552; down halves it
    mlp = MLP(replace(TINY, hidden_size=2, num_attention_heads=1, num_key_value_heads=1, intermediate_size=1,
                      mrope_section=(1, 0, 0)))
    for layer, value in ((mlp.gate_proj, math.log(3) / 2), (mlp.up_proj, 3.0), (mlp.down_proj, 0.5)):
        layer.weight.data.fill_(value)
    assert mlp(torch.tensor([2.0, 0.0])).tolist() == pytest.approx([2.4718776, 2.4718776])


def test_rotary_axes_and_frequencies():
    # Frequencies 0-3 read time, 4-9 height, 10-15 width, all repeated at + 16. Position (1, 0, 0): frequency 0 is 1 and
    # sin 1 = .8414710; (0, 0, 1): frequency 10 is 1e6^(-20/32) = 10^-3.75 = 1.778279e-4, its sine the same.
    # (0, 1, 0): frequency 4 is 1e6^(-8/32) = 10^-1.5 = .0316228, its sine .0316175.
    position_ids = torch.eye(3, dtype=torch.int64).view(3, 1, 3)
    cos, sin = rotary(position_ids, TINY, torch.float32)
    assert cos.shape == sin.shape == (1, 3, 32)
    assert [row.nonzero().flatten().tolist() for row in sin[0]] == [
        [0, 1, 2, 3, 16, 17, 18, 19], [4, 5, 6, 7, 8, 9, 20, 21, 22, 23, 24, 25],
        [10, 11, 12, 13, 14, 15, 26, 27, 28, 29, 30, 31]]
    assert sin[0, 0, [0, 16]].tolist() == pytest.approx([0.8414710, 0.8414710])
    assert sin[0, 1, 4].item() == pytest.approx(0.0316175, abs=1e-7)
    assert sin[0, 2, 10].item() == pytest.approx(1.778279e-4, rel=1e-5)
    assert cos[0, 0, 0].item() == pytest.approx(0.5403023)


def test_rotate_turns_pairs_half_a_head_apart():
    # A quarter turn (cos 0, sin 1) of the pairs (1, 3) and (2, 4) gives (-3, 1) and (-4, 2).
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rotate(x, torch.zeros(4), torch.ones(4)).tolist() == [-3, -4, 1, 2]


def test_causal_mask_literal():
    mask = causal_mask(torch.tensor([[0, 1, 1], [1, 1, 0]]))
    assert mask.shape == (2, 1, 3, 3)
    assert mask[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert mask[1, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_query_heads_share_key_value_heads_in_order():
    # One token attends to itself only and gets its value: heads 0 and 1 that of head 0, heads 2 and 3 that of head 1.
    q, k = torch.ones(1, 4, 1, 8), torch.ones(1, 2, 1, 8)
    v = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 1, 8)
    assert masked_attention(None)(0, q, k, v)[0, :, 0, 0].tolist() == [1, 1, 2, 2]


def run(model, embeds, mask):
    position_ids = torch.arange(embeds.shape[1]).expand(3, *embeds.shape[:2])
    return model(embeds, position_ids, masked_attention(mask))


def test_padding_rows_give_no_nan_and_none_equals_the_full_mask():
    torch.manual_seed(0)
    model, embeds = TextModel(TINY), torch.randn(2, 5, 128)
    assert run(model, embeds, causal_mask(torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]))).isfinite().all()
    full = run(model, embeds, causal_mask(torch.ones(2, 5)))
    torch.testing.assert_close(run(model, embeds, None), full, atol=1e-5, rtol=0)


def test_attend_gets_rotated_heads_of_each_layer():
    seen = []

    def attend(layer_index, q, k, v):
        seen.append((layer_index, tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return torch.zeros_like(q)

    TextModel(TINY)(torch.randn(2, 3, 128), torch.zeros(3, 2, 3, dtype=torch.int64), attend)
    assert seen == [(0, (2, 4, 3, 32), (2, 2, 3, 32), (2, 2, 3, 32)), (1, (2, 4, 3, 32), (2, 2, 3, 32), (2, 2, 3, 32))]


def test_gradient_checkpointing_recomputes_and_changes_nothing():
    torch.manual_seed(0)
    model, embeds, gradients, calls = TextModel(TINY), torch.randn(1, 4, 128), [], []
    model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        run(model, embeds, None).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(calls) == 3                      # once without, twice with checkpointing
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_compute_type_is_autocasts_or_its_own():
    x = torch.ones(2)
    assert compute_type(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_type(x).dtype == torch.bfloat16
