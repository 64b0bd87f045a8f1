"""Rewards and advantages of a rollout, worked out by hand."""

from dataclasses import replace

import pytest
import torch

from grpo.config import GRPOConfig
from grpo.credit import (
    assign_credit,
    compared_rewards,
    last_token_rewards,
    length_penalty,
    weighted_sum,
    whiten,
)
from grpo.losses import flat_groups
from grpo.sampling import Rollout

LENGTHS = [3, 1]
LOGPROBS = torch.tensor([[-1.0, -2.0, -1.0], [-1.0, 0.0, 0.0]])
REFERENCE = torch.tensor([[-1.5, -1.0, -3.0], [-2.0, 9.0, 9.0]])  # log(pi / ref): .5, -1, 2 in answer 0; 1 in answer 1
VALUES = torch.tensor([[0.2, 0.4, 0.6], [0.3, 9.0, 9.0]])        # garbage where answer 1 has no token


def make_rollout(lengths=LENGTHS, logprobs=LOGPROBS):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Rollout(torch.zeros(mask.shape, dtype=torch.long), mask, logprobs, [""] * len(lengths),
                   torch.zeros(len(lengths), dtype=torch.bool))


def parts(speed, path=None, form=None):
    zeros = [[0.0] * len(speed[0])]
    return {"speed": torch.tensor(speed), "path": torch.tensor(path or zeros), "format": torch.tensor(form or zeros)}


def credit_of(speed=((1.0, 0.0),), rollout=None, reference=None, values=None, **settings):
    config = GRPOConfig(**{"group_size": 2, **settings})
    return assign_credit(parts([list(group) for group in speed]), rollout or make_rollout(), reference, values, config)


def close(tensor, values):
    torch.testing.assert_close(tensor, torch.tensor(values), atol=2e-6, rtol=0)


# ---------------------------------------------------------------- the pieces

def test_weighted_sum_by_hand():
    # 2 * 1 + .5 * .4 + 1 * 1 = 3.2;  2 * 0 + .5 * .8 + 1 * 0 = .4;  what is logged only does not count
    components = {**parts([[1.0, 0.0]], [[0.4, 0.8]], [[1.0, 0.0]]), "accuracy": torch.tensor([[7.0, 7.0]])}
    close(weighted_sum(components, GRPOConfig(reward_weights="2,0.5,1")), [[3.2, 0.4]])


def test_normalised_components_have_the_same_say():
    # speed 1 0 0 1: +-.865875 (deviation .577350); path a hundredth of it: .005 / (.00577350 + .0001) = .851281
    # format equal in the group: exactly 0
    components = parts([[1.0, 0, 0, 1]], [[0.01, 0, 0, 0.01]], [[1.0, 1, 1, 1]])

    def compared(weights):
        return compared_rewards(components, GRPOConfig(reward_weights=weights, normalise_rewards=True))
    close(compared("1,0,0"), [[0.865875, -0.865875, -0.865875, 0.865875]])
    close(compared("0,1,0"), [[0.851281, -0.851281, -0.851281, 0.851281]])
    assert compared("0,0,1").tolist() == [[0.0] * 4]
    close(compared("1,2,1"), [[2.568437, -2.568437, -2.568437, 2.568437]])


def test_length_penalty_by_hand():
    # limit 10, margin 4: free up to 6 tokens, then a quarter per token; never below -1
    assert length_penalty(torch.tensor([1, 6, 7, 8, 9, 10, 12]), 10, 4).tolist() == [0, 0, -0.25, -0.5, -0.75, -1, -1]


def test_last_token_rewards_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert last_token_rewards(torch.tensor([2.0, 3.0, 4.0]), mask).tolist() == [[0, 0, 2], [3, 0, 0], [0, 0, 0]]


def test_whiten_by_hand():
    # 1 2 3: mean 2, deviation 1 (ddof 1): 1 / 1.0001 = .99990
    got = whiten(torch.tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 99.0]]),
                 torch.tensor([[True, True, False], [True, False, False]]))
    close(got, [[-0.99990, 0.0, 0.0], [0.99990, 0.0, 0.0]])
    assert whiten(torch.tensor([[5.0, 1.0]]), torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]


def test_flat_groups():
    assert flat_groups(torch.tensor([[1.7, 1.7], [1.7, 1.6], [0.0, 0.0]])).tolist() == [True, False, True]


