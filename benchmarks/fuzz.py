"""What no completion may do to the rewards: `python benchmarks/fuzz.py --output benchmarks/results/fuzz.json`.

A million random and adversarial strings go through parse_plan, find_actions, follows_format, planning_rewards and the
reader of way-points. None may raise, and every answer must fit the others: a plan is what find_actions finds, a reward
is in its range, way-points written again are read as the same, and the order of a group changes nothing. Then random
repetitive texts grow 16-fold: the time may grow 40-fold at most (linear 16, quadratic 256).
Prints one JSON object on its last line; ends with an error if anything was found.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rewards import Decision, find_actions, parse_plan, planning_rewards  # noqa: E402
from rewards.actions import PATH_ACTIONS, SPEED_ACTIONS, follows_format, has_reasoning  # noqa: E402
from rewards.planning import MODES  # noqa: E402
from rewards.waypoints import parse_waypoints, waypoint_reward, without_waypoints, write_waypoints  # noqa: E402

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
PIECES = (*TAGS, *SPEED_ACTIONS, *PATH_ACTIONS, *(tag.upper() for tag in TAGS), "<answer", "answer>", "</", "<", ">",
          "< answer >", "keep", "Left_Turn", "LEFT TURN", "KEEPING", "KEEP,STRAIGHT.", "KEEP, STRAIGHT", "<|im_end|>",
          "<|endoftext|>", "<|image_pad|>", ",", ", ", ".", "..", " ", "  ", "\n", "\r\n", "\t", "\0", "_", "-", "'",
          '"', "&lt;", "\\", "\x1b[31m", "\x1b]0;x\x07", "<script>", "\u2028", "\u00a0", "\u200b", "\u202e", "\ufeff",
          "\ud800", "\U0001f6d1", "\u017ftop", "\u212aEEP", "STRA\u0130GHT", "\uff2b\uff25\uff25\uff30", "e\u0301", "0",
          "9" * 40, "a" * 40, "<trajectory>", "</trajectory>", "2.1,0.0", "-0.0,-12.5", "1e5,nan", "2.10,0", "2.1, 0.0")
VALID = "<think> The light is red. </think> <answer> STOP, STRAIGHT </answer>"
DRIVEN = VALID + " <trajectory> 2.1,0.0 4.2,0.0 6.3,-0.1 8.4,-0.1 10.5,0.2 12.6,0.3 14.7,0.4 16.8,0.5 </trajectory>"
STANDING = [(0.0, 0.0)] * 8
RANGES = {"official": (-0.4, 1.4)}                          # the others: 0 to 1
SHOWN = 5                                                   # faults that the record spells out


def main(arguments: list[str] | None = None) -> None:
    """Check strings, then growth; report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--families", type=int, default=500, help="repetitive texts whose growth is timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the JSON object to this file")
    flags = parser.parse_args(arguments)
    record = fuzz(flags.strings, flags.families, flags.seed)
    if flags.output:
        flags.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
    if record["faults"]:
        sys.exit(f"error: {record['faults']} strings broke a rule, first {record['first_faults'][0]}")


def fuzz(strings: int, families: int, seed: int) -> dict:
    """Groups of 1 to 8 strings until there are `strings`, then `families` growing texts. -> the record."""
    rng, started, counts, faults, growths = random.Random(seed), time.perf_counter(), Counter(), [], []
    while counts["strings"] < strings:
        texts = [make_text(rng) for _ in range(rng.randint(1, 8))]
        counts.update(strings=len(texts), characters=sum(map(len, texts)))
        for text in texts:
            kinds, found = check_text(text)
            counts.update(kinds)
            faults += found
        faults += check_group(texts, rng)
    for _ in range(families):
        family = make_family(rng)
        growths.append((growth(*family), repr(family)))
    faults += [f"time grows {times:.0f}-fold: {family}" for times, family in growths if times > 40]
    return {**counts, "families": families, "worst_growth": round(max(growths)[0], 1) if growths else None,
            "faults": len(faults), "first_faults": faults[:SHOWN], "seed": seed, "modes": list(MODES),
            "seconds": round(time.perf_counter() - started, 1)}


def make_text(rng: random.Random) -> str:
    """Pieces of the format in any order; a valid completion with a few edits; any characters at all."""
    kind = rng.random()
    if kind < 0.45:
        return "".join(rng.choices(PIECES, k=rng.randint(0, 12)))
    if kind < 0.55:                                         # blocks in order, so that answers are read and hedges paid
        inside = " ".join(rng.choices((*SPEED_ACTIONS, *PATH_ACTIONS, ",", "."), k=rng.randint(0, 4)))
        return f"<think>{rng.choice(PIECES)}</think>{rng.choice((' ', '', 'x'))}<answer>{inside}</answer>"
    if kind < 0.9:
        return edited(VALID if rng.random() < 0.75 else DRIVEN, rng)
    highest = rng.choice((0x7F, 0xFF, 0x2FFF, 0x10FFFF))    # surrogates included: any str, whatever made it
    return "".join(chr(rng.randint(0, highest)) for _ in range(rng.randint(0, 40)))


