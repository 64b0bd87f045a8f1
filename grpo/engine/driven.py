"""Driving with a trained decoder: `python eval.py --trajectories K`.

    drive_split      scenes of a split -> trajectories.jsonl and metrics.json beside the decoder
    drive_pictures   one picture, or every picture of a folder -> one JSON line each on standard output

Every line is a plan for a downstream controller: way-points (x forward, y left, in metres from the rear axle), 0.5 s
apart.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from data.example import Example, printable, views_record
from data.scenes.rollout import DRIVEN_PATHS, DRIVEN_SPEEDS
from evaluation.predictions import replace_lines
from evaluation.trajectories import FACTORS, trajectory_metrics, trajectory_summary
from grpo.engine.checkpoint import check_output, choose_device, default_model, prepare_output
from grpo.engine.conditions import Planner, check_planner, features_of, load_planner
from grpo.engine.flags import EvalConfig
from grpo.fast.sampler import Sampler, sample_many
from rewards import Decision, parse_plan
from storage import json_line, write_json
from trajectory.chain import STEPS, step_sigmas
from trajectory.demonstrations import reach
from trajectory.denoiser import LATENT, Decoder
from trajectory.explore import draw
from trajectory.files import load_decoder
from trajectory.kinematics import NO_PLAN, STEP, WAYPOINTS, Motion, names, plan_ids, waypoints
from trajectory.reward import driven
from trajectory.scenes import Scenes, demonstration, make_scenes
from trajectory.score import comfort, score, violations
from trajectory.step import chain_noise
from trajectory.written import to_car

RECORDED = ("decoder", "split", "prior", "plan", "seed", "eta", "noise_floor", "guidance", "best_of", "metre_noise")
SECONDS = [round(STEP * step, 1) for step in WAYPOINTS]


@dataclass(frozen=True)
class Driver:
    """A decoder with the planner that it is conditioned on, if any."""

    directory: Path
    decoder: Decoder
    about: dict
    planner: Planner | None


def default_decoder() -> str:
    """The built-in run's GRPO decoder, else its cloned one. Raises: ValueError that says what to run."""
    return default_model(("trajectory-grpo", "trajectory-bc"), "there is no trajectory decoder: run `python train.py "
                         "--stage trajectory-bc` (and `--stage trajectory-grpo`) first, or name one with --decoder")


def load_driver(config: EvalConfig) -> Driver:
    """The decoder, and its planner: --model if given, else the one that decoder.json names."""
    directory, device = Path(config.decoder), choose_device(config.device)
    decoder, about = load_decoder(directory)
    planner = None
    if about["condition"] == "planner":
        planner = load_planner(config.model or about["planner"], device, config.min_pixels, config.max_pixels)
        check_planner(about, planner)
    elif config.plan == "planner":
        raise ValueError(f"--plan planner: {directory} is conditioned on facts and has no planner; use none or expert")
    return Driver(directory, decoder.to(device).eval(), about, planner)


def told(config: EvalConfig, driver: Driver) -> EvalConfig:
    """The configuration with --plan auto resolved."""
    return replace(config, plan="none" if driver.planner is None else "planner") if config.plan == "auto" else config


# ---------------------------------------------------------------- a split

