"""The rule expert: for each scene the exact distribution of the label, from one table of odds.

The path is decided first, then the speed given the path. Where both could be open only the path is, so a scene has at
most three right plans. A share NOISE of the labels is drawn from all 20 plans, hence every plan's probability is known:
with equal odds, or under the natural prior with that prior's own shares, so that a rare label is not mostly noise.
"""
import random

from data.scenes.world import Scene, pick, speed_band
from rewards import Decision
from rewards.actions import PATH_ACTIONS, SPEED_ACTIONS

NOISE = 0.03
TURN = {"left": "LEFT_TURN", "right": "RIGHT_TURN"}
CHANGE = {"left": "LEFT_CHANGE", "right": "RIGHT_CHANGE"}

KEEP, ACCELERATE, DECELERATE, STOP = ({speed: 1.0} for speed in SPEED_ACTIONS)


def mix(**odds: float) -> dict[str, float]:
    return odds


# What to do about the most urgent thing, by speed: standing, slow (< 4 m/s), medium (< 9 m/s), fast.
SPEED_RULES = {
    "crossing":     (STOP, STOP, STOP, mix(STOP=.7, DECELERATE=.3)),
    "red_near":     (STOP, STOP, STOP, mix(STOP=.7, DECELERATE=.3)),
    "waits":        (STOP, STOP, mix(STOP=.7, DECELERATE=.3), mix(DECELERATE=.7, STOP=.3)),
    "brake_near":   (STOP, mix(STOP=.7, DECELERATE=.3), DECELERATE, mix(DECELERATE=.7, STOP=.3)),
    "yellow_near":  (STOP, STOP, mix(DECELERATE=.5, STOP=.3, KEEP=.2), mix(KEEP=.6, DECELERATE=.4)),
    "lead_near":    (STOP, KEEP, KEEP, mix(DECELERATE=.7, KEEP=.3)),
    "kerb":         (mix(STOP=.65, ACCELERATE=.35), mix(KEEP=.7, DECELERATE=.3),
                     mix(DECELERATE=.5, KEEP=.3, STOP=.2), DECELERATE),
    "turn":         (ACCELERATE, KEEP, mix(KEEP=.65, DECELERATE=.35), DECELERATE),
    "light_far":    (ACCELERATE, KEEP, mix(DECELERATE=.7, KEEP=.3), DECELERATE),
    "dodge":        (ACCELERATE, mix(KEEP=.7, ACCELERATE=.3), KEEP, mix(DECELERATE=.7, KEEP=.3)),
    "overtake":     (ACCELERATE, ACCELERATE, mix(ACCELERATE=.7, KEEP=.3), KEEP),
    "curve":        (ACCELERATE, mix(ACCELERATE=.65, KEEP=.35), KEEP, DECELERATE),
    "brake_far":    (ACCELERATE, KEEP, mix(DECELERATE=.7, KEEP=.3), DECELERATE),
    "lead_far":     (ACCELERATE, mix(ACCELERATE=.7, KEEP=.3), mix(KEEP=.7, ACCELERATE=.3), KEEP),
    "animal":       (STOP, STOP, STOP, mix(STOP=.7, DECELERATE=.3)),
    "ball":         (STOP, STOP, mix(DECELERATE=.5, STOP=.5), DECELERATE),
    "ambulance":    (STOP, STOP, STOP, mix(STOP=.6, DECELERATE=.4)),
    "wrong_way":    (STOP, STOP, mix(STOP=.6, DECELERATE=.4), DECELERATE),
    "evade":        (ACCELERATE, KEEP, mix(DECELERATE=.6, KEEP=.4), DECELERATE),
    "cut_in":       (STOP, KEEP, mix(DECELERATE=.7, KEEP=.3), DECELERATE),
    "light_off":    (mix(STOP=.5, ACCELERATE=.5), KEEP, DECELERATE, DECELERATE),
    "door":         (ACCELERATE, KEEP, mix(DECELERATE=.6, KEEP=.4), DECELERATE),
    "prepare":      (ACCELERATE, mix(KEEP=.7, ACCELERATE=.3), KEEP, mix(KEEP=.7, DECELERATE=.3)),
    "clear":        (ACCELERATE, ACCELERATE, mix(ACCELERATE=.65, KEEP=.35), KEEP),
}
BLOCKED_PATHS = {(): {"STRAIGHT": 1.0}, ("left",): {"LEFT_CHANGE": 1.0}, ("right",): {"RIGHT_CHANGE": 1.0},
                 ("left", "right"): {"LEFT_CHANGE": .5, "RIGHT_CHANGE": .3, "STRAIGHT": .2}}   # the rest waits behind
EVENT_PATHS = {("wrong_way", "right"): {"RIGHT_CHANGE": 1.0}, ("door", "left"): {"LEFT_CHANGE": .7, "STRAIGHT": .3}}
NATURAL_SPEEDS = {"KEEP": .787, "ACCELERATE": .014, "DECELERATE": .009, "STOP": .19}     # Senna on nuScenes' val split
NATURAL_PATHS = {"STRAIGHT": .94, "LEFT_TURN": .02, "RIGHT_TURN": .02, "LEFT_CHANGE": .01, "RIGHT_CHANGE": .01}
BANDS = ("standing", "slow", "medium", "fast")


