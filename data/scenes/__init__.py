"""The built-in driving benchmark: seeded scenes with a picture, a label from a simulated expert, and a reason.

It needs no download. The label's exact distribution is known, so the Bayes ceiling is known and a leak can be detected.
"""
import random
from dataclasses import asdict, replace

from data.example import VIEWS, Example, prompt_text, target_text
from data.scenes.expert import acceptable_plans, draw_label, label_distribution
from data.scenes.picture import draw
from data.scenes.priors import PRIORS, SCENES_PER_SEED, SEEDS_PER_SPLIT, SPLITS, has_sides, sample_scene, scene_seeds
from data.scenes.sentence import reason
from data.scenes.world import Scene

__all__ = ["PRIORS", "SCENES_PER_SEED", "SEEDS_PER_SPLIT", "SPLITS", "Scene", "acceptable_plans", "bayes_ceiling",
           "draw", "draw_label", "label_distribution", "reason", "sample_scene", "scene_examples", "scene_factors",
           "scene_text_corpus"]

FREE_TEXT_SHARE = 0.15                                   # of the training splits, because a user may type free text
COURSES = {"straight": "Straight", "left": "Turn left", "right": "Turn right"}
FREE_TEXTS = {
    ("straight", "straight"): ("Go straight", "Keep going straight for 200 m"),
    ("turn", "straight"): ("Turn {side} within 100 m", "Turn {side} at the next junction, then go straight"),
    ("straight", "turn"): ("Go straight for 100 m, then turn {side}", "Turn {side} in 200 m"),
}


def scene_examples(split: str, count: int, seed: int = 0, with_reasons: bool = True,
                   prior: str = "balanced", cameras: int = 1) -> list[Example]:
    """`count` examples of a split. Equal arguments give equal examples; splits, seeds and priors share no scene.

    cameras: 1, or 3 (front, front_left, front_right), which has scenes of its own: see sides.py.

    prior: balanced (every class is common), natural (classes as rare as on nuScenes), long_tail (rare events in most
    scenes). A picture is drawn from the scene's seed when it is opened. In sft and rl some routes are free text.

    Raises: ValueError for an unknown split or prior, or numbers out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: the built-in scenes have {', '.join(SPLITS)}")
    name = f"{split}-{seed}" if prior == "balanced" else f"{prior}-{split}-{seed}"
    name, views = (name, None) if cameras == 1 else (f"surround-{name}", VIEWS)
    seeds = scene_seeds(split, count, seed, prior, cameras)
    examples = (scene_example(sample_scene(number), split, f"{name}-{index:06d}", with_reasons)
                for index, number in enumerate(seeds))
    return [example if views is None else replace(example, cameras=views) for example in examples]


def scene_example(scene: Scene, split: str, name: str, with_reason: bool) -> Example:
    """A scene as an example with a drawn label and the plans that the expert finds acceptable."""
    decision = draw_label(scene)
    return Example(id=name, scene=scene.seed, speed=scene.speed,
                   navigation=route_text(scene, free_text_allowed=split in ("sft", "rl")), decision=decision,
                   reasoning=reason(scene, decision) if with_reason else None,
                   acceptable=acceptable_plans(scene), split=split, factors=scene_factors(scene))


def scene_factors(scene: Scene) -> dict:
    """The facts that a report may group by; weather, events and sides only where they vary."""
    hidden = {"seed", "speed", "prior"} | ({"weather", "event"} if scene.prior == "balanced" else set())
    hidden |= set() if has_sides(scene.seed) else {"side"}
    return {key: value for key, value in asdict(scene).items() if key not in hidden}


def route_text(scene: Scene, free_text_allowed: bool) -> dict[str, str] | str:
    """AlphaDrive's dictionary for the next 100 m and 200 m, or sometimes the same route as free text."""
    rng = random.Random(f"route {scene.seed}")
    if not free_text_allowed or rng.random() >= FREE_TEXT_SHARE:
        return {"100m": COURSES[scene.turn_100], "200m": COURSES[scene.turn_200]}
    legs = tuple("straight" if leg == "straight" else "turn" for leg in (scene.turn_100, scene.turn_200))
    side = scene.turn_100 if scene.turn_100 != "straight" else scene.turn_200
    return rng.choice(FREE_TEXTS[legs]).format(side=side)


def scene_text_corpus(count: int, seed: int = 0) -> list[str]:
    """Texts for training a tokenizer: the prompts of both styles and the targets of `count` sft scenes."""
    texts = []
    for example in scene_examples("sft", count, seed):
        texts += [prompt_text(example, "compact"), prompt_text(example, "compact", reasoning=False),
                  prompt_text(example, "alphadrive", reasoning=True),
                  prompt_text(example, "alphadrive", reasoning=False), target_text(example)]
    return texts


def bayes_ceiling(examples: list[Example]) -> tuple[float, float]:
    """The best possible accuracy on these scenes, answering greedily and sampling from the true distribution.

        greedy = mean over scenes of max_c q(c)        sampled = mean over scenes of sum_c q(c)^2

    Raises: ValueError if there is no example, or one that is not a built-in scene.
    """
    if not examples or any(example.scene is None for example in examples):
        raise ValueError("the Bayes ceiling is known for built-in scenes only; leave it out for other data")
    odds = [label_distribution(sample_scene(example.scene)).values() for example in examples]
    return (sum(max(row) for row in odds) / len(odds), sum(sum(q * q for q in row) for row in odds) / len(odds))
