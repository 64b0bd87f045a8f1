"""One reinforcement step, and what both stages share: optimizer, schedule, guarded update."""

import copy
import math
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from grpo import step as method
from grpo.config import ALGORITHMS, GRPOConfig, SFTConfig
from grpo.engine.optimizer import freeze_copy, make_optimizer, make_scheduler
from grpo.fast import FAST
from grpo.fast.sampler import Sampler
from grpo.groups import PromptBatch
from grpo.step import Learner, grpo_step, update
from models.value import ValueNetwork

real = method.update_policy


def flat(example, completions):
    return [{"speed": 1.0, "path": 0.5, "format": 0.0} for _ in completions]


def make_config(**changes):
    return GRPOConfig(**{"group_size": 4, "max_new_tokens": 8, "learning_rate": 1e-2, "micro_batch_tokens": 4096,
                         "beta": 0.0, "max_grad_norm": 1e9, **changes})


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def largest_change(before, after):
    return max((before[name] - after[name]).abs().max().item() for name in before)


# ---------------------------------------------------------------- the step

@pytest.mark.parametrize("variant", ["grpo", "dapo", "dr_grpo", "gspo", "sequence", "reinforce", "cispo", "ppo"])
def test_first_update_is_on_policy(run, variant):
    metrics, _, _ = run(make_config(variant=variant))
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["clip_frac"] == 0.0
    assert metrics["logprob_gap"] < 1e-5
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_loss_is_zero_but_its_gradient_is_not(run):
    # advantages of a group add up to 0 and each completion counts the same: the first loss says nothing
    metrics, groups, _ = run(make_config())
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["grad_norm"] > 0.01
    for group in groups:
        assert sum(group["advantages"]) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("variant", ["grpo", "dapo", "dr_grpo", "gspo"])
@pytest.mark.parametrize("updates", [1, 2])
def test_micro_batch_size_changes_nothing(run, make_model, variant, updates):
    results = []
    for size in (1, 160, 4096):
        config = make_config(micro_batch_tokens=size, variant=variant, beta=0.1, updates_per_rollout=updates)
        results.append(run(config, reference=freeze_copy(make_model(seed=5, stop=1.0))))
    (one, groups, first), *others = results
    assert len({len(text) for group in groups for text in group["texts"]}) > 2     # lengths differ, or it means nothing
    start = weights(make_model(stop=1.0))
    assert largest_change(start, weights(first)) > 1e-3
    for metrics, _, model in others:
        for name, value in one.items():
            if name != "logprob_gap":                        # a maximum of rounding errors
                assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert largest_change(weights(first), weights(model)) < 1e-5


def test_old_logprobs_stay_fixed_over_several_updates(run):
    once, twice, thrice = (run(make_config(updates_per_rollout=n, learning_rate=0.001))[0] for n in (1, 2, 3))
    assert [metrics["updates"] for metrics in (once, twice, thrice)] == [1, 2, 3]
    assert once["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert abs(twice["ratio"] - 1.0) > 1e-5 and twice["approx_kl"] > 1e-5       # the second update's numbers
    # KL is quadratic in the distance: after two equal moves about 4 times that of one. Renewed in between: 1 time
    assert thrice["approx_kl"] > 2 * twice["approx_kl"]


def test_clipping_engages_when_the_policy_moves(run):
    metrics, _, _ = run(make_config(updates_per_rollout=2, learning_rate=0.5, clip_low=0.01, clip_high=0.01))
    assert 0.0 < metrics["clip_frac"] <= 1.0


def test_target_kl_stops_further_updates(run):
    free, _, _ = run(make_config(updates_per_rollout=4, learning_rate=0.05))
    held, _, model = run(make_config(updates_per_rollout=4, learning_rate=0.05, target_kl=1e-6))
    assert free["updates"] == 4 and held["updates"] == 1
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())   # nothing left over for the next step
    _, _, single = run(make_config(updates_per_rollout=1, learning_rate=0.05))
    assert largest_change(weights(single), weights(model)) < 1e-5


@pytest.mark.parametrize(("target_kl", "made"), [(0.0, 4), (0.015, 2), (0.025, 3), (1.0, 4)])
def test_target_kl_is_in_nats(monkeypatch, target_kl, made):
    # KL(old || new) before the four updates: 0, .01, .02, .03
    found = ({"approx_kl": 0.01 * i, "logprob_gap": 0.0, "loss": 0.0} for i in range(4))
    monkeypatch.setattr(method, "accumulate", lambda *_: next(found))
    monkeypatch.setattr(method, "update", lambda *_: {"skipped": 0.0})
    learner = SimpleNamespace(policy=None, value=None, optimizer=Mock(), scheduler=Mock())
    assert method.update_policy(learner, [], make_config(updates_per_rollout=4, target_kl=target_kl), 0.0)["updates"] \
        == made


