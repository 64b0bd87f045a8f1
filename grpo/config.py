"""Every knob of the two training stages and of evaluation: frozen, validated records that become flags.

Values are resolved in one order: field default < preset < --algorithm < what the model directory says < command line;
the field defaults suit the real 2B model.
`--preset demo` holds what the built-in tiny model needs and applies by itself only when both model and data are
built in. The resolved record is printed, and saved as OUTPUT/config.json.
"""

import argparse
import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data.example import SCENE_SIZE, picture_size

Config = TypeVar("Config", bound="TrainConfig | EvalConfig")
PRIORS = ("balanced", "natural", "long_tail")           # of the built-in scenes
SIZE_WANTED = "WIDTHxHEIGHT in pixels, each from 28 to 4096, such as 448x224"


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:  # noqa: ANN401
    """A dataclass field that also knows its help text and its allowed values."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """What both stages share. Units: pixels, tokens, steps; a step is one batch with all its updates."""

    model: str = option("", "model directory in hub layout, or `tiny`; default: tiny (sft), runs/sft/model (grpo)")
    data: str = option("scenes", "examples file (JSON, JSON list or JSON Lines), or `scenes`")
    image_root: str = option("", "with --data FILE: folder that holds all its pictures; default: the file's own folder")
    split: str = option("", "split to train on; default: sft for stage sft, rl for stage grpo (scenes), train (files)")
    output: str = option("", "directory for model, metrics and samples; default: runs/<stage>")
    overwrite: bool = option(False, "replace a non-empty output directory")
    save_every: int = option(0, "save the state to OUTPUT/state every N steps; 0: only when asked to stop")
    keep: int = option(2, "states kept; older ones are removed once a new one is whole")
    resume: str = option("", "go on from a state: `auto` is the newest one of OUTPUT, if it has any; or a directory")
    max_time: str = option("", "save and exit with code 75 before this much time has passed: 3h, 1h30m, 45m, 90s")
    on_bad_data: str = option("stop", "a record or picture that cannot be used: stop, or go on without it and list it "
                                      "in OUTPUT/skipped.jsonl", ("stop", "skip"))
    preset: str = option("", "named set of values; applies by itself when model and data are built in",
                         ("", "demo", "none"))
    seed: int = option(0, "seed of everything random: weights of tiny, data order, sampling")
    device: str = option("auto", "where to compute", ("auto", "cpu", "cuda"))
    precision: str = option("auto", "bf16: autocast with float32 masters; auto: bf16 on cuda, fp32 on cpu",
                            ("auto", "fp32", "bf16"))
    threads: int = option(0, "CPU threads; 0 leaves torch's choice")
    steps: int = option(0, "number of steps; 0: as many as --epochs needs")
    epochs: float = option(1.0, "passes over the data, when --steps is 0")
    scenes: int = option(3000, "number of built-in scenes to train on")
    prior: str = option("balanced", "how often the scenes' plans occur", PRIORS)
    scene_size: str = option(SCENE_SIZE, "built-in scenes are drawn this large, WIDTHxHEIGHT in pixels")
    learning_rate: float = option(2e-5, "peak learning rate")
    lr_schedule: str = option("cosine", "shape after the warm-up", ("cosine", "linear", "constant"))
    warmup_steps: int = option(-1, "steps of linear warm-up; -1: a tenth of the run")
    min_lr_ratio: float = option(0.0, "the schedule ends at this share of the peak")
    decay_share: float = option(1.0, "share of the run, at its end, over which the rate falls; before it is constant")
    weight_decay: float = option(0.0, "AdamW decay of matrices (never of norms, biases, embeddings)")
    adam_beta2: float = option(0.999, "AdamW second-moment decay")
    max_grad_norm: float = option(1.0, "clip the whole gradient's norm to this, after accumulation")
    max_skipped: int = option(5, "stop after this many steps in a row skipped: loss or gradient not finite")
    micro_batch_tokens: int = option(2048, "tokens in memory at once, a longer row alone; does not change the loss")
    lora_rank: int = option(0, "train adapters of this rank and leave the weights alone; 0: train every weight")
    lora_alpha: float = option(32.0, "adapters count alpha / rank times")
    lora_targets: str = option("q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", "layers with an adapter")
    freeze_vision: bool = option(False, "leave the vision tower as it is; its features are then computed once")
    feature_cache_mb: int = option(1024, "memory for features of a frozen vision tower")
    gradient_checkpointing: bool = option(False, "recompute decoder layers in backward: less memory, more time")
    min_pixels: int = option(0, "smallest picture area in pixels; 0: the model directory's own")
    max_pixels: int = option(0, "largest picture area in pixels; 0: the model directory's own, at most 401408")
    prompt_style: str = option("alphadrive", "wording of the request", ("alphadrive", "compact"))
    reasoning: bool = option(True, "ask for <think> and train on it; off changes prompt, target and format rule")
    hide: str = option("nothing", "baselines: train and score without the picture, or without speed and navigation",
                       ("nothing", "picture", "text"))
    eval_every: int = option(0, "greedy validation every N steps, keeping the best model; 0: only at the end")
    eval_examples: int = option(300, "examples of the validation split used while training")
    eval_batch: int = option(32, "prompts decoded together in validation")
    max_new_tokens: int = option(256, "longest completion, in tokens")
    decode: str = option("eager", "decoding step: eager, graph (CUDA graph) or compile (torch.compile)",
                         ("eager", "graph", "compile"))

    def __post_init__(self) -> None:
        check_choices(self)
        positive = ("learning_rate", "max_grad_norm", "micro_batch_tokens", "eval_batch", "max_new_tokens", "scenes")
        for name in positive:
            require(getattr(self, name) > 0, self, name, "a value above 0")
        for name in ("steps", "eval_every", "eval_examples", "min_pixels", "max_pixels", "weight_decay", "threads",
                     "seed", "lora_rank", "feature_cache_mb", "save_every"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        require(picture_size(self.scene_size) is not None, self, "scene_size", SIZE_WANTED)
        require(self.keep > 0, self, "keep", "1 or more")
        require(self.max_seconds > 0 and not math.isnan(self.max_seconds), self, "max_time",
                "a time above 0 such as 3h, 1h30m, 45m or 90s")
        require(self.lora_alpha > 0, self, "lora_alpha", "a value above 0")
        require(0 <= self.adam_beta2 < 1, self, "adam_beta2", "in [0, 1)")
        require(0 <= self.min_lr_ratio <= 1, self, "min_lr_ratio", "a share in [0, 1]")
        require(self.warmup_steps >= -1, self, "warmup_steps", "-1 (a tenth of the run), or 0 or more")
        require(self.steps > 0 or self.epochs > 0, self, "epochs", "a value above 0, or --steps")
        require(self.max_skipped > 0, self, "max_skipped", "1 or more")
        require(0 < self.decay_share <= 1, self, "decay_share", "a share in (0, 1]")

    @property
    def max_seconds(self) -> float:
        """--max-time in seconds; infinite without one, NaN for a text that is no time."""
        parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", self.max_time)
        hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, math.nan)
        return 3600 * hours + 60 * minutes + seconds if self.max_time else math.inf


@dataclass(frozen=True)
class SFTConfig(TrainConfig):
    """Stage 1: supervised warm-up on distilled reasoning (AlphaDrive, sec. 3.3). Defaults are the 2B values."""

    batch_size: int = option(16, "examples per update")
    task: str = option("plan", "caption makes a base model: it names what scenes of its own show, and plans at random",
                       ("plan", "caption"))
    reason_share: float = option(1.0, "share of the examples that keep their reason")
    reason_choice: str = option("random", "which: at random, or alike for all plans", ("random", "balanced"))
    gate: float = option(0.0, "planning accuracy on val that the warm-up must reach; below it training goes on")
    gate_rounds: int = option(2, "extra rounds of half the steps, at most, when the gate is missed")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size > 0, self, "batch_size", "a value above 0")
        require(0 < self.reason_share <= 1, self, "reason_share", "a share in (0, 1]")
        require(self.task == "plan" or (self.data == "scenes" and not self.gate), self, "task",
                "plan unless the data are the built-in scenes and --gate is 0: a base model cannot plan")
        require(0 <= self.gate <= 1, self, "gate", "a fraction in [0, 1]")


@dataclass(frozen=True)
class GRPOConfig(TrainConfig):
    """Stage 2: reinforcement learning with planning rewards. Defaults are the 2B values of GRPO.

    Coefficients are constants (`0.04`) or annealed over the run (`0.04:0.01:linear`, `1:0.2:cosine`: from, to, shape).
    """

    algorithm: str = option("grpo", "a documented set of the flags below; each can still be overridden",
                            ("reinforce", "rloo", "ppo", "grpo", "dapo", "dr_grpo", "gspo", "cispo"))
    learning_rate: float = option(1e-6, "peak learning rate")
    group_size: int = option(8, "completions sampled per prompt")
    prompts_per_step: int = option(8, "prompts sampled per step")
    temperature: float = option(1.0, "sampling temperature; the same one scores the samples in training")
    updates_per_rollout: int = option(1, "updates on each rollout batch; old log-probabilities stay fixed")
    target_kl: float = option(0.0, "stop further updates on a batch once KL(old || new) passes this; 0: never")
    # -- rewards
    reward_mode: str = option("repaired", "AlphaDrive's rewards: see docs/grpo.md",
                              ("repaired", "paper", "official", "set"))
    reward_weights: str = option("1,1,1", "weights of the speed, path and format rewards")
    reward_accuracy: str = option("f1", "accuracy term of the rewards", ("f1", "exact"))
    diversity: bool = option(True, "multiply quality by the planning-diversity factor")
    normalise_rewards: bool = option(False, "normalise each reward in its group before the weighted sum")
    length_margin: int = option(0, "soft length penalty over the last N tokens before the limit, down to -1; 0: none")
    reward_kl: float = option(0.0, "KL to the reference inside the reward: per token with gae, else per answer")
    # -- advantages
    advantage: str = option("group", "what an answer is compared with",
                            ("group", "leave_one_out", "return", "gae"))
    scale_rewards: str = option("group", "divide group advantages by this standard deviation",
                                ("group", "batch", "none"))
    gamma: float = option(1.0, "discount per token, with gae")
    gae_lambda: float = option(0.95, "GAE's lambda")
    value_trunk: str = option("own", "value network: a second model of the policy's size, or a head on the policy",
                              ("own", "shared"))
    value_learning_rate: float = option(1e-5, "peak learning rate of the value network")
    clip_value: float = option(0.2, "values may move this far from the old ones; 0: not clipped")
    # -- policy loss
    variant: str = option("grpo", "policy loss", ("reinforce", "ppo", "grpo", "dapo", "dr_grpo", "gspo", "cispo",
                                                  "sequence"))
    clip_low: float = option(0.2, "ratio may fall to 1 - clip_low")
    clip_high: float = option(0.2, "ratio may rise to 1 + clip_high")
    delta: float = option(0.0, "upper bound of the ratio for negative advantages; 0: none")
    mask_truncated: bool = option(False, "leave answers that hit the limit out of the loss (not out of the baseline)")
    importance_cap: float = option(0.0, "weight by min(trainer / sampler probability, cap) per token; 0: off")
    dynamic_sampling: int = option(0, "replace groups of equal rewards by fresh ones, in at most N extra batches")
    flat_kl: bool = option(True, "groups of equal rewards keep their KL term")
    # -- L = pg L_policy + beta L_KL + vf L_value + ent L_entropy + bc L_BC
    pg_coef: str = option("1", "weight of the policy loss")
    beta: str = option("0.04", "weight of the KL penalty to the frozen starting model; 0 drops that model")
    reference_dtype: str = option("auto", "type of that model; auto: bf16 where the computing is in bf16",
                                  ("auto", "fp32", "bf16"))
    kl_estimator: str = option("k3", "estimator of that KL", ("k1", "k2", "k3"))
    kl_ratio: bool = option(False, "weight the KL estimate by the ratio, which makes its gradient the true one")
    vf_coef: str = option("0.5", "weight of the value loss, with gae")
    ent_coef: str = option("0", "weight of the entropy bonus")
    bc_coef: str = option("0", "weight of behaviour cloning: the expert's answer as one more branch of the row")
    samples_every: int = option(10, "write some groups to samples.jsonl every N steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        compares = self.advantage in ("group", "leave_one_out")
        require(self.group_size >= (2 if compares else 1), self, "group_size",
                "2 or more: the advantage of a group-relative algorithm compares completions of one prompt")
        for name in ("prompts_per_step", "temperature", "updates_per_rollout", "samples_every", "value_learning_rate"):
            require(getattr(self, name) > 0, self, name, "a value above 0")
        for name in ("clip_low", "clip_high", "delta", "target_kl", "reward_kl", "clip_value", "importance_cap",
                     "dynamic_sampling", "length_margin"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        for name in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, self, name, "in [0, 1]")
        for name in ("pg_coef", "beta", "vf_coef", "ent_coef", "bc_coef"):
            require(coefficient_ends(getattr(self, name)) is not None, self, name,
                    "a number of 0 or more, or FROM:TO:linear, FROM:TO:cosine")
        weights = self.component_weights.values()
        require(len(weights) == 3 and all(map(math.isfinite, weights)), self, "reward_weights",
                "three finite numbers: speed,path,format")
        require(self.delta == 0 or self.delta > 1 + self.clip_high, self, "delta", "0 (none), or above 1 + clip_high")
        require(self.advantage != "gae" or self.variant not in ("gspo", "sequence"), self, "variant",
                "a token-wise loss with --advantage gae: a ratio per answer has no advantage per token")
        require(not self.lora_rank or self.advantage != "gae" or self.value_trunk == "shared", self, "value_trunk",
                "shared with --lora-rank: a second trunk would be trained whole")
        require(self.importance_cap == 0 or self.variant not in ("gspo", "sequence"), self, "importance_cap",
                "0 where one ratio serves a whole answer")
        require(self.length_margin < self.max_new_tokens, self, "length_margin", "below --max-new-tokens")
        require(self.group_size > 1 or not self.dynamic_sampling, self, "dynamic_sampling",
                "0 with a group of 1, whose rewards are always equal")
        require(self.group_size > 1 or self.flat_kl, self, "flat_kl", "on with a group of 1: it is always flat")

    @property
    def component_weights(self) -> dict[str, float]:
        """Weight of each named reward component."""
        try:
            weights = [float(part) for part in self.reward_weights.split(",")]
        except ValueError:
            weights = []
        return dict(zip(("speed", "path", "format"), weights, strict=False)) if len(weights) == 3 else {}

    @property
    def needs_reference(self) -> bool:
        """Whether some term reads the frozen starting model."""
        return self.reward_kl > 0 or self.uses("beta")

    def uses(self, name: str) -> bool:
        """Whether a coefficient is above 0 at some time of the run."""
        return max(coefficient_ends(getattr(self, name))[:2]) > 0

    def coefficient(self, name: str, progress: float) -> float:
        """A coefficient's value when `progress` (0 to 1) of the run is done."""
        start, end, shape = coefficient_ends(getattr(self, name))
        left = 1 - progress if shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return end + (start - end) * left


