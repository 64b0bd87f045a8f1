"""The training section: the curves of metrics.jsonl, with the runs of one stage on the same axes."""

import math

from evaluation.page.charts import BINS, Line, bin_steps, plot
from evaluation.page.markup import Markup, details, join, number, table, tag
from evaluation.page.runs import Run, coloured, measured

STAGES = {"sft": "Supervised fine-tuning", "grpo": "GRPO"}
FIRST = {                                                    # shown at once; other fields are shown on demand
    "sft": ("loss", "val_accuracy", "entropy"),
    "grpo": ("reward", "reward_accuracy", "val_accuracy", "completion_length", "kl", "entropy", "clip_frac",
             "flat_groups", "logprob_gap")}
CHARTS = {
    "reward": ("Reward", "Mean weighted sum of the reward components over all sampled answers."),
    "reward_accuracy": ("Accuracy of samples", "Share of sampled answers that equal the label; logged, not rewarded."),
    "val_accuracy": ("Validation accuracy", "Greedy answers on held-out scenes; the best model is kept."),
    "completion_length": ("Answer length", "Mean number of tokens of a sampled answer."),
    "redrawn": ("Redrawn groups", "Groups that dynamic sampling drew beyond those that were used."),
    "kl": ("KL", "KL divergence from the starting model, in nats."),
    "entropy": ("Entropy", "Of the next-token distribution, in nats; falls as the model becomes certain."),
    "clip_frac": ("Clip fraction", "Share of terms that clipping changes; 0 with one update per batch."),
    "flat_groups": ("Flat groups", "Share of groups whose answers all have the same reward; they give no gradient."),
    "logprob_gap": ("Sampler gap", "Largest difference between the sampler's and the trainer's log-probability."),
    "loss": ("Loss", "The differentiated value. With group advantages it does not measure progress."),
    "reward_speed": ("Reward for speed", "Mean before weighting."),
    "reward_path": ("Reward for path", "Mean before weighting."),
    "reward_format": ("Reward for format", "Share of answers in the requested format."),
    "reward_std": ("Spread of rewards", "Mean standard deviation within a group."),
    "ratio": ("Ratio", "Mean of new over old probability; 1 with one update per batch."),
    "clip_low_frac": ("Clipped below", "Share of terms cut at the lower bound."),
    "clip_high_frac": ("Clipped above", "Share of terms cut at the upper bound."),
    "approx_kl": ("Drift within a batch", "KL(old || policy) at the last update of a batch, in nats."),
    "policy_loss": ("Policy loss", "The policy term alone."),
    "value_loss": ("Value loss", "Half the mean squared error of the predicted return."),
    "bc_loss": ("Cloning loss", "Negative mean log-probability of the expert's tokens, in nats."),
    "truncated": ("Truncated answers", "Share of answers that reached the token limit."),
    "scoring_seconds": ("Scoring time", "Seconds spent scoring a step's answers."),
    "grad_norm": ("Gradient norm", "Before clipping."),
    "lr": ("Learning rate", "At the last update of a step."),
    "tokens_per_second": ("Speed", "Prompt and answer tokens per second."),
}
SHARES = ("reward_accuracy", "val_accuracy", "clip_frac", "clip_low_frac", "clip_high_frac", "flat_groups",
          "reward_format", "truncated")
SFT_NOTES = {"loss": "Mean negative log-probability of the supervised tokens, in nats."}
UNPLOTTED = ("step", "tokens", "seconds", "updates", "skipped", "target_length")


def training(runs: list[Run]) -> Markup:
    """One block of charts per stage."""
    blocks = [stage_block(stage, [(colour, run) for colour, run in coloured(runs) if run.stage == stage and run.steps])
              for stage in dict.fromkeys(run.stage for run in reversed(runs))]
    missing = [run.name for run in runs if not run.steps]
    absent = tag("p", f"No training curves of {', '.join(missing)}: there is no metrics.jsonl.") if missing else None
    return join(*blocks, absent)


def stage_block(stage: str, runs: list[tuple[int, Run]]) -> Markup | None:
    """The main charts, the other logged fields, and a table of values; each run comes with its colour."""
    if not runs:
        return None
    fields = dict.fromkeys(name for _, run in runs for step in run.steps for name, value in step.items()
                           if measured(value) and name not in UNPLOTTED)
    own = [name for name in fields if name.startswith("reward_") and name not in CHARTS]   # of the user's rewards
    first = [name for name in (*FIRST.get(stage, FIRST["grpo"]), *own) if name in fields]
    rest = [*(name for name in CHARTS if name in fields and name not in first),
            *(name for name in fields if name not in CHARTS and name not in own)]
    silent = [CHARTS[name][0] for name in FIRST.get(stage, ()) if name not in fields]
    note = tag("p", f"Not measured in these runs: {', '.join(silent)}.", class_="note") if silent else None
    size = max(math.ceil(len(run.steps) / BINS) for _, run in runs)
    means = f" Each point is the mean of up to {size} steps; the band is their minimum to maximum." if size > 1 else ""
    return join(
        tag("h3", f"{STAGES.get(stage, stage)}: ", ", ".join(run.name for _, run in runs)),
        tag("p", f"{max(len(run.steps) for _, run in runs)} steps.{means} To read values, point at a chart, or select "
            "it with Tab and use the arrow keys.", class_="note"),
        charts(stage, first, runs), note,
        details(f"{len(rest)} more curves", charts(stage, rest, runs)) if rest else None,
        details("The curves as a table", *(values_table(run, first) for _, run in runs)))


def charts(stage: str, fields: list[str], runs: list[tuple[int, Run]]) -> Markup:
    """A grid with one chart per field."""
    def chart(field: str) -> Markup:
        title, note = described(field)
        note = SFT_NOTES.get(field, note) if stage == "sft" else note
        lines = [Line(run.name, colour, bin_steps(run.steps, field)) for colour, run in runs]
        return plot(title, note, lines, share=field in SHARES)
    return tag("div", *map(chart, fields), class_="charts")


def described(field: str) -> tuple[str, str]:
    """Title and note of a field's chart."""
    if field.startswith("reward_") and field not in CHARTS:
        return f"Reward: {field.removeprefix('reward_')}", "Mean before weighting."
    return CHARTS.get(field, (field, "As logged."))


def values_table(run: Run, fields: list[str], rows: int = 12) -> Markup:
    """Means over about `rows` equal parts of a run."""
    size = max(1, math.ceil(len(run.steps) / rows))
    lines = []
    for start in range(0, len(run.steps), size):
        part = run.steps[start:start + size]
        cells = [[step[field] for step in part if measured(step.get(field))] for field in fields]
        lines.append([f"{part[0]['step']}–{part[-1]['step']}",
                      *(number(sum(cell) / len(cell)) if cell else "–" for cell in cells)])
    title = f"{run.name}: each row is the mean of {size} step" + "s" * (size > 1)
    return table(title, ["steps", *(described(field)[0] for field in fields)], lines)
