"""Groups of sampled answers."""

import re

from evaluation.page import groups


def test_groups_show_components_and_advantages(read, group):
    reader = read(groups.group_block(group, {"data": "scenes"}, True))
    assert [text for text in reader.text if re.fullmatch(r"[+−]?[\d.]+", text)] == [
        "0.8", "0.8", "1", "2.6", "+0.71", "0", "0", "0", "0", "−0.71"]
    assert "img" in reader.tags and "script" not in reader.tags
    assert groups.mean_advantage([1.0, 2.0]) == 1.5                  # a value per token


def test_chosen_groups_run_through_the_training(group):
    flat = {**group, "rewards": [1.0, 1.0], "advantages": [0.0, 0.0]}
    logged = [{**group, "step": 1}, {**flat, "step": 1}, {**flat, "step": 10}, {**group, "step": 20}]
    chosen = groups.choose(logged, shown=3)
    assert [(group["step"], group["rewards"]) for group in chosen] == [
        (1, [2.6, 0.0]), (10, [1.0, 1.0]), (20, [2.6, 0.0])]