def coefficient_ends(text: str | float) -> tuple[float, float, str] | None:
    """`0.04` or `1:0.2:cosine` -> (from, to, shape); None if it is neither."""
    parts = str(text).split(":")
    try:
        numbers = [float(part) for part in parts[:2]]
    except ValueError:
        return None
    good = len(parts) in (1, 3) and parts[2:] in ([], ["linear"], ["cosine"])
    if not good or not all(math.isfinite(number) and number >= 0 for number in numbers):
        return None
    return (numbers[0], numbers[0], "linear") if len(parts) == 1 else (numbers[0], numbers[1], parts[2])


@dataclass(frozen=True)
class EvalConfig:
    """Scoring of one model on one split, greedily and by sampling."""

    model: str = option("", "model directory; default: runs/grpo/model, else runs/sft/model")
    data: str = option("scenes", "examples file, or `scenes`")
    image_root: str = option("", "with --data FILE: folder that holds all its pictures; default: the file's own folder")
    split: str = option("test", "split to score")
    prior: str = option("balanced", "how often the built-in scenes' plans occur", PRIORS)
    scene_size: str = option("", "built-in scenes are drawn this large, such as 448x224; default: as in training")
    limit: int = option(2000, "at most this many examples; 0: all of a file")
    on_bad_data: str = option("stop", "a record or picture that cannot be used: stop, or score the others and list "
                                      "it in OUTPUT/skipped.jsonl", ("stop", "skip"))
    samples: int = option(1, "completions per example at --temperature, scored beside the greedy answer; 0: none")
    temperature: float = option(1.0, "temperature of the samples")
    temperatures: str = option("", "more temperatures for the curve of validity and coverage: 0.25,0.5,1,1.5")
    max_new_tokens: int = option(0, "longest completion; 0: what the model was trained with, else 256")
    batch_size: int = option(32, "prompts decoded together")
    seed: int = option(0, "seed of the sampling")
    device: str = option("auto", "where to compute", ("auto", "cpu", "cuda"))
    dtype: str = option("auto", "weights in this type; auto: bf16 on cuda, fp32 on cpu", ("auto", "fp32", "bf16"))
    threads: int = option(0, "CPU threads; 0 leaves torch's choice")
    min_pixels: int = option(0, "smallest picture area; 0: the model's own")
    max_pixels: int = option(0, "largest picture area; 0: the model's own, at most 401408")
    output: str = option("", "directory for metrics.json and predictions.jsonl; default: eval-<split> beside the "
                                "model, eval-<split>-<prior> for another prior than balanced")
    overwrite: bool = option(False, "replace a non-empty output directory")
    resume: bool = option(False, "go on where an interrupted scoring with the same settings stopped")
    image: str = option("", "plan for one picture, or for every picture of a folder, instead of scoring a split")
    speed: float = option(0.0, "with --image: ego speed in m/s")
    navigation: str = option("Go straight", "with --image: free text, or AlphaDrive's dict as text")

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("limit", "samples", "max_new_tokens", "min_pixels", "max_pixels", "speed", "threads"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        for name in ("temperature", "batch_size"):
            require(getattr(self, name) > 0, self, name, "a value above 0")
        require(not self.scene_size or picture_size(self.scene_size) is not None, self, "scene_size", SIZE_WANTED)
        require(bool(self.sweep) or not self.samples, self, "temperatures", "numbers above 0, with commas between")
        require(bool(self.samples) or not self.temperatures, self, "temperatures", "empty with --samples 0")
        require(not (self.resume and self.overwrite), self, "resume", "without --overwrite")

    @property
    def sweep(self) -> tuple[float, ...]:
        """Every temperature to sample at, ascending; none without samples, or where one is no number above 0."""
        try:
            values = {self.temperature, *(float(part) for part in self.temperatures.split(",") if part)}
        except ValueError:
            return ()
        good = self.samples > 0 and all(math.isfinite(value) and value > 0 for value in values)
        return tuple(sorted(values)) if good else ()


# Documented settings of the same trainer. What the papers leave open is marked; docs/grpo.md says when to choose which.
ALGORITHMS: dict[str, dict[str, Any]] = {
    # Williams (1992): the raw return times the score function; no baseline, clip or KL.
    "reinforce": dict(variant="reinforce", advantage="return", beta="0"),
    # RLOO, arXiv:2402.14740: baseline = the other answers of the group; KL inside the reward (their beta 0.03 .. 0.1).
    "rloo": dict(variant="reinforce", advantage="leave_one_out", beta="0", reward_kl=0.04),
    # PPO, arXiv:1707.06347, as in RLHF: KL inside the token reward, GAE, clipped values, several epochs a batch.
    "ppo": dict(variant="ppo", advantage="gae", beta="0", reward_kl=0.04, updates_per_rollout=4, vf_coef="0.5",
                scale_rewards="batch"),
    # DeepSeekMath, arXiv:2402.03300.
    "grpo": dict(variant="grpo", advantage="group", scale_rewards="group"),
    # DAPO, arXiv:2503.14476: clip-higher, token mean, no KL, dynamic sampling, soft length penalty (their share: 1/5).
    "dapo": dict(variant="dapo", advantage="group", clip_high=0.28, beta="0", dynamic_sampling=3),
    # Dr. GRPO, arXiv:2503.20783: no division by length or standard deviation, no KL.
    "dr_grpo": dict(variant="dr_grpo", advantage="group", scale_rewards="none", beta="0"),
    # GSPO, arXiv:2507.18071, sec. 5.1: the ratio of a whole answer moves little, so the clip is narrow; no KL.
    "gspo": dict(variant="gspo", advantage="group", clip_low=3e-4, clip_high=4e-4, beta="0"),
    # CISPO, arXiv:2506.13585: only an upper bound on the weight (its value is ours: the paper prints none); no KL.
    "cispo": dict(variant="cispo", advantage="group", clip_low=1.0, clip_high=4.0, beta="0"),
}

# What the tiny model needs on two CPU cores; chosen by a few runs scored on the val split.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {
        "sft": dict(steps=400, batch_size=64, micro_batch_tokens=32768, learning_rate=2e-3, weight_decay=0.05,
                    adam_beta2=0.98, warmup_steps=50, lr_schedule="linear", decay_share=0.5, prompt_style="compact",
                    max_new_tokens=48, eval_batch=64, eval_examples=300, gate=0.58),
        "grpo": dict(steps=100, prompts_per_step=16, micro_batch_tokens=32768, learning_rate=1e-4, adam_beta2=0.98,
                     warmup_steps=10, lr_schedule="linear", min_lr_ratio=0.05, beta="0", value_learning_rate=1e-3,
                     scenes=9000, prompt_style="compact", max_new_tokens=48, eval_batch=64, eval_examples=300,
                     eval_every=100),
    },
}


