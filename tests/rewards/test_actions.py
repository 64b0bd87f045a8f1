"""The two readers of a completion: what they accept, what they refuse, and that nothing a model writes stops them."""

import random
import time

import pytest

from rewards import Decision, find_actions, parse_plan
from rewards.actions import PATH_ACTIONS, SPEED_ACTIONS, follows_format, has_reasoning
from rewards.planning import MODES, planning_rewards

GOOD = "<think> The light is red. </think> <answer> STOP, STRAIGHT </answer>"


def answer(content):
    return f"<think> because </think> <answer>{content}</answer>"


def test_decision_prints_as_the_answer_is_written():
    assert str(Decision("STOP", "STRAIGHT")) == "STOP, STRAIGHT"
    assert Decision("STOP", "STRAIGHT") == Decision("STOP", "STRAIGHT")
    assert len({Decision(s, p) for s in SPEED_ACTIONS for p in PATH_ACTIONS}) == 20


@pytest.mark.parametrize(("speed", "path", "named"), [
    ("stop", "STRAIGHT", "'stop'"), ("STRAIGHT", "STOP", "'STRAIGHT'"), ("STOP", "LEFT", "'LEFT'"),
    ("", "STRAIGHT", "''"),
])
def test_decision_refuses_unknown_names(speed, path, named):
    with pytest.raises(ValueError, match=named):
        Decision(speed, path)


@pytest.mark.parametrize("content", [
    " STOP, STRAIGHT ", "STOP,STRAIGHT", "stop, straight", "Stop Straight", "STRAIGHT, STOP", "STOP, STRAIGHT.",
    "\nSTOP,\nSTRAIGHT\n", "STOP\nSTRAIGHT", " STOP ,  STRAIGHT . ", "\tSTOP,\r\nSTRAIGHT.\n",
])
def test_strict_parser_accepts(content):
    assert parse_plan(answer(content)) == Decision("STOP", "STRAIGHT")
    assert parse_plan(f"<answer>{content}</answer>") == Decision("STOP", "STRAIGHT")


@pytest.mark.parametrize("content", [
    "", " ", "STOP", "STRAIGHT", "STOP, KEEP", "STRAIGHT, LEFT_TURN", "STOP, KEEP, STRAIGHT", "STOP, STOP, STRAIGHT",
    "STOP, STRAIGHT, LEFT_TURN", "STOP and STRAIGHT", "speed: STOP, path: STRAIGHT", "STOP; STRAIGHT", "STOP/STRAIGHT",
    "STOPSTRAIGHT", "STOP_STRAIGHT", "STOP, STRAIGHT..", "STOP, STRAIGHT!", "STOP. STRAIGHT", "STOPPING, STRAIGHT",
    "STOP, LEFT TURN", "STOP, LEFT", "**STOP, STRAIGHT**", "KEEP, ACCELERATE, DECELERATE, STOP, STRAIGHT",
    "banana, STOP", "\u017fTOP, STRAIGHT", "<answer>STOP, STRAIGHT",
])
def test_strict_parser_refuses(content):
    assert parse_plan(answer(content)) is None


@pytest.mark.parametrize(("text", "plan"), [
    ("", None), ("STOP, STRAIGHT", None), ("<answer> STOP, STRAIGHT", None), ("STOP, STRAIGHT </answer>", None),
    ("</answer> STOP, STRAIGHT <answer>", None), (GOOD + GOOD, None), (GOOD + "<answer></answer>", None),
    ("<answer>STOP, STRAIGHT</answer></answer>", None), ("<answer>STOP, <think>x</think> STRAIGHT</answer>", None),
    ("<think> <answer>STOP, STRAIGHT</answer> </think>", None), ("<ANSWER>STOP, STRAIGHT</ANSWER>", None),
    ("<think> KEEP, LEFT_TURN </think> <answer>STOP, STRAIGHT</answer>", "STOP, STRAIGHT"),
    ("<think> never closed <answer>STOP, STRAIGHT</answer>", "STOP, STRAIGHT"),
    ("never opened </think> <answer>STOP, STRAIGHT</answer>", "STOP, STRAIGHT"),
    ("chatter <answer>STOP, STRAIGHT</answer> chatter", "STOP, STRAIGHT"),
    ("<answer>STOP, STRAIGHT</answer> <think> late </think>", "STOP, STRAIGHT"),
])
def test_strict_parser_on_tags(text, plan):
    assert (parse_plan(text) and str(parse_plan(text))) == plan


def test_an_answer_that_lists_everything_is_no_plan():
    text = answer(", ".join(SPEED_ACTIONS + PATH_ACTIONS))
    assert parse_plan(text) is None and find_actions(text) == (SPEED_ACTIONS, PATH_ACTIONS)


@pytest.mark.parametrize("content", [
    "KEEP, STRAIGHT", "KEEP,STRAIGHT", "keep, straight", "KEEP and STRAIGHT", "\nKEEP,\nSTRAIGHT\n", "KEEP, STRAIGHT.",
    "**Keep** / *Straight*!", "speed=KEEP;path=STRAIGHT", "KEEP KEEP STRAIGHT", "STRAIGHT, KEEP", "(KEEP)(STRAIGHT)",
])
def test_lenient_reader_sees_through_the_wording(content):
    assert find_actions(answer(content)) == (("KEEP",), ("STRAIGHT",))


