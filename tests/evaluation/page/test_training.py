"""The curves of a training."""

from evaluation.page.runs import read_runs
from evaluation.page.training import training


def test_runs_of_one_stage_share_axes_and_nulls_are_named(make_run, read, steps):
    runs = read_runs([str(make_run(name, steps=steps)) for name in ("one", "two")])
    reader = read(training(runs))
    assert reader.tags.count("svg") == 2 and reader.tags.count("polyline") == 4      # reward and flat_groups, two runs
    assert "Not measured in these runs:" in " ".join(reader.text) and "KL" in " ".join(reader.text)


def test_own_rewards_are_among_the_first_curves(make_run, read):
    logged = [{"step": i, "reward": 1.0, "reward_comfort": 0.5, "odd": 1.0} for i in (1, 2)]
    reader = read(training(read_runs([str(make_run("one", steps=logged))])))
    text = " ".join(reader.text)
    assert text.index("Reward: comfort") < text.index("1 more curves") < text.index("odd")