def edited(text: str, rng: random.Random) -> str:
    """Up to 4 cuts, insertions, replacements or repetitions."""
    for _ in range(rng.randint(0, 4)):
        start, stop = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        start = max(start, stop - 9)
        middle = rng.choice(("", rng.choice(PIECES), text[start:stop] * 2, text[start:stop].swapcase()))
        text = text[:start] + middle + text[stop:]
    return text


def check_text(text: str) -> tuple[list[str], list[str]]:
    """What the readers say about one text must fit together. -> what it is, for the counts; one line for each fault."""
    try:
        plan, (speeds, paths), in_format = parse_plan(text), find_actions(text), follows_format(text)
        points, reward = parse_waypoints(text), waypoint_reward(text, STANDING)
        kinds = {"with_a_plan": plan is not None, "with_actions": bool(speeds + paths), "in_format": in_format,
                 "with_waypoints": points is not None}
        rules = {
            "a plan is what find_actions finds": plan is None or ((plan.speed,), (plan.path,)) == (speeds, paths),
            "the format needs a plan": plan is not None or not (in_format or follows_format(text, reasoning=False)),
            "the format needs a reason": not in_format or has_reasoning(text),
            "way-points written again are read as the same": points is None
            or parse_waypoints(f"{without_waypoints(text)} {write_waypoints(points)}") == points,
            "only way-points that can be read are paid": 0 <= reward <= (points is not None),
            "actions are known and named once": len({*speeds, *paths}) == len(speeds + paths)
            and {*speeds} <= {*SPEED_ACTIONS} and {*paths} <= {*PATH_ACTIONS}}
    except Exception as error:  # noqa: BLE001  this is what is looked for
        return [], [f"{error!r}: {text!r}"]
    return ([kind for kind, holds in kinds.items() if holds],
            [f"{rule}: {text!r}" for rule, holds in rules.items() if not holds])


def check_group(texts: Sequence[str], rng: random.Random) -> list[str]:
    """Rewards are in their range, follow their text when the group is reversed, and are 0 for a text without an
    answer block (the released functions, mode official, keep neither of the last two)."""
    mode, plan = rng.choice(MODES), Decision(rng.choice(SPEED_ACTIONS), rng.choice(PATH_ACTIONS))
    acceptable = [plan, Decision("STOP", "STRAIGHT")] if mode == "set" else None
    low, high = RANGES.get(mode, (0, 1))
    try:
        rewards = planning_rewards(texts, plan, acceptable, mode)
        turned = rewards if mode == "official" else planning_rewards(texts[::-1], plan, acceptable, mode)[::-1]
    except Exception as error:  # noqa: BLE001  this is what is looked for
        return [f"{error!r}: {mode} {texts!r}"]
    in_range = all(low <= speed <= high and low <= path <= high and form in (0, 1) for speed, path, form in rewards)
    unpaid = mode == "official" or all(not speed + path for text, (speed, path, _) in zip(texts, rewards, strict=True)
                                       if "answer" not in text)
    return [] if in_range and unpaid and rewards == turned else [f"rewards {rewards}: {mode} {texts!r}"]


def make_family(rng: random.Random) -> tuple[str, str, str, str]:
    """(prefix, unit, other unit, suffix), often in the frame of a completion, where backtracking has to search."""
    def pieces(few: Sequence[str], least: int) -> str:
        return "".join(rng.choices(rng.choice((few, PIECES)), k=rng.randint(least, 3)))

    blank, ends = (*TAGS, " ", "x", "\n", ","), ("", "</answer>", "</think><answer>x</answer>", "x</answer>")
    return (rng.choice(("", "<think>", "<think>x</think>", "<answer>", pieces(PIECES, 0))), pieces(blank, 1),
            rng.choice(("", pieces(blank, 1))), rng.choice(ends))


def growth(prefix: str, unit: str, other: str, suffix: str, size: int = 2000, factor: int = 16) -> float:
    """How many times longer all readers take for a text `factor` times as long; the least of three measurements."""
    repeats = size // len(unit + other) + 1
    short, long = (prefix + unit * n + other * n + suffix for n in (repeats, repeats * factor))
    return min(seconds(long) / seconds(short) for _ in range(3))


def seconds(text: str) -> float:
    """Processor time of everything that reads a completion."""
    began = time.process_time()
    check_text(text)
    for mode in ("repaired", "official"):
        planning_rewards([text], Decision("KEEP", "STRAIGHT"), mode=mode)
    return max(time.process_time() - began, 1e-6)


if __name__ == "__main__":
    main()
