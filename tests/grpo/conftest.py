"""One reinforcement step on three scenes, as the tests of the trainer and of the objective need it."""

import pytest
import torch

from grpo.engine.prompts import PromptSettings, expert_branches
from grpo.engine.records import group_records, rollout_metrics
from grpo.fast import FAST
from grpo.fast.sampler import Sampler
from grpo.groups import PromptBatch
from grpo.step import Learner, grpo_step
from models.value import ValueNetwork

NEWLINE, STOP = 198, 258                 # every prompt ends with a line break


@pytest.fixture(scope="session")
def by_length():
    """A toy reward that differs within nearly every group and is no tie."""
    def reward(example, completions):
        return [{"speed": 0.1 * len(text), "path": 0.01 * sum(map(ord, text)) % 1, "format": 0.0}
                for text in completions]
    return reward


@pytest.fixture
def run(make_model, make_prompts, make_examples, processor, by_length):
    """run(config, reward_fn, model, reference, ...) -> metrics, groups, model after one step; SGD unless told."""
    def go(config, reward_fn=by_length, model=None, reference=None, optimizer=None, step=0, scheduler=None, value=None,
           auxiliary=None, progress=0.0, examples=None, sampler=None):
        model = model or make_model(stop=1.0)
        trained = [*model.parameters(), *(value.parameters() if value else ())]
        optimizer = optimizer or torch.optim.SGD(trained, lr=config.learning_rate)
        scheduler = scheduler or torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        batch = PromptBatch(range(3), examples or make_examples(3), make_prompts())
        sampler = sampler or Sampler(model, processor, config.temperature, config.max_new_tokens)
        learner = Learner(model, reference, value, sampler, optimizer, scheduler, auxiliary or {},
                          lambda scored: expert_branches(scored, processor, config.reasoning), FAST)
        metrics, scored, credit = grpo_step(learner, lambda attempt: batch, reward_fn, config, step, progress)
        return ({**metrics, **rollout_metrics(scored, credit), "redrawn": scored.redrawn},
                group_records(scored, credit, PromptSettings()), model)
    return go


@pytest.fixture
def make_value():
    """make_value(policy, own_trunk): a value network whose head is not 0, so that its loss has a slope everywhere."""
    def make(policy, own_trunk=True):
        value = ValueNetwork(policy, own_trunk)
        with torch.no_grad():
            value.head.weight.copy_(torch.linspace(-0.1, 0.1, 32)[None])
        return value
    return make


@pytest.fixture
def chain(make_bigram):
    """A model that follows a chain of tokens with certainty: chain(198, 64, 65) writes "ab" and then anything."""
    def make(*tokens):
        logits = torch.zeros(270, 270)
        for now, after in zip(tokens[:-1], tokens[1:], strict=True):
            logits[now, after] = 1000.0
        return make_bigram(logits)
    return make


@pytest.fixture
def after_newline(make_bigram):
    """A model with the given logits after a line break, and with certain <|im_end|> after everything else."""
    def make(logits):
        table = torch.full((270, 270), -1000.0)
        table[:, STOP] = 0.0
        table[NEWLINE] = -1000.0
        for token, logit in logits.items():
            table[NEWLINE, token] = logit
        return make_bigram(table)
    return make
