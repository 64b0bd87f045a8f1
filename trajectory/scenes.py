"""The scenes of a step as tensors: what the decoder reads, what it imitates, and what it is scored on."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from data.example import Example
from data.scenes.rollout import DRIVEN_PATHS, DRIVEN_SPEEDS
from trajectory.demonstrations import demonstrate, reach
from trajectory.denoiser import Decoder
from trajectory.field import Field, make_field
from trajectory.kinematics import KNOTS, WAYPOINTS, Motion, drive, estimate, fit, from_policy, plan_ids, to_policy
from trajectory.score import no_collision, on_road


@dataclass(frozen=True)
class Scenes:
    """P scenes."""

    features: Tensor                  # (P, F) hidden states of the planner, or facts
    speed: Tensor                     # (P,) m/s
    plan: Tensor                      # (P, 2) ids of the named speed and path, -1: none
    field: Field                      # road and obstacles, jittered as they are driven
    nominal: Field                    # the same without jitter: what a planner can know
    reach: Tensor                     # (P,) m, progress of the best safe motion of 20
    controls: Tensor                  # (P, 16) demonstrations
    acceptable: Tensor                # (P, 4, 5) bool: acceptable plans

    def __len__(self) -> int:
        return len(self.speed)

    def at(self, index: Tensor) -> "Scenes":
        """Some of the scenes."""
        return Scenes(**{f.name: getattr(self, f.name).at(index) if f.name in ("field", "nominal")
                         else getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> "Scenes":
        """The same on another device."""
        return Scenes(**{name: value.to(device) for name, value in vars(self).items()})

    def latents(self, decoder: Decoder) -> Tensor:
        """The demonstrations in the decoder's latent space: (P, d)."""
        return decoder.latent.encode(self.controls)


def without_plan(scenes: Scenes, named: Tensor) -> Scenes:
    """The scenes, whose plan is named only where `named` (P,) is True."""
    return Scenes(**{**vars(scenes), "plan": torch.where(named[:, None], scenes.plan, -1)})


def demonstration(scenes: Scenes) -> Motion:
    """The demonstrations as motions, one per scene: (P, 1, ...)."""
    return drive(from_policy(scenes.controls[:, None], scenes.field), scenes.field)


def make_scenes(examples: list[Example], features: Tensor, metre_noise: float, seed: int,
                demonstrated: bool = True) -> Scenes:
    """The scenes of some examples: built-in ones with a driver's demonstration, or logs with their own trajectory.

    The plan is the one that the demonstration drives (hindsight), so that a sloppy one does not teach a wrong meaning;
    of a log, the label. demonstrated False: no controls and no plan.
    Raises: ValueError naming a logged example without a trajectory."""
    field = make_field(examples, metre_noise)
    if not demonstrated:                                    # pictures, or logs without a trajectory
        controls, plan = torch.zeros(len(examples), KNOTS, 2), torch.full((len(examples), 2), -1)
    elif all(example.scene is not None for example in examples):
        controls, plan = demonstrate(examples, field, seed)
    else:
        driven = logged_waypoints(examples)                                     # (P, 1, 8, 2)
        controls = fit(driven, WAYPOINTS, field, estimate(driven, field))
        controls, plan = controls[:, 0], torch.tensor([plan_ids(example.decision) for example in examples])
    return Scenes(features, field.speed, plan, field, make_field(examples, 0.0), reach(field),
                  to_policy(controls[:, None], field)[:, 0], acceptable_plans(examples))


def logged_waypoints(examples: list[Example]) -> Tensor:
    """The trajectories of logs, (P, 1, 8, 2) in metres."""
    missing = [example.id for example in examples if example.trajectory is None]
    if missing:
        raise ValueError(f"{len(missing)} of {len(examples)} examples have no `trajectory`, the first is "
                         f"{missing[0]!r}: a trajectory stage needs 8 way-points [x, y] in metres per example "
                         "(docs/data.md; `python -m data.nuscenes` writes them)")
    return torch.tensor([example.trajectory for example in examples], dtype=torch.float32)[:, None]


def acceptable_plans(examples: list[Example]) -> Tensor:
    """(P, 4, 5) bool: the acceptable plans, or the label alone where no others are known."""
    found = torch.zeros(len(examples), len(DRIVEN_SPEEDS), len(DRIVEN_PATHS), dtype=torch.bool)
    for i, example in enumerate(examples):
        for plan in example.acceptable or (example.decision,):
            found[i][plan_ids(plan)] = True
    return found


def safe_places(scenes: Scenes) -> Tensor:
    """Places of the scenes whose demonstration neither collides nor leaves the road."""
    motion = demonstration(scenes)
    safe = (no_collision(motion, scenes.field) * on_road(motion, scenes.field) > 0.99)[:, 0]
    return safe.nonzero()[:, 0]
