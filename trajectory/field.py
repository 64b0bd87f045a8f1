"""A built-in scene in metres: the road's edges, the junction, and everything that must not be hit, as tensors.

The label rule and the picture know four speeds and words such as "near". Here distances are those words' metres at the
true speed, jittered by up to 12 % from the scene's seed, and a braking lead brakes at 1.5 to 2.5 m/s2. The picture does
not show the jitter. So margins have a value, and even a planner that knows every fact cannot reach a score of 1.
Not there: crossing traffic, oncoming traffic but in event wrong_way, and road users that react. Open loop, 4 s.

Frame: lane, x = 0 and y = 0 at the middle of the rear axle. Units: m, s.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.example import Example
from data.scenes import sample_scene
from data.scenes.geometry import (
    BEND_CURVATURE,
    GAPS,
    LANE_WIDTH,
    SIDES,
    SPEEDS,
    Metres,
    Obstacle,
    lines,
    obstacles,
)
from data.scenes.world import Scene

BUMPER = 3.7                            # from the rear axle to the front bumper
BOXES = 5
ARM = 15.0                              # m along the own road that the crossing road is wide
BRAKING = (1.5, 2.5)                    # of a lead whose brake lamps are lit
KNOWN_SPEEDS = tuple(SPEEDS.values())


@dataclass(frozen=True)
class Field:
    """P scenes. A box is (near side's x, left y, right y, speed, braking, length, odds); odds 0: no box."""

    speed: Tensor                     # (P,) of the car
    road: Tensor                      # (P,) curvature of the lane
    left: Tensor                      # (P,) distance of the left edge, also of the lane's end if it is occupied
    right: Tensor                     # (P,)
    closed_left: Tensor               # (P,) bool: the left lane is occupied
    closed_right: Tensor              # (P,) bool
    entry: Tensor                     # (P,) x of the stop line of a near junction; inf: none
    turn: Tensor                      # (P,) side of the route's open turn there: 1 left, -1 right, 0 none
    boxes: Tensor                     # (P, 5, 7)
    is_line: Tensor                   # (P, 5) bool: a stop line

    def __len__(self) -> int:
        return len(self.speed)

    def at(self, index: Tensor) -> "Field":
        """Some of the scenes."""
        return Field(**{name: value[index] for name, value in vars(self).items()})

    def to(self, device: torch.device | str) -> "Field":
        """The same on another device."""
        return Field(**{name: value.to(device) for name, value in vars(self).items()})


def make_field(examples: list[Example], metre_noise: float = 0.12) -> Field:
    """The scenes of these examples in metres. metre_noise 0: nominal metres. An example that is no built-in scene gets
    an empty, straight road without edges."""
    rows = [open_road(float(example.speed or 0.0)) if example.scene is None
            else scene_row(sample_scene(example.scene), metre_noise) for example in examples]
    columns = zip(*rows, strict=True)
    return Field(*(torch.tensor(np.array(column)) for column in columns))


def open_road(speed: float) -> tuple:
    """A row of a field in which nothing can be hit."""
    far = np.float32(math.inf)
    return (np.float32(speed), np.float32(0), far, far, False, False, far, np.float32(0),
            np.zeros((BOXES, 7), np.float32), np.zeros(BOXES, bool))


def scene_row(scene: Scene, metre_noise: float) -> tuple:
    """A row of a field."""
    rng = random.Random(f"metres {scene.seed}")  # noqa: S311  nothing secret
    stretch = {name: 1 + metre_noise * rng.uniform(-1, 1) for name in GAPS}
    braking = rng.uniform(*BRAKING) if metre_noise else sum(BRAKING) / 2

    def metres(scene: Scene, name: str) -> float:
        return distance(name, scene.speed) * stretch[name]

    def pace(scene: Scene) -> float:
        return scene.speed

    found, walls = (*barrier(scene, metres), *obstacles(scene, metres, pace)), len(lines(scene, metres))
    boxes, is_line = np.zeros((BOXES, 7), np.float32), np.zeros(BOXES, bool)
    for i, box in enumerate(found):
        boxes[i] = box_numbers(box, braking)
        is_line[i] = i >= len(found) - walls
    near = scene.road == "junction_near"
    entry = metres(scene, "junction_near") + BUMPER if near else math.inf
    bend = {"curve_left": 1, "curve_right": -1}.get(scene.road, 0) * BEND_CURVATURE
    edges = [edge(lane) for lane in (scene.left_lane, scene.right_lane)]
    closed = [lane == "occupied" for lane in (scene.left_lane, scene.right_lane)]
    turn = SIDES.get(scene.turn_100, 0) if near and scene.event != "blocked_turn" else 0
    return (np.float32(scene.speed), np.float32(bend), *map(np.float32, edges), *closed, np.float32(entry),
            np.float32(turn), boxes, is_line)


def edge(lane: str) -> float:
    """How far the road reaches to a side, from the middle of the own lane."""
    return LANE_WIDTH / 2 + LANE_WIDTH * (lane != "none")


def barrier(scene: Scene, metres: Metres) -> list[Obstacle]:
    """The closed arm of a junction: a box across it, beside the own road."""
    if scene.event != "blocked_turn":
        return []
    ends = sorted(SIDES[scene.turn_100] * y for y in (edge(getattr(scene, f"{scene.turn_100}_lane")), 20.0))
    return [Obstacle(metres(scene, "junction_near"), ends[1], ends[0], length=ARM)]


def distance(name: str, speed: float) -> float:
    """The metres of a word at a speed: GAPS interpolated, and continued beyond its last speed."""
    gaps = GAPS[name]
    if speed <= KNOWN_SPEEDS[-1]:
        return float(np.interp(speed, KNOWN_SPEEDS, gaps))
    slope = (gaps[-1] - gaps[-2]) / (KNOWN_SPEEDS[-1] - KNOWN_SPEEDS[-2])
    return gaps[-1] + slope * (speed - KNOWN_SPEEDS[-1])


def box_numbers(box: Obstacle, braking: float) -> list[float]:
    """An obstacle as a row of `Field.boxes`."""
    return [box.gap + BUMPER, box.left, box.right, box.speed, braking if box.braking else 0.0, box.length, box.odds]
