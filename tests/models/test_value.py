"""The value network: its size on either trunk, and 0 everywhere at the start."""

import copy

import pytest
import torch

from models.value import ValueNetwork


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts(make_model, tied):
    policy = make_model(tied=tied)
    assert size(ValueNetwork(policy, own_trunk=False)) == 33                   # 32 weights and a bias
    assert size(ValueNetwork(policy, own_trunk=True)) == size(policy) + 33


@pytest.mark.parametrize("own", [True, False])
def test_values_start_at_zero_in_float32(make_model, own):
    value = ValueNetwork(make_model(), own)
    for dtype in (torch.float32, torch.bfloat16):
        out = value(torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0)).to(dtype))
        assert out.shape == (3, 5) and out.dtype == torch.float32 and out.eq(0).all()


def test_head_by_hand(make_model):
    value = ValueNetwork(make_model(), own_trunk=False)
    with torch.no_grad():
        value.head.weight[0, :2] = torch.tensor([2.0, -1.0])
        value.head.bias.fill_(0.5)
    hidden = torch.zeros(1, 32)
    hidden[0, :3] = torch.tensor([3.0, 4.0, 9.0])            # 2 * 3 - 4 + .5
    assert value(hidden).tolist() == [2.5]
    with torch.autocast("cpu", torch.bfloat16):              # 2 * 3.01 - 4.03 + .5 would lose its digits in bf16
        hidden[0, :2] = torch.tensor([3.01, 4.03])
        assert value(hidden).item() == pytest.approx(2.49, abs=1e-6)


def test_an_own_trunk_is_a_copy(make_model):
    policy = make_model()
    before = copy.deepcopy(policy.state_dict())
    value = ValueNetwork(policy, own_trunk=True)
    with torch.no_grad():
        for parameter in value.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert not {id(p) for p in value.parameters()} & {id(p) for p in policy.parameters()}
