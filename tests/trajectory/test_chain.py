"""The denoising chain by hand: step means, sigmas, log densities, ratios, KL; and that sampling equals scoring."""

import math

import pytest
import torch
from torch.distributions import Normal

from grpo.losses import policy_loss
from trajectory.chain import (
    STEPS,
    chain_means,
    ddim_sigma,
    denoising_loss,
    gaussian_entropy,
    gaussian_kl,
    log_density,
    sample,
    signal_share,
    step_mean,
    step_shares,
    step_sigmas,
)
from trajectory.denoiser import LATENT, new_decoder
from trajectory.latent import Latent


def number(value):
    """A value as a (1, 1, 1, 1) tensor: one scene, one chain, one step, one dimension."""
    return torch.tensor(float(value), dtype=torch.float64).view(1, 1, 1, 1)


def density(value, mean, sigma):
    return log_density(number(value), number(mean), torch.tensor([[sigma]], dtype=torch.float64)).item()


@pytest.fixture
def decoder():
    """A decoder whose estimates are not 0."""
    made = new_decoder(3, Latent(16, LATENT), torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), seed=1)
    torch.nn.init.normal_(made.denoiser.head.weight, std=0.1, generator=torch.Generator().manual_seed(2))
    return made


def drawn(decoder, sigmas, guide=None, scenes=3, group=4):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(scenes, 3, generator=generator)
    plan = torch.tensor([[0, 1], [-1, -1], [3, 4]])[:scenes]
    condition = decoder.condition(features, torch.tensor([0.0, 4.0, 12.0])[:scenes], plan)
    noise = torch.randn(scenes, group, STEPS + 1, LATENT, generator=generator)
    return condition, sample(decoder, condition, noise, sigmas, guide)


def test_one_step_by_hand():
    # -(.6 - .5)^2 / (2 * .04) - ln .2 - ln(2 pi) / 2 = -.125 + 1.609438 - .918939
    assert density(0.6, 0.5, 0.2) == pytest.approx(0.565499, abs=1e-6)
    assert density(0.6, 0.54, 0.2) == pytest.approx(0.645499, abs=1e-6)         # -.045 instead of -.125
    assert math.exp(density(0.6, 0.54, 0.2) - density(0.6, 0.5, 0.2)) == pytest.approx(1.083287, abs=1e-6)     # e^.08


def test_the_ratio_sums_over_the_latent_numbers():
    # two equal numbers: e^.16 = 1.173511; their mean would be e^.08 = 1.083287
    values, means, moved = (torch.full((1, 1, 1, 2), x) for x in (0.6, 0.5, 0.54))
    sigmas = torch.tensor([[0.2]])
    gap = log_density(values, moved, sigmas) - log_density(values, means, sigmas)
    assert gap.exp().item() == pytest.approx(1.173511, abs=1e-5)
    tempered = log_density(values, moved, sigmas, "mean") - log_density(values, means, sigmas, "mean")
    assert tempered.exp().item() == pytest.approx(1.083287, abs=1e-5)


