"""LoRA: starts at the base model, trains nothing else, is the reference when off, and merges into plain weights."""

import copy

import pytest
import torch
from torch import nn

from grpo.logprobs import completion_logprobs
from grpo.packing import pack
from models import load_model
from models.lora import (
    LoRALinear,
    adapter_parameters,
    add_lora,
    base_model,
    kept_share,
    lora_layers,
    merge_into,
    merged_state_dict,
)
from models.weights import save_tensors

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rows(make_prompts):
    """Three packed prompts, two of them with a picture, with two answers each."""
    answers = [[torch.tensor([40, 41, 42, 258]), torch.tensor([70, 258])]] * 3
    return pack(make_prompts(), answers)


def logprobs(model, rows):
    with torch.no_grad():
        return completion_logprobs(model, rows)[0]


def train(model, rows, steps=3):
    """Some large steps of AdamW towards the answers; a step of Adam moves each number by about the learning rate."""
    optimizer = torch.optim.AdamW(adapter_parameters(model), lr=0.05, weight_decay=0.0)
    for _ in range(steps):
        (-completion_logprobs(model, rows)[0].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


def by_hand(dtype=torch.float32):
    """W = (1 2; 3 4), bias (.5, -.5); rank 2, alpha 3, so the scale is 1.5; A = (1 -1; 2 0), B = (1 0; 1 2)."""
    base = nn.Linear(2, 2)
    layer = LoRALinear(base.to(dtype), rank=2, alpha=3, generator=seeded())
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.bias.copy_(torch.tensor([0.5, -0.5]))
        layer.lora_A.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
        layer.lora_B.copy_(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    return layer


# ---------------------------------------------------------------- one layer

def test_forward_merge_and_gradients_by_hand():
    # x = (2, 1): W x + b = (4.5, 9.5); A x = (1, 4); B A x = (1, 9), times 1.5 = (1.5, 13.5); y = (6, 23)
    # B A = (1 -1; 5 -1), times 1.5 = (1.5 -1.5; 7.5 -1.5); W + that = (2.5 .5; 10.5 2.5)
    # loss = first output: dB = 1.5 (1, 0) (A x)^T = (1.5 6; 0 0); dA = 1.5 B^T (1, 0) x^T = 1.5 (1, 0) (2, 1)
    layer = by_hand()
    y = layer(torch.tensor([2.0, 1.0]))
    assert y.tolist() == [6.0, 23.0]
    assert layer.merge_to(torch.empty(2, 2)).tolist() == [[2.5, 0.5], [10.5, 2.5]]
    y[0].backward()
    assert layer.lora_B.grad.tolist() == [[1.5, 6.0], [0.0, 0.0]]
    assert layer.lora_A.grad.tolist() == [[3.0, 1.5], [0.0, 0.0]]
    assert layer.weight.grad is None and layer.bias.grad is None


def test_a_bfloat16_base_keeps_its_dtype_and_float32_adapters():
    layer = by_hand(torch.bfloat16)
    y = layer(torch.tensor([[2.0, 1.0]], dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and y.tolist() == [[6.0, 23.0]]            # small whole numbers: exact in bfloat16
    y[0, 0].backward()
    assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32
    assert layer.lora_B.grad.tolist() == [[1.5, 6.0], [0.0, 0.0]]
    assert {name: p.dtype for name, p in layer.named_parameters()} == {
        "weight": torch.bfloat16, "bias": torch.bfloat16, "lora_A": torch.float32, "lora_B": torch.float32}


def test_autocast_gives_the_dtype_of_a_linear_layer():
    with torch.autocast("cpu", torch.bfloat16):
        y = by_hand()(torch.tensor([2.0, 1.0]))
    assert y.dtype == torch.bfloat16 and y.tolist() == [6.0, 23.0]


def test_merging_is_float32_even_inside_autocast_and_rounds_once():
    # W 3, correction 1.5 * 5 * 2^-10: 3.00732421875. bfloat16 has steps of 2^-6 there (3 or 3.015625): 3
    layer, half = by_hand(), by_hand(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        for each in (layer, half):
            each.lora_A.data.mul_(2**-10)
            assert each.merge_to(torch.empty(2, 2))[1, 0].item() == 3.00732421875
        out = torch.empty(2, 2, dtype=torch.bfloat16)
        assert layer.merge_to(out) is out and out[1, 0].item() == 3.0 and not out.requires_grad


def test_the_share_of_the_change_that_bfloat16_keeps_by_hand():
    layer = by_hand(torch.bfloat16)                          # the change: 1.5 B A = (1.5 -1.5; 7.5 -1.5)
    assert kept_share(nn.Sequential(layer)) == 1.0
    layer.scale *= 2**-12                                    # half a unit in the last place of 1 is 2^-8
    assert kept_share(nn.Sequential(layer)) == 0.0
    with torch.no_grad():
        layer.weight[1, 0] = 0.0                             # there nothing is lost: 7.5^2 of 63
    assert kept_share(nn.Sequential(layer)) == pytest.approx(56.25 / 63)
    assert kept_share(nn.Sequential(by_hand())) == kept_share(nn.Linear(2, 2)) == 1.0


def test_merging_covers_matrices_of_any_height():
    # 600 rows are nine blocks of 64 and one of 24. W = 0, A = (1), B = row number, alpha / rank = 2
    layer = LoRALinear(nn.Linear(1, 600), rank=1, alpha=2, generator=seeded())
    with torch.no_grad():
        layer.weight.zero_()
        layer.lora_A.fill_(1)
        layer.lora_B.copy_(torch.arange(600.0)[:, None])
    merged = layer.merge_to(torch.empty(600, 1))
    assert merged[[0, 63, 64, 575, 576, 599], 0].tolist() == [0, 126, 128, 1150, 1152, 1198]


# ---------------------------------------------------------------- the start

@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_starts_exactly_at_the_base(make_model, rows, tied, dtype, autocast):
    model = make_model(tied=tied).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = logprobs(model, rows)
        add_lora(model, 4, 8, ALL, seeded())
        assert torch.equal(logprobs(model, rows), before)


def test_trainable_parameters_by_hand(make_model):
    # Width 32, keys 16, MLP 64, two layers; an adapter has rank * (in + out) numbers. Rank 4: q and o 4 * 64 = 256,
    # k and v 4 * 48 = 192, gate, up and down 4 * 96 = 384: 2 * (2 * 256 + 2 * 192 + 3 * 384) = 4096.
    # q and v alone: 2 * (256 + 192) = 896.
    for targets, count in ((ALL, 4096), (("q_proj", "v_proj"), 896)):
        model = make_model()
        add_lora(model, 4, 8, targets, seeded())
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert sum(p.numel() for p in trained.values()) == count
        assert sum(p.numel() for p in adapter_parameters(model)) == count
        assert all(name.endswith((".lora_A", ".lora_B")) and name.startswith("model.layers.") for name in trained)
    assert set(lora_layers(model)) == {f"model.layers.{i}.self_attn.{part}_proj" for i in (0, 1) for part in "qv"}


def test_names_and_tensors_of_the_base_stay(make_model):
    model, plain = make_model(), make_model()
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    add_lora(model, 4, 8, ALL, seeded())
    after = {name: p for name, p in model.named_parameters() if "lora_" not in name}
    assert {name: p.data_ptr() for name, p in after.items()} == places          # taken over, not copied
    assert all(torch.equal(p, after[name]) for name, p in plain.named_parameters())


def test_the_start_comes_from_the_generator_alone(make_model):
    def adapters(seed):
        model = make_model()
        add_lora(model, 4, 8, ("q_proj", "down_proj"), seeded(seed))
        return adapter_parameters(model)

    state = torch.get_rng_state()
    first, same, other = adapters(0), adapters(0), adapters(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, same)) and not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[4])                                  # q_proj of the two layers
    assert not any(b.any() for b in first[1::2])                                # every B is zero
    wide = LoRALinear(nn.Linear(400, 3), rank=100, alpha=1, generator=seeded())
    assert wide.lora_A.std().item() == pytest.approx(0.05, rel=0.02)            # 1 / sqrt(400), 40,000 draws


# ---------------------------------------------------------------- training

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_the_reference_after_training(make_model, rows, dtype):
    model = make_model().to(dtype)
    base = copy.deepcopy(model)
    add_lora(model, 4, 8, ALL, seeded())
    reference = base_model(model)
    train(model, rows)
    trained = logprobs(model, rows)
    assert (trained - logprobs(base, rows)).abs().max() > 1                     # nats: far from where it began
    assert torch.equal(logprobs(reference, rows), logprobs(base, rows)) and not lora_layers(reference)
    memory = {tensor.data_ptr() for tensor in model.parameters()}
    assert all(tensor.data_ptr() in memory for tensor in reference.parameters())    # no second model is held
    assert not any(tensor.requires_grad for tensor in reference.parameters())


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_only_adapters_receive_gradients(make_model, rows, checkpointing, dtype, autocast):
    model = make_model().to(dtype)
    add_lora(model, 4, 8, ALL, seeded())
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.fill_(0.02)                                            # else B = 0 keeps every A from moving
    model.model.gradient_checkpointing = model.visual.gradient_checkpointing = checkpointing
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        completion_logprobs(model, rows)[0].sum().backward()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
        else:
            assert parameter.grad is None, name


def test_gradient_checkpointing_does_not_change_gradients(make_model, rows):
    def gradients(checkpointing):
        model = make_model()
        add_lora(model, 4, 8, ALL, seeded())
        train(model, rows, 1)
        model.model.gradient_checkpointing = checkpointing
        with torch.autocast("cpu", torch.bfloat16):
            completion_logprobs(model, rows)[0].sum().backward()
        return [parameter.grad for parameter in adapter_parameters(model)]

    assert all(map(torch.equal, gradients(True), gradients(False)))


# ---------------------------------------------------------------- merged weights

@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_load_in_plain_code(make_model, rows, tmp_path, tied):
    model = make_model(tied=tied)
    names = list(model.state_dict())
    add_lora(model, 4, 8, ALL, seeded())
    train(model, rows)
    merged = merged_state_dict(model)
    assert list(merged) == names
    assert merged["model.norm.weight"].data_ptr() == model.model.norm.weight.data_ptr()  # what has no adapter is shared
    save_tensors(merged, model.config, tmp_path)
    loaded = load_model(tmp_path)                                               # raises for any surplus lora_ tensor
    # float32 adds in another order: W x + 2 B A x against (W + 2 B A) x
    torch.testing.assert_close(logprobs(loaded, rows), logprobs(model, rows), atol=1e-4, rtol=0)


def test_a_plain_model_merges_to_itself(make_model):
    model = make_model()
    merged, own = merged_state_dict(model), model.state_dict()
    assert list(merged) == list(own) and all(merged[name].data_ptr() == own[name].data_ptr() for name in own)


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copy_dtype", [torch.float32, torch.bfloat16])
def test_merge_into_refreshes_a_copy_in_place(make_model, rows, base_dtype, copy_dtype):
    model, rollout_copy = make_model(0).to(base_dtype), make_model(1).to(copy_dtype)
    add_lora(model, 4, 8, ALL, seeded())
    places = [parameter.data_ptr() for parameter in rollout_copy.parameters()]
    for _ in range(2):                                                          # the second time over the first
        train(model, rows, 2)
        before = copy.deepcopy(model.state_dict())
        merge_into(model, rollout_copy)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        for name, tensor in rollout_copy.state_dict().items():
            layer = lora_layers(model).get(name.removesuffix(".weight"))
            adapted = layer is not None and name.endswith("weight")
            exact = layer.merge_to(torch.empty(tensor.shape)) if adapted else before[name]
            assert tensor.dtype == copy_dtype and torch.equal(tensor, exact.to(copy_dtype)), name
    assert [parameter.data_ptr() for parameter in rollout_copy.parameters()] == places
    if base_dtype == copy_dtype == torch.float32:
        torch.testing.assert_close(logprobs(rollout_copy, rows), logprobs(model, rows), atol=1e-4, rtol=0)


def test_a_merged_bfloat16_model_stays_close(make_model, rows, tmp_path):
    model = make_model().to(torch.bfloat16)
    add_lora(model, 4, 8, ALL, seeded())
    train(model, rows)
    merged = merged_state_dict(model)
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    save_tensors(merged, model.config, tmp_path)
    gap = (logprobs(load_model(tmp_path, torch.bfloat16), rows) - logprobs(model, rows)).abs()
    base = logprobs(base_model(model), rows)
    # bfloat16 keeps 8 binary digits, here of numbers around 3: the two round at different places
    assert gap.max() < 0.2 and gap.mean() < 0.02 * (logprobs(model, rows) - base).abs().mean()


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize(("rank", "alpha", "targets", "message"), [
    (0, 8, ALL, "rank 0"), (4, 0, ALL, "alpha 0"), (4, 8, (), "name at least one"),
    (4, 8, ("q_proj", "qkv"), r"\['qkv'\].*q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj")])
def test_faults_are_named_before_anything_changes(make_model, rank, alpha, targets, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        add_lora(model, rank, alpha, targets, seeded())
    assert not lora_layers(model) and all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_are_added_once(make_model):
    model = make_model()
    add_lora(model, 4, 8, ("q_proj",), seeded())
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(model, 4, 8, ("k_proj",), seeded())


def test_merge_into_wants_the_same_plain_model(make_model):
    model = make_model()
    add_lora(model, 4, 8, ALL, seeded())
    with pytest.raises(ValueError, match="lm_head.weight"):
        merge_into(model, make_model(tied=False))
    with pytest.raises(ValueError, match="without adapters"):                   # above all: not into the base itself
        merge_into(model, model)


def test_merge_into_leaves_shared_tensors_alone_and_refuses_shared_targets(make_model):
    model, plain = make_model(0), make_model(1)
    add_lora(model, 4, 8, ("o_proj",), seeded())
    plain.model.embed_tokens.weight = model.model.embed_tokens.weight           # as a sampling copy shares its head
    version = plain.model.embed_tokens.weight._version
    merge_into(model, plain)
    assert plain.model.embed_tokens.weight._version == version
    norm = plain.model.norm.weight
    with torch.no_grad():
        norm.fill_(7)
    plain.model.layers[1].self_attn.o_proj.weight = model.model.layers[1].self_attn.o_proj.weight
    with pytest.raises(ValueError, match="shares model.layers.1.self_attn.o_proj.weight"):
        merge_into(model, plain)
    assert norm.eq(7).all()                                                     # refused before anything was written


def test_an_unmerged_save_is_refused_by_the_loader(make_model, tmp_path):
    model = make_model()
    add_lora(model, 4, 8, ALL, seeded())
    save_tensors(model.state_dict(), model.config, tmp_path)
    with pytest.raises(ValueError, match="surplus: model.layers.0.self_attn.q_proj.lora_A"):
        load_model(tmp_path)
