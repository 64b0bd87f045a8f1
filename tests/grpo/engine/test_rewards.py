"""What a run rewards: the components of several functions together, their weights, their place in the logs."""

import json
from pathlib import Path

import pytest

import train
from grpo.config import GRPOConfig
from grpo.engine.checkpoint import save_policy
from grpo.engine.flags import GRPOFlags, parse_flags
from grpo.engine.prompts import PromptSettings
from grpo.engine.rewards import Scoring, make_reward_fn, reward_signs
from rewards.checked import RewardError

TEXTS = ["<answer> STOP, STRAIGHT </answer>", "no plan"]
SMALL = ["--stage", "grpo", "--steps", "2", "--prompts-per-step", "2", "--group-size", "4",
         "--reasoning", "off", "--prompt-style", "compact", "--max-new-tokens", "8", "--eval-examples", "2",
         "--scenes", "8", "--threads", "1"]


@pytest.fixture
def small(make_model, processor, tmp_path):
    """Flags of a short run of a small model."""
    save_policy(make_model(), processor, PromptSettings("compact", reasoning=False, max_new_tokens=8), {},
                tmp_path / "base")
    return [*SMALL, "--model", str(tmp_path / "base")]


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def length(example, completions):\n"
                    "    return [{'letters': len(text) % 5, 'half': 0.5} for text in completions]\n"
                    "def speed(example, completions):\n    return [{'speed': 1}] * len(completions)\n"
                    "def fickle(example, completions):\n"
                    "    return [{example.id.replace('-', '_'): 1}] * len(completions)\n")
    return file


def test_components_stand_side_by_side(mine, make_examples):
    config = GRPOFlags(reward=f"planning,{mine}:length", reasoning=False)
    first, second = make_reward_fn(config)(make_examples(1)[0], TEXTS)         # the label is STOP, STRAIGHT
    # 33 letters % 5 = 3, 7 % 5 = 2; STOP has the weight 1, STRAIGHT .8
    assert first == pytest.approx({"speed": 1.0, "path": 0.8, "format": 1.0, "letters": 3, "half": 0.5, "accuracy": 1})
    assert second == pytest.approx({"speed": 0, "path": 0, "format": 0, "letters": 2, "half": 0.5, "accuracy": 0})


def test_names_are_given_once_and_always(mine, make_examples):
    one, two = make_examples(2)
    with pytest.raises(RewardError, match="the component 'speed' has the name of another; rename it"):
        make_reward_fn(GRPOFlags(reward=f"planning,{mine}:speed"))(one, TEXTS)
    fickle = make_reward_fn(GRPOFlags(reward=f"{mine}:fickle"))
    fickle(one, TEXTS)
    with pytest.raises(RewardError, match="have the components example_1, those of an earlier one example_0"):
        fickle(two, TEXTS)


def test_the_order_of_names_does_not_count(mine, make_examples):
    mine.write_text("def turned(example, completions):\n"
                    "    names = ['a', 'b'][:: -1 if example.id.endswith('1') else 1]\n"
                    "    return [dict(zip(names, (1, 2)))] * len(completions)\n")
    reward, (one, two) = make_reward_fn(GRPOFlags(reward=f"{mine}:turned")), make_examples(2)
    assert reward(one, TEXTS)[0] == {"a": 1, "b": 2, "accuracy": 1.0}
    assert list(reward(two, TEXTS)[0].items())[:2] == [("a", 2), ("b", 1)]


def test_weights_by_name():
    own = GRPOConfig(reward="planning,a.py:f", reward_weights="comfort=0.5,path=2")
    assert own.paid(["speed", "path", "format", "accuracy", "comfort", "other"]) == {
        "speed": 1.0, "path": 2.0, "format": 1.0, "comfort": 0.5, "other": 1.0}
    assert GRPOConfig(reward="a.py:f").paid(["comfort", "accuracy"]) == {"comfort": 1.0}
    assert GRPOConfig(reward_weights="format=0").component_weights == {"speed": 1.0, "path": 1.0, "format": 0.0}


@pytest.mark.parametrize("settings", [
    dict(reward_weights="comfort=1"), dict(reward_weights="speed=1,1,1"), dict(reward_weights="speed=1,speed=2"),
    dict(reward_weights="speed=nan"), dict(reward_weights="=1"), dict(reward="mine.py"), dict(reward=""),
    dict(reward="planning,planning")])
def test_wrong_settings_are_told_at_the_start(settings):
    with pytest.raises(ValueError, match="^--reward"):
        GRPOConfig(**settings)


def test_the_flag_may_be_repeated():
    assert parse_flags(GRPOFlags, "", ["--reward", "planning", "--reward", "a.py:f"]) == {"reward": "planning,a.py:f"}


def test_scoring_calls_every_group_in_order():
    scoring = Scoring(2)
    assert scoring(lambda example, texts: [{"a": example}], [1, 2, 3], [["x"]] * 3) == [
        [{"a": 1}], [{"a": 2}], [{"a": 3}]]
    assert 0 < scoring.take_seconds() < 5 and scoring.take_seconds() == 0


def test_a_run_with_an_own_reward(small, mine, tmp_path, capsys):
    out = tmp_path / "run"
    flags = [*small, "--output", str(out), "--reward", f"{mine}:length", "--save-every", "1"]
    train.main([*flags, "--reward-weights", "letters=2", "--reward-processes", "1"])
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        assert line["reward"] == pytest.approx(2 * line["reward_letters"] + 0.5, abs=1e-5)
        assert line["reward_half"] == 0.5 and line["scoring_seconds"] > 0
    (sign,) = reward_signs(GRPOFlags(reward=f"{mine}:length"))
    assert json.loads((out / "model/drivegrpo.json").read_text())["rewards"] == [sign]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="lettres missing among its components letters, half"):
        train.main([*flags, "--overwrite", "--reward-weights", "lettres=2"])


def test_another_source_does_not_resume(small, mine, tmp_path):
    out = tmp_path / "run"
    flags = [*small, "--output", str(out), "--save-every", "1"]
    train.main([*flags, "--reward", f"{mine}:length"])
    (moved := tmp_path / "moved.py").write_text(mine.read_text())
    train.main([*flags, "--reward", f"{moved}:length", "--resume", "auto"])    # the same source, elsewhere
    moved.write_text(mine.read_text() + "# another\n")
    with pytest.raises(SystemExit, match=r"was written with --reward length of source \w+; this is length of source"):
        train.main([*flags, "--reward", f"{moved}:length", "--resume", "auto"])
    with pytest.raises(SystemExit, match="this is planning"):
        train.main([*flags, "--resume", "auto"])


def test_a_missing_file_leaves_the_old_run(tmp_path):
    with pytest.raises(SystemExit, match="absent.py cannot be read"):
        train.main([*SMALL, "--model", "tiny", "--output", str(tmp_path / "run"), "--reward", "absent.py:f"])
    assert not Path(tmp_path / "run").exists()