# ---------------------------------------------------------------- each kind of advantage

@pytest.mark.parametrize(("settings", "advantages"), [
    # r = 1, 0: mean .5, deviation .707107: .5 / .707207 = .707007
    ({"advantage": "group"}, [0.707007, -0.707007]),
    ({"advantage": "group", "scale_rewards": "none"}, [0.5, -0.5]),
    ({"advantage": "leave_one_out"}, [1.0, -1.0]),
    ({"advantage": "return"}, [1.0, 0.0]),
])
def test_advantages_per_answer(settings, advantages):
    credit = credit_of(**settings)
    close(credit.advantages, advantages)
    assert credit.rewards.tolist() == [[1.0, 0.0]] and credit.returns is None


@pytest.mark.parametrize(("settings", "advantages"), [
    # answer 0: 1 - .5 (.5 - 1 + 2) = .25;  answer 1: 0 - .5 * 1 = -.5;  mean -.125, half the gap .375
    ({"advantage": "return"}, [0.25, -0.5]),
    ({"advantage": "leave_one_out"}, [0.75, -0.75]),
    ({"advantage": "group", "scale_rewards": "none"}, [0.375, -0.375]),
    # deviation .75 / sqrt 2 = .530330: .375 / .530430 = .706973
    ({"advantage": "group"}, [0.706973, -0.706973]),
])
def test_kl_in_the_reward_of_an_answer(settings, advantages):
    credit = credit_of(reference=REFERENCE, reward_kl=0.5, **settings)
    close(credit.advantages, advantages)
    assert credit.rewards.tolist() == [[1.0, 0.0]]           # what is reported stays the reward


def test_gae_with_kl_per_token_by_hand():
    # Answer 0, r = 1, kl .1: token rewards -.05, +.1, 1 - .2 = .8; V = .2 .4 .6; gamma .9, gamma lambda .45
    #   t2: .8 - .6 = .2;  t1: .1 + .54 - .4 = .24, + .45 * .2 = .33;  t0: -.05 + .36 - .2 = .11, + .45 * .33 = .2585
    # Answer 1, r = 0: token reward -.1; V = .3: -.4.  returns = A + V
    credit = credit_of(reference=REFERENCE, values=VALUES, reward_kl=0.1, advantage="gae", variant="ppo", gamma=0.9,
                       gae_lambda=0.5, whiten_advantages=False)
    close(credit.advantages, [[0.2585, 0.33, 0.2], [-0.4, 0.0, 0.0]])
    close(credit.returns, [[0.4585, 0.73, 0.8], [-0.1, 0.0, 0.0]])
    assert credit.rewards.tolist() == [[1.0, 0.0]]


def test_gae_whitened_over_the_batch():
    # the four advantages above: mean .097125, deviations .161375 .232875 .102875 -.497125, squares sum .337990
    # std = sqrt(.337990 / 3) = .335653; divided by .335753. The returns are not touched
    credit = credit_of(reference=REFERENCE, values=VALUES, reward_kl=0.1, advantage="gae", variant="ppo", gamma=0.9,
                       gae_lambda=0.5)
    close(credit.advantages, [[0.480635, 0.693589, 0.306401], [-1.480625, 0.0, 0.0]])
    close(credit.returns, [[0.4585, 0.73, 0.8], [-0.1, 0.0, 0.0]])


def test_gae_without_kl_puts_the_reward_on_the_last_token():
    # gamma = lambda = 1, V = 0: every token of an answer gets the answer's reward, which is plain REINFORCE
    credit = credit_of(values=torch.zeros(2, 3), advantage="gae", variant="ppo", gae_lambda=1.0,
                       whiten_advantages=False)
    close(credit.advantages, [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])


def test_gae_compares_normalised_rewards():
    # speed 1 0 becomes +-.5 / (.707107 + .0001) = +-.707007
    credit = credit_of(values=torch.zeros(2, 3), advantage="gae", variant="ppo", gae_lambda=1.0,
                       whiten_advantages=False, normalise_rewards=True)
    close(credit.advantages, [[0.707007] * 3, [-0.707007, 0.0, 0.0]])
    assert credit.rewards.tolist() == [[1.0, 0.0]]


