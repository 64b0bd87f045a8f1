"""Whole groups of samples with every reward component and advantage: what GRPO rewarded and what it pushed away."""

import re
import statistics

from data.scenes import PRIORS, SPLITS
from data.scenes.priors import scene_seeds
from evaluation.page.markup import Markup, details, join, number, table, tag
from evaluation.page.runs import Run
from evaluation.page.scenes import fact, picture, question, written

SHOWN = 12


def groups(runs: list[Run]) -> Markup:
    """Groups of the last run that logged some, from the whole training."""
    run = next((run for run in reversed(runs) if run.groups), None)
    if run is None:
        return tag("p", "No groups: no run has a samples.jsonl, which GRPO writes during training.")
    chosen = choose(run.groups)
    note = (f"From {run.name}: {len(chosen)} of {len(run.groups)} logged groups, evenly over the training: at each "
            "step one with many different rewards, and one flat group. Answers with a positive advantage are made more "
            "likely, those with a negative one less. The accuracy column is logged, not rewarded.")
    blocks = [group_block(group, run.config, i < 2) for i, group in enumerate(chosen)]
    return join(tag("p", note, class_="note"), *blocks)


def choose(logged: list[dict], shown: int = SHOWN) -> list[dict]:
    """For evenly spread steps the group with most different rewards, and the last flat one, in order of training."""
    steps = list(dict.fromkeys(group["step"] for group in logged))
    count = min(shown - 1, len(steps))
    wanted = {steps[i * (len(steps) - 1) // max(count - 1, 1)] for i in range(count)}
    best = {step: max((g for g in logged if g["step"] == step), key=variety) for step in wanted}
    flat = [group for group in logged if variety(group) == (1, 0.0) and group is not best.get(group["step"])][-1:]
    return sorted([*best.values(), *flat], key=lambda group: group["step"])


def variety(group: dict) -> tuple[int, float]:
    """How much a group has to compare: different rewards, then their spread."""
    return len(set(group["rewards"])), statistics.pstdev(group["rewards"])


def group_block(group: dict, config: dict, opened: bool) -> Markup:
    """Picture, question and truth above the table of answers, best advantage first."""
    advantages = [mean_advantage(value) for value in group["advantages"]]
    components = group.get("components", {})
    order = sorted(range(len(advantages)), key=lambda i: -advantages[i])
    largest = max(map(abs, advantages), default=0.0) or 1.0
    rows = [[tag("div", written(group["texts"][i]), class_="text"),
             *(tag("td", number(values[i], 3), data_name=name) for name, values in components.items()),
             tag("td", tag("b", number(group["rewards"][i], 3)), data_name="reward"),
             advantage_cell(advantages[i], largest)] for i in order]
    header = ["answer", *components, "reward", "advantage"]
    low, high = min(group["rewards"]), max(group["rewards"])
    ranged = f"rewards {number(low, 3)} to {number(high, 3)}" if low < high else "flat: all rewards are equal"
    row = {**group, "scene": group.get("scene", built_in_scene(group["id"], config))}
    facts = tag("dl", fact("Question", question(group["prompt"])) if group.get("prompt") else None,
                fact("Expert", tag("b", group["truth"])))
    head = tag("div", picture(row, "", config.get("scene_size")), facts, class_="head")
    body = details(f"Step {group['step']}, {group['id']}, {ranged}", head,
                   table(f"{len(order)} sampled answers", header, rows))
    return Markup(body.replace("<details", '<details class="group" open' if opened else '<details class="group"', 1))


def mean_advantage(value: float | list[float]) -> float:
    """One number per answer; with GAE every token has its own advantage, and this is their mean."""
    return sum(value) / max(len(value), 1) if isinstance(value, list) else value


def advantage_cell(value: float, largest: float) -> Markup:
    """A number and a bar to the right (more likely) or to the left (less likely) of the middle."""
    width = 50 * abs(value) / largest
    kind, side, sign = ("up", "left", "+") if value > 0 else ("down", "right", "")
    bar = tag("span", tag("i", class_=kind, style=f"width:{width:.1f}%;{side}:50%"), class_="bar", aria_hidden="true")
    return tag("td", f"{sign}{number(value, 3)}", bar, class_="advantage", data_name="advantage")


def built_in_scene(name: str, config: dict) -> int | None:
    """The seed of a built-in scene from its id, `rl-0-006037` or `natural-rl-0-006037`. None for other data."""
    match = re.fullmatch(rf"(?:({'|'.join(PRIORS)})-)?({'|'.join(SPLITS)})-(\d{{1,5}})-(\d{{6,7}})", name)
    if match is None or config.get("data") != "scenes":
        return None
    return scene_seeds(match[2], 0, int(match[3]), match[1] or "balanced").start + int(match[4])
