"""What a trajectory decoder knows of a scene: hidden states of a frozen planner, or the scene's facts."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from data.dataset import open_images, prepared_ahead
from data.example import Example
from grpo.engine.checkpoint import default_model, load_policy
from grpo.engine.progress import Progress
from grpo.engine.prompts import PromptSettings, asked, encode_named
from grpo.engine.state import fingerprint
from grpo.fast.attention import branch_attention
from grpo.packing import pack
from models.processor import Processor
from models.prompt import Prompt
from models.qwen2_vl import Qwen2VL
from rewards.actions import ALPHADRIVE
from trajectory.facts import scene_facts


@dataclass(frozen=True)
class Planner:
    """A frozen language model that reads a scene's picture and request."""

    directory: str
    policy: Qwen2VL
    processor: Processor
    settings: PromptSettings
    sign: str                       # of its weights

    def encode(self, example: Example) -> Prompt:
        """Raises: ValueError or OSError that names the example."""
        example = asked(example, self.settings)
        pictures = open_images(example, scene_size=self.settings.scene_size)
        return encode_named(example, pictures, self.processor, self.policy.config, self.settings)


def default_planner() -> str:
    """The built-in run's GRPO model, else its SFT model. Raises: ValueError that says what to run."""
    return default_model(("grpo", "sft"), "there is no planner to condition on: run `python train.py --stage sft` (and "
                         "`--stage grpo`) first, name one with --model DIR, or use --condition facts, which needs none")


def load_planner(directory: str, device: str, min_pixels: int = 0, max_pixels: int = 0) -> Planner:
    """A planner in the device's usual type: bf16 on cuda, float32 on a CPU."""
    policy, processor, settings = load_policy(directory, torch.float32, "cpu", min_pixels, max_pixels)
    if settings is not None and settings.actions.names != ALPHADRIVE.names:
        raise ValueError(f"{directory} plans with the actions {', '.join(settings.actions.names)}; a trajectory "
                         "decoder knows AlphaDrive's alone, so name another planner, or use --condition facts")
    sign = fingerprint(policy.state_dict())                 # of float32 weights, so that it is the same everywhere
    policy.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    return Planner(directory, policy.requires_grad_(False).eval(), processor, settings or PromptSettings(), sign)


def about_condition(condition: str, planner: Planner | None) -> dict[str, str | None]:
    """What decoder.json keeps of the condition."""
    return {"condition": condition, "planner": None if planner is None else planner.directory,
            "planner_sign": None if planner is None else planner.sign}


def check_planner(about: dict, planner: Planner) -> None:
    """Raise ValueError if a decoder was cloned on another planner's hidden states."""
    if planner.sign == about["planner_sign"]:
        return
    # earlier versions signed what a GPU computes with
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in planner.policy.state_dict().items()}
    if fingerprint(rounded) != about["planner_sign"]:
        raise ValueError(f"{planner.directory} is not the planner that the decoder was conditioned on (it was "
                         f"{about['planner']}, or that model has changed since): name the same one (--planner, in "
                         "eval.py --model), or clone a decoder for this one with --stage trajectory-bc")


@dataclass(frozen=True)
class Features:
    """What was found in P examples: features (U, F) of those that can be used, their places, faults of the others."""

    values: Tensor
    places: list[int]
    faults: list[str]


def features_of(planner: Planner | None, examples: list[Example], batch_size: int,
                on_bad_data: str = "stop") -> Features:
    """The features of each example. Raises: ValueError or OSError for one that cannot be used, unless it is skipped."""
    if planner is None:
        if any(example.scene is None for example in examples):
            raise ValueError("the decoder is conditioned on the facts of built-in scenes, which pictures lack; "
                             "clone one on a planner: python train.py --stage trajectory-bc --model DIR")
        return Features(scene_facts(examples), list(range(len(examples))), [])
    order = sorted(range(len(examples)), key=lambda i: len(str(examples[i].navigation)))    # less padding
    batches = [order[start:start + batch_size] for start in range(0, len(order), batch_size)]
    progress, found, faults, done = Progress("features", len(examples), 0), {}, {}, 0
    encode = partial(encode_batch, planner, examples, on_bad_data)
    for batch, prompts in zip(batches, prepared_ahead(encode, batches), strict=True):
        usable = {i: prompt for i, prompt in zip(batch, prompts, strict=True) if isinstance(prompt, Prompt)}
        faults |= {i: fault for i, fault in zip(batch, prompts, strict=True) if i not in usable}
        if usable:
            found |= dict(zip(usable, hidden_features(planner.policy, list(usable.values())), strict=True))
        done += len(batch)
        progress.show(done)
    size = 3 * planner.policy.config.text.hidden_size
    values = torch.stack([found[i] for i in sorted(found)]) if found else torch.zeros(0, size)
    return Features(values, sorted(found), [faults[i] for i in sorted(faults)])


def encode_batch(planner: Planner, examples: list[Example], on_bad_data: str, batch: list[int]) -> list[Prompt | str]:
    """The prompts of these examples; to be skipped, the fault of one that cannot be used."""
    found: list[Prompt | str] = []
    for i in batch:
        try:
            found.append(planner.encode(examples[i]))
        except (ValueError, OSError) as fault:
            if on_bad_data == "stop":
                raise
            found.append(str(fault))
    return found


@torch.no_grad()
def hidden_features(policy: Qwen2VL, prompts: list[Prompt]) -> Tensor:
    """Last layer's hidden states of each request: [last token | mean of picture tokens | mean of the others].

    Shapes: -> (P, 3 D), float32 on the CPU."""
    rows = pack(prompts, [[torch.zeros(0, dtype=torch.long)] for _ in prompts]).to(policy.head_weight.device)
    features = None if rows.pixel_values is None else policy.image_features(rows.pixel_values, rows.image_grid_thw)
    embeds = policy.embed(rows.input_ids, features)                             # (P, T, D)
    hidden = policy.hidden_states(embeds, rows.position_ids, branch_attention(rows)).float()
    last = torch.tensor([len(prompt.input_ids) - 1 for prompt in prompts], device=hidden.device)
    picture = rows.input_ids == policy.config.image_token_id                    # (P, T)
    words = (rows.branches == 0) & ~picture
    return torch.cat([hidden[torch.arange(len(prompts)), last], masked_mean(hidden, picture),
                      masked_mean(hidden, words)], dim=1).cpu()


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the tokens of a mask, 0 without any. Shapes: (P, T, D), (P, T) -> (P, D)."""
    weights = mask.float()[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
