"""Batches of groups: dynamic sampling with a sampler that plays back texts, merging, scoring."""

from types import SimpleNamespace

import pytest
import torch

from grpo.config import GRPOConfig
from grpo.groups import PromptBatch, choose_groups, sample_groups, score_groups
from grpo.sampling import Rollout, merge_rollouts


def rollout_of(texts, width=2):
    """One row per text, as many tokens as letters; each token's id is its text's first letter, logprob -1."""
    width = max(width, *map(len, texts))
    mask = torch.arange(width) < torch.tensor([len(text) for text in texts])[:, None]
    ids = torch.tensor([[ord(text[0])] * width for text in texts]) * mask
    return Rollout(ids, mask, -1.0 * mask, texts, torch.tensor([len(text) == 9 for text in texts]))


class Asked(list):
    """A group of texts in the place of a prompt; its first letter decides how long the prompt is."""

    @property
    def input_ids(self):
        return [0] * (ord(self[0][0]) - ord("a"))


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
        examples = [SimpleNamespace(id=f"scene {n}") for n in numbers]
        return PromptBatch(numbers, examples, [Asked(group) for group in groups])

    return SimpleNamespace(model=SimpleNamespace(head_weight=torch.zeros(1)), sample=sample), draw, asked


def by_letters(example, completions):
    return [{"speed": float(len(text)), "path": 0.0, "format": 0.0} for text in completions]


def sample(budget, *batches, reward=by_letters):
    sampler, draw, asked = playback(*batches)
    config = GRPOConfig(group_size=2, max_new_tokens=8, dynamic_sampling=budget)
    scored = sample_groups(sampler, draw, reward, config, step=3)
    return scored, asked


FIRST = [["a", "b"], ["cc", "d"], ["ee", "ff"]]              # flat, unequal, flat
SECOND = [["gggg", "h"], ["i", "j"], ["k", "lll"]]           # unequal, flat, unequal


def test_flat_groups_are_replaced_by_fresh_ones():
    scored, asked = sample(3, FIRST, SECOND)
    rollout, components = scored.rollout, scored.components
    # three groups are wanted: cc-d of the first batch, then gggg-h and k-lll of the second; 6 drawn, 3 too many
    assert asked == [0, 1] and scored.redrawn == 3
    assert [example.id for example in scored.examples] == ["scene 1", "scene 100", "scene 102"]
    assert rollout.texts == ["cc", "d", "gggg", "h", "k", "lll"]
    assert components["speed"].tolist() == [[2.0, 1.0], [4.0, 1.0], [1.0, 3.0]]
    # rows of different batches, padded to the longest; every text kept its own tokens
    assert rollout.completion_ids.shape == (6, 4)
    assert [ids.tolist() for ids in rollout.completions()] == [[99] * 2, [100], [103] * 4, [104], [107], [108] * 3]
    assert torch.equal(rollout.logprobs, -1.0 * rollout.completion_mask)


def test_a_batch_without_flat_groups_is_enough():
    scored, asked = sample(3, [["aa", "b"], ["c", "dd"]], SECOND)
    assert asked == [0] and scored.redrawn == 0 and scored.rollout.texts == ["aa", "b", "c", "dd"]


def test_without_a_budget_the_batch_stays_as_it_was_drawn():
    scored, asked = sample(0, FIRST)
    assert asked == [0] and scored.redrawn == 0
    assert [example.id for example in scored.examples] == ["scene 0", "scene 1", "scene 2"]
    assert scored.rollout.texts == ["a", "b", "cc", "d", "ee", "ff"]


def test_when_the_budget_is_spent_flat_groups_fill_up():
    flat = [["m", "n"], ["o", "p"], ["q", "r"]]
    scored, asked = sample(2, FIRST, flat, flat)
    assert asked == [0, 1, 2] and scored.redrawn == 6
    assert [example.id for example in scored.examples] == ["scene 0", "scene 1", "scene 2"]     # first flat ones


def test_more_than_enough_keeps_the_first():
    scored, _ = sample(1, [["a", "b"], ["cc", "d"], ["e", "ff"]], SECOND)
    assert [example.id for example in scored.examples] == ["scene 1", "scene 2", "scene 100"] and scored.redrawn == 3


def test_groups_stand_in_the_order_of_their_length():
    # prompt + answers: "cc", "d": 2 + 3; "a", "bb": 0 + 3; "b", "cccc": 1 + 5; equal lengths keep their order
    scored, _ = sample(0, [["b", "cccc"], ["cc", "d"], ["a", "bb"], ["c", "d" * 4]])
    assert scored.rollout.texts == ["a", "bb", "cc", "d", "b", "cccc", "c", "dddd"]
    assert [example.id for example in scored.examples] == ["scene 2", "scene 1", "scene 0", "scene 3"]
    assert scored.components["speed"].tolist() == [[1.0, 2.0], [2.0, 1.0], [1.0, 4.0], [1.0, 4.0]]


def test_choose_groups_by_hand():
    flat = torch.tensor([True, False, True, False, False])
    assert choose_groups(flat, 2) == [1, 3] and choose_groups(flat, 4) == [0, 1, 3, 4]
    assert choose_groups(flat, 5) == [0, 1, 2, 3, 4]


def test_merged_rollouts_keep_truncation_and_masks():
    merged = merge_rollouts([rollout_of(["a", "bb"]), rollout_of(["c" * 9, "d"])])
    assert merged.completion_mask.sum(1).tolist() == [1, 2, 9, 1]
    assert merged.truncated.tolist() == [False, False, True, False] and len(merged.texts) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_names_example_and_completion(make_examples, value):
    def broken(example, completions):
        return [{"speed": value if example.id == "example-1" and text == "second" else 0.0, "path": 0.0, "format": 0.0}
                for text in completions]
    batch = PromptBatch([0, 1], make_examples(2), [Asked("a"), Asked("a")])
    with pytest.raises(ValueError, match="example-1.*second.*speed"):
        score_groups(batch, rollout_of(["a", "b", "first", "second"]), broken, GRPOConfig())


def test_score_groups_by_hand(make_examples):
    def reward(example, completions):
        return [{"speed": float(text), "path": float(len(completions)), "format": 1} for text in completions]
    batch = PromptBatch([7, 8], make_examples(2), [Asked("a"), Asked("a")])
    first, second = score_groups(batch, rollout_of(["1", "2", "3", "4", "5", "6"]), reward, GRPOConfig())
    assert first.components["speed"].tolist() == [1, 2, 3] and second.components["speed"].tolist() == [4, 5, 6]
    assert first.components["path"].tolist() == second.components["path"].tolist() == [3, 3, 3]
    assert second.example.id == "example-1" and second.rollout.texts == ["4", "5", "6"]


def test_the_length_penalty_ends_at_the_limit(make_examples):
    # limit 8, margin 4: 2 of 4 and 4 of 4 tokens too many
    batch = PromptBatch([0], make_examples(1), [Asked("a")])
    config = GRPOConfig(max_new_tokens=8, length_margin=4)
    [group] = score_groups(batch, rollout_of(["a", "b" * 6, "c" * 8]), by_letters, config)
    assert group.components["length"].tolist() == [0.0, -0.5, -1.0]