def drive_split(config: EvalConfig, examples: list[Example], faults: list[str]) -> None:
    """Drive every example; write trajectories.jsonl and metrics.json, print a summary. faults: of unusable records."""
    output, driver = config.scores, load_driver(config)
    check_output(output, config.overwrite, config.decoder, driver.about["planner"] or "", config.model, config.data,
                 config.image_root)
    config = told(config, driver)
    found = features_of(driver.planner, examples, config.batch_size, config.on_bad_data)
    faults = [*faults, *found.faults]
    if not found.places:
        raise ValueError(f"none of {len(examples)} examples can be driven; the first fault: {faults[0]}")
    examples = [examples[i] for i in found.places]
    demonstrated = all_demonstrated(config, examples)
    scenes = make_scenes(examples, found.values, driver.about["metre_noise"], config.seed, demonstrated)
    scenes = replace(scenes, plan=named_plans(driver, examples, config)).to(driver.decoder.head_weight.device)
    rows = list(drive_rows(driver, scenes, examples, found.places, config, demonstrated))
    metrics = {"decoder": str(driver.directory), **driver.about, "split": config.split,
               "prior": config.prior if config.data == "scenes" else None, "plan": config.plan,
               **{name: getattr(config, name) for name in ("eta", "noise_floor", "guidance", "best_of", "seed")},
               "skipped": len(faults), **trajectory_metrics(rows)}
    prepare_output(output, config.overwrite)
    write_json({"stage": "eval", **{name: metrics[name] for name in RECORDED}}, output / "config.json")
    if faults:
        replace_lines(output / "skipped.jsonl", [{"fault": fault} for fault in faults])
    replace_lines(output / "trajectories.jsonl", rows)
    write_json(metrics, output / "metrics.json")
    if faults:
        print(f"{len(faults)} examples cannot be used: they are listed in skipped.jsonl")
    print(f"{trajectory_summary(metrics)}\nwritten to {output}")


def all_demonstrated(config: EvalConfig, examples: list[Example]) -> bool:
    """Whether every example has a demonstration to measure distances to; a note says where some have none."""
    missing = 0 if config.data == "scenes" else sum(example.trajectory is None for example in examples)
    if missing:
        print(f"note: {missing} of {len(examples)} have no trajectory, so no distances are computed")
    return not missing


def named_plans(driver: Driver, examples: list[Example], config: EvalConfig) -> Tensor:
    """The plan that is named in each scene: none, the planner's greedy one, or the label. -> ids (P, 2)."""
    plans = [example.decision if config.plan == "expert" else None for example in examples]
    if config.plan == "planner":
        plans = planned(driver.planner, examples, config)
    return torch.tensor([NO_PLAN if plan is None else plan_ids(plan) for plan in plans])


def planned(planner: Planner, examples: list[Example], config: EvalConfig) -> list[Decision | None]:
    """The planner's greedy plans, None where an answer states none."""
    sampler = Sampler(planner.policy, planner.processor, 0.0, planner.settings.max_new_tokens)
    answers = sample_many(sampler, examples, planner.encode, 1, config.seed, config.batch_size)
    found = {example.id: parse_plan(rollout.texts[0]) for example, rollout in answers}
    return [found[example.id] for example in examples]


