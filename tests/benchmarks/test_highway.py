"""The yardstick of highway-env without its package: returns, labels, reward and record, from a fake environment."""
import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import highway, highway_reward
from benchmarks.highway import block_means, collect, labels, new_example, seed_parts, table, write_examples
from benchmarks.highway_reward import ACTIONS, IDLE, action_return, driven
from data.example import Example
from data.files import read_examples
from rewards import Decision
from rewards.action_file import read_actions


class Road:
    """Pays 1 in the first second and 0.5 in others. Going faster crashes a second later; slowing down and a second
    action other than idling pay nothing."""

    def __init__(self, world=0, past=()):
        self.action, self.time, self.vehicle = IDLE, len(past), SimpleNamespace(speed=24.96)

    def step(self, action):
        crashed = self.action == ACTIONS["FASTER, STRAIGHT"]
        unpaid = ACTIONS["SLOWER, STRAIGHT"] in (action, self.action) or IDLE not in (action, self.action)
        self.action = action if self.action == IDLE else self.action
        paid = 0.0 if unpaid else 1.0 if self.time == 0 else 0.5
        self.time += 1
        return None, paid, crashed, False, {}

    def get_available_actions(self):
        return [1]

    def render(self):
        return np.zeros((56, 224, 3), np.uint8)


def test_return_is_the_discounted_mean_until_a_crash():
    env = Road()
    # sum of 0.9^t for t = 0 .. 4 is 4.0951; rewards 1, .5, .5, .5, .5; after a crash 0
    assert action_return(env, ACTIONS["KEEP, LEFT"]) == pytest.approx((1 + 0.5 * 3.0951) / 4.0951)
    assert action_return(env, ACTIONS["FASTER, STRAIGHT"]) == pytest.approx((1 + 0.5 * 0.9) / 4.0951)
    assert (env.time, env.action) == (0, IDLE)                                  # stepped in a copy


def test_labels_prefer_idling_and_accept_what_is_nearly_as_good():
    # in the order of ACTIONS: left, idle, right, faster, slower
    assert labels([0.5, 0.7, 0.685, 0.7, 0.67]) == ("KEEP, STRAIGHT", ["KEEP, STRAIGHT", "KEEP, RIGHT",
                                                                      "FASTER, STRAIGHT"])
    assert labels([0.5, 0.7, 0.685, 0.71, 0.1])[0] == "FASTER, STRAIGHT"


