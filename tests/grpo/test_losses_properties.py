"""What holds for every loss: finite differences, masks, permutations, extremes, and what is refused."""

import math

import pytest
import torch

from grpo.losses import (
    AGGREGATION,
    aggregate,
    group_advantages,
    kl_penalty,
    leave_one_out_advantages,
    policy_loss,
    value_loss,
)

NAN, INF = float("nan"), float("inf")


def probs(rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def floats(metrics):
    return {name: value.item() for name, value in metrics.items()}


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def toy_batch():
    """4 rows of different lengths, one of them empty, ratios inside and outside every clip range."""
    generator = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(4, 6, generator=generator, dtype=torch.float64) - 0.05
    new = (old + 0.35 * torch.randn(4, 6, generator=generator, dtype=torch.float64)).clamp(max=-0.01)
    mask = torch.arange(6) < torch.tensor([[6], [2], [0], [5]])
    advantages = torch.tensor([1.3, -0.7, 0.9, -0.4], dtype=torch.float64)
    return new.requires_grad_(), old, advantages, mask


def numeric_gradient(value, point):
    step, slopes = 1e-6, torch.zeros_like(point)
    with torch.no_grad():
        for i in range(point.numel()):
            bump = torch.zeros(point.numel(), dtype=point.dtype).index_fill_(0, torch.tensor([i]), step).view_as(point)
            slopes.view(-1)[i] = (value(point + bump) - value(point - bump)) / (2 * step)
    return slopes


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [1.7, 0.1, 1e-8, 3e5, -2.3])
def test_flat_group_is_exactly_zero_even_with_a_tiny_eps(scale, value):
    for size, dtype in ((8, torch.float32), (3, torch.float64)):  # the mean of three 0.1 comes out as 0.1 + 1.4e-17
        rewards = torch.tensor([[value] * size, [1.0] + [0.0] * (size - 1)], dtype=dtype)
        got = group_advantages(rewards, scale=scale, eps=1e-20)
        assert got[0].tolist() == [0.0] * size and torch.isfinite(got).all() and got.dtype == dtype
        assert leave_one_out_advantages(rewards)[0].tolist() == [0.0] * size


def test_permuting_a_group_permutes_its_advantages():
    rewards, order = torch.tensor([[0.3, 2.1, 0.9, 0.9]]), [2, 0, 3, 1]
    torch.testing.assert_close(group_advantages(rewards[:, order]), group_advantages(rewards)[:, order])


def test_extreme_rewards_stay_finite():
    # std of 1, -1, 0 times 1e30 is sqrt(2 / 2) * 1e30; its square does not fit into float32
    assert group_advantages(torch.tensor([[1e30, -1e30, 0.0]])).tolist() == [[1.0, -1.0, 0.0]]
    assert torch.isfinite(group_advantages(torch.tensor([[1e-30, 0.0]]))).all()


@pytest.mark.parametrize("function", [group_advantages, leave_one_out_advantages])
@pytest.mark.parametrize("bad", [None, NAN, INF])
def test_missing_reward_is_named_by_index(function, bad):
    with pytest.raises(ValueError, match="prompt 1, completion 2"):
        function([[0, 1, 2], [0, 1, bad]])


def test_whole_numbers_and_rewards_with_a_graph():
    # integers: mean .5, half the gap .5; leave-one-out 1 - 0
    for function, want in ((lambda r: group_advantages(r, scale="none"), 0.5), (leave_one_out_advantages, 1.0)):
        assert function(torch.tensor([[1, 0]])).tolist() == [[want, -want]]
        assert not function(torch.tensor([[1.0, 0.0]], requires_grad=True)).requires_grad


def test_wrong_shapes_and_names_of_advantages():
    with pytest.raises(ValueError, match="group size"):
        group_advantages(torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="scale 'std'"):
        group_advantages(torch.tensor([[1.0, 2.0]]), scale="std")


def test_aggregate_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="max_length"):
        aggregate(torch.ones(1, 1), ones(1, 1), "fixed_length")
    with pytest.raises(ValueError, match="'mean'"):
        aggregate(torch.ones(1, 1), ones(1, 1), "mean")
    with pytest.raises(ValueError, match="mask has shape"):
        aggregate(torch.ones(2, 3), ones(2, 1), "token_mean")


