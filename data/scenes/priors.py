"""From a seed to its scene: the split and prior of a seed, and how often a prior keeps a drawn scene."""
import random

from data.example import CAMERA_COUNTS
from data.scenes.expert import plan_odds
from data.scenes.sides import with_side
from data.scenes.world import BALANCED, LONG_TAIL, NATURAL, Scene, draw_scene

SPLITS = ("sft", "rl", "val", "test")
ALL_SPLITS = (*SPLITS, "caption")                        # caption: the caption task
PRIORS = {"balanced": BALANCED, "natural": NATURAL, "long_tail": LONG_TAIL}
SCENES_PER_SEED, SEEDS_PER_SPLIT, SPLITS_PER_PRIOR = 10**7, 10**5, 10
SEEDS_PER_PRIOR = SPLITS_PER_PRIOR * SEEDS_PER_SPLIT * SCENES_PER_SEED

# natural: the share of drawn scenes that is kept, by the rarest acceptable plan. Fitted on 60,000 draws so that labels
# have the shares NATURAL_SPEEDS and NATURAL_PATHS of expert.py. 13 % of all draws are kept.
KEPT_SPEEDS = {"KEEP": 1.0, "STOP": 0.36, "ACCELERATE": 0.0064, "DECELERATE": 0.0032}
KEPT_PATHS = {"STRAIGHT": 0.64, "LEFT_CHANGE": 0.125, "RIGHT_CHANGE": 0.144}
KEPT_TURNS = {"LEFT_TURN": 0.13, "RIGHT_TURN": 0.14}


def scene_seeds(split: str, count: int, seed: int, prior: str, cameras: int = 1) -> range:
    """The seeds of `count` scenes. Splits, data seeds, priors and numbers of cameras share none.

    Raises: ValueError for an unknown prior or number of cameras, or numbers out of range.
    """
    if cameras not in CAMERA_COUNTS:
        raise ValueError(f"{cameras} cameras: the built-in scenes have {' or '.join(map(str, CAMERA_COUNTS))}")
    if prior not in PRIORS:
        raise ValueError(f"prior {prior!r}: the built-in scenes have {', '.join(PRIORS)}")
    if not 0 <= count <= SCENES_PER_SEED or not 0 <= seed < SEEDS_PER_SPLIT:
        raise ValueError(f"count {count} and seed {seed}: a split has 0 to {SCENES_PER_SEED} scenes for each data seed "
                         f"from 0 to {SEEDS_PER_SPLIT - 1}")
    world = list(PRIORS).index(prior) + len(PRIORS) * (cameras > 1)
    place = (world * SPLITS_PER_PRIOR + ALL_SPLITS.index(split)) * SEEDS_PER_SPLIT + seed
    return range(place * SCENES_PER_SEED, place * SCENES_PER_SEED + count)


def prior_of(seed: int) -> str:
    """The prior that a scene's seed belongs to; balanced for seeds outside every range."""
    number = seed // SEEDS_PER_PRIOR
    return list(PRIORS)[number % len(PRIORS)] if 0 <= number < 2 * len(PRIORS) else "balanced"


def has_sides(seed: int) -> bool:
    """Whether a seed's scene belongs to those of three cameras, in which a side view may decide."""
    return len(PRIORS) <= seed // SEEDS_PER_PRIOR < 2 * len(PRIORS)


def sample_scene(seed: int) -> Scene:
    """The scene of a seed: the first draw that its prior keeps."""
    rng, prior = random.Random(seed), prior_of(seed)
    while True:
        scene = draw_scene(rng, seed, prior, PRIORS[prior])
        scene = with_side(rng, scene) if has_sides(seed) else scene
        if prior != "natural" or rng.random() < kept_share(scene):
            return scene


def kept_share(scene: Scene) -> float:
    """Probability of keeping a scene, by its rarest acceptable plan. It does not depend on the drawn label."""
    return min(KEPT_TURNS[plan.path] if plan.path in KEPT_TURNS else KEPT_SPEEDS[plan.speed] * KEPT_PATHS[plan.path]
               for plan in plan_odds(scene))
