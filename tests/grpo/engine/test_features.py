"""Features of a frozen vision tower: the same numbers everywhere, computed once, within their budget."""

import pytest
import torch

from grpo.engine.features import FeatureCache
from grpo.fast.sampler import Sampler
from grpo.logprobs import completion_logprobs
from grpo.packing import pack
from grpo.sampling import uniform_table


def test_features_take_the_place_of_pixels(make_model, make_prompts, processor):
    model, prompts = make_model(stop=1.0), make_prompts()
    known = FeatureCache(model, "fp32", 10**9)("abc", prompts)
    assert [p.pixel_values is None for p in known] == [True] * 3 and known[1].image_features is None
    branches = [[torch.tensor([64, 65])]] * 3
    with torch.no_grad():
        for got, expected in zip(completion_logprobs(model, pack(known, branches)),
                                 completion_logprobs(model, pack(prompts, branches)), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    sampler, uniforms = Sampler(model, processor, 1.0, 8), uniform_table(0, 0, range(3), 4, 8)
    assert sampler.sample(known, uniforms).texts == sampler.sample(prompts, uniforms).texts


def test_a_picture_is_encoded_once(make_model, make_prompts, monkeypatch):
    model, prompts, calls = make_model(), make_prompts(), []
    encode = model.image_features
    monkeypatch.setattr(model, "image_features", lambda *args: (calls.append(1), encode(*args))[1])
    cache = FeatureCache(model, "fp32", 10**9)
    first, again = cache("abc", prompts), cache("abc", prompts)
    assert len(calls) == 2 and again[0].image_features is first[0].image_features      # two of three have a picture


@pytest.mark.parametrize(("budget", "kept"), [(0, 0), (2 * 32 * 4, 1), (2 * 32 * 4 + 6 * 32 * 4, 2)])
def test_the_budget_holds(make_model, make_prompts, budget, kept):
    # 2 and 6 features of 32 float32 numbers: 256 and 768 bytes
    cache = FeatureCache(make_model(), "fp32", budget)
    cache("abc", make_prompts())
    assert len(cache.kept) == kept and cache.budget == budget - (0, 256, 1024)[kept]


def test_no_gradient_is_kept(make_model, make_prompts):
    assert not FeatureCache(make_model(), "fp32", 10**9)("abc", make_prompts())[0].image_features.requires_grad
