"""Attention on packed rows equals the dense mask that defines it, forward and backward, on every path."""

import pytest
import torch

from grpo.fast import attention
from grpo.fast.attention import branch_attention, fused_attention, places, plain_products
from grpo.packing import pack
from models.text import masked_attention

HEADS, KV_HEADS, SIZE = 4, 2, 8
LENGTHS = [[3, 5, 1], [2, 4], [5]]            # branches of three rows, one of them with fewer than the others


@pytest.fixture
def rows(make_prompts):
    return pack(make_prompts(), [[torch.arange(n) for n in group] for group in LENGTHS])


def random_heads(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count, length = rows.input_ids.shape
    return [torch.randn(count, heads, length, SIZE, generator=generator).requires_grad_()
            for heads in (HEADS, KV_HEADS, KV_HEADS)]


def outcome(attend, rows):
    """Output at real tokens and the gradients of a weighted sum of it."""
    q, k, v = random_heads(rows)
    real = (rows.branches >= 0)[:, None, :, None]
    y = attend(0, q, k, v) * real
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), q.grad, k.grad, v.grad


@pytest.mark.parametrize("path", [fused_attention, plain_products])
def test_both_paths_equal_the_dense_mask(rows, path, monkeypatch):
    monkeypatch.setattr(attention, "fused_attention", path)                     # float32 on a CPU takes this one
    for got, expected in zip(outcome(branch_attention(rows), rows),
                             outcome(masked_attention(rows.attention()), rows), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


def test_bf16_on_a_cpu_takes_the_plain_products(rows, monkeypatch):
    monkeypatch.setattr(attention, "fused_attention", None)                     # would raise if it were called
    q, k, v = (x.detach() for x in random_heads(rows))
    expected = masked_attention(rows.attention())(0, q, k, v)
    got = branch_attention(rows)(0, q.bfloat16(), k.bfloat16(), v.bfloat16())
    real = (rows.branches >= 0)[:, None, :, None]
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float() * real, expected * real, atol=0.05, rtol=0.05)


def test_one_branch_is_a_plain_causal_sequence(make_prompts):
    rows = pack(make_prompts(), [[torch.arange(n)] for n in (3, 1, 5)])
    for got, expected in zip(outcome(branch_attention(rows), rows),
                             outcome(masked_attention(rows.attention()), rows), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


def test_siblings_do_not_meet(rows):
    attend = branch_attention(rows)
    q, k, v = (x.detach() for x in random_heads(rows))
    before = attend(0, q, k, v)
    second = rows.branches == 2
    changed = attend(0, q, k, v + 100.0 * second[:, None, :, None])
    moved = ((changed - before).abs().amax((1, 3)) > 1e-4) & (rows.branches >= 0)     # padding means nothing
    assert torch.equal(moved, second)                                           # those tokens alone, and all of them


def test_slots_and_sources_by_hand(make_prompts):
    # prompts of different lengths; in the row of length P the branches stand at P, P + 1 ... one behind the other
    rows = pack(make_prompts()[:2], [[torch.tensor([7, 8]), torch.tensor([9])], [torch.tensor([5])]])
    first, second = (len(prompt.input_ids) for prompt in make_prompts()[:2])
    assert places(rows)[1].tolist() == [[[first, first + 1], [first + 2, -1]], [[second, -1], [-1, -1]]]
    size = max(first, second)                                                   # prompt slots; 2 x 2 of branches follow
    assert places(rows)[2][0, :first + 3].tolist() == [*range(first), size, size + 1, size + 2]
    assert places(rows)[2][1, :second + 1].tolist() == [*range(second), size]
