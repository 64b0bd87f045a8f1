"""Metrics and records of sampled groups."""

from dataclasses import replace

import pytest
import torch

from grpo.credit import Credit
from grpo.engine.loop import spread
from grpo.engine.prompts import PromptSettings
from grpo.engine.records import group_records, rollout_metrics
from grpo.groups import ScoredBatch
from grpo.sampling import Rollout


def scored(examples, components, *texts):
    """One group; every text is one token."""
    mask = torch.ones(len(texts), 1, dtype=torch.bool)
    rollout = Rollout(mask.long(), mask, torch.zeros(len(texts), 1), list(texts), ~mask[:, 0])
    return ScoredBatch(examples, [], rollout, components, 0)


def test_records_hold_rewards_before_the_baseline(make_examples):
    components = {"speed": torch.tensor([[1.0, 3.0]])}
    credit = Credit(torch.tensor([[1.5, 3.5]]), torch.tensor([False]), torch.tensor([-0.5, 0.5]), None)
    (record,) = group_records(scored(make_examples(1), components, "a", "b"), credit, PromptSettings())
    assert record["rewards"] == [1.5, 3.5] and record["components"] == {"speed": [1.0, 3.0]}
    assert record["advantages"] == [-0.5, 0.5] and record["texts"] == ["a", "b"]
    assert record["scene"] == 0 and "image" not in record       # what the page shows: a built-in scene, or a picture
    photo = replace(make_examples(1)[0], scene=None, image="/data/7.jpg")
    (record,) = group_records(scored([photo], components, "a", "b"), credit, PromptSettings())
    assert record["scene"] is None and record["image"] == "/data/7.jpg"


def test_a_group_of_one_has_no_spread(make_examples):
    components = {"speed": torch.tensor([[2.0]])}
    credit = Credit(components["speed"], torch.tensor([True]), torch.tensor([2.0]), None)
    metrics = rollout_metrics(scored(make_examples(1), components, "aa"), credit)
    assert metrics["reward"] == 2.0 and metrics["reward_std"] == 0.0


@pytest.mark.parametrize(("count", "shown"), [(0, []), (1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (7, [0, 2, 4, 6]),
                                              (16, [0, 5, 10, 15])])
def test_the_logged_groups_are_short_and_long_ones(count, shown):
    assert spread(list(range(count))) == shown