def test_the_schedule_follows_the_steps_whatever_target_kl_leaves_out(run, make_model):
    """Of 4 planned updates one is made; the rate of the next step is that after 4."""
    for target_kl, made in ((0.0, 4), (1e-6, 1)):
        config = make_config(updates_per_rollout=4, learning_rate=0.05, target_kl=target_kl)
        model = make_model(stop=1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / 8)
        metrics, *_ = run(config, model=model, optimizer=optimizer, scheduler=schedule)
        assert metrics["updates"] == made and schedule.get_last_lr()[0] == pytest.approx(0.05 * 0.5)


def test_reference_never_moves_and_never_gets_a_gradient(run, make_model):
    reference = freeze_copy(make_model(seed=5, stop=1.0))
    before = weights(reference)
    metrics, _, _ = run(make_config(beta=0.1, updates_per_rollout=2), reference=reference)
    assert metrics["kl"] > 0.0
    assert largest_change(before, weights(reference)) == 0.0
    assert all(p.grad is None and not p.requires_grad for p in reference.parameters())


def test_freeze_copy_is_a_copy(run, make_model):
    model = make_model()
    reference = freeze_copy(model)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    assert reference.model.norm.weight.tolist() == [1.0] * 32
    assert all(p.requires_grad for p in model.parameters())


def test_kl_is_zero_against_oneself(run, make_model):
    model = make_model(stop=1.0)
    metrics, _, _ = run(make_config(beta=0.1), model=model, reference=freeze_copy(model))
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-7)


def test_flat_groups_leave_the_weights_alone(run, make_model):
    model = make_model(stop=1.0)
    before = weights(model)
    config = make_config(weight_decay=0.0)
    metrics, groups, _ = run(config, flat, model=model, optimizer=make_optimizer(model, config))
    assert metrics["flat_groups"] == 1.0 and metrics["grad_norm"] == 0.0
    assert metrics["reward"] == 1.5 and metrics["reward_std"] == 0.0
    assert all(advantage == 0.0 for group in groups for advantage in group["advantages"])
    assert largest_change(before, weights(model)) == 0.0


def test_flat_groups_still_feel_the_reference(run, make_model):
    model = make_model(stop=1.0)
    before = weights(model)
    metrics, _, _ = run(make_config(beta=0.1), flat, model=model, reference=freeze_copy(make_model(seed=5, stop=1.0)))
    assert metrics["flat_groups"] == 1.0 and metrics["grad_norm"] > 1e-3
    assert largest_change(before, weights(model)) > 0.0


def test_kl_term_pulls_towards_the_reference(run, make_model):
    model, reference = make_model(stop=1.0), freeze_copy(make_model(seed=5, stop=1.0))
    config, kl = make_config(beta=1.0, learning_rate=0.05), []
    for _ in range(8):                                       # step 0 again and again: nearly the same samples
        metrics, _, _ = run(config, flat, model=model, reference=reference)
        kl.append(metrics["kl"])
    assert kl[-1] < 0.8 * kl[0]


def test_non_finite_gradient_skips_the_step_and_is_counted(run, make_model):
    model = make_model(stop=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = make_scheduler(optimizer, make_config(warmup_steps=0), 10)
    before = weights(model)
    broken = model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    metrics, _, _ = run(make_config(updates_per_rollout=2), model=model, optimizer=optimizer, scheduler=scheduler)
    assert metrics["skipped"] == 2.0
    assert largest_change(before, weights(model)) == 0.0
    assert scheduler.last_epoch == 0
    broken.remove()
    metrics, _, _ = run(make_config(), model=model, optimizer=optimizer, scheduler=scheduler)
    assert metrics["skipped"] == 0.0 and math.isfinite(metrics["grad_norm"])     # nothing of the NaN stayed behind
    assert largest_change(before, weights(model)) > 0.0
    assert scheduler.last_epoch == 1


def test_updates_are_counted_without_the_skipped(run, make_model):
    model, seen = make_model(stop=1.0), []
    model.model.norm.weight.register_hook(
        lambda gradient: gradient * (float("nan") if seen.append(0) or len(seen) == 2 else 1))
    metrics, _, _ = run(make_config(updates_per_rollout=3, micro_batch_tokens=4096), model=model)
    assert len(seen) == 3 and (metrics["updates"], metrics["skipped"]) == (2, 1.0)


@pytest.mark.parametrize("size", [1, 4096])
def test_gradient_is_clipped_after_accumulation(run, make_model, size):
    # SGD with rate 1 moves the weights by the clipped gradient: 0.01 in all, however it was accumulated
    model = make_model(stop=1.0)
    before = weights(model)
    metrics, _, _ = run(make_config(micro_batch_tokens=size, max_grad_norm=0.01, learning_rate=1.0), model=model)
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in model.named_parameters()]).norm()
    assert metrics["grad_norm"] > 0.02                       # reported as it was before the clip
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


