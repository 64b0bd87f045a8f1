"""The unified objective: each term by itself, all of them together, and that micro-batches add up.

One SGD step with rate 1 and no clipping moves the weights by minus the gradient, so `gradient` reads it off them.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from grpo.config import GRPOConfig
from grpo.credit import assign_credit
from grpo.engine.optimizer import freeze_copy
from grpo.engine.prompts import PromptSettings, encode_target
from grpo.fast.sampler import Sampler
from grpo.groups import PromptBatch, sample_groups
from grpo.logprobs import PLAIN
from grpo.losses import aggregate, kl_penalty
from grpo.objective import (
    MicroBatch,
    Pass,
    completion_values,
    corrected_advantages,
    denominators,
    objective,
    probability_ratio,
)
from grpo.packing import pack
from grpo.step import micro_batch, pack_branches
from models.value import ValueNetwork


def make_config(**changes):
    return GRPOConfig(**{"group_size": 4, "max_new_tokens": 8, "learning_rate": 1.0, "micro_batch_tokens": 4096,
                         "beta": "0", "max_grad_norm": 1e9, **changes})


def flat(example, completions):
    return [{"speed": 1.0, "path": 0.5, "format": 0.0} for _ in completions]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def gradient(run, make_model):
    """gradient(config, ...) -> what the step followed, flattened, and its metrics."""
    def of(config, **given):
        model = make_model(stop=1.0)
        before = weights(model)
        metrics, groups, _ = run(config, model=model, **given)
        return before - weights(model), metrics, groups
    return of


def test_kl_and_entropy_are_token_means_in_every_variant(gradient, reference):
    """dr_grpo divides its loss by the padded length, here 8; its metrics are those of dapo on the same samples."""
    (_, dapo, _), (_, dr_grpo, _) = (gradient(make_config(variant=variant, beta="0.1"), reference=reference)
                                     for variant in ("dapo", "dr_grpo"))
    assert dapo["kl"] > 0.01 and dr_grpo["kl"] == pytest.approx(dapo["kl"], rel=1e-5)
    assert dr_grpo["entropy"] == pytest.approx(dapo["entropy"], rel=1e-5)


@pytest.fixture
def reference(make_model):
    return freeze_copy(make_model(seed=5, stop=1.0))


# ---------------------------------------------------------------- micro-batches

EVERYTHING = dict(beta="0.1", reward_kl=0.05, ent_coef="0.01", bc_coef="0.5", mask_truncated=True, kl_ratio=True,
                  updates_per_rollout=2, importance_cap=2.0, learning_rate=0.1)


@pytest.mark.parametrize("settings", [
    dict(variant="ppo", advantage="gae"), dict(variant="ppo", advantage="gae", value_trunk="shared"),
    dict(variant="grpo"), dict(variant="dr_grpo", flat_kl=False), dict(variant="dapo"), dict(variant="cispo"),
    dict(variant="reinforce", advantage="leave_one_out"), dict(variant="gspo", importance_cap=0.0)],
    ids=lambda s: " ".join(map(str, s.values())))
def test_micro_batches_of_every_term_add_up(run, make_model, make_value, make_examples, reference, settings):
    examples = make_examples(3)
    examples[1] = replace(examples[1], reasoning=None)       # one expert borrows a think block, or has no branch
    results = []
    for size in (1, 160, 4096):
        model = make_model(stop=1.0)
        config = make_config(**{**EVERYTHING, **settings}, micro_batch_tokens=size)
        value = make_value(model, config.value_trunk == "own") if config.advantage == "gae" else None
        metrics, _, _ = run(config, model=model, reference=reference, value=value, examples=examples)
        trained = [model] if value is None else [model, value]
        results.append((metrics, torch.cat([weights(module) for module in trained])))
    (one, first), *others = results
    assert 0 < one["truncated"] < 1 and one["bc_loss"] > 0 and one["kl"] > 0
    assert (first[:len(weights(make_model()))] - weights(make_model(stop=1.0))).abs().max() > 1e-3
    for metrics, moved in others:
        for name, number in one.items():
            if name != "logprob_gap":                        # a maximum of rounding errors
                assert metrics[name] == pytest.approx(number, rel=1e-4, abs=1e-5), name
        torch.testing.assert_close(moved, first, atol=1e-5, rtol=0)


def test_autocast_keeps_every_term_near_its_float32_value(run, make_model, make_value, reference):
    found = []
    for precision in ("fp32", "bf16"):
        model = make_model(stop=1.0)
        value = make_value(model)
        settings = {**EVERYTHING, "updates_per_rollout": 1, "importance_cap": 0.0}
        config = make_config(**settings, variant="ppo", advantage="gae", precision=precision)
        found.append(run(config, model=model, reference=reference, value=value)[0])
        assert {p.dtype for p in [*model.parameters(), *value.parameters()]} == {torch.float32}
    for name in ("entropy", "bc_loss"):                      # the others depend on what was sampled
        assert found[1][name] == pytest.approx(found[0][name], rel=0.1), name
    assert all(found[1][name] == found[1][name] for name in ("loss", "kl", "value_loss", "grad_norm"))   # no NaN
    assert found[1]["logprob_gap"] < 0.5


def test_the_objective_is_linear_in_its_terms(gradient, reference):
    off = dict(pg_coef="0", variant="dapo")
    terms = {"pg_coef": 2.0, "beta": 0.1, "ent_coef": 0.3, "bc_coef": 0.5}
    expected, alone = 0.0, {}
    for name, weight in terms.items():
        slope, alone[name], _ = gradient(make_config(**{**off, name: "1"}), reference=reference)
        assert slope.abs().max() > 1e-3, name
        expected = expected + weight * slope
    together, metrics, _ = gradient(make_config(**off | {name: str(w) for name, w in terms.items()}),
                                    reference=reference)
    torch.testing.assert_close(together, expected, atol=2e-6, rtol=1e-4)
    total = (2 * metrics["policy_loss"] + 0.1 * metrics["kl"] - 0.3 * metrics["entropy"] + 0.5 * metrics["bc_loss"])
    assert metrics["loss"] == pytest.approx(total, abs=1e-5)
    # each term's number is the same whether it is alone or not
    assert metrics["kl"] == pytest.approx(alone["beta"]["kl"], abs=1e-6)
    assert metrics["bc_loss"] == pytest.approx(alone["bc_coef"]["bc_loss"], abs=1e-5)
    assert metrics["policy_loss"] == pytest.approx(alone["pg_coef"]["policy_loss"], abs=1e-6)


@pytest.mark.parametrize(("text", "weight"), [("1:0:linear", 0.75), ("2:0.5:linear", 1.625), ("1:0:cosine", 0.853553),
                                              ("0.4", 0.4)])
def test_annealed_coefficients_reach_the_loss(gradient, text, weight):
    # a quarter of the run is done: 1 - .25 = .75;  2 - .25 * 1.5 = 1.625;  (1 + cos(pi / 4)) / 2 = .853553
    _, metrics, _ = gradient(make_config(pg_coef="0", ent_coef=text), progress=0.25)
    assert metrics["loss"] == pytest.approx(-weight * metrics["entropy"], rel=1e-5)


# ---------------------------------------------------------------- behaviour cloning

def supervised(model, prompts, targets, start):
    """Cross-entropy from the plain model on whole sequences; what the sampler never draws is left out here too."""
    losses = []
    for prompt, target, first in zip(prompts, targets, start, strict=True):
        ids = torch.cat([prompt.input_ids, target])
        logits = model(ids[None], None, prompt.pixel_values, prompt.image_grid_thw)[0, :-1]
        logits[:, list(model.config.suppressed_token_ids)] = -1e9
        size = len(prompt.input_ids) + first
        losses.append(F.cross_entropy(logits[size - 1:], ids[size:], reduction="sum"))
    return sum(losses) / sum(len(target) - first for target, first in zip(targets, start, strict=True))


def test_behaviour_cloning_equals_the_supervised_loss(gradient, make_model, make_prompts, make_examples, processor):
    slope, metrics, _ = gradient(make_config(pg_coef="0", bc_coef="1"))
    model = make_model(stop=1.0)
    targets = [encode_target(example, processor, PromptSettings()) for example in make_examples(3)]
    loss = supervised(model, make_prompts(), targets, [0, 0, 0])
    loss.backward()
    assert metrics["bc_loss"] == pytest.approx(loss.item(), abs=1e-5) and metrics["loss"] == metrics["bc_loss"]
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(slope, expected, atol=2e-6, rtol=1e-4)


def test_a_borrowed_think_block_is_not_imitated(run, make_bigram, make_prompts, make_examples, processor):
    # the model writes "<think>x</think>" and stops, whatever it is asked: each letter leads to the next.
    # < t h i n k > x < / t ... has repeated letters, so the odds are even wherever a letter has two successors.
    text = processor.encode_text("<think>x</think>") + [258]
    logits = torch.full((270, 270), -1000.0)
    for now, following in zip([198, *text], text, strict=False):
        logits[now, following] = 0.0
    model, examples = make_bigram(logits), [replace(e, reasoning=None) for e in make_examples(3)]
    config = make_config(pg_coef="0", bc_coef="1", group_size=64, max_new_tokens=40, learning_rate=1e-9)
    metrics, groups, _ = run(config, model=model, examples=examples)
    closed = [next(t for t in group["texts"] if "</think>" in t) for group in groups]
    answers = [processor.encode_text(f" <answer> {e.decision} </answer>") + [258] for e in examples]
    thinks = [processor.encode_text(t[:t.index("</think>") + 8]) for t in closed]
    loss = supervised(model, make_prompts(), [torch.tensor(t + a) for t, a in zip(thinks, answers, strict=True)],
                      list(map(len, thinks)))
    assert metrics["bc_loss"] == pytest.approx(loss.item(), rel=1e-5) and metrics["bc_loss"] > 100


def test_experts_without_a_think_block_to_borrow_have_no_term(gradient, make_examples):
    examples = [replace(example, reasoning=None) for example in make_examples(3)]
    slope, metrics, _ = gradient(make_config(pg_coef="0", bc_coef="1"), examples=examples)
    assert "bc_loss" not in metrics and metrics["loss"] == 0.0 and slope.abs().max() == 0.0


def test_the_expert_changes_nothing_for_the_samples(gradient, reference):
    _, without, groups = gradient(make_config(beta="0.1"), reference=reference)
    _, beside, same = gradient(make_config(beta="0.1", bc_coef="0.5"), reference=reference)
    assert groups == same and beside["logprob_gap"] < 1e-5
    for name in ("policy_loss", "kl", "entropy", "ratio", "reward"):
        assert beside[name] == pytest.approx(without[name], abs=1e-6), name
    assert beside["loss"] == pytest.approx(without["loss"] + 0.5 * beside["bc_loss"], abs=1e-5)


# ---------------------------------------------------------------- masks

def fixed_batch(model, prompts, examples, processor, reward_fn, config):
    """Rollout of three groups and their MicroBatch."""
    batch = PromptBatch(range(3), examples, prompts)
    scored = sample_groups(Sampler(model, processor, 1.0, 8), lambda attempt: batch, reward_fn, config, step=0)
    credit = assign_credit(scored.components, scored.rollout, None, None, config)
    [rows] = pack_branches(scored, [], config)
    fixed = {"old_logprobs": None, "ref_logprobs": None, "old_values": None}
    return scored, micro_batch(rows, scored.rollout, fixed, credit, [], config)


def test_masked_truncation_is_for_the_loss_alone(run, make_bigram):
    # "a" or the stop with even odds, then "a" for ever: answers "" (1 token) and "aaaaaaaa" (8, truncated)
    logits = torch.full((270, 270), -1000.0)
    logits[198, [64, 258]], logits[64, 64] = 0.0, 0.0
    config = make_config(learning_rate=1e-9)
    kept, groups, _ = run(config, model=make_bigram(logits))
    masked, same, _ = run(replace(config, mask_truncated=True), model=make_bigram(logits))
    assert groups == same and 0 < masked["truncated"] < 1    # rewards, baseline and advantages as they were
    short = [a for group in groups for text, a in zip(group["texts"], group["advantages"], strict=True) if not text]
    assert kept["policy_loss"] == pytest.approx(0.0, abs=1e-6)
    assert masked["policy_loss"] == pytest.approx(-sum(short) / len(short), abs=1e-6)
    assert abs(masked["policy_loss"]) > 0.1
    assert masked["entropy"] == pytest.approx(0.693147, abs=1e-5)              # ln 2: of the stop's position alone


def test_truncated_answers_are_still_attended_to_and_counted(make_model, make_prompts, make_examples, processor,
                                                             by_length):
    args = make_model(stop=1.0), make_prompts(), make_examples(3), processor, by_length
    scored, part = fixed_batch(*args, make_config(mask_truncated=True))
    rollout = scored.rollout
    assert 0 < rollout.truncated.sum() < 12
    assert part.policy_mask.any(1).tolist() == (~rollout.truncated).tolist()
    assert torch.equal(part.rows.completion_mask, rollout.completion_mask)     # in the packed row they stay
    assert denominators([part], make_config())["policy"] == int((~rollout.truncated).sum())


def test_a_batch_of_truncated_answers_moves_nothing(run, make_bigram):
    logits = torch.full((270, 270), -1000.0)
    logits[198, [64, 65]], logits[64, 64], logits[65, 65] = 0.0, 0.0, 0.0      # "aaaaaaaa" or "bbbbbbbb"
    model = make_bigram(logits)
    before = weights(model)
    metrics, _, _ = run(make_config(mask_truncated=True, ent_coef="1"), model=model)
    assert metrics["truncated"] == 1.0 and metrics["reward_std"] > 0
    assert metrics["loss"] == metrics["grad_norm"] == 0.0 and torch.equal(weights(model), before)


@pytest.mark.parametrize("keep", [True, False])
def test_flat_groups_keep_or_lose_their_kl_term(gradient, reference, keep):
    slope, metrics, _ = gradient(make_config(beta="0.1", flat_kl=keep), reward_fn=flat, reference=reference)
    assert metrics["flat_groups"] == 1.0
    assert (metrics["kl"] > 0.01) == keep and (slope.abs().max() > 1e-4) == keep


def test_only_flat_groups_lose_it(make_model, make_prompts, make_examples, processor, by_length):
    def reward(example, completions):
        return (flat if example.id == "example-1" else by_length)(example, completions)
    args = make_model(stop=1.0), make_prompts(), make_examples(3), processor, reward
    _, part = fixed_batch(*args, make_config(flat_kl=False))
    assert part.kl_mask.any(1).tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert part.policy_mask.any(1).all() and torch.equal(part.kl_mask[:4], part.policy_mask[:4])
    _, part = fixed_batch(*args, make_config())
    assert torch.equal(part.kl_mask, part.policy_mask)


def test_denominators_by_hand():
    # rows of 3, 1 and 0 tokens, and an expert's of 2: 2 rows, 4 tokens, 2 rows * 8
    mask = torch.arange(3) < torch.tensor([[3], [1], [0], [0]])
    expert = torch.arange(3) < torch.tensor([[0], [0], [0], [2]])
    part = MicroBatch(None, mask, mask, expert, *[None] * 6)
    for variant, policy in (("grpo", 2), ("dapo", 4), ("dr_grpo", 16)):
        config = make_config(variant=variant)
        assert denominators([part], config) == {"policy": policy, "tokens": 4, "expert": 2}
        assert denominators([part, part], config) == {"policy": 2 * policy, "tokens": 8, "expert": 4}


# ---------------------------------------------------------------- KL and importance

def test_kl_ratio_adds_the_score_function_part(gradient, reference):
    # at ratio 1: grad (w k3) = grad k3 + k3 * grad logprob. The second part as a term of one's own must close the gap
    def score_part(logprobs, entropy, part):
        weight = kl_penalty(logprobs, part.ref_logprobs).detach()
        return aggregate(weight * logprobs, part.kl_mask, "sequence_mean", denominator=12)

    plain, metrics, _ = gradient(make_config(pg_coef="0", beta="1"), reference=reference)
    weighted, same, _ = gradient(make_config(pg_coef="0", beta="1", kl_ratio=True), reference=reference)
    assert same["kl"] == pytest.approx(metrics["kl"], abs=1e-6)                # the value does not tell them apart
    assert (weighted - plain).abs().max() > 1e-2
    both, found, _ = gradient(make_config(pg_coef="0", beta="1"), reference=reference,
                              auxiliary={"score": (1.0, score_part)})
    torch.testing.assert_close(both, weighted, atol=2e-6, rtol=1e-4)
    assert found["loss"] == pytest.approx(found["kl"] + found["score"], abs=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimators_reach_the_loss(gradient, reference, estimator):
    slope, metrics, _ = gradient(make_config(pg_coef="0", beta="1", kl_estimator=estimator), reference=reference)
    others = [gradient(make_config(pg_coef="0", beta="1", kl_estimator=e), reference=reference)[0]
              for e in {"k1", "k2", "k3"} - {estimator}]
    assert metrics["loss"] == pytest.approx(metrics["kl"]) and all((slope - o).abs().max() > 1e-3 for o in others)


def test_importance_weights_by_hand():
    # trainer / sampler: .5 / .25 = 2, cut to 1.5; .25 / .5 = .5; times the advantages 3 and -2
    old, sampler = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
    advantages = torch.tensor([[3.0, -2.0]])
    part = MicroBatch(None, None, None, None, old, sampler, None, advantages, None, None)
    got = corrected_advantages(part, old, make_config(importance_cap=1.5))
    torch.testing.assert_close(got, torch.tensor([[4.5, -1.0]]))
    assert corrected_advantages(part, old, make_config()) is advantages
    assert corrected_advantages(part, old, make_config(variant="gspo")).tolist() == [3.0]


def test_probability_ratio_by_hand():
    # .5 / .25; exp(20) and exp(-20) where exp(100) would overflow
    got = probability_ratio(torch.tensor([-0.693147, -1.0, -101.0]), torch.tensor([-1.386294, -101.0, -1.0]))
    assert got.tolist() == pytest.approx([2.0, 4.851652e8, 2.061154e-9], rel=1e-5)


def test_importance_correction_is_nothing_when_sampler_and_trainer_agree(gradient):
    off, _, _ = gradient(make_config())
    on, _, _ = gradient(make_config(importance_cap=2.0))
    torch.testing.assert_close(on, off, atol=2e-6, rtol=1e-4)


def test_importance_correction_sees_a_wrong_sampler(gradient, monkeypatch):
    # a sampler that claims to have drawn every token with e^.5 times its probability: every weight is e^-.5 = .606531
    real = Sampler.sample

    def boastful(self, prompts, uniforms):
        rollout = real(self, prompts, uniforms)
        return replace(rollout, logprobs=(rollout.logprobs + 0.5) * rollout.completion_mask)
    plain, _, _ = gradient(make_config())
    monkeypatch.setattr(Sampler, "sample", boastful)
    corrected, metrics, _ = gradient(make_config(importance_cap=2.0))
    assert metrics["logprob_gap"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)  # the ratio holds the policy's movement alone
    torch.testing.assert_close(corrected, 0.606531 * plain, atol=5e-6, rtol=1e-3)


# ---------------------------------------------------------------- values, entropy, own terms

def values_step(run, make_model, make_value, own=True, **settings):
    model = make_model(stop=1.0)
    value = make_value(model, own)
    config = make_config(**{"variant": "ppo", "advantage": "gae", "pg_coef": "0", "vf_coef": "1",
                            "value_trunk": "own" if own else "shared", "learning_rate": 0.1, "clip_value": 0.0,
                            **settings})
    metrics, _, _ = run(config, model=model, value=value)
    return metrics, model, value


@pytest.mark.parametrize("own", [True, False])
def test_value_loss_reaches_the_trunk_it_reads_and_no_other(run, make_model, make_value, own):
    _, model, value = values_step(run, make_model, make_value, own)
    moved = (weights(model) - weights(make_model(stop=1.0))).abs().max() > 1e-4
    assert moved == (not own)
    if own:
        assert (weights(value.trunk) - weights(make_model(stop=1.0))).abs().max() > 1e-4


def test_the_policy_loss_does_not_reach_an_own_trunk(run, make_model, make_value):
    _, model, value = values_step(run, make_model, make_value, pg_coef="1", vf_coef="0")
    assert (weights(value.trunk) - weights(make_model(stop=1.0))).abs().max() == 0.0
    assert (weights(model) - weights(make_model(stop=1.0))).abs().max() > 1e-4


def terms_of(config, mask, kl_mask, **scored):
    """Metrics of a batch whose pass gives these numbers, and 0 for log-probabilities and entropy."""
    zeros = torch.zeros(mask.shape)
    part = MicroBatch(None, mask, kl_mask, mask & False, None, zeros, None, zeros, zeros, zeros + 2.0)
    value = object() if "values" in scored else None
    found = Pass(zeros, zeros, **{"values": None, "expert_loss": zeros, **scored})
    return objective(None, value, part, denominators([part], config), config.term_weights(0.0, {}), config, None, {},
                     lambda *_: found)[1]


@pytest.mark.parametrize("variant", ["grpo", "ppo", "dr_grpo"])
def test_the_value_loss_is_a_token_mean_in_every_variant(variant):
    # V = 0, returns 2: (2 - 0)^2 / 2 at each of 3 + 1 tokens
    mask = torch.tensor([[True, True, True], [True, False, False]])
    config = make_config(variant=variant, advantage="gae", clip_value=0.0)
    assert terms_of(config, mask, mask, values=torch.zeros(2, 3))["value_loss"].item() == 2.0


@pytest.mark.parametrize(("second", "wanted"), [(True, 2.0), (False, 1.5)])
def test_an_exact_kl_is_a_mean_over_steps_and_rows(second, wanted):
    # rows of 1 2 3 4 5 and of ones: 3 and 1; the first alone, still over both rows
    mask, kl = torch.ones(2, 5, dtype=torch.bool), torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5])
    metrics = terms_of(make_config(beta="0.1"), mask, mask & torch.tensor([[True], [second]]), kl=kl)
    assert metrics["kl"].item() == wanted and metrics["loss"].item() == pytest.approx(0.1 * wanted)


def test_value_loss_falls_on_a_fixed_batch(run, make_model, make_value):
    first, *_, last = [values_step(run, make_model, make_value, updates_per_rollout=n)[0]["value_loss"]
                       for n in (1, 10, 30)]
    assert last < 0.5 * first


def test_old_values_stay_fixed_over_several_updates(run, make_model, make_value):
    # V may gain by .01 from the OLD value only: if that were renewed, 30 updates would cut the loss as above
    first, last = (values_step(run, make_model, make_value, updates_per_rollout=n, clip_value=0.01)[0]["value_loss"]
                   for n in (1, 30))
    assert 0.9 * first < last < first


def test_values_of_packed_rows_equal_those_of_whole_sequences(make_model, make_value, make_prompts):
    model, prompts = make_model(), make_prompts()
    answers = [[torch.tensor([40, 41, 258]), torch.tensor([50])], [torch.tensor([60, 258])] * 2,
               [torch.tensor([70])] * 2]
    singles = [(prompt, ids) for prompt, group in zip(prompts, answers, strict=True) for ids in group]
    for own in (True, False):
        value = make_value(model, own)
        with torch.no_grad():
            packed = completion_values(value, model, pack(prompts, answers), PLAIN)
            for row, (prompt, ids) in enumerate(singles):
                alone = completion_values(value, model, pack([prompt], [[ids]]), PLAIN)[0]
                torch.testing.assert_close(packed[row, :len(ids)], alone, atol=1e-5, rtol=0)
                assert packed[row, len(ids):].eq(0).all() and alone.abs().max() > 1e-3


def test_ppo_without_kl_and_values_equals_reinforce_at_the_first_update(gradient, make_model):
    # V = 0, gamma = lambda = 1: each token's advantage is its answer's reward, and at ratio 1 the clip does nothing
    value = ValueNetwork(make_model(stop=1.0), own_trunk=True)
    ppo, _, _ = gradient(make_config(variant="ppo", advantage="gae", gae_lambda=1.0, whiten_advantages=False),
                         value=value)
    plain, _, _ = gradient(make_config(variant="reinforce", advantage="return"))
    torch.testing.assert_close(ppo, plain, atol=2e-6, rtol=1e-4)


def test_entropy_bonus_raises_entropy(run, make_model):
    model, entropies = make_model(stop=1.0), []
    for step in range(6):
        metrics, _, _ = run(make_config(ent_coef="1", learning_rate=0.1), flat, model=model, step=step)
        entropies.append(metrics["entropy"])
    assert entropies[-1] > entropies[0] + 0.1


def test_an_auxiliary_term_is_a_plain_function(gradient):
    def push(logprobs, entropy, part):                       # raises the likelihood of what was sampled
        assert logprobs.shape == entropy.shape == part.policy_mask.shape
        return -aggregate(logprobs, part.policy_mask, "token_mean", denominator=10)

    without, plain, _ = gradient(make_config())
    with_it, metrics, _ = gradient(make_config(), auxiliary={"push": (0.3, push)})
    assert metrics["push"] > 0 and metrics["loss"] == pytest.approx(plain["loss"] + 0.3 * metrics["push"], abs=1e-5)
    assert (with_it - without).abs().max() > 1e-3
    off, _, _ = gradient(make_config(), auxiliary={"push": (0.0, push)})
    torch.testing.assert_close(off, without, atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match="'kl' has the name of a built-in one"):
        gradient(make_config(), auxiliary={"kl": (0.3, push)})
