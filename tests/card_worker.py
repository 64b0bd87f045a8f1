"""The process of test_card.py, because the pretend card stays for as long as a process lives.

    python tests/card_worker.py FOLDER        FOLDER holds a policy; the findings are printed as JSON
"""

import contextlib
import json
import sys
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

import eval as evaluation  # noqa: E402
import train  # noqa: E402
from data.dataset import open_image  # noqa: E402
from data.scenes import scene_examples  # noqa: E402
from grpo.engine import setup  # noqa: E402
from grpo.engine.checkpoint import load_policy  # noqa: E402
from grpo.engine.features import FeatureCache  # noqa: E402
from grpo.engine.flags import GRPOFlags, SFTFlags  # noqa: E402
from grpo.engine.optimizer import freeze_copy, make_optimizer, make_scheduler  # noqa: E402
from grpo.engine.prompts import encode_example, encode_target, expert_branches  # noqa: E402
from grpo.fast import FAST, copies  # noqa: E402
from grpo.fast.sampler import Sampler  # noqa: E402
from grpo.groups import PromptBatch  # noqa: E402
from grpo.logprobs import PLAIN  # noqa: E402
from grpo.sampling import PlainSampler, uniform_table  # noqa: E402
from grpo.sft import sft_step  # noqa: E402
from grpo.step import Learner, grpo_step  # noqa: E402
from models.fast.recomputed import use_recomputed  # noqa: E402
from models.lora import add_lora  # noqa: E402
from models.value import ValueNetwork  # noqa: E402
from tests import card  # noqa: E402

COMMON = dict(prompt_style="compact", max_new_tokens=20, warmup_steps=0, learning_rate=1e-3, micro_batch_tokens=1)
CASES = {                                                   # micro_batch_tokens 1: a micro-batch for each of 3 prompts
    "sft": {}, "sft checkpointed": dict(gradient_checkpointing=True),
    "grpo": dict(beta=0.1), "ppo": dict(advantage="gae", variant="ppo", reward_kl=0.05, beta=0.0),
    "two updates": dict(beta=0.1, updates_per_rollout=2, target_kl=1e9),
    "cloning": dict(bc_coef=0.5, variant="dapo", beta=0.0, ent_coef=0.01, importance_cap=2.0),
    "lora": dict(beta=0.1, lora_rank=2, freeze_vision=True),
    "checkpointed": dict(beta=0.1, gradient_checkpointing=True),
    "plain": dict(beta=0.1, kernels="plain"), "bf16": dict(beta=0.1, precision="bf16")}


def reward(example, completions):
    return [{"speed": 0.1 * len(text), "path": 0.01 * sum(map(ord, text)) % 1, "format": 0.0} for text in completions]


def step(folder, device, name, count=3):
    """One step of a case -> its metrics, and where it waited."""
    make = SFTFlags if name.startswith("sft") else GRPOFlags
    config = make(**COMMON, **CASES[name], **({} if make is SFTFlags else {"group_size": 3}))
    policy, processor, settings = load_policy(folder / "policy", torch.float32, device)
    use_recomputed(policy)
    if config.lora_rank:
        add_lora(policy, config.lora_rank, 8.0, ["q_proj", "down_proj"], torch.Generator().manual_seed(0))
    policy.visual.requires_grad_(not config.freeze_vision)
    policy.model.gradient_checkpointing = policy.visual.gradient_checkpointing = config.gradient_checkpointing
    examples = scene_examples("rl", count)
    prompts = [encode_example(e, open_image(e), processor, policy.config, settings) for e in examples]
    if config.freeze_vision:
        prompts = FeatureCache(policy, "fp32", 2**20)([e.id for e in examples], prompts)
    value = ValueNetwork(policy, own_trunk=True) if getattr(config, "advantage", "") == "gae" else None
    if value:
        nn.init.constant_(value.head.weight, 0.05)
    optimizer = make_optimizer(policy, config, value)
    scheduler, kernels = make_scheduler(optimizer, config, 100), PLAIN if config.kernels == "plain" else FAST
    if make is SFTFlags:
        targets = [encode_target(example, processor, settings) for example in examples]
        card.events()
        metrics = sft_step(policy, optimizer, scheduler, prompts, targets, config, kernels)
        return metrics, card.waits()
    dtype = torch.bfloat16 if config.precision == "bf16" else None
    sampler = PlainSampler(policy, processor, 1.0, config.max_new_tokens) if config.kernels == "plain" else Sampler(
        policy, processor, 1.0, config.max_new_tokens, dtype=dtype)
    learner = Learner(policy, freeze_copy(policy) if config.needs_reference else None, value, sampler, optimizer,
                      scheduler, experts=partial(expert_branches, processor=processor, reasoning=config.reasoning),
                      kernels=kernels)
    card.events()
    batch = PromptBatch(range(count), examples, prompts)
    metrics, scored, _ = grpo_step(learner, lambda attempt: batch, reward, config, 0)
    return {**metrics, "texts": scored.rollout.texts}, card.waits()