def test_a_truncated_answer_ends_the_episode_as_any_other():
    # limit 3: answer 0 was cut there. Nothing is bootstrapped behind it: gamma = lambda = 1, V = .2 .4 .6, r = 1
    #   t2: 1 - .6 = .4;  t1: .6 - .4 + .4 = .6;  t0: .4 - .2 + .6 = .8
    rollout = make_rollout()
    cut = replace(rollout, truncated=torch.tensor([True, False]))
    for answers in (rollout, cut):
        credit = credit_of(rollout=answers, values=VALUES, advantage="gae", variant="ppo", gae_lambda=1.0,
                           whiten_advantages=False, max_new_tokens=3)
        close(credit.advantages, [[0.8, 0.6, 0.4], [-0.3, 0.0, 0.0]])
        close(credit.returns, [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])


def test_length_penalty_is_part_of_the_reward():
    # speed 1 0, and -.5 for the long answer: r = .5, 0
    config = GRPOConfig(advantage="return", length_margin=2, max_new_tokens=4)
    components = {**parts([[1.0, 0.0]]), "length": torch.tensor([[-0.5, 0.0]])}
    credit = assign_credit(components, make_rollout(), None, None, config)
    assert credit.rewards.tolist() == [[0.5, 0.0]] and credit.advantages.tolist() == [0.5, 0.0]


def test_a_group_is_flat_if_what_is_compared_is_equal():
    # equal speed, and only one answer too long: its reward is lower, so the group is not flat, whatever else is set
    components = {**parts([[1.0, 1.0], [1.0, 1.0]]), "length": torch.tensor([[-0.5, 0.0], [0.0, 0.0]])}
    for normalise in (False, True):
        config = GRPOConfig(group_size=2, length_margin=2, max_new_tokens=4, normalise_rewards=normalise)
        rollout = make_rollout([1, 1, 1, 1], torch.zeros(4, 1))
        assert assign_credit(components, rollout, None, None, config).flat.tolist() == [False, True]
    # speed and path cancel: equal sums are flat, but not what normalise_rewards compares
    components = parts([[2.0, 1.0, 1.0]], [[0.0, 1.0, 1.0]])
    flat = [assign_credit(components, make_rollout([1] * 3, torch.zeros(3, 1)), None, None,
                          GRPOConfig(group_size=3, reward_weights=weights, normalise_rewards=True)).flat.tolist()
            for weights in ("1,1,1", "2,1,1")]
    assert flat == [[True], [False]]
    # 2 * 1 + 0 = 2 * 0 + 2: equal sums of speeds and paths that are unequal once both have the same deviation
    components = parts([[1.0, 0.0, 0.0]], [[0.0, 2.0, 2.0]])
    flat = [assign_credit(components, make_rollout([1] * 3, torch.zeros(3, 1)), None, None,
                          GRPOConfig(group_size=3, reward_weights="2,1,1", normalise_rewards=normalise)).flat.tolist()
            for normalise in (False, True)]
    assert flat == [[True], [False]]


def test_the_length_penalty_is_normalised_like_every_component():
    # speed 1 0: +-.707007 (.5 / (.707107 + .0001)); length -.25 0: -+.125 / (.176777 + .0001) = -+.706707
    components = {**parts([[1.0, 0.0]]), "length": torch.tensor([[-0.25, 0.0]])}
    config = GRPOConfig(group_size=2, length_margin=2, max_new_tokens=4, normalise_rewards=True)
    close(compared_rewards(components, config), [[0.000300, -0.000300]])

def test_normalised_rewards_decide_advantages_but_are_not_reported():
    # speed 1 0 and path 0 .1 in one group of two: .707007 - .05 / (.070711 + .0001) = .707007 - .706108 = .000899
    components = parts([[1.0, 0.0]], [[0.0, 0.1]])
    config = GRPOConfig(group_size=2, normalise_rewards=True, scale_rewards="none")
    credit = assign_credit(components, make_rollout(), None, None, config)
    close(credit.rewards, [[1.0, 0.1]])
    close(credit.advantages, [0.000899, -0.000899])


def test_two_prompts_stay_apart():
    rollout = make_rollout([1, 1, 1, 1], torch.zeros(4, 1))
    credit = credit_of(speed=((1.0, 0.0), (5.0, 9.0)), rollout=rollout, scale_rewards="none")
    assert credit.advantages.tolist() == [0.5, -0.5, -2.0, 2.0]
