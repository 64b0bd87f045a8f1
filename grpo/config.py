"""The settings of the method, which the steps read. Other flags: grpo/engine/flags.py.

Field defaults suit the real 2B model. ALGORITHMS holds what each `--algorithm` sets.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.checked import LOGGED

Choices = tuple[str, ...]


def option(default: Any, help: str, choices: Choices | None = None) -> Any:  # noqa: ANN401
    """A dataclass field with its help text and its allowed values."""
    return field(default=default, metadata={"help": help, "choices": choices})


# Terms of the loss, and the setting that holds the weight of each
TERMS = {"policy_loss": "pg_coef", "kl": "beta", "value_loss": "vf_coef", "entropy": "ent_coef",
         "bc_loss": "bc_coef"}
PLANNING = ("speed", "path", "format")      # components of `--reward planning`, AlphaDrive's


@dataclass(frozen=True)
class MethodConfig:
    """Settings of both stages. Units: tokens, steps; a step is one batch with its updates."""

    seed: int = option(0, "seed for everything random: weights of tiny, data order, sampling")
    precision: str = option("auto", "bf16: autocast with float32 weights; auto: bf16 on cuda, "
                                    "and on a CPU where it measures 1.2 times as fast",
                            ("auto", "fp32", "bf16"))
    micro_batch_tokens: int = option(2048, "most tokens of a micro-batch; a longer row makes its "
                                           "own. Changes memory and time, not the loss")
    # -- optimizer
    learning_rate: float = option(2e-5, "peak learning rate")
    lr_schedule: str = option("cosine", "schedule after the warm-up",
                              ("cosine", "linear", "constant"))
    warmup_steps: int = option(-1, "optimizer updates of linear warm-up; -1: a tenth of the run")
    min_lr_ratio: float = option(0.0, "the learning rate falls towards this share of its peak")
    decay_share: float = option(1.0, "share of the run, at its end, over which the learning rate "
                                     "falls; it is constant before")
    weight_decay: float = option(0.0, "AdamW decay of matrices (not of norms, biases, embeddings)")
    adam_beta2: float = option(0.999, "AdamW second-moment decay")
    max_grad_norm: float = option(1.0, "clip the norm of the accumulated gradient to this value")
    # -- prompt and answer
    prompt_style: str = option("alphadrive", "wording of the request", ("alphadrive", "compact"))
    reasoning: bool = option(True, "ask for <think> and train on it; off changes prompt, target "
                                   "and format reward")
    answer: str = option("plan", "what the answer holds: the plan, or the plan and 8 way-points of "
                                 "the next 4 s", ("plan", "trajectory"))
    hide: str = option("nothing", "ablations: train and evaluate without the picture, with the "
                                  "front one alone (sides), or without speed and navigation (text)",
                       ("nothing", "picture", "sides", "text"))
    max_new_tokens: int = option(256, "longest completion, in tokens")

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("learning_rate", "max_grad_norm", "micro_batch_tokens", "max_new_tokens"):
            require(getattr(self, name) > 0, self, name, "a value above 0")
        for name in ("seed", "weight_decay"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        require(0 <= self.adam_beta2 < 1, self, "adam_beta2", "in [0, 1)")
        require(0 <= self.min_lr_ratio <= 1, self, "min_lr_ratio", "a share in [0, 1]")
        require(self.warmup_steps >= -1, self, "warmup_steps",
                "-1 (a tenth of the run), or 0 or more")
        require(0 < self.decay_share <= 1, self, "decay_share", "a share in (0, 1]")


@dataclass(frozen=True)
class SFTConfig(MethodConfig):
    """Stage 1: supervised warm-up on distilled reasoning (AlphaDrive, sec. 3.4)."""

    batch_size: int = option(16, "examples per update")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size > 0, self, "batch_size", "a value above 0")


@dataclass(frozen=True)
class GRPOConfig(MethodConfig):
    """Stage 2: reinforcement learning with planning rewards (AlphaDrive, sec. 3.2).

        L = pg_coef L_policy + beta L_KL + vf_coef L_value + ent_coef L_entropy + bc_coef L_BC

    A coefficient is a constant (`0.04`) or annealed over the run (`0.04:0.01:linear`,
    `1:0.2:cosine`: from, to, shape).
    """

    algorithm: str = option("grpo", "named values for the flags below; flags override them",
                            ("reinforce", "rloo", "ppo", "grpo", "dapo", "dr_grpo", "gspo",
                             "cispo"))
    learning_rate: float = option(1e-6, "peak learning rate")
    group_size: int = option(8, "completions sampled per prompt")
    prompts_per_step: int = option(8, "prompts sampled per step")
    temperature: float = option(1.0, "sampling temperature, in training log-probabilities too")
    updates_per_rollout: int = option(1, "updates per sampled batch")
    target_kl: float = option(0.0, "stop updating on a batch once KL(old || new) exceeds this; "
                                   "0: never")
    # -- rewards
    reward_mode: str = option("repaired", "AlphaDrive's rewards with a repaired diversity term, as "
                                          "printed (paper), as released (official), or judged by "
                                          "all acceptable plans (set): docs/rewards.md",
                              ("repaired", "paper", "official", "set"))
    reward: str = option("planning", "what is rewarded, repeatable: FILE.py:FUNCTION, or planning "
                                     "for AlphaDrive's speed, path and format")
    reward_weights: str = option("1,1,1", "weights of reward components: numbers for speed, path, "
                                          "format and, with --answer trajectory, the way-points; "
                                          "or name=number,...; 1 if not named")
    trajectory_reward: str = option("l2", "with --answer trajectory: exp(-ADE / 2 m) against the "
                                          "expert's way-points, or the PDMS-like score of driving "
                                          "the written ones", ("l2", "pdms"))
    reward_accuracy: str = option("f1", "F1 of the named actions, or exact: an answer that "
                                        "names several actions earns 0", ("f1", "exact"))
    diversity: bool = option(True, "multiply quality by the planning-diversity factor")
    normalise_rewards: bool = option(False, "normalise each reward in its group before the "
                                            "weighted sum")
    length_margin: int = option(0, "soft length penalty over the last N tokens before the limit, "
                                   "down to -1; 0: none")
    reward_kl: float = option(0.0, "KL to the reference inside the reward: per token with gae, "
                                   "else per answer")
    # -- advantages
    advantage: str = option("group", "reward minus the group's mean, minus the mean of the "
                                     "others, unchanged (return), or GAE",
                            ("group", "leave_one_out", "return", "gae"))
    scale_rewards: str = option("group", "divide group advantages by this standard deviation",
                                ("group", "batch", "none"))
    gamma: float = option(1.0, "discount per token or denoising step, with gae")
    gae_lambda: float = option(0.95, "GAE's lambda")
    whiten_advantages: bool = option(True, "with gae: centre and scale the advantages of all "
                                           "tokens or denoising steps of the batch")
    value_trunk: str = option("own", "value network: a second model of the policy's size, or a "
                                     "head on the policy", ("own", "shared"))
    value_learning_rate: float = option(1e-5, "peak learning rate of the value network")
    clip_value: float = option(0.2, "clip values to this distance from the old ones; 0: no clip")
    # -- policy loss
    variant: str = option("grpo", "policy loss", ("reinforce", "ppo", "grpo", "dapo", "dr_grpo",
                                                  "gspo", "cispo", "sequence"))
    clip_low: float = option(0.2, "lower clip of the ratio: 1 - clip_low")
    clip_high: float = option(0.2, "upper clip of the ratio: 1 + clip_high")
    delta: float = option(0.0, "upper bound of the ratio for negative advantages; 0: none")
    mask_truncated: bool = option(False, "leave truncated answers out of the loss (not out of the "
                                         "baseline)")
    importance_cap: float = option(0.0, "correct the sampler's rounding: weight tokens by "
                                        "min(trainer / sampler probability, cap); 0: off")
    dynamic_sampling: int = option(0, "replace groups of equal rewards by fresh ones, in at most N "
                                      "extra batches")
    flat_kl: bool = option(True, "groups of equal rewards keep their KL term")
    # -- weights of the terms
    pg_coef: str = option("1", "weight of the policy loss")
    beta: str = option("0.04", "weight of the KL penalty to the frozen starting model; 0 drops "
                               "that model")
    reference_dtype: str = option("auto", "dtype of the KL reference; auto: the compute dtype",
                                  ("auto", "fp32", "bf16"))
    kl_estimator: str = option("k3", "estimator of the KL to the reference", ("k1", "k2", "k3"))
    kl_ratio: bool = option(False, "multiply the KL estimate by the ratio: with k1 and k3 its "
                                   "gradient is then that of KL(policy || reference)")
    vf_coef: str = option("0.5", "weight of the value loss, with gae")
    ent_coef: str = option("0", "weight of the entropy bonus")
    bc_coef: str = option("0", "weight of behaviour cloning: the expert's answer is one more "
                               "branch of the row")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers()
        self._check_combinations()

    def _check_numbers(self) -> None:
        for name in ("prompts_per_step", "temperature", "updates_per_rollout",
                     "value_learning_rate"):
            require(getattr(self, name) > 0, self, name, "a value above 0")
        for name in ("clip_low", "clip_high", "delta", "target_kl", "reward_kl", "clip_value",
                     "importance_cap", "dynamic_sampling", "length_margin"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        for name in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, self, name, "in [0, 1]")
        for name in ("pg_coef", "beta", "vf_coef", "ent_coef", "bc_coef"):
            require(coefficient_ends(getattr(self, name)) is not None, self, name,
                    "a number of 0 or more, or FROM:TO:linear, FROM:TO:cosine")
        self._check_rewards()
        require(self.delta == 0 or self.delta > 1 + self.clip_high, self, "delta",
                "0 (none), or above 1 + clip_high")

    def _check_rewards(self) -> None:
        good = all(re.fullmatch(r"planning|.+\.py:\w+", reward) for reward in self.rewards)
        require(good and len(set(self.rewards)) == len(self.rewards), self, "reward",
                "planning or FILE.py:FUNCTION, each once")
        given = named_weights(self.reward_weights, self.planning_components)
        known = self.known_components
        require(given is not None, self, "reward_weights",
                "three finite numbers: speed,path,format"
                + "; or a fourth for the way-points" * bool(self.waypoint_component)
                + "; or name=number,...")
        require(self.own_rewards or given.keys() <= set(known), self, "reward_weights",
                f"for components of --reward planning: {', '.join(known)}")

    def _check_combinations(self) -> None:
        one_ratio = self.variant in ("gspo", "sequence")
        compares = self.advantage in ("group", "leave_one_out")
        require(self.group_size >= (2 if compares else 1), self, "group_size",
                "2 or more: the advantage of a group-relative algorithm compares completions of "
                "one prompt")
        require(self.advantage != "gae" or not one_ratio, self, "variant",
                "a token-wise loss with --advantage gae: a ratio per answer has no advantage per "
                "token")
        require(self.importance_cap == 0 or not one_ratio, self, "importance_cap",
                "0 for a variant with one ratio per answer")
        require(self.length_margin < self.max_new_tokens, self, "length_margin",
                f"below --max-new-tokens, which is {self.max_new_tokens}")
        require(self.advantage == "group" or self.scale_rewards == "group", self, "scale_rewards",
                "group (the default) unless --advantage is group, which alone divides by it; with "
                "gae see --whiten-advantages")
        require(self.delta == 0 or self.variant not in ("cispo", "reinforce"), self, "delta",
                "0 with --variant cispo and reinforce, which do not read it")
        require(not self.kl_ratio or self.kl_estimator != "k2", self, "kl_ratio",
                "off with --kl-estimator k2, whose gradient is that of KL(policy || reference) "
                "without it")
        require(self.group_size > 1 or not self.normalise_rewards, self, "normalise_rewards",
                "off with a group of 1, which has no spread")
        require(self.group_size > 1 or not self.dynamic_sampling, self, "dynamic_sampling",
                "0 with a group of 1, whose rewards are always equal")
        require(self.answer == "trajectory" or self.trajectory_reward == "l2", self,
                "trajectory_reward", "l2 (the default) unless --answer is trajectory")
        require(self.group_size > 1 or self.flat_kl, self, "flat_kl",
                "on with a group of 1, whose rewards are always equal")

    @property
    def rewards(self) -> tuple[str, ...]:
        """Each --reward."""
        return tuple(self.reward.split(","))

    @property
    def own_rewards(self) -> bool:
        """Whether the user's functions are among them, whose components only a call tells."""
        return self.reward != "planning"

    @property
    def known_components(self) -> tuple[str, ...]:
        """The reward components whose names are known before the first group."""
        planning = self.planning_components if "planning" in self.rewards else ()
        return (*planning, "length") if self.length_margin else planning

    @property
    def component_weights(self) -> dict[str, float]:
        """Weight of each reward component that is known or named by --reward-weights."""
        given = named_weights(self.reward_weights, self.planning_components)
        given = {} if self.reward_weights == "1,1,1" else given     # the default names nothing
        return {**dict.fromkeys(self.known_components, 1.0), **given}

    def paid(self, names: Collection[str]) -> dict[str, float]:
        """Weight of every paid component; one of the user's functions without a weight has 1."""
        own = [name for name in names if name not in LOGGED] if self.own_rewards else []
        return {**dict.fromkeys(own, 1.0), **self.component_weights}

    @property
    def planning_components(self) -> tuple[str, ...]:
        """The components of `--reward planning`."""
        return (*PLANNING, *self.waypoint_component)

    @property
    def waypoint_component(self) -> tuple[str, ...]:
        """The reward component of the way-points, if the answer holds some."""
        name = {"l2": "waypoints", "pdms": "pdms"}[self.trajectory_reward]
        return (name,) if self.answer == "trajectory" else ()

    def term_weights(self, progress: float, own: Mapping[str, float]) -> dict[str, float]:
        """Weight of every term of the loss when `progress` (0 to 1) of the run is done.

        The weight of the entropy is negated, because entropy is maximised. own: the user's terms.
        Raises: ValueError if a term of the user's has the name of a built-in one.
        """
        if taken := sorted(TERMS.keys() & own.keys()):
            raise ValueError(f"auxiliary term {taken[0]!r} has the name of a built-in one; call it "
                             "something else")
        weights = {term: self.coefficient(name, progress) for term, name in TERMS.items()}
        return {**weights, "entropy": -weights["entropy"], **own}

    @property
    def needs_reference(self) -> bool:
        """Whether some term reads the frozen starting model."""
        return self.reward_kl > 0 or self.uses("beta")

    def uses(self, name: str) -> bool:
        """Whether a coefficient is above 0 at any time of the run."""
        return max(coefficient_ends(getattr(self, name))[:2]) > 0

    def coefficient(self, name: str, progress: float) -> float:
        """A coefficient's value at `progress` (0 to 1) of the run."""
        start, end, shape = coefficient_ends(getattr(self, name))
        left = 1 - progress if shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return end + (start - end) * left


