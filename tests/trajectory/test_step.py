"""GRPO on the chain through the method's own credit, objective and updates."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from grpo.config import ALGORITHMS
from grpo.losses import group_advantages
from grpo.step import Learner
from trajectory.chain import STEPS, sample, step_sigmas
from trajectory.config import TrajectoryConfig, chain_algorithm
from trajectory.denoiser import LATENT, initialise, new_decoder
from trajectory.field import make_field
from trajectory.latent import Latent
from trajectory.scenes import Scenes, without_plan
from trajectory.step import (
    ChainValue,
    chain_noise,
    chain_pass,
    chain_rows,
    chosen_chains,
    clipped_share,
    explore,
    penalised,
    trajectory_step,
)

FEATURES, SCENES, GROUP = 3, 4, 6


def make_scenes(count=SCENES):
    """Scenes without a road: the score below reads the latents alone."""
    generator = torch.Generator().manual_seed(0)
    plan = torch.tensor([[0, 0], [1, 2], [-1, -1], [3, 4]]).repeat(count // 4 + 1, 1)[:count]
    field = make_field([], 0.0) if count == 0 else empty_field(count)
    return Scenes(torch.randn(count, FEATURES, generator=generator), torch.full((count,), 5.0), plan, field, field,
                  torch.full((count,), 20.0), torch.randn(count, 16, generator=generator),
                  torch.ones(count, 4, 5, dtype=torch.bool))


def empty_field(count):
    from trajectory.field import Field, open_road
    return Field(*(torch.tensor(part).expand(count, *torch.tensor(part).shape).clone() for part in open_road(5.0)))


def make_decoder(seed=0):
    decoder = new_decoder(FEATURES, Latent(16, LATENT), torch.randn(9, FEATURES,
                                                                    generator=torch.Generator().manual_seed(1)), seed)
    torch.nn.init.normal_(decoder.denoiser.head.weight, std=0.05, generator=torch.Generator().manual_seed(2))
    return decoder


def make_learner(config, decoder=None, reference=None, optimizer=None):
    decoder = decoder or make_decoder()
    value = None
    if config.advantage == "gae":
        value = ChainValue(FEATURES)
        initialise(value, 3)
    trained = [*decoder.denoiser.parameters(), *(value.parameters() if value else ())]
    optimizer = optimizer or AdamW(trained, lr=config.learning_rate)

    def sampler(scenes, noise, sigmas):
        return sample(decoder, decoder.condition(scenes.features, scenes.speed, scenes.plan), noise, sigmas,
                      reduce=config.ratio_reduce)

    auxiliary = {f"clipped_{i + 1}": (0.0, lambda a, b, part, i=i: clipped_share(a, b, part, i, config, SCENES * GROUP))
                 for i in range(STEPS)} if config.updates_per_rollout > 1 else {}
    return Learner(decoder, reference, value, sampler, optimizer, LambdaLR(optimizer, lambda done: 1.0), auxiliary,
                   forward=chain_pass)


def near_two(latents, scenes):
    """The first latent number should be 2."""
    score = -(latents[..., 0] - 2) ** 2
    return {"score": score, "feasible": (latents[..., 0] > 0).float()}


def make_config(**changes):
    return TrajectoryConfig(**{"group_size": GROUP, "prompts_per_step": SCENES, "beta": "0", **changes})


def test_the_first_update_has_ratio_1_and_kl_0():
    config = make_config(beta="0.1", learning_rate=1e-3)
    learner = make_learner(config, reference=make_decoder().requires_grad_(False))
    metrics, *_ = trajectory_step(learner, make_scenes(), range(SCENES), near_two, config, 0)
    assert metrics["ratio"] == 1.0 and metrics["kl"] == 0.0 and metrics["clip_frac"] == 0.0
    config = replace(config, updates_per_rollout=2)
    learner = make_learner(config, reference=make_decoder().requires_grad_(False))
    metrics, *_ = trajectory_step(learner, make_scenes(), range(SCENES), near_two, config, 1)
    assert metrics["updates"] == 2 and metrics["ratio"] != 1.0 and metrics["kl"] > 0
    assert 0 <= metrics["clipped_5"] <= 1


def test_chains_are_scored_in_float32_under_autocast():
    """On a GPU a pass of a planner is in bf16, whose rounding is as large as the smallest sigma."""
    found = []
    for enabled in (False, True):
        config = make_config(beta="0.1", updates_per_rollout=2, learning_rate=1e-3)
        learner = make_learner(config, reference=make_decoder().requires_grad_(False))
        with mock.patch("grpo.step.autocast", lambda *_, on=enabled: torch.autocast("cpu", torch.bfloat16, on)):
            found.append(trajectory_step(learner, make_scenes(), range(SCENES), near_two, config, 0)[0])
    assert found[0] == found[1] and found[0]["logprob_gap"] < 1e-3


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_guided_chains_are_scored_as_they_were_sampled(reduce):
    """Policy, old policy and reference are the same, so ratios are 1 and KL 0 if every pass adds the chosen shifts."""
    config = make_config(beta="0.1", updates_per_rollout=2, reject="drop", ratio_reduce=reduce)
    decoder = make_decoder()
    learner = make_learner(config, decoder, make_decoder(), SGD(decoder.denoiser.parameters(), lr=0.0))

    def sampler(scenes, noise, sigmas):
        condition = decoder.condition(scenes.features, scenes.speed, scenes.plan)
        return sample(decoder, condition, noise, sigmas, lambda estimate, step: torch.sin(50 * estimate), reduce)

    metrics, *_ = trajectory_step(replace(learner, sampler=sampler), make_scenes(), range(SCENES), near_two, config, 0)
    assert metrics["updates"] == 2 and metrics["logprob_gap"] < 1e-3
    assert metrics["ratio"] == 1.0 and metrics["kl"] == 0.0


@pytest.mark.parametrize("kept", [True, False])
def test_flat_groups_keep_or_lose_the_exact_kl(kept):
    config = make_config(beta="0.1", flat_kl=kept)
    learner = make_learner(config, reference=make_decoder(seed=7))

    def equal(latents, scenes):
        return {"score": torch.ones(latents.shape[:2]), "feasible": torch.ones(latents.shape[:2])}

    metrics, *_ = trajectory_step(learner, make_scenes(), range(SCENES), equal, config, 0)
    assert (metrics["kl"] > 0.01) == kept and (metrics["grad_norm"] > 0) == kept


def test_infeasible_chains_are_penalised_in_the_step():
    # scores 3, 1, -1, 1 have the mean 1: advantages 2, 0, -2, 0, but -1 for the second, which is infeasible
    def fixed(latents, _scenes):
        return {"score": torch.tensor([3.0, 1.0, -1.0, 1.0]).expand(latents.shape[:2]),
                "feasible": torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(latents.shape[:2])}

    config = make_config(reject="penalise", scale_rewards="none", group_size=4)
    *_, credit = trajectory_step(make_learner(config), make_scenes(), range(SCENES), fixed, config, 0)
    assert credit.advantages.tolist() == [2.0, -1.0, -2.0, 0.0] * SCENES


def test_values_read_the_state_before_each_step():
    config = make_config()
    value, scenes = ChainValue(FEATURES), make_scenes()
    initialise(value, 3)
    torch.nn.init.normal_(value.head.weight, generator=torch.Generator().manual_seed(4))
    learner = make_learner(config)
    chain = explore(learner, scenes, range(SCENES), near_two, config, 0, 0.0)[0]
    condition = learner.policy.condition(scenes.features, scenes.speed, scenes.plan)
    before = value.values(chain, condition)                                     # (P * G, S)
    for state in range(STEPS + 1):
        states = chain.states.clone()
        states[:, :, state] += 1.0
        moved = (value.values(replace(chain, states=states), condition) != before).any(0)
        assert moved.tolist() == [step == state for step in range(STEPS)]       # nothing reads the last state


def test_clipped_share_by_hand():
    # ratios of step 1: 1.25 is within 1.28, .78 below .8, 1.3 above 1.28, 1 within: 2 of the step's 8 chains
    old = torch.tensor([[0.0, -1.0]]).expand(4, 2)
    logprobs = old + torch.tensor([1.25, 0.78, 1.3, 1.0]).log()[:, None] * torch.tensor([[0.0, 1.0]])
    part, config = SimpleNamespace(old_logprobs=old), make_config(clip_low=0.2, clip_high=0.28)
    assert [clipped_share(logprobs, None, part, step, config, 8).item() for step in (0, 1)] == [0.0, 0.25]


def test_advantages_flow_through_the_methods_own_function():
    config = make_config()
    learner = make_learner(config)
    _, chain, components, credit = trajectory_step(learner, make_scenes(), range(SCENES), near_two, config, 0)
    wanted = group_advantages(components["score"], "batch")
    assert torch.equal(credit.advantages, wanted.flatten())
    assert chain.logprobs.shape == (SCENES * GROUP, STEPS)
    # the batch's deviation, not the group's: one number divides all
    centred = components["score"] - components["score"].mean(1, keepdim=True)
    ratio = centred.flatten() / credit.advantages
    assert ratio.max() - ratio.min() < 1e-2 * ratio.mean()


def test_a_reward_moves_the_mean():
    """-(u - 2)^2 for the first latent number: its mean goes from about 0 to 2."""
    config = make_config(group_size=16, learning_rate=3e-3, noise_floor="0.2")
    learner = make_learner(config)
    scenes = make_scenes()
    first = explore(learner, scenes, range(SCENES), near_two, config, 0, 0.0)[0].latents[..., 0].mean().item()
    for step in range(60):
        trajectory_step(learner, scenes, range(SCENES), near_two, config, step)
    last = explore(learner, scenes, range(SCENES), near_two, config, 99, 0.0)[0].latents[..., 0]
    assert abs(first) < 0.7
    assert last.mean().item() == pytest.approx(2.0, abs=0.25)


def test_flat_groups_give_no_gradient():
    config, decoder = make_config(), make_decoder()
    learner = make_learner(config, decoder, optimizer=SGD(decoder.denoiser.parameters(), lr=1.0))
    before = [p.clone() for p in learner.policy.parameters()]

    def equal(latents, scenes):
        return {"score": torch.ones(latents.shape[:2]), "feasible": torch.ones(latents.shape[:2])}

    metrics, *_ = trajectory_step(learner, make_scenes(), range(SCENES), equal, config, 0)
    assert metrics["grad_norm"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True))


def test_the_gradient_is_the_score_function():
    """One chain, A = +1 / -1: the gradient of L is -1 / (rows S) sum A d log p, here against autograd's own log p."""
    config = make_config(group_size=2, prompts_per_step=1, scale_rewards="none")
    decoder = make_decoder()
    learner = make_learner(config, decoder, optimizer=SGD(decoder.denoiser.parameters(), lr=0.0))
    grads = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: grads.append(decoder.denoiser.head.bias.grad.clone()))
    config = replace(config, max_grad_norm=1e9)
    scenes = make_scenes(1)
    _, chain, components, credit = trajectory_step(learner, scenes, [0], near_two, config, 0)
    decoder.zero_grad()
    from trajectory.chain import chain_means, log_density
    means = chain_means(decoder, decoder.condition(scenes.features, scenes.speed, scenes.plan), chain.states,
                        chain.sigmas, None)
    logprobs = log_density(chain.states[:, :, 1:], means, chain.sigmas)         # (2, 5)
    gap = (components["score"][0] - components["score"][0].mean()).detach()     # no division
    (-(gap[:, None] * logprobs).sum() / (2 * STEPS)).backward()
    assert torch.allclose(grads[0], decoder.denoiser.head.bias.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_runs_on_chains(name):
    config = make_config(**chain_algorithm(ALGORITHMS[name]), algorithm=name, learning_rate=1e-3)
    reference = make_decoder().requires_grad_(False) if config.needs_reference else None
    learner = make_learner(config, reference=reference)
    before = [p.clone() for p in learner.policy.parameters()]
    metrics, _, _, credit = trajectory_step(learner, make_scenes(), range(SCENES), near_two, config, 0)
    assert metrics["skipped"] == 0 and metrics["grad_norm"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True))
    if name == "ppo":
        assert credit.returns.shape == (SCENES * GROUP, STEPS) and metrics["value_loss"] > 0