def label_distribution(scene: Scene) -> dict[Decision, float]:
    """q(plan | scene), exact, over all 20 plans: (1 - NOISE) * the expert's odds + NOISE * noise; sums to 1."""
    odds = plan_odds(scene)
    plans = [Decision(speed, path) for speed in SPEED_ACTIONS for path in PATH_ACTIONS]
    if scene.prior == "natural":
        return {plan: (1 - NOISE) * odds.get(plan, 0.0) + NOISE * NATURAL_SPEEDS[plan.speed] * NATURAL_PATHS[plan.path]
                for plan in plans}
    return {plan: (1 - NOISE) * odds.get(plan, 0.0) + NOISE / len(plans) for plan in plans}


def acceptable_plans(scene: Scene) -> tuple[Decision, ...]:
    """Every plan the expert would take, the most usual first; noise is not acceptable."""
    odds = plan_odds(scene)
    return tuple(sorted(odds, key=lambda plan: (-odds[plan], SPEED_ACTIONS.index(plan.speed))))


def draw_label(scene: Scene) -> Decision:
    """One draw of q with the scene's own randomness, so that a seed always has the same label."""
    return pick(random.Random(f"label {scene.seed}"), label_distribution(scene))


def plan_odds(scene: Scene) -> dict[Decision, float]:
    """The expert's odds without label noise."""
    paths = path_odds(scene)
    odds = {}
    for path, share in paths.items():
        speeds = SPEED_RULES[cause(scene, path)][BANDS.index(speed_band(scene.speed))]
        if len(paths) > 1:
            speeds = {max(speeds, key=speeds.get): 1.0}
        odds |= {Decision(speed, path): share * part for speed, part in speeds.items()}
    return odds


def path_odds(scene: Scene) -> dict[str, float]:
    """Which way to go: turn where the route does, leave a blocked lane, overtake, or prepare for the route's turn."""
    if scene.road == "junction_near" and scene.turn_100 != "straight" and scene.event != "blocked_turn":
        return {TURN[scene.turn_100]: 1.0}
    if must_wait(scene):
        return {"STRAIGHT": 1.0}
    free = free_sides(scene)
    if scene.blockage != "none":
        return BLOCKED_PATHS[tuple(free)]
    if scene.event in ("wrong_way", "door"):
        return event_paths(scene.event, free)
    wish = scene.turn_100 if scene.turn_100 != "straight" else scene.turn_200
    if wish in free and scene.road != "junction_near":
        certain = scene.turn_100 != "straight"
        return {CHANGE[wish]: 1.0} if certain else {CHANGE[wish]: .7, "STRAIGHT": .3}
    if may_overtake(scene) and free and wish == "straight":
        return {CHANGE[free[0]]: .7, "STRAIGHT": .3}
    return {"STRAIGHT": 1.0}


def event_paths(event: str, free: list[str]) -> dict[str, float]:
    """How to get out of the way, if that side is free."""
    return next((EVENT_PATHS[event, side] for side in free if (event, side) in EVENT_PATHS), {"STRAIGHT": 1.0})


def free_sides(scene: Scene) -> list[str]:
    return [side for side, lane in (("left", scene.left_lane), ("right", scene.right_lane)) if lane == "free"]


def must_wait(scene: Scene) -> bool:
    """Something right ahead forbids any manoeuvre."""
    return (scene.pedestrian == "crossing" or (scene.lead == "near" and scene.braking)
            or scene.event in ("animal", "ball", "ambulance", "cut_in")
            or (scene.road == "junction_near" and scene.light in ("red", "yellow") and scene.event != "waved_through"))


def may_overtake(scene: Scene) -> bool:
    junction = scene.road.startswith("junction")
    return scene.lead == "near" and not junction and speed_band(scene.speed) != "standing"


def cause(scene: Scene, path: str) -> str:
    """The most urgent thing the speed has to answer to when taking `path`: a key of SPEED_RULES."""
    return next((name for name, applies in causes(scene, path) if applies), "clear")


def causes(scene: Scene, path: str) -> list[tuple[str, bool]]:
    """Every cause, the most urgent first, with whether it applies."""
    near, far = scene.road == "junction_near", scene.road == "junction_far"
    changing, lead_near = path in CHANGE.values(), scene.lead == "near"
    return [
        ("crossing", scene.pedestrian == "crossing"),
        ("ambulance", scene.event == "ambulance"),
        ("animal", scene.event == "animal"),
        ("ball", scene.event == "ball"),
        ("wrong_way", scene.event == "wrong_way" and not changing),
        ("evade", scene.event == "wrong_way"),
        ("red_near", near and scene.light == "red" and scene.event != "waved_through"),
        ("waits", scene.blockage != "none" and not changing),
        ("brake_near", lead_near and scene.braking),
        ("yellow_near", near and scene.light == "yellow"),
        ("lead_near", lead_near and not changing),
        ("cut_in", scene.event == "cut_in"),
        ("light_off", scene.event == "light_off"),
        ("door", scene.event == "door"),
        ("kerb", scene.pedestrian == "kerb"),
        ("turn", near and path in TURN.values()),
        ("light_far", far and scene.light in ("red", "yellow")),
        ("dodge", scene.blockage != "none"),
        ("overtake", lead_near),
        ("curve", scene.road.startswith("curve")),
        ("brake_far", scene.lead == "far" and scene.braking),
        ("lead_far", scene.lead == "far"),
        ("prepare", changing),
    ]
