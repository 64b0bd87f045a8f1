"""Sampling: what is drawn, with which log-probability, where a completion ends, and what may not change it."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from grpo.batch import PromptSettings, pack
from grpo.engine.checkpoint import load_policy, save_policy
from grpo.logprobs import completion_logprobs
from grpo.rollout import Sampler, generate, invert_cdf, sample_many, truncate, uniform_table
from models.fast.packed import PackedLinear, can_pack
from models.lora import add_lora, lora_layers, merged_state_dict
from models.qwen2_vl import frozen_model

NEWLINE, A, B, C, PAD, STOP = 198, 64, 65, 66, 256, 258      # every prompt ends with a line break


@pytest.fixture
def chain(make_bigram):
    """A model that follows a chain of tokens with certainty: chain(198, 64, 65) writes "ab" and then anything."""
    def make(*tokens):
        logits = torch.zeros(270, 270)
        for now, after in zip(tokens[:-1], tokens[1:], strict=True):
            logits[now, after] = 1000.0
        return make_bigram(logits)
    return make


@pytest.fixture
def after_newline(make_bigram):
    """A model with the given logits after a line break, and with certain <|im_end|> after everything else."""
    def make(logits):
        table = torch.full((270, 270), -1000.0)
        table[:, STOP] = 0.0
        table[NEWLINE] = -1000.0
        for token, logit in logits.items():
            table[NEWLINE, token] = logit
        return make_bigram(table)
    return make


def table(prompts, group_size=1, length=8, seed=0, step=0):
    return uniform_table(seed, step, range(prompts) if isinstance(prompts, int) else prompts, group_size, length)


# ---------------------------------------------------------------- where a completion ends

@pytest.mark.parametrize("stop", [STOP, PAD])
def test_both_stop_ids_end_a_completion_and_belong_to_it(chain, processor, make_prompts, stop):
    # <|endoftext|> is also the pad id: it must count where it was sampled, and only there
    sampler = Sampler(chain(NEWLINE, A, B, stop, C, A), processor, max_new_tokens=12)
    rollout = sampler.sample(make_prompts()[:2], table(2, length=12))
    assert rollout.completion_ids.tolist() == [[A, B, stop]] * 2
    assert rollout.completion_mask.tolist() == [[True, True, True]] * 2
    assert rollout.truncated.tolist() == [False, False] and rollout.texts == ["ab", "ab"]
    assert [ids.tolist() for ids in rollout.completions()] == [[A, B, stop]] * 2


def test_no_stop_token_means_truncated(chain, processor, make_prompts):
    rollout = Sampler(chain(NEWLINE, A, A), processor, max_new_tokens=5).sample(make_prompts()[:1], table(1, length=5))
    assert rollout.completion_ids.tolist() == [[A] * 5] and rollout.completion_mask.all()
    assert rollout.truncated.tolist() == [True] and rollout.texts == ["aaaaa"]


def test_stop_at_the_last_allowed_token_is_not_truncated(chain, processor, make_prompts):
    sampler = Sampler(chain(NEWLINE, A, B, STOP), processor, max_new_tokens=3)
    rollout = sampler.sample(make_prompts()[:1], table(1, length=3))
    assert rollout.completion_ids.tolist() == [[A, B, STOP]] and rollout.truncated.tolist() == [False]


def test_everything_after_the_stop_is_masked(make_bigram, processor, make_prompts):
    # after a line break "a" or the stop, half each; "a" leads to the stop, and the stop would go on with "c"
    logits = torch.full((270, 270), -1000.0)
    logits[NEWLINE, [A, STOP]] = 0.0
    logits[A, B], logits[B, STOP], logits[STOP, C], logits[C, C] = 0.0, 0.0, 0.0, 0.0
    uniforms = torch.tensor([[[0.1, 0.5, 0.5, 0.5], [0.9, 0.5, 0.5, 0.5]]])
    rollout = Sampler(make_bigram(logits), processor, max_new_tokens=4).sample(make_prompts()[:1], uniforms)
    assert rollout.completion_ids.tolist() == [[A, B, STOP], [STOP, PAD, PAD]]
    assert rollout.completion_mask.tolist() == [[True, True, True], [True, False, False]]
    assert rollout.logprobs[1].tolist() == pytest.approx([-0.693147, 0, 0], abs=1e-5)      # ln(1/2), then padding
    assert rollout.texts == ["ab", ""] and rollout.truncated.tolist() == [False, False]


def test_min_new_tokens_holds_the_stop_back(make_bigram, processor, make_prompts):
    # the stop is 20 nats ahead of "a" everywhere, so it comes as soon as it may
    logits = torch.full((270, 270), -1000.0)
    logits[:, A], logits[:, PAD], logits[:, STOP] = 0.0, -500.0, 20.0
    for least in (0, 1, 3):
        sampler = Sampler(make_bigram(logits), processor, max_new_tokens=6, min_new_tokens=least)
        rollout = sampler.sample(make_prompts()[:1], table(1))
        assert rollout.completion_ids.tolist() == [[A] * least + [STOP]]


def test_sampled_ids_are_kept_not_their_text(make_bigram, processor, make_prompts):
    # id 150 is a byte of 0x80 or more, half of a UTF-8 letter: its text is a replacement sign, which has other ids
    logits = torch.full((270, 270), -1000.0)
    logits[NEWLINE, 150], logits[150, 150], logits[150, STOP] = 0.0, -1000.0, 0.0
    rollout = Sampler(make_bigram(logits), processor, max_new_tokens=4).sample(make_prompts()[:1], table(1))
    assert rollout.completions()[0].tolist() == [150, STOP]
    assert processor.encode_text(rollout.texts[0]) != [150]                    # the text is not enough to go back


# ---------------------------------------------------------------- what is drawn

def test_invert_cdf_by_hand():
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25]])
    below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    cases = {0.0: 0, 0.2499: 0, 0.25: 2, 0.7499: 2, 0.75: 3, below_one: 3}     # token 1 has probability 0
    for uniform, token in cases.items():
        assert invert_cdf(probabilities, torch.tensor([uniform])).tolist() == [token], uniform


def test_invert_cdf_never_draws_probability_zero_at_the_ends():
    below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    probabilities = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.3, 0.7, 0.0]])
    assert invert_cdf(probabilities, torch.tensor([0.0, 0.0])).tolist() == [2, 1]
    assert invert_cdf(probabilities, torch.tensor([below_one, below_one])).tolist() == [2, 2]
    assert invert_cdf(torch.tensor([[0.2, 0.2]]), torch.tensor([0.49])).tolist() == [0]    # a sum below 1 still counts
    assert invert_cdf(torch.tensor([[0.2, 0.2]]), torch.tensor([below_one])).tolist() == [1]


def test_invert_cdf_on_a_long_tail_of_zeros():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):                                                       # rounding of the sums must not matter
        weights = torch.cat([torch.zeros(3), torch.rand(5000, generator=generator), torch.zeros(700)])
        ends = torch.tensor([0.0, 1 - 2**-24])
        drawn = invert_cdf((weights / weights.sum()).expand(2, -1), ends)
        assert (weights[drawn] > 0).all()


def test_invert_cdf_frequencies():
    # the middles of 10,000 equal intervals: the shares come out exact, give or take a rounded border
    uniforms = (torch.arange(10000) + 0.5) / 10000
    drawn = invert_cdf(torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(10000, -1), uniforms)
    assert drawn.bincount().tolist() == pytest.approx([1000, 2000, 3000, 4000], abs=1)


def test_sampler_frequencies(after_newline, processor, make_prompts):
    # logits 2 1 0 at T = 1: .665241 .244728 .090031; 2,000 draws have a standard error of at most .0106
    model = after_newline({A: 2.0, B: 1.0, C: 0.0})
    rollout = Sampler(model, processor, max_new_tokens=2).sample(make_prompts()[:1], table(1, 2000, 2))
    shares = [(rollout.completion_ids[:, 0] == token).float().mean().item() for token in (A, B, C)]
    assert shares == pytest.approx([0.665241, 0.244728, 0.090031], abs=0.03)


def test_logprobs_by_hand(after_newline, processor, make_prompts):
    # T = .5 draws "b" at u = .9 (.8668 is passed) and says -2.142932; T = 0 takes "a" and says its T = 1 value
    model, uniforms = after_newline({A: 2.0, B: 1.0, C: 0.0}), torch.tensor([[[0.9, 0.5]]])

    def first(temperature):
        rollout = Sampler(model, processor, temperature, max_new_tokens=2).sample(make_prompts()[:1], uniforms)
        return rollout.completion_ids[0, 0].item(), rollout.logprobs[0, 0].item()
    assert first(0.5) == (B, pytest.approx(-2.142932, abs=1e-5))
    assert first(1.0) == (B, pytest.approx(-1.407606, abs=1e-5))               # .6652 < .9 < .9100
    assert first(0.0) == (A, pytest.approx(-0.407606, abs=1e-5))


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


def test_suppressed_ids_are_never_sampled(make_bigram, processor, make_prompts):
    # the five picture tokens are by far the likeliest, yet only "a" may come
    logits = torch.full((270, 270), -1000.0)
    logits[:, 265:270], logits[:, A] = 1000.0, 0.0
    for temperature in (1.0, 0.0):
        sampler = Sampler(make_bigram(logits), processor, temperature, max_new_tokens=4)
        rollout = sampler.sample(make_prompts()[:1], table(1, 8))
        assert rollout.completion_ids.unique().tolist() == [A]
        assert rollout.logprobs.abs().max() < 1e-5                             # and certainly


# ---------------------------------------------------------------- the sampler and the trainer agree

@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_logprobs_equal_the_trainers(make_model, processor, make_prompts, temperature):
    model, prompts = make_model(stop=1.0), make_prompts()
    rollout = Sampler(model, processor, temperature, max_new_tokens=12).sample(prompts, table(3, 4, 12))
    lengths = rollout.completion_mask.sum(1)
    assert lengths.min() < lengths.max() == 12                                 # the case holds long and short ones
    ids = rollout.completions()
    rows = pack(prompts, [ids[0:4], ids[4:8], ids[8:12]])
    with torch.no_grad():
        logprobs, _ = completion_logprobs(model, rows, temperature, model.config.suppressed_token_ids)
    torch.testing.assert_close(rollout.logprobs, logprobs, atol=1e-5, rtol=0)
    assert torch.equal(rows.completion_mask, rollout.completion_mask)


def test_greedy_equals_argmax_of_forward(make_model, processor, make_prompts):
    model, prompts = make_model(seed=1, stop=1.0), make_prompts()
    rollout = Sampler(model, processor, 0.0, max_new_tokens=8).sample(prompts, table(3))
    for prompt, completion in zip(prompts, rollout.completions(), strict=True):
        ids = prompt.input_ids
        for token in completion:
            with torch.no_grad():
                logits = model(ids[None], None, prompt.pixel_values, prompt.image_grid_thw)[0, -1]
            logits[[265, 266, 267, 268, 269]] = -torch.inf
            assert logits.argmax() == token
            ids = torch.cat([ids, token[None]])


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

def test_a_sample_depends_on_seed_step_prompt_and_sample_only(make_model, processor, make_prompts):
    model, prompts = make_model(stop=1.0), make_prompts()
    sampler = Sampler(model, processor, max_new_tokens=10)
    full = sampler.sample(prompts, table([10, 11, 12], 4, 10, seed=3, step=5)).completions()
    small = sampler.sample(prompts[2:], table([12], 2, 10, seed=3, step=5)).completions()
    assert [ids.tolist() for ids in small] == [ids.tolist() for ids in full[8:10]]
    swapped = sampler.sample([prompts[1], prompts[0]], table([11, 10], 4, 10, seed=3, step=5)).completions()
    assert [ids.tolist() for ids in swapped] == [ids.tolist() for ids in [*full[4:8], *full[0:4]]]
    for changed in ({"seed": 4, "step": 5}, {"seed": 3, "step": 6}):
        again = sampler.sample(prompts, table([10, 11, 12], 4, 10, **changed)).completions()
        assert [ids.tolist() for ids in again] != [ids.tolist() for ids in full]


def test_samples_of_a_group_differ(make_model, processor, make_prompts):
    rollout = Sampler(make_model(), processor, max_new_tokens=8).sample(make_prompts()[:1], table(1, 8))
    assert len({tuple(ids.tolist()) for ids in rollout.completions()}) == 8


def test_the_directorys_generation_defaults_are_not_read(make_model, processor, make_prompts, tmp_path):
    save_policy(make_model(), processor, PromptSettings(), {}, tmp_path / "model")
    shipped = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001, "repetition_penalty": 2.0}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(shipped))
    model, loaded, _ = load_policy(tmp_path / "model", torch.float32, "cpu")
    rollout = Sampler(model, loaded, max_new_tokens=8).sample(make_prompts()[:1], table(1, 8))
    assert len({tuple(ids.tolist()) for ids in rollout.completions()}) == 8


def test_uniform_table_prefixes():
    big = table([4, 7, 9], group_size=6, length=20, seed=2, step=3)
    assert big.shape == (3, 6, 20) and big.dtype == torch.float32
    assert big.min() >= 0 and big.max() < 1
    assert torch.equal(table([7], 2, 20, seed=2, step=3), big[1:2, :2])        # prompts and samples stand alone
    assert torch.equal(table([4, 7, 9], 6, 8, seed=2, step=3), big[:, :, :8])  # so do positions
    assert len(big.flatten().unique()) > 350                                   # of 360: no row repeats another
    assert abs(big.mean().item() - 0.5) < 0.05
    for changed in ({"seed": 1, "step": 3}, {"seed": 2, "step": 4}):
        assert not torch.equal(table([4, 7, 9], 6, 20, **changed), big)


def test_sample_many_pairs_each_example_with_its_own_rollout(make_model, processor, make_prompts):
    prompts, sampler = make_prompts(), Sampler(make_model(), processor, max_new_tokens=6)
    by_two = list(sample_many(sampler, [0, 1, 2], prompts.__getitem__, 2, seed=1, batch_size=2))
    by_three = list(sample_many(sampler, [0, 1, 2], prompts.__getitem__, 2, seed=1, batch_size=3))
    assert [number for number, _ in by_two] == [0, 1, 2]
    for (_, one), (_, two) in zip(by_two, by_three, strict=True):
        assert len(one.texts) == 2 and one.texts == two.texts


# ---------------------------------------------------------------- borders

def test_prompt_longer_than_the_context_is_an_error(make_model, processor, make_prompts):
    model = make_model()
    model.config = dataclasses.replace(model.config,
                                       text=dataclasses.replace(model.config.text, max_position_embeddings=64))
    with pytest.raises(ValueError, match="context"):
        Sampler(model, processor, max_new_tokens=60).sample(make_prompts()[:1], table(1, length=60))


@pytest.mark.parametrize("settings", [{"temperature": -0.1}, {"max_new_tokens": 0}])
def test_impossible_settings_are_errors(make_model, processor, settings):
    with pytest.raises(ValueError):
        Sampler(make_model(), processor, **settings)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_broken_weights_are_a_clear_error(make_model, processor, make_prompts, temperature):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises((FloatingPointError, ValueError), match="finite|NaN|nan"):
        Sampler(model, processor, temperature, max_new_tokens=4).sample(make_prompts()[:1], table(1))


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


@pytest.mark.skipif(not can_pack(torch.device("cpu")), reason="this torch has no packed bf16 products")
def test_packed_layers_multiply_as_plain_ones(make_model, make_prompts, processor, monkeypatch):
    model, prompts, uniforms = make_model(stop=1.0), make_prompts(), table(3, 4)
    packed = Sampler(model, processor, max_new_tokens=8, dtype=torch.bfloat16)
    assert any(isinstance(layer, PackedLinear) for layer in packed.model.modules())
    monkeypatch.setattr("grpo.rollout.can_pack", lambda _: False)
    plain = Sampler(model, processor, max_new_tokens=8, dtype=torch.bfloat16)
    first, second = packed.sample(prompts, uniforms), plain.sample(prompts, uniforms)
    assert first.texts == second.texts
    torch.testing.assert_close(first.logprobs, second.logprobs, atol=0.05, rtol=0)      # bf16 rounds here and there


@pytest.mark.skipif(not can_pack(torch.device("cpu")), reason="this torch has no packed bf16 products")
def test_packed_weights_are_gone_while_the_model_trains(make_model, make_prompts, processor):
    sampler = Sampler(make_model(stop=1.0), processor, max_new_tokens=8, dtype=torch.bfloat16)
    before = sampler.sample(make_prompts(), table(3, 4))
    sampler.release()
    packed = [layer for layer in sampler.model.modules() if isinstance(layer, PackedLinear)]
    assert packed and all(layer.weight is None for layer in packed)
    sampler.refresh()
    assert torch.equal(sampler.sample(make_prompts(), table(3, 4)).logprobs, before.logprobs)



@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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


def test_the_models_own_type_needs_no_copy(make_model, processor):
    model = make_model()
    assert Sampler(model, processor, dtype=torch.float32).model is model
    assert Sampler(model, processor).model is model


def test_a_second_batch_of_the_same_shape_uses_the_same_tensors(make_model, make_prompts, processor):
    sampler, prompts = Sampler(make_model(stop=1.0), processor, max_new_tokens=8), make_prompts()
    first = sampler.sample(prompts, table(3, 4))
    bucket = sampler.bucket
    sampler.sample(list(reversed(prompts)), table([7, 8, 9], 4))                # leaves other keys behind
    assert sampler.bucket is bucket
    again = sampler.sample(prompts, table(3, 4))
    assert torch.equal(first.completion_ids, again.completion_ids) and torch.equal(first.logprobs, again.logprobs)
    sampler.sample(prompts[:2], table(2, 4))
    assert sampler.bucket is not bucket


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
    model, prompts, grids = make_model(stop=1.0), make_prompts(), []
    encode = model.image_features
    monkeypatch.setattr(model, "image_features",
                        lambda pixels, grid: (grids.append(len(grid)), encode(pixels, grid))[1])
    sampler = Sampler(model, processor, max_new_tokens=8)
    twice = sampler.sample([prompts[0], prompts[2], prompts[0]], table(3, 2))
    assert grids == [2]
    once = sampler.sample([prompts[0]], table(1, 2))
    assert twice.texts[:2] == once.texts