@pytest.mark.parametrize("variant", AGGREGATION)
def test_micro_batches_add_up(variant):
    denominator = {"sequence_mean": 3, "token_mean": 13, "fixed_length": 3 * 6}[AGGREGATION[variant]]
    new, old, advantages, mask = toy_batch()
    whole, metrics = policy_loss(new, old, advantages, mask, variant, max_length=6)
    whole.backward()
    whole_grad, new.grad = new.grad, None
    loss, sums = 0.0, dict.fromkeys(metrics, 0.0)
    for part in (slice(0, 1), slice(1, 3), slice(3, 4)):
        share, parts = policy_loss(new[part], old[part], advantages[part], mask[part], variant, max_length=6,
                                   denominator=denominator)
        share.backward()
        loss += share.item()
        sums = {name: sums[name] + value.item() for name, value in parts.items()}
    assert loss == pytest.approx(whole.item(), abs=1e-12)
    torch.testing.assert_close(new.grad, whole_grad, atol=1e-12, rtol=0)
    assert sums == pytest.approx(floats(metrics), abs=1e-12)


@pytest.mark.parametrize("variant", AGGREGATION)
@pytest.mark.parametrize("delta", [None, 1.3])
def test_gradient_equals_finite_differences(variant, delta):
    new, old, advantages, mask = toy_batch()

    def value(logprobs):
        if variant == "cispo":                                                  # its weight is a constant
            weight = (new.detach() - old).exp().clamp(0.8, 1.2)
            return -(weight * logprobs * advantages[:, None])[mask].sum() / 13
        return policy_loss(logprobs, old, advantages, mask, variant, max_length=6, delta=delta)[0]

    policy_loss(new, old, advantages, mask, variant, max_length=6, delta=delta)[0].backward()
    step, numeric = 1e-6, torch.zeros_like(new)
    with torch.no_grad():
        for i in range(new.numel()):
            bump = torch.zeros_like(new).flatten().index_fill_(0, torch.tensor([i]), step).view_as(new)
            numeric.view(-1)[i] = (value(new + bump) - value(new - bump)) / (2 * step)
    assert numeric.abs().max() > 0.01
    torch.testing.assert_close(new.grad, numeric, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("variant", AGGREGATION)
def test_padding_changes_nothing_and_gets_no_gradient(variant):
    new, old, advantages, mask = toy_batch()
    loss, metrics = policy_loss(new, old, advantages, mask, variant, max_length=6)
    for garbage in (NAN, INF, -INF, 100.0):
        dirty = torch.cat([new.detach(), torch.zeros(4, 3, dtype=torch.float64)], 1)
        wide_mask = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], 1)
        dirty = dirty.masked_fill(~wide_mask, garbage).requires_grad_()
        wide_old = torch.cat([old, torch.zeros(4, 3, dtype=torch.float64)], 1).masked_fill(~wide_mask, -garbage)
        wide, wide_metrics = policy_loss(dirty, wide_old, advantages, wide_mask, variant, max_length=6)
        wide.backward()
        assert wide.item() == pytest.approx(loss.item(), abs=1e-12)
        assert floats(wide_metrics) == pytest.approx(floats(metrics))
        assert dirty.grad[~wide_mask].eq(0).all() and torch.isfinite(dirty.grad).all()


@pytest.mark.parametrize("variant", AGGREGATION)
@pytest.mark.parametrize("gap", [100.0, -100.0, 1e4])
def test_extreme_gaps_stay_finite(variant, gap):
    for advantage in (1.0, -1.0):
        new = torch.full((2, 3), -1.0 - max(-gap, 0), requires_grad=True)
        old = torch.full((2, 3), -1.0 - max(gap, 0))
        loss, metrics = policy_loss(new, old, torch.full((2,), advantage), ones(2, 3), variant, max_length=3)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(new.grad).all()
        assert all(torch.isfinite(value) for value in metrics.values())
        # the log-ratio stops at +-20, even for a product of three: exp(20) = 4.851652e8, exp(-20) = 2.061154e-9
        assert metrics["ratio"].item() == pytest.approx(4.851652e8 if gap > 0 else 2.061154e-9, rel=1e-5)