def named_weights(text: str, names: Sequence[str]) -> dict[str, float] | None:
    """`2,1,0.5` or `speed=2,comfort=0.5` -> weight by name; else None.

    Numbers without names are for the first three of `names`, or for all of them."""
    parts = [part.split("=") for part in text.split(",")]
    if len(parts) in (len(PLANNING), len(names)) and all(len(part) == 1 for part in parts):
        parts = [[name, *part] for name, part in zip(names, parts, strict=False)]
    try:
        weights = {name.strip(): float(number) for name, number in parts}
    except ValueError:
        return None
    good = len(weights) == len(parts) and all(name.isidentifier() for name in weights)
    return weights if good and all(map(math.isfinite, weights.values())) else None


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
    return (numbers[0], numbers[-1], parts[2] if len(parts) == 3 else "linear")


# What the papers leave open is marked; docs/grpo.md says when to choose which.
ALGORITHMS: dict[str, dict[str, Any]] = {
    # Williams (1992): the raw return times the score function; no baseline, clip or KL.
    "reinforce": dict(variant="reinforce", advantage="return", beta="0"),
    # RLOO, arXiv:2402.14740: baseline = the other answers of the group; KL inside the reward
    # (their beta: 0.03 to 0.1).
    "rloo": dict(variant="reinforce", advantage="leave_one_out", beta="0", reward_kl=0.04),
    # PPO, arXiv:1707.06347, as in RLHF: KL inside the token reward, GAE, clipped values, several
    # epochs per batch.
    "ppo": dict(variant="ppo", advantage="gae", beta="0", reward_kl=0.04, updates_per_rollout=4,
                vf_coef="0.5"),
    # DeepSeekMath, arXiv:2402.03300.
    "grpo": dict(variant="grpo", advantage="group", scale_rewards="group"),
    # DAPO, arXiv:2503.14476: clip-higher, token mean, no KL, dynamic sampling. --length-margin adds
    # its soft length penalty (their margin: a fifth of the limit).
    "dapo": dict(variant="dapo", advantage="group", clip_high=0.28, beta="0", dynamic_sampling=3),
    # Dr. GRPO, arXiv:2503.20783: no division by length or standard deviation, no KL.
    "dr_grpo": dict(variant="dr_grpo", advantage="group", scale_rewards="none", beta="0"),
    # GSPO, arXiv:2507.18071, sec. 5.1: the ratio of a whole answer moves little, so the clip range
    # is narrow; no KL.
    "gspo": dict(variant="gspo", advantage="group", clip_low=3e-4, clip_high=4e-4, beta="0"),
    # CISPO, arXiv:2506.13585: only an upper bound on the weight (the value is ours: the paper
    # prints none); no KL.
    "cispo": dict(variant="cispo", advantage="group", clip_low=1.0, clip_high=4.0, beta="0"),
}


def require(condition: bool, config: object, name: str, wanted: str) -> None:
    """Raise a ValueError that names the flag, its value and what it must be."""
    value = getattr(config, name)
    if not condition or (isinstance(value, float) and not math.isfinite(value)):
        shown = ("off", "on")[value] if isinstance(value, bool) else repr(value)
        raise ValueError(f"--{name.replace('_', '-')} is {shown}; it must be {wanted}")


def check_choices(config: object) -> None:
    """Raise a ValueError if a field with named choices holds something else."""
    for f in dataclasses.fields(config):
        choices = f.metadata["choices"]
        if choices:
            require(getattr(config, f.name) in choices, config, f.name,
                    f"one of {', '.join(map(str, choices))}")
