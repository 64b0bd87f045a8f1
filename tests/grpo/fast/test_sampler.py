"""The fast sampler alone: truncated distributions, copies in another type, static buffers."""

import gc
import weakref

import pytest
import torch

from grpo.fast.copies import sampling_copy
from grpo.fast.sampler import Sampler, generate, sample_many, truncate
from grpo.logprobs import completion_logprobs
from grpo.packing import pack
from grpo.sampling import uniform_table
from models.fast.packed import PackedLayer, PackedLinear, can_pack
from models.lora import add_lora, lora_layers, merged_state_dict
from models.qwen2_vl import frozen_model

NEWLINE, A, B, C, PAD, STOP = 198, 64, 65, 66, 256, 258      # every prompt ends with a line break


def table(prompts, group_size=1, length=8, seed=0, step=0):
    return uniform_table(seed, step, range(prompts) if isinstance(prompts, int) else prompts, group_size, length)


# ---------------------------------------------------------------- where a completion ends

def test_min_new_tokens_holds_the_stop_back(make_bigram, processor, make_prompts):
    # the stop is 20 nats ahead of "a" everywhere, so it comes as soon as it may
    logits = torch.full((270, 270), -1000.0)
    logits[:, A], logits[:, PAD], logits[:, STOP] = 0.0, -500.0, 20.0
    for least in (0, 1, 3):
        sampler = Sampler(make_bigram(logits), processor, max_new_tokens=6, min_new_tokens=least)
        rollout = sampler.sample(make_prompts()[:1], table(1))
        assert rollout.completion_ids.tolist() == [[A] * least + [STOP]]


# ---------------------------------------------------------------- what is drawn

def test_top_k_by_hand(after_newline, processor, make_prompts):
    # logits 3 2 1 0: full ln p(a) = -.440190; among the first two -.313262. u = .99 stays inside the two
    model = after_newline({A: 3.0, B: 2.0, C: 1.0, 67: 0.0})

    def first(uniform, **settings):
        sampler = Sampler(model, processor, max_new_tokens=2, **settings)
        rollout = sampler.sample(make_prompts()[:1], torch.tensor([[[uniform, 0.5]]]))
        return rollout.completion_ids[0, 0].item(), rollout.logprobs[0, 0].item()
    assert first(0.0) == (A, pytest.approx(-0.440190, abs=1e-5))
    assert first(0.0, top_k=2) == (A, pytest.approx(-0.313262, abs=1e-5))
    assert first(0.99) == (67, pytest.approx(-3.440190, abs=1e-5))
    assert first(0.99, top_k=2) == (B, pytest.approx(-1.313262, abs=1e-5))
    assert first(0.99, top_k=1) == (A, pytest.approx(0.0, abs=1e-6))


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.64, 1), (0.65, 2), (0.88, 2), (0.89, 3), (0.97, 4), (1.0, 4)])
def test_top_p_by_hand(top_p, kept):
    # logits 3 2 1 0: p = .643914 .236883 .087144 .032059, cumulative .643914 .880797 .967941 1
    logits = torch.tensor([[1.0, 3.0, 0.0, 2.0]])                              # not in order
    probabilities = truncate(logits, 0, top_p).softmax(-1)[0]
    assert [i for i in (1, 3, 0, 2) if probabilities[i] > 0] == [1, 3, 0, 2][:kept]


# ---------------------------------------------------------------- the sampler and the trainer agree

def test_generate_equals_the_sampler_and_repeats_itself(make_model, processor, picture):
    messages = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Go"}]}]] * 2
    images, model = [[picture(56, 28, 1)], [picture(56, 56, 2)]], make_model()
    one = generate(model, processor, messages, images, group_size=3, max_new_tokens=5)
    two = generate(model, processor, messages, images, group_size=3, max_new_tokens=5)
    other = generate(model, processor, messages, images, group_size=3, max_new_tokens=5,
                     generator=torch.Generator().manual_seed(1))
    assert one.completion_ids.shape[0] == 6 and len(one.texts) == 6
    assert torch.equal(one.completion_ids, two.completion_ids)
    assert one.completion_ids.shape != other.completion_ids.shape or (one.completion_ids != other.completion_ids).any()