@pytest.mark.parametrize("variant", ["ppo", "grpo", "dapo", "dr_grpo", "gspo", "sequence"])
def test_on_policy_loss_is_zero_but_its_gradient_is_not(variant):
    logprobs = torch.full((2, 4), -1.5, requires_grad=True)
    advantages = group_advantages([[1.0, 0.0]]).flatten()
    loss, metrics = policy_loss(logprobs, None, advantages, ones(2, 4), variant, max_length=4)
    loss.backward()
    assert abs(loss.item()) < 1e-7 and logprobs.grad.abs().min() > 0.05
    assert metrics["clip_frac"].item() == 0 and metrics["approx_kl"].item() == 0 and metrics["ratio"].item() == 1


@pytest.mark.parametrize("variant", AGGREGATION)
def test_old_logprobs_and_advantages_are_constants_and_inputs_stay_as_they_were(variant):
    new, old, advantages, mask = toy_batch()
    old, advantages = old.requires_grad_(), advantages.requires_grad_()
    before = [tensor.detach().clone() for tensor in (new, old, advantages, mask)]
    loss, metrics = policy_loss(new, old, advantages, mask, variant, max_length=6)
    loss.backward()
    assert old.grad is None and advantages.grad is None and new.grad is not None
    assert not any(value.requires_grad for value in metrics.values())
    for tensor, copy in zip((new, old, advantages, mask), before, strict=True):
        assert torch.equal(tensor.detach(), copy)


def test_second_update_sees_a_ratio_other_than_one():
    logprobs = torch.full((2, 2), -1.0, requires_grad=True)
    old, advantages = logprobs.detach().clone(), torch.tensor([1.0, -1.0])
    optimizer = torch.optim.SGD([logprobs], lr=0.1)
    ratios = []
    for _ in range(2):
        loss, _ = policy_loss(logprobs, old, advantages, ones(2, 2), "grpo")
        loss.backward()
        ratios.append((logprobs.detach() - old).exp())
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(ratios[0], torch.ones(2, 2)) and (ratios[1][0] > 1).all() and (ratios[1][1] < 1).all()


def test_one_advantage_per_token_equals_one_per_row():
    new, old, advantages, mask = toy_batch()
    per_row, _ = policy_loss(new, old, advantages, mask, "ppo")
    per_token, _ = policy_loss(new, old, advantages[:, None].repeat(1, 6).masked_fill(~mask, NAN), mask, "ppo")
    per_token.backward()
    assert per_row.item() == per_token.item() and torch.isfinite(new.grad).all()


@pytest.mark.parametrize("variant", AGGREGATION)
def test_a_batch_without_tokens_gives_zero(variant):
    new = torch.full((2, 3), NAN, requires_grad=True)
    loss, metrics = policy_loss(new, new.detach(), torch.ones(2), ~ones(2, 3), variant, max_length=3)
    loss.backward()
    assert loss.item() == 0 and new.grad.eq(0).all() and all(value.item() == 0 for value in metrics.values())


@pytest.mark.parametrize(("settings", "message"), [
    ({"variant": "trpo"}, "unknown variant 'trpo'"), ({"variant": "dr_grpo"}, "max_length"),
    ({"clip_low": -0.1}, "negative"), ({"delta": 1.1}, "above 1"), ({"mask": ones(3, 6)}, "mask has shape"),
    ({"old_logprobs": torch.zeros(4, 5)}, "old_logprobs has shape"),
    ({"advantages": torch.zeros(3)}, r"advantages have shape \(3,\), expected \(4,\) or \(4, 6\)"),
    ({"advantages": torch.zeros(4, 6), "variant": "gspo"}, r"shape \(4, 6\), expected \(4,\) for this variant"),
])
def test_policy_loss_refuses(settings, message):
    new, old, advantages, mask = toy_batch()
    arguments = {"logprobs": new, "old_logprobs": old, "advantages": advantages, "mask": mask}
    with pytest.raises(ValueError, match=message):
        policy_loss(**{**arguments, **settings})


