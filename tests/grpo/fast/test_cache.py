"""The attention of a decoding step: both ways to share a softmax between the prompt and a sample's own tokens."""

import pytest
import torch
import torch.nn.functional as F

from grpo.fast.cache import GroupCache, joint_softmax, merged_softmax
from models.config import TextConfig


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("way", ["joint", "merged"])
def test_a_shared_prompt_is_attended_to_like_ones_own(way, padded):
    """Against one call of torch per sample, whose keys are the prompt's (2 prompts of 7, or 7 and 4) and its own 5."""
    draw = torch.Generator().manual_seed(0)
    q, prompt_k, prompt_v, own_k, own_v = (torch.randn(shape, generator=draw) for shape in (
        (2, 3, 4, 2, 8), (2, 3, 7, 8), (2, 3, 7, 8), (2, 3, 4, 5, 8), (2, 3, 4, 5, 8)))       # P K G R E
    lengths = [7, 4] if padded else [7, 7]
    bias = torch.tensor([[[0.0] * 7], [[0.0] * 4 + [-torch.inf] * 3]]) if padded else None
    if way == "joint":
        found = joint_softmax(q, prompt_k, prompt_v, own_k, own_v, bias, None)
    else:
        found = merged_softmax(q, prompt_k, prompt_v, own_k, own_v, bias)
    for prompt, length in enumerate(lengths):
        for sample in range(4):
            k, v = (torch.cat([shared[prompt, :, :length], own[prompt, :, sample]], dim=1)
                    for shared, own in ((prompt_k, own_k), (prompt_v, own_v)))
            expected = F.scaled_dot_product_attention(q[prompt, :, sample], k, v)
            assert found[prompt, :, sample] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("dtype", "written", "merges"), [
    (torch.bfloat16, 1, True), (torch.float32, 1, False), (torch.bfloat16, None, False)])
def test_only_bf16_on_a_cpu_merges(dtype, written, merges, monkeypatch):
    calls = []
    monkeypatch.setattr("grpo.fast.cache.merged_softmax", lambda *given: calls.append(1) or merged_softmax(*given))
    config = TextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                        intermediate_size=16, vocab_size=8, mrope_section=(1, 1, 2))
    cache = GroupCache(config, (1, 2, 3, 4), dtype, torch.device("cpu"))
    q, k = torch.ones(2, 2, 1, 8, dtype=dtype), torch.ones(2, 1, 1, 8, dtype=dtype)
    cache.decode(torch.tensor([0]), written)(0, q, k, k)
    assert bool(calls) == merges
