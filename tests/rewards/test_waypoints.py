"""The block of way-points: what is written, the strict reader, distances and the reward by hand."""
import random
import time

import pytest

from rewards import parse_plan, planning_rewards
from rewards.actions import follows_format
from rewards.waypoints import (
    displacement_errors,
    parse_waypoints,
    waypoint_reward,
    without_waypoints,
    write_waypoints,
)

POINTS = ((2.1, 0.0), (4.2, 0.0), (6.3, -0.1), (8.4, -0.2), (10.5, -0.4), (12.6, -0.7), (14.7, -1.0), (16.8, -1.4))
PAIRS = "2.1,0.0 4.2,0.0 6.3,-0.1 8.4,-0.2 10.5,-0.4 12.6,-0.7 14.7,-1.0 16.8,-1.4"
PLAN = "<think> Free. </think> <answer> KEEP, STRAIGHT </answer>"
GOOD = f"{PLAN} <trajectory> {PAIRS} </trajectory>"


def test_what_is_written_is_read():
    assert write_waypoints(POINTS) == f"<trajectory> {PAIRS} </trajectory>"
    assert parse_waypoints(GOOD) == POINTS
    # one decimal; neither -0.0 nor an exponent
    assert write_waypoints([(-0.04, 1000), (0.25, -0.05), (1e-9, 99.96)]) == (
        "<trajectory> 0.0,1000.0 0.2,-0.1 0.0,100.0 </trajectory>")


@pytest.mark.parametrize("text", [
    GOOD + "\n", PLAN + f"<trajectory>{PAIRS}</trajectory>",
    f"<answer> WAIT </answer> <trajectory> {PAIRS} </trajectory>",
    GOOD.replace(" 4.2,", "\n4.2,"), GOOD.replace("4.2,0.0", "4.2,-0.0")])
def test_what_else_is_read(text):
    assert parse_waypoints(text) == POINTS


@pytest.mark.parametrize("text", [
    "", PLAN, f"<trajectory> {PAIRS} </trajectory>", f"<trajectory> {PAIRS} </trajectory> {PLAN}",
    f"{PLAN} so <trajectory> {PAIRS} </trajectory>", GOOD + " so", GOOD + GOOD, GOOD + " </trajectory>",
    f"{PLAN} <trajectory> {PAIRS}", f"{PLAN} {PAIRS} </trajectory>", f"{PLAN} <trajectory> </trajectory>",
    f"{PLAN} <trajectory> {PAIRS} 18.9,-1.8 </trajectory>", GOOD.replace(" 16.8,-1.4", ""),
    f"<think> Free. <trajectory> {PAIRS} </trajectory> </think> <answer> KEEP, STRAIGHT </answer>",
    *(GOOD.replace("4.2,0.0", pair) for pair in (
        "4.2, 0.0", "(4.2,0.0)", "4.2,0.0,", "4.2;0.0", "4.2", "4.2,0", "4.20,0.0", "4,0", ".2,0.0", "4.,0.0",
        "04.2,0.0", "+4.2,0.0", "--4.2,0.0", "4.2,nan", "4.2,inf", "1e1,0.0", "12345.6,0.0", "٤.٢,0.0", "4.2,x",
        "<answer>", "4.2,0.0 KEEP"))])
def test_what_is_not_read(text):
    assert parse_waypoints(text) is None


def test_the_readers_of_plans_do_not_look_at_the_block():
    assert str(parse_plan(GOOD)) == "KEEP, STRAIGHT"
    assert without_waypoints(GOOD) == PLAN and without_waypoints(PLAN) == PLAN and without_waypoints("") == ""
    assert follows_format(without_waypoints(GOOD)) and not follows_format(GOOD)
    assert planning_rewards([GOOD], parse_plan(PLAN))[0][:2] == planning_rewards([PLAN], parse_plan(PLAN))[0][:2]


def test_distances_and_reward_by_hand():
    # 3 m ahead and 4 m aside of the last point: 5 m there, 5 / 8 m in the mean; exp(-.625 / 2) = .731616
    expert = (*POINTS[:7], (19.8, 2.6))
    assert displacement_errors(POINTS, expert) == (pytest.approx(0.625), pytest.approx(5.0))
    assert waypoint_reward(GOOD, expert) == pytest.approx(0.731616, abs=1e-6)
    assert waypoint_reward(GOOD, POINTS) == 1.0 and waypoint_reward(PLAN, POINTS) == 0.0


ALPHABET = ("<trajectory>", "</trajectory>", "<answer>", "</answer>", "<think>", "</think>", "<", ">", "2.1,0.0",
            "-0.1", ",", ".", "-", "0", "9", " ", "\n", "\t", "\0", "\u0662", "\u2028", "\ud800", "nan", "1e5", PAIRS,
            PLAN, "x")


def test_random_texts_raise_nothing():
    generator, read = random.Random(0), 0
    for _ in range(20_000):
        text = "".join(generator.choices(ALPHABET, k=generator.randrange(16)))
        text = text if generator.random() < 0.5 else f"{PLAN} <trajectory> {text} </trajectory>"
        points = parse_waypoints(text)
        assert points is None or (len(points) == 8 and parse_waypoints(f"{PLAN} {write_waypoints(points)}") == points)
        assert 0 <= waypoint_reward(text, POINTS) <= (points is not None)
        read += points is not None
    assert read > 20                                                            # the generator does reach valid blocks


@pytest.mark.parametrize("text", [
    "<trajectory>" * 50_000, "</trajectory>" * 50_000, f"{PLAN}<trajectory>" + " " * 500_000 + "x</trajectory>",
    f"{PLAN}<trajectory>" + "9" * 500_000 + "</trajectory>",
    f"{PLAN}<trajectory>" + "2.1,0.0 " * 60_000 + "</trajectory>",
    GOOD + " " * 500_000 + "x", PLAN + " " * 500_000 + f"<trajectory> {PAIRS} </trajectory>", "a" * 500_000])
def test_time_is_linear_in_the_text(text):
    start = time.perf_counter()
    parse_waypoints(text), without_waypoints(text), waypoint_reward(text, POINTS)
    assert time.perf_counter() - start < 2