RUN = ["--scenes", "6", "--eval-examples", "2", "--max-new-tokens", "8", "--prompt-style", "compact", "--steps", "2",
       "--learning-rate", "1e-3", "--save-every", "1", "--keep", "9", "--freeze-vision", "--lora-rank", "2"]
RUNS = {"sft": ["--stage", "sft", "--batch-size", "2"],
        "grpo": ["--stage", "grpo", "--group-size", "3", "--prompts-per-step", "2", "--beta", "0.1"]}


def whole_run(folder, stage):
    """Train, then repeat the second step from the state before it, then evaluate -> metrics, and the exchanges."""
    output, flags = folder / stage, [*RUNS[stage], *RUN, "--model", str(folder / "policy")]
    train.main([*flags, "--output", str(output)])
    first = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    train.main([*flags, "--output", str(output), "--resume", str(output / "state" / "step-00000001")])
    again = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    evaluation.main(["--model", str(output / "model"), "--limit", "3", "--samples", "2"])
    return first, again


def graphs(folder):
    """Texts of an eager sampler and of one with a graph: two batches of one shape, weights that change between them."""
    found = {}
    for tokens in (20, 3, 2, 1):
        policy, processor, settings = load_policy(folder / "policy", torch.float32, "card")
        prompts = [encode_example(e, open_image(e), processor, policy.config, settings)
                   for e in scene_examples("rl", 4)]
        noise = uniform_table(0, 0, range(2), 3, tokens)
        with card.capturing():
            eager, graph = (Sampler(policy, processor, 1.0, tokens, decode=mode) for mode in ("eager", "graph"))
            for part in (slice(2), slice(2, 4)):
                found.setdefault(str(tokens), []).append([s.sample(prompts[part], noise).texts for s in (eager, graph)])
                with torch.no_grad():
                    policy.model.layers[0].mlp.down_proj.weight.mul_(-3)
    return found


def card_itself():
    """What the card refuses and counts, each once."""
    there, mask, found = torch.arange(3.0).to("card"), torch.tensor([True, False, True]).to("card"), {}
    actions = {
        "item": lambda: there[0].item(), "if": lambda: bool(there[0] > 0), "list": lambda: there.tolist(),
        "back": lambda: there.cpu(), "mask": lambda: there[mask], "in": lambda: torch.ones(3).to("card"),
        "new": lambda: torch.tensor([1, 2], device="card"), "into": lambda: there.copy_(torch.ones(3)),
        "out": lambda: torch.ones(3).copy_(there),
        "sent": lambda: torch.ones(3).to("card", non_blocking=True), "none": lambda: (there * 2 + there.sum()) ** 0.5,
        "mixed": lambda: there + torch.ones(3), "mixed again": lambda: torch.cat([there, torch.ones(3)]),
        "number": lambda: there * torch.tensor(2.0)}
    for name, action in actions.items():
        card.events()
        try:
            action()
            found[name] = [event.kind for event in card.events()]
        except RuntimeError as fault:
            found[name] = str(fault)
    return {**found, **captures(there)}


def captures(there):
    """What a captured graph refuses, and what it freezes."""
    found, number = {}, 1.0
    for name, action in {"item": lambda: there[0].item(), "copy": lambda: torch.ones(3).to("card")}.items():
        try:
            with card.capture(card.Graph()):
                action()
        except RuntimeError as fault:
            found[f"{name} in a graph"] = str(fault)
    graph, short_lived, total = card.Graph(), torch.ones(3).to("card"), torch.zeros(3).to("card")
    with card.capture(graph):
        total.add_(short_lived * number)
    number = 5.0
    graph.replay()
    found["replayed"] = total.tolist()                      # 1 of the capture and 1, not 5, of the replay
    del short_lived
    try:
        graph.replay()
    except RuntimeError as fault:
        found["freed"] = str(fault)
    return found


def main(folder):
    torch.set_num_threads(1)
    found = {"itself": card_itself(), "steps": {}, "runs": {}}
    for name in CASES:
        ours, where = step(folder, "card", name)
        with mock.patch.object(copies, "can_pack", lambda *_: False):          # packed bf16 layers round elsewhere
            found["steps"][name] = {"card": ours, "cpu": step(folder, "cpu", name)[0], "waits": where}
    found["graphs"] = graphs(folder)
    with contextlib.redirect_stdout(sys.stderr), mock.patch.object(setup, "choose_device", lambda name: "card"), \
            mock.patch.object(evaluation, "choose_device", lambda name: "card"), \
            mock.patch.object(train, "print_plan", lambda *_: 0), \
            mock.patch.object(train, "make_reward_fn", lambda *_: reward):
        for stage in RUNS:
            found["runs"][stage] = whole_run(folder, stage)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