# ---------------------------------------------------------------- what may not change a sample

def test_sample_many_pairs_each_example_with_its_own_rollout(make_model, processor, make_prompts):
    prompts, sampler = make_prompts(), Sampler(make_model(), processor, max_new_tokens=6)
    by_two = list(sample_many(sampler, [0, 1, 2], prompts.__getitem__, 2, seed=1, batch_size=2))
    by_three = list(sample_many(sampler, [0, 1, 2], prompts.__getitem__, 2, seed=1, batch_size=3))
    assert [number for number, _ in by_two] == [0, 1, 2]
    for (_, one), (_, two) in zip(by_two, by_three, strict=True):
        assert len(one.texts) == 2 and one.texts == two.texts


# ---------------------------------------------------------------- borders

@pytest.mark.parametrize("settings", [{"temperature": -0.1}, {"max_new_tokens": 0}])
def test_impossible_settings_are_errors(make_model, processor, settings):
    with pytest.raises(ValueError):
        Sampler(make_model(), processor, **settings)


# ---------------------------------------------------------------- the copy that is sampled from

def test_a_copy_of_another_type_follows_the_model_after_refresh(make_model, make_prompts, processor):
    model, prompts, uniforms = make_model(stop=1.0), make_prompts(), table(3, 4)
    sampler = Sampler(model, processor, max_new_tokens=8, dtype=torch.bfloat16)
    assert sampler.model is not model and sampler.model.head_weight.data_ptr() == model.head_weight.data_ptr()
    assert sampler.model.visual.blocks[0].norm1.weight.dtype == torch.bfloat16
    places = [p.data_ptr() for p in sampler.model.parameters()]
    old = sampler.sample(prompts, uniforms)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(1.5)
    stale = sampler.sample(prompts, uniforms)
    assert torch.equal(stale.logprobs, old.logprobs)                            # the layers are the copy's own
    sampler.refresh()
    fresh = sampler.sample(prompts, uniforms)
    assert fresh.texts != old.texts
    assert [p.data_ptr() for p in sampler.model.parameters()] == places         # in place: graphs stay valid
    again = Sampler(model, processor, max_new_tokens=8, dtype=torch.bfloat16).sample(prompts, uniforms)
    assert torch.equal(fresh.logprobs, again.logprobs)


def test_a_bf16_copy_says_nearly_what_the_model_says(make_model, make_prompts, processor):
    model, prompts, uniforms = make_model(stop=1.0), make_prompts(), table(3, 4)
    rollout = Sampler(model, processor, max_new_tokens=8, dtype=torch.bfloat16).sample(prompts, uniforms)
    ids = rollout.completions()
    with torch.no_grad():
        scored, _ = completion_logprobs(model, pack(prompts, [ids[i:i + 4] for i in (0, 4, 8)]),
                                        suppressed=model.config.suppressed_token_ids)
    gap = ((scored - rollout.logprobs) * rollout.completion_mask).abs()
    assert 0 < gap.max() < 0.2                                                  # bfloat16 keeps 8 binary digits


PACKED_BF16 = pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.bfloat16),
                                 reason="this torch has no packed bf16 products")


@pytest.mark.parametrize(("dtype", "blocked_from", "gap"), [
    pytest.param(torch.bfloat16, 0, 0.05, marks=PACKED_BF16),                   # bf16 rounds here and there
    (torch.float32, 2**18, 1e-5), (torch.float32, 0, 1e-5)])                    # small matrices in both layouts
