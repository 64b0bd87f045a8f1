"""From an example to what the model reads and should write: prompt, target, the expert's branch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from PIL.Image import Image
from torch import Tensor

from data.example import (
    ANSWERS,
    CAMERA_COUNTS,
    SCENE_SIZE,
    Example,
    front_view,
    picture_size,
    prompt_text,
    target_text,
)
from grpo.engine.flags import WAYPOINT_TOKENS
from grpo.groups import ScoredBatch
from grpo.step import Expert
from models.config import Qwen2VLConfig
from models.processor import Processor
from models.prompt import Prompt, check_context, make_prompt
from rewards.action_file import as_record
from rewards.actions import ALPHADRIVE, Actions


@dataclass(frozen=True)
class PromptSettings:
    """What decides the model's input. It is saved with the model in drivegrpo.json."""

    prompt_style: str = "alphadrive"
    reasoning: bool = True
    hide: str = "nothing"
    max_new_tokens: int = 256
    scene_size: str = SCENE_SIZE        # of the pictures of built-in scenes
    answer: str = "plan"
    actions: Actions = ALPHADRIVE
    camera_count: int = 1               # of built-in scenes

    def __post_init__(self) -> None:
        allowed = {"prompt_style": ("alphadrive", "compact"), "hide": ("nothing", "picture", "sides", "text"),
                   "answer": ANSWERS}
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r:.80}; it must be one of {', '.join(choices)}")
        if not isinstance(self.reasoning, bool):
            raise ValueError(f"reasoning is {self.reasoning!r:.80}; it must be true or false")
        if type(self.max_new_tokens) is not int or not 1 <= self.max_new_tokens <= 32_768:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens!r:.80}; it must be a whole number from 1 to "
                             "32,768")
        if type(self.camera_count) is not int or self.camera_count not in CAMERA_COUNTS:
            raise ValueError(f"camera_count is {self.camera_count!r:.80}; it must be one of {CAMERA_COUNTS}")
        if picture_size(self.scene_size) is None:
            raise ValueError(f"scene_size is {self.scene_size!r:.80}; it must be WIDTHxHEIGHT in pixels, each from 28 "
                             "to 4096, such as 448x224")
        if self.answer == "trajectory" and self.actions.names != ALPHADRIVE.names:
            raise ValueError("answer is 'trajectory', and way-points are judged by AlphaDrive's actions; use plan with "
                             "lists of your own (--actions)")

    @property
    def record(self) -> dict:
        """The settings as JSON has them: lists of actions and several cameras only where there are any."""
        unsaid = {"actions"} | ({"camera_count"} if self.camera_count == 1 else set())
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in unsaid}
        return values | ({} if self.actions == ALPHADRIVE else {"actions": as_record(self.actions)})


def answering(settings: PromptSettings, answer: str) -> PromptSettings:
    """The settings for another kind of answer, "" for the same; way-points make it longer."""
    if answer in ("", settings.answer):
        return settings
    longer = WAYPOINT_TOKENS if answer == "trajectory" else 0
    return replace(settings, answer=answer, max_new_tokens=settings.max_new_tokens + longer)


def asked(example: Example, settings: PromptSettings) -> Example:
    """The example as the model sees it: with --hide sides, only the front one of several pictures."""
    return front_view(example) if settings.hide == "sides" else example


def request_text(example: Example, settings: PromptSettings) -> str:
    """The text of the question; a fixed one for the baseline that hides speed and navigation."""
    if settings.hide == "text":
        return "Plan."
    if settings.hide == "picture":
        example = replace(example, cameras=None)
    return prompt_text(example, settings.prompt_style, settings.reasoning, settings.answer, settings.actions)


def encode_example(example: Example, pictures: Image | Sequence[Image], processor: Processor, config: Qwen2VLConfig,
                   settings: PromptSettings) -> Prompt:
    """Example and its picture or pictures -> Prompt: the pictures in order, then the text, as one user turn.

    Raises: ValueError if the prompt and the longest completion together exceed the model's context.
    """
    images = [pictures] if isinstance(pictures, Image) else list(pictures)
    images = [] if settings.hide == "picture" else images
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": request_text(example, settings)}]
    prompt = make_prompt(*processor.encode([{"role": "user", "content": content}], images), config)
    check_context(len(prompt.input_ids), settings.max_new_tokens, config, f"example {example.id}")
    return prompt


def encode_named(example: Example, pictures: Sequence[Image], processor: Processor, config: Qwen2VLConfig,
                 settings: PromptSettings) -> Prompt:
    """The same. Raises: ValueError that names the example and its picture."""
    try:
        return encode_example(example, pictures, processor, config, settings)
    except ValueError as fault:
        named = ", ".join(example.pictures) or "a built-in scene"
        raise ValueError(f"example {example.id!r}, {named}: {fault}") from fault


def encode_target(example: Example, processor: Processor, settings: PromptSettings) -> Tensor:
    """The expert's completion, ended by <|im_end|>: exactly the supervised tokens. -> (N,)."""
    return completion_ids(target_text(example, settings.reasoning, settings.answer), processor)


def completion_ids(text: str, processor: Processor) -> Tensor:
    """Ids of a completion that should be written, ended by <|im_end|>. -> (N,)."""
    return torch.tensor([*processor.encode_text(text), processor.end_of_turn_id])


def expert_branches(scored: ScoredBatch, processor: Processor, reasoning: bool,
                    answer: str = "plan") -> list[Expert]:
    """The expert's answer to every group, for behaviour cloning."""
    ids, size = scored.rollout.completions(), len(scored.rollout.texts) // len(scored.prompts)
    return [expert_branch(example, ids[i * size:(i + 1) * size], processor, reasoning, answer)
            for i, example in enumerate(scored.examples)]


def expert_branch(example: Example, samples: Sequence[Tensor], processor: Processor, reasoning: bool,
                  answer: str = "plan") -> Expert:
    """The expert's answer as one more branch -> its ids, and where the supervised tokens begin.

    An expert without a reason borrows the first sampled think block and is imitated on the answer alone, which does
    not teach the policy to stop thinking. The branch is empty if no sample closed a think block.
    """
    if not reasoning or example.reasoning is not None:
        return completion_ids(target_text(example, reasoning, answer), processor), 0
    for ids in samples:
        end = think_length(ids, processor)
        if end is not None:
            rest = completion_ids(" " + target_text(example, reasoning=False, answer=answer), processor)
            return torch.cat([ids[:end], rest]), end
    return torch.zeros(0, dtype=torch.long), 0


def think_length(ids: Tensor, processor: Processor) -> int | None:
    """Number of leading tokens that hold the think block and nothing behind it; None if no token ends there."""
    if "</think>" not in processor.decode(ids):
        return None
    lengths = range(1, len(ids) + 1)                # a token such as `><` may reach beyond the block
    return next((n for n in lengths if processor.decode(ids[:n]).rstrip().endswith("</think>")), None)
