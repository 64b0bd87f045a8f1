"""What highway-env (Farama) pays for a plan: the reward `benchmarks/highway_reward.py:driven` of benchmarks/highway.py.

The return of an action is what the environment pays in five seconds if the car idles after the action. A plan is two
words, and the environment knows five of the nine pairs. The other four, and texts without one plan, do nothing there:
their return is 0, the least that the environment pays.
"""

import copy
import functools
from collections.abc import Sequence

WORLD = {"lanes_count": 3, "vehicles_count": 10, "vehicles_density": 1.3, "duration": 1000, "screen_width": 224,
         "screen_height": 56, "scaling": 2.5, "observation": {"type": "AttributesObservation", "attributes": ["time"]}}
ACTIONS = {"KEEP, LEFT": 0, "KEEP, STRAIGHT": 1, "KEEP, RIGHT": 2, "FASTER, STRAIGHT": 3, "SLOWER, STRAIGHT": 4}
IDLE = ACTIONS["KEEP, STRAIGHT"]
SECONDS, DISCOUNT = 5, 0.9              # of a return: one action and one reward per second


def new_world(world: int, past: Sequence[int] = ()) -> object:
    """The environment after the actions of its past. It depends on nothing else."""
    import gymnasium
    import highway_env  # noqa: F401  registers the environment
    env = gymnasium.make("highway-fast-v0", render_mode="rgb_array", config=WORLD).unwrapped
    env.reset(seed=world)
    for action in past:
        env.step(action)
    return env


def action_return(env: object, action: int) -> float:
    """Discounted mean of the rewards in [0, 1] of an action and of idling after it; 0 after a crash. env stays as is.

        sum_t DISCOUNT^t r_t / sum_t DISCOUNT^t,    t = 0 .. SECONDS - 1
    """
    env, total = copy.deepcopy(env), 0.0
    for second in range(SECONDS):
        _, reward, crashed, _, _ = env.step(action if second == 0 else IDLE)
        total += DISCOUNT**second * float(reward)
        if crashed:
            break
    return total * (1 - DISCOUNT) / (1 - DISCOUNT**SECONDS)


scene = functools.lru_cache(32)(new_world)


@functools.lru_cache(None)
def driven_return(world: int, past: tuple[int, ...], action: int) -> float:
    """The return of an action in a scene, by stepping the environment."""
    return action_return(scene(world, past), action)


def driven(example, completions, plans):  # noqa: ANN001, ANN201  as in docs/own.md
    """The reward: what the environment pays for each plan."""
    world, past = example.extra["world"], tuple(example.extra["past"])
    chosen = [ACTIONS.get(str(plan)) for plan in plans]
    return [{"driven": 0.0 if action is None else driven_return(world, past, action)} for action in chosen]
