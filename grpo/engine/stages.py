"""The two stages: each builds what it trains and yields its steps to the loop (`follow` in loop.py)."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from data.dataset import prepared_ahead
from data.example import Example
from grpo.credit import Credit
from grpo.engine.distributed import Distributed, RankError, full_copy, renew, shard
from grpo.engine.examples import SPARE, note_skipped, take
from grpo.engine.guards import naming_the_culprit, save_batch
from grpo.engine.loop import Step, check_stop, follow, restore
from grpo.engine.optimizer import freeze_copy, make_optimizer, make_scheduler
from grpo.engine.prompts import encode_target, expert_branches
from grpo.engine.records import group_records, rollout_metrics
from grpo.engine.rewards import Scoring
from grpo.engine.run import Run
from grpo.engine.state import Trained, read_about
from grpo.fast import FAST
from grpo.fast.sampler import Sampler, sample_many
from grpo.groups import PromptBatch, RewardFn, ScoredBatch
from grpo.logprobs import PLAIN, Kernels
from grpo.sampling import PlainSampler
from grpo.sft import sft_step
from grpo.step import Learner, grpo_step
from models.fast.recomputed import use_recomputed
from models.prompt import Prompt, check_context
from models.value import ValueNetwork
from rewards import parse_plan

KERNELS = {"plain": PLAIN, "fast": FAST}


# ---------------------------------------------------------------- stage 1


def train_sft(run: Run) -> None:
    """Supervised warm-up; with --gate, further rounds of half the steps until validation reaches the gate."""
    config = run.config
    kernels = shard(run.world, run.dtype, run.policy, kernels=KERNELS[config.kernels])
    optimizer = make_optimizer(run.policy, config)          # after sharding: it holds this rank's shards
    first = run.about["steps"]
    extra = max(1, first // 2)
    done = 0 if run.resume is None else read_about(run.resume)["step"]
    rounds = (first + extra * i for i in range(config.gate_rounds + 1))
    ends = [end for end in rounds if end >= done] or [first]                    # beyond all rounds: `restore` refuses
    if config.gate and not run.validation:
        print("warning: --gate has no effect, because there are no validation examples", flush=True)
    state = None
    for end in ends:                                        # each round has its own schedule
        scheduler = make_scheduler(optimizer, config, first if end == first else extra)
        trained = Trained(run.policy, None, optimizer, scheduler)
        state = state or restore(run, trained)
        steps = sft_steps(run, trained, kernels, state.step, end)
        state = follow(run, trained, steps, state, end, partial(validate, run))
        if state.accuracy is None or state.accuracy >= config.gate:
            break
        if end < ends[-1]:
            check_stop(run, trained, state)
            print(f"validation {state.accuracy:.3f} is below the gate {config.gate}: {extra} more steps", flush=True)
    if state.accuracy is not None and state.accuracy < config.gate:
        print(f"warning: validation {state.accuracy:.3f} is still below the gate {config.gate}: GRPO may not improve "
              "this model", flush=True)


def sft_steps(run: Run, trained: Trained, kernels: Kernels, start: int, end: int) -> Iterator[Step]:
    """The updates after step number `start`, up to number `end`."""
    config = run.config

    def pair(example: Example) -> tuple[Prompt, torch.Tensor]:
        prompt, target = run.encode(example), encode_target(example, run.processor, run.settings)
        check_context(len(prompt.input_ids), len(target), run.policy.config, f"example {example.id}")
        return prompt, target

    def batch(step: int) -> tuple[list, list, list]:
        return take(run, pair, config.seed, step * config.batch_size, config.batch_size)

    ahead = run.world.each(prepared_ahead(batch, range(start, end)))
    for step, (examples, pairs, skipped) in enumerate(ahead, start + 1):
        note_skipped(run, step, skipped)
        names, (prompts, targets) = [example.id for example in examples], zip(*pairs, strict=True)
        prompts = run.with_features(names, prompts)
        metrics = sft_step(run.policy, trained.optimizer, trained.scheduler, prompts, targets, config, kernels,
                           run.world.total, run.world.even)
        yield metrics, [], partial(save_batch, run.output / "bad-batches", step, prompts, targets,
                                   {"ids": names, "metrics": metrics})


# ---------------------------------------------------------------- stage 2

def train_grpo(run: Run, reward_fn: RewardFn) -> None:
    """GRPO from the given model; the reference is a frozen copy of it."""
    steps = run.about["steps"]
    learner = make_learner(run, steps)                      # copies the reference before a state is loaded
    trained = Trained(run.policy, learner.value, learner.optimizer, learner.scheduler)
    state = restore(run, trained)
    follow(run, trained, grpo_steps(run, learner, reward_fn, state.step, steps), state, steps, partial(validate, run))


def grpo_steps(run: Run, learner: Learner, reward_fn: RewardFn, start: int, steps: int) -> Iterator[Step]:
    """Sample, score, compare, update: the steps after number `start`, up to number `steps`."""
    config, reward_fn = run.config, naming_the_culprit(reward_fn)

    def draw(step: int, attempt: int = 0) -> tuple[PromptBatch, list[dict]]:
        """A step's prompts; further attempts have a stream of their own, so a step number fixes its data."""
        size = config.prompts_per_step
        place = step if attempt == 0 else step * config.dynamic_sampling + attempt - 1
        examples, prompts, skipped = take(run, run.encode, config.seed + SPARE * (attempt > 0), place * size, size)
        numbers = [number + SPARE * (attempt > 0) for number in range(place * size, (place + 1) * size)]
        return PromptBatch(run.world.share(numbers), examples, prompts), skipped

    for step, ready in enumerate(run.world.each(prepared_ahead(draw, range(start, steps))), start):
        def drawn(attempt: int, step: int = step, ready: tuple = ready) -> PromptBatch:
            found, skipped = draw(step, attempt) if attempt else ready
            note_skipped(run, step + 1, skipped)
            return replace(found, prompts=run.with_features([e.id for e in found.examples], found.prompts))

        metrics, scored, credit = grpo_step(learner, drawn, reward_fn, config, step, step / max(1, steps - 1))
        metrics = over_ranks(run.world, metrics, scored, credit)
        if config.own_rewards:
            metrics["scoring_seconds"] = learner.each.take_seconds()
        groups = group_records(scored, credit, run.settings)
        yield metrics, groups, partial(save_batch, run.output / "bad-batches", step + 1, scored.prompts,
                                       scored.rollout.completions(),
                                       {"ids": [example.id for example in scored.examples], "groups": groups,
                                        "metrics": metrics})