def require(condition: bool, config: object, name: str, wanted: str) -> None:
    """Raise a ValueError that names the flag, its value and what it must be."""
    value = getattr(config, name)
    if not condition or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"--{name.replace('_', '-')} is {value!r}; it must be {wanted}")


def check_choices(config: object) -> None:
    """Raise if a field with named choices holds something else."""
    for f in dataclasses.fields(config):
        choices, value = f.metadata["choices"], getattr(config, f.name)
        if choices and value not in choices:
            raise ValueError(f"--{f.name.replace('_', '-')} is {value!r}; it must be one of {', '.join(choices)}")


def add_flags(parser: argparse.ArgumentParser, config_class: type[Config]) -> None:
    """One flag per field; absent flags stay absent, so that presets can fill them. Booleans are on | off."""
    for f in dataclasses.fields(config_class):
        kind = on_off if isinstance(f.default, bool) else type(f.default)
        extra = {"nargs": "?", "const": True} if kind is on_off else {}
        shown = {True: "on", False: "off"}.get(f.default, f.default) if kind is on_off else f.default
        parser.add_argument(f"--{f.name.replace('_', '-')}", dest=f.name, type=kind, default=argparse.SUPPRESS,
                            choices=None if kind is on_off else f.metadata["choices"], **extra,
                            metavar="on|off" if kind is on_off else None,
                            help=f"{f.metadata['help']} (default: {shown})".replace("%", "%%"))


def on_off(text: str) -> bool:
    """Flag value to bool; `bool('False')` would be True."""
    values = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return values[text.lower()]


def resolve(config_class: type[Config], stage: str, flags: dict[str, Any], own: dict[str, Any],
            built_in: bool) -> Config:
    """Defaults < preset < algorithm < what the model directory was trained with (`own`) < flags.

    The demo preset applies unasked when model and data are both built in. An algorithm's settings apply when it is
    asked for; the field defaults are those of `grpo`."""
    preset = flags.get("preset") or ("demo" if built_in else "none")
    values = {} if preset == "none" else PRESETS[preset][stage]
    if "steps" in flags:
        values = {name: value for name, value in values.items() if name != "gate"}  # --steps N means N steps, no more
    algorithm = ALGORITHMS[flags["algorithm"]] if "algorithm" in flags else {}
    return config_class(**{**values, **algorithm, **own, **flags, "preset": preset})


def parse_flags(config_class: type[Config], description: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Command line -> the given flags only. Unknown or abbreviated flags are errors."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add_flags(parser, config_class)
    return vars(parser.parse_args(arguments))
