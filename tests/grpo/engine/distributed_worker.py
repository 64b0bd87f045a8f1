"""One process of test_distributed.py: takes every case's step and writes down what came of it, then trains as told.

    python tests/grpo/distributed_worker.py FOLDER [flags of train.py]     with the variables that torchrun sets

FOLDER holds two policies, `policy` and `reference`; results go to FOLDER/<size>-<rank>.json and <size>.safetensors.
FOLDER/runs-<size>.json, if it is there, lists runs: flags, the step after which the last process gets a signal, the
step at which the disk is full. The training with the flags given joins and departs by itself.
"""

import contextlib
import io
import json
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

import train
from data.dataset import open_image
from data.scenes import scene_examples
from grpo.credit import whiten
from grpo.engine import loop, stages, state
from grpo.engine.checkpoint import load_policy
from grpo.engine.distributed import depart, full_copy, full_tensor, join, renew, shard
from grpo.engine.features import FeatureCache
from grpo.engine.flags import GRPOFlags, SFTFlags
from grpo.engine.optimizer import freeze_copy, make_scheduler
from grpo.engine.prompts import PromptSettings, encode_example, encode_target, expert_branches
from grpo.engine.records import group_records
from grpo.fast import FAST
from grpo.fast.sampler import Sampler
from grpo.groups import PromptBatch
from grpo.losses import group_advantages
from grpo.sft import sft_step
from grpo.step import Learner, grpo_step
from models.lora import add_lora
from models.value import ValueNetwork

THREE = ("grpo", "gae", "lora", "sft")               # enough for three processes
EXAMPLES = 5                                                 # 3 + 2 on two processes, 2 + 2 + 1 on three
CASES = {                                                    # micro_batch_tokens 1: as many micro-batches as prompts
    "grpo": dict(beta=0.1, micro_batch_tokens=1, updates_per_rollout=2, learning_rate=1e-3),
    "dapo": dict(variant="dapo", beta=0, ent_coef=0.01, bc_coef=0.5, mask_truncated=True, micro_batch_tokens=1),
    "batch": dict(scale_rewards="batch", beta=0, micro_batch_tokens=1),
    "gae": dict(advantage="gae", variant="ppo", reward_kl=0.05, beta=0, micro_batch_tokens=1),
    "shared": dict(advantage="gae", value_trunk="shared", variant="dr_grpo", beta=0, gradient_checkpointing=True,
                   whiten_advantages=False),
    "lora": dict(lora_rank=4, beta=0.1, micro_batch_tokens=1),
    "frozen": dict(freeze_vision=True, beta=0, micro_batch_tokens=1),
    "bf16": dict(precision="bf16", beta=0.1),
}