def test_temperature_is_the_same_in_sampling_and_training(run):
    metrics, _, _ = run(make_config(temperature=0.6))
    assert metrics["logprob_gap"] < 1e-5 and metrics["ratio"] == pytest.approx(1.0, abs=1e-5)


def test_every_pass_uses_the_same_temperature_and_the_right_model(run, make_model):
    # a rate that moves nothing: the second update still sees ratio 1, so old came from the policy, at this temperature
    config = make_config(temperature=0.6, updates_per_rollout=2, learning_rate=1e-12, beta=0.1)
    metrics, _, _ = run(config, reference=freeze_copy(make_model(seed=5, stop=1.0)))
    assert metrics["updates"] == 2 and metrics["kl"] > 0.01
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5) and metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    own, _, _ = run(config, reference=freeze_copy(make_model(stop=1.0)))
    assert own["kl"] == pytest.approx(0.0, abs=1e-6)


def test_step_changes_no_prompt_and_repeats_itself(make_model, make_prompts, make_examples, processor, by_length):
    prompts, results = make_prompts(), []
    before = [copy.deepcopy(vars(prompt)) for prompt in prompts]
    for _ in range(2):
        model = make_model(stop=1.0)
        optimizer = make_optimizer(model, make_config())
        learner = Learner(model, None, None, Sampler(model, processor, 1.0, 8), optimizer,
                          make_scheduler(optimizer, make_config(), 5), kernels=FAST)
        batch = PromptBatch(range(3), make_examples(3), prompts)
        metrics, scored, credit = grpo_step(learner, lambda attempt, batch=batch: batch, by_length, make_config(),
                                            step=0)
        results.append((metrics, scored.rollout.texts, credit.rewards.tolist()))
    for prompt, old in zip(prompts, before, strict=True):
        for name, value in vars(prompt).items():
            assert value is old[name] or value == old[name] if not torch.is_tensor(value) else torch.equal(
                value, old[name])
    assert results[0] == results[1]


def test_rollout_metrics_by_hand(run, make_bigram):
    # after the prompt "a" or the stop, even odds; after "a" another "a": lengths are 1 or 8, texts "" or "aaaaaaaa"
    logits = torch.full((270, 270), -1000.0)
    logits[198, [64, 258]], logits[64, 64] = 0.0, 0.0
    metrics, groups, _ = run(make_config(), model=make_bigram(logits))
    texts = [text for group in groups for text in group["texts"]]
    long = texts.count("a" * 8)
    assert 0 < long < 12 and long + texts.count("") == 12
    assert metrics["completion_length"] == pytest.approx((8 * long + 12 - long) / 12)
    assert metrics["truncated"] == pytest.approx(long / 12)
    # entropy by rows: ln 2 for a stop; for a long answer ln 2 once and certainty 7 times
    assert metrics["entropy"] == pytest.approx(0.693147 * ((12 - long) + long / 8) / 12, abs=1e-5)
    assert metrics["flat_groups"] == pytest.approx(sum(len(set(group["texts"])) == 1 for group in groups) / 3)
    # by_length: .1 * 8 = .8 for the long ones; .01 * 8 * 97 = 7.76, its part after the point .76 (97 = "a")
    assert metrics["reward_speed"] == pytest.approx(0.8 * long / 12, abs=1e-6)
    assert metrics["reward_path"] == pytest.approx(0.76 * long / 12, abs=1e-5)
    assert metrics["reward"] == pytest.approx(1.56 * long / 12, abs=1e-5)


def test_reward_weights_decide_the_sum(run):
    _, groups, _ = run(make_config(reward_weights="2,0,1"))
    for group in groups:
        for text, reward in zip(group["texts"], group["rewards"], strict=True):
            assert reward == pytest.approx(0.2 * len(text), abs=1e-5)          # 2 * 0.1 per letter, path ignored