def test_reward_steps_the_environment_once_per_scene_and_action(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(highway_reward, "scene", lambda world, past: made.append((world, past)) or Road(world, past))
    highway_reward.driven_return.cache_clear()
    actions = write_fake(tmp_path, monkeypatch)
    plans = [Decision(speed, path, actions) for speed, path in
             (("KEEP", "LEFT"), ("FASTER", "STRAIGHT"), ("FASTER", "LEFT"), ("KEEP", "LEFT"))]
    example = Example(id="7", image="7.png", decision=plans[0], extra={"world": 7, "past": [1, 3]})
    paid = [row["driven"] for row in driven(example, [""] * 5, [*plans, None])]
    # FASTER, LEFT is no action of the environment, and a text without a plan does nothing
    assert paid == pytest.approx([0.5, 0.95 / 4.0951, 0, 0.5, 0])
    assert made == [(7, (1, 3))] * 2
    highway_reward.driven_return.cache_clear()


def write_fake(folder, monkeypatch, **splits):
    """Examples of a fake environment: `splits` maps names to a count. -> the actions."""
    monkeypatch.setattr(highway, "new_world", Road)
    monkeypatch.setattr(highway, "SPLITS", {name: (count, 10 * place) for place, (name, count)
                                            in enumerate(splits.items())})
    write_examples(folder)
    return read_actions(folder / "actions.json")


def test_examples_are_read_as_own_data(tmp_path, monkeypatch):
    actions = write_fake(tmp_path, monkeypatch, test=2)
    first, second = read_examples(tmp_path / "test.jsonl", actions=actions).examples
    assert {str(plan) for plan in actions.plans} >= {*ACTIONS} and len(actions.plans) == 9
    # the first random action has been driven, so idling pays 0.5 each second: as good as changing lanes
    assert str(first.decision) == "KEEP, STRAIGHT" and first.speed == 25.0 and first.extra["world"] == 0
    assert [str(plan) for plan in first.acceptable] == ["KEEP, LEFT", "KEEP, STRAIGHT", "KEEP, RIGHT"]
    assert first.extra["returns"] == [0.5] * 3 + [pytest.approx(0.95 / 4.0951, abs=1e-5), 0.0]
    assert set(first.extra["past"]) == {1} and second.extra["world"] == 1


def test_scenes_without_a_choice_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(highway, "new_world", lambda world: Road())
    assert new_example(0, tmp_path) is not None
    monkeypatch.setattr(highway, "action_return", lambda env, action: 0.5 + 0.001 * action)
    assert new_example(0, tmp_path) is None


def test_record_by_hand(tmp_path, monkeypatch):
    write_fake(tmp_path, monkeypatch, test=2, sft=2, rl=1)
    right, half, wrong = (("KEEP, STRAIGHT", ["KEEP, STRAIGHT", None]), ("FASTER, STRAIGHT", ["KEEP, LEFT"]),
                          ("FASTER, LEFT", ["SLOWER, STRAIGHT"]))
    for part in (part for seed in (0, 1) for part in seed_parts(tmp_path, seed)):
        answers = {"sft": (right, wrong), "grpo": (right, right)}.get(part.name.partition("/")[2], (half, half))
        run = tmp_path / part.name
        (run / "eval").mkdir(parents=True)
        rows = [{"id": str(i), "decision": plan, "sample_decisions": drawn} for i, (plan, drawn) in enumerate(answers)]
        (run / "eval/predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "metrics.jsonl").write_text('{"seconds": 9}\n{"seconds": 2}\n{"seconds": 4}\n{"seconds": 2}\n')
    record = json.loads(json.dumps(collect(tmp_path, [0, 1])))
    assert record["arms"]["SFT"]["1"] == {"acceptable": [0.5], "acceptable_sampled": [0.25], "share": [0.5],
                                          "share_sampled": [0.25]}
    assert record["arms"]["CNN"]["0"]["share"] == [pytest.approx(1.9 / 4.0951, abs=1e-3)]   # .95 / 4.0951 of .5
    assert record["majority"]["plan"] == "KEEP, STRAIGHT" and record["majority"]["acceptable"] == 1
    assert record["step_seconds"]["GRPO"] == 2                                  # of 2, 4, 2 in each run
    lines = table(record)
    assert lines[-2] == "|GRPO - SFT|+50.0 (+50.0 to +50.0)|+25.0 (+25.0 to +25.0)|+50.0 (+50.0 to +50.0)|" \
                        "+25.0 (+25.0 to +25.0)|"
    assert lines[2] == "|majority|1.000|1.000|1.000|1.000|"


def test_both_continuations_train_on_the_same_new_scenes_and_only_grpo_is_paid(tmp_path):
    start, grpo, more, cnn = seed_parts(tmp_path, 1)
    assert grpo.needs == more.needs == (start.name,) and cnn.needs == ()
    files = [part.commands[0][part.commands[0].index("--data") + 1] for part in (start, grpo, more)]
    assert files == [str(tmp_path / f"{split}.jsonl") for split in ("sft", "rl", "rl")]
    assert ["--reward" in part.commands[0] for part in (start, grpo, more)] == [False, True, False]


def test_blocks_hold_ten_scenes():
    rows = [{"id": str(i), "acceptable": ["KEEP, LEFT"], "returns": [1, 0, 0, 0, 0]} for i in range(20)]
    answers = [{"id": str(i), "decision": "KEEP, LEFT" if i < 13 else None, "sample_decisions": ["KEEP, RIGHT"]}
               for i in range(20)]
    assert block_means(answers, rows)["acceptable"] == [1.0, 0.3]
