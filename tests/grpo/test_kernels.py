"""The plain forms and the fast ones are the same method: `--kernels plain` and `--kernels fast` in float32."""

import pytest
import torch

from grpo.config import GRPOConfig
from grpo.engine.optimizer import freeze_copy
from grpo.engine.prompts import expert_branches
from grpo.fast import FAST
from grpo.fast.sampler import Sampler
from grpo.groups import PromptBatch
from grpo.logprobs import PLAIN, completion_logprobs
from grpo.packing import pack
from grpo.sampling import PlainSampler, uniform_table
from grpo.step import Learner, grpo_step


@pytest.fixture
def rollouts(make_model, make_prompts, processor):
    """The same draw by both samplers, at this temperature."""
    def make(temperature):
        model, uniforms = make_model(stop=1.0), uniform_table(3, 1, range(3), 5, 12)
        return [sampler(model, processor, temperature, max_new_tokens=12).sample(make_prompts(), uniforms)
                for sampler in (PlainSampler, Sampler)]
    return make


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_both_samplers_draw_the_same_ids(rollouts, temperature):
    plain, fast = rollouts(temperature)
    lengths = plain.completion_mask.sum(1)
    assert plain.completion_ids.shape[0] == 15 and lengths.min() < lengths.max()
    assert [ids.tolist() for ids in plain.completions()] == [ids.tolist() for ids in fast.completions()]
    assert torch.equal(plain.completion_mask, fast.completion_mask) and plain.texts == fast.texts
    assert torch.equal(plain.truncated, fast.truncated)
    torch.testing.assert_close(plain.logprobs, fast.logprobs, atol=1e-6, rtol=1e-6)


def test_both_kernels_score_the_same(make_model, make_prompts, rollouts):
    ids, _ = rollouts(1.0)
    rows = pack(make_prompts(), [ids.completions()[i:i + 5] for i in (0, 5, 10)])
    results = []
    for kernels in (PLAIN, FAST):
        model = make_model(stop=1.0)
        logprobs, entropy = completion_logprobs(model, rows, 0.7, (265, 268), kernels=kernels)
        (logprobs.sum() - 0.1 * entropy.sum()).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append((logprobs.detach(), entropy.detach(), gradient))
    (logprobs, entropy, gradient), (fast_logprobs, fast_entropy, fast_gradient) = results
    torch.testing.assert_close(fast_logprobs, logprobs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(fast_entropy, entropy, atol=1e-6, rtol=1e-6)
    assert (fast_gradient - gradient).norm() < 1e-5 * gradient.norm()


def test_a_step_of_both_moves_the_weights_alike(make_model, make_prompts, make_examples, make_value, processor,
                                                by_length):
    config = GRPOConfig(group_size=4, max_new_tokens=8, micro_batch_tokens=200, learning_rate=0.1, max_grad_norm=1e9,
                        beta="0.1", bc_coef="0.5", ent_coef="0.01", updates_per_rollout=2)
    results = []
    for kernels, sampler in ((PLAIN, PlainSampler), (FAST, Sampler)):
        model, batch = make_model(stop=1.0), PromptBatch(range(3), make_examples(3), make_prompts())
        optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
        learner = Learner(model, freeze_copy(make_model(seed=5, stop=1.0)), None,
                          sampler(model, processor, 1.0, 8), optimizer,
                          torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
                          experts=lambda scored: expert_branches(scored, processor, True), kernels=kernels)
        metrics, scored, _ = grpo_step(learner, lambda attempt, batch=batch: batch, by_length, config, step=0)
        results.append((metrics, scored.rollout.texts, torch.cat([p.detach().flatten() for p in model.parameters()])))
    (metrics, texts, weights), (fast_metrics, fast_texts, fast_weights) = results
    start = torch.cat([p.detach().flatten() for p in make_model(stop=1.0).parameters()])
    assert texts == fast_texts and metrics["bc_loss"] > 0 and metrics["kl"] > 0
    assert (weights - start).norm() > 1e-2
    assert (fast_weights - weights).norm() < 1e-5 * (weights - start).norm()
    for name in ("loss", "policy_loss", "kl", "entropy", "bc_loss", "grad_norm", "approx_kl"):
        assert fast_metrics[name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-6), name
