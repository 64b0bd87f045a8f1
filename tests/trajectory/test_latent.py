"""Whitened controls: inverse, mean 0 and covariance I, and what cannot be whitened."""

import pytest
import torch

from trajectory.latent import fit_latent


def controls(count=400, size=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator) + 3


def test_all_directions_invert_exactly():
    values = controls()
    latent = fit_latent(values, 6)
    assert torch.allclose(latent.decode(latent.encode(values)), values, atol=1e-4)


def test_whitened_values_have_mean_0_and_covariance_1():
    values = controls()
    z = fit_latent(values, 4).encode(values)
    assert torch.allclose(z.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(torch.cov(z.T), torch.eye(4), atol=1e-4)


def test_by_hand():
    # x1 is +-2, x2 is +-1, independent: std (ddof 1) of four values +-2 is sqrt(16 / 3), of +-1 sqrt(4 / 3)
    values = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]])
    latent = fit_latent(values, 2)
    assert latent.scale.tolist() == pytest.approx([2.309401, 1.154701], abs=1e-5)
    assert latent.encode(torch.tensor([2.0, 1.0])).tolist() == pytest.approx([0.866025, 0.866025], abs=1e-5)


def test_the_signs_are_the_same_on_every_machine():
    basis = fit_latent(controls(), 5).basis
    assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_too_few_or_too_equal_demonstrations_are_named():
    with pytest.raises(ValueError, match="3 demonstrations are too few for 2 directions"):
        fit_latent(torch.randn(3, 6), 2)
    with pytest.raises(ValueError, match="fewer than 4 directions"):
        fit_latent(torch.ones(100, 6) * torch.randn(100, 1), 4)
