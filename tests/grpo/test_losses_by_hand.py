"""The loss page against values worked out by hand."""

import math

import pytest
import torch

from grpo.losses import (
    aggregate,
    gae,
    group_advantages,
    kl_penalty,
    leave_one_out_advantages,
    policy_loss,
    sequence_ratio,
    value_loss,
)

NAN, INF = float("nan"), float("inf")


def probs(rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def floats(metrics):
    return {name: value.item() for name, value in metrics.items()}


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def test_group_advantages_by_hand():
    # r = 1 0 0 1: mean .5, deviations +-.5, ddof 1: std = sqrt(4 * .25 / 3) = .577350; .5 / (.577350 + .0001) = .865875
    # r = 3.4 1.8 1.8 .8: mean 1.95, deviations 1.45 -.15 -.15 -1.15, squares sum 3.47, std = sqrt(3.47 / 3) = 1.075484
    #   1.45 / 1.075584 = 1.348104; .15 / 1.075584 = .139459; 1.15 / 1.075584 = 1.069186
    got = group_advantages(torch.tensor([[1.0, 0, 0, 1], [3.4, 1.8, 1.8, 0.8]]))
    want = [[0.865875, -0.865875, -0.865875, 0.865875], [1.348104, -0.139459, -0.139459, -1.069186]]
    torch.testing.assert_close(got, torch.tensor(want), atol=2e-6, rtol=0)


def test_group_advantages_without_scaling():
    got = group_advantages(torch.tensor([[1.0, 0, 0, 1]]), scale="none")
    assert got.tolist() == [[0.5, -0.5, -0.5, 0.5]]


def test_group_advantages_scaled_by_the_batch():
    # all rewards 0 2 4 6: mean 3, squares 9 1 1 9 = 20, std = sqrt(20 / 3) = 2.581989; deviation in each group +-1
    got = group_advantages(torch.tensor([[0.0, 2], [4, 6]]), scale="batch")     # 1 / 2.582089 = .387283
    torch.testing.assert_close(got, torch.tensor([[-0.387283, 0.387283], [-0.387283, 0.387283]]), atol=2e-6, rtol=0)


def test_two_completions_lose_the_size_of_the_gap():
    # std of (0, g) with ddof 1 is g / sqrt 2: A = (g / 2) / (g / sqrt 2 + .0001); g = .001: .0005 / .00080711 = .6195
    got = group_advantages(torch.tensor([[0.0, 1.0], [0.0, 9.0], [0.0, 0.001]]))
    assert got[0].tolist() == pytest.approx([-0.70701, 0.70701], abs=1e-5)
    assert got[1].tolist() == pytest.approx([-0.70710, 0.70710], abs=1e-5)
    assert got[2].tolist() == pytest.approx([-0.6195, 0.6195], abs=1e-4)


def test_leave_one_out_by_hand():
    # r = 1 2 6: 1 - (2 + 6) / 2 = -3; 2 - 7 / 2 = -1.5; 6 - 3 / 2 = 4.5
    assert leave_one_out_advantages(torch.tensor([[1.0, 2, 6]])).tolist() == [[-3.0, -1.5, 4.5]]


def test_group_of_one():
    for function in (group_advantages, leave_one_out_advantages):
        with pytest.raises(ValueError, match="group of 1"):
            function(torch.tensor([[1.0]]))
    for scale in ("batch", "none"):
        assert group_advantages(torch.tensor([[1.0], [2.0]]), scale=scale).tolist() == [[0.0], [0.0]]
    assert group_advantages(torch.tensor([[1.0]]), scale="batch").tolist() == [[0.0]]


def test_gae_by_hand():
    # gamma .9, lam .5. Row 0: V 1 2 3, r 0 0 1.
    #   t2: 1 + 0 - 3 = -2;  t1: 0 + .9 * 3 - 2 = .7, A = .7 - .45 * 2 = -.2;  t0: .9 * 2 - 1 = .8, A = .8 - .09 = .71
    # Row 1 has 2 tokens: t1: 1 - 2 = -1;  t0: .9 * 2 - 1 = .8, A = .8 - .45 = .35; garbage behind them.
    values = torch.tensor([[1.0, 2, 3], [1, 2, NAN]], requires_grad=True)
    rewards = torch.tensor([[0.0, 0, 1], [0, 1, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.71, -0.2, -2], [0.35, -1, 0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.71, 1.8, 1], [1.35, 1, 0]]))
    assert not advantages.requires_grad and not returns.requires_grad
    # a gap inside the mask is skipped: the same numbers as in row 0
    values, rewards = torch.tensor([[1.0, 2, 9, 3]]), torch.tensor([[0.0, 0, 9, 1]])
    advantages, _ = gae(rewards, values, torch.tensor([[True, True, False, True]]), gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.71, -0.2, 0, -2]]))