def test_a_few_steps_raise_a_toy_reward(run, make_model):
    # reward 1 for a first letter in the first half of the printable signs, "!" to "O"
    def reward(example, completions):
        return [{"speed": float("!" <= text[:1] <= "O"), "path": 0.0, "format": 0.0} for text in completions]
    model, config = make_model(), make_config(group_size=16, max_new_tokens=2, learning_rate=1e-2)
    optimizer = make_optimizer(model, config)
    rewards = [run(config, reward, model=model, optimizer=optimizer, step=step)[0]["reward"] for step in range(15)]
    assert sum(rewards[:2]) / 2 < 0.4 and sum(rewards[-2:]) / 2 > 0.8


# ---------------------------------------------------------------- optimizer, schedule, update

def test_weight_decay_spares_norms_biases_and_embeddings(make_model):
    model = make_model(tied=False)
    optimizer = make_optimizer(model, SFTConfig(weight_decay=0.1, learning_rate=3e-4, adam_beta2=0.95))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(decay) == len(named)
    spared = ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
              "model.layers.0.input_layernorm.weight", "model.layers.1.self_attn.q_proj.bias",
              "visual.blocks.0.norm1.weight", "visual.blocks.0.mlp.fc1.bias", "visual.merger.ln_q.weight")
    decayed = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight",
               "visual.blocks.0.attn.qkv.weight", "visual.merger.mlp.0.weight")
    assert [decay[id(named[name])] for name in spared] == [0.0] * 8
    assert [decay[id(named[name])] for name in decayed] == [0.1] * 4
    assert {group["lr"] for group in optimizer.param_groups} == {3e-4}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


def rates(updates=10, **settings):
    config = SFTConfig(**{"learning_rate": 1.0, "warmup_steps": 2, **settings})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, seen = make_scheduler(optimizer, config, updates), []
    for _ in range(updates + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(("settings", "expected"), [
    # warm-up over 2 updates: 1/3, 2/3, then 1; the fall covers updates 2 .. 10, an eighth each
    ({"lr_schedule": "linear"}, [1 / 3, 2 / 3, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
    ({"lr_schedule": "constant"}, [1 / 3, 2 / 3] + [1] * 9),
    # (1 + cos(pi k / 8)) / 2 for k = 0 .. 8
    ({"lr_schedule": "cosine"}, [1 / 3, 2 / 3, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0]),
    # constant up to update 5, then a fifth each
    ({"lr_schedule": "linear", "decay_share": 0.5}, [1 / 3, 2 / 3, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]),
    # ends at a tenth: .1 + .9 * share
    ({"lr_schedule": "linear", "min_lr_ratio": 0.1},
     [1 / 3, 2 / 3, 1, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125, 0.1]),
    # -1: a tenth of 10 is one update of warm-up; then ninths
    ({"lr_schedule": "linear", "warmup_steps": -1}, [1 / 2] + [1 - k / 9 for k in range(10)]),
    ({"lr_schedule": "linear", "warmup_steps": 0}, [1 - k / 10 for k in range(11)]),
])
def test_schedule_by_hand(settings, expected):
    assert rates(**settings) == pytest.approx(expected, abs=1e-6)


def test_schedule_of_one_update():
    assert rates(1, warmup_steps=0)[0] == 1.0


def test_update_reports_the_rate_it_used():
    parameter = torch.nn.Parameter(torch.ones(2))
    model = torch.nn.ParameterList([parameter])
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make_scheduler(optimizer, SFTConfig(warmup_steps=1, lr_schedule="constant", learning_rate=1.0), 10)
    parameter.grad = torch.tensor([3.0, 4.0])
    metrics = update([model], optimizer, scheduler, 1.0, 0.5)
    # norm 5 is clipped to 1: (.6, .8); warm-up 1/2: 1 - .3, 1 - .4
    assert metrics == {"grad_norm": pytest.approx(5.0), "lr": pytest.approx(0.5), "skipped": 0.0}
    assert parameter.tolist() == pytest.approx([0.7, 0.6], abs=1e-5)
    assert parameter.grad is None or not parameter.grad.any()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)


def test_each_module_is_clipped_by_itself():
    policy, value = (torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(2))]) for _ in range(2))
    optimizer = torch.optim.SGD([*policy.parameters(), *value.parameters()], lr=1.0)
    scheduler = make_scheduler(optimizer, SFTConfig(warmup_steps=0, lr_schedule="constant"), 10)
    policy[0].grad, value[0].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    metrics = update([policy, value], optimizer, scheduler, 1.0, 0.5)
    # 5 is clipped to 1, .5 stays; together they would have been clipped to .995 and .0995
    assert metrics["grad_norm"] == pytest.approx(5.0)
    assert policy[0].tolist() == pytest.approx([-0.6, -0.8], abs=1e-5)
    assert value[0].tolist() == pytest.approx([-0.3, -0.4], abs=1e-5)
    policy[0].grad, value[0].grad = torch.ones(2), torch.tensor([float("nan"), 0.0])
    assert update([policy, value], optimizer, scheduler, 1.0, 0.5)["skipped"] == 1.0
    assert policy[0].tolist() == pytest.approx([-0.6, -0.8], abs=1e-5)         # a broken value network stops both