def over_ranks(world: Distributed, metrics: dict, scored: ScoredBatch, credit: Credit) -> dict:
    """A step's metrics over all ranks: those of the update, which are summed already, and those of the groups.

    Raises: RankError if the rewards have other components on another rank; metrics are added by position."""
    sampled = rollout_metrics(scored, credit)
    names = dict.fromkeys(world.texts(", ".join(scored.components)))
    if len(names) > 1:
        raise RankError(f"the rewards of the processes have different components, {' and '.join(names)}; return the "
                        "same names for every example")
    return {**metrics, "logprob_gap": world.largest(metrics["logprob_gap"]), "redrawn": scored.redrawn,
            **world.mean(sampled, len(scored.prompts)), **world.total({"tokens": sampled["tokens"]})}


def make_learner(run: Run, steps: int) -> Learner:
    """Reference, value network, sampler, optimizer and schedule for the policy."""
    config = run.config
    value = ValueNetwork(run.policy, config.value_trunk == "own") if config.advantage == "gae" else None
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": run.dtype}[config.reference_dtype]
    reference = freeze_copy(run.policy, dtype) if config.needs_reference else None
    if reference is not None and config.kernels == "fast":
        use_recomputed(reference)
    kernels = shard(run.world, run.dtype, run.policy, value, reference, KERNELS[config.kernels])
    optimizer = make_optimizer(run.policy, config, value)   # after sharding: it holds this rank's shards
    return Learner(run.policy, reference, value, make_sampler(run, config.temperature), optimizer,
                   make_scheduler(optimizer, config, steps * config.updates_per_rollout),
                   experts=partial(expert_branches, processor=run.processor, reasoning=config.reasoning,
                                   answer=config.answer),
                   kernels=kernels, each=Scoring(config.reward_processes, run.world.on_all), total=run.world.total,
                   even=run.world.even)


def make_sampler(run: Run, temperature: float) -> Sampler | PlainSampler:
    """A sampler in the run's type of computation; with several processes it reads a full copy of the policy."""
    alone = run.world.size == 1
    if run.config.kernels == "plain":
        return PlainSampler(run.policy, run.processor, temperature, run.config.max_new_tokens, run.config.precision)
    return Sampler(run.policy if alone else full_copy(run.policy, run.dtype), run.processor, temperature,
                   run.config.max_new_tokens, dtype=run.dtype, decode=run.config.decode,
                   renew=None if alone else partial(renew, run.policy))


# ---------------------------------------------------------------- both

def validate(run: Run) -> float:
    """Greedy strict planning accuracy on the validation examples."""
    sampler = make_sampler(run, temperature=0.0)
    examples = run.world.share(run.validation)
    answers = run.world.on_all(lambda: list(sample_many(sampler, examples, run.encode, 1, run.config.seed,
                                                        run.config.eval_batch)))
    right = [parse_plan(rollout.texts[0], run.settings.actions) == example.decision for example, rollout in answers]
    found = run.world.total({"right": sum(right), "asked": len(right)})
    return found["right"] / found["asked"]
