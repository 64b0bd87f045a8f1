"""Sampling: what is drawn, with which log-probability, where a completion ends; the plain and the fast sampler."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from grpo.engine.checkpoint import load_policy, save_policy
from grpo.engine.prompts import PromptSettings
from grpo.fast.sampler import Sampler
from grpo.logprobs import completion_logprobs
from grpo.packing import pack
from grpo.sampling import PlainSampler, invert_cdf, uniform_table

NEWLINE, A, B, C, PAD, STOP = 198, 64, 65, 66, 256, 258      # every prompt ends with a line break


@pytest.fixture(params=[PlainSampler, Sampler])
def sampler_of(request):
    """The plain sampler and the fast one."""
    return request.param


def table(prompts, group_size=1, length=8, seed=0, step=0):
    return uniform_table(seed, step, range(prompts) if isinstance(prompts, int) else prompts, group_size, length)


@pytest.mark.parametrize("stop", [STOP, PAD])
def test_both_stop_ids_end_a_completion_and_belong_to_it(sampler_of, chain, processor, make_prompts, stop):
    # <|endoftext|> is also the pad id: it must count where it was sampled, and only there
    sampler = sampler_of(chain(NEWLINE, A, B, stop, C, A), processor, max_new_tokens=12)
    rollout = sampler.sample(make_prompts()[:2], table(2, length=12))
    assert rollout.completion_ids.tolist() == [[A, B, stop]] * 2
    assert rollout.completion_mask.tolist() == [[True, True, True]] * 2
    assert rollout.truncated.tolist() == [False, False] and rollout.texts == ["ab", "ab"]
    assert [ids.tolist() for ids in rollout.completions()] == [[A, B, stop]] * 2


def test_no_stop_token_means_truncated(sampler_of, chain, processor, make_prompts):
    sampler = sampler_of(chain(NEWLINE, A, A), processor, max_new_tokens=5)
    rollout = sampler.sample(make_prompts()[:1], table(1, length=5))
    assert rollout.completion_ids.tolist() == [[A] * 5] and rollout.completion_mask.all()
    assert rollout.truncated.tolist() == [True] and rollout.texts == ["aaaaa"]


def test_stop_at_the_last_allowed_token_is_not_truncated(sampler_of, chain, processor, make_prompts):
    sampler = sampler_of(chain(NEWLINE, A, B, STOP), processor, max_new_tokens=3)
    rollout = sampler.sample(make_prompts()[:1], table(1, length=3))
    assert rollout.completion_ids.tolist() == [[A, B, STOP]] and rollout.truncated.tolist() == [False]


def test_everything_after_the_stop_is_masked(sampler_of, make_bigram, processor, make_prompts):
    # after a line break "a" or the stop, half each; "a" leads to the stop, and the stop would go on with "c"
    logits = torch.full((270, 270), -1000.0)
    logits[NEWLINE, [A, STOP]] = 0.0
    logits[A, B], logits[B, STOP], logits[STOP, C], logits[C, C] = 0.0, 0.0, 0.0, 0.0
    uniforms = torch.tensor([[[0.1, 0.5, 0.5, 0.5], [0.9, 0.5, 0.5, 0.5]]])
    rollout = sampler_of(make_bigram(logits), processor, max_new_tokens=4).sample(make_prompts()[:1], uniforms)
    assert rollout.completion_ids.tolist() == [[A, B, STOP], [STOP, PAD, PAD]]
    assert rollout.completion_mask.tolist() == [[True, True, True], [True, False, False]]
    assert rollout.logprobs[1].tolist() == pytest.approx([-0.693147, 0, 0], abs=1e-5)      # ln(1/2), then padding
    assert rollout.texts == ["ab", ""] and rollout.truncated.tolist() == [False, False]


def test_sampled_ids_are_kept_not_their_text(sampler_of, make_bigram, processor, make_prompts):
    # id 150 is a byte of 0x80 or more, half of a UTF-8 letter: its text is a replacement sign, which has other ids
    logits = torch.full((270, 270), -1000.0)
    logits[NEWLINE, 150], logits[150, 150], logits[150, STOP] = 0.0, -1000.0, 0.0
    rollout = sampler_of(make_bigram(logits), processor, max_new_tokens=4).sample(make_prompts()[:1], table(1))
    assert rollout.completions()[0].tolist() == [150, STOP]
    assert processor.encode_text(rollout.texts[0]) != [150]                    # the text is not enough to go back


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


def test_sampler_frequencies(sampler_of, after_newline, processor, make_prompts):
    # logits 2 1 0 at T = 1: .665241 .244728 .090031; 2,000 draws have a standard error of at most .0106
    model = after_newline({A: 2.0, B: 1.0, C: 0.0})
    rollout = sampler_of(model, processor, max_new_tokens=2).sample(make_prompts()[:1], table(1, 2000, 2))
    shares = [(rollout.completion_ids[:, 0] == token).float().mean().item() for token in (A, B, C)]
    assert shares == pytest.approx([0.665241, 0.244728, 0.090031], abs=0.03)


def test_logprobs_by_hand(sampler_of, after_newline, processor, make_prompts):
    # T = .5 draws "b" at u = .9 (.8668 is passed) and says -2.142932; T = 0 takes "a" and says its T = 1 value
    model, uniforms = after_newline({A: 2.0, B: 1.0, C: 0.0}), torch.tensor([[[0.9, 0.5]]])

    def first(temperature):
        rollout = sampler_of(model, processor, temperature, max_new_tokens=2).sample(make_prompts()[:1], uniforms)
        return rollout.completion_ids[0, 0].item(), rollout.logprobs[0, 0].item()
    assert first(0.5) == (B, pytest.approx(-2.142932, abs=1e-5))
    assert first(1.0) == (B, pytest.approx(-1.407606, abs=1e-5))               # .6652 < .9 < .9100
    assert first(0.0) == (A, pytest.approx(-0.407606, abs=1e-5))


def test_suppressed_ids_are_never_sampled(sampler_of, make_bigram, processor, make_prompts):
    # the five picture tokens are by far the likeliest, yet only "a" may come
    logits = torch.full((270, 270), -1000.0)
    logits[:, 265:270], logits[:, A] = 1000.0, 0.0
    for temperature in (1.0, 0.0):
        sampler = sampler_of(make_bigram(logits), processor, temperature, max_new_tokens=4)
        rollout = sampler.sample(make_prompts()[:1], table(1, 8))
        assert rollout.completion_ids.unique().tolist() == [A]
        assert rollout.logprobs.abs().max() < 1e-5                             # and certainly


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_logprobs_equal_the_trainers(sampler_of, make_model, processor, make_prompts, temperature):
    model, prompts = make_model(stop=1.0), make_prompts()
    rollout = sampler_of(model, processor, temperature, max_new_tokens=12).sample(prompts, table(3, 4, 12))
    lengths = rollout.completion_mask.sum(1)
    assert lengths.min() < lengths.max() == 12                                 # the case holds long and short ones
    ids = rollout.completions()
    rows = pack(prompts, [ids[0:4], ids[4:8], ids[8:12]])
    with torch.no_grad():
        logprobs, _ = completion_logprobs(model, rows, temperature, model.config.suppressed_token_ids)
    torch.testing.assert_close(rollout.logprobs, logprobs, atol=1e-5, rtol=0)
    assert torch.equal(rows.completion_mask, rollout.completion_mask)


def test_greedy_equals_argmax_of_forward(sampler_of, make_model, processor, make_prompts):
    model, prompts = make_model(seed=1, stop=1.0), make_prompts()
    rollout = sampler_of(model, processor, 0.0, max_new_tokens=8).sample(prompts, table(3))
    for prompt, completion in zip(prompts, rollout.completions(), strict=True):
        ids = prompt.input_ids
        for token in completion:
            with torch.no_grad():
                logits = model(ids[None], None, prompt.pixel_values, prompt.image_grid_thw)[0, -1]
            logits[[265, 266, 267, 268, 269]] = -torch.inf
            assert logits.argmax() == token
            ids = torch.cat([ids, token[None]])


def test_a_sample_depends_on_seed_step_prompt_and_sample_only(sampler_of, make_model, processor, make_prompts):
    model, prompts = make_model(stop=1.0), make_prompts()
    sampler = sampler_of(model, processor, max_new_tokens=10)
    full = sampler.sample(prompts, table([10, 11, 12], 4, 10, seed=3, step=5)).completions()
    small = sampler.sample(prompts[2:], table([12], 2, 10, seed=3, step=5)).completions()
    assert [ids.tolist() for ids in small] == [ids.tolist() for ids in full[8:10]]
    swapped = sampler.sample([prompts[1], prompts[0]], table([11, 10], 4, 10, seed=3, step=5)).completions()
    assert [ids.tolist() for ids in swapped] == [ids.tolist() for ids in [*full[4:8], *full[0:4]]]
    for changed in ({"seed": 4, "step": 5}, {"seed": 3, "step": 6}):
        again = sampler.sample(prompts, table([10, 11, 12], 4, 10, **changed)).completions()
        assert [ids.tolist() for ids in again] != [ids.tolist() for ids in full]


def test_samples_of_a_group_differ(sampler_of, make_model, processor, make_prompts):
    rollout = sampler_of(make_model(), processor, max_new_tokens=8).sample(make_prompts()[:1], table(1, 8))
    assert len({tuple(ids.tolist()) for ids in rollout.completions()}) == 8


def test_the_directorys_generation_defaults_are_not_read(sampler_of, make_model, processor, make_prompts, tmp_path):
    save_policy(make_model(), processor, PromptSettings(), {}, tmp_path / "model")
    shipped = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001, "repetition_penalty": 2.0}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(shipped))
    model, loaded, _ = load_policy(tmp_path / "model", torch.float32, "cpu")
    rollout = sampler_of(model, loaded, max_new_tokens=8).sample(make_prompts()[:1], table(1, 8))
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


def test_prompt_longer_than_the_context_is_an_error(sampler_of, make_model, processor, make_prompts):
    model = make_model()
    model.config = dataclasses.replace(model.config,
                                       text=dataclasses.replace(model.config.text, max_position_embeddings=64))
    with pytest.raises(ValueError, match="context"):
        sampler_of(model, processor, max_new_tokens=60).sample(make_prompts()[:1], table(1, length=60))


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_broken_weights_are_a_clear_error(sampler_of, make_model, processor, make_prompts, temperature):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises((FloatingPointError, ValueError), match="finite|NaN|nan"):
        sampler_of(model, processor, temperature, max_new_tokens=4).sample(make_prompts()[:1], table(1))