def test_the_clip_acts_on_that_ratio():
    # ratio 1.083287, clip .05: A = 1 gives 1.05, A = -1 gives -1.083287; the loss is its negative
    old, new = torch.tensor([[0.565499]]), torch.tensor([[0.645499]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    for advantage, loss in ((1.0, -1.05), (-1.0, 1.083287)):
        found, _ = policy_loss(new, old, torch.tensor([advantage]), mask, "grpo", 0.05, 0.05)
        assert found.item() == pytest.approx(loss, abs=1e-5)


def test_a_step_mean_and_ddim_sigma_by_hand():
    # abar .25 -> .64: eps = (1 - .5 * .5) / sqrt(.75) = .866025; mu = .8 * .5 + sqrt(.36 - .09) * .866025 = .85
    now, then, sigma = torch.tensor(0.25), torch.tensor(0.64), torch.tensor(0.3)
    assert step_mean(torch.tensor(1.0), torch.tensor(0.5), now, then, sigma).item() == pytest.approx(0.85, abs=1e-5)
    assert step_mean(torch.tensor(1.0), torch.tensor(0.52), now, then, sigma).item() == pytest.approx(0.86, abs=1e-5)
    # sqrt(.36 / .75 * (1 - .25 / .64)) = sqrt(.2925)
    assert ddim_sigma(now, then).item() == pytest.approx(0.540833, abs=1e-6)


def test_two_steps_by_hand():
    # 1 -> 1.0 -> .55: means .85 and .5 (z0 = .5), sigmas .3 and .1:
    #   -(.15 / .3)^2 / 2 - ln .3 - .918939 = .160034;    -(.05 / .1)^2 / 2 - ln .1 - .918939 = 1.258647
    values = torch.tensor([1.0, 0.55], dtype=torch.float64).view(1, 1, 2, 1)
    sigmas = torch.tensor([[0.3, 0.1]], dtype=torch.float64)

    def chain(*means):
        return log_density(values, torch.tensor(means, dtype=torch.float64).view(1, 1, 2, 1), sigmas)

    old, new = chain(0.85, 0.5), chain(0.86, 0.52)
    assert old[0].tolist() == pytest.approx([0.160034, 1.258647], abs=1e-6)
    assert old.sum().item() == pytest.approx(1.418681, abs=1e-6)
    assert (new - old).exp()[0].tolist() == pytest.approx([1.016242, 1.083287], abs=1e-6)
    mask = torch.ones(1, 2, dtype=torch.bool)
    _, metrics = policy_loss(new, old, torch.tensor([1.0]), mask, "gspo")
    assert metrics["ratio"].item() == pytest.approx(1.049229, abs=1e-6)         # the geometric mean


def test_kl_and_entropy_by_hand():
    sigmas = torch.tensor([[0.2]], dtype=torch.float64)
    assert gaussian_kl(number(0.54), number(0.5), sigmas).item() == pytest.approx(0.02, abs=1e-12)    # .0016 / .08
    # (ln(2 pi e) + 2 ln .2) / 2 = (2.837877 - 3.218876) / 2
    assert gaussian_entropy(sigmas, 1, 1).item() == pytest.approx(-0.190499, abs=1e-6)
    # over three equal numbers both are added up
    moved, still = (number(value).expand(1, 1, 1, 3) for value in (0.54, 0.5))
    assert gaussian_kl(moved, still, sigmas).item() == pytest.approx(0.06, abs=1e-12)
    assert gaussian_entropy(sigmas, 1, 3).item() == pytest.approx(-0.571498, abs=1e-6)


def test_densities_agree_with_torch():
    generator = torch.Generator().manual_seed(0)
    values, means = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    sigmas = torch.rand(2, 4, generator=generator, dtype=torch.float64) + 0.1
    wanted = Normal(means, sigmas[:, None, :, None].expand_as(means)).log_prob(values).sum(-1).flatten(0, 1)
    assert torch.allclose(log_density(values, means, sigmas), wanted, rtol=0, atol=1e-10)


def test_noise_levels():
    shares = signal_share(torch.tensor([0.0, 1.0]))
    assert shares[0] == 1 and shares[1].item() == pytest.approx(0.000987, abs=1e-6)     # cos^2(.98 * 90 degrees)
    now, then = step_shares()
    assert then[-1] == 1 and torch.equal(now[1:], then[:-1])


def test_sigmas():
    ones = torch.ones(1)
    assert step_sigmas(0.0, 0.0, ones).tolist() == [[0.0] * STEPS]              # deterministic
    assert step_sigmas(0.0, 0.1, ones)[0].tolist() == pytest.approx([0.1] * STEPS)
    full = step_sigmas(1.0, 0.05, ones)[0]
    assert full[-1].item() == pytest.approx(0.05)                               # DDPM's last step has none of its own
    assert full[0] > full[1] > full[2] > full[3] > full[4]
    assert torch.allclose(step_sigmas(1.0, 0.05, torch.tensor([2.0]))[0], 2 * full)


def test_the_last_mean_is_the_estimate(decoder):
    condition, chain = drawn(decoder, step_sigmas(1.0, 0.1, torch.ones(3)))
    before = chain.states[:, :, -2]
    level = torch.full(before.shape[:-1], 0.2)
    means = chain_means(decoder, condition, chain.states, chain.sigmas, None)
    assert torch.allclose(means[:, :, -1], decoder.denoiser(before, level, condition), atol=1e-5)


@pytest.mark.parametrize("guided", [False, True])
def test_scoring_gives_what_sampling_gave(decoder, guided):
    """The ratio is 1 and the KL 0 at equal weights, with guidance inside the chain too."""
    guide = (lambda estimate, step: 0.2 * torch.ones_like(estimate) * (step >= 3)) if guided else None
    condition, chain = drawn(decoder, step_sigmas(1.0, 0.2, torch.ones(3)), guide)
    means = chain_means(decoder, condition, chain.states, chain.sigmas, chain.shifts)
    again = log_density(chain.states[:, :, 1:], means, chain.sigmas)
    assert torch.allclose(again, chain.logprobs, atol=2e-4)
    assert torch.equal(gaussian_kl(means, means, chain.sigmas), torch.zeros(12, STEPS))
    if guided:                                              # without the stored shift the density would be another
        wrong = log_density(chain.states[:, :, 1:], means - chain.shifts, chain.sigmas)
        assert (wrong - chain.logprobs).abs().max() > 0.1


def test_a_deterministic_chain_has_no_density(decoder):
    _, chain = drawn(decoder, step_sigmas(0.0, 0.0, torch.ones(3)))
    assert chain.logprobs.isnan().all()
    _, twice = drawn(decoder, step_sigmas(0.0, 0.0, torch.ones(3)))
    assert torch.equal(chain.latents, twice.latents)


def test_chains_do_not_depend_on_their_neighbours(decoder):
    sigmas = step_sigmas(1.0, 0.1, torch.ones(3))
    _, all_of_them = drawn(decoder, sigmas)
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(3, 3, generator=generator)
    noise = torch.randn(3, 4, STEPS + 1, LATENT, generator=generator)
    condition = decoder.condition(features[1:2], torch.tensor([4.0]), torch.tensor([[-1, -1]]))
    alone = sample(decoder, condition, noise[1:2], sigmas[1:2])
    assert torch.allclose(alone.states, all_of_them.states[1:2], atol=1e-5)


def test_the_gradient_of_a_chain_is_that_of_its_means(decoder):
    """d log p / d mu = (z - mu) / sigma^2: by autograd through one weight against finite differences."""
    decoder = decoder.double()
    sigmas = step_sigmas(1.0, 0.2, torch.ones(1)).double()
    condition, chain = drawn_double(decoder, sigmas)

    def total():
        means = chain_means(decoder, condition, chain.states, sigmas, None)
        return log_density(chain.states[:, :, 1:], means, sigmas).sum()

    bias = decoder.denoiser.head.bias
    total().backward()
    found, step = bias.grad[2].item(), 1e-5
    with torch.no_grad():
        bias[2] += step
        above = total().item()
        bias[2] -= 2 * step
        below = total().item()
    assert found == pytest.approx((above - below) / (2 * step), rel=1e-5)


def drawn_double(decoder, sigmas):
    generator = torch.Generator().manual_seed(5)
    condition = decoder.condition(torch.randn(1, 3, generator=generator).double(), torch.tensor([4.0]).double(),
                                  torch.tensor([[1, 2]])).double()
    noise = torch.randn(1, 2, STEPS + 1, LATENT, generator=generator).double()
    return condition, sample(decoder, condition, noise, sigmas)


def test_denoising_loss_by_hand():
    """An untrained decoder estimates 0, so the loss is min(snr, 5) |z0|^2 / d."""
    decoder = new_decoder(3, Latent(16, LATENT), torch.zeros(2, 3), seed=0)
    condition = decoder.condition(torch.zeros(2, 3), torch.zeros(2), torch.full((2, 2), -1))
    z0 = torch.full((2, LATENT), 2.0)
    # at level .5 / .98, abar = cos^2(45 degrees) = .5: snr 1, loss 4; at level 0.01 the snr is over 5: loss 20
    loss = denoising_loss(decoder, condition, z0, torch.tensor([0.5 / 0.98, 0.01]), torch.zeros(2, LATENT))
    assert loss.tolist() == pytest.approx([4.0, 20.0], rel=1e-5)
