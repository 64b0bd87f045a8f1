"""Seconds and memory of one whole GRPO step, ours and TRL's GRPOTrainer in turns.

    python benchmarks/step.py --model DIR --prompts 2 --group-size 8 --new-tokens 64 --image 448x252 --precision amp \
        --beta 0.04 --repeats 9 --against trl --peer-python PEER/bin/python

A step is everything from opening the pictures to the optimizer: prompts encoded, groups sampled at a forced length,
scored, reference and policy passes, backward, AdamW. amp: float32 masters and bf16 compute; bf16: weights in bf16 too.
`--lora-rank 16 --precision bf16` trains adapters on a frozen bf16 base, which serves as its own reference.
The last line printed is one JSON object; docs/performance.md explains its fields.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.floor import step_floor  # noqa: E402
from benchmarks.measure import (  # noqa: E402
    Phases,
    ceiling,
    choose_device,
    machine_record,
    parse_image,
    reset_peak,
    write_record,
)
from benchmarks.peers import MICRO_BATCH, varied_reward  # noqa: E402
from benchmarks.rollout import (  # noqa: E402
    common_flags,
    count_work,
    encode,
    in_turns,
    make_examples,
    new_sampler,
    peer_settings,
    report,
    shape_of,
    shapes,
)
from data.example import Example  # noqa: E402
from grpo import step as method  # noqa: E402
from grpo.engine.flags import GRPOFlags  # noqa: E402
from grpo.engine.optimizer import freeze_copy, make_optimizer, make_scheduler  # noqa: E402
from grpo.fast import FAST  # noqa: E402
from grpo.fast.sampler import Sampler  # noqa: E402
from grpo.groups import PromptBatch  # noqa: E402
from grpo.step import Learner, grpo_step  # noqa: E402
from models import load_model, load_processor  # noqa: E402
from models.fast.recomputed import use_recomputed  # noqa: E402
from models.lora import add_lora, plain_tensors  # noqa: E402
from models.qwen2_vl import Qwen2VL  # noqa: E402

COMPUTE = {"amp": torch.bfloat16, "bf16": torch.bfloat16, "fp32": torch.float32}
WEIGHTS = {"amp": torch.float32, "bf16": torch.bfloat16, "fp32": torch.float32}
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# phase: the functions of grpo/step.py that it consists of; an inner one's time is its own, so backward is the remainder
PHASES = {"generate": "sample_groups", "reference": "fixed_values", "backward": "accumulate",
          "policy_forward": "objective", "optimizer": "update"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the record."""
    flags = step_flags().parse_args(arguments)
    device = choose_device(flags.device, flags.threads)
    with tempfile.TemporaryDirectory() as folder:
        examples = make_examples(flags.prompts, parse_image(flags.image), Path(folder))
        record = compare(flags, examples, device)
    write_record(record, flags.output)


def step_flags() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    parser = common_flags(__doc__)
    parser.add_argument("--precision", choices=sorted(WEIGHTS), default="amp")
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--micro-batch-tokens", type=int, default=0,
                        help=f"tokens of a training forward pass; 0: as many groups as {MICRO_BATCH} completions make")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="ours only")
    parser.add_argument("--lora-rank", type=int, default=0, help="ours only; 0: train every weight")
    parser.add_argument("--against", choices=("trl",))
    return parser


def compare(flags: argparse.Namespace, examples: Sequence[Example], device: torch.device) -> dict[str, Any]:
    """Ours alone, or in turns with TRL."""
    ours = OurStep(flags, examples, device)
    config = ours.learner.policy.config
    settings = peer_settings(flags, examples, device, config.suppressed_token_ids, precision=flags.precision,
                             beta=flags.beta)
    found = in_turns(ours, flags, settings, device)
    dtype = COMPUTE[flags.precision]
    limits = ceiling(device, dtype)
    vision_trained = any(parameter.requires_grad for parameter in ours.learner.policy.visual.parameters())
    floor = step_floor(config, ours.shape, dtype.itemsize, limits, flags.beta > 0, vision_trained, not flags.lora_rank)
    return {"benchmark": "step", **machine_record(device), "precision": flags.precision, "beta": flags.beta,
            "decode": flags.decode, "lora_rank": flags.lora_rank, "vision_trained": vision_trained,
            "shapes": shapes(flags, ours.shape, ours.learner.policy), **report(found, ours.shape, floor, device),
            "ceiling": limits}


