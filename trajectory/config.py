"""The settings of the two trajectory stages: behaviour cloning and GRPO on the denoising chain.

They inherit the method's settings (grpo/config.py). TEXT_ONLY names those that have no meaning without text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo.config import GRPOConfig, SFTConfig, check_choices, coefficient_ends, option, require
from trajectory.chain import STEPS

# Settings of answers in words; the stages below refuse them by name
TEXT_ONLY = frozenset({
    "precision", "micro_batch_tokens", "prompt_style", "reasoning", "hide", "max_new_tokens", "temperature",
    "reward", "reward_mode", "reward_weights", "reward_accuracy", "diversity", "normalise_rewards", "length_margin",
    "value_trunk", "mask_truncated", "importance_cap", "reference_dtype", "kl_estimator", "kl_ratio", "ent_coef",
    "dynamic_sampling", "answer", "trajectory_reward"})


@dataclass(frozen=True)
class CloningConfig(SFTConfig):
    """Behaviour cloning: the denoiser learns the demonstrations of one driver per scene."""

    batch_size: int = option(512, "demonstrations per update")
    learning_rate: float = option(1e-3, "peak learning rate")
    warmup_steps: int = option(50, "optimizer updates of linear warm-up; -1: a tenth of the run")
    min_lr_ratio: float = option(0.02, "the learning rate falls towards this share of its peak")
    plan_share: float = option(0.5, "share of the examples that name the driven plan")
    demonstrations: str = option("all", "safe leaves out those that collide or leave the road", ("all", "safe"))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.plan_share <= 1, self, "plan_share", "a share in [0, 1]")


@dataclass(frozen=True)
class TrajectoryConfig(GRPOConfig):
    """GRPO on the denoising chain. A chain is an answer of five tokens, its steps.

        L = pg_coef L_policy + beta L_KL + vf_coef L_value + bc_coef L_cloning

    L_KL is exact, because both policies' steps are Gaussians of equal sigma. There is no entropy bonus: the entropy of
    such a step does not depend on the weights. scale_rewards is batch: a group's own deviation would blow up small
    differences of progress between safe trajectories, at the price of collisions (docs/trajectories.md).
    """

    max_new_tokens: int = option(STEPS, "steps of a chain")
    group_size: int = option(16, "trajectories sampled per scene")
    prompts_per_step: int = option(64, "scenes per step")
    learning_rate: float = option(3e-4, "peak learning rate")
    lr_schedule: str = option("linear", "schedule after the warm-up", ("cosine", "linear", "constant"))
    min_lr_ratio: float = option(0.1, "the learning rate falls towards this share of its peak")
    warmup_steps: int = option(10, "optimizer updates of linear warm-up; -1: a tenth of the run")
    scale_rewards: str = option("batch", "divide group advantages by this standard deviation",
                                ("group", "batch", "none"))
    beta: str = option("0.02", "weight of the exact KL to the cloned decoder; 0 drops that decoder")
    value_learning_rate: float = option(1e-3, "peak learning rate of the value network")
    plan_share: float = option(0.5, "share of the scenes that name a plan: the one that the demonstration drives; on "
                                    "logs, the label")
    # -- exploration
    eta: float = option(1.0, "share of DDPM's noise in a sampled step; 0: the floor alone")
    noise_floor: str = option("0.1:0.03:linear", "smallest sigma of a sampled step, in standard deviations of the "
                                                 "demonstrations: a number, or FROM:TO:linear|cosine over the run")
    noise_adapt: str = option("none", "scale a scene's noise: more in complex scenes, or less where a first draw is "
                                      "seldom feasible", ("none", "complexity", "validity"))
    guidance: int = option(0, "gradient steps away from obstacles and back to the road in each of the last two steps")
    reject: str = option("none", "infeasible trajectories, which collide or leave the road (on logs: are "
                                 "uncomfortable): keep them, draw twice as many and prefer feasible ones, draw them "
                                 "again up to 3 times, or give them the advantage -1",
                         ("none", "drop", "resample", "penalise"))
    ratio_reduce: str = option("sum", "log-probability of a step: sum over the latent numbers, or their mean, a "
                                      "tempered ratio", ("sum", "mean"))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        require(0 <= self.plan_share <= 1, self, "plan_share", "a share in [0, 1]")
        require(0 <= self.eta <= 1, self, "eta", "a share in [0, 1]")
        require(self.guidance >= 0, self, "guidance", "0 or more")
        ends = coefficient_ends(self.noise_floor)
        require(ends is not None and min(ends[:2]) > 0, self, "noise_floor",
                "above 0, or FROM:TO:linear, FROM:TO:cosine: without a floor the last step has no density")

    @property
    def component_weights(self) -> dict[str, float]:
        """The score alone is paid; its factors are logged."""
        return {"score": 1.0}


def chain_algorithm(values: Mapping[str, Any]) -> dict[str, Any]:
    """What an `--algorithm` of grpo/config.py sets for chains: nothing that needs text, and the batch's deviation where
    it divides by the group's."""
    kept = {name: value for name, value in values.items() if name not in TEXT_ONLY}
    if kept.get("advantage", "group") != "group":
        return {**kept, "scale_rewards": "group"}               # it divides by nothing
    return {**kept, "scale_rewards": "none" if kept.get("scale_rewards") == "none" else "batch"}