def test_packed_layers_multiply_as_plain_ones(make_model, make_prompts, processor, monkeypatch, dtype, blocked_from,
                                              gap):
    if not can_pack(torch.device("cpu"), dtype):
        pytest.skip("this torch has no packed products")
    monkeypatch.setattr("models.fast.packed.BLOCKED_FROM", blocked_from)
    model, prompts, uniforms = make_model(stop=1.0), make_prompts(), table(3, 4)
    packed = Sampler(model, processor, max_new_tokens=8, dtype=dtype)
    layers = [layer for layer in packed.model.modules() if isinstance(layer, PackedLayer)]
    assert len(layers) == len(model.model.layers) and layers[0].qkv.blocked == (blocked_from == 0)
    monkeypatch.setattr("grpo.fast.copies.can_pack", lambda *_: False)
    plain = Sampler(model, processor, max_new_tokens=8, dtype=dtype)
    first, second = packed.sample(prompts, uniforms), plain.sample(prompts, uniforms)
    tokens = 1 if dtype == torch.bfloat16 else 8            # after other tokens the two are not comparable
    assert torch.equal(first.completion_ids[:, :tokens], second.completion_ids[:, :tokens])
    torch.testing.assert_close(first.logprobs[:, :tokens], second.logprobs[:, :tokens], atol=gap, rtol=0)


@PACKED_BF16
def test_packed_weights_are_gone_while_the_model_trains(make_model, make_prompts, processor):
    sampler = Sampler(make_model(stop=1.0), processor, max_new_tokens=8, dtype=torch.bfloat16)
    before = sampler.sample(make_prompts(), table(3, 4))
    sampler.release()
    linears = [layer.product for layer in sampler.model.modules() if isinstance(layer, PackedLinear)]
    packed = [layer.qkv for layer in sampler.model.modules() if isinstance(layer, PackedLayer)]
    assert linears and packed and all(product.weight is None for product in linears + packed)
    sampler.refresh()
    assert torch.equal(sampler.sample(make_prompts(), table(3, 4)).logprobs, before.logprobs)


@pytest.mark.parametrize("decode", ["eager", "compile"])
def test_the_cache_is_gone_while_the_model_trains_unless_a_compiled_step_holds_it(make_model, make_prompts, processor,
                                                                                  monkeypatch, decode):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    sampler = Sampler(make_model(), processor, max_new_tokens=8, decode=decode)
    with sampler:
        first = sampler.sample(make_prompts()[:2], table(2))
    assert (sampler.buffers is None) == (decode == "eager")
    with sampler:
        assert torch.equal(sampler.sample(make_prompts()[:2], table(2)).completion_ids, first.completion_ids)




@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.bfloat16), reason="without packed layers a bf16 model samples from itself, "
                                                              "its adapters apart"))])
def test_adapters_are_merged_into_the_copy_and_its_refresh(make_model, make_prompts, processor, dtype):
    model, prompts, uniforms = make_model(stop=1.0).to(dtype), make_prompts(), table(3, 4)
    add_lora(model, 4, 8, ("q_proj", "down_proj"), torch.Generator().manual_seed(0))
    sampler = Sampler(model, processor, max_new_tokens=8, dtype=torch.bfloat16)
    before = sampler.sample(prompts, uniforms)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    sampler.refresh()
    after = sampler.sample(prompts, uniforms)
    merged = frozen_model(model.config, merged_state_dict(model))
    expected = Sampler(merged, processor, max_new_tokens=8, dtype=torch.bfloat16).sample(prompts, uniforms)
    assert after.texts == expected.texts != before.texts
    torch.testing.assert_close(after.logprobs, expected.logprobs, atol=0.05, rtol=0)


def test_the_models_own_type_needs_a_copy_of_packed_layers_only(make_model, processor, monkeypatch):
    model = make_model()
    if can_pack(torch.device("cpu"), torch.float32):
        copy, own = Sampler(model, processor).model.state_dict(), model.state_dict()
        assert all(tensor.data_ptr() == own[name].data_ptr() for name, tensor in copy.items())
    monkeypatch.setattr("grpo.fast.copies.can_pack", lambda *_: False)
    assert Sampler(model, processor, dtype=torch.float32).model is model
    assert Sampler(model, processor).model is model


def test_a_second_batch_of_the_same_shape_uses_the_same_tensors(make_model, make_prompts, processor):
    sampler, prompts = Sampler(make_model(stop=1.0), processor, max_new_tokens=8), make_prompts()
    first = sampler.sample(prompts, table(3, 4))
    buffers = sampler.buffers
    sampler.sample(list(reversed(prompts)), table([7, 8, 9], 4))                # leaves other keys behind
    assert sampler.buffers is buffers
    again = sampler.sample(prompts, table(3, 4))
    assert torch.equal(first.completion_ids, again.completion_ids) and torch.equal(first.logprobs, again.logprobs)
    sampler.sample(prompts[:2], table(2, 4))
    assert sampler.buffers is not buffers