def make_config(flags: argparse.Namespace, prompt_tokens: int) -> GRPOFlags:
    """The run's settings. Without --micro-batch-tokens a forward pass holds as many completions as the peer's."""
    groups = max(1, MICRO_BATCH // flags.group_size)
    tokens = flags.micro_batch_tokens or groups * (prompt_tokens + flags.group_size * flags.new_tokens)
    return GRPOFlags(precision="bf16" if flags.precision == "amp" else "fp32", beta=str(flags.beta), steps=1000,
                      group_size=flags.group_size, prompts_per_step=flags.prompts, max_new_tokens=flags.new_tokens,
                      lr_schedule="constant", warmup_steps=0, micro_batch_tokens=tokens, decode=flags.decode,
                      gradient_checkpointing=flags.gradient_checkpointing)


def make_models(flags: argparse.Namespace, device: torch.device, beta: float) -> tuple[Qwen2VL, Qwen2VL | None]:
    """Policy, and the reference: a frozen copy, or with adapters a model that shares the policy's frozen base."""
    policy = load_model(flags.model, dtype=WEIGHTS[flags.precision], device=device).train()
    use_recomputed(policy)
    policy.model.gradient_checkpointing = policy.visual.gradient_checkpointing = flags.gradient_checkpointing
    if not flags.lora_rank:
        return policy, freeze_copy(policy, COMPUTE[flags.precision]) if beta > 0 else None
    add_lora(policy, flags.lora_rank, 2.0 * flags.lora_rank, LORA_TARGETS, torch.Generator().manual_seed(0))
    with torch.device("meta"):
        reference = Qwen2VL(policy.config)
    reference.load_state_dict(plain_tensors(policy), assign=True)
    return policy, reference.requires_grad_(False).eval() if beta > 0 else None


class OurStep:
    """`run()` takes one step and says what it took. Learning rate and rewards are real, the scenes are always the same.
    """

    def __init__(self, flags: argparse.Namespace, examples: Sequence[Example], device: torch.device) -> None:
        self.flags, self.examples, self.device, self.turn = flags, list(examples), device, 0
        policy, reference = make_models(flags, device, flags.beta)
        self.processor = load_processor(flags.model)
        prompts = encode(examples, self.processor, policy, flags.prompt_style, flags.new_tokens)
        self.shape = shape_of(prompts, flags.group_size, flags.new_tokens)
        self.config = make_config(flags, max(self.shape.prompt_tokens))
        optimizer = make_optimizer(policy, self.config)
        self.learner = Learner(policy, reference, None, self.sampler(policy, flags.decode), optimizer,
                               make_scheduler(optimizer, self.config, 1000), kernels=FAST)

    def sampler(self, policy: Qwen2VL, decode: str) -> Sampler:
        """As in training, from a copy in the computing type where that differs or can be packed."""
        return new_sampler(policy, self.processor, self.flags.new_tokens, decode, COMPUTE[self.flags.precision])

    def warm_up(self) -> dict[str, Any]:
        """One step with counters, decoding eagerly, and one as in the measurement. -> tokens and patches by phase."""
        plain = replace(self.learner, sampler=self.sampler(self.learner.policy, "eager"))
        with Phases(self.device) as phases:
            count_work(phases)
            time_step(phases)
            phases.start()
            self.step(plain)
            work = phases.stop()["work"]
        del plain
        self.run()
        reset_peak(self.device)
        return work

    def run(self) -> dict[str, Any]:
        with Phases(self.device) as phases:
            time_step(phases)
            phases.start()
            self.step(self.learner)
            return phases.stop()

    def step(self, learner: Learner) -> None:
        """One step. Raises: RuntimeError if the forced length was not kept or the update was skipped."""
        self.turn += 1
        metrics, scored, _ = grpo_step(learner, self.draw, reward_by_text, self.config, self.turn)
        if not scored.rollout.completion_mask.all() or metrics["skipped"]:
            raise RuntimeError(f"this step did not do the forced work: {metrics}")

    def draw(self, _attempt: int) -> PromptBatch:
        """Open and encode the pictures anew, as in training."""
        flags = self.flags
        prompts = encode(self.examples, self.processor, self.learner.policy, flags.prompt_style, flags.new_tokens)
        return PromptBatch(range(len(prompts)), self.examples, prompts)


def time_step(phases: Phases) -> None:
    """The parts of a step; encoding, scoring and packing are the rest."""
    for phase, function in PHASES.items():
        phases.wrap(method, function, phase)


def reward_by_text(_example: Example, completions: list[str]) -> list[dict[str, float]]:
    """The peer's reward as one of our components."""
    return [{"speed": reward, "path": 0.0, "format": 0.0} for reward in varied_reward(completions)]


if __name__ == "__main__":
    main()
