"""The two trajectory stages: what they are set up from, their steps for the loop, their validation.

    trajectory-bc     demonstrations -> a diffusion decoder, cloned
    trajectory-grpo   the cloned decoder -> sampled, driven and scored chains -> a better one
"""

import copy
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from data.dataset import data_sign, indices_at, open_images
from data.example import Example, printable
from grpo.credit import Credit
from grpo.engine.checkpoint import check_output, choose_device
from grpo.engine.conditions import Planner, about_condition, check_planner, features_of, load_planner
from grpo.engine.distributed import shard_networks
from grpo.engine.examples import SHOWN, load_data
from grpo.engine.flags import CloningFlags, DecoderFlags, TrajectoryFlags, places_read
from grpo.engine.guards import save_batch
from grpo.engine.loop import Step, check_stop, follow, restore
from grpo.engine.optimizer import make_optimizer, make_scheduler
from grpo.engine.records import mean_spread
from grpo.engine.run import Run
from grpo.engine.setup import commit, planned_steps, seed_generators
from grpo.engine.state import LoopState, Trained, fingerprint, read_about
from grpo.step import Learner
from storage import save_file
from trajectory.chain import STEPS, Chain, denoising_loss, step_sigmas
from trajectory.denoiser import LATENT, Decoder, initialise, new_decoder
from trajectory.explore import draw
from trajectory.files import load_decoder, save_decoder
from trajectory.kinematics import names, waypoints
from trajectory.latent import fit_latent
from trajectory.reward import driven, expert_reward, pdms_reward
from trajectory.scenes import Scenes, demonstration, make_scenes, safe_places, without_plan
from trajectory.step import ChainValue, chain_noise, chain_pass, clipped_share, cloning_step, trajectory_step
from trajectory.written import to_car

FEATURES = "features.safetensors"
LEVELS = 16                     # noise levels per validation demonstration
VALIDATION_SAMPLES = 4          # trajectories per validation scene
RANKED = 16                     # own trajectories per scene of which --ranked clones the best
CHUNK = 256                     # scenes for which they are drawn at once


@dataclass(frozen=True)
class Driving:
    """The scenes of a trajectory run as tensors."""

    training: Scenes
    validation: Scenes
    features: dict[str, Tensor]     # of both, as saved in OUTPUT/features.safetensors
    sign: str                       # what they were computed from


# ---------------------------------------------------------------- set-up

def prepare_driving(stage: str, config: CloningFlags | TrajectoryFlags,
                    resume: Path | None = None) -> tuple[Run, Driving]:
    """Read the data, compute or load the features, make or load the decoder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_generators(config.seed)
    device = choose_device(config.device)
    decoder, about, planner = source(stage, config, device)
    if resume is None:                                      # only the decoder's file may name the planner
        check_output(config.output, config.overwrite, *places_read(config), about["planner"] or "")
    examples, validation, left_out = load_data(config)
    sign = " ".join(map(str, (about["planner_sign"], config.min_pixels, config.max_pixels, config.on_bad_data,
                              data_sign(examples), data_sign(validation))))
    kept = None if resume is None else kept_features(Path(config.output, FEATURES), sign)
    features, faults = (kept, []) if kept else compute_features(config, planner, examples, validation)
    examples, validation = ([part[i] for i in features[f"{name}_places"].tolist()]
                            for name, part in (("training", examples), ("validation", validation)))
    training = make_scenes(examples, features["training"], config.metre_noise, config.seed)
    val = (make_scenes(validation, features["validation"], config.metre_noise, config.seed) if validation else
           training.at(torch.zeros(0, dtype=torch.long)))
    if decoder is None:
        training, examples = to_imitate(training, examples, config, planner)
        decoder = new_decoder(features["training"].shape[1], fit_latent(training.controls, LATENT),
                              features["training"], config.seed)
    print(f"{sum(p.numel() for p in decoder.parameters()):,} parameters on {device}; {len(examples)} training scenes, "
          f"{len(validation)} for validation; condition: {about['condition']}", flush=True)
    facts = {"stage": stage, "config": dataclasses.asdict(config), "model": fingerprint(decoder.state_dict()),
             "data": data_sign(examples), "val-data": data_sign(validation),
             "steps": planned_steps(config, len(examples)), "commit": commit(), "torch": torch.__version__}

    def write(model: Decoder, more: dict, directory: Path) -> None:
        save_decoder(model, {**about, **more, "metre_noise": config.metre_noise}, directory)

    run = Run(config, decoder.to(device).train(), None, None, open_images, examples, validation, Path(config.output),
              write, partial(decoder_of, decoder), about=facts, left_out=(*left_out, *faults))
    return run, Driving(training.to(device), val.to(device), features, sign)


def to_imitate(training: Scenes, examples: list[Example], config: CloningFlags,
               planner: Planner | None) -> tuple[Scenes, list[Example]]:
    """What cloning imitates: the demonstrations, or with --ranked a decoder's best trajectories; all or the safe."""
    training = best_of_own(training, config, planner) if config.ranked else training
    if config.demonstrations != "safe":
        return training, examples
    kept = safe_places(training)
    print(f"{len(kept)} of {len(examples)} demonstrations are safe and kept", flush=True)
    return training.at(kept), [examples[i] for i in kept.tolist()]


