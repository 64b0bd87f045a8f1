"""The fast forms of RMSNorm, SwiGLU, QuickGELU and rotation against hand values and against the plain formulas."""

import copy
import math
import weakref

import pytest
import torch

from models import load_model, save_model
from models.fast.recomputed import (
    GatedSiLU,
    QuickGELU,
    RMSNormalised,
    Rotated,
    fast_norm,
    gated,
    keep,
    keeping_formulas,
    restore,
    use_recomputed,
    with_formula,
)
from models.lora import add_lora, base_model
from models.text import gated_silu, masked_attention, rms_norm, rotate
from models.vision import quick_gelu


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


def test_quick_gelu_by_hand():
    # at x = ln 3 / 1.702, sigmoid(1.702 x) is 3/4, so y is 3/4 x = 0.484112 and the slope 3/4 (1 + ln 3 / 4) = 0.955990
    x = torch.tensor([0.0, math.log(3) / 1.702], requires_grad=True)
    y = QuickGELU.apply(x)
    y.sum().backward()
    assert y.tolist() == pytest.approx([0.0, 0.484112], abs=1e-6)
    assert x.grad.tolist() == pytest.approx([0.5, 0.955990], abs=1e-6)


def test_rotation_by_hand():
    # the pair (1, 2) by the angle with cosine 3/5 and sine 4/5: (3/5 - 8/5, 6/5 + 4/5); the gradient (1, 0) turns back
    x, cos, sin = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.6, 0.6]), torch.tensor([0.8, 0.8])
    y = Rotated.apply(x, cos, sin)
    y[0].backward()
    assert y.tolist() == pytest.approx([-1.0, 2.0]) and x.grad.tolist() == pytest.approx([0.6, -0.8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_equal_the_plain_formulas(dtype):
    generator = torch.Generator().manual_seed(0)
    x, up = (torch.randn(5, 7, 96, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(96, generator=generator).to(dtype)
    angles = torch.randn(7, 48, generator=generator).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    assert torch.equal(GatedSiLU.apply(x, up), gated_silu(x, up))
    for found, wanted in ((RMSNormalised.apply(x, weight, 1e-6), rms_norm(x, weight, 1e-6)),
                          (fast_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6)),
                          (QuickGELU.apply(x), quick_gelu(x)), (Rotated.apply(x, cos, sin), rotate(x, cos, sin))):
        assert found.dtype == dtype
        atol = 1e-5 if dtype == torch.float32 else 0.02     # bfloat16 is rounded at other places
        torch.testing.assert_close(found, wanted, atol=atol, rtol=0.016 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gradients_equal_those_of_the_plain_formulas(dtype, limit):
    generator = torch.Generator().manual_seed(0)
    x, up, push = (torch.randn(3, 4, 8, generator=generator, dtype=dtype) for _ in range(3))
    weight = torch.randn(8, generator=generator, dtype=dtype)
    cos, sin = (function(up[0, :, :4]).repeat(1, 2) for function in (torch.cos, torch.sin))

    def gradients(function, *inputs):
        inputs = [tensor.clone().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*inputs), inputs, push)

    for recomputed, plain, inputs in (
            (lambda x, w: RMSNormalised.apply(x, w, 1e-6), lambda x, w: rms_norm(x, w, 1e-6), (x, weight)),
            (GatedSiLU.apply, gated_silu, (x, up)), (QuickGELU.apply, quick_gelu, (x,)),
            (lambda x: Rotated.apply(x, cos, sin), lambda x: rotate(x, cos, sin), (x,))):
        for found, wanted in zip(gradients(recomputed, *inputs), gradients(plain, *inputs), strict=True):
            torch.testing.assert_close(found, wanted, rtol=limit, atol=limit)


def logits_and_gradients(model, input_ids):
    logits = model(input_ids)
    logits.log_softmax(-1)[..., 65].sum().backward()
    return logits, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_gives_equal_logits_and_gradients_in_both_forms(make_model, checkpointing):
    plain, recomputed = make_model(), make_model()
    use_recomputed(recomputed)
    recomputed.model.gradient_checkpointing = checkpointing
    input_ids = torch.tensor([[64, 220, 65, 66]])
    logits, gradients = logits_and_gradients(plain, input_ids)
    again, others = logits_and_gradients(recomputed, input_ids)
    torch.testing.assert_close(logits, again)
    assert gradients.keys() == others.keys() and len(gradients) == 26
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=5e-6)


def forms(model):
    """The names of the formulas that the parts of a model compute."""
    return {getattr(function, "__self__", function).__name__ for module in model.modules()
            for name in ("normalise", "activation", "rotate") if (function := getattr(module, name, None))}


PLAIN = {"rms_norm", "gated_silu", "quick_gelu", "rotate"}
FAST = {"RMSNormalised", "normalised", "gated", "gelu", "Rotated"}


def test_a_new_model_is_plain_and_use_recomputed_replaces_every_formula(make_model, tmp_path):
    model = make_model()
    names = list(model.state_dict())
    assert forms(model) == PLAIN
    use_recomputed(model)
    assert forms(model) == forms(copy.deepcopy(model)) == FAST
    assert list(model.state_dict()) == names
    save_model(model, tmp_path)
    assert forms(load_model(tmp_path)) == forms(base_model(model)) == PLAIN


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


# ---------------------------------------------------------------- formulas in place of tensors

def saved_in(function):
    """What autograd saves in a call under `keep`, in order, and its result."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: found.append(keep(tensor)) or found[-1], restore):
        result = function()
    return found, result


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8)])                      # a product of three axes saves a view
def test_a_product_keeps_the_formula_of_its_input(shape):
    gate, up = (torch.randn(*shape, requires_grad=True) for _ in range(2))
    weight = torch.randn(3, 8, requires_grad=True)
    found, y = saved_in(lambda: torch.nn.functional.linear(gated(gate, up), weight))
    formulas = [kept for kept in found if isinstance(kept, tuple)]
    assert len(formulas) == 1 and formulas[0][1].numel() == gate.numel()
    assert torch.equal(restore(formulas[0]).flatten(), gated_silu(gate, up).flatten())
    y.sum().backward()
    wanted = torch.autograd.grad(torch.nn.functional.linear(gated_silu(gate, up), weight).sum(), [gate, up, weight])
    for found_, wanted_ in zip((gate.grad, up.grad, weight.grad), wanted, strict=True):
        torch.testing.assert_close(found_, wanted_)


def test_a_transposed_view_comes_back_in_its_layout():
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    y = with_formula(x * 2, lambda tensor: tensor * 2, x)
    assert isinstance(keep(y.T), tuple) and torch.equal(restore(keep(y.T)), 2 * x.detach().T)
    assert torch.equal(restore(keep(y[1:])), 2 * x.detach()[1:]) and restore(keep(x)) is not x


def test_nothing_carries_a_formula_where_no_gradient_is_computed():
    with torch.no_grad():
        assert not hasattr(gated(torch.ones(2), torch.ones(2)), "formula")


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "amp", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_that_keeps_formulas_has_the_same_gradients_to_the_bit(make_model, lora, precision, checkpointing):
    model = make_model()
    if lora:
        add_lora(model, 2, 4.0, ["q_proj", "up_proj", "down_proj"], torch.Generator().manual_seed(0))
        model.model.layers[0].mlp.down_proj.lora_B.data.fill_(0.1)
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    use_recomputed(model)
    model.model.gradient_checkpointing = model.visual.gradient_checkpointing = checkpointing
    patches = torch.randn(16, 1176, generator=torch.Generator().manual_seed(0))
    grid = torch.tensor([[1, 4, 4]])
    positions = torch.arange(9).expand(3, 1, -1)

    def states():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "amp"):
            features = model.image_features(patches, grid)
            embeds = torch.cat([model.embed(torch.tensor([[64, 220, 65, 66, 67]]), None), features[None]], dim=1)
            return model.hidden_states(embeds, positions, masked_attention(None))

    def gradients(function):
        model.zero_grad()
        function().float().square().sum().backward()
        return {name: part.grad for name, part in model.named_parameters() if part.grad is not None}

    wanted, found = gradients(states), gradients(keeping_formulas(states))
    assert wanted.keys() == found.keys() and wanted
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_a_kept_formula_leaves_no_tensor_behind(make_model):
    model, alive = make_model(), []
    use_recomputed(model)
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, x: alive.append(weakref.ref(x[0])))
    ids = torch.tensor([[64, 220, 65, 66]])
    hidden = keeping_formulas(lambda: model.hidden_states(
        model.embed(ids, None), torch.arange(4).expand(3, 1, -1), masked_attention(None)))()
    assert alive[0]() is None                               # the product of SwiGLU is gone before backward
    hidden.sum().backward()