@pytest.mark.parametrize(("text", "found"), [
    ("", ((), ())), ("banana", ((), ())), ("<answer> </answer>", ((), ())), ("KEEP, STRAIGHT", ((), ())),
    ("<answer> KEEP, STRAIGHT", ((), ())), (answer("KEEPING, STRAIGHTEN"), ((), ())), (answer("TURN LEFT"), ((), ())),
    (answer("KEEPSTRAIGHT"), ((), ())),
    ("<think> KEEP, STRAIGHT </think> <answer>STOP</answer>", (("STOP",), ())),
    (answer("STOP, KEEP, LEFT_TURN"), (("STOP", "KEEP"), ("LEFT_TURN",))),
    (answer("STOP, LEFT_TURN") + " or <answer>KEEP, LEFT_TURN</answer>", (("STOP", "KEEP"), ("LEFT_TURN",))),
    ("<think> <answer>KEEP</answer> </think> <answer>STOP</answer>", (("STOP",), ())),
    ("<answer> KEEP <answer> STOP </answer>", (("STOP",), ())),
])
def test_lenient_reader(text, found):
    assert find_actions(text) == found


@pytest.mark.parametrize("text", [
    GOOD, GOOD + "\n", "\n " + GOOD + "  \n\n", GOOD + "<|im_end|>", GOOD + "<|im_end|>\n<|endoftext|><|endoftext|>",
    "<think>x</think><answer>keep\nleft_turn.</answer>",
    "<think>\nline\nline\n</think>\n<answer>STOP, STRAIGHT</answer>",
])
def test_format_accepts(text):
    assert follows_format(text) and has_reasoning(text) and not follows_format(text, reasoning=False)


@pytest.mark.parametrize("text", [
    "", "banana", "KEEP, STRAIGHT", "<answer>STOP, STRAIGHT</answer>",
    "<think></think><answer>STOP, STRAIGHT</answer>", "<think> \n </think><answer>STOP, STRAIGHT</answer>",
    "<think></think><answer></answer>", answer(""),
    answer("STOP"), answer("STOP, KEEP, STRAIGHT"), GOOD + " thanks", "Sure: " + GOOD, "<|im_end|>" + GOOD,
    "<think>x</think> so <answer>STOP, STRAIGHT</answer>", "<answer>STOP, STRAIGHT</answer> <think>x</think>",
    "<think>x</think><think>y</think><answer>STOP, STRAIGHT</answer>", GOOD + GOOD,
    "<think>x</think><answer>STOP, STRAIGHT</answer> junk <answer>STOP, STRAIGHT</answer>",
    "<think>x<think>y</think><answer>STOP, STRAIGHT</answer>",
    "<think>x</think></think><answer>STOP, STRAIGHT</answer>",
    "<think>x</think><answer><answer>STOP, STRAIGHT</answer></answer>", "<think>x <answer>STOP, STRAIGHT</answer>",
    "<think>x</think><answer>STOP, STRAIGHT", "<think>x<answer>STOP, STRAIGHT</answer></think>",
])
def test_format_refuses(text):
    assert not follows_format(text)


def test_format_without_reasoning_is_the_answer_block_alone():
    assert follows_format(" <answer>STOP, STRAIGHT</answer>\n", reasoning=False)
    assert not follows_format("<answer>STOP</answer>", reasoning=False)
    assert not follows_format("so <answer>STOP, STRAIGHT</answer>", reasoning=False)


@pytest.mark.parametrize(("text", "expected"), [
    ("<think>x</think>", True), ("<think>x</think> <answer>banana", True), ("<think> </think>", False), ("x", False),
    ("<think>x", False), ("<answer>STOP</answer><think>x</think>", False), ("<think>x</think><think>y</think>", False),
])
def test_has_reasoning(text, expected):
    assert has_reasoning(text) is expected


ALPHABET = ("<think>", "</think>", "<answer>", "</answer>", "<", ">", "/", *SPEED_ACTIONS, *PATH_ACTIONS, "keep",
            "_TURN", ", ", ",", ".", " ", "\n", "\t", "\0", "\u017f", "\u2028", "\U0001f6a6", "\ud800", "<|im_end|>",
            "(", "\\", "x")


def test_twenty_thousand_random_texts_raise_nothing_and_stay_in_range():
    generator, decision = random.Random(0), Decision("KEEP", "STRAIGHT")
    plans = 0
    for _ in range(2500):
        group = ["".join(generator.choices(ALPHABET, k=generator.randrange(24))) for _ in range(8)]
        for mode in MODES:
            rewards = planning_rewards(group, decision, [decision], mode=mode)
            low, high = (-0.4, 1.4) if mode == "official" else (0.0, 1.0)
            assert all(low <= score <= high for reward in rewards for score in reward)
        for text in group:
            plan, (speeds, paths) = parse_plan(text), find_actions(text)
            assert plan is None or ((plan.speed,), (plan.path,)) == (speeds, paths)
            assert not follows_format(text) or plan is not None
            plans += plan is not None
    assert plans > 0                                                            # the generator does reach valid answers


@pytest.mark.parametrize("text", [
    "<answer>" * 50_000, "<think>" * 50_000 + "</answer>" * 50_000, "<answer></answer>" * 30_000,
    "<think>x</think>" * 30_000, "<answer>" + " " * 400_000 + "x</answer>", "<answer>" + "," * 400_000 + "x</answer>",
    "<answer>" + "." * 400_000 + "</answer>", "<" * 400_000, "<answer>" + "KEEP, " * 60_000 + "</answer>",
    GOOD + "<|im_end|>" * 40_000 + "x", "<think>" + "</think><answer></answer>" * 20_000 + "x",
    "<think>" + ("</think>" + " " * 400) * 900, "a" * 400_000,
])
def test_time_is_linear_in_the_text(text):
    start = time.perf_counter()
    parse_plan(text), find_actions(text), follows_format(text), has_reasoning(text)
    for mode in ("repaired", "official"):
        planning_rewards([text], Decision("KEEP", "STRAIGHT"), mode=mode)
    assert time.perf_counter() - start < 5                                      # quadratic: minutes; linear: 0.1 s
