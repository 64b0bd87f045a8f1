"""Training, evaluation and sampling on a pretend card (tests/card.py), which refuses and counts what a GPU would.

The counts are of one step of three prompts, each a micro-batch of its own; more micro-batches add none.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpo.engine.checkpoint import save_policy
from grpo.engine.prompts import PromptSettings
from models.qwen2_vl import new_model

TESTS = Path(__file__).resolve().parent
CASES = ("sft", "sft checkpointed", "grpo", "ppo", "two updates", "cloning", "lora", "checkpointed", "plain", "bf16")
METRICS = ("grpo/step.py: accumulate", "grpo/step.py: update.<locals>.<listcomp>")
SAMPLING = {"grpo/fast/sampler.py: Sampler.sample": 2,      # of 20 tokens: the looks after 8 and 16
            "grpo/sampling.py: collect": 2}                 # ids and log-probabilities
FIXED = "grpo/step.py: fixed_values.<locals>.over_rollout"  # of the reference, the old policy, the old values
WAITS = {
    "sft": {"grpo/sft.py: sft_step": 1, METRICS[1]: 1},     # the metrics of all micro-batches; the gradient's norm
    "grpo": {**SAMPLING, FIXED: 1, **dict.fromkeys(METRICS, 1)},
    "ppo": {**SAMPLING, FIXED: 2, METRICS[0]: 1, METRICS[1]: 2},                # two networks, two norms
    "two updates": {**SAMPLING, FIXED: 2, **dict.fromkeys(METRICS, 2)},
    "cloning": {**SAMPLING, **dict.fromkeys(METRICS, 1)},                       # no reference
}
WAITS |= {"sft checkpointed": WAITS["sft"], **dict.fromkeys(("lora", "checkpointed", "bf16"), WAITS["grpo"])}


@pytest.fixture(scope="module")
def found(tmp_path_factory, processor, micro_config):
    """What the worker saw, in a process of its own."""
    folder = tmp_path_factory.mktemp("card")
    model = new_model(micro_config, torch.Generator().manual_seed(0))
    with torch.no_grad():                                   # answers of different lengths, see conftest's make_model
        embedding = model.model.embed_tokens.weight.mul_(6)
        embedding[:, 0], embedding[258, 0] = 0.3, embedding[258, 0] + 1
    save_policy(model, processor, PromptSettings("compact", max_new_tokens=20), {}, folder / "policy")
    done = subprocess.run([sys.executable, TESTS / "card_worker.py", folder], cwd=folder, capture_output=True,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_card_counts_each_exchange(found):
    one_wait = ("item", "if", "list", "back", "mask", "in", "new", "into", "out")
    assert {name: found["itself"][name] for name in one_wait} == dict.fromkeys(one_wait, ["wait"])
    assert found["itself"]["sent"] == ["send"]
    assert found["itself"]["none"] == found["itself"]["number"] == []


def test_the_card_refuses_tensors_of_the_host(found):
    for name in ("mixed", "mixed again"):
        assert "Expected all tensors to be on the same device" in found["itself"][name]


def test_a_graph_of_the_card_refuses_the_host_and_freed_memory(found):
    assert "while a graph is captured" in found["itself"]["item in a graph"]
    assert "while a graph is captured" in found["itself"]["copy in a graph"]
    assert found["itself"]["replayed"] == [2.0, 2.0, 2.0]   # 1 of the capture, 1 of the replay
    assert "has been freed" in found["itself"]["freed"]


@pytest.mark.parametrize("name", CASES)
def test_a_step_on_the_card_is_that_of_the_cpu(found, name):
    card, cpu = ({key: value for key, value in found["steps"][name][device].items() if value is not None}
                 for device in ("card", "cpu"))             # no KL without a reference
    texts = [where.pop("texts", None) for where in (card, cpu)]
    if name == "bf16":                                      # rounded elsewhere, so some answers differ from a token on
        first = [text[:1] for text in texts[0]], [text[:1] for text in texts[1]]
        assert first[0] == first[1] and card.keys() == cpu.keys()
    else:
        assert texts[0] == texts[1] and card == pytest.approx(cpu, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", WAITS)
def test_waits_of_a_step(found, name):
    assert found["steps"][name]["waits"] == WAITS[name]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_on_the_card_resumes_to_the_bit(found, stage):
    once, again = ([{name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")}
                    for row in rows] for rows in found["runs"][stage])
    assert [row["step"] for row in once] == [1, 2]
    assert once == again


@pytest.mark.parametrize("tokens", ["20", "3", "2", "1"])
def test_a_captured_graph_draws_what_the_eager_step_draws(found, tokens):
    first, second = found["graphs"][tokens]                 # before and after a change of the weights
    assert first[0] == first[1] and second[0] == second[1]
    assert first[0] != second[0]
