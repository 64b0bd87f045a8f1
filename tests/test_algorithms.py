"""Every algorithm through train.py: what it writes, and that it raises a toy reward from the same model."""

import json

import pytest
import torch

import train
from data.scenes import scene_examples
from grpo.config import ALGORITHMS
from grpo.engine.checkpoint import save_policy
from grpo.engine.prompts import PromptSettings
from models.qwen2_vl import new_model

STEPS = 16
ROAD = ["--device", "cpu", "--scenes", "8", "--eval-examples", "1", "--max-new-tokens", "2", "--prompt-style",
        "compact", "--group-size", "16", "--prompts-per-step", "2", "--learning-rate", "1e-2",
        "--value-learning-rate", "1e-2", "--adam-beta2", "0.98", "--warmup-steps", "0", "--lr-schedule", "constant"]


def early_letter(example, completions):
    """1 for a first sign in the first half of the printable ones, `!` to `O`."""
    return [{"speed": float("!" <= text[:1] <= "O"), "path": 0.0, "format": 0.0} for text in completions]


@pytest.fixture(scope="module")
def start(tmp_path_factory, micro_config, processor):
    directory = tmp_path_factory.mktemp("start") / "model"
    model = new_model(micro_config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(6)              # some tokens likelier than others, none certain
    save_policy(model, processor, PromptSettings(), {}, directory)
    return directory


@pytest.fixture
def go(start, tmp_path, monkeypatch):
    """go(*flags) -> the lines of metrics.jsonl."""
    monkeypatch.setattr(train, "make_reward_fn", lambda config: early_letter)

    def run(*flags, name="out"):
        train.main(["--stage", "grpo", "--model", str(start), "--output", str(tmp_path / name), *ROAD,
                    *map(str, flags)])
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    return run


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_raises_a_toy_reward(go, algorithm):
    lines = go("--algorithm", algorithm, "--steps", STEPS)
    rewards = [line["reward"] for line in lines]
    assert len(lines) == STEPS and all(line["skipped"] == 0 for line in lines)
    assert sum(rewards[:2]) / 2 < 0.6 and sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.25
    # what tells them apart: KL in the loss, a value network, several updates
    assert {line["kl"] is not None for line in lines} == {algorithm == "grpo"}
    assert {"value_loss" in line for line in lines} == {algorithm == "ppo"}
    assert {line["updates"] for line in lines} == {4 if algorithm == "ppo" else 1}


def test_dynamic_sampling_takes_fresh_scenes_and_repeats_itself(go, tmp_path, monkeypatch):
    first = scene_examples("rl", 8)[0].id

    def reward(example, completions):                        # one scene of the eight teaches nothing
        return [{"speed": 0.0 if example.id == first else float(text), "path": 0.0, "format": 0.0}
                for text in map(hash_of, completions)]
    monkeypatch.setattr(train, "make_reward_fn", lambda config: reward)
    runs = [go("--algorithm", "dapo", "--steps", 6, "--samples-every", 1, "--learning-rate", "1e-9", name=name)
            for name in "ab"]
    kept = [{key: value for key, value in line.items() if "second" not in key} for line in runs[0]]
    assert kept == [{key: value for key, value in line.items() if "second" not in key} for line in runs[1]]
    assert {line["redrawn"] for line in kept} == {0, 2}      # of 12 scenes asked for the flat one came up at least once
    assert all(line["flat_groups"] == 0.0 for line in kept)
    samples = [json.loads(line) for line in (tmp_path / "a/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12 and first not in {sample["id"] for sample in samples}


def hash_of(text):
    return sum(map(ord, text))


def test_cloning_entropy_and_annealing_by_flags(go):
    lines = go("--steps", 3, "--bc-coef", "0.5:0:linear", "--ent-coef", "0.01", "--beta", "0", "--learning-rate",
               "1e-9")
    # done: 0, a half, all of the run; cloning weighs .5, .25, 0
    for line, weight in zip(lines, (0.5, 0.25, 0.0), strict=True):
        expected = line["policy_loss"] + weight * line["bc_loss"] - 0.01 * line["entropy"]
        assert line["loss"] == pytest.approx(expected, abs=1e-5) and line["bc_loss"] > 1


def test_ppo_with_a_shared_trunk(go):
    (line, _) = go("--algorithm", "ppo", "--value-trunk", "shared", "--steps", 2, "--target-kl", "0.001")
    assert line["value_loss"] >= 0 and 1 <= line["updates"] < 4                # stopped by the KL to the old policy
