"""Whole groups of sampled answers with every reward component and advantage, from samples.jsonl."""

import statistics

from evaluation.page.markup import Markup, details, join, number, table, tag
from evaluation.page.runs import Run
from evaluation.page.scenes import fact, picture, question, written
from rewards.actions import ALPHADRIVE, Actions

SHOWN = 12


def groups(runs: list[Run]) -> Markup:
    """A selection of the groups of answers that the last run with a samples.jsonl logged."""
    run = next((run for run in reversed(runs) if run.groups and not run.drives), None)
    if run is None:
        return tag("p", "No groups: no run has a samples.jsonl, which GRPO writes during training.")
    chosen = choose(run.groups)
    note = (f"{len(chosen)} of {len(run.groups)} logged groups of {run.name}, spread evenly over the training. Of each "
            "chosen step the group with the most different rewards is shown; the last flat group (all rewards equal) "
            "is added if there is one. GRPO makes answers with a positive advantage more likely and those with a "
            "negative one less likely. The accuracy column is logged but not rewarded.")
    blocks = [group_block(group, run.config, i < 2, run.actions) for i, group in enumerate(chosen)]
    return join(tag("p", note, class_="note"), *blocks)


def choose(logged: list[dict], shown: int = SHOWN) -> list[dict]:
    """The group with the most different rewards of evenly spread steps, and the last flat group, in order of steps."""
    steps = list(dict.fromkeys(group["step"] for group in logged))
    count = min(shown - 1, len(steps))
    wanted = {steps[i * (len(steps) - 1) // max(count - 1, 1)] for i in range(count)}
    best = {step: max((g for g in logged if g["step"] == step), key=variety) for step in wanted}
    flat = [group for group in logged if variety(group) == (1, 0.0) and group is not best.get(group["step"])][-1:]
    return sorted([*best.values(), *flat], key=lambda group: group["step"])


def variety(group: dict) -> tuple[int, float]:
    """Sort key: number of different rewards, then their standard deviation."""
    return len(set(group["rewards"])), statistics.pstdev(group["rewards"])


def group_block(group: dict, config: dict, opened: bool, actions: Actions = ALPHADRIVE) -> Markup:
    """Picture, question and label above the table of answers, largest advantage first."""
    advantages = [mean_advantage(value) for value in group["advantages"]]
    components = group.get("components", {})
    order = sorted(range(len(advantages)), key=lambda i: -advantages[i])
    largest = max(map(abs, advantages), default=0.0) or 1.0
    rows = [[tag("div", written(group["texts"][i], actions), class_="text"),
             *(tag("td", number(values[i], 3), data_name=name) for name, values in components.items()),
             tag("td", tag("b", number(group["rewards"][i], 3)), data_name="reward"),
             advantage_cell(advantages[i], largest)] for i in order]
    header = ["answer", *components, "reward", "advantage"]
    low, high = min(group["rewards"]), max(group["rewards"])
    ranged = f"rewards {number(low, 3)} to {number(high, 3)}" if low < high else "flat: all rewards are equal"
    facts = tag("dl", fact("Question", question(group["prompt"])) if group.get("prompt") else None,
                fact("Expert", tag("b", group["truth"])))
    head = tag("div", picture(group, "", config.get("scene_size")), facts, class_="head")
    return details(f"Step {group['step']}, {group['id']}, {ranged}", head,
                   table(f"{len(order)} sampled answers", header, rows), class_="group", open=opened)


def mean_advantage(value: float | list[float]) -> float:
    """One number per answer: with GAE, the mean of the advantages of its tokens."""
    return sum(value) / max(len(value), 1) if isinstance(value, list) else value


def advantage_cell(value: float, largest: float) -> Markup:
    """A number and a bar, to the right of the middle if positive, else to the left."""
    width = 50 * abs(value) / largest
    kind, side, sign = ("up", "left", "+") if value > 0 else ("down", "right", "")
    bar = tag("span", tag("i", class_=kind, style=f"width:{width:.1f}%;{side}:50%"), class_="bar", aria_hidden="true")
    return tag("td", f"{sign}{number(value, 3)}", bar, class_="advantage", data_name="advantage")