def source(stage: str, config: DecoderFlags, device: str) -> tuple[Decoder | None, dict, Planner | None]:
    """The decoder to go on from (none for cloning), what it is conditioned on, and the planner if that is one."""
    if stage == "trajectory-bc":
        planner = None if config.condition == "facts" else load_planner(config.model, device, config.min_pixels,
                                                                        config.max_pixels)
        return None, about_condition(config.condition, planner), planner
    decoder, about = load_decoder(config.model)
    kept = {name: about[name] for name in ("condition", "planner", "planner_sign")}
    if about["condition"] == "facts":
        return decoder, kept, None
    planner = load_planner(config.planner or about["planner"], device, config.min_pixels, config.max_pixels)
    check_planner(about, planner)
    return decoder, {**kept, "planner": planner.directory}, planner


def compute_features(config: DecoderFlags, planner: Planner | None, examples: list[Example],
                     validation: list[Example]) -> tuple[dict[str, Tensor], list[str]]:
    """The features of the scenes that can be used, the places of these, and the faults of the others."""
    features, faults = {}, []
    for name, part in (("training", examples), ("validation", validation)):
        found = features_of(planner, part, config.eval_batch, config.on_bad_data)
        features |= {name: found.values, f"{name}_places": torch.tensor(found.places, dtype=torch.long)}
        faults += found.faults
    for fault in faults[:SHOWN]:
        print(f"left out: {printable(fault)}", flush=True)
    if faults:
        print(f"warning: {len(faults)} of {len(examples) + len(validation)} examples cannot be used: they are left out "
              "and listed in skipped.jsonl", flush=True)
    if not len(features["training"]):
        raise ValueError(f"none of {len(examples)} training examples can be used; the first fault: {faults[0]}")
    return features, faults


def kept_features(file: Path, sign: str) -> dict[str, Tensor] | None:
    """The features of an interrupted run, because they take minutes; None if they are not of this planner and data."""
    try:
        with safe_open(file, "pt") as kept:
            same = (kept.metadata() or {}).get("sign") == sign
        return load_file(file) if same else None
    except (OSError, SafetensorError):
        return None


def best_of_own(scenes: Scenes, config: CloningFlags, planner: Planner | None) -> Scenes:
    """The scenes with the best of 16 of --ranked's trajectories as demonstrations, and the plans that those drive.

    Raises: ValueError if that decoder has another condition."""
    decoder, about = load_decoder(config.ranked)
    if about["condition"] != config.condition:
        raise ValueError(f"--ranked {config.ranked} is conditioned on {about['condition']}, this run on "
                         f"{config.condition}; use the same --condition")
    if planner is not None:
        check_planner(about, planner)
    found = []
    for index in torch.arange(len(scenes)).split(CHUNK):
        part = without_plan(scenes.at(index), torch.zeros(len(index), dtype=torch.bool))
        drawn = draw(decoder, part, chain_noise(0, 0, index.tolist(), RANKED),
                     step_sigmas(0.0, 0.0, torch.ones(len(part)))).latents
        best = pdms_reward(decoder, drawn, part)["score"].argmax(1)
        found.append(decoder.latent.decode(drawn[torch.arange(len(part)), best]))
    ranked = replace(scenes, controls=torch.cat(found))
    print(f"demonstrations: the best of {RANKED} trajectories of the decoder after step {about['step']}", flush=True)
    return replace(ranked, plan=names(demonstration(ranked), ranked.field)[:, 0])


def restore_driving(run: Run, driving: Driving, trained: Trained) -> LoopState:
    """`restore`; then the features are kept for a resumed run. A resume that is refused has changed nothing."""
    state = restore(run, trained)
    run.world.on_rank0(lambda: keep_features(run, driving))
    return state


def keep_features(run: Run, driving: Driving) -> None:
    """Write the features, whole or not at all."""
    unfinished = run.output / f"{FEATURES}.tmp"
    save_file(driving.features, unfinished, {"sign": driving.sign})
    os.replace(unfinished, run.output / FEATURES)


def decoder_of(like: Decoder, tensors: dict[str, Tensor]) -> Decoder:
    """A decoder of these tensors; no random number is drawn for it."""
    with torch.device("meta"):
        decoder = Decoder(len(like.feature_mean), len(like.latent.mean))
    decoder.load_state_dict(tensors, assign=True)
    return decoder