class Noted(torch.optim.SGD):
    """Keeps the gradients that the last step was taken with."""

    def step(self, closure=None):
        self.noted = [full_tensor(p.grad).clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def reward(example, completions):
    return [{"speed": 0.1 * len(text), "path": 0.01 * sum(map(ord, text)) % 1, "format": 0.0} for text in completions]


class Case:
    """A learner on this process's share of five scenes."""

    def __init__(self, folder, world, config, weights=None):
        self.config = config
        self.policy, processor, settings = load_policy(folder / "policy", torch.float32, "cpu")
        self.policy.load_state_dict(weights or self.policy.state_dict())
        other = load_policy(folder / "reference", torch.float32, "cpu")[0]
        self.examples = scene_examples("rl", EXAMPLES)
        prompts = [encode_example(e, open_image(e), processor, self.policy.config, settings) for e in self.examples]
        if config.lora_rank:
            add_lora(self.policy, config.lora_rank, 8.0, ["q_proj", "down_proj"], torch.Generator().manual_seed(0))
            for name, parameter in self.policy.named_parameters():
                if name.endswith("lora_B"):
                    nn.init.constant_(parameter, 0.02)       # 0 would leave A without a gradient
        if config.freeze_vision:
            self.policy.visual.requires_grad_(False)
            prompts = FeatureCache(self.policy, "fp32", 2**20)([e.id for e in self.examples], prompts)
        self.policy.model.gradient_checkpointing = config.gradient_checkpointing
        self.value = ValueNetwork(self.policy, config.value_trunk == "own") if config.advantage == "gae" else None
        if self.value:
            nn.init.constant_(self.value.head.weight, 0.05)
        reference = freeze_copy(self.policy if config.lora_rank else other) if config.needs_reference else None
        dtype = torch.bfloat16 if config.precision == "bf16" else None
        self.world, kernels = world, shard(world, dtype, self.policy, self.value, reference, FAST)
        self.trained = [p for module in (self.policy, self.value) if module for p in module.parameters()
                        if p.requires_grad]
        several = world.size > 1
        sampler = Sampler(full_copy(self.policy, dtype) if several else self.policy, processor, 1.0,
                          config.max_new_tokens, dtype=dtype, renew=partial(renew, self.policy) if several else None)
        self.optimizer = Noted(self.trained, lr=config.learning_rate)
        self.learner = Learner(self.policy, reference, self.value, sampler, self.optimizer,
                               make_scheduler(self.optimizer, config, 100),
                               experts=partial(expert_branches, processor=processor, reasoning=config.reasoning),
                               kernels=kernels, total=world.total, even=world.even)
        numbers, examples, prompts = map(self.world.share, (range(EXAMPLES), self.examples, prompts))
        self.batch = PromptBatch(numbers, list(examples), list(prompts))

    def step(self, number=0):
        metrics, scored, credit = grpo_step(self.learner, lambda attempt: self.batch, reward, self.config, number)
        return (stages.over_ranks(self.world, metrics, scored, credit),
                group_records(scored, credit, PromptSettings(prompt_style="compact")))


def config_of(**changes):
    return GRPOFlags(**{"group_size": 4, "max_new_tokens": 8, "learning_rate": 1.0, "max_grad_norm": 1e9,
                         "prompt_style": "compact", "warmup_steps": 0, **changes})


def grpo_case(folder, world, changes):
    """-> metrics, groups by example, gradients of the last update."""
    case = Case(folder, world, config_of(**changes))
    metrics, groups = case.step()
    return metrics, groups, {str(i): gradient for i, gradient in enumerate(case.optimizer.noted)}


def sft_case(folder, world, _):
    """Targets of all lengths; on two processes all of the second's are empty."""
    policy, processor, settings = load_policy(folder / "policy", torch.float32, "cpu")
    examples = scene_examples("sft", EXAMPLES)
    prompts = [encode_example(e, open_image(e), processor, policy.config, settings) for e in examples]
    targets = [encode_target(e, processor, settings)[:0 if i % 2 else None] for i, e in enumerate(examples)]
    kernels = shard(world, None, policy, kernels=FAST)
    optimizer = Noted(policy.parameters(), lr=1.0)
    config = SFTFlags(micro_batch_tokens=1, warmup_steps=0)
    metrics = sft_step(policy, optimizer, make_scheduler(optimizer, config, 10), world.share(prompts),
                       world.share(targets), config, kernels, world.total, world.even)
    return metrics, [], {str(i): gradient for i, gradient in enumerate(optimizer.noted)}


# Four groups of two answers
REWARDS = [[0.1, 0.3], [2.0, 1.0], [5.0, 5.5], [1.0, 1.0]]


def advantages_case(world):
    """Advantages by place of the first process's groups: 4, 3 or 0 of the four, and the last process has the rest."""
    found = {}
    for kept in (4, 3, 0):
        own = slice(0, kept) if world.rank == 0 else slice(kept, 4) if world.rank == world.size - 1 else slice(0, 0)
        rewards = torch.tensor(REWARDS[own if world.size > 1 else slice(0, 4)]).view(-1, 2)
        mask = rewards != 5.5                                # its token is padding
        found[kept] = {"scaled": group_advantages(rewards, "batch", total=world.total).tolist(),
                       "whitened": whiten(rewards, mask, world.total).tolist()}
    return found


def run_cases(folder, world):
    """Every case -> records of this process, and tensors that all processes share."""
    records, tensors = {"advantages": advantages_case(world)}, {}
    runs = {name: partial(grpo_case, changes=changes) for name, changes in CASES.items()}
    for name, run in {**runs, "sft": partial(sft_case, _=None)}.items():
        if world.size == 3 and name not in THREE:
            continue
        metrics, groups, found = run(folder, world)
        records[name] = {"metrics": metrics, "groups": {group["id"]: group for group in groups}}
        tensors |= {f"{name}/{key}": tensor.detach().contiguous() for key, tensor in found.items()}
    return json.loads(json.dumps(records)), tensors


def make_runs(world, runs):
    """train.main for each of the runs, in processes that stay together. -> exit code and standard error of each."""
    outcomes, finish_step, save_file, order = [], loop.finish_step, state.save_file, {}

    def signalled(run, progress, reached, *rest):
        """Right after step `stop` the last process, and it alone, is told to end."""
        order["step"] = reached.step
        if order["step"] == order.get("stop") and world.rank == world.size - 1:
            signal.raise_signal(signal.SIGTERM)
        return finish_step(run, progress, reached, *rest)

    def full(*arguments):
        if order["step"] == order.get("full"):
            raise OSError(28, "No space left on device")
        save_file(*arguments)

    with mock.patch.multiple(train, join=lambda device: world, depart=lambda *_: None, print_plan=lambda *_: 0), \
            mock.patch.object(train, "make_reward_fn", lambda config: reward), \
            mock.patch.object(state, "save_file", full), mock.patch.object(loop, "finish_step", signalled):
        for order in runs:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                try:
                    train.main(order["flags"])
                    code = 0
                except SystemExit as end:
                    code = end.code
            outcomes.append((code, said.getvalue()))
    return outcomes


def free_port():
    """One that nobody listens at now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main(folder, *flags):
    torch.set_num_threads(1)
    world = join("cpu")
    records, tensors = run_cases(folder, world)
    (folder / f"{world.size}-{world.rank}.json").write_text(json.dumps(records))
    if world.rank == 0:
        save_file(tensors, folder / f"{world.size}.safetensors")
    if (folder / f"runs-{world.size}.json").exists():
        outcomes = make_runs(world, json.loads((folder / f"runs-{world.size}.json").read_text()))
        (folder / f"outcomes-{world.size}-{world.rank}.json").write_text(json.dumps(outcomes))
    if flags:
        os.environ["MASTER_PORT"] = world.texts(str(free_port()))[0]            # chosen late: others look for one, too
        dist.destroy_process_group()
        train.main(flags)                                    # joins and departs by itself
    depart(world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
