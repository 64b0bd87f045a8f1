"""Settings of the method: mistakes are errors at once, coefficients are constants or annealed."""

import dataclasses

import pytest

from grpo.config import GRPOConfig


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GRPOConfig().group_size = 2


def test_group_size_one_is_refused():
    with pytest.raises(ValueError, match="--group-size is 1; it must be 2 or more"):
        GRPOConfig(group_size=1)


@pytest.mark.parametrize(("settings", "flag"), [
    (dict(advantage="gae", variant="gspo"), "--variant"),
    (dict(importance_cap=2.0, variant="sequence"), "--importance-cap"),
    (dict(advantage="leave_one_out", group_size=1), "--group-size"),
    (dict(kl_ratio=True, kl_estimator="k2"), "--kl-ratio"),
    (dict(advantage="return", group_size=1, dynamic_sampling=1), "--dynamic-sampling"),
    (dict(advantage="return", group_size=1, flat_kl=False), "--flat-kl")])
def test_settings_that_exclude_each_other(settings, flag):
    with pytest.raises(ValueError, match=flag):
        GRPOConfig(**settings)


# ---------------------------------------------------------------- coefficients

@pytest.mark.parametrize(("text", "values"), [
    # done: 0, a quarter, a half, all.  linear 2 -> .5: 2 - 1.5 * done
    ("0.04", [0.04] * 4), (0.04, [0.04] * 4), ("2:0.5:linear", [2, 1.625, 1.25, 0.5]),
    # (1 + cos(pi done)) / 2 = 1, .853553, .5, 0:  .2 + .8 times it;  from 0 to 1 it rises
    ("1:0.2:cosine", [1, 0.882843, 0.6, 0.2]), ("0:1:cosine", [0, 0.146447, 0.5, 1]), ("1:0:linear", [1, 0.75, 0.5, 0]),
])
def test_coefficients_by_hand(text, values):
    config = GRPOConfig(beta=text)
    assert [config.coefficient("beta", done) for done in (0, 0.25, 0.5, 1)] == pytest.approx(values, abs=1e-6)


def test_a_coefficient_is_used_if_it_is_ever_above_zero():
    used = {"0": False, "0.1": True, "0:1:linear": True, "1:0:cosine": True, "0:0:linear": False}
    assert {text: GRPOConfig(bc_coef=text).uses("bc_coef") for text in used} == used
    assert [GRPOConfig(**settings).needs_reference for settings in (
        {}, {"beta": "0"}, {"beta": "0", "reward_kl": 0.1}, {"beta": "0:0.1:linear"})] == [True, False, True, True]
