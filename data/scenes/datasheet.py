"""The benchmark's datasheet: contents of each prior, reachable accuracies, generation speed."""
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import replace

import PIL

from data.datasheet import joint_table, share
from data.example import Example
from data.scenes import PRIORS, Scene, bayes_ceiling, draw, label_distribution, sample_scene, scene_examples
from data.scenes.expert import situation
from data.scenes.world import speed_band

DRAWN = 500                                  # pictures drawn for the timing
PAPER_SCENES = 110_000                       # size of AlphaDrive's training set


def benchmark_sheet(count: int, split: str = "test", seed: int = 0, cameras: int = 1) -> str:
    """The whole datasheet as Markdown, from `count` scenes of each prior."""
    parts = [f"Python {platform.python_version()}, Pillow {PIL.__version__}; split {split}, data seed {seed}, "
             f"{count} scenes of each prior", "", *speed_lines(split, seed)]
    for prior in PRIORS:
        examples = scene_examples(split, count, seed, prior=prior, cameras=cameras)
        parts += ["", f"## Prior {prior}", "", *joint_table(examples), "", *facts(examples)]
    return "\n".join(parts)


def speed_lines(split: str, seed: int) -> list[str]:
    """Examples per second of process time, without and with their pictures."""
    begin = time.process_time()
    examples = scene_examples(split, DRAWN, seed)
    made = time.process_time()
    for example in examples:
        draw(sample_scene(example.scene))
    drawn = time.process_time()
    whole = (drawn - begin) / DRAWN
    return [f"- examples without their pictures: {DRAWN / (made - begin):,.0f} per second on one core",
            f"- examples with their pictures: {1 / whole:,.0f} per second on one core; {PAPER_SCENES:,} scenes in "
            f"{PAPER_SCENES * whole / 60:.1f} minutes",
            f"- one picture of 224 x 112: {1000 * (drawn - made) / DRAWN:.2f} ms"]


def facts(examples: list[Example]) -> list[str]:
    """How many plans are acceptable, the Bayes ceiling, and the accuracy of simple baselines."""
    scenes = [sample_scene(example.scene) for example in examples]
    sizes = Counter(min(len(example.acceptable), 3) for example in examples)
    greedy, sampled = bayes_ceiling(examples)
    majority, hits = Counter(example.decision for example in examples).most_common(1)[0]
    usual = sum(example.decision == example.acceptable[0] for example in examples)
    right = sum(example.decision in example.acceptable for example in examples)
    total = len(examples)
    return [f"- acceptable plans: one {share(sizes[1], total)}; two {share(sizes[2], total)}; three or more "
            f"{share(sizes[3], total)}",
            f"- Bayes ceiling: {greedy:.3f} greedy, {sampled:.3f} sampled from the true odds",
            f"- expert, always its most usual plan: {usual / total:.3f}; label among its acceptable plans: "
            f"{right / total:.3f}",
            f"- majority ({majority}): {hits / total:.3f}",
            f"- best from the text alone: {best_accuracy(scenes, text_view):.3f}; from the picture alone, at most: "
            f"{best_accuracy(scenes, picture_view):.3f}",
            *side_facts(scenes),
            f"- rare events: {share(sum(scene.event != 'none' for scene in scenes), total)}"]


def side_facts(scenes: list[Scene]) -> list[str]:
    """How many plans a side view decides, and what the front view alone can reach; none for one camera."""
    kinds = Counter(scene.side.split("_")[0] for scene in scenes if scene.side != "none")
    if not kinds:
        return []
    each = ", ".join(f"{kind} {share(count, len(scenes))}" for kind, count in sorted(kinds.items()))
    return [f"- a side view decides: {share(sum(kinds.values()), len(scenes))} ({each})",
            f"- best from the front view and the text, at most: {best_accuracy(scenes, front_and_text):.3f}"]


def best_accuracy(scenes: list[Scene], view: Callable[[Scene], Hashable]) -> float:
    """Accuracy of a greedy predictor that knows the label distribution but sees only view(scene).

    It is fitted on the scenes it is scored on, so it is too high for a fine view with few scenes in each cell.
    """
    cells = defaultdict(Counter)
    for scene in scenes:
        cells[view(scene)].update(label_distribution(scene))
    return sum(max(cell.values()) for cell in cells.values()) / len(scenes)


def text_view(scene: Scene) -> Hashable:
    return speed_band(scene.speed), scene.turn_100, scene.turn_200


def front_and_text(scene: Scene) -> Hashable:
    """What influences the plan without what a side view alone shows: the lane of a car beside looks free."""
    kind, _, side = scene.side.partition("_")
    lanes = {f"{side}_lane": "free"} if kind == "beside" else {}
    return replace(situation(scene), side="none", **lanes)


def picture_view(scene: Scene) -> Hashable:
    """The scene without speed, route and what never changes the plan. A closed turn reveals the route's side."""
    turn = scene.turn_100 if scene.event == "blocked_turn" else ""
    return replace(scene, seed=0, night=False, weather="clear", speed=0.0, turn_100=turn, turn_200="")
