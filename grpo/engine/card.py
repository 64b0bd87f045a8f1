"""The model card: README.md of a model directory, in the hub's format.

It says what the model was made from and how, its scores, the licence of its base, and what it is for. `eval.py` adds
the scores.
"""

import json
import re
from pathlib import Path
from typing import Any

from grpo.engine.checkpoint import CARD_FILE
from grpo.engine.flags import GRPOFlags, SFTFlags
from storage import write_text

SCORES = re.compile(r"(?<=<!-- scores -->\n).*?(?=<!-- /scores -->)", re.DOTALL)
NOT_SCORED = "Not scored yet: `python eval.py --model DIRECTORY` adds its table here.\n"
INTENDED = """Research on driving planners and their training: reproducing, comparing and studying methods. The model
has not been tested for road safety. It must not control a vehicle, and its plans must not be shown to a driver as
advice. It was trained on the data named above and is unreliable on pictures that differ from them."""


def model_card(stage: str, config: SFTFlags | GRPOFlags, examples: int, facts: dict[str, Any]) -> str:
    """The card of a model that is being saved. facts: what drivegrpo.json says about it."""
    licence = base_licence(config.model)
    head = {"license": licence, "base_model": None if config.model == "tiny" else config.model,
            "pipeline_tag": "image-text-to-text", "tags": ["autonomous-driving", stage]}
    front = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items() if value)
    rows = {"base": "none: the built-in tiny Qwen2-VL, from random weights" if config.model == "tiny" else config.model,
            "stage": f"{stage}{method(config)}, step {facts.get('step')}, seed {config.seed}",
            "trained on": f"{examples:,} {source(config)}",
            "answers": f"{'reason and plan' if config.reasoning else 'plan'} to {config.prompt_style} questions",
            "rewards": ", ".join(facts.get("rewards") or ()) or None,
            "validation": None if facts.get("val_accuracy") is None else
            f"planning accuracy {facts['val_accuracy']:.4f}, greedy, on at most {config.eval_examples} examples"}
    table = "\n".join(f"| {name} | {cell(value)} |" for name, value in rows.items() if value)
    return f"""---
{front}
---

# A driving planner

A Qwen2-VL that answers a picture from the car, its speed and a navigation text with a plan:
`<think> why </think> <answer> SPEED, PATH </answer>`. It was trained with DriveGRPO; `drivegrpo.json` says how it was
asked.

| | |
|---|---|
{table}

## Scores

<!-- scores -->
{NOT_SCORED}<!-- /scores -->

## Licence

{terms(config.model, licence)}

## Intended use

{INTENDED}
"""


def method(config: SFTFlags | GRPOFlags) -> str:
    """How the policy was updated, as far as a person asks."""
    lora = f", LoRA of rank {config.lora_rank}" if config.lora_rank else ""
    if isinstance(config, GRPOFlags):
        return f" ({config.algorithm}, group size {config.group_size}, beta {config.beta}{lora})"
    return f" ({lora.removeprefix(', ')})" if lora else ""


def source(config: SFTFlags | GRPOFlags) -> str:
    """Where the examples come from."""
    split = f"split {config.split}"
    return f"built-in scenes ({split}, prior {config.prior})" if config.data == "scenes" else \
        f"examples of {Path(config.data).name} ({split})"


def cell(text: object) -> str:
    """Text in a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


# ---------------------------------------------------------------- the base's licence

def base_licence(model: str) -> str | None:
    """The licence that the base's own card names; MIT for the built-in model; None if it is not known."""
    if model == "tiny":
        return "mit"
    card = Path(model, CARD_FILE)
    front = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2] if card.is_file() else []
    found = re.search(r"^license:\s*[\"']?([\w.-]{1,80})", "".join(front), re.MULTILINE)
    return found[1] if found else None


def terms(model: str, licence: str | None) -> str:
    """The paragraph about it."""
    if model == "tiny":
        return "The weights began at random and were trained with DriveGRPO, whose code is under the MIT licence."
    known = f"{licence}, as its card says" if licence else "not known here: see where you have it from"
    return f"The licence of the base model applies. It is {known}. The licence of the training data may add to it."


# ---------------------------------------------------------------- scores

def add_scores(directory: str | Path, scores: str) -> bool:
    """Put scores into the card of a model of ours, in place of earlier ones. -> whether it has one."""
    card = Path(directory, CARD_FILE)
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not SCORES.search(text):
        return False
    write_text(card, SCORES.sub(lambda _: scores.rstrip() + "\n", text, count=1))
    return True