def test_aggregation_of_a_short_and_a_long_answer():
    # lengths 2 and 8, A = +1 and -1, ratio 1, so -A per token.  grpo: (-1 + 1) / 2 = 0;  dapo: (-2 + 8) / 10 = .6
    # dr_grpo with 16: 6 / 32 = .1875; reinforce and cispo carry logp = -1: (2 - 8) / 10 = -.6
    # Weight of one token: grpo 1/(2*2), 1/(2*8); dapo 1/10; dr_grpo 1/32
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    advantages = torch.tensor([1.0, -1.0])
    for variant, value, short, long in [
            ("grpo", 0.0, 0.25, 0.0625), ("dapo", 0.6, 0.1, 0.1), ("dr_grpo", 0.1875, 0.03125, 0.03125),
            ("ppo", 0.6, 0.1, 0.1), ("cispo", -0.6, 0.1, 0.1), ("reinforce", -0.6, 0.1, 0.1),
            ("gspo", 0.0, 0.25, 0.0625), ("sequence", 0.0, 0.5, 0.5)]:  # a product moves with every token
        logprobs = torch.full((2, 8), -1.0, requires_grad=True)
        loss, _ = policy_loss(logprobs, logprobs.detach(), advantages, mask, variant, max_length=16)
        loss.backward()
        assert logprobs.grad[0, 0].item() == pytest.approx(-short) and logprobs.grad[1, 0].item() == pytest.approx(long)
        assert logprobs.grad[0, 2:].abs().max() == 0
        assert loss.item() == pytest.approx(value, abs=1e-6)


def test_aggregate_by_hand_and_empty_rows_do_not_count():
    values = torch.tensor([[1.0, 3.0], [8.0, NAN], [INF, NAN]])
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    assert aggregate(values, mask, "sequence_mean").item() == 5.0               # (2 + 8) / 2
    assert aggregate(values, mask, "token_mean").item() == 4.0                  # 12 / 3
    assert aggregate(values, mask, "fixed_length", max_length=4).item() == 1.5  # 12 / (2 * 4)
    assert aggregate(values, mask, "sequence_mean", denominator=5).item() == 2.0
    assert aggregate(values, mask, "token_mean", denominator=torch.tensor(6)).item() == 2.0
    assert aggregate(values, mask, "fixed_length", denominator=24).item() == 0.5
    for how in ("sequence_mean", "token_mean", "fixed_length"):
        assert aggregate(values, torch.zeros_like(mask), how, max_length=4).item() == 0.0
        assert aggregate(values, torch.zeros_like(mask), how, max_length=4, denominator=0).item() == 0.0


def test_mean_of_micro_means_would_be_wrong():
    # the two rows of the aggregation test alone: -1 and +1, whose mean 0 is not the batch's .6
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    values = torch.tensor([[-1.0], [1.0]]).expand(2, 8)
    parts = [aggregate(values[i:i + 1], mask[i:i + 1], "token_mean").item() for i in range(2)]
    shares = [aggregate(values[i:i + 1], mask[i:i + 1], "token_mean", denominator=10).item() for i in range(2)]
    assert parts == [-1.0, 1.0] and sum(shares) == pytest.approx(0.6)


