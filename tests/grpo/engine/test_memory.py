"""The memory plan: its parts by hand, its count of activations against a real pass, its advice."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import grpo.engine.memory as memory
from grpo.engine.flags import GRPOFlags, SFTFlags
from grpo.engine.memory import (
    Workload,
    activation_bytes,
    adapter_count,
    describe,
    memory_plan,
    micro_batch_shape,
    rollout_bytes,
    saved_bytes,
    what_helps,
    workload,
)
from grpo.fast.attention import branch_attention
from grpo.packing import pack
from models.fast.recomputed import use_recomputed

ROOT = Path(__file__).resolve().parents[3]
GRPO = dict(precision="fp32", group_size=4, prompts_per_step=2, max_new_tokens=8, micro_batch_tokens=4096)


@pytest.fixture
def work(micro_config):
    """A hundred parameters, ten of them embeddings; prompts of 20 tokens without a picture."""
    return Workload(micro_config, 100, 10, 7, 20, 0, "cpu", 1000)


def test_parts_by_hand(work):
    plan = memory_plan(work, GRPOFlags(**GRPO))
    # masters, gradients 4 bytes, two moments 8, a float32 reference 4; no copy to sample from in float32
    assert (plan["weights"], plan["gradients"], plan["AdamW"], plan["reference"]) == (400, 400, 800, 400)
    assert "sampling copy" not in plan and plan["process"] == 1000 and plan["pictures"] == 0
    # 2 prompts x (20 + 4 x 8 tokens) = 104 tokens x 2 (keys, values) x 2 layers x 1 head x 16 numbers x 4 bytes
    assert plan["KV cache"] == 104 * 2 * 2 * 16 * 4 == 26624
    # 2 rows x 4 answers x 8 tokens = 64 positions x 270 words (fewer than a strip) x 3 float32 tensors
    assert plan["logits of a strip"] == 64 * 270 * 12 == 207360


def test_bf16_and_adapters_by_hand(work):
    half = memory_plan(work, GRPOFlags(**{**GRPO, "precision": "bf16"}))
    assert (half["weights"], half["reference"], half["sampling copy"]) == (400, 200, 180)     # 90 x 2: shared head
    assert half["bf16 weights of a pass"] == 180 and half["KV cache"] == 13312
    lora = memory_plan(work, GRPOFlags(**{**GRPO, "precision": "bf16", "lora_rank": 4}))
    assert (lora["weights"], lora["gradients"], lora["AdamW"]) == (200, 28, 56)
    assert not {"reference", "bf16 weights of a pass"} & lora.keys()
    assert lora["sampling copy"] == 180                      # packed for a CPU; a card samples from the policy itself
    full = memory_plan(work, GRPOFlags(**{**GRPO, "lora_rank": 4}))
    assert full["sampling copy"] == 360                      # 90 x 4: no gradients of that size cover it
    card = replace(work, device="cuda")
    assert "sampling copy" not in rollout_bytes(card, GRPOFlags(**{**GRPO, "precision": "bf16", "lora_rank": 4}), 2)


def test_what_the_flags_switch_off(work):
    assert "reference" not in memory_plan(work, GRPOFlags(**GRPO, beta="0"))
    assert memory_plan(work, GRPOFlags(**GRPO, advantage="gae", variant="ppo"))["value network"] == 1600
    assert "value network" not in memory_plan(work, GRPOFlags(**GRPO, advantage="gae", variant="ppo",
                                                               value_trunk="shared"))
    sft = memory_plan(work, SFTFlags(precision="fp32", batch_size=4, max_new_tokens=8))
    assert not {"reference", "KV cache"} & sft.keys()
    # 4 pictures of 10 patches of 1176 float32 numbers, three times
    seen = memory_plan(replace(work, patches=8), SFTFlags(precision="fp32", batch_size=4, max_new_tokens=8))
    assert seen["pictures"] == 3 * 4 * 8 * 1176 * 4 and seen["activations"] > sft["activations"]


def test_features_of_a_frozen_tower_by_hand(work):
    seen = replace(work, patches=8, examples=5)
    assert "picture features" not in memory_plan(seen, GRPOFlags(**GRPO))
    # 5 pictures of 8 patches, of which four make one feature of 32 float32 numbers
    for flags in (dict(freeze_vision=True), dict(lora_rank=2)):
        assert memory_plan(seen, GRPOFlags(**GRPO, **flags))["picture features"] == 5 * 2 * 32 * 4
        assert memory_plan(seen, GRPOFlags(**GRPO, **flags, feature_cache_mb=0))["picture features"] == 0
    many = replace(seen, examples=10**7)
    assert memory_plan(many, GRPOFlags(**GRPO, lora_rank=2))["picture features"] == 1024 * 2**20


def test_micro_batch_shape_by_hand(work):
    # a row: 20 + 4 x 8 = 52 tokens; 110 hold two, 51 none, which still makes one; never more than there are prompts
    for tokens, rows in ((110, 2), (103, 1), (51, 1), (4096, 2)):
        assert micro_batch_shape(work, GRPOFlags(**{**GRPO, "micro_batch_tokens": tokens})) == (rows, [8] * 4)
    assert micro_batch_shape(work, GRPOFlags(**GRPO, bc_coef="1")) == (2, [8] * 5)
    assert micro_batch_shape(work, SFTFlags(batch_size=3, max_new_tokens=8)) == (3, [8])


def test_saved_bytes_by_hand():
    layer, x = torch.nn.Linear(3, 5), torch.zeros(7, 3)
    # the layer keeps its input, 7 x 3 x 4 bytes, and its own weight, which is no activation; exp keeps its output
    assert saved_bytes(layer, lambda: layer(x)) == 84
    assert saved_bytes(layer, lambda: layer(x).exp()) == 84 + 7 * 5 * 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_count_is_what_a_real_pass_keeps(make_model, make_prompts, work, checkpointing):
    model, prompt = make_model(), make_prompts()[1]
    use_recomputed(model)
    size = len(prompt.input_ids)
    rows = pack([prompt] * 2, [[torch.full((8,), 64)] * 4] * 2)
    model.model.gradient_checkpointing = checkpointing
    embeds = model.embed(rows.input_ids, None).detach().requires_grad_()
    real = saved_bytes(model, lambda: model.hidden_states(embeds, rows.position_ids, branch_attention(rows)))
    config = GRPOFlags(**GRPO, gradient_checkpointing=checkpointing)
    planned = activation_bytes(replace(work, prompt_tokens=size), config, 2, [8] * 4)
    assert planned == pytest.approx(real, rel=0.02)


def test_checkpointing_shrinks_it(work):
    sizes = [activation_bytes(work, GRPOFlags(**GRPO, gradient_checkpointing=on), 2, [8] * 4) for on in (True, False)]
    assert sizes[0] < sizes[1] / 3


def test_advice_names_what_helps(work):
    config, work = GRPOFlags(**GRPO), replace(work, prompt_tokens=60)           # so that it is above 1 %
    needed = sum(memory_plan(work, config).values())
    assert what_helps(work, config, needed) is None
    text = what_helps(work, config, needed - 1)
    assert "--gradient-checkpointing" in text and "--micro-batch-tokens 1" in text
    assert "--freeze-vision" not in text                     # there is no picture, so it would save nothing
    assert "--beta" not in what_helps(work, SFTFlags(precision="fp32", max_new_tokens=8), 1)


def test_flags_that_do_not_go_together_are_no_advice(work):
    config = GRPOFlags(**GRPO | {"algorithm": "ppo", "advantage": "gae", "value_trunk": "own"})
    assert "--lora-rank" not in what_helps(work, config, 1)


def test_adapter_count_by_hand(micro_config):
    # q_proj 32 -> 32 and v_proj 32 -> 16, two layers: 2 x 4 x (64 + 48)
    assert adapter_count(micro_config, 4, ["q_proj", "v_proj"]) == 896


def test_workload_of_a_model(make_model, make_prompts):
    model, prompts = make_model(), make_prompts()
    found = workload(model, prompts, GRPOFlags(), 5)
    adapted = workload(model, prompts, GRPOFlags(lora_rank=4, lora_targets="q_proj, v_proj"), 5)
    assert adapted.adapters == 896                           # as below
    assert found.parameters == sum(p.numel() for p in model.parameters()) and found.embedding == 270 * 32
    assert (found.prompt_tokens, found.patches) == (max(len(p.input_ids) for p in prompts), 24)
    untied = workload(make_model(tied=False), prompts, GRPOFlags(), 5)
    assert untied.embedding == 2 * 270 * 32


def test_describe():
    assert describe({"a": 2_000_000, "b": 3_500_000_000, "c": 0}) == "3.50 GB = b 3.50 GB + a 2 MB"


def test_what_the_allocator_keeps(work, monkeypatch):
    # 40 MB of kernels, and a quarter of activations and logits: .25 x 300 MB = 75 MB, at most 150 MB
    for activations, kept in ((300 * 10**6 - 12 * 64 * 270, 40 * 10**6 + 75 * 10**6), (10**9, 190 * 10**6)):
        monkeypatch.setattr(memory, "activation_bytes", lambda *_, size=activations: size)
        assert memory_plan(work, GRPOFlags(**GRPO))["allocator"] == kept
        assert "allocator" not in memory_plan(replace(work, device="cuda"), GRPOFlags(**GRPO))


def test_the_plan_is_within_15_percent_of_the_peak(tmp_path):
    """A short run of the demo in a process of its own; compare the two numbers of its last line."""
    command = [sys.executable, "train.py", "--stage", "sft", "--steps", "2", "--batch-size", "16", "--scenes", "60",
               "--eval-examples", "8", "--threads", "1", "--device", "cpu", "--output", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    planned, peak = (float(number) * {"MB": 1, "GB": 1000}[unit] for number, unit in re.findall(
        r"(\d[\d.]*) (MB|GB)", done.stdout.splitlines()[-1]))
    assert 0.85 < planned / peak < 1.15