def test_a_bf16_models_new_head_is_seen(make_model, make_prompts, processor):
    model, prompts = make_model(stop=1.0).to(torch.bfloat16), make_prompts()
    sampler = Sampler(model, processor, max_new_tokens=8)                       # the model itself, no copy
    sampler.sample(prompts, table(3, 4))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.5)                               # embeddings and head: they are tied
    again = sampler.sample(prompts, table(3, 4))
    fresh = Sampler(model, processor, max_new_tokens=8).sample(prompts, table(3, 4))
    assert torch.equal(again.logprobs, fresh.logprobs) and again.texts == fresh.texts


def test_a_picture_that_stands_twice_is_encoded_once(make_model, make_prompts, processor, monkeypatch):
    prompts, grids = make_prompts(), []
    sampler = Sampler(make_model(stop=1.0), processor, max_new_tokens=8)
    encode = sampler.model.image_features
    monkeypatch.setattr(sampler.model, "image_features",
                        lambda pixels, grid: (grids.append(len(grid)), encode(pixels, grid))[1])
    twice = sampler.sample([prompts[0], prompts[2], prompts[0]], table(3, 2))
    assert grids == [2]
    once = sampler.sample([prompts[0]], table(1, 2))
    assert twice.texts[:2] == once.texts


def test_samplers_share_one_packed_copy(make_model, processor):
    if not can_pack(torch.device("cpu"), torch.float32):
        pytest.skip("this torch has no packed products")
    copy = sampling_copy(make_model(), None)
    greedy, sampled = (Sampler(copy, processor, temperature) for temperature in (0.0, 1.0))
    assert greedy.model is sampled.model is copy


@pytest.mark.parametrize("decode", ["eager", "compile"])
def test_what_the_sampler_lets_go_of_is_freed_at_once(make_model, make_prompts, processor, monkeypatch, decode):
    """Without a wait for the garbage collector, which seldom runs: several caches of a large model would pile up."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    sampler = Sampler(make_model(), processor, max_new_tokens=8, decode=decode)
    gc.disable()
    try:
        sampler.sample(make_prompts()[:2], table(2))
        cache = weakref.ref(sampler.buffers.cache)
        sampler.sample(make_prompts(), table(3))
        assert cache() is None
        cache = weakref.ref(sampler.buffers.cache)
        if decode == "eager":
            del sampler
            assert cache() is None
    finally:
        gc.enable()


def test_longer_buffers_of_a_fixed_step_are_used_again(make_model, make_prompts, processor, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("grpo.fast.sampler.PROMPT_STEP", 1)
    prompts = sorted(make_prompts(), key=lambda prompt: len(prompt.input_ids))
    assert len(prompts[0].input_ids) < len(prompts[-1].input_ids)
    sampler = Sampler(make_model(stop=1.0), processor, max_new_tokens=8, decode="compile")
    alone = sampler.sample(prompts[:1], table(1))
    sampler.sample(prompts[-1:], table(1))
    buffers = sampler.buffers
    again = sampler.sample(prompts[:1], table(1))
    assert sampler.buffers is buffers and torch.equal(again.completion_ids, alone.completion_ids)
    torch.testing.assert_close(again.logprobs, alone.logprobs, atol=1e-5, rtol=0)
    sampler.sample([prompts[0]] * 2, table(2))              # another number of prompts: as long as they need
    assert sampler.buffers.shape[:3] == (2, 1, len(prompts[0].input_ids))


def test_a_compiled_step_reads_no_packed_weights(make_model, processor):
    """torch.compile cannot lower oneDNN's blocked layout: it failed at the first token."""
    model = make_model()
    assert Sampler(model, processor, decode="compile").model is model


def test_a_graph_needs_a_card(make_model, processor):
    with pytest.raises(ValueError, match="on the CPU; use eager"):
        Sampler(make_model(), processor, decode="graph")