@pytest.mark.parametrize(("advantage", "ratio", "settings", "value", "slope"), [
    (1, 0.5, {}, 0.5, 1), (1, 2, {}, 1.2, 0), (-1, 0.5, {}, -0.8, 0), (-1, 2, {}, -2, -1),
    (-1, 2, {"delta": 1.5}, -1.5, 0), (-1, 1.4, {"delta": 1.5}, -1.4, -1), (1, 2, {"delta": 1.5}, 1.2, 0),
    (1, 1.25, {"clip_high": 0.28}, 1.25, 1), (1, 1.25, {}, 1.2, 0), (-1, 0.75, {"clip_low": 0.3}, -0.75, -1),
])
@pytest.mark.parametrize("variant", ["ppo", "grpo", "dapo", "dr_grpo", "gspo", "sequence"])
def test_clip_table(variant, advantage, ratio, settings, value, slope):
    # one token, so every aggregation and both sequence ratios agree: loss = -J, dloss/dlogp = -dJ/dr * r
    new = torch.tensor([[math.log(ratio) - 5]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-5.0]], dtype=torch.float64)
    advantages = torch.tensor([float(advantage)])
    loss, metrics = policy_loss(new, old, advantages, ones(1, 1), variant, max_length=1, **settings)
    loss.backward()
    assert loss.item() == pytest.approx(-value) and new.grad.item() == pytest.approx(-slope * ratio)
    assert metrics["clip_frac"].item() == (slope == 0) and metrics["ratio"].item() == pytest.approx(ratio)


def test_metrics_by_hand():
    # Row 0, A = +1: ratios .75 / .5 = 1.5 (cut above) and 1; k3(old || new) = r - 1 - ln r: .5 - .405465 = .094535, 0
    # Row 1, A = -1: one token, .25 / .5 = .5 (cut below); k3 = -.5 + .693147 = .193147
    # sequence mean: loss = (-(1.2 + 1) / 2 + .8) / 2 = -.15; token mean: (-1.2 - 1 + .8) / 3 = -.466667
    new, old = probs([[0.75, 0.5], [0.25, 0.9]]), probs([[0.5, 0.5], [0.5, 0.1]])
    mask, advantages = torch.tensor([[True, True], [True, False]]), torch.tensor([1.0, -1.0])
    loss, metrics = policy_loss(new, old, advantages, mask, "grpo")
    assert loss.item() == pytest.approx(-0.15)
    want = {"clip_frac": 0.75, "clip_low_frac": 0.5, "clip_high_frac": 0.25, "ratio": 0.875, "approx_kl": 0.120207}
    assert floats(metrics) == pytest.approx(want, abs=1e-6)
    loss, metrics = policy_loss(new, old, advantages, mask, "dapo")
    assert loss.item() == pytest.approx(-0.466667, abs=1e-6)
    want = {"clip_frac": 2 / 3, "clip_low_frac": 1 / 3, "clip_high_frac": 1 / 3, "ratio": 1.0, "approx_kl": 0.095894}
    assert floats(metrics) == pytest.approx(want, abs=1e-6)