def test_cloning_beside_it():
    """bc_coef adds the denoising loss of the demonstrations; with no policy loss it is all there is."""
    config = make_config(bc_coef="1", pg_coef="0", learning_rate=1e-2)
    learner = make_learner(config)
    losses = [trajectory_step(learner, make_scenes(), range(SCENES), near_two, config, step)[0]["bc_loss"]
              for step in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_noise_depends_on_place_seed_and_step_alone():
    one = chain_noise(0, 3, [5, 9], 4)
    assert one.shape == (2, 4, STEPS + 1, LATENT)
    assert torch.equal(one[1:], chain_noise(0, 3, [9], 4))
    assert torch.equal(one[:, :2], chain_noise(0, 3, [5, 9], 2))
    assert not torch.equal(one, chain_noise(0, 4, [5, 9], 4)) and not torch.equal(one, chain_noise(1, 3, [5, 9], 4))
    many = chain_noise(0, 0, range(64), 16)
    assert many.mean().abs() < 0.02 and abs(many.std().item() - 1) < 0.02


def test_rejection_keeps_feasible_chains_and_counts_the_draws():
    for reject, draws in (("drop", 2), ("resample", 4)):
        config = make_config(reject=reject)
        learner = make_learner(config)
        chain, components, accepted = explore(learner, make_scenes(), range(SCENES), near_two, config, 0, 0.0)
        every = explore(learner, make_scenes(), range(SCENES), near_two, replace(config, reject="none",
                                                                               group_size=draws * GROUP), 0, 0.0)
        assert components["score"].shape == (SCENES, GROUP) == chain.states.shape[:2]
        assert components["feasible"].mean() > every[1]["feasible"].mean()
        assert accepted == pytest.approx(every[1]["feasible"].mean().item())
        assert torch.equal(near_two(chain.latents, None)["score"], components["score"])    # chains and scores agree


def test_penalised_advantages():
    advantages, feasible = torch.tensor([0.5, 0.7, -0.2, 0.1]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert penalised(advantages, feasible).tolist() == pytest.approx([0.5, -1.0, -0.2, -1.0])
    tokens = advantages[:, None].expand(4, 2)
    assert penalised(tokens, feasible)[1].tolist() == [-1.0, -1.0]


def test_chosen_chains_belong_to_their_scene():
    config = make_config()
    chain = explore(make_learner(config), make_scenes(), range(SCENES), near_two, config, 0, 0.0)[0]
    keep = torch.tensor([[5, 0], [1, 1], [2, 3], [4, 5]])
    kept = chosen_chains(chain, keep)
    for p in range(SCENES):
        for g in range(2):
            assert torch.equal(kept.states[p, g], chain.states[p, keep[p, g]])
            assert torch.equal(kept.logprobs[p * 2 + g], chain.logprobs[p * GROUP + keep[p, g]])


def test_adaptive_validity_uses_draws_of_its_own():
    config = make_config(noise_adapt="validity")
    learner = make_learner(config)
    plain = explore(learner, make_scenes(), range(SCENES), near_two, make_config(), 0, 0.0)[0]
    adapted = explore(learner, make_scenes(), range(SCENES), near_two, config, 0, 0.0)[0]
    assert torch.equal(plain.states[:, :, 0], adapted.states[:, :, 0])          # the same noise, another scale
    assert not torch.equal(plain.sigmas, adapted.sigmas)


@pytest.mark.parametrize(("feasible", "sigma"), [(1.0, 0.134986), (0.0, 0.05)])          # .1 e^.3, .1 / 2
def test_infeasible_first_draws_lower_the_noise(feasible, sigma):
    config = make_config(noise_adapt="validity", noise_floor="0.1")

    def scored(latents, scenes):
        return {"score": latents[..., 0], "feasible": torch.full(latents.shape[:2], feasible)}

    chain = explore(make_learner(config), make_scenes(), range(SCENES), scored, config, 0, 0.0)[0]
    assert chain.sigmas[:, -1].tolist() == pytest.approx([sigma] * SCENES, abs=1e-6)


@pytest.mark.parametrize(("adapt", "shared"), [("none", True), ("validity", False)])
def test_cloning_has_noise_of_its_own_beside_the_first_draw(adapt, shared):
    """Where that draw is made, it takes the numbers that cloning has without it."""
    config = make_config(bc_coef="1", noise_adapt=adapt)
    learner, scenes, numbers = make_learner(config), make_scenes(), range(SCENES)
    chain = explore(learner, scenes, numbers, near_two, config, 5, 0.0)[0]
    condition = learner.policy.condition(scenes.features, scenes.speed, scenes.plan)
    noise = chain_rows(learner, chain, condition, scenes, numbers, config, 5).noise         # (P, d)
    first = chain_noise(config.seed, 5, numbers, GROUP, stream=1).flatten(2)[:, :, 1:1 + LATENT]
    assert (noise[:, None] == first).all(-1).any().item() == shared


def test_a_plan_is_named_where_told():
    found = without_plan(make_scenes(), torch.tensor([True, False, True, False]))
    assert found.plan.tolist() == [[0, 0], [-1, -1], [-1, -1], [-1, -1]]


def test_step_sigmas_reach_the_chain():
    config = make_config(noise_floor="0.4:0.1:linear")
    learner = make_learner(config)
    first, last = (explore(learner, make_scenes(), range(SCENES), near_two, config, 0, progress)[0].sigmas[0, -1].item()
                   for progress in (0.0, 1.0))
    assert (first, last) == pytest.approx((0.4, 0.1))
    assert step_sigmas(1.0, 0.4, torch.ones(1))[0, -1].item() == pytest.approx(0.4)