def test_expected_gradient_of_the_estimators():
    # pi = (.8, .2), ref = (.5, .5): KL = .8 ln 1.6 + .2 ln .4 = .192745.
    # dKL/dz0 = pi0 (ln(pi0 / ref0) - KL) = .8 (.470004 - .192745) = .221807
    # k3 gives dKL(ref || pi)/dz0 = pi0 - ref0 = .3, k1 gives 0
    ref = probs([[0.5, 0.5]])
    want = {("k1", False): 0.0, ("k2", False): 0.221807, ("k3", False): 0.3, ("k3", True): 0.221807}
    for (estimator, weighted), slope in want.items():
        logits = probs([[0.8, 0.2]]).requires_grad_()
        logprobs = logits.log_softmax(1)
        ratio = (logprobs - logprobs.detach()).exp() if weighted else None
        kl = kl_penalty(logprobs, ref, estimator, ratio)
        (kl * logprobs.detach().exp()).sum().backward()                         # expectation over samples of pi
        assert logits.grad[0].tolist() == pytest.approx([slope, -slope], abs=1e-6), estimator

    def true_kl(first_logit):
        logprobs = torch.stack([first_logit, torch.tensor(0.2, dtype=torch.float64).log()]).log_softmax(0)
        return (logprobs.exp() * (logprobs - math.log(0.5))).sum()

    first, step = torch.tensor(0.8, dtype=torch.float64).log(), 1e-6
    assert true_kl(first).item() == pytest.approx(0.192745, abs=1e-6)
    assert ((true_kl(first + step) - true_kl(first - step)) / (2 * step)).item() == pytest.approx(0.221807, abs=1e-6)


def test_k3_is_never_negative_and_never_overflows():
    gaps = torch.tensor([[-1e4, -100.0, -1e-3, 0.0, 1e-3, 5.0, 100.0, 1e4]])
    logprobs = torch.full_like(gaps, -1.0).requires_grad_()
    kl = kl_penalty(logprobs, logprobs.detach() + gaps)
    kl.sum().backward()
    assert (kl >= 0).all() and torch.isfinite(kl).all() and torch.isfinite(logprobs.grad).all()
    assert logprobs.grad[0, 0].item() == 1.0                                    # far more likely now: still held back


def test_masked_overflow_leaves_no_trace():
    logprobs = torch.tensor([[-1.0, -101.0]], requires_grad=True)
    kl = kl_penalty(logprobs, torch.tensor([[-1.5, -1.0]]))
    aggregate(kl, torch.tensor([[True, False]]), "token_mean").backward()
    assert logprobs.grad.tolist()[0] == pytest.approx([0.393469, 0.0], abs=1e-6)


def test_unknown_estimator():
    with pytest.raises(ValueError, match="'k4'"):
        kl_penalty(torch.zeros(1, 1), torch.zeros(1, 1), "k4")


def test_value_loss_moves_the_values_alone_and_never_computes_with_padding():
    values, old, returns = (torch.tensor([[1.0, fill]], requires_grad=True) for fill in (NAN, INF, NAN))
    with torch.autograd.set_detect_anomaly(True):            # raises where a NaN is on its way to a gradient
        value_loss(values, old, returns * 1.0, torch.tensor([[True, False]]), clip=0.5).backward()
    assert old.grad is None and returns.grad is None and torch.isfinite(values.grad).all()


@pytest.mark.parametrize("variant", ["reinforce", "ppo", "grpo", "dapo", "dr_grpo"])
def test_gradient_with_one_advantage_per_token(variant):
    new, old, _, mask = toy_batch()
    advantages = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(logprobs):
        return policy_loss(logprobs, old, advantages, mask, variant, max_length=6)[0]

    value(new).backward()
    torch.testing.assert_close(new.grad, numeric_gradient(value, new.detach()), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("weighted", [False, True])
def test_kl_gradient_equals_finite_differences(estimator, weighted):
    new, ref, _, mask = toy_batch()
    old = new.detach() - 0.1

    def value(logprobs):
        ratio = (logprobs - old).exp() if weighted else None
        return aggregate(kl_penalty(logprobs, ref, estimator, ratio), mask, "sequence_mean")

    value(new).backward()
    torch.testing.assert_close(new.grad, numeric_gradient(value, new.detach()), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_gradient_equals_finite_differences(clip):
    values, old, _, mask = toy_batch()
    returns = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(guess):
        return value_loss(guess, old, returns, mask, clip)

    value(values).backward()
    assert values.grad.abs().max() > 0.01
    torch.testing.assert_close(values.grad, numeric_gradient(value, values.detach()), atol=1e-8, rtol=1e-6)