def test_reinforce_and_cispo_by_hand():
    # reinforce, p .5 and .25 with A = 2: -2 * (ln .5 + ln .25) / 2 = 2.079442; gradient -A / tokens = -1 each
    new = probs([[0.5, 0.25]]).requires_grad_()
    loss, metrics = policy_loss(new, probs([[0.1, 0.9]]), torch.tensor([2.0]), ones(1, 2), "reinforce")
    loss.backward()
    assert loss.item() == pytest.approx(2.079442, abs=1e-6) and new.grad.tolist() == [[-1.0, -1.0]]
    assert metrics["clip_frac"].item() == 0
    # cispo, ratio .5 / .25 = 2 -> weight 1.2: loss -1.2 * ln .5 = .831777, gradient -1.2 although it is clipped; 3 x;
    # ratio .25 / .5 -> weight .8: -.8 * ln .25 = 1.109035;  ratio 1: -ln .3 = 1.203973;  sum 4.808338, a fifth .961668
    new = probs([[0.5, 0.5, 0.5, 0.25, 0.3]]).requires_grad_()
    loss, metrics = policy_loss(new, probs([[0.25, 0.25, 0.25, 0.5, 0.3]]), torch.tensor([1.0]), ones(1, 5), "cispo")
    loss.backward()
    assert loss.item() == pytest.approx(0.961668, abs=1e-6)
    assert new.grad.tolist()[0] == pytest.approx([-0.24, -0.24, -0.24, -0.16, -0.2])
    assert [metrics["clip_low_frac"].item(), metrics["clip_high_frac"].item()] == pytest.approx([0.2, 0.6])


def test_sequence_ratios_over_a_hundred_tokens():
    # 100 tokens that moved by .01: product exp(1) = 2.718282, GSPO exp(.01) = 1.010050. 20 paddings stay outside |o|.
    # Without clipping dw/dlogp_t = w (product) and w / 100 (mean).
    mask = torch.arange(120)[None] < 100
    for variant, ratio, slope in (("sequence", 2.718282, 2.718282), ("gspo", 1.010050, 0.01010050)):
        new = torch.full((1, 120), -0.99, dtype=torch.float64, requires_grad=True)
        loss, metrics = policy_loss(new, torch.full_like(new, -1.0), torch.tensor([1.0]), mask, variant, clip_high=9.0)
        loss.backward()
        assert [-loss.item(), metrics["ratio"].item()] == pytest.approx([ratio, ratio], abs=1e-6)
        assert new.grad[0, 99].item() == pytest.approx(-slope, abs=1e-6) and new.grad[0, 100:].abs().max() == 0
    clipped, metrics = policy_loss(new, torch.full_like(new, -1.0), torch.tensor([1.0]), mask, "sequence")
    assert clipped.item() == pytest.approx(-1.2) and metrics["clip_high_frac"].item() == 1.0


def test_masking_a_truncated_row_leaves_the_baseline_of_its_group():
    # rewards 1 1 0 (the last one truncated): mean 2/3 over all three, so the others keep A = +1/3 after masking
    advantages = group_advantages([[1.0, 1.0, 0.0]], scale="none").flatten()
    mask = torch.tensor([[True], [True], [False]])
    loss, _ = policy_loss(torch.full((3, 1), -1.0), None, advantages, mask, "grpo")
    assert loss.item() == pytest.approx(-1 / 3)


@pytest.mark.parametrize(("estimator", "value", "slope"), [("k1", 0.5, 1.0), ("k2", 0.125, 0.5),
                                                           ("k3", 0.106531, 0.393469)])
def test_kl_values_by_hand(estimator, value, slope):
    # logp -1, ref -1.5, d = -.5: k1 .5; k2 .125; k3 exp(-.5) + .5 - 1 = .106531, slope 1 - exp(-.5) = .393469
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    ref = torch.tensor([[-1.5]], requires_grad=True)
    kl = kl_penalty(logprobs, ref, estimator)
    kl.sum().backward()
    assert kl.item() == pytest.approx(value, abs=1e-6) and logprobs.grad.item() == pytest.approx(slope, abs=1e-6)
    assert ref.grad is None


def test_flat_group_still_feels_the_kl_penalty():
    logprobs = torch.full((2, 2), -1.0, requires_grad=True)
    advantages = group_advantages([[1.7, 1.7]]).flatten()
    loss, _ = policy_loss(logprobs, None, advantages, ones(2, 2), "grpo")
    loss.backward()
    assert loss.item() == 0 and logprobs.grad.eq(0).all()                       # beta 0: nothing to learn
    kl = aggregate(kl_penalty(logprobs, torch.full((2, 2), -1.5)), ones(2, 2), "sequence_mean")
    (0.1 * kl).backward()                                                       # .1 * .393469 / 4 tokens
    torch.testing.assert_close(logprobs.grad, torch.full((2, 2), 0.0098367), atol=1e-6, rtol=0)