@pytest.mark.parametrize("own", [True, False])
def test_the_value_network_has_its_own_learning_rate(make_model, own):
    model = make_model()
    value = ValueNetwork(model, own)
    optimizer = make_optimizer(model, make_config(value_learning_rate=0.5, weight_decay=0.1), value)
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert {rate[id(p)] for p in value.parameters()} == {(0.5, 0.0)}
    assert {rate[id(p)][0] for p in model.parameters()} == {1e-2}
    assert len(rate) == len([*model.parameters()]) * (2 if own else 1) + 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_update_skips_a_broken_gradient_whole(bad):
    good, broken = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    model = torch.nn.ParameterList([good, broken])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    scheduler = make_scheduler(optimizer, SFTConfig(warmup_steps=0), 10)
    good.grad, broken.grad = torch.ones(1), torch.full((1,), bad)
    assert update([model], optimizer, scheduler, 1.0, 0.5)["skipped"] == 1.0
    assert good.item() == broken.item() == 1.0 and scheduler.last_epoch == 0
    assert not optimizer.state                               # no moment has seen it


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_update_skips_a_broken_loss_with_a_sound_gradient(loss):
    parameter = torch.nn.Parameter(torch.ones(1))
    model = torch.nn.ParameterList([parameter])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    scheduler = make_scheduler(optimizer, SFTConfig(warmup_steps=0), 10)
    parameter.grad = torch.ones(1)
    assert update([model], optimizer, scheduler, 1.0, loss) == {"grad_norm": 1.0, "lr": 0.1, "skipped": 1.0}
    assert parameter.item() == 1.0 and scheduler.last_epoch == 0 and not optimizer.state
    assert parameter.grad is None or not parameter.grad.any()


def test_hundred_tiny_steps_add_up(make_model):
    # lr 1e-6 on a norm weight of 1: bfloat16 (half a unit is 3.9e-3) would stand still, float32 must not. With a
    # constant gradient Adam moves by lr each time: 100 * 1e-6
    model = make_model()
    config = SFTConfig(learning_rate=1e-6, warmup_steps=0, lr_schedule="constant")
    optimizer = make_optimizer(model, config)
    scheduler = make_scheduler(optimizer, config, 100)
    for _ in range(100):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.01)
        update([model], optimizer, scheduler, 1.0, 0.5)
    assert (1 - model.model.norm.weight).tolist() == pytest.approx([1e-4] * 32, rel=0.05)


ALGORITHMS_TRIED = [dict(settings, algorithm=name) for name, settings in ALGORITHMS.items()]


@pytest.mark.parametrize("updates", [1, 4])
@pytest.mark.parametrize("settings", ALGORITHMS_TRIED, ids=list(ALGORITHMS))
def test_nothing_is_clipped_before_the_policy_has_moved(run, make_model, make_value, processor, monkeypatch, settings,
                                                        updates):
    """bf16 rounds the sampler's log-probabilities by more than the clip of GSPO; the ratio must not see that."""
    model, found = make_model(stop=1.0), []
    monkeypatch.setattr(method, "update_policy", lambda learner, batch, config, progress: found.append(
        method.accumulate(learner, batch, config, progress)) or real(learner, batch, config, progress))
    config = make_config(**{**settings, "updates_per_rollout": updates, "learning_rate": 1e-9, "precision": "bf16",
                            "dynamic_sampling": 0})
    reference = freeze_copy(make_model(stop=1.0)) if config.needs_reference else None
    value = make_value(model) if config.advantage == "gae" else None
    metrics, _, _ = run(config, model=model, reference=reference, value=value,
                        sampler=Sampler(model, processor, 1.0, 8, dtype=torch.bfloat16))
    (first,) = found
    assert first["clip_frac"] == 0.0 and first["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["clip_frac"] == 0.0 and metrics["updates"] == updates
    assert first["logprob_gap"] > 4e-4                       # the sampler's own values would have been clipped
