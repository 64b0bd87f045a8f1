import math

import pytest
import torch
import torch.nn.functional as F

from models.fast.recomputed import GatedSiLU, RMSNormalised
from models.text import compute_type


def test_norm_by_hand():
    # mean of squares of (3, 4) is 12.5; with eps 0 both are divided by sqrt(12.5) = 3.5355, then times (1, 2)
    y = RMSNormalised.apply(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    assert y.flatten().tolist() == pytest.approx([0.848528, 2.262742], abs=1e-6)


def test_norm_gradient_by_hand():
    # d/dx1 of x1 / sqrt((x1^2 + x2^2) / 2) at (3, 4) is x2^2 sqrt(2) / 125 = 0.181019, d/dx2 is -x1 x2 sqrt(2) / 125
    x, weight = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.ones(2, requires_grad=True)
    RMSNormalised.apply(x, weight, 0.0)[0, 0].backward()
    assert x.grad.flatten().tolist() == pytest.approx([0.181019, -0.135765], abs=1e-6)
    assert weight.grad.tolist() == pytest.approx([0.848528, 0.0], abs=1e-6)


def test_gated_silu_by_hand():
    # silu(0) = 0 with slope 1/2; silu(ln 3) = ln 3 * 3/4, sigmoid(ln 3) = 3/4, slope 3/4 (1 + ln 3 / 4) = 0.955990
    gate = torch.tensor([0.0, math.log(3)], requires_grad=True)
    up = torch.tensor([5.0, 2.0], requires_grad=True)
    y = GatedSiLU.apply(gate, up)
    y.sum().backward()
    assert y.tolist() == pytest.approx([0.0, 1.647918], abs=1e-6)
    assert gate.grad.tolist() == pytest.approx([2.5, 1.911980], abs=1e-6)
    assert up.grad.tolist() == pytest.approx([0.0, 0.823959], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_plain_operations_to_the_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    x, up = (torch.randn(5, 7, 96, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(96, generator=generator).to(dtype)
    assert torch.equal(RMSNormalised.apply(x, weight, 1e-6), F.rms_norm(x, (96,), eps=1e-6) * weight)
    assert torch.equal(GatedSiLU.apply(x, up), F.silu(x) * up)


def test_gradients_are_those_of_the_plain_operations():
    generator = torch.Generator().manual_seed(0)
    x, up, push = (torch.randn(3, 4, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    weight = torch.randn(8, generator=generator, dtype=torch.float64)

    def gradients(function, *inputs):
        inputs = [tensor.clone().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*inputs), inputs, push)

    plain = gradients(lambda x, w: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w, x, weight)
    for found, wanted in zip(gradients(lambda x, w: RMSNormalised.apply(x, w, 1e-6), x, weight), plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(gradients(GatedSiLU.apply, x, up), gradients(lambda x, u: F.silu(x) * u, x, up),
                             strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_only_inputs_are_kept():
    kept = []
    x, weight = torch.randn(50, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        RMSNormalised.apply(x, weight, 1e-6)
        GatedSiLU.apply(x, x)
    assert sorted(kept) == [8, 50, 400, 400, 400]           # w, r, x; gate and up


def test_a_frozen_weight_has_no_gradient():
    x, weight = torch.randn(2, 3, requires_grad=True), torch.ones(3)
    RMSNormalised.apply(x, weight, 1e-6).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_compute_type_is_autocasts_or_its_own():
    x = torch.ones(2)
    assert compute_type(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_type(x).dtype == torch.bfloat16
