"""The space in which trajectories are denoised: whitened controls.

    z = basis (x - mean) / scale             x = (8 accelerations, 8 sideways controls) of a trajectory

A principal-component analysis of the demonstrations' controls gives mean, basis and scale. Independent noise in z is
then noise of the demonstrations' size and smoothness in x: a sampled trajectory stays drivable, where independent noise
on way-points breaks every limit on acceleration and jerk. The idea: Efficient Virtuoso (arXiv 2509.03658).
"""

import torch
from torch import Tensor, nn


class Latent(nn.Module):
    """d numbers per trajectory in place of n controls. Shapes: (..., n) <-> (..., d); buffers, not trained."""

    def __init__(self, controls: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(controls))
        self.register_buffer("basis", torch.eye(size, controls))                # rows: directions
        self.register_buffer("scale", torch.ones(size))

    def encode(self, controls: Tensor) -> Tensor:
        """Controls -> whitened coordinates: (..., n) -> (..., d)."""
        return (controls - self.mean) @ self.basis.T / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Whitened coordinates -> controls: (..., d) -> (..., n)."""
        return self.mean + (z * self.scale) @ self.basis


def fit_latent(controls: Tensor, size: int) -> Latent:
    """Whitening of these controls (N, n): z has mean 0 and covariance I over them, in its `size` largest directions.

    Raises: ValueError for fewer than two trajectories per direction, or controls that do not vary in as many."""
    if len(controls) < 2 * size:
        raise ValueError(f"{len(controls)} demonstrations are too few for {size} directions: at least {2 * size}")
    exact = controls.double()
    mean = exact.mean(0)
    _, spread, directions = torch.linalg.svd(exact - mean, full_matrices=False)
    scale = spread[:size] / (len(controls) - 1) ** 0.5                          # (d,) standard deviations
    if scale[-1] < 1e-6 * scale[0]:
        raise ValueError(f"the demonstrations' controls vary in fewer than {size} directions")
    signs = torch.sign(directions.gather(1, directions.abs().argmax(1, keepdim=True)))      # one sign on every machine
    latent = Latent(controls.shape[1], size)
    latent.mean.copy_(mean)
    latent.basis.copy_((directions * signs)[:size])
    latent.scale.copy_(scale)
    return latent
