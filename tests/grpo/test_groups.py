"""Batches of groups: dynamic sampling with a sampler that plays back texts, merging, metrics, records."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from grpo.batch import PromptSettings, encode_target, expert_branch, think_length
from grpo.config import GRPOConfig
from grpo.credit import Credit
from grpo.groups import (
    PromptBatch,
    choose_groups,
    expert_branches,
    group_records,
    merge_rollouts,
    rollout_metrics,
    sample_groups,
)
from grpo.rollout import Rollout
from models.processor import Processor
from models.tokenizer import train_bpe


def rollout_of(texts, width=2):
    """One row per text, as many tokens as letters; each token's id is its text's first letter, logprob -1."""
    width = max(width, *map(len, texts))
    mask = torch.arange(width) < torch.tensor([len(text) for text in texts])[:, None]
    ids = torch.tensor([[ord(text[0])] * width for text in texts]) * mask
    return Rollout(ids, mask, -1.0 * mask, texts, torch.tensor([len(text) == 9 for text in texts]))


def playback(*batches):
    """Sampler and draw for batches of groups of texts; draws are counted in `asked`."""
    asked = []

    def sample(prompts, uniforms):
        assert uniforms.shape == (len(prompts), 2, 8)
        return rollout_of([text for prompt in prompts for text in prompt], max(len(t) for p in prompts for t in p))

    def draw(attempt):
        asked.append(attempt)
        groups = batches[attempt]
        numbers = [100 * attempt + i for i in range(len(groups))]
        return PromptBatch(numbers, [f"scene {n}" for n in numbers], groups)

    return SimpleNamespace(model=SimpleNamespace(head_weight=torch.zeros(1)), sample=sample), draw, asked


def by_letters(example, completions):
    return [{"speed": float(len(text)), "path": 0.0, "format": 0.0} for text in completions]


def sample(budget, *batches, reward=by_letters):
    sampler, draw, asked = playback(*batches)
    config = GRPOConfig(group_size=2, max_new_tokens=8, dynamic_sampling=budget)
    return *sample_groups(sampler, draw, reward, config, step=3), asked


FIRST = [["a", "b"], ["cc", "d"], ["ee", "ff"]]              # flat, unequal, flat
SECOND = [["gggg", "h"], ["i", "j"], ["k", "lll"]]           # unequal, flat, unequal


def test_flat_groups_are_replaced_by_fresh_ones():
    batch, rollout, components, redrawn, asked = sample(3, FIRST, SECOND)
    # three groups are wanted: cc-d of the first batch, then gggg-h and k-lll of the second; 6 drawn, 3 too many
    assert asked == [0, 1] and redrawn == 3
    assert batch.numbers == [1, 100, 102] and batch.examples == ["scene 1", "scene 100", "scene 102"]
    assert rollout.texts == ["cc", "d", "gggg", "h", "k", "lll"]
    assert components["speed"].tolist() == [[2.0, 1.0], [4.0, 1.0], [1.0, 3.0]]
    # rows of different batches, padded to the longest; every text kept its own tokens
    assert rollout.completion_ids.shape == (6, 4)
    assert [ids.tolist() for ids in rollout.completions()] == [[99] * 2, [100], [103] * 4, [104], [107], [108] * 3]
    assert torch.equal(rollout.logprobs, -1.0 * rollout.completion_mask)


def test_a_batch_without_flat_groups_is_enough():
    _, rollout, _, redrawn, asked = sample(3, [["aa", "b"], ["c", "dd"]], SECOND)
    assert asked == [0] and redrawn == 0 and rollout.texts == ["aa", "b", "c", "dd"]


def test_without_a_budget_the_batch_stays_as_it_was_drawn():
    batch, rollout, _, redrawn, asked = sample(0, FIRST)
    assert asked == [0] and redrawn == 0
    assert batch.numbers == [0, 1, 2] and rollout.texts == ["a", "b", "cc", "d", "ee", "ff"]


def test_when_the_budget_is_spent_flat_groups_fill_up():
    flat = [["m", "n"], ["o", "p"], ["q", "r"]]
    batch, rollout, _, redrawn, asked = sample(2, FIRST, flat, flat)
    assert asked == [0, 1, 2] and redrawn == 6
    assert batch.numbers == [0, 1, 2]                        # the first flat ones, in the order drawn


def test_more_than_enough_keeps_the_first():
    batch, _, _, redrawn, _ = sample(1, [["a", "b"], ["cc", "d"], ["e", "ff"]], SECOND)
    assert batch.numbers == [1, 2, 100] and redrawn == 3


def test_choose_groups_by_hand():
    flat = torch.tensor([True, False, True, False, False])
    assert choose_groups(flat, 2) == [1, 3] and choose_groups(flat, 4) == [0, 1, 3, 4]
    assert choose_groups(flat, 5) == [0, 1, 2, 3, 4]


def test_merged_rollouts_keep_truncation_and_masks():
    merged = merge_rollouts([rollout_of(["a", "bb"]), rollout_of(["c" * 9, "d"])])
    assert merged.completion_mask.sum(1).tolist() == [1, 2, 9, 1]
    assert merged.truncated.tolist() == [False, False, True, False] and len(merged.texts) == 4


def test_records_hold_rewards_before_the_baseline(make_examples):
    components = {"speed": torch.tensor([[1.0, 3.0]])}
    credit = Credit(torch.tensor([[1.5, 3.5]]), torch.tensor([-0.5, 0.5]), None)
    (record,) = group_records(make_examples(1), rollout_of(["a", "b"]), components, credit, GRPOConfig(group_size=2))
    assert record["rewards"] == [1.5, 3.5] and record["components"] == {"speed": [1.0, 3.0]}
    assert record["advantages"] == [-0.5, 0.5] and record["texts"] == ["a", "b"]
    assert record["scene"] == 0 and "image" not in record       # what the page shows: a built-in scene, or a picture
    photo = replace(make_examples(1)[0], scene=None, image="/data/7.jpg")
    (record,) = group_records([photo], rollout_of(["a", "b"]), components, credit, GRPOConfig(group_size=2))
    assert record["scene"] is None and record["image"] == "/data/7.jpg"


def test_a_group_of_one_has_no_spread(make_prompts):
    metrics = rollout_metrics(rollout_of(["aa"]), torch.tensor([[2.0]]), {"speed": torch.tensor([[2.0]])}, [])
    assert metrics["reward"] == 2.0 and metrics["reward_std"] == 0.0


# ---------------------------------------------------------------- the expert's branch

def test_an_expert_with_a_reason_is_imitated_whole(make_examples, processor):
    example = make_examples(1)[0]
    ids, start = expert_branch(example, [], processor, reasoning=True)
    assert torch.equal(ids, encode_target(example, processor, PromptSettings())) and start == 0
    assert processor.decode(ids) == "<think> clear road </think> <answer> STOP, STRAIGHT </answer>" and ids[-1] == 258


def tokens(processor, *texts):
    return [torch.tensor(processor.encode_text(text)) for text in texts]


def silent(example):
    return type(example)(**{**vars(example), "reasoning": None})


def test_an_expert_without_a_reason_borrows_the_first_closed_think(make_examples, processor):
    samples = tokens(processor, "<think> never closed", "<think> hm </think> <answer> KEEP, STRAIGHT </answer>",
                     "<think> later </think>")
    ids, start = expert_branch(silent(make_examples(1)[0]), samples, processor, reasoning=True)
    assert processor.decode(ids) == "<think> hm </think> <answer> STOP, STRAIGHT </answer>" and ids[-1] == 258
    assert processor.decode(ids[:start]) == "<think> hm </think>"              # 19 letters, a token each: not imitated
    assert start == 19 and processor.decode(ids[start:]) == " <answer> STOP, STRAIGHT </answer>"


def test_no_closed_think_leaves_an_empty_branch(make_examples, processor):
    ids, start = expert_branch(silent(make_examples(1)[0]), tokens(processor, "<think> no"), processor, reasoning=True)
    assert len(ids) == 0 and start == 0


def test_without_reasoning_the_answer_alone_is_imitated(make_examples, processor):
    ids, start = expert_branch(silent(make_examples(1)[0]), [], processor, reasoning=False)
    assert processor.decode(ids) == "<answer> STOP, STRAIGHT </answer>" and start == 0


def test_experts_belong_to_their_groups_and_cost_nothing_when_off(make_examples, processor):
    examples = [silent(example) for example in make_examples(2)]
    rows = [*tokens(processor, "<think> a </think>", "x"), *tokens(processor, "y", "<think> b </think>")]
    width = max(map(len, rows))
    mask = torch.arange(width) < torch.tensor([len(ids) for ids in rows])[:, None]
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    rollout = Rollout(ids, mask, torch.zeros(mask.shape), [""] * 4, torch.zeros(4, dtype=torch.bool))
    batch = PromptBatch([0, 1], examples, [None, None])
    found = expert_branches(batch, rollout, processor, GRPOConfig(group_size=2, bc_coef="1"))
    assert [processor.decode(branch[:start]) for branch, start in found] == ["<think> a </think>", "<think> b </think>"]
    assert ["STOP" in processor.decode(branch) for branch, _ in found] == [True, False]      # the second: KEEP
    assert expert_branches(batch, rollout, processor, GRPOConfig(group_size=2)) == []


def test_a_token_that_reaches_into_the_answer_ends_no_think_block():
    joined = Processor(train_bpe(["a><a"] * 50, 256 + 14 + 1))                 # its one merge is ><
    assert len(joined.encode_text("><")) == 1
    (fused,), (apart,) = tokens(joined, "<think> a </think><answer>"), tokens(joined, "<think> a </think> <answer>")
    assert think_length(fused, joined) is None and think_length(apart, joined) == 18


@pytest.mark.parametrize("text", ["<think> a </think>", "</think>"])
def test_think_block_ends_with_its_closing_word(processor, text):
    ids = tokens(processor, text + " more")[0]
    assert think_length(ids, processor) == len(text)         # a token per letter
    assert think_length(ids[:len(text) - 1], processor) is None
