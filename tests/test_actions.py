"""Lists of actions of one's own, 3 speeds x 4 paths, from the file to the report; and the default, AlphaDrive's."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import eval as evaluate
import report
import train
from data.builders.distill import make_question
from data.builders.review import contradiction
from data.datasheet import joint_table
from data.example import Example, prompt_text
from data.files import load_examples
from evaluation.metrics import invalid_cause, planning_metrics
from evaluation.page.groups import group_block
from evaluation.page.runs import outcome, read_runs
from evaluation.page.scenes import gallery
from evaluation.predictions import actions_of
from evaluation.scoring import paper_row
from grpo.engine.checkpoint import chosen_actions, read_settings, save_policy
from grpo.engine.conditions import load_planner
from grpo.engine.distributed import RankError
from grpo.engine.flags import STAGES, GRPOFlags, parse_flags
from grpo.engine.prompts import PromptSettings, request_text
from grpo.engine.rewards import make_reward_fn
from grpo.engine.setup import configure
from models.qwen2_vl import new_model
from rewards import Decision, find_actions, parse_plan, planning_rewards
from rewards.action_file import actions_from, as_record, read_actions
from rewards.actions import ALPHADRIVE, Actions

LISTS = {"speeds": ["CRUISE", "CREEP", "HALT"], "paths": ["FORWARD", "LEFT", "RIGHT", "U_TURN"],
         "weights": {"CRUISE": 0.8, "LEFT": 0.5}, "going": ["CRUISE"], "braking": ["CREEP", "HALT"],
         "words": {"HALT": "stop the car"}}
OWN = actions_from(LISTS, "here")
PROMPT = ("You are an expert driving assistant. Your current speed is 4.2m/s, the navigation command is '{'100m': "
          "'Straight'}', based on the understanding of the driving scene and the navigation information, what is your "
          "driving plan for the next three seconds? Output the planning reasoning process in <think> </think> and "
          "final planning answer in <answer> </answer> tags, respectively. Planning answer consists of SPEED plan and "
          "PATH plan, SPEED includes KEEP, ACCELERATE, DECELERATE, and STOP. PATH includes STRAIGHT, RIGHT_CHANGE, "
          "LEFT_CHANGE, RIGHT_TURN, and LEFT_TURN. For example, a correct answer format is like '<think> planning "
          "reasoning process here </think> <answer> KEEP, LEFT_TURN </answer>'.")


def own_plan(speed, path):
    return Decision(speed, path, OWN)


def example(plan=None, **changes):
    return Example(**{"id": "e", "image": "x", "speed": 4.2, "navigation": {"100m": "Straight"},
                      "decision": plan or Decision("KEEP", "STRAIGHT"), **changes})


# ---------------------------------------------------------------- the default

def test_the_default_is_alphadrives_to_the_byte():
    assert prompt_text(example()) == PROMPT
    assert ALPHADRIVE.classes == ("STRAIGHT", "LEFT", "RIGHT")
    assert [ALPHADRIVE.weight(name) for name in ALPHADRIVE.names] == [.8, .9, 1, 1, .8, 1, 1, 1, 1]
    assert PromptSettings().record == {"prompt_style": "alphadrive", "reasoning": True, "hide": "nothing",
                                       "max_new_tokens": 256, "scene_size": "224x112", "answer": "plan"}


def test_a_record_is_read_back_as_it_was():
    for actions in (ALPHADRIVE, OWN):
        assert actions_from(json.loads(json.dumps(as_record(actions))), "here") == actions


# ---------------------------------------------------------------- what follows the lists

def test_the_question_names_the_lists():
    text = prompt_text(example(own_plan("HALT", "LEFT")), reasoning=False, actions=OWN)
    assert "SPEED includes CRUISE, CREEP, and HALT. PATH includes FORWARD, LEFT, RIGHT, and U_TURN. For" in text
    assert text.endswith("like '<answer> CRUISE, U_TURN </answer>'.") and "<think>" not in text
    asked = prompt_text(example(own_plan("HALT", "LEFT")), actions=OWN)
    assert prompt_text(example(prompt=asked), reasoning=False, actions=OWN) == text         # verbatim, from the data
    assert request_text(example(), PromptSettings(reasoning=False, actions=OWN)) == text
    short = Actions(("GO", "HALT"), ("LEFT",), prompt="{speed} {navigation} {request} {speeds} | {paths}")
    assert prompt_text(example(navigation="{paths}"), reasoning=False, actions=short) == (
        "4.2 {paths} Output the final planning answer in <answer> </answer> tags. GO and HALT | LEFT")


def test_the_readers_know_these_actions_alone():
    assert parse_plan("<answer> u_turn, Halt. </answer>", OWN) == own_plan("HALT", "U_TURN")
    assert parse_plan("<answer> STOP, STRAIGHT </answer>", OWN) is None
    assert parse_plan("<answer> HALT, U_TURN </answer>") is None
    assert find_actions("<answer> HALT or CREEP, KEEP </answer>", OWN) == (("HALT", "CREEP"), ())
    assert invalid_cause("<answer> KEEP, LEFT </answer>", actions=OWN) == "unknown_word"
    assert invalid_cause("<think> <answer> a </answer> </think>", actions=OWN) == "no_answer"
    with pytest.raises(ValueError, match="unknown speed action 'HALT': use one of KEEP"):
        Decision("HALT", "U_TURN")


def test_rewards_by_hand():
    # the label is CREEP, LEFT; weights CRUISE .8, CREEP 1 (none given), LEFT .5. The second answer is a hedge: F1 2/3
    # times (.8 + 1) / 2. No two answers are the same, so diversity is 1.
    texts = [f"<think> a </think> <answer> {plan} </answer>" for plan in ("CREEP, LEFT", "CRUISE, CREEP, LEFT", "KEEP")]
    wanted = [(1.0, .5, 1.0), (.6, .5, 0.0), (0.0, 0.0, 0.0)]
    rows = planning_rewards(texts, own_plan("CREEP", "LEFT"), actions=OWN)
    assert rows == [pytest.approx(row) for row in wanted]
    components = make_reward_fn(GRPOFlags(), OWN)(example(own_plan("CREEP", "LEFT")), texts)
    assert [tuple(row.values()) for row in components] == [
        pytest.approx((*row, right)) for row, right in zip(wanted, (1.0, 0.0, 0.0), strict=True)]


def test_own_rewards_get_the_plans_of_these_actions(tmp_path):
    (tmp_path / "mine.py").write_text("def turns(example, completions, plans):\n"
                                      "    return [{'turns': float(p.path == 'U_TURN')} for p in plans]\n")
    for processes in (0, 1):
        config = GRPOFlags(reward=f"{tmp_path / 'mine.py'}:turns", reward_processes=processes)
        (row,) = make_reward_fn(config, OWN)(example(own_plan("HALT", "U_TURN")), ["<answer> HALT, U_TURN </answer>"])
        assert row == {"turns": 1.0, "accuracy": 1.0}


def test_metrics_by_hand():
    # caution: CRUISE 0, CREEP 1, HALT 2. Three labels brake; HALT -> CRUISE costs 2 / 2, CREEP -> CRUISE 1 / 2.
    truths = [own_plan("HALT", "LEFT"), own_plan("CREEP", "U_TURN"), own_plan("HALT", "LEFT"),
              own_plan("CRUISE", "FORWARD")]
    answers = [own_plan("CRUISE", "LEFT"), own_plan("CRUISE", "LEFT"), own_plan("HALT", "LEFT"), None]
    found = planning_metrics(truths, answers, actions=OWN)
    assert found["safety"] == {"support": 3, "count": 2, "rate": pytest.approx(2 / 3), "cost": pytest.approx(1.5 / 3)}
    assert found["planning_accuracy"] == 0.25 and list(found["path"]) == ["FORWARD", "LEFT", "RIGHT", "U_TURN"]
    assert found["path_confusion"]["U_TURN"] == {"FORWARD": 0, "LEFT": 1, "RIGHT": 0, "U_TURN": 0, "invalid": 0}
    assert "paper" not in found
    columns = [name for name in paper_row(found) if name.startswith(("path", "speed"))]
    assert columns == ["path forward", "path left", "path right", "path u_turn", "speed cruise", "speed creep",
                       "speed halt"]
    merging = actions_from({**LISTS, "merge": {"LEFT": "ASIDE", "U_TURN": "ASIDE"}}, "here")
    found = planning_metrics(truths, answers, actions=merging)
    assert "path aside" in paper_row(found) and "path left" not in paper_row(found)
    paper = found["paper"]
    assert list(paper["path"]) == ["ASIDE", "FORWARD", "RIGHT"] and paper["path_accuracy"] == 0.75
    quiet = actions_from({key: LISTS[key] for key in ("speeds", "paths")}, "here")
    assert planning_metrics(truths, answers, actions=quiet)["safety"] == {
        "support": 0, "count": 0, "rate": None, "cost": None}


@pytest.mark.parametrize("truth, answer, kind", [
    ("HALT, LEFT", "CRUISE, LEFT", "unsafe"), ("CRUISE, LEFT", "HALT, LEFT", "wrong"), ("HALT, LEFT", None, "invalid")])
def test_outcomes_of_the_page(truth, answer, kind):
    assert outcome({"truth": truth, "decision": answer}, OWN) == kind


def test_teachers_and_datasheets_follow(tmp_path):
    one = example(own_plan("HALT", "U_TURN"))
    assert "its driver has decided to stop the car and u turn." in make_question(one, "m", 9, tmp_path, OWN).text
    assert contradiction("so i turn left and accelerate.", one.decision) is None    # there are no patterns for it
    assert contradiction("so i accelerate.", Decision("STOP", "STRAIGHT")) is not None
    assert joint_table([one], OWN)[0] == "| speed \\ path | FORWARD | LEFT | RIGHT | U_TURN | all |"
    assert joint_table([one], OWN)[4] == "| HALT | 0 | 0 | 0 | 1 | 1 (100.0 %) |"


def test_the_file_in_the_docs_can_be_read():
    text = (Path(__file__).resolve().parent.parent / "docs/own.md").read_text()
    record = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    actions = actions_from(record, "docs/own.md")
    assert actions.speeds == OWN.speeds and actions.classes == ("ASIDE", "FORWARD", "U_TURN")


# ---------------------------------------------------------------- wrong files

@pytest.mark.parametrize("changes, told", [
    ({"speeds": []}, "speeds: 0 names; list from 1 to 100"),
    ({"speeds": "GO"}, "speeds: expected a list of names such as .* got 'GO'"),
    ({"paths": ["LEFT", "LEFT"]}, "paths: LEFT is listed twice; list each name once"),
    ({"paths": ["GO LEFT"]}, "paths: 'GO LEFT' is not a valid name; use capital letters"),
    ({"paths": ["GO,LEFT"]}, "paths: 'GO,LEFT' is not a valid name"),
    ({"paths": ["left"]}, "paths: 'left' is not a valid name"),
    ({"paths": ["\u017fTOP"]}, "paths: .* is not a valid name"),
    ({"paths": ["HALT"]}, "paths: HALT is also one of the speeds; rename one"),
    ({"weights": {"FLY": 1}}, "weights: 'FLY' is not listed; use CRUISE, CREEP"),
    ({"weights": {"HALT": -1}}, "weights: HALT is -1; give a number from 0 to 1000"),
    ({"weights": {"HALT": float("nan")}}, "weights: HALT is nan"),
    ({"weights": {"HALT": True}}, "weights: HALT is True"),
    ({"weights": {"HALT": 10**400}}, "weights: HALT is 1000"),
    ({"going": ["FORWARD"]}, "going: 'FORWARD' is not one of the speeds"),
    ({"going": ["HALT"]}, "going: HALT occurs twice in going and braking"),
    ({"going": []}, "going: the list is empty; give both lists, or none"),
    ({"merge": {"HALT": "X"}}, "merge: 'HALT' is not listed"),
    ({"merge": {"LEFT": "a b"}}, "merge: LEFT is 'a b'; give the name of a class"),
    ({"words": {"HALT": "a\nb"}}, "words: HALT is 'a.nb'; give a text of one line"),
    ({"prompt": "{speed} {navigation} {request} {sped}"}, "prompt: {sped} is no place; use {speed}, {navigation}"),
    ({"prompt": "{speed} {request} {speeds} {paths}"}, "prompt: {navigation} is missing"),
    ({"prompt": "{speed} {navigation} {request} {paths} HALT"}, "prompt: CRUISE is not named"),
    ({"prompt": "<image> {speed} {navigation} {request} {speeds} {paths}"}, "prompt: holds '<image>'"),
    ({"weigths": {}}, "the key 'weigths' is not known; use speeds, paths, weights"),
])
def test_a_wrong_file_names_key_value_and_remedy(tmp_path, changes, told):
    file = tmp_path / "actions.json"
    file.write_text(json.dumps({**LISTS, **changes}))
    with pytest.raises(ValueError, match=f"actions.json: {told}"):
        read_actions(file)


@pytest.mark.parametrize("text, told", [
    ("{", "actions.json: not valid JSON"), ("[1]", r"actions.json: \[1\] is no object"),
    ('{"speeds": ["GO"]}', "actions.json: the key 'paths' is missing; list the paths"),
    ('{"speeds": ["GO"], "speeds": ["A"], "paths": ["B"]}', "the key 'speeds' is given twice"),
    (" " * 2**20 + "{}", "bytes are no list of actions"), (None, r"actions.json cannot be read \(No such file")])
def test_a_file_that_is_none(tmp_path, text, told):
    file = tmp_path / "actions.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=told):
        read_actions(file)


# ---------------------------------------------------------------- from the file to the report

@pytest.fixture(scope="module")
def places(tmp_path_factory, micro_config, processor):
    """A folder with a model, twelve records with pictures, and lists of actions."""

    folder = tmp_path_factory.mktemp("own")
    save_policy(new_model(micro_config, torch.Generator().manual_seed(0)), processor,
                PromptSettings("compact", reasoning=False, max_new_tokens=40), {}, folder / "base")
    records = []
    for number in range(12):
        Image.new("RGB", (84, 56), ("grey", "red", "green", "blue")[number % 4]).save(folder / f"{number}.png")
        split = "train" if number < 8 else "val" if number < 10 else "test"
        records.append({"id": f"e{number}", "image": f"{number}.png", "speed": 5.0, "navigation": "On",
                        "decision": DRIVEN[number % 4], "split": split})
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "actions.json").write_text(json.dumps(LISTS))
    return folder


DRIVEN = ("CRUISE, FORWARD", "CREEP, LEFT", "HALT, RIGHT", "CREEP, U_TURN")
SFT = ("--steps", 120, "--batch-size", 4, "--learning-rate", 1e-2, "--warmup-steps", 10, "--save-every", 120)


def run(places, stage, model, output, *flags):
    train.main(["--stage", stage, "--model", str(places / model), "--data", str(places / "data.json"),
                "--device", "cpu", "--output", str(places / output), *map(str, flags)])


@pytest.fixture(scope="module")
def trained(places):
    """SFT with the file, GRPO from its model without it, scored and shown."""
    run(places, "sft", "base", "sft", "--actions", places / "actions.json", *SFT)
    run(places, "grpo", "sft/model", "grpo", "--steps", 2, "--prompts-per-step", 2, "--group-size", 2,
        "--samples-every", 1, "--learning-rate", 1e-4)
    evaluate.main(["--model", str(places / "grpo/model"), "--data", str(places / "data.json"), "--device", "cpu"])
    report.main([str(places / "sft"), str(places / "grpo")])
    return places


def test_lists_travel_with_the_model_to_the_report(trained):
    assert read_settings(trained / "base").actions == ALPHADRIVE
    for place in ("sft", "grpo"):
        assert read_settings(trained / place / "model").actions == actions_of(trained / place) == OWN
    assert actions_of(trained / "grpo/eval-test") == OWN
    metrics = json.loads((trained / "grpo/eval-test/metrics.json").read_text())
    assert metrics["planning_accuracy"] == 1 and list(metrics["speed_confusion"]) == LISTS["speeds"]
    page = (trained / "grpo/report.html").read_text()
    assert gallery(read_runs([str(trained / "grpo")])).count('class="plan"') == 2
    assert '<option value="CREEP">CREEP (1)</option>' in page and "ACCELERATE" not in page
    assert json.loads((trained / "sft/metrics.jsonl").read_text().splitlines()[-1])["val_accuracy"] == 1
    group = json.loads((trained / "grpo/samples.jsonl").read_text().splitlines()[0])
    assert max(group["components"]["accuracy"]) == 1 and 'class="plan"' in group_block(group, {}, True, OWN)


def test_scored_runs_are_compared_and_pictures_planned_for(trained, tmp_path, capsys):
    scored = trained / "grpo/eval-test"
    evaluate.main(["--compare", str(scored), str(scored / "predictions.jsonl")])
    assert "path u_turn" in capsys.readouterr().out
    evaluate.main(["--model", str(trained / "grpo/model"), "--images", str(trained / "data.json"), "--samples", "1",
                   "--json", str(tmp_path / "plans.jsonl"), "--device", "cpu"])
    plans = [json.loads(line)["plan"] for line in (tmp_path / "plans.jsonl").read_text().splitlines()]
    assert sum(plan == DRIVEN[number % 4] for number, plan in enumerate(plans)) >= 6
    evaluate.main(["--model", str(trained / "grpo/model"), "--image", str(trained / "2.png"), "--navigation", "On",
                   "--speed", "5", "--device", "cpu"])
    assert "1/1  HALT, RIGHT" in capsys.readouterr().out


def test_another_list_is_told_and_ends_a_resumed_run(trained, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**LISTS, "paths": [*LISTS["paths"], "PARK"]}))
    with pytest.raises(SystemExit, match="was written with other lists of actions"):
        run(trained, "sft", "base", "sft", "--actions", other, *SFT, "--resume", "auto")
    run(trained, "sft", "sft/model", tmp_path / "again", "--actions", other, "--steps", 1, "--batch-size", 2)
    assert ("note: the model was trained with the actions CRUISE, CREEP, HALT, FORWARD, LEFT, RIGHT, U_TURN; this run "
            f"uses those of {other}: ") in capsys.readouterr().out
    assert read_settings(tmp_path / "again/model").actions.paths[-1] == "PARK"


def test_what_knows_alphadrives_actions_alone_says_so(trained, tmp_path, capsys):
    scenes = "has the actions CRUISE.* the built-in scenes are labelled with AlphaDrive's; name examples .*--data FILE"
    with pytest.raises(SystemExit, match=scenes):
        run(trained, "grpo", "sft/model", tmp_path / "x", "--data", "scenes")
    with pytest.raises(SystemExit, match=scenes):
        evaluate.main(["--model", str(trained / "sft/model"), "--output", str(tmp_path / "x")])
    with pytest.raises(SystemExit, match="answer is 'trajectory', and way-points are judged by AlphaDrive's actions"):
        run(trained, "sft", "sft/model", tmp_path / "x", "--answer", "trajectory")
    with pytest.raises(ValueError, match="a trajectory decoder knows AlphaDrive's alone"):
        load_planner(str(trained / "sft/model"), "cpu")
    with pytest.raises(SystemExit):
        parse_flags(STAGES["trajectory-bc"], "", ["--actions", "a.json"])
    assert "--actions belongs to --stage sft, grpo" in capsys.readouterr().err
    with pytest.raises(ValueError, match="PATH one of STRAIGHT, .*; lists of your own: --actions FILE.json"):
        load_examples(trained / "data.json")


def test_lists_that_hold_alphadrives_fit_the_built_in_scenes(tmp_path):
    more = {**as_record(ALPHADRIVE), "paths": [*ALPHADRIVE.paths, "U_TURN"], "weights": {"U_TURN": 0.5}}
    (tmp_path / "more.json").write_text(json.dumps(more))
    config = configure("sft", {"model": "tiny", "actions": str(tmp_path / "more.json")})
    assert chosen_actions(config).weight("U_TURN") == 0.5
    (tmp_path / "less.json").write_text(json.dumps({**more, "paths": ["STRAIGHT", "U_TURN"], "merge": {}, "words": {}}))
    with pytest.raises(ValueError, match="less.json has the actions KEEP, .* name examples with your labels by --data"):
        configure("sft", {"model": "tiny", "actions": str(tmp_path / "less.json")})


def test_processes_with_different_lists_do_not_train():
    world = SimpleNamespace(texts=lambda own: [own, "null"])
    with pytest.raises(RankError, match="different lists of actions; give all of them the same --actions FILE"):
        train.check_equal(SimpleNamespace(about={"actions": as_record(OWN)}), world)
    train.check_equal(SimpleNamespace(about={}), world)


@pytest.mark.parametrize(("name", "words"), [("data", "different examples; give all of them the same --data"),
                                             ("steps", "numbers of steps"), ("rewards", "reward functions")])
def test_processes_with_other_inputs_do_not_train(name, words):
    world = SimpleNamespace(texts=lambda own: [own, "null"])
    with pytest.raises(RankError, match=words):
        train.check_equal(SimpleNamespace(about={name: "3f"}), world)