def drive_rows(driver: Driver, scenes: Scenes, examples: Sequence[Example], places: Sequence[int], config: EvalConfig,
               demonstrated: bool) -> Iterator[dict]:
    """Lines of trajectories.jsonl, a few hundred scenes at a time. places: in the data, which number the noise."""
    for index in torch.arange(len(examples)).split(max(1, 8192 // config.trajectories)):
        part, own = scenes.at(index), [examples[i] for i in index]
        drawn = chosen_latents(driver.decoder, part, [places[i] for i in index], config)
        greedy = latents(driver.decoder, part, torch.zeros(len(part), 1, STEPS + 1, LATENT), config)
        many, one = described(driver.decoder, drawn, part, config), described(driver.decoder, greedy, part, config)
        shown = described_motion(demonstration(part), part, config)
        for i, example in enumerate(own):
            yield {"id": example.id, "scene": example.scene, "image": example.image, **views_record(example),
                   "plan": plan_text(part.plan[i].tolist()), "truth": str(example.decision),
                   "acceptable": [str(plan) for plan in example.acceptable or ()] or None, "seconds": SECONDS,
                   "greedy": one[i][0], "trajectories": many[i],
                   "demonstration": shown[i][0] if demonstrated else None}


def chosen_latents(decoder: Decoder, scenes: Scenes, numbers: list[int], config: EvalConfig) -> Tensor:
    """K latents per scene: as drawn, or with --best-of N each the best of N by the score at nominal metres."""
    count, tries = config.trajectories, config.best_of
    found = latents(decoder, scenes, chain_noise(config.seed, 0, numbers, count * tries), config)
    if tries == 1:
        return found
    motion = driven(decoder, found, scenes.nominal)
    furthest = reach(scenes.nominal.to("cpu")).to(scenes.reach)                 # the true one is unknown
    value = score(motion, scenes.nominal, furthest, scenes.plan).reward.view(len(scenes), count, tries)
    place = value.argmax(-1, keepdim=True)[..., None].expand(-1, -1, -1, LATENT)
    return found.view(len(scenes), count, tries, LATENT).gather(2, place)[:, :, 0]


@torch.no_grad()
def latents(decoder: Decoder, scenes: Scenes, noise: Tensor, config: EvalConfig) -> Tensor:
    """Denoise with the noise of --eta and --noise-floor: (P, G, d)."""
    sigmas = step_sigmas(config.eta, config.noise_floor, torch.ones(len(scenes)))
    return draw(decoder, scenes, noise, sigmas, config.guidance).latents


@torch.no_grad()
def described(decoder: Decoder, z: Tensor, scenes: Scenes, config: EvalConfig) -> list[list[dict]]:
    """Every trajectory as JSON."""
    return described_motion(driven(decoder, z, scenes.field), scenes, config)


def described_motion(motion: Motion, scenes: Scenes, config: EvalConfig) -> list[list[dict]]:
    """Way-points, the plan that is driven, factors, violated limits of P x G motions.

    On a bend also `lane`: the way-points along the lane and to its left, by which the report draws."""
    lane, plans, broken = waypoints(motion), names(motion, scenes.field), violations(motion)
    points, bends, named = to_car(lane, scenes.field), scenes.field.road != 0, scenes.plan[:, 0] >= 0
    factors = {"comfort": comfort(motion)}                  # all that is known without boxes
    if config.data == "scenes" and not config.image:
        found = score(motion, scenes.field, scenes.reach, scenes.plan)
        factors = {name: getattr(found, name) for name in FACTORS}
    return [[{"waypoints": rounded(points[p, g]), **({"lane": rounded(lane[p, g])} if bends[p] else {}),
              "driven": plan_text(plans[p, g].tolist()),
              **{name: round(value[p, g].item(), 4) for name, value in factors.items()
                 if named[p] or name != "agreement"},
              "violations": [kind for kind, value in broken.items() if value[p, g]]}
             for g in range(points.shape[1])] for p in range(len(points))]


def plan_text(ids: Sequence[int]) -> str | None:
    """Ids of speed and path -> `KEEP, STRAIGHT`; None where no plan is named."""
    return None if tuple(ids) == NO_PLAN else f"{DRIVEN_SPEEDS[ids[0]]}, {DRIVEN_PATHS[ids[1]]}"


def rounded(points: Tensor) -> list[list[float]]:
    """(T, 2) in centimetres."""
    return [[round(value, 2) for value in point] for point in points.tolist()]


# ---------------------------------------------------------------- pictures without a label

def drive_pictures(config: EvalConfig, examples: list[Example]) -> None:
    """Print one JSON line per picture: the planner's plan and K trajectories."""
    driver = load_driver(config)
    config = told(config, driver)
    found = features_of(driver.planner, examples, config.batch_size, config.on_bad_data)
    for fault in found.faults:
        print(printable(f"skipped: {fault}"), file=sys.stderr)                  # on standard output stand JSON lines
    if not found.places:
        raise ValueError("none of the pictures can be used")
    examples = [examples[i] for i in found.places]
    scenes = make_scenes(examples, found.values, 0.0, config.seed, demonstrated=False)
    scenes = replace(scenes, plan=named_plans(driver, examples, config)).to(driver.decoder.head_weight.device)
    drawn = latents(driver.decoder, scenes, chain_noise(config.seed, 0, found.places, config.trajectories), config)
    rows = described(driver.decoder, drawn, scenes, config)
    for example, plan, trajectories in zip(examples, scenes.plan.tolist(), rows, strict=True):
        print(json_line({"image": example.image, **views_record(example), "speed": example.speed,
                         "plan": plan_text(plan), "seconds": SECONDS, "trajectories": trajectories}), end="")