def test_value_loss_by_hand():
    # V 1, old 0, R 2, clip .5: max((1 - 2)^2, (.5 - 2)^2) = 2.25 and no gradient;  V .2, old 0, R 0: .04, not clipped
    # 0.5 * (2.25 + .04) / 2 = .5725;  without the clip .5 * (1 + .04) / 2 = .26;  tokens of the whole batch 4: .28625
    values = torch.tensor([[1.0, 0.2, NAN]], requires_grad=True)
    old, returns = torch.tensor([[0.0, 0.0, INF]]), torch.tensor([[2.0, 0.0, NAN]])
    mask = torch.tensor([[True, True, False]])
    loss = value_loss(values, old, returns, mask, clip=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(0.5725) and values.grad.tolist()[0] == pytest.approx([0.0, 0.1, 0.0])
    assert value_loss(values, old, returns, mask, clip=None).item() == pytest.approx(0.26)
    assert value_loss(values, old, returns, mask, clip=0.5, denominator=4).item() == pytest.approx(0.28625)
    # V -1, old 0, R -2: (-.5 + 2)^2 = 2.25;  V .5, old .2, R 0: moved by .3, not clipped, .25.  0.5 * 2.5 / 2 = .625
    values, old = torch.tensor([[-1.0, 0.5]]), torch.tensor([[0.0, 0.2]])
    assert value_loss(values, old, torch.tensor([[-2.0, 0.0]]), ones(1, 2), clip=0.5).item() == pytest.approx(0.625)


def test_an_empty_row_has_the_ratio_of_an_unchanged_one():
    for mean in (True, False):
        assert sequence_ratio(torch.zeros(1, 2), ~ones(1, 2), mean).item() == 1.0


def test_the_group_of_four_in_the_documents():
    # rewards 2.44 2.44 1.8 0: mean 1.67, squares .5929 .5929 .0169 2.7889 = 3.9916, std = sqrt(3.9916 / 3) = 1.153488
    # A = .77 .77 .13 -1.67 over 1.153588 = .667483 .667483 .112692 -1.447658
    advantages = group_advantages([[2.44, 2.44, 1.8, 0.0]])[0].double()
    assert advantages.tolist() == pytest.approx([0.667483, 0.667483, 0.112692, -1.447658], abs=2e-6)
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
    old = probs([[0.50, 0.4], [0.5, 1.0], [0.25, 0.8], [0.2, 1.0]])
    new = probs([[0.65, 0.4], [0.5, 1.0], [0.25, 0.8], [0.3, 1.0]]).requires_grad_()
    # per token: -.667483 * 1.2 (1.3 is cut) and -.667483; -.667483; -.112692 twice; 1.447658 * 1.5
    # answers: -.734231 -.667483 -.112692 2.171487, mean .164270; k3 .031595 / 2 and .072132, mean .021982
    loss, metrics = policy_loss(new, old, advantages, mask)
    kl = aggregate(kl_penalty(new, old), mask, "sequence_mean")
    (loss + 0.04 * kl).backward()
    assert [loss.item(), kl.item(), metrics["clip_frac"].item()] == pytest.approx([0.164270, 0.021982, 0.125], abs=1e-6)
    # slopes: .04 (1 - .769231) / 8 of the cut token; -.667483 / 8; -.667483 / 4; -.112692 / 8 twice;
    # 1.5 * 1.447658 / 4 + .04 (1 - .666667) / 4 = .542872 + .003333
    want = [[0.001154, -0.083435], [-0.166871, 0.0], [-0.014087, -0.014087], [0.546205, 0.0]]
    torch.testing.assert_close(new.grad, torch.tensor(want, dtype=torch.float64), atol=2e-6, rtol=0)