# ---------------------------------------------------------------- behaviour cloning

def train_cloning(run: Run, driving: Driving) -> None:
    """Clone the demonstrations, in rounds until one of them hardly lowers the validation loss."""
    config, decoder = run.config, run.policy
    shard_networks(run.world, decoder.denoiser)
    optimizer = make_optimizer(decoder, config)             # after sharding: it holds this rank's shards
    first = run.about["steps"]
    extra = max(1, first // 2)
    ends = [first + extra * i for i in range(config.rounds + 1)]
    done = 0 if run.resume is None else read_about(run.resume)["step"]
    state = None
    for end in [end for end in ends if end >= done] or [first]:                 # each round has its own schedule
        scheduler = make_scheduler(optimizer, config, first if end == first else extra)
        trained = Trained(decoder, None, optimizer, scheduler)
        state = state or restore_driving(run, driving, trained)
        if state.step in (0, *ends[:-1]) and state.step < end:                  # the round begins
            state = replace(state, round_best=state.best)
        before = state.round_best
        state = follow(run, trained, cloning_steps(run, driving, trained, state.step, end), state, end,
                       partial(cloning_score, run, driving))
        if state.accuracy is None or (end > first and gain(before, state.best) < config.round_gain):
            return
        if end < ends[-1]:
            check_stop(run, trained, state)
            print(f"{extra} more steps, until they lower the validation loss by less than {config.round_gain:.0%}",
                  flush=True)


def gain(before: float, after: float) -> float:
    """Share by which a round has lowered the validation loss; scores are exp(-loss)."""
    return 1 - math.log(after) / math.log(before) if before > 0 else 1.0


def cloning_steps(run: Run, driving: Driving, trained: Trained, start: int, end: int) -> Iterator[Step]:
    """The updates after step number `start`, up to number `end`."""
    config, count = run.config, len(driving.training)
    for step in range(start, end):
        index, draws = cloning_draws(config, count, step)
        share, device = run.world.share, driving.training.speed.device
        scenes = without_plan(driving.training.at(share(index)), share(draws.pop("named")).to(device))
        metrics = cloning_step(run.policy, trained.optimizer, trained.scheduler, scenes, config,
                               {name: share(values).to(device) for name, values in draws.items()}, run.world.total)
        yield metrics, [], partial(note_batch, run, step + 1, index, metrics)


def cloning_draws(config: CloningFlags, count: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Places of a step's demonstrations, their noise levels, noise, and whether their plan is named."""
    generator = torch.Generator().manual_seed((config.seed << 32) + step)
    size = config.batch_size
    return (torch.tensor(indices_at(count, config.seed, step * size, size)),
            {"level": torch.rand(size, generator=generator), "noise": torch.randn(size, LATENT, generator=generator),
             "named": torch.rand(size, generator=generator) < config.plan_share})


@torch.no_grad()
def cloning_score(run: Run, driving: Driving) -> float:
    """exp(-loss) on the validation demonstrations at fixed noise, half of them with their plan."""
    count, device = len(driving.validation), driving.validation.speed.device
    generator = torch.Generator().manual_seed(run.config.seed)
    scenes = without_plan(driving.validation, torch.arange(count, device=device) % 2 == 0)
    condition, expert = run.policy.condition(scenes.features, scenes.speed, scenes.plan), scenes.latents(run.policy)
    total = 0.0
    for i in range(LEVELS):
        level = (i + torch.rand(count, generator=generator)) / LEVELS
        noise = torch.randn(count, LATENT, generator=generator)
        total += denoising_loss(run.policy, condition, expert, level.to(device), noise.to(device)).mean().item()
    return torch.tensor(-total / LEVELS).exp().item()


# ---------------------------------------------------------------- GRPO on the chain

def train_trajectories(run: Run, driving: Driving) -> None:
    """GRPO on the chains of the given decoder; the reference is a frozen copy of it."""
    steps = run.about["steps"]
    learner = make_learner(run, steps)                      # copies the reference before a state is loaded
    trained = Trained(run.policy, learner.value, learner.optimizer, learner.scheduler)
    state = restore_driving(run, driving, trained)
    follow(run, trained, trajectory_steps(run, driving, learner, state.step, steps), state, steps,
           partial(driving_score, run, driving))


def make_learner(run: Run, steps: int) -> Learner:
    """Reference, value network, sampler, optimizer and schedule for the decoder."""
    config, decoder = run.config, run.policy
    value = None
    if config.advantage == "gae":
        value = ChainValue(len(decoder.feature_mean)).to(decoder.head_weight.device)
        initialise(value, config.seed + 1)
    reference = copy.deepcopy(decoder).requires_grad_(False) if config.needs_reference else None
    shard_networks(run.world, decoder.denoiser, value)
    optimizer = make_optimizer(decoder, config, value)      # after sharding: it holds this rank's shards
    chains = config.prompts_per_step * config.group_size
    clipped = {f"clipped_{i + 1}": (0.0, partial(clipped_share, step=i, config=config, chains=chains))
               for i in range(STEPS)} if config.updates_per_rollout > 1 else {}
    sampler = partial(draw, decoder, pulls=config.guidance, reduce=config.ratio_reduce)
    return Learner(decoder, reference, value, sampler, optimizer,
                   make_scheduler(optimizer, config, steps * config.updates_per_rollout), clipped,
                   total=run.world.total, forward=chain_pass)


def trajectory_steps(run: Run, driving: Driving, learner: Learner, start: int, steps: int) -> Iterator[Step]:
    """Sample, drive, score, compare, improve: the steps after number `start`, up to number `steps`."""
    config, count, size = run.config, len(driving.training), run.config.prompts_per_step
    reward = partial(pdms_reward if run.config.data == "scenes" else expert_reward, run.policy)
    for step in range(start, steps):
        index = torch.tensor(indices_at(count, config.seed, step * size, size))
        named = torch.rand(size, generator=torch.Generator().manual_seed((config.seed << 32) + step))
        share, device = run.world.share, driving.training.speed.device
        scenes = without_plan(driving.training.at(share(index)), (share(named) < config.plan_share).to(device))
        numbers = share(range(step * size, (step + 1) * size))
        metrics, chain, components, credit = trajectory_step(learner, scenes, numbers, reward, config, step,
                                                             step / max(1, steps - 1))
        metrics = over_ranks(run, metrics, components, credit)
        examples = [run.examples[i] for i in share(index).tolist()]
        groups = driving_records(run, scenes, examples, chain, components, credit)
        yield metrics, groups, partial(note_batch, run, step + 1, index, metrics)


def over_ranks(run: Run, metrics: dict, components: dict[str, Tensor], credit: Credit) -> dict:
    """A step's metrics over all ranks: those of the update, which are summed already, and those of the groups."""
    rewards = credit.rewards
    own = {"reward": rewards.mean().item(), "reward_std": mean_spread(rewards),
           **{f"reward_{name}": values.mean().item() for name, values in components.items() if name != "score"},
           "flat_groups": credit.flat.float().mean().item(), "accepted": metrics.pop("accepted")}
    del metrics["entropy"]                                  # it follows from the sigmas alone
    return {**metrics, "logprob_gap": run.world.largest(metrics["logprob_gap"]),
            **run.world.mean(own, len(rewards)), **run.world.total({"tokens": rewards.numel() * STEPS})}


def driving_records(run: Run, scenes: Scenes, examples: Sequence[Example], chain: Chain, components: dict[str, Tensor],
                    credit: Credit) -> list[dict]:
    """A few groups for samples.jsonl: way-points in the car's frame (m, 0.5 s apart), their scores and advantages."""
    few = min(4, len(examples))
    part = torch.arange(few)
    field = scenes.at(part).field
    points = to_car(waypoints(driven(run.policy, chain.latents[:few], field)), field)       # (few, G, 8, 2)
    advantages = credit.advantages.view(len(examples), -1, *credit.advantages.shape[1:])
    return [{"id": example.id, "scene": example.scene, "plan": scenes.plan[i].tolist(),
             "waypoints": [[[round(x, 2) for x in point] for point in points_] for points_ in points[i].tolist()],
             "rewards": credit.rewards[i].tolist(),
             "components": {name: values[i].tolist() for name, values in components.items()},
             "advantages": advantages[i].tolist()} for i, example in enumerate(examples[:few])]


@torch.no_grad()
def driving_score(run: Run, driving: Driving) -> float:
    """Mean score of a few deterministic trajectories per validation scene, without a named plan."""
    built_in = run.config.data == "scenes" and all(example.scene is not None for example in run.validation)
    reward = pdms_reward if built_in else expert_reward
    count = len(driving.validation)
    named = torch.zeros(count, dtype=torch.bool, device=driving.validation.speed.device)
    scenes = without_plan(driving.validation, named)
    noise = chain_noise(run.config.seed, 0, range(count), VALIDATION_SAMPLES)
    found = draw(run.policy, scenes, noise, step_sigmas(0.0, 0.0, torch.ones(count)))
    return reward(run.policy, found.latents, scenes)["score"].mean().item()


def note_batch(run: Run, step: int, index: Tensor, metrics: dict) -> None:
    """Save the ids of the examples of a step whose loss or gradient is not finite."""
    save_batch(run.output / "bad-batches", step, [], [],
               {"ids": [run.examples[i].id for i in index.tolist()], "metrics": metrics})
